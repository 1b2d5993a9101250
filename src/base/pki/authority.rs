//! The CA of client certificates: which key signs, and which certificates are trusted.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{Issuer, KeyPair};
use rustls::pki_types::CertificateDer;

use super::pair::{Durability, PairError, PairFiles, belongs_to, expires_within, parse};
use super::{PkiError, RENEWAL, profile};

/// How long before it expires the log begins to warn about the CA.
const WARNING: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// The CA in use. The certificate file holds its own certificate first, followed by former ones that are still trusted.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// Reads the CA and creates what is missing: if the key is missing, a new CA, while an existing certificate stays
    /// trusted; if the certificate is missing, a new one for the existing key. A CA that expires soon is replaced, and
    /// the old one stays trusted until it expires.
    pub fn load_or_create(files: PairFiles, now: SystemTime) -> Result<Self, PkiError> {
        let broken = |error| match error {
            PairError::Content { .. } => PkiError::Authority(error, files.certificate.clone()),
            io => io.into(),
        };
        let found = files.read_certificates().map_err(broken)?.unwrap_or_default();
        let key = files.read_key().map_err(broken)?;
        let ends = |margin| move |certificate: &CertificateDer<'_>| expires_within(certificate, now, margin);
        match (found.first(), key) {
            (Some(own), Some(key)) if belongs_to(own, &key) && !ends(RENEWAL)(own) => {
                if ends(WARNING)(own) {
                    warn_of_end(&files.certificate);
                }
                let trusted = found.into_iter().filter(|c| !ends(Duration::ZERO)(c)).collect();
                Self::new(key, trusted)
            }
            (own, key) => {
                // Retire a key whose certificate has expired.
                let retired = |key: &KeyPair| own.is_some_and(|own| belongs_to(own, key));
                let key = match key {
                    Some(key) if !retired(&key) => key,
                    _ => KeyPair::generate()?,
                };
                tracing::info!(certificate = %files.certificate.display(), former = found.len(), "making a client CA");
                let mut trusted = vec![profile::authority(&key, now)?.der().clone()];
                trusted.extend(found.into_iter().filter(|c| !ends(Duration::ZERO)(c)));
                files.write(&trusted, &key, Durability::Lasting)?;
                Self::new(key, trusted)
            }
        }
    }

    fn new(key: KeyPair, trusted: Vec<CertificateDer<'static>>) -> Result<Self, PkiError> {
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&trusted[0], key)?,
            trusted,
        })
    }

    /// The key that signs.
    pub fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// The CA certificates that client certificates may be issued by, our own first. None of them has expired.
    pub fn trusted(&self) -> &[CertificateDer<'static>] {
        &self.trusted
    }

    /// Whether the present CA signed this certificate.
    pub fn signed(&self, certificate: &CertificateDer<'_>) -> bool {
        match (parse(certificate), parse(&self.trusted[0])) {
            (Some(certificate), Some(own)) => certificate.verify_signature(Some(own.public_key())).is_ok(),
            _ => false,
        }
    }
}

fn warn_of_end(certificate: &Path) {
    tracing::warn!(
        certificate = %certificate.display(),
        "the client CA ends in less than 90 days; a new one takes over 30 days before"
    );
}
