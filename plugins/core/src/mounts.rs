//! Facts about mount recipes that need no system call.

use crate::Mount;

/// Whether a recipe gives a read-only file system (containerd 2.4 core/mount/mount.go): the last segment of the
/// type decides: erofs always; overlay unless it has an upperdir; others by the option `ro`.
pub fn is_read_only(mount: &Mount) -> bool {
    let kind = mount.r#type.rsplit('/').next().unwrap_or_default();
    let has = |want: &str| options(mount).any(|o| o == want);
    match kind {
        "erofs" => true,
        "overlay" => has("ro") || !options(mount).any(|o| o.starts_with("upperdir=")),
        _ => has("ro"),
    }
}

/// The recipe with every writable mount made read-only, on a copy.
#[must_use]
pub fn read_only(mounts: &[Mount]) -> Vec<Mount> {
    mounts
        .iter()
        .map(|m| {
            let mut m = m.clone();
            if m.r#type == "overlay" {
                // Without upper and work dir an overlay is read-only; the upper dir becomes the top lower dir.
                let upper = m
                    .options
                    .iter()
                    .find_map(|o| o.strip_prefix("upperdir=").map(str::to_owned));
                m.options
                    .retain(|o| !o.starts_with("upperdir=") && !o.starts_with("workdir="));
                if let Some(upper) = upper {
                    for o in &mut m.options {
                        if let Some(lower) = o.strip_prefix("lowerdir=") {
                            *o = format!("lowerdir={upper}:{lower}");
                        }
                    }
                }
            } else {
                m.options.retain(|o| o != "rw");
                if !m.options.iter().any(|o| o == "ro") {
                    m.options.push("ro".into());
                }
            }
            m
        })
        .collect()
}

fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options.iter().flat_map(|o| o.split(','))
}
