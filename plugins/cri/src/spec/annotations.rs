//! Owns annotations: the ones that the CRI writes into every document, and which of the user's go through.
//!
//! The CRI's own are written last, so that no annotation of a pod can stand for them. A handler's globs are matched as
//! Go's path.Match does: `*` and `?` stop at a slash, a class is `[a-z]` or `[^a-z]`, a backslash quotes.

use std::collections::BTreeMap;

use corten_protos::runtime::v1::{LinuxContainerResources, PodSandboxConfig};

type Annotations = BTreeMap<String, String>;

pub(crate) const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
pub(crate) const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
const SANDBOX_LOG_DIRECTORY: &str = "io.kubernetes.cri.sandbox-log-directory";
const SANDBOX_IMAGE: &str = "io.kubernetes.cri.podsandbox.image-name";
const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const SANDBOX_CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
const IMAGE_NAME: &str = "io.kubernetes.cri.image-name";

/// Those of `annotations` whose key one of the globs takes.
pub fn passthrough(annotations: &Annotations, globs: &[String]) -> Annotations {
    let taken = |key: &str| globs.iter().any(|glob| matches(glob, key));
    let through = annotations.iter().filter(|(key, _)| taken(key));
    through.map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// The CRI's own, of a container.
pub(super) fn of_container(
    to: &mut Annotations,
    sandbox_id: &str,
    name: &str,
    image: &str,
    pod: &PodSandboxConfig,
) {
    of_both(to, sandbox_id, pod);
    put(to, CONTAINER_NAME, name);
    put(to, IMAGE_NAME, image);
    put(to, CONTAINER_TYPE, "container");
}

/// The CRI's own, of a pod. `image` is that of its pause container.
pub(super) fn of_pod(to: &mut Annotations, id: &str, image: &str, pod: &PodSandboxConfig) {
    of_both(to, id, pod);
    put(to, SANDBOX_LOG_DIRECTORY, &pod.log_directory);
    put(to, SANDBOX_IMAGE, image);
    put(to, CONTAINER_TYPE, "sandbox");
}

/// What the pod's containers will need together, if the kubelet says.
pub(super) fn of_size(to: &mut Annotations, size: &LinuxContainerResources) {
    put(to, SANDBOX_CPU_PERIOD, &size.cpu_period.to_string());
    put(to, SANDBOX_CPU_QUOTA, &size.cpu_quota.to_string());
    put(to, SANDBOX_CPU_SHARES, &size.cpu_shares.to_string());
    put(to, SANDBOX_MEMORY, &size.memory_limit_in_bytes.to_string());
}

fn of_both(to: &mut Annotations, sandbox_id: &str, pod: &PodSandboxConfig) {
    let of = pod.metadata.clone().unwrap_or_default();
    put(to, SANDBOX_ID, sandbox_id);
    put(to, SANDBOX_NAMESPACE, &of.namespace);
    put(to, SANDBOX_UID, &of.uid);
    put(to, SANDBOX_NAME, &of.name);
}

fn put(to: &mut Annotations, key: &str, value: &str) {
    to.insert(key.to_owned(), value.to_owned());
}

/// Whether all of `text` is what `glob` describes. A glob that is not one takes nothing.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut g, mut t) = (0, 0);
    // Where to go on when a guess about the last star was wrong: after the star, and one character later.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if let Some('*') = glob.get(g) {
            g += 1;
            retry = Some((g, t));
            continue;
        }
        match (step(&glob[g..], text.get(t).copied()), text.get(t)) {
            (Some(0), None) => return true,
            (Some(used), Some(_)) if used > 0 => {
                g += used;
                t += 1;
                continue;
            }
            _ => {}
        }
        let Some((after, from)) = retry else {
            return false;
        };
        // A star takes no slash.
        if text.get(from).is_none_or(|&c| c == '/') {
            return false;
        }
        (g, t) = (after, from + 1);
        retry = Some((after, t));
    }
}

/// How much of the glob takes this character: `Some(0)` when both are at their end, `None` when it does not.
fn step(glob: &[char], c: Option<char>) -> Option<usize> {
    let (Some(&first), Some(c)) = (glob.first(), c) else {
        return (glob.is_empty() && c.is_none()).then_some(0);
    };
    match first {
        '?' => (c != '/').then_some(1),
        '\\' => (*glob.get(1)? == c).then_some(2),
        '[' => {
            let (used, taken) = class(glob, c)?;
            taken.then_some(used)
        }
        first => (first == c).then_some(1),
    }
}

/// Length of the class at the start of `glob`, and whether it takes `c`.
fn class(glob: &[char], c: char) -> Option<(usize, bool)> {
    let mut at = 1;
    let negated = glob.get(at) == Some(&'^');
    at += usize::from(negated);
    let (mut taken, mut ranges) = (false, 0);
    while glob.get(at) != Some(&']') || ranges == 0 {
        let low = literal(glob, &mut at)?;
        let high = if glob.get(at) == Some(&'-') {
            at += 1;
            literal(glob, &mut at)?
        } else {
            low
        };
        taken |= (low..=high).contains(&c);
        ranges += 1;
    }
    Some((at + 1, taken != negated))
}

fn literal(glob: &[char], at: &mut usize) -> Option<char> {
    let mut c = *glob.get(*at)?;
    if c == '-' || c == ']' {
        return None;
    }
    if c == '\\' {
        *at += 1;
        c = *glob.get(*at)?;
    }
    *at += 1;
    Some(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_are_go_s() {
        for (glob, text, want) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "a.b-c", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("io.katacontainers.*", "io.katacontainers.config.x", true),
            ("io.katacontainers.*", "io.katacontainers.a/b", false),
            ("*.x*z", "a.b.xyz", true),
            ("*ab", "aab", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("a[b-d]c", "acc", true),
            ("a[^b-d]c", "acc", false),
            ("a[^b]c", "axc", true),
            (r"a\*", "a*", true),
            (r"a\*", "ab", false),
            ("a[", "a[", false),
            ("", "", true),
            ("", "a", false),
            ("*a*b*", "xaxbx", true),
            ("cdi.k8s.io/*", "cdi.k8s.io/x", true),
            (
                "org.systemd.property.Foo",
                "org.systemd.property.FooBar",
                false,
            ),
        ] {
            assert_eq!(matches(glob, text), want, "{glob} {text}");
        }
    }

    #[test]
    fn only_listed_annotations_go_through() {
        let all = Annotations::from([("a.x".into(), "1".into()), ("b".into(), "2".into())]);
        assert!(passthrough(&all, &[]).is_empty());
        let globs = ["a.*".to_owned(), "c".to_owned()];
        assert_eq!(
            passthrough(&all, &globs).into_keys().collect::<Vec<_>>(),
            ["a.x"]
        );
    }

    #[test]
    fn the_cri_s_own_cannot_be_stood_for() {
        let mut all = Annotations::from([(SANDBOX_ID.into(), "forged".into())]);
        of_container(&mut all, "pod", "web", "img", &PodSandboxConfig::default());
        assert_eq!(
            (all[SANDBOX_ID].as_str(), all[CONTAINER_TYPE].as_str()),
            ("pod", "container")
        );
        assert_eq!(all.len(), 7);
        let mut all = Annotations::new();
        of_pod(&mut all, "pod", "pause", &PodSandboxConfig::default());
        of_size(&mut all, &LinuxContainerResources::default());
        assert_eq!((all.len(), all[SANDBOX_MEMORY].as_str()), (11, "0"));
    }
}
