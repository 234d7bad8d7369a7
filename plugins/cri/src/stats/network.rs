//! The counters of a pod's network interfaces, read by a thread that enters the pod's network namespace and ends there.

use std::path::Path;

use corten_cni::loopback::open_namespace;
use corten_core::{Context, Error, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The interface that a pod's address is on.
pub const DEFAULT_INTERFACE: &str = "eth0";

/// What an interface has counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// The counters of all interfaces of the namespace at `path` but `lo`. Blocks.
///
/// # Errors
/// NotFound: no such namespace; those of the kernel.
pub fn counters(path: &Path) -> Result<Vec<Counters>> {
    use std::os::fd::AsFd;
    let namespace = open_namespace(path)?
        .ok_or_else(|| Error::not_found(format!("network namespace {}", path.display())))?;
    let work = move || -> Result<String> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(std::io::Error::from)
            .context("enter network namespace")?;
        std::fs::read_to_string("/proc/thread-self/net/dev").context("read interface counters")
    };
    let thread = std::thread::Builder::new()
        .name("cri-counters".into())
        .spawn(work)
        .context("start a thread for counters")?;
    let text = thread
        .join()
        .unwrap_or_else(|_| Err(Error::internal("thread for counters panicked")))?;
    Ok(parse(&text))
}

/// The interface that counts as the pod's: `eth0`, else the first.
pub fn default_of(all: &[Counters]) -> Option<&Counters> {
    all.iter()
        .find(|c| c.name == DEFAULT_INTERFACE)
        .or_else(|| all.first())
}

fn parse(text: &str) -> Vec<Counters> {
    text.lines()
        .filter_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            let n: Vec<u64> = numbers
                .split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect();
            let [
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                _,
                _,
                _,
                _,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
                ..,
            ] = *n.as_slice()
            else {
                return None;
            };
            Some(Counters {
                name: name.trim().to_owned(),
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
            })
        })
        .filter(|c| c.name != "lo")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table() {
        let text = "Inter-|   Receive                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    lo:       1  1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  net1: 9 8 7 6 0 0 0 0 5 4 3 2 0 0 0 0\n eth0:123  2 0 0 0 0 0 0 5 4 3 2 0 0 0 0\n";
        let all = parse(text);
        assert_eq!(all.len(), 2);
        let net1 = Counters {
            name: "net1".into(),
            rx_bytes: 9,
            rx_packets: 8,
            rx_errors: 7,
            rx_dropped: 6,
            tx_bytes: 5,
            tx_packets: 4,
            tx_errors: 3,
            tx_dropped: 2,
        };
        assert_eq!(all[0], net1);
        assert_eq!(default_of(&all).unwrap().rx_bytes, 123);
        assert_eq!(default_of(&all[..1]).unwrap().name, "net1");
    }

    #[test]
    fn a_namespace_that_is_gone() {
        let e = counters(Path::new("/nonexistent/netns")).unwrap_err();
        assert_eq!(e.kind(), corten_core::Kind::NotFound);
    }
}
