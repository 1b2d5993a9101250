//! The public key infrastructure: the server certificate, the CA of client certificates, the identities created at the
//! first start, and certificates of containers (`docs/spec/security.md` 2 to 4).
//!
//! Owns `<root>/cert`. Checks each pair when the daemon starts, daily, and when the host's addresses change ([`Pki::renew_due`]):
//!
//! ```text
//! absent ───────────────────────────────────────────────┐
//! half of it missing, halves do not match, unreadable ──┼─> issued, written atomically, in use at once
//! expires within 30 days, wrong addresses or issuer ────┘
//! ```
//!
//! RSA pairs of an earlier installation stay in use until then. The CA is treated with more care: its key is never
//! replaced while it can be used, a former CA certificate stays trusted until it expires, and a CA file that cannot be
//! read is an error, not a reason for a new CA.
//!
//! An operator may replace our pairs with others; [`Pki::reload`] loads them. It refuses what the other functions would
//! repair: if a pair is incomplete or about to be renewed, the daemon keeps using what it has.

mod authority;
pub mod csr;
pub mod pair;
mod profile;
pub mod spiffe;
mod tls;
pub mod trust;

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::extensions::GeneralName;

use authority::Authority;
pub use csr::{SignError, SigningRequest};
use pair::{Durability, PairError, PairFiles, belongs_to, expires_within};
pub use spiffe::{SpiffeError, SpiffeId};

