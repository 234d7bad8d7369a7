//! Our .proto text says the same as the generated code of the pinned Go modules.
//!
//! `integration/peers/descriptors` lists every fact that upstream's packages carry, one a line; this test makes the same lines
//! from our descriptors and fails on any difference. Comments, file names and the order of declarations are no facts.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests fail by panicking and tell what they skipped"
)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, OneofDescriptorProto,
};

/// Packages that the Go program links by the way and that are none of the contract.
const FOREIGN: &[&str] = &["grpc.binarylog.v1", "pb", "ttrpc"];

/// Options which steer upstream's Go generator and are never on a wire.
const GENERATOR_OPTIONS: &[&str] = &[
    "extension containerd.types.fieldpath ",
    "extension containerd.types.fieldpath_all ",
];

#[test]
fn no_drift_from_the_pinned_modules() {
    let Some(upstream) = go(&["run", "./descriptors"]) else {
        return;
    };
    let mut files = FileDescriptorSet::decode(corten_protos::DESCRIPTORS)
        .unwrap()
        .file;
    // What is ours alone has no upstream.
    files.retain(|f| !f.package().starts_with("corten."));
    let packages: BTreeSet<&str> = files.iter().map(|f| f.package()).collect();

    let mut ours = Listing::default();
    files.iter().for_each(|f| ours.file(f));
    let ours: BTreeSet<String> = ours.0.into_iter().collect();
    let theirs: BTreeSet<String> = upstream
        .lines()
        .filter(|l| !GENERATOR_OPTIONS.iter().any(|option| l.starts_with(option)))
        .filter(|l| {
            !FOREIGN
                .iter()
                .any(|p| symbol(l).starts_with(&format!("{p}.")))
        })
        // Of google.protobuf we compile what the contract imports.
        .filter(|l| !symbol(l).starts_with("google.protobuf.") || is_compiled(l, &ours))
        .map(str::to_owned)
        .collect();
    assert!(
        packages.len() > 25 && theirs.len() > 2000,
        "a listing is empty"
    );

    let missing: Vec<String> = theirs.difference(&ours).map(|l| format!("- {l}")).collect();
    let extra: Vec<String> = ours.difference(&theirs).map(|l| format!("+ {l}")).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "upstream says (-), we say (+):\n{}\n{}",
        missing.join("\n"),
        extra.join("\n")
    );
    println!("{} facts agree", ours.len());
}

/// A package that upstream adds is noticed, not silently left out of the comparison.
#[test]
fn every_package_of_the_api_module_is_compared() {
    const API: &str = "github.com/containerd/containerd/api/";
    let Some(all) = go(&["list", &format!("{API}...")]) else {
        return;
    };
    let Some(linked) = go(&["list", "-f", "{{join .Imports \"\\n\"}}", "./descriptors"]) else {
        return;
    };
    let linked: BTreeSet<&str> = linked.lines().collect();
    let left_out: Vec<&str> = all
        .lines()
        .filter(|p| p.starts_with(API) && !linked.contains(p))
        .collect();
    assert!(
        left_out.is_empty(),
        "integration/peers/descriptors does not import {left_out:?}"
    );
}

/// Stubs for v2 are printed over v3's messages: they must be the same but for the package's name.
#[test]
fn task_v2_and_v3_are_twins() {
    let files = FileDescriptorSet::decode(corten_protos::DESCRIPTORS)
        .unwrap()
        .file;
    let lines = |version: &str| {
        let package = format!("containerd.task.{version}");
        let mut listing = Listing::default();
        files
            .iter()
            .filter(|f| f.package() == package)
            .for_each(|f| listing.file(f));
        listing
            .0
            .iter()
            .map(|l| l.replace(&package, "task"))
            .collect::<BTreeSet<_>>()
    };
    assert!(lines("v2").len() > 50);
    assert_eq!(lines("v2"), lines("v3"));
}

/// What Go prints, run in the module of the pinned versions. None, with a word why, where there is no Go.
fn go(args: &[&str]) -> Option<String> {
    let peers = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../integration/peers");
    let Output {
        status,
        stdout,
        stderr,
    } = match Command::new("go").args(args).current_dir(peers).output() {
        Ok(output) => output,
        Err(e) => {
            eprintln!("skipped: go cannot be run: {e}");
            return None;
        }
    };
    assert!(
        status.success(),
        "go {args:?}: {status}\n{}",
        String::from_utf8_lossy(&stderr)
    );
    Some(String::from_utf8(stdout).unwrap())
}

/// The name that a line is about.
fn symbol(line: &str) -> &str {
    line.split(' ').nth(1).unwrap_or_default()
}

