//! What a container was given, from its OCI spec and its last update.

use corten_protos::runtime::v1::LinuxContainerResources;
use serde::Deserialize;

/// The kernel's defaults, for who was given nothing.
const CPU_PERIOD: u64 = 100_000;
const CPU_SHARES: u64 = 1024;

/// Limits; 0 is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub cpu_period: u64,
    pub cpu_quota: u64,
    pub cpu_shares: u64,
    pub memory: u64,
    pub memory_reservation: u64,
    pub memory_and_swap: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    linux: Linux,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Linux {
    resources: Resources,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Resources {
    cpu: Cpu,
    memory: Memory,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cpu {
    shares: Option<i64>,
    quota: Option<i64>,
    period: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Memory {
    limit: Option<i64>,
    reservation: Option<i64>,
    swap: Option<i64>,
}

// === impl Limits ===

impl Limits {
    /// Of a config.json; one that is none says nothing.
    pub fn of_spec(spec: &[u8]) -> Self {
        let spec: Spec = serde_json::from_slice(spec).unwrap_or_default();
        let Resources { cpu, memory } = spec.linux.resources;
        Self {
            cpu_period: given(cpu.period).unwrap_or(CPU_PERIOD),
            cpu_quota: given(cpu.quota).unwrap_or(0),
            cpu_shares: given(cpu.shares).unwrap_or(CPU_SHARES),
            memory: given(memory.limit).unwrap_or(0),
            memory_reservation: given(memory.reservation).unwrap_or(0),
            memory_and_swap: given(memory.swap).unwrap_or(0),
        }
    }

    /// After an update.
    #[must_use]
    pub fn updated(mut self, to: &LinuxContainerResources) -> Self {
        let set = |at: &mut u64, to: i64| {
            if to != 0 {
                *at = u64::try_from(to).unwrap_or(0);
            }
        };
        set(&mut self.cpu_period, to.cpu_period);
        set(&mut self.cpu_quota, to.cpu_quota);
        set(&mut self.cpu_shares, to.cpu_shares);
        set(&mut self.memory, to.memory_limit_in_bytes);
        set(&mut self.memory_and_swap, to.memory_swap_limit_in_bytes);
        self
    }
}

fn given(n: Option<i64>) -> Option<u64> {
    // Negative is unlimited.
    n.map(|n| u64::try_from(n).unwrap_or(0)).filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_and_updated() {
        let none = Limits::of_spec(b"{}");
        assert_eq!(
            (none.cpu_period, none.cpu_shares, none.memory),
            (CPU_PERIOD, CPU_SHARES, 0)
        );
        assert_eq!(Limits::of_spec(b"x"), none);
        let l = Limits::of_spec(
            br#"{"linux":{"resources":{"cpu":{"shares":2,"quota":-1},"memory":{"limit":10,"swap":-1}}}}"#,
        );
        assert_eq!(
            (l.cpu_shares, l.cpu_quota, l.memory, l.memory_and_swap),
            (2, 0, 10, 0)
        );
        let l = l.updated(&LinuxContainerResources {
            cpu_quota: 50_000,
            memory_limit_in_bytes: 20,
            ..LinuxContainerResources::default()
        });
        assert_eq!((l.cpu_shares, l.cpu_quota, l.memory), (2, 50_000, 20));
    }
}
