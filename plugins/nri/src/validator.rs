//! The built-in validator: judges what plugins together want of a new container by the configuration's rules.

use corten_core::nri::adjust::removal;
use corten_protos::nri::pkg::api::v1alpha1::security_profile::ProfileType;
use corten_protos::nri::pkg::api::v1alpha1::{
    Field, PodSandbox, ValidateContainerAdjustmentRequest,
};

use crate::config::DefaultValidator;
use crate::owners::{entry_owners, owner};
use crate::yaml;

/// Its index and name, as other plugins see them.
pub(crate) const INDEX: &str = "00";
pub(crate) const NAME: &str = "default-validator";
/// The annotation that names plugins which a pod needs.
const REQUIRED: &str = "required-plugins.noderesource.dev";

// === impl DefaultValidator ===

impl DefaultValidator {
    /// # Errors
    /// Why the adjustment is rejected.
    pub(crate) fn check(&self, req: &ValidateContainerAdjustmentRequest) -> Result<(), String> {
        if req.adjust.is_some() {
            self.hooks(req)?;
            self.seccomp(req)?;
            self.namespaces(req)?;
        }
        self.plugins(req)?;
        self.sysctls(req)
    }

    fn hooks(&self, req: &ValidateContainerAdjustmentRequest) -> Result<(), String> {
        match owner(req.owners.as_ref(), id(req), Field::OciHooks) {
            Some(owners) if self.reject_oci_hook_adjustment => Err(rejected(&format!(
                "plugin{} {owners:?} attempted restricted OCI hook injection",
                if owners.contains(',') { "s" } else { "" }
            ))),
            _ => Ok(()),
        }
    }

    fn seccomp(&self, req: &ValidateContainerAdjustmentRequest) -> Result<(), String> {
        let Some(owner) = owner(req.owners.as_ref(), id(req), Field::SeccompPolicy) else {
            return Ok(());
        };
        let linux = req.container.as_ref().and_then(|c| c.linux.as_ref());
        let profile = linux.and_then(|l| l.seccomp_profile.as_ref());
        let kind = profile.map_or(ProfileType::Unconfined, |p| p.profile_type());
        let (reject, what) = match kind {
            ProfileType::Unconfined => (self.reject_unconfined_seccomp_adjustment, "unconfined"),
            ProfileType::RuntimeDefault => (
                self.reject_runtime_default_seccomp_adjustment,
                "runtime default",
            ),
            ProfileType::Localhost => (self.reject_custom_seccomp_adjustment, "custom"),
        };
        if !reject {
            return Ok(());
        }
        Err(rejected(&format!(
            "plugin {owner} attempted restricted {what} seccomp policy adjustment"
        )))
    }

    fn namespaces(&self, req: &ValidateContainerAdjustmentRequest) -> Result<(), String> {
        let owners = entry_owners(req.owners.as_ref(), id(req), Field::Namespace);
        if !self.reject_namespace_adjustment || owners.is_empty() {
            return Ok(());
        }
        let offenders: Vec<String> = owners
            .iter()
            .map(|(ns, plugin)| format!("{plugin:?} (namespace {ns:?})"))
            .collect();
        Err(rejected(&format!(
            "attempted restricted namespace adjustment by plugin(s) {}",
            offenders.join(", ")
        )))
    }

    fn sysctls(&self, req: &ValidateContainerAdjustmentRequest) -> Result<(), String> {
        let linux = req.adjust.as_ref().and_then(|a| a.linux.as_ref());
        let wanted = linux.map(|l| &l.sysctl).filter(|s| !s.is_empty());
        let (true, Some(wanted)) = (self.reject_sysctl_adjustment, wanted) else {
            return Ok(());
        };
        let owners: Vec<String> = entry_owners(req.owners.as_ref(), id(req), Field::Sysctl)
            .into_iter()
            .filter(|(key, _)| wanted.contains_key(key) || wanted.contains_key(&format!("-{key}")))
            .map(|(_, plugin)| removal(&plugin).0.to_owned())
            .collect();
        if owners.is_empty() {
            return Ok(());
        }
        Err(rejected(&format!(
            "attempted restricted sysctl adjustment by plugin(s) {}",
            owners.join(", ")
        )))
    }

    fn plugins(&self, req: &ValidateContainerAdjustmentRequest) -> Result<(), String> {
        let container = req.container.as_ref().map_or("", |c| c.name.as_str());
        let key = &self.tolerate_missing_plugins_annotation;
        if !key.is_empty()
            && let Some(value) = annotation(req.pod.as_ref(), key, container)
            && go_bool(value).ok_or_else(|| {
                format!("invalid {key} annotation {value:?}: parsing {value:?}: invalid syntax")
            })?
        {
            return Ok(());
        }
        let mut required = self.required_plugins.clone();
        if let Some(value) = annotation(req.pod.as_ref(), REQUIRED, container) {
            required.extend(
                yaml::strings(value).ok_or_else(|| {
                    format!("invalid {REQUIRED} annotation {value:?}: not a list")
                })?,
            );
        }
        let there = |r: &str| {
            (req.plugins.iter()).any(|p| p.name == r || format!("{}-{}", p.index, p.name) == r)
        };
        let missing: Vec<String> = required.into_iter().filter(|r| !there(r)).collect();
        match missing.as_slice() {
            [] => Ok(()),
            [one] => Err(rejected(&format!("required plugin {one:?} not present"))),
            several => Err(rejected(&format!(
                "required plugins {:?} not present",
                several.join(",")
            ))),
        }
    }
}

fn rejected(what: &str) -> String {
    format!("validation error: {what}")
}

