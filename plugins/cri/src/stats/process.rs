//! What /proc says of a container's processes. A process that ends meanwhile is left out.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Open files of all of `pids`, and the sockets among them. Blocks.
pub fn files(pids: &[u32]) -> (u64, u64) {
    let (mut all, mut sockets) = (0, 0);
    for pid in pids {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for entry in entries.flatten() {
            all += 1;
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            if OsStr::as_bytes(target.as_os_str()).starts_with(b"socket:") {
                sockets += 1;
            }
        }
    }
    (all, sockets)
}

/// How many files `pid` may have open. Blocks.
pub fn open_files_limit(pid: u32) -> Option<u64> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

// `Max open files            1024                 524288               files`; unlimited is -1 as cAdvisor says it.
fn parse(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        n => n.parse().ok(),
    }
}

/// The name of a block device; its numbers where it has none.
pub fn device(major: u64, minor: u64) -> String {
    let numbers = format!("{major}:{minor}");
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{numbers}/uevent"));
    let text = uevent.unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("DEVNAME="));
    name.map_or(numbers, |n| format!("/dev/{n}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_files() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (all, sockets) = files(&[std::process::id(), u32::MAX]);
        assert!(all > sockets && sockets >= 1, "{all} {sockets}");
        drop(listener);
        assert!(open_files_limit(std::process::id()).is_some());
    }

    #[test]
    fn limits() {
        let text = "Limit  Soft Limit\nMax open files            1024                 524288               files     \n";
        assert_eq!(parse(text), Some(1024));
        assert_eq!(
            parse("Max open files unlimited unlimited files"),
            Some(u64::MAX)
        );
        assert_eq!(parse(""), None);
        assert_eq!(device(4_000_000, 1), "4000000:1");
    }
}
