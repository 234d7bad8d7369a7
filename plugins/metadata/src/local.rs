//! The sandbox records as a plugin of their own (`io.containerd.sandbox.store.v1.local`).

use corten_core::kinds;
use corten_registry::Registration;

/// Plugin `local`.
pub fn registration() -> Registration {
    Registration::new::<kinds::SandboxStore>("local")
        .requires::<kinds::Metadata>()
        .init_plain(|cx| Box::pin(async move { Ok(cx.single::<kinds::Metadata>()?.sandboxes()) }))
}
