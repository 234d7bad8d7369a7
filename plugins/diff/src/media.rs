//! Layer media types.

use corten_core::compression::Compression;
use corten_core::{Error, Result};

/// The media type of an uncompressed layer, which an apply answers with.
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Whether `media_type` is a layer that we can apply. How it is really compressed its first bytes say.
///
/// # Errors
/// NotImplemented for anything else, encrypted layers included: another differ may know it.
pub(crate) fn check_applicable(media_type: &str) -> Result<()> {
    let bare = media_type
        .strip_suffix("+gzip")
        .or_else(|| media_type.strip_suffix("+zstd"))
        .or_else(|| media_type.strip_suffix(".gzip"))
        .or_else(|| media_type.strip_suffix(".zstd"))
        .unwrap_or(media_type);
    let known = matches!(
        bare,
        LAYER
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
    );
    if known {
        return Ok(());
    }
    Err(Error::not_implemented(format!(
        "failed to get stream processor for {media_type}: no processor for media-type"
    )))
}

/// The media type and compression of a new layer.
///
/// # Errors
/// NotImplemented for a type that we do not make.
pub(crate) fn for_new_layer(media_type: &str) -> Result<(&'static str, Compression)> {
    match media_type {
        "" | LAYER_GZIP => Ok((LAYER_GZIP, Compression::Gzip)),
        LAYER_ZSTD => Ok((LAYER_ZSTD, Compression::Zstd)),
        LAYER => Ok((LAYER, Compression::None)),
        other => Err(Error::not_implemented(format!(
            "unsupported diff media type: {other}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_applicable_and_encrypted_ones_are_not() {
        for good in [
            LAYER,
            LAYER_GZIP,
            LAYER_ZSTD,
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        ] {
            assert!(check_applicable(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "application/json",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        ] {
            let e = check_applicable(bad).unwrap_err();
            assert_eq!(e.kind(), corten_core::Kind::NotImplemented, "{bad}");
        }
    }
}