fn id(req: &ValidateContainerAdjustmentRequest) -> &str {
    req.container.as_ref().map_or("", |c| c.id.as_str())
}

/// The value for this container: its own, else its pod's.
fn annotation<'a>(pod: Option<&'a PodSandbox>, key: &str, container: &str) -> Option<&'a str> {
    let annotations = &pod?.annotations;
    [
        format!("{key}/container.{container}"),
        format!("{key}/pod"),
        key.to_owned(),
    ]
    .iter()
    .find_map(|k| annotations.get(k).map(String::as_str))
}

/// Go's strconv.ParseBool.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owners::Owners;
    use corten_protos::nri::pkg::api::v1alpha1 as api;

    fn request(claim: impl FnOnce(&mut Owners)) -> ValidateContainerAdjustmentRequest {
        let mut owners = Owners::default();
        claim(&mut owners);
        ValidateContainerAdjustmentRequest {
            pod: Some(PodSandbox::default()),
            container: Some(api::Container {
                id: "c".into(),
                name: "web".into(),
                ..Default::default()
            }),
            adjust: Some(api::ContainerAdjustment::default()),
            owners: Some(owners.message().clone()),
            plugins: vec![api::PluginInstance {
                name: "a".into(),
                index: "10".into(),
            }],
            ..Default::default()
        }
    }

    #[test]
    fn each_rule_rejects_what_it_names_and_nothing_else() {
        let none = DefaultValidator::default();
        let check =
            |rule: DefaultValidator, req: &ValidateContainerAdjustmentRequest, why: &str| {
                assert_eq!(none.check(req), Ok(()));
                assert_eq!(rule.check(&request(|_| {})), Ok(()));
                assert_eq!(rule.check(req), Err(format!("validation error: {why}")));
            };
        let hooks = request(|o| {
            o.join("c", Field::OciHooks, "10-a");
            o.join("c", Field::OciHooks, "20-b");
        });
        check(
            DefaultValidator {
                reject_oci_hook_adjustment: true,
                ..none.clone()
            },
            &hooks,
            "plugins \"10-a,20-b\" attempted restricted OCI hook injection",
        );
        let mut seccomp = request(|o| o.claim("c", Field::SeccompPolicy, "10-a").unwrap());
        check(
            DefaultValidator {
                reject_unconfined_seccomp_adjustment: true,
                ..none.clone()
            },
            &seccomp,
            "plugin 10-a attempted restricted unconfined seccomp policy adjustment",
        );
        let profile = |kind: ProfileType| {
            Some(api::LinuxContainer {
                seccomp_profile: Some(api::SecurityProfile {
                    profile_type: kind as i32,
                    ..Default::default()
                }),
                ..Default::default()
            })
        };
        seccomp.container.as_mut().unwrap().linux = profile(ProfileType::Localhost);
        check(
            DefaultValidator {
                reject_custom_seccomp_adjustment: true,
                ..none.clone()
            },
            &seccomp,
            "plugin 10-a attempted restricted custom seccomp policy adjustment",
        );
        seccomp.container.as_mut().unwrap().linux = profile(ProfileType::RuntimeDefault);
        check(
            DefaultValidator {
                reject_runtime_default_seccomp_adjustment: true,
                ..none.clone()
            },
            &seccomp,
            "plugin 10-a attempted restricted runtime default seccomp policy adjustment",
        );
        let namespaces = request(|o| o.claim_entry("c", Field::Namespace, "pid", "10-a").unwrap());
        check(
            DefaultValidator {
                reject_namespace_adjustment: true,
                ..none.clone()
            },
            &namespaces,
            "attempted restricted namespace adjustment by plugin(s) \"10-a\" (namespace \"pid\")",
        );
        let mut sysctl = request(|o| o.claim_entry("c", Field::Sysctl, "a.b", "10-a").unwrap());
        sysctl.adjust.as_mut().unwrap().linux = Some(api::LinuxContainerAdjustment {
            sysctl: [("a.b".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        });
        check(
            DefaultValidator {
                reject_sysctl_adjustment: true,
                ..none.clone()
            },
            &sysctl,
            "attempted restricted sysctl adjustment by plugin(s) 10-a",
        );
    }

    #[test]
    fn required_plugins_are_required_unless_tolerated() {
        let rule = DefaultValidator {
            required_plugins: vec!["a".into(), "10-a".into(), "b".into()],
            tolerate_missing_plugins_annotation: "tolerate".into(),
            ..Default::default()
        };
        let check = |annotations: &[(&str, &str)], want: Result<(), &str>| {
            let mut req = request(|_| {});
            req.adjust = None;
            req.pod.as_mut().unwrap().annotations = annotations
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            let got = rule.check(&req);
            assert_eq!(got, want.map_err(str::to_owned), "{annotations:?}");
        };
        let missing = Err("validation error: required plugin \"b\" not present");
        check(&[], missing);
        check(&[("tolerate", "true")], Ok(()));
        check(&[("tolerate/pod", "false"), ("tolerate", "true")], missing);
        check(
            &[("tolerate/container.web", "t"), ("tolerate/pod", "f")],
            Ok(()),
        );
        check(
            &[("tolerate", "maybe")],
            Err("invalid tolerate annotation \"maybe\": parsing \"maybe\": invalid syntax"),
        );
        check(
            &[("required-plugins.noderesource.dev/pod", "[ c ]")],
            Err("validation error: required plugins \"b,c\" not present"),
        );
        check(
            &[("required-plugins.noderesource.dev", "a: b")],
            Err("invalid required-plugins.noderesource.dev annotation \"a: b\": not a list"),
        );
    }
}
