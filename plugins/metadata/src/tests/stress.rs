//! Everything at once for a few seconds: pulls that share layers, containers, deletions, pulls given up half way,
//! ingests left for later, and collections without a pause. What somebody holds is there, always; in the end, when
//! nobody holds anything, nothing is.
//!
//! Each worker draws from its own numbers, which come from one seed; it is printed, and `CORTEN_STRESS_SEED` sets it.
//! `CORTEN_STRESS_SECONDS` makes it longer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use corten_core::content::{WriterOptions, open_writer, read_blob};
use corten_core::snapshots::Commit;
use corten_core::{Digest, Kind, Scope};

use super::fakes::*;

const WORKERS: u64 = 6;
/// What each of them does at least.
const LEAST: usize = 10;
/// Layers that all images are made of.
const LAYERS: u64 = 8;
const SNAPSHOTTER: &str = "mem";

/// splitmix64: a generator that fits on a line of its own.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What an image is made of.
#[derive(Clone)]
struct Recipe {
    layers: Vec<u64>,
}

impl Recipe {
    fn draw(numbers: &mut Numbers) -> Self {
        let count = 1 + numbers.below(4);
        let layers = (0..count).map(|_| numbers.below(LAYERS)).collect();
        Self { layers }
    }

    fn blob(layer: u64) -> Vec<u8> {
        format!("layer {layer}").into_bytes()
    }

    /// The names of the snapshots, bottom first.
    fn chain(&self) -> Vec<String> {
        let names = self.layers.iter().scan(String::from("chain"), |name, l| {
            name.push_str(&format!("-{l}"));
            Some(name.clone())
        });
        names.collect()
    }

    fn top(&self) -> String {
        self.chain().pop().unwrap()
    }

    fn config(&self) -> Vec<u8> {
        format!("config of {:?}", self.layers).into_bytes()
    }

    fn manifest(&self) -> Vec<u8> {
        format!("manifest of {:?}", self.layers).into_bytes()
    }
}

struct Worker {
    world: Arc<World>,
    numbers: Numbers,
    scope: Scope,
    id: u64,
    made: u64,
    images: BTreeMap<String, Recipe>,
    /// By id, which is the key of its snapshot too.
    containers: BTreeMap<String, Recipe>,
    /// An ingest that is held by a lease: the lease, and how much is written.
    ingest: Option<(String, usize)>,
}

impl Worker {
    fn new(world: &Arc<World>, id: u64, seed: u64) -> Self {
        Self {
            world: world.clone(),
            numbers: Numbers(seed.wrapping_mul(31).wrapping_add(id)),
            // Namespaces share bytes, and have records of their own.
            scope: scope(["one", "two"][usize::from(id % 2 == 1)]),
            id,
            made: 0,
            images: BTreeMap::new(),
            containers: BTreeMap::new(),
            ingest: None,
        }
    }

    fn name(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{what}-{}-{}", self.id, self.made)
    }

    async fn lease(&mut self, labels: &[(&str, &str)]) -> Scope {
        let id = self.name("lease");
        let leases = self.world.md().leases();
        let made = leases.create(&self.scope.namespace, &id, map(labels)).await;
        made.unwrap();
        self.scope.with_lease(id)
    }

    async fn end(&self, leased: &Scope) {
        let leases = self.world.md().leases();
        let id = leased.lease.as_deref().unwrap();
        leases.delete(&leased.namespace, id, false).await.unwrap();
    }

    async fn step(&mut self) {
        match self.numbers.below(10) {
            0..=2 => self.pull().await,
            3 => self.give_up().await,
            4 | 5 => self.run().await,
            6 => self.remove_container().await,
            7 => self.remove_image().await,
            8 => self.ingest().await,
            _ => self.hold_flat().await,
        }
        self.check_one().await;
    }

