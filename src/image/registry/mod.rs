//! The registry client (OCI distribution specification 1.1): mirrors, credentials, custom CAs, proxies,
//! bounded retries and timeouts.
//!
//! It is built on `reqwest`, not on `oci-client`, which reads manifests and token replies of any size into memory,
//! does not retry, keeps using a token after a 401, matches challenge parameters case-sensitively and hides the
//! status and body that our error texts include; what would be left of it is URL building.
//!
//! ```text
//! Registry (one) -> Session (one per pull) -> Source (each mirror in order, at the end the registry) -> HTTP
//! ```
//! A session shares only connections with earlier ones: credentials, tokens and CA files are read again for each
//! pull. [`settings`] is the configuration, [`client`] decides which CAs to trust, [`credentials`] (with [`helper`])
//! finds credentials, [`challenge`] and [`auth`] authenticate, [`download`] fetches a blob, [`upload`] pushes.
//!
//! This module never uses plain HTTP for a host that the configuration does not list for it, sends a credential to
//! any other host, prints a secret in a log line or an error, or accepts data from a mirror that the digest does not
//! cover. The exception is the digest of a tag, for which a mirror is trusted.

mod auth;
mod challenge;
mod client;
mod credential;
mod credentials;
mod download;
mod fetch;
mod helper;
mod introduction;
mod settings;
mod source;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;

use self::client::Clients;
pub use self::credentials::Credentials;
pub use self::settings::{Patience, Registries, RegistryEntries, RegistryEntry};
pub(super) use self::source::Source;
pub(super) use self::upload::{Begun, Sent, Upload};
use super::digest::Digest;
use super::manifest::{Descriptor, Document};
use super::{ImageError, ImageRef};

/// Settings of the registry client.
#[derive(Debug, Clone, Default)]
pub struct RegistrySettings {
    /// Mirrors, CA files, plain HTTP.
    pub registries: Registries,
    /// Credential files; the first one with an entry for a registry wins. They need not exist.
    pub credential_files: Vec<PathBuf>,
    /// Directory with one directory of CA files per registry, like docker's `certs.d`. It need not exist.
    pub certs_dir: PathBuf,
    /// Timeouts and pauses.
    pub patience: Patience,
}

/// Client for all registries.
pub(super) struct Registry {
    settings: Arc<RegistrySettings>,
    clients: Arc<Clients>,
}

/// A fetched manifest.
pub(super) struct Fetched {
    pub digest: Digest,
    pub body: Vec<u8>,
    pub document: Document,
}

impl Registry {
    pub(super) fn new(settings: RegistrySettings) -> Self {
        Self {
            clients: Arc::new(Clients::new(settings.patience, settings.certs_dir.clone())),
            settings: Arc::new(settings),
        }
    }

    /// Starts a pull of `image`. Sends nothing yet.
    pub(super) fn session(&self, image: &ImageRef) -> Session {
        let (mirrors, itself) = self.settings.registries.endpoints(image.registry());
        let source = |endpoint, attempts| Source::new(&self.settings, &self.clients, image, endpoint, attempts);
        Session {
            mirrors: mirrors.into_iter().map(|mirror| source(mirror, 1)).collect(),
            itself: source(itself, source::ATTEMPTS),
        }
    }
}

impl Registry {
    /// Where to push `image`: always the registry itself, never a mirror. `others` are repositories of the registry that
    /// blobs may be taken from. Sends nothing yet.
    pub(super) fn destination(&self, image: &ImageRef, others: &[String], given: Option<&Credentials>) -> Source {
        let (_, itself) = self.settings.registries.endpoints(image.registry());
        let source = Source::new(&self.settings, &self.clients, image, itself, source::ATTEMPTS);
        source.for_push(others, given)
    }
}

/// One pull's view of a registry and its mirrors.
pub(super) struct Session {
    mirrors: Vec<Source>,
    itself: Source,
}

impl Session {
    /// The mirrors that are still usable.
    pub(super) fn mirrors(&self) -> impl Iterator<Item = &Source> {
        self.mirrors.iter().filter(|mirror| !mirror.is_down())
    }

    /// The registry itself.
    pub(super) fn itself(&self) -> &Source {
        &self.itself
    }

    /// Fetches a manifest by tag or digest.
    pub(super) async fn manifest(&self, reference: &str) -> Result<Fetched, ImageError> {
        for mirror in self.mirrors() {
            match mirror.manifest(reference).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => mirror.log_skipped(&error),
            }
        }
        self.itself.manifest(reference).await
    }

    /// Fetches a small blob whole.
    pub(super) async fn small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, ImageError> {
        for mirror in self.mirrors() {
            match mirror.small_blob(blob).await {
                Ok(body) => return Ok(body),
                Err(error) => mirror.log_skipped(&error),
            }
        }
        self.itself.small_blob(blob).await
    }
}
