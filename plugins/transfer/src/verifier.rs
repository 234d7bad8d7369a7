//! io.containerd.image-verifier.v1 "bindir": programs in a folder judge every image before it is pulled.
//!
//! Each entry of the folder is run in the order of the names, as `PROGRAM -name NAME -digest DIGEST -stdin-media-type
//! TYPE` with the descriptor of the image as JSON on standard input. Exit code 0 accepts, any other refuses; what was
//! said on standard output is the reason. A program that cannot be run, is killed or takes too long has not judged, and
//! no judgement blocks as well. Standard error goes to the debug log. No folder, or an empty one, accepts everything.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use corten_core::transfer::Refused;
use corten_core::verify::{ImageVerifier, Judgement};
use corten_core::{Context as _, Descriptor, Error, Kind, Result, duration, kinds};
use corten_registry::Registration;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tracing::{debug, warn};

/// The media type of what the programs read.
const DESCRIPTOR: &str = "application/vnd.oci.descriptor.v1+json";
/// Output of a program beyond this is read and forgotten.
const OUTPUT: usize = 32 << 10;

/// `type.id` of the plugin.
pub const URI: &str = "io.containerd.image-verifier.v1.bindir";

/// Verifiers by the ids of their plugins.
pub type Verifiers = BTreeMap<String, Arc<dyn ImageVerifier>>;

/// `plugins."io.containerd.image-verifier.v1.bindir"`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The folder of the programs.
    pub bin_dir: PathBuf,
    /// More programs than these are not asked; below 0: no limit.
    pub max_verifiers: i64,
    /// How long each may take.
    #[serde(with = "duration")]
    pub per_verifier_timeout: Duration,
}

/// The plugin.
#[derive(Debug)]
pub struct BinDir {
    config: Config,
}

/// A descriptor as the image-spec writes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Target<'a> {
    media_type: &'a str,
    digest: &'a str,
    size: i64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

/// A program and all that it started; killed when dropped before [`Group::ended`].
struct Group(Option<Pid>);

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            bin_dir: "/opt/containerd/image-verifier/bin".into(),
            max_verifiers: 10,
            per_verifier_timeout: Duration::from_secs(10),
        }
    }
}

// === impl BinDir ===

impl BinDir {
    /// A verifier that runs the programs of a folder.
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// The names of all entries, sorted; none when there is no folder.
    async fn programs(&self) -> Result<Option<Vec<OsString>>> {
        let failed = "failed to list directory contents";
        let mut entries = match tokio::fs::read_dir(&self.config.bin_dir).await {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::from(e).context(failed)),
        };
        let mut names = Vec::new();
        while let Some(entry) = entries.next_entry().await.context(failed)? {
            names.push(entry.file_name());
        }
        names.sort_unstable();
        Ok(Some(names))
    }

    /// Asks one program: its exit code and its reason.
    async fn ask(
        &self,
        program: &OsString,
        name: &str,
        target: &Descriptor,
    ) -> Result<(i32, String)> {
        let descriptor = Target {
            media_type: &target.media_type,
            digest: &target.digest,
            size: target.size,
            annotations: &target.annotations,
        };
        let mut input = serde_json::to_vec(&descriptor)
            .map_err(|e| Error::internal(format!("encode descriptor: {e}")))?;
        input.push(b'\n');
        let path = self.config.bin_dir.join(program);
        let spawned = Command::new(&path)
            .args(["-name", name, "-digest", &target.digest])
            .args(["-stdin-media-type", DESCRIPTOR])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let mut child = spawned.with_context(|| format!("fork/exec {}", path.display()))?;
        let group = Group::of(&child);
        let talk = talk(&mut child, &input, program);
        match tokio::time::timeout(self.config.per_verifier_timeout, talk).await {
            Ok(done) => {
                let (status, reason) = done.context("waiting on command to exit")?;
                group.ended();
                match status.code() {
                    Some(code) => Ok((code, reason)),
                    None => Err(no_end(status)),
                }
            }
            Err(_) => {
                drop(group);
                let status = child.wait().await.context("waiting on command to exit")?;
                Err(no_end(status))
            }
        }
    }
}