    /// Blobs and snapshots of `recipe` under a lease; the number of steps may be cut.
    async fn bring(&mut self, leased: &Scope, recipe: &Recipe, steps: usize) {
        let mut parent = String::new();
        let chain = recipe.chain();
        for (layer, name) in recipe.layers.iter().zip(&chain).take(steps) {
            let world = self.world.clone();
            world.blob(leased, &Recipe::blob(*layer), &[]).await;
            self.unpack(leased, name, &parent).await;
            parent.clone_from(name);
        }
        if steps < chain.len() {
            return;
        }
        let snapshot = format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}");
        let config = self
            .world
            .blob(leased, &recipe.config(), &[(snapshot.as_str(), &parent)])
            .await;
        let mut refs = vec![("containerd.io/gc.ref.content.config".to_owned(), config)];
        for (i, layer) in recipe.layers.iter().enumerate() {
            let label = format!("containerd.io/gc.ref.content.l.{i}");
            refs.push((label, Digest::sha256(&Recipe::blob(*layer))));
        }
        let refs: Vec<_> = refs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        self.world.blob(leased, &recipe.manifest(), &refs).await;
    }

    async fn unpack(&mut self, leased: &Scope, name: &str, parent: &str) {
        let key = self.name("extract");
        let sn = self.world.md().snapshots();
        let target = map(&[("containerd.io/snapshot.ref", name)]);
        match sn.prepare(leased, SNAPSHOTTER, &key, parent, target).await {
            Err(e) => assert_eq!(e.kind(), Kind::AlreadyExists, "{e}"),
            Ok(_) => {
                let commit = Commit {
                    name: name.to_owned(),
                    key: key.clone(),
                    ..Commit::default()
                };
                if let Err(e) = sn.commit(leased, SNAPSHOTTER, commit).await {
                    assert_eq!(e.kind(), Kind::AlreadyExists, "{e}");
                    sn.remove(leased, SNAPSHOTTER, &key).await.unwrap();
                }
            }
        }
    }

    async fn pull(&mut self) {
        let recipe = Recipe::draw(&mut self.numbers);
        let leased = self.lease(&[]).await;
        self.bring(&leased, &recipe, usize::MAX).await;
        let name = self.name("image");
        let world = self.world.clone();
        world.image(&leased, &name, &recipe.manifest(), &[]).await;
        self.end(&leased).await;
        self.check(&recipe).await;
        self.images.insert(name, recipe);
    }

    /// A pull that comes to nothing; its lease ends, or runs out.
    async fn give_up(&mut self) {
        let recipe = Recipe::draw(&mut self.numbers);
        let leased = self.lease(&[]).await;
        let steps = usize::try_from(self.numbers.below(4)).unwrap();
        self.bring(&leased, &recipe, steps).await;
        self.end(&leased).await;
    }

    /// A container on an image, whose image may go away under it.
    async fn run(&mut self) {
        let Some(recipe) = self.images.values().next_back().cloned() else {
            return;
        };
        let id = self.name("c");
        let leased = self.lease(&[]).await;
        let md = self.world.md().clone();
        let made = md
            .snapshots()
            .prepare(&leased, SNAPSHOTTER, &id, &recipe.top(), map(&[]))
            .await;
        made.unwrap();
        let record = container(&id, &id);
        md.containers().create(&leased, record).await.unwrap();
        self.end(&leased).await;
        self.containers.insert(id, recipe);
    }

    async fn remove_container(&mut self) {
        let Some((id, _)) = self.containers.pop_first() else {
            return;
        };
        let md = self.world.md().clone();
        md.containers().delete(&self.scope, &id).await.unwrap();
        // Some clients leave the snapshot to the collector. It may be there first.
        if self.numbers.one_in(2) {
            let removed = md.snapshots().remove(&self.scope, SNAPSHOTTER, &id).await;
            if let Err(e) = removed {
                assert_eq!(e.kind(), Kind::NotFound, "{e}");
            }
        }
    }

    async fn remove_image(&mut self) {
        if let Some((name, _)) = self.images.pop_first() {
            let images = self.world.md().images();
            images.delete(&self.scope, &name, None).await.unwrap();
        }
    }

    /// Half a blob now, the rest when this comes again.
    async fn ingest(&mut self) {
        let whole = format!("a long blob of worker {}", self.id).into_bytes();
        let content = self.world.md().content();
        let (leased, begun) = match self.ingest.take() {
            Some((lease, begun)) => (self.scope.with_lease(lease), begun),
            None => (self.lease(&[]).await, 0),
        };
        let options = WriterOptions {
            r#ref: format!("ingest-{}", self.id),
            ..WriterOptions::default()
        };
        let mut writer = open_writer(&*content, &leased, options).await.unwrap();
        assert_eq!(writer.status().offset, begun as u64, "an ingest lost bytes");
        if begun == 0 {
            let half = whole.len() / 2;
            writer
                .write(Bytes::copy_from_slice(&whole[..half]))
                .await
                .unwrap();
            self.ingest = leased.lease.map(|lease| (lease, half));
            return;
        }
        writer
            .write(Bytes::copy_from_slice(&whole[begun..]))
            .await
            .unwrap();
        if let Err(e) = writer
            .commit(0, Some(Digest::sha256(&whole)), map(&[]))
            .await
        {
            assert_eq!(e.kind(), Kind::AlreadyExists, "{e}");
        }
        self.there(&whole).await;
        self.end(&leased).await;
    }

    /// A flat lease holds what it names and not what that refers to.
    async fn hold_flat(&mut self) {
        let leased = self
            .lease(&[("containerd.io/gc.flat", "2030-01-01T00:00:00Z")])
            .await;
        let data = format!("flat {}", self.numbers.next()).into_bytes();
        let absent = Digest::sha256(b"nothing").to_string();
        let refs = [("containerd.io/gc.ref.content.x", absent.as_str())];
        self.world.blob(&leased, &data, &refs).await;
        for _ in 0..self.numbers.below(20) {
            tokio::task::yield_now().await;
        }
        self.there(&data).await;
        self.end(&leased).await;
    }

    async fn there(&self, data: &[u8]) {
        let content = self.world.md().content();
        let digest = Digest::sha256(data);
        let text = String::from_utf8_lossy(data);
        match read_blob(&*content, &self.scope.namespace, &digest, 1 << 20).await {
            Ok(found) => assert_eq!(found, data, "{text}"),
            Err(e) => panic!("{text} of worker {} is gone: {e}", self.id),
        }
    }

    /// All that an image refers to, records and bytes.
    async fn check(&self, recipe: &Recipe) {
        self.there(&recipe.manifest()).await;
        self.there(&recipe.config()).await;
        for layer in &recipe.layers {
            self.there(&Recipe::blob(*layer)).await;
        }
        self.check_chain(&recipe.top()).await;
    }

    async fn check_chain(&self, top: &str) {
        let sn = self.world.md().snapshots();
        let ns = &self.scope.namespace;
        let mut key = top.to_owned();
        while !key.is_empty() {
            let usage = sn.usage(ns, SNAPSHOTTER, &key).await;
            assert!(usage.is_ok(), "snapshot {key} is gone: {usage:?}");
            key = sn.stat(ns, SNAPSHOTTER, &key).await.unwrap().parent;
        }
    }

    async fn check_one(&mut self) {
        let pick = |numbers: &mut Numbers, all: &BTreeMap<String, Recipe>| {
            let n = numbers.below(all.len().max(1) as u64);
            let found = all.iter().nth(usize::try_from(n).unwrap());
            found.map(|(name, recipe)| (name.clone(), recipe.clone()))
        };
        if let Some((_, recipe)) = pick(&mut self.numbers, &self.images) {
            self.check(&recipe).await;
        }
        if let Some((id, _)) = pick(&mut self.numbers, &self.containers) {
            self.check_chain(&id).await;
        }
    }

    async fn check_all(&self) {
        for recipe in self.images.values() {
            self.check(recipe).await;
        }
        for id in self.containers.keys() {
            self.check_chain(id).await;
        }
    }

    async fn clear(&mut self) {
        while !self.images.is_empty() {
            self.remove_image().await;
        }
        while !self.containers.is_empty() {
            self.remove_container().await;
        }
        if let Some((lease, _)) = self.ingest.take() {
            self.end(&self.scope.with_lease(lease)).await;
        }
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.map_or(otherwise, |v| v.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_in_use_is_ever_collected() {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = number("CORTEN_STRESS_SEED", clock.unwrap().as_nanos() as u64);
    eprintln!("CORTEN_STRESS_SEED={seed}");
    let time = Duration::from_secs(number("CORTEN_STRESS_SECONDS", 3));
    let world = Arc::new(World::new());
    let stop = Arc::new(AtomicBool::new(false));
    let collections = Arc::new(AtomicUsize::new(0));
    let collector = {
        let (world, stop, count) = (world.clone(), stop.clone(), collections.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                world.collect().await;
                count.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let until = Instant::now() + time;
    let workers: Vec<_> = (0..WORKERS)
        .map(|id| {
            let mut worker = Worker::new(&world, id, seed);
            tokio::spawn(async move {
                let mut steps = 0;
                // On a busy machine it takes as long as it takes.
                while Instant::now() < until || steps < LEAST {
                    worker.step().await;
                    steps += 1;
                }
                (worker, steps)
            })
        })
        .collect();
    let mut done = Vec::new();
    let mut steps = 0;
    for worker in workers {
        let (worker, n) = worker.await.unwrap();
        done.push(worker);
        steps += n;
    }
    stop.store(true, Ordering::SeqCst);
    collector.await.unwrap();
    let collections = collections.load(Ordering::SeqCst);
    eprintln!("{steps} steps, {collections} collections");
    assert!(collections > 5, "{collections}");
    world.collect().await;
    for worker in &done {
        worker.check_all().await;
    }
    for worker in &mut done {
        worker.clear().await;
    }
    world.collect().await;
    assert_eq!(world.blobs.blobs(), []);
    assert_eq!(world.blobs.ingests(), [""; 0]);
    assert_eq!(world.layers.keys(), [""; 0]);
}