/// How long before it expires a certificate is renewed.
pub const RENEWAL: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Why the certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("cannot use the certificates: {0}")]
    Pair(#[from] PairError),
    /// A CA file is there, but cannot be understood.
    #[error(
        "cannot use the client CA: {0}; restore it, or move {1} and its key away to start with a new CA, \
         which makes all client certificates invalid"
    )]
    Authority(#[source] PairError, PathBuf),
    /// A certificate cannot be made.
    #[error("cannot issue a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    /// A pair that the operator installed cannot be used.
    #[error("cannot take over {0}: {1}")]
    Refused(PathBuf, &'static str),
    /// The certificates cannot be used for TLS.
    #[error("cannot use the certificates for TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl From<std::io::Error> for PkiError {
    fn from(error: std::io::Error) -> Self {
        Self::Pair(error.into())
    }
}

/// The certificates of one daemon.
pub struct Pki {
    dir: PathBuf,
    current: RwLock<Arc<Current>>,
    /// Held while files are changed.
    updating: Mutex<()>,
}

/// The certificates in use. Replaced as a whole.
struct Current {
    authority: Authority,
    tls: Arc<ServerConfig>,
}

impl Pki {
    /// Reads `<root>/cert` and creates what is missing or due. `server_addresses` are the addresses that clients may use
    /// besides `localhost`. Blocks on file access.
    pub fn load_or_create(dir: &Path, server_addresses: &[IpAddr]) -> Result<Self, PkiError> {
        Self::load_at(dir, server_addresses, SystemTime::now())
    }

    fn load_at(dir: &Path, server_addresses: &[IpAddr], now: SystemTime) -> Result<Self, PkiError> {
        fs_err::create_dir_all(dir)?;
        fs_err::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
        Ok(Self {
            dir: dir.to_owned(),
            current: RwLock::new(Arc::new(bring_up_to_date(dir, server_addresses, now)?)),
            updating: Mutex::new(()),
        })
    }

    /// Repeats [`Pki::load_or_create`]. New connections use the result. Blocks on file access.
    pub fn renew_due(&self, server_addresses: &[IpAddr]) -> Result<(), PkiError> {
        let _alone = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        self.update(server_addresses, SystemTime::now())
    }

    /// Loads what is in the directory now. Both pairs, the server's and the CA's, must be complete and not expire soon, and
    /// the server's must cover the addresses; otherwise nothing changes, neither on disk nor in use. If the CA is new, the
    /// client pairs are issued anew. New connections use the result. Blocks on file access.
    pub fn reload(&self, server_addresses: &[IpAddr]) -> Result<(), PkiError> {
        let _alone = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        let authority = whole(&PairFiles::new(&self.dir, "raindClientCA"), now)?;
        if !pair::parse(&authority).is_some_and(|certificate| certificate.is_ca()) {
            return Err(PkiError::Refused(
                self.dir.join("raindClientCA.crt"),
                "it is no CA certificate",
            ));
        }
        let server = whole(&PairFiles::new(&self.dir, "raind"), now)?;
        if !covers(&server, server_addresses) {
            let reason = "it does not name localhost, 127.0.0.1 and all addresses at which containers reach this host";
            return Err(PkiError::Refused(self.dir.join("raind.crt"), reason));
        }
        self.update(server_addresses, now)
    }

    fn update(&self, server_addresses: &[IpAddr], now: SystemTime) -> Result<(), PkiError> {
        let next = bring_up_to_date(&self.dir, server_addresses, now)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(())
    }

    /// The TLS configuration for a new connection of any listener.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current().tls)
    }

    /// Signs a certificate for the container that the request names, by the policy of [`SigningRequest::container_id`];
    /// PEM. The caller has to know whether that container may have one now. May compute for some milliseconds.
    pub fn sign_container(&self, id: &str, request: &SigningRequest) -> Result<String, PkiError> {
        let current = self.current();
        let certificate = profile::container(id, &request.public_key, current.authority.issuer(), SystemTime::now())?;
        Ok(certificate.pem())
    }

    fn current(&self) -> Arc<Current> {
        // The lock is held only while a pointer is copied; nothing that can panic runs under it.
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn bring_up_to_date(dir: &Path, server_addresses: &[IpAddr], now: SystemTime) -> Result<Current, PkiError> {
    let authority = Authority::load_or_create(PairFiles::new(dir, "raindClientCA"), now)?;
    for (file, common_name, id) in [
        ("raindClient", "raind-client", SpiffeId::Cli("admin".into())),
        (
            "raindHookClient",
            "raind-hook-client",
            SpiffeId::Droplet("container".into()),
        ),
    ] {
        let usable = |certificate: &CertificateDer<'_>| authority.signed(certificate);
        load_or_issue(&PairFiles::new(dir, file), now, usable, |key| {
            profile::client(common_name, &id, key, authority.issuer(), now)
        })?;
    }
    let usable = |certificate: &CertificateDer<'_>| covers(certificate, server_addresses);
    let (certificates, key) = load_or_issue(&PairFiles::new(dir, "raind"), now, usable, |key| {
        profile::server(server_addresses, key, now)
    })?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let tls = Arc::new(tls::server_config(certificates, key, authority.trusted())?);
    Ok(Current { authority, tls })
}

/// The certificate of a pair, if it needs no repair.
fn whole(files: &PairFiles, now: SystemTime) -> Result<CertificateDer<'static>, PkiError> {
    let refused = |reason| PkiError::Refused(files.certificate.clone(), reason);
    let certificates = files.read_certificates()?.ok_or_else(|| refused("it is missing"))?;
    let key = files.read_key()?.ok_or_else(|| refused("its key is missing"))?;
    let certificate = certificates.into_iter().next().ok_or_else(|| refused("it is empty"))?;
    if !belongs_to(&certificate, &key) {
        return Err(refused("its key is of another certificate"));
    }
    if expires_within(&certificate, now, RENEWAL) {
        return Err(refused("it has expired or expires within 30 days"));
    }
    Ok(certificate)
}

type Loaded = (Vec<CertificateDer<'static>>, KeyPair);

/// The pair in these files, if it is complete, does not expire soon and is `usable`; otherwise a new one.
fn load_or_issue(
    files: &PairFiles,
    now: SystemTime,
    usable: impl FnOnce(&CertificateDer<'_>) -> bool,
    issue: impl FnOnce(&KeyPair) -> Result<rcgen::Certificate, rcgen::Error>,
) -> Result<Loaded, PkiError> {
    let path = files.certificate.display();
    match (
        ignore_content(files.read_certificates())?,
        ignore_content(files.read_key())?,
    ) {
        (Some(certificates), Some(key)) if belongs_to(&certificates[0], &key) => {
            if !expires_within(&certificates[0], now, RENEWAL) && usable(&certificates[0]) {
                fs_err::set_permissions(&files.key, std::fs::Permissions::from_mode(pair::KEY_MODE))?;
                return Ok((certificates, key));
            }
            tracing::info!(certificate = %path, "reissuing a certificate that expires soon or no longer fits");
        }
        (None, None) => tracing::info!(certificate = %path, "issuing a certificate"),
        _ => tracing::warn!(certificate = %path, "reissuing a certificate whose files do not belong together"),
    }
    let key = KeyPair::generate()?;
    let certificates = vec![issue(&key)?.der().clone()];
    files.write(&certificates, &key, Durability::Lasting)?;
    Ok((certificates, key))
}

/// Treats a file with unusable content as absent.
fn ignore_content<T>(read: Result<Option<T>, PairError>) -> Result<Option<T>, PairError> {
    match read {
        Err(error @ PairError::Content { .. }) => {
            tracing::warn!(%error, "ignoring a broken file");
            Ok(None)
        }
        other => other,
    }
}

/// Whether a server certificate covers `localhost` and all these addresses.
fn covers(certificate: &CertificateDer<'_>, addresses: &[IpAddr]) -> bool {
    let Some(certificate) = pair::parse(certificate) else {
        return false;
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return false;
    };
    let names = &names.value.general_names;
    let has = |address: &IpAddr| {
        let octets = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        names
            .iter()
            .any(|name| matches!(name, GeneralName::IPAddress(bytes) if **bytes == octets))
    };
    names.contains(&GeneralName::DNSName("localhost")) && profile::server_addresses(addresses).iter().all(has)
}

#[cfg(test)]
mod tests;
