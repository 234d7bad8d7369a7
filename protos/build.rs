//! Generates the Rust side of `proto/`: messages always, gRPC stubs under feature `grpc`, ttrpc stubs under feature `ttrpc`.
//!
//! protox compiles the text, so no protoc is needed on the build host. Both kinds of stubs are printed beside the messages of
//! their package and use the same types. The descriptors themselves are left in `OUT_DIR/descriptors.bin` for the test that
//! compares them with upstream's.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;
use prost_build::ServiceGenerator;
use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::Type;

#[path = "build/ttrpc.rs"]
mod ttrpc;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=build.rs");
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();

    let descriptors = protox::compile(&files, [root])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    let mut config = prost_build::Config::new();
    config
        .compile_well_known_types()
        .enable_type_names()
        .btree_map(["."])
        // Blob chunks and stream frames are shared slices of what was received, not copies.
        .bytes([
            ".containerd.services.content.v1",
            ".containerd.types.transfer",
        ])
        // They carry credentials: `src/redact.rs` writes their Debug.
        .skip_debug([
            ".containerd.types.transfer.AuthResponse",
            ".containerd.types.transfer.RegistryResolver",
            ".runtime.v1.AuthConfig",
        ])
        .extern_path(ttrpc::TWIN.0, ttrpc::TWIN.2)
        .include_file("modules.rs")
        .service_generator(Box::new(Stubs {
            grpc: feature("GRPC").then(grpc),
            ttrpc: feature("TTRPC"),
        }));
    if feature("SERDE") {
        go_json(&descriptors, &mut config);
    }
    config.compile_fds(descriptors)?;
    Ok(())
}

/// Has serde write the CRI's messages as Go's encoding/json does, which is how records keep them: names of the .proto
/// text, numbers for enums, defaults left out.
fn go_json(descriptors: &FileDescriptorSet, config: &mut prost_build::Config) {
    let cri = descriptors
        .file
        .iter()
        .filter(|f| f.package() == "runtime.v1");
    for message in cri.flat_map(|f| &f.message_type) {
        let path = format!(".runtime.v1.{}", message.name());
        config.message_attribute(
            &path,
            "#[derive(::serde::Serialize, ::serde::Deserialize)] #[serde(default)]",
        );
        for field in &message.field {
            // prost spells `uidMappings` as Rust does; Go's JSON has it as the .proto text.
            config.field_attribute(
                format!("{path}.{}", field.name()),
                format!(
                    "#[serde(rename = \"{}\", skip_serializing_if = \"crate::is_default\")]",
                    field.name()
                ),
            );
            if field.r#type() == Type::Bytes {
                config.field_attribute(
                    format!("{path}.{}", field.name()),
                    "#[serde(with = \"crate::go_bytes\")]",
                );
            }
        }
    }
}

fn feature(name: &str) -> bool {
    env::var_os(format!("CARGO_FEATURE_{name}")).is_some()
}

fn grpc() -> Box<dyn ServiceGenerator> {
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_well_known_types(true)
        // An RPC that a server does not write answers UNIMPLEMENTED.
        .generate_default_stubs(true)
        .service_generator()
}

/// Prints the stubs of one service for each protocol that is on.
struct Stubs {
    grpc: Option<Box<dyn ServiceGenerator>>,
    ttrpc: bool,
}

impl ServiceGenerator for Stubs {
    fn generate(&mut self, service: prost_build::Service, buf: &mut String) {
        if service.package == ttrpc::TWIN.1 {
            buf.push_str(&format!("pub use {}::*;\n", ttrpc::TWIN.2));
        }
        if self.ttrpc {
            ttrpc::print(&service, buf);
        }
        if let Some(grpc) = &mut self.grpc
            && !ttrpc::TTRPC_ONLY.contains(&service.package.as_str())
        {
            grpc.generate(service, buf);
        }
    }

    fn finalize(&mut self, buf: &mut String) {
        if let Some(grpc) = &mut self.grpc {
            grpc.finalize(buf);
        }
    }

    fn finalize_package(&mut self, package: &str, buf: &mut String) {
        if let Some(grpc) = &mut self.grpc {
            grpc.finalize_package(package, buf);
        }
    }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
