//! Image verifiers: who may refuse an image before anything of it is fetched (containerd: pkg/imageverifier).

use async_trait::async_trait;

use crate::Descriptor;
use crate::error::Result;

/// What a verifier thinks of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub ok: bool,
    /// In words, for the log and for who wanted the image.
    pub reason: String,
}

/// A verifier of images.
#[async_trait]
pub trait ImageVerifier: Send + Sync {
    /// Judges the image `name`, which stands for `target` now. An error is no judgement: whoever asks takes it as a
    /// refusal.
    async fn verify(&self, name: &str, target: &Descriptor) -> Result<Judgement>;
}