#[async_trait]
impl ImageVerifier for BinDir {
    async fn verify(&self, name: &str, target: &Descriptor) -> Result<Judgement> {
        let dir = self.config.bin_dir.display();
        let accept = |reason| Ok(Judgement { ok: true, reason });
        let Some(programs) = self.programs().await? else {
            return accept(format!("image verifier directory {dir} does not exist"));
        };
        if programs.is_empty() {
            return accept(format!("no image verifier binaries found in {dir}"));
        }
        let limit = usize::try_from(self.config.max_verifiers).unwrap_or(usize::MAX);
        if programs.len() > limit {
            warn!(%dir, entries = programs.len(), limit, "image verifiers are being skipped");
        }
        let mut reasons = Vec::new();
        for program in programs.iter().take(limit) {
            let begun = Instant::now();
            let shown = program.to_string_lossy();
            let asked = self.ask(program, name, target).await;
            let (code, reason) = asked.with_context(|| {
                format!(
                    "failed to call verifier {shown} (runtime {:?})",
                    begun.elapsed()
                )
            })?;
            if code != 0 {
                let reason =
                    format!("verifier {shown} rejected image (exit code {code}): {reason}");
                return Ok(Judgement { ok: false, reason });
            }
            reasons.push(format!("{shown} => {reason}"));
        }
        accept(reasons.join(", "))
    }
}

// === impl Group ===

impl Group {
    fn of(leader: &Child) -> Self {
        let pid = leader.id().and_then(|id| i32::try_from(id).ok());
        Self(pid.and_then(Pid::from_raw))
    }

    /// The leader was reaped: its number may be another's by now.
    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Gone already is what is wanted.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Asks every verifier whether `name` may be pulled.
///
/// # Errors
/// Unknown: one of them refuses, or does not judge.
pub(crate) async fn admit(verifiers: &Verifiers, name: &str, target: &Descriptor) -> Result<()> {
    let digest = &target.digest;
    for (id, verifier) in verifiers {
        let judgement = verifier.verify(name, target).await.map_err(|e| {
            Error::new(
                Kind::Unknown,
                format!(
                    "blocking pull of {name} with digest {digest}: image verifier {id} returned error"
                ),
            )
            .with_source(Refused(e.to_string()))
        })?;
        let reason = judgement.reason;
        if !judgement.ok {
            warn!(
                name,
                digest,
                verifier = id,
                reason,
                "image verifier blocked pull"
            );
            return Err(Error::new(
                Kind::Unknown,
                format!(
                    "image verifier {id} blocked pull of {name} with digest {digest} for reason"
                ),
            )
            .with_source(Refused(reason)));
        }
        debug!(
            name,
            digest,
            verifier = id,
            reason,
            "image verifier allowed pull"
        );
    }
    Ok(())
}

/// Gives the program its input, takes its output and waits for its end.
async fn talk(
    child: &mut Child,
    input: &[u8],
    program: &OsString,
) -> std::io::Result<(ExitStatus, String)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program need not read what it does not want to know.
            let _ = stdin.write_all(input).await;
        }
    };
    let ((), (reason, more), (words, _)) = tokio::join!(feed, read(stdout), read(stderr));
    for line in String::from_utf8_lossy(&words).lines() {
        debug!(image_verifier = %program.to_string_lossy(), line, "stderr");
    }
    let mut reason = String::from_utf8_lossy(&reason).trim().to_owned();
    if more {
        reason.push_str("(stdout truncated)");
    }
    Ok((child.wait().await?, reason))
}

/// The first part of an output, and whether there was more of it.
async fn read(pipe: Option<impl AsyncRead + Unpin>) -> (Vec<u8>, bool) {
    let (mut kept, mut more) = (Vec::new(), false);
    let Some(mut pipe) = pipe else {
        return (kept, more);
    };
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let room = count.min(OUTPUT - kept.len());
        kept.extend_from_slice(&buffer[..room]);
        more |= room < count;
    }
    (kept, more)
}

