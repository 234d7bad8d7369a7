//! Who does what of a recipe: the manager mounts the first so many and transforms the one after them; the rest is the
//! caller's (containerd 2.4 core/mount/manager/plan.go).
//!
//! A transformation that the caller claims is left to it only on the first mount handed back, and only at the end of
//! its chain: of `format/mkdir/overlay` the claim of `mkdir` makes the manager format and hand back `mkdir/overlay`,
//! the claim of `format` alone changes nothing.

use corten_core::Mount;
use corten_core::mounts::ActivateOptions;

use crate::transform::Transform;

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// So many mounts are the manager's.
    pub(crate) mounted: usize,
    /// So many transformations of the next one are.
    pub(crate) transforms: usize,
}

/// The transformations in front of a mount type, outermost first, and the type that they leave.
pub(crate) fn chain(kind: &str) -> (Vec<Transform>, &str) {
    let (mut transforms, mut rest) = (Vec::new(), kind);
    while let Some((name, inner)) = rest.split_once('/') {
        let Some(transform) = Transform::named(name) else {
            tracing::warn!(transform = name, r#type = kind, "unknown mount transform");
            break;
        };
        transforms.push(transform);
        rest = inner;
    }
    (transforms, rest)
}

/// None when the manager is not needed at all. `handled`: there is a handler for the type.
pub(crate) fn plan(
    mounts: &[Mount],
    options: &ActivateOptions,
    handled: impl Fn(&str) -> bool,
) -> Option<Plan> {
    let claimed = |kind: &str| options.claimed_types.iter().any(|c| c == kind);
    let mut first = None;
    let mut left = 0;
    for (i, m) in mounts.iter().enumerate() {
        let (transforms, kind) = chain(&m.r#type);
        let own = |t: &Transform| {
            !options.claimed_transforms.iter().any(|c| c == t.name()) && !claimed(&m.r#type)
        };
        if let Some(last) = transforms.iter().rposition(own) {
            (first, left) = (Some(i), last + 1);
        }
        if options.temporary || (handled(kind) && !claimed(kind)) {
            (first, left) = (Some(i + 1), 0);
        }
    }
    first.map(|mounted| Plan {
        mounted,
        transforms: left,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(types: &[&str], options: &ActivateOptions, want: Option<(usize, usize)>) {
        let mounts: Vec<_> = types
            .iter()
            .map(|t| Mount {
                r#type: (*t).into(),
                ..Default::default()
            })
            .collect();
        let got = plan(&mounts, options, |kind| kind == "erofs");
        assert_eq!(
            got.map(|p| (p.mounted, p.transforms)),
            want,
            "{types:?} {options:?}"
        );
    }

    #[test]
    fn the_manager_does_what_nobody_else_can() {
        let none = ActivateOptions::default();
        check(&[], &none, None);
        check(&["overlay"], &none, None);
        check(&["bind", "overlay"], &none, None);
        check(&["strange/overlay"], &none, None);
        check(&["erofs"], &none, Some((1, 0)));
        check(&["bind", "erofs", "overlay"], &none, Some((2, 0)));
        check(
            &["erofs", "erofs", "format/mkdir/overlay"],
            &none,
            Some((2, 2)),
        );
        check(&["mkfs/ext4", "format/mkdir/bind"], &none, Some((1, 2)));
        check(&["mkfs/ext4", "bind"], &none, Some((0, 1)));
    }

    #[test]
    fn claims_count_where_nothing_depends_on_them() {
        let with = |types: &[&str], transforms: &[&str]| ActivateOptions {
            claimed_types: types.iter().map(|t| (*t).into()).collect(),
            claimed_transforms: transforms.iter().map(|t| (*t).into()).collect(),
            ..Default::default()
        };
        check(&["erofs"], &with(&["erofs"], &[]), None);
        check(
            &["erofs", "format/overlay"],
            &with(&["erofs"], &[]),
            Some((1, 1)),
        );
        let layered = ["erofs", "format/mkdir/overlay"];
        check(&layered, &with(&["erofs"], &["mkdir"]), Some((1, 1)));
        check(&layered, &with(&["erofs"], &["format"]), Some((1, 2)));
        check(&layered, &with(&["erofs"], &["format", "mkdir"]), None);
        check(&layered, &with(&[], &["format", "mkdir"]), Some((1, 0)));
        check(
            &layered,
            &with(&["erofs", "format/mkdir/overlay"], &[]),
            None,
        );
    }

    #[test]
    fn temporary_ones_are_mounted_whole() {
        let temporary = ActivateOptions {
            temporary: true,
            claimed_types: vec!["erofs".into()],
            ..Default::default()
        };
        check(&["bind"], &temporary, Some((1, 0)));
        check(&["erofs", "format/mkdir/overlay"], &temporary, Some((2, 0)));
    }
}
