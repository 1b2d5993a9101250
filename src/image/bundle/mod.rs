//! Archives that hold whole images: written by `save`, read by `load`. And archives of root file systems (`import`).
//!
//! ```text
//! oci-archive     oci-layout, index.json, blobs/sha256/<hex>      (OCI image specification, image layout)
//! docker-archive  manifest.json, <config>.json, <layer>.tar       (as written and read by `docker save`, `docker load`)
//! ```
//! Layers are written uncompressed, under their diff ids. What is read is as untrusted as what a registry sends: the
//! archive is first taken apart into files of the staging area that have names of their own, and every blob is checked
//! against its digest before anything refers to it.

mod import;
mod index;
mod load;
mod save;
mod spool;

use std::str::FromStr;

pub use self::import::ImportRequest;
pub use self::load::Loaded;

/// A kind of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// `oci-archive`
    Oci,
    /// `docker-archive`
    Docker,
}

impl FromStr for ArchiveFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "oci-archive" => Ok(Self::Oci),
            "docker-archive" => Ok(Self::Docker),
            other => Err(format!("{other:?} is neither oci-archive nor docker-archive")),
        }
    }
}