/// As Go says it of a process that did not exit by itself.
fn no_end(status: ExitStatus) -> Error {
    let how = match status.signal() {
        Some(9) => "signal: killed".to_owned(),
        Some(number) => format!("signal: {number}"),
        None => status.to_string(),
    };
    Error::new(Kind::Unknown, format!("waiting on command to exit: {how}"))
}

/// The plugin.
pub fn registration() -> Registration {
    Registration::new::<kinds::ImageVerifier>("bindir")
        .config::<Config>()
        .init(|_cx, config| {
            Box::pin(async move { Ok(Arc::new(BinDir::new(config)) as Arc<dyn ImageVerifier>) })
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    fn program(dir: &Path, name: &str, script: &str) {
        // A child that another test's thread makes while this process writes the file is a writer
        // too until it execs, and no file runs that is being written.
        let write = "printf '#!/bin/sh\\n%s\\n' \"$2\" >\"$1\" && chmod 755 \"$1\"";
        let mut sh = std::process::Command::new("sh");
        sh.args(["-c", write, "sh"]).arg(dir.join(name)).arg(script);
        assert!(sh.status().unwrap().success());
    }

    fn bin_dir(dir: &Path, max_verifiers: i64) -> BinDir {
        BinDir::new(Config {
            bin_dir: dir.into(),
            max_verifiers,
            per_verifier_timeout: Duration::from_secs(2),
        })
    }

    fn target() -> Descriptor {
        Descriptor {
            media_type: "m".into(),
            digest: "sha256:aa".into(),
            size: 7,
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn exit_codes_decide_and_output_is_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let judge = async |max| bin_dir(dir.path(), max).verify("i:1", &target()).await;
        let words = judge(10).await.unwrap();
        assert!(words.ok && words.reason.contains("no image verifier binaries found"));
        program(dir.path(), "a", "echo \"$@\"; cat; echo note >&2");
        program(dir.path(), "b", "exit 0");
        let words = judge(10).await.unwrap();
        assert!(words.ok, "{words:?}");
        let args = format!("-name i:1 -digest sha256:aa -stdin-media-type {DESCRIPTOR}");
        let json = r#"{"mediaType":"m","digest":"sha256:aa","size":7}"#;
        assert_eq!(words.reason, format!("a => {args}\n{json}, b => "));
        program(dir.path(), "c", "echo 'not ours'; exit 3");
        let words = judge(10).await.unwrap();
        assert!(!words.ok);
        assert_eq!(
            words.reason,
            "verifier c rejected image (exit code 3): not ours"
        );
        assert!(judge(2).await.unwrap().ok, "c is not asked");
        assert!(!judge(-1).await.unwrap().ok);
        let nowhere = bin_dir(&dir.path().join("none"), 10);
        assert!(nowhere.verify("i", &target()).await.unwrap().ok);
    }

    #[tokio::test]
    async fn no_judgement_is_an_error() {
        for (script, mode, says) in [
            ("sleep 60 & sleep 60", 0o755, "signal: killed"),
            ("kill -9 $$", 0o755, "signal: killed"),
            ("exit 0", 0o644, "ermission denied"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            program(dir.path(), "p", script);
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(dir.path().join("p"), mode).unwrap();
            let asked = bin_dir(dir.path(), 10).verify("i", &target()).await;
            let e = asked.unwrap_err().to_string();
            assert!(
                e.contains("failed to call verifier p") && e.contains(says),
                "{e}"
            );
        }
    }

    #[tokio::test]
    async fn much_output_is_cut_and_does_not_stop_the_program() {
        let dir = tempfile::tempdir().unwrap();
        program(
            dir.path(),
            "p",
            "head -c 200000 /dev/zero | tr '\\0' x; exit 1",
        );
        let asked = bin_dir(dir.path(), 10).verify("i", &target()).await;
        let reason = asked.unwrap().reason;
        assert!(reason.ends_with("x(stdout truncated)") && reason.len() < 40_000);
    }
}
