//! Prints ttrpc stubs: a server trait, a dispatcher and a client for each service that is spoken over ttrpc.
//!
//! The ttrpc crate's own generators emit rust-protobuf messages (or prost of another version), which would mean a second set of
//! types and conversions between them. What is printed here is thin: everything but the lists of methods is in `src/ttrpc.rs`.

use std::fmt::Write;

use prost_build::{Method, Service};

/// Services that are spoken over ttrpc; all others get no stubs.
const SERVICES: &[&str] = &[
    "containerd.runtime.sandbox.v1.Sandbox",
    "containerd.services.events.ttrpc.v1.Events",
    "containerd.services.streaming.v1.Streaming",
    "containerd.task.v2.Task",
    "containerd.task.v3.Task",
    "corten.pod.v1.Pod",
    "nri.pkg.api.v1alpha1.Plugin",
    "nri.pkg.api.v1alpha1.Runtime",
];

/// Packages that are never spoken over gRPC: they get no tonic stubs.
pub(crate) const TTRPC_ONLY: &[&str] = &["nri.pkg.api.v1alpha1"];

/// The package whose messages and stubs are those of another one: proto path, package, Rust path of the other.
pub(crate) const TWIN: (&str, &str, &str) = (
    ".containerd.task.v2",
    "containerd.task.v2",
    "crate::containerd::task::v3",
);

pub(crate) fn print(service: &Service, buf: &mut String) {
    let name = format!("{}.{}", service.package, service.proto_name);
    if !SERVICES.contains(&name.as_str()) {
        return;
    }
    let module = format!("{}_ttrpc", service.name.to_lowercase());
    let body = if service.package == TWIN.1 {
        twin(service, &name, &module)
    } else {
        own(service, &name)
    };
    write!(
        buf,
        "/// ttrpc stubs of `{name}`.\npub mod {module} {{\n    #[allow(unused_imports)]\n    use crate::ttrpc::runtime as rt;\n{body}}}\n"
    )
    .expect("a String takes any text");
}

/// Stubs under another service name over the same trait and the same client type.
fn twin(service: &Service, name: &str, module: &str) -> String {
    let (rust, fun) = (&service.name, service.name.to_lowercase());
    let other = format!("{}::{module}", TWIN.2);
    format!(
        r#"
    pub use {other}::{{{rust}, {rust}Client}};
    /// The service's name on the wire.
    pub const SERVICE: &str = "{name}";
    /// Registers `service` under [`SERVICE`].
    pub fn create_{fun}<T: {rust} + ?Sized>(service: std::sync::Arc<T>) -> rt::Services {{
        {other}::create_{fun}_as(SERVICE, service)
    }}
    /// A client that calls [`SERVICE`].
    pub fn {fun}_client(client: rt::Client) -> {rust}Client {{
        {rust}Client::with_service(client, SERVICE)
    }}
"#
    )
}

