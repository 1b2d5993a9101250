//! HTTP clients: trusted CAs, redirects, proxies.
//!
//! Trusted are the system's CA store (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured) and the CA files of the host:
//! those of the configuration and `/etc/docker/certs.d/<host>/*.crt`. These files are read for every pull; hosts with
//! the same additional CAs share one client and its connections. The system's store is read again after a certificate
//! was rejected. Proxies come from the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::{Client, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::settings::Patience;
use crate::image::digest::Digest;

const MAX_REDIRECTS: usize = 5;
/// Largest CA file, in bytes.
const MAX_CA_FILE: u64 = 4 << 20;

/// Two clients with the same trusted CAs.
#[derive(Clone)]
pub(super) struct Pair {
    /// Follows redirects: blobs are often stored on another host. `reqwest` drops `Authorization` when the host
    /// changes.
    pub follows: Client,
    /// Follows no redirects: for requests with secrets in their body.
    pub stays: Client,
    /// Digest of the additional CAs.
    key: Digest,
}

/// All clients, by their trusted CAs.
pub(super) struct Clients {
    patience: Patience,
    /// `/etc/docker/certs.d`.
    certs_dir: PathBuf,
    made: Mutex<HashMap<Digest, Pair>>,
}

impl Clients {
    pub(super) fn new(patience: Patience, certs_dir: PathBuf) -> Self {
        Self {
            patience,
            certs_dir,
            made: Mutex::default(),
        }
    }

    /// The clients for `host`, which also trust `ca`. Blocks. The error contains the file name.
    pub(super) fn get(&self, host: &str, ca: &[PathBuf]) -> Result<Pair, String> {
        let mut extra = Vec::<CertificateDer<'static>>::new();
        for path in ca.iter().chain(&own_files(&self.certs_dir.join(host))) {
            extra.extend(certificates(path).map_err(|e| format!("the CA file {}: {e}", path.display()))?);
        }
        let key = Digest::of(&extra.iter().flat_map(|der| der.iter().copied()).collect::<Vec<u8>>());
        let made = || self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pair) = made().get(&key) {
            return Ok(pair.clone());
        }
        let pair = self.build(key, extra)?;
        Ok(made().entry(key).or_insert(pair).clone())
    }

    /// Makes the next [`Clients::get`] read the system's store again.
    pub(super) fn forget(&self, pair: &Pair) {
        self.made
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&pair.key);
    }

    fn build(&self, key: Digest, extra: Vec<CertificateDer<'static>>) -> Result<Pair, String> {
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| format!("TLS cannot be set up: {e}"))?
            .with_root_certificates(roots(extra))
            .with_no_client_auth();
        let client = |policy| {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .connect_timeout(self.patience.connect)
                .read_timeout(self.patience.idle)
                .redirect(policy)
                .user_agent(concat!("condenser/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(|e| format!("the HTTP client cannot be set up: {e}"))
        };
        Ok(Pair {
            follows: client(redirect::Policy::custom(follow))?,
            stays: client(redirect::Policy::none())?,
            key,
        })
    }
}

fn roots(extra: Vec<CertificateDer<'static>>) -> rustls::RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!(%error, "part of the system's CA store cannot be read");
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots.add_parsable_certificates(extra);
    if roots.is_empty() {
        tracing::warn!("the system has no CA certificates; registries can only be reached in plain HTTP");
    }
    roots
}

/// The `*.crt` files in the directory, which may not exist.
fn own_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(directory).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "crt"))
        .collect();
    files.sort();
    files
}

#[expect(clippy::disallowed_methods, reason = "who asks names the file")]
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let metadata = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if !metadata.is_file() || metadata.len() > MAX_CA_FILE {
        return Err(format!("it is not a file of at most {MAX_CA_FILE} bytes"));
    }
    let text = std::fs::read(path).map_err(|e| e.to_string())?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(all) if all.is_empty() => Err("it has no certificate in PEM".into()),
        all => all.map_err(|e| e.to_string()),
    }
}

fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let from_tls = attempt
        .previous()
        .last()
        .is_some_and(|url: &Url| url.scheme() == "https");
    if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error("too many redirects")
    } else if from_tls && attempt.url().scheme() != "https" {
        attempt.error("redirected from https to plain http")
    } else {
        attempt.follow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let clients = Clients::new(Patience::default(), scratch.path().join("certs.d"));
        let file = scratch.path().join("ca.pem");
        let refused = |reason: &str| {
            let error = clients.get("reg.io:5000", std::slice::from_ref(&file)).err().unwrap();
            assert!(
                error.contains(&file.display().to_string()) && error.contains(reason),
                "{error}"
            );
        };
        refused("No such file");
        std::fs::write(&file, "nothing").unwrap();
        refused("no certificate in PEM");
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
        refused("");
        let own = scratch.path().join("certs.d/reg.io:5000");
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join("client.key"), "not read").unwrap();
        std::fs::write(own.join("ca.crt"), "nothing").unwrap();
        let error = clients.get("reg.io:5000", &[]).err().unwrap();
        assert!(error.contains("certs.d/reg.io:5000/ca.crt"), "{error}");
        clients.get("reg.io", &[]).unwrap();
    }

    #[test]
    fn what_is_trusted_alike_is_one_client() {
        let scratch = tempfile::tempdir().unwrap();
        let clients = Clients::new(Patience::default(), scratch.path().to_owned());
        let pem = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = rcgen::CertificateParams::new(vec![])
                .unwrap()
                .self_signed(&key)
                .unwrap();
            let file = scratch.path().join(name);
            std::fs::write(&file, certificate.pem()).unwrap();
            file
        };
        let (a, b) = (pem("a"), pem("b"));
        let key = |host, ca: &[PathBuf]| clients.get(host, ca).unwrap().key;
        assert_eq!(key("x", &[]), key("y", &[]));
        assert_ne!(key("x", &[]), key("x", std::slice::from_ref(&a)));
        let before = key("x", std::slice::from_ref(&a));
        std::fs::copy(&b, &a).unwrap();
        assert_ne!(before, key("x", &[a]), "a new file makes a new client");
    }
}