/// Whether the message or enum of google.protobuf that this line belongs to is one of ours.
fn is_compiled(line: &str, ours: &BTreeSet<String>) -> bool {
    let rest = symbol(line).trim_start_matches("google.protobuf.");
    let top = rest.split('.').next().unwrap_or_default();
    ["message", "enum"]
        .iter()
        .any(|kind| ours.contains(&format!("{kind} google.protobuf.{top}")))
}

/// The lines of `integration/peers/descriptors/main.go`, word for word.
#[derive(Default)]
struct Listing(Vec<String>);

impl Listing {
    fn add(&mut self, words: &[&str]) {
        let words: Vec<&str> = words.iter().copied().filter(|w| !w.is_empty()).collect();
        self.0.push(words.join(" "));
    }

    fn file(&mut self, f: &FileDescriptorProto) {
        let prefix = match f.package() {
            "" => String::new(),
            package => format!("{package}."),
        };
        f.message_type.iter().for_each(|m| self.message(&prefix, m));
        f.enum_type
            .iter()
            .for_each(|e| self.enumeration(&prefix, e));
        f.extension
            .iter()
            .for_each(|x| self.field("extension", &format!("{prefix}{}", x.name()), x, &[]));
        for s in &f.service {
            let name = format!("{prefix}{}", s.name());
            let deprecated = s.options.as_ref().is_some_and(|o| o.deprecated());
            self.add(&["service", &name, flag(deprecated, "deprecated")]);
            for m in &s.method {
                let deprecated = m.options.as_ref().is_some_and(|o| o.deprecated());
                self.add(&[
                    "method",
                    &format!("{name}/{}", m.name()),
                    &format!("{}{}", flag(m.client_streaming(), "stream"), m.input_type()),
                    "->",
                    &format!(
                        "{}{}",
                        flag(m.server_streaming(), "stream"),
                        m.output_type()
                    ),
                    flag(deprecated, "deprecated"),
                ]);
            }
        }
    }

    fn message(&mut self, prefix: &str, m: &DescriptorProto) {
        let name = format!("{prefix}{}", m.name());
        let options = m.options.clone().unwrap_or_default();
        self.add(&[
            "message",
            &name,
            flag(options.map_entry(), "map_entry"),
            flag(options.deprecated(), "deprecated"),
        ]);
        for f in &m.field {
            self.field("field", &format!("{name}.{}", f.name()), f, &m.oneof_decl);
        }
        for r in &m.reserved_range {
            self.add(&["reserved", &name, &format!("{}..{}", r.start(), r.end())]);
        }
        m.reserved_name
            .iter()
            .for_each(|r| self.add(&["reserved", &name, r]));
        let inner = format!("{name}.");
        m.nested_type.iter().for_each(|n| self.message(&inner, n));
        m.enum_type.iter().for_each(|e| self.enumeration(&inner, e));
    }

    fn field(
        &mut self,
        what: &str,
        name: &str,
        f: &FieldDescriptorProto,
        oneofs: &[OneofDescriptorProto],
    ) {
        let oneof = match f.oneof_index {
            Some(i) if !f.proto3_optional() => {
                format!("oneof={}", oneofs[usize::try_from(i).unwrap()].name())
            }
            _ => String::new(),
        };
        self.add(&[
            what,
            name,
            &f.number().to_string(),
            &label(f.label()),
            &kind(f.r#type()),
            f.type_name(),
            f.extendee(),
            &oneof,
            &format!("json={}", f.json_name()),
            flag(f.proto3_optional(), "presence"),
            flag(
                f.options.as_ref().is_some_and(|o| o.deprecated()),
                "deprecated",
            ),
        ]);
    }

    fn enumeration(&mut self, prefix: &str, e: &EnumDescriptorProto) {
        let name = format!("{prefix}{}", e.name());
        let options = e.options.clone().unwrap_or_default();
        self.add(&[
            "enum",
            &name,
            flag(options.allow_alias(), "alias"),
            flag(options.deprecated(), "deprecated"),
        ]);
        for v in &e.value {
            self.add(&[
                "value",
                &format!("{name}.{}", v.name()),
                &v.number().to_string(),
                flag(
                    v.options.as_ref().is_some_and(|o| o.deprecated()),
                    "deprecated",
                ),
            ]);
        }
    }
}

fn label(label: Label) -> String {
    label
        .as_str_name()
        .trim_start_matches("LABEL_")
        .to_lowercase()
}

fn kind(kind: Type) -> String {
    kind.as_str_name()
        .trim_start_matches("TYPE_")
        .to_lowercase()
}

fn flag(on: bool, word: &str) -> &str {
    if on { word } else { "" }
}