fn own(service: &Service, name: &str) -> String {
    let rust = &service.name;
    let fun = rust.to_lowercase();
    let mut out = String::new();
    let (mut methods, mut calls, mut unary, mut duplex) =
        (String::new(), String::new(), String::new(), String::new());
    let (mut unary_names, mut duplex_names) = (Vec::new(), Vec::new());
    for m in &service.methods {
        match (m.client_streaming, m.server_streaming) {
            (false, false) => {
                unary_names.push(format!("{:?}", m.proto_name));
                print_unary(m, &mut methods, &mut unary, &mut calls);
            }
            (true, true) => {
                duplex_names.push(format!("{:?}", m.proto_name));
                print_duplex(m, &mut methods, &mut duplex, &mut calls);
            }
            _ => panic!("{name}/{}: one-way streams have no stub yet", m.proto_name),
        }
    }
    write!(
        out,
        r#"
    /// The service's name on the wire.
    pub const SERVICE: &str = "{name}";

    /// The server side of [`SERVICE`]. A method that is not written answers UNIMPLEMENTED.
    #[allow(unused_variables)]
    #[rt::async_trait]
    pub trait {rust}: Send + Sync + 'static {{
{methods}    }}

    struct Dispatch<T: ?Sized>(std::sync::Arc<T>);

    #[allow(unused_variables)]
    #[rt::async_trait]
    impl<T: {rust} + ?Sized> rt::Dispatch for Dispatch<T> {{
        const UNARY: &'static [&'static str] = &[{}];
        const DUPLEX: &'static [&'static str] = &[{}];
        async fn unary(&self, method: &str, ctx: &rt::TtrpcContext, payload: &[u8]) -> rt::Result<Vec<u8>> {{
            match method {{
{unary}                _ => Err(rt::unimplemented(SERVICE, method)),
            }}
        }}
        async fn duplex(&self, method: &str, ctx: &rt::TtrpcContext, stream: rt::StreamInner) -> rt::Result<()> {{
            match method {{
{duplex}                _ => {{
                    drop(stream);
                    Err(rt::unimplemented(SERVICE, method))
                }}
            }}
        }}
    }}

    /// Registers `service` under [`SERVICE`].
    pub fn create_{fun}<T: {rust} + ?Sized>(service: std::sync::Arc<T>) -> rt::Services {{
        create_{fun}_as(SERVICE, service)
    }}

    /// Registers `service` under another name with the same methods.
    pub fn create_{fun}_as<T: {rust} + ?Sized>(name: &'static str, service: std::sync::Arc<T>) -> rt::Services {{
        rt::register(name, Dispatch(service))
    }}

    /// The client side of [`SERVICE`].
    #[derive(Clone)]
    pub struct {rust}Client {{
        client: rt::Client,
        service: &'static str,
    }}

    impl std::fmt::Debug for {rust}Client {{
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{
            f.debug_struct("{rust}Client").field("service", &self.service).finish_non_exhaustive()
        }}
    }}

    impl {rust}Client {{
        /// Calls [`SERVICE`] on this connection.
        pub fn new(client: rt::Client) -> Self {{
            Self::with_service(client, SERVICE)
        }}

        /// Calls a service of another name with the same methods.
        pub fn with_service(client: rt::Client, service: &'static str) -> Self {{
            Self {{ client, service }}
        }}
{calls}    }}
"#,
        unary_names.join(", "),
        duplex_names.join(", "),
    )
    .expect("a String takes any text");
    out
}

fn print_unary(m: &Method, methods: &mut String, dispatch: &mut String, calls: &mut String) {
    let (name, wire) = (&m.name, &m.proto_name);
    let (input, output) = (path(&m.input_type), path(&m.output_type));
    write!(
        methods,
        r#"        async fn {name}(&self, ctx: &rt::TtrpcContext, req: {input}) -> rt::Result<{output}> {{
            Err(rt::unimplemented(SERVICE, "{wire}"))
        }}
"#
    )
    .expect("a String takes any text");
    writeln!(
        dispatch,
        r#"                "{wire}" => rt::encode(&self.0.{name}(ctx, rt::decode(payload)?).await?),"#
    )
    .expect("a String takes any text");
    write!(
        calls,
        r#"
        /// Calls `{wire}`.
        pub async fn {name}(&self, ctx: rt::Context, req: &{input}) -> rt::Result<{output}> {{
            rt::call(&self.client, self.service, "{wire}", ctx, req).await
        }}
"#
    )
    .expect("a String takes any text");
}

fn print_duplex(m: &Method, methods: &mut String, dispatch: &mut String, calls: &mut String) {
    let (name, wire) = (&m.name, &m.proto_name);
    let (input, output) = (path(&m.input_type), path(&m.output_type));
    write!(
        methods,
        r#"        async fn {name}(&self, ctx: &rt::TtrpcContext, stream: rt::ServerStream<{output}, {input}>) -> rt::Result<()> {{
            Err(rt::unimplemented(SERVICE, "{wire}"))
        }}
"#
    )
    .expect("a String takes any text");
    writeln!(
        dispatch,
        r#"                "{wire}" => self.0.{name}(ctx, rt::ServerStream::new(stream)).await,"#
    )
    .expect("a String takes any text");
    write!(
        calls,
        r#"
        /// Opens `{wire}`: both ends send and receive until one closes.
        pub async fn {name}(&self, ctx: rt::Context) -> rt::Result<rt::ClientStream<{input}, {output}>> {{
            rt::open(&self.client, self.service, "{wire}", ctx).await
        }}
"#
    )
    .expect("a String takes any text");
}

/// The type's path seen from the stub module, which is one level below its package.
fn path(rust: &str) -> String {
    if rust.starts_with("crate::") || rust.starts_with("::") {
        rust.to_owned()
    } else {
        format!("super::{rust}")
    }
}
