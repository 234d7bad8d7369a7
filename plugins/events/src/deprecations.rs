//! io.containerd.warning.v1 "deprecations": what was met that a later version will not have.
//!
//! Nothing is written down: what still holds is met again after the next start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use corten_core::kinds;
use corten_core::warnings::{Deprecation, Warning, Warnings};
use corten_registry::Registration;
use parking_lot::Mutex;

/// When each was met last. There are as many as there are deprecations.
#[derive(Debug, Default)]
pub struct Deprecations(Mutex<BTreeMap<Deprecation, SystemTime>>);

impl Warnings for Deprecations {
    fn emit(&self, deprecation: Deprecation) {
        let before = self.0.lock().insert(deprecation, SystemTime::now());
        if before.is_none() {
            tracing::warn!(id = deprecation.id, "{}", deprecation.message);
        }
    }

    fn all(&self) -> Vec<Warning> {
        let met = self.0.lock();
        met.iter()
            .map(|(&deprecation, &last_occurrence)| Warning {
                deprecation,
                last_occurrence,
            })
            .collect()
    }
}

/// Plugin `deprecations`.
pub fn registration() -> Registration {
    Registration::new::<kinds::Warning>("deprecations").init_plain(|_| {
        Box::pin(async { Ok(Arc::new(Deprecations::default()) as Arc<dyn Warnings>) })
    })
}

#[cfg(test)]
mod tests {
    use corten_core::warnings::{CGROUP_V1, NRI_PLUGIN_INTERFACE};

    use super::*;

    #[test]
    fn each_is_kept_once_with_the_time_of_the_last() {
        let kept = Deprecations::default();
        assert!(kept.all().is_empty());
        kept.emit(NRI_PLUGIN_INTERFACE);
        kept.emit(CGROUP_V1);
        let first = kept.all();
        assert_eq!(first[0].deprecation, CGROUP_V1, "by id");
        kept.emit(CGROUP_V1);
        let again = kept.all();
        assert_eq!(again.len(), 2);
        assert!(again[0].last_occurrence >= first[0].last_occurrence);
        assert_eq!(again[1], first[1]);
    }
}
