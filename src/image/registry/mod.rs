//! The client of registries (OCI distribution specification 1.1, pull part): mirrors, credentials, own CAs, proxies,
//! bounded retries and time-outs.
//!
//! It stands on `reqwest`, not on `oci-client`: that one reads manifests and token replies of any size into memory,
//! does not retry, keeps a token past a 401, matches challenge parameters by case and hides the status and body that
//! our error texts promise; what would be left of it is URL building.
//!
//! ```text
//! Registry (one) -> Session (one per pull) -> Source (each mirror in order, at the end the registry) -> HTTP
//! ```
//! A session knows nothing of earlier ones: credentials, tokens and CA files are read anew for each pull. Only
//! connections are kept. [`settings`] says how registries are reached, [`client`] whom we trust, [`credentials`] (with
//! [`helper`]) who we are, [`challenge`] and [`auth`] how that is shown, [`download`] brings a blob.
//!
//! What this module never does: speak plain HTTP to whom the configuration does not name for it, send a credential to a
//! host that it is not meant for, show one in a log line or an error, or take from a mirror what the digest does not
//! vouch for (a tag's digest excepted: that is what a mirror is believed).

mod auth;
mod challenge;
mod client;
mod credential;
mod credentials;
mod download;
mod helper;
mod introduction;
mod settings;
mod source;

use std::path::PathBuf;
use std::sync::Arc;

use self::client::Clients;
pub use self::settings::{Patience, Registries, RegistryEntries, RegistryEntry};
pub(super) use self::source::Source;
use super::digest::Digest;
use super::manifest::{Descriptor, Document};
use super::{ImageError, ImageRef};

/// What the client of registries needs to know.
#[derive(Debug, Clone, Default)]
pub struct RegistrySettings {
    /// Mirrors, CA files, plain HTTP.
    pub registries: Registries,
    /// Files with credentials; the first that has one for a registry counts. They may be missing.
    pub credential_files: Vec<PathBuf>,
    /// Directory with a directory of CA files per registry, as docker's `certs.d`. It may be missing.
    pub certs_dir: PathBuf,
    /// How long is waited.
    pub patience: Patience,
}

/// Client of all registries.
pub(super) struct Registry {
    settings: Arc<RegistrySettings>,
    clients: Arc<Clients>,
}

/// A manifest as it was fetched.
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

    /// Begins a pull of `image`. Nothing is sent yet.
    pub(super) fn session(&self, image: &ImageRef) -> Session {
        let (mirrors, itself) = self.settings.registries.endpoints(image.registry());
        let source = |endpoint, attempts| Source::new(&self.settings, &self.clients, image, endpoint, attempts);
        Session {
            mirrors: mirrors.into_iter().map(|mirror| source(mirror, 1)).collect(),
            itself: source(itself, source::ATTEMPTS),
        }
    }
}

/// One pull's view of a registry and its mirrors.
pub(super) struct Session {
    mirrors: Vec<Source>,
    itself: Source,
}

impl Session {
    /// The mirrors that can still be asked.
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
                Err(error) => mirror.pass_over(&error),
            }
        }
        self.itself.manifest(reference).await
    }

    /// Fetches a small blob whole.
    pub(super) async fn small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, ImageError> {
        for mirror in self.mirrors() {
            match mirror.small_blob(blob).await {
                Ok(body) => return Ok(body),
                Err(error) => mirror.pass_over(&error),
            }
        }
        self.itself.small_blob(blob).await
    }
}
