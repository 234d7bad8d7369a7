//! Owns classes of block I/O and of cache and memory bandwidth (RDT), which annotations name.
//!
//! What a class means is configuration of the tasks plugin. Where there is none for it, a class that was asked for is
//! an error, unless the configuration says to go on.

use std::collections::BTreeMap;
use std::path::Path;

use corten_core::{Error, Result};
use tracing::{debug, error};

use super::oci::{BlockIo, IntelRdt, Spec};
use crate::config;

type Annotations = BTreeMap<String, String>;

/// Where a kind of class is named: on the container, on the pod for one container, on the pod for all.
struct Keys {
    container: &'static str,
    pod_container: &'static str,
    pod: &'static str,
}

const BLOCKIO: Keys = Keys {
    container: "io.kubernetes.cri.blockio-class",
    pod_container: "blockio.resources.beta.kubernetes.io/container.",
    pod: "blockio.resources.beta.kubernetes.io/pod",
};
const RDT: Keys = Keys {
    container: "io.kubernetes.cri.rdt-class",
    pod_container: "rdt.resources.beta.kubernetes.io/container.",
    pod: "rdt.resources.beta.kubernetes.io/pod",
};

/// What the classes of this host mean; `None` where a kind is not configured.
#[derive(Debug, Clone, Default)]
pub struct Classes {
    pub blockio: Option<BTreeMap<String, BlockIo>>,
    pub rdt: Option<Vec<String>>,
}

// === impl Classes ===

impl Classes {
    /// What the tasks service was configured with. A file that cannot be used leaves its kind off, as containerd does.
    /// Blocks.
    pub fn read(blockio: Option<&Path>) -> Self {
        let blockio = blockio.and_then(|path| {
            let classes = super::blockio::read(path);
            classes
                .inspect_err(|error| error!(%error, "blockio initialization failed"))
                .ok()
        });
        Self { blockio, rdt: None }
    }

    /// Puts a container into the classes that annotations name.
    pub(super) fn apply(
        &self,
        spec: &mut Spec,
        container: &str,
        annotations: &Annotations,
        pod: &Annotations,
        config: &config::Containerd,
    ) -> Result<()> {
        self.blockio(
            spec,
            container,
            BLOCKIO.named(container, annotations, pod),
            config,
        )?;
        self.rdt(
            spec,
            container,
            RDT.named(container, annotations, pod),
            config,
        )
    }

    fn blockio(
        &self,
        spec: &mut Spec,
        container: &str,
        class: Option<&str>,
        config: &config::Containerd,
    ) -> Result<()> {
        let Some(class) = class.filter(|class| !class.is_empty()) else {
            return Ok(());
        };
        let Some(known) = &self.blockio else {
            let disabled = format!(
                "failed to set blockio class: blockio disabled, \
                 refusing to set blockio class of container {container:?} to {class:?}"
            );
            return refuse(
                config.ignore_blockio_not_enabled_errors,
                container,
                disabled,
            );
        };
        let meaning = known.get(class).ok_or_else(|| {
            Error::invalid(format!(
                "failed to set blockio class: no OCI BlockIO parameters for class {class:?}"
            ))
        })?;
        spec.resources().block_io = Some(meaning.clone());
        Ok(())
    }

    fn rdt(
        &self,
        spec: &mut Spec,
        container: &str,
        class: Option<&str>,
        config: &config::Containerd,
    ) -> Result<()> {
        let Some(class) = class else {
            return Ok(());
        };
        let Some(known) = &self.rdt else {
            let disabled = format!(
                "failed to set RDT class: RDT disabled, \
                 refusing to set RDT class of container {container:?} to {class:?}"
            );
            return refuse(config.ignore_rdt_not_enabled_errors, container, disabled);
        };
        if !known.iter().any(|name| name == class) {
            return Err(Error::invalid(format!(
                "failed to set RDT class: RDT class not found: {class:?}"
            )));
        }
        spec.linux().intel_rdt = Some(IntelRdt {
            clos_id: class.to_owned(),
            ..IntelRdt::default()
        });
        Ok(())
    }
}

// === impl Keys ===

impl Keys {
    fn named<'a>(
        &self,
        container: &str,
        annotations: &'a Annotations,
        pod: &'a Annotations,
    ) -> Option<&'a str> {
        let of_pod = format!("{}{container}", self.pod_container);
        annotations
            .get(self.container)
            .or_else(|| pod.get(&of_pod))
            .or_else(|| pod.get(self.pod))
            .map(String::as_str)
    }
}

fn refuse(ignore: bool, container: &str, text: String) -> Result<()> {
    if ignore {
        debug!(container.name = %container, why = %text, "class is not set");
        return Ok(());
    }
    Err(Error::precondition(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        let owned = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        owned.collect()
    }

    #[test]
    fn the_nearest_annotation_counts() {
        let pod = annotations(&[
            (RDT.pod, "pod"),
            ("rdt.resources.beta.kubernetes.io/container.a", "a"),
        ]);
        let own = annotations(&[(RDT.container, "own")]);
        let none = Annotations::new();
        assert_eq!(RDT.named("a", &own, &pod), Some("own"));
        assert_eq!(RDT.named("a", &none, &pod), Some("a"));
        assert_eq!(RDT.named("b", &none, &pod), Some("pod"));
        assert_eq!(RDT.named("b", &none, &none), None);
    }

    #[test]
    fn a_class_that_cannot_be_set_is_an_error_unless_ignored() {
        let own = annotations(&[(RDT.container, "gold"), (BLOCKIO.container, "fast")]);
        let none = Annotations::new();
        let mut config = config::Containerd::default();
        let mut spec = Spec::default();
        let classes = Classes::default();
        let e = classes
            .apply(&mut spec, "c", &own, &none, &config)
            .unwrap_err();
        assert!(e.to_string().contains("blockio disabled"), "{e}");
        config.ignore_blockio_not_enabled_errors = true;
        let e = classes
            .apply(&mut spec, "c", &own, &none, &config)
            .unwrap_err();
        assert!(e.to_string().contains("RDT disabled"), "{e}");
        config.ignore_rdt_not_enabled_errors = true;
        classes.apply(&mut spec, "c", &own, &none, &config).unwrap();
        assert_eq!(spec, Spec::default());

        let weight = BlockIo {
            weight: Some(500),
            ..BlockIo::default()
        };
        let classes = Classes {
            blockio: Some(BTreeMap::from([("fast".into(), weight.clone())])),
            rdt: Some(vec!["gold".into()]),
        };
        classes.apply(&mut spec, "c", &own, &none, &config).unwrap();
        assert_eq!(spec.resources().block_io, Some(weight));
        assert_eq!(spec.linux().intel_rdt.as_ref().unwrap().clos_id, "gold");
        let other = annotations(&[(RDT.container, "tin")]);
        assert!(
            classes
                .apply(&mut spec, "c", &other, &none, &config)
                .is_err()
        );
    }
}
