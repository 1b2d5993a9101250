//! A certificate and its private key in two PEM files, and checks on them.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Mode of certificate files.
pub const CERTIFICATE_MODE: u32 = 0o644;
/// Mode of key files.
pub const KEY_MODE: u32 = 0o600;

/// Where the two files are.
#[derive(Debug, Clone)]
pub struct PairFiles {
    /// One or more PEM certificates.
    pub certificate: PathBuf,
    /// A PEM private key.
    pub key: PathBuf,
}

/// Why a file of a pair cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The system reports an error. The text names the file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The file exists, but its content is not what it should be.
    #[error("{path} holds no usable {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
}

/// Whether a file has to survive a power failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It must: the pair cannot be made again.
    Lasting,
    /// It need not: the pair is made again if it is found broken.
    Replaceable,
}

impl PairFiles {
    /// `<dir>/<name>.crt` and `<dir>/<name>.key`.
    pub fn new(dir: &Path, name: &str) -> Self {
        Self {
            certificate: dir.join(format!("{name}.crt")),
            key: dir.join(format!("{name}.key")),
        }
    }

    /// The certificates of the file, at least one. `None` when there is no file.
    pub fn read_certificates(&self) -> Result<Option<Vec<CertificateDer<'static>>>, PairError> {
        let Some(text) = read_optional(&self.certificate)? else {
            return Ok(None);
        };
        parse_certificates(&text).map(Some).ok_or_else(|| PairError::Content {
            path: self.certificate.clone(),
            what: "certificate",
        })
    }

    /// The key of the file, PKCS#8 or PKCS#1 (RSA keys of earlier installations). `None` when there is no file.
    pub fn read_key(&self) -> Result<Option<KeyPair>, PairError> {
        let Some(text) = read_optional(&self.key)? else {
            return Ok(None);
        };
        parse_key(&text).map(Some).ok_or_else(|| PairError::Content {
            path: self.key.clone(),
            what: "private key",
        })
    }

    /// Writes the pair, the key first: a crash in between leaves a pair that does not match, which the next check
    /// repairs. A reader sees either the old or the new content of a file.
    pub fn write(
        &self,
        certificates: &[CertificateDer<'_>],
        key: &KeyPair,
        durability: Durability,
    ) -> Result<(), PairError> {
        replace_file(&self.key, key.serialize_pem().as_bytes(), KEY_MODE, durability)?;
        self.write_certificates(certificates, durability)
    }

    /// Writes the certificate file alone.
    pub fn write_certificates(
        &self,
        certificates: &[CertificateDer<'_>],
        durability: Durability,
    ) -> Result<(), PairError> {
        let blocks: Vec<_> = certificates
            .iter()
            .map(|der| pem::Pem::new("CERTIFICATE", der.as_ref()))
            .collect();
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        let text = pem::encode_many_config(&blocks, config);
        replace_file(&self.certificate, text.as_bytes(), CERTIFICATE_MODE, durability)?;
        Ok(())
    }
}

/// All certificates in PEM text; `None` when there is none or the text is broken.
pub fn parse_certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = pem::parse_many(pem)
        .ok()?
        .into_iter()
        .filter(|block| block.tag() == "CERTIFICATE" && parse(block.contents()).is_some())
        .map(|block| CertificateDer::from(block.into_contents()))
        .collect();
    (!certificates.is_empty()).then_some(certificates)
}

/// A private key in PEM: PKCS#8 (`PRIVATE KEY`) or PKCS#1 (`RSA PRIVATE KEY`).
pub fn parse_key(pem: &[u8]) -> Option<KeyPair> {
    let block = pem::parse(pem).ok()?;
    let pkcs8 = match block.tag() {
        "PRIVATE KEY" => block.into_contents(),
        "RSA PRIVATE KEY" => pkcs8_of_rsa(block.contents()),
        _ => return None,
    };
    KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8)).ok()
}

/// Wraps a PKCS#1 key into PKCS#8 (RFC 5208): version 0, algorithm rsaEncryption with NULL, the key as octets.
fn pkcs8_of_rsa(pkcs1: &[u8]) -> Vec<u8> {
    const VERSION: [u8; 3] = [0x02, 0x01, 0x00];
    const RSA_ENCRYPTION: [u8; 15] = [
        0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
    ];
    let octets = der_value(0x04, pkcs1);
    der_value(0x30, &[&VERSION[..], &RSA_ENCRYPTION, &octets].concat())
}

/// Tag, length and content of one DER value.
fn der_value(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().position(|b| *b != 0).unwrap_or(length.len() - 1)..];
    let mut der = vec![tag];
    if content.len() >= 0x80 {
        der.push(0x80 | significant.len() as u8);
    }
    der.extend_from_slice(significant);
    der.extend_from_slice(content);
    der
}

/// Whether `certificate` is for the public half of `key`.
pub fn belongs_to(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    parse(certificate).is_some_and(|c| c.public_key().subject_public_key.data.as_ref() == key.der_bytes())
}

/// Whether `certificate` has expired at `now` plus `margin`, or cannot be read.
pub fn expires_within(certificate: &CertificateDer<'_>, now: SystemTime, margin: Duration) -> bool {
    parse(certificate).is_none_or(|c| c.validity().not_after.timestamp() <= unix(now + margin))
}

/// Seconds since 1970, as certificates count time.
pub fn unix(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Parses one DER certificate; trailing bytes are an error.
pub fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok((&[], certificate)) => Some(certificate),
        _ => None,
    }
}

/// Writes a file with this mode. Readers see either the old or the new content.
pub fn replace_file(path: &Path, content: &[u8], mode: u32, durability: Durability) -> std::io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    // A leftover of an earlier attempt may have another mode or be a link.
    match fs_err::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let write = || {
        let mut options = fs_err::OpenOptions::new();
        options.write(true).create_new(true);
        fs_err::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        let mut file = options.open(&temporary)?;
        // The umask may have removed bits.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        if durability == Durability::Lasting {
            file.sync_all()?;
        }
        fs_err::rename(&temporary, path)?;
        match path.parent() {
            Some(dir) if durability == Durability::Lasting => fs_err::File::open(dir)?.sync_all(),
            _ => Ok(()),
        }
    };
    write().inspect_err(|_| {
        let _ = fs_err::remove_file(&temporary);
    })
}

fn read_optional(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    match fs_err::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rsa_keys_of_earlier_installations_are_read() {
        let pkcs1 = std::process::Command::new("openssl")
            .args(["genrsa", "-traditional", "2048"])
            .output()
            .unwrap();
        assert!(pkcs1.stdout.starts_with(b"-----BEGIN RSA PRIVATE KEY"));
        let key = parse_key(&pkcs1.stdout).unwrap();
        assert_eq!(key.algorithm(), &rcgen::PKCS_RSA_SHA256);
        assert!(
            parse_key(key.serialize_pem().as_bytes()).is_some(),
            "and written as PKCS#8"
        );
    }

    #[test]
    fn der_lengths_are_minimal() {
        assert_eq!(der_value(4, &[]), [4, 0]);
        assert_eq!(der_value(4, &[0; 127])[..2], [4, 127]);
        assert_eq!(der_value(4, &[0; 128])[..3], [4, 0x81, 128]);
        assert_eq!(der_value(4, &[0; 0x1234])[..4], [4, 0x82, 0x12, 0x34]);
    }

    #[test]
    fn a_file_is_replaced_with_its_mode_and_no_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        std::fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink("/nonexistent/elsewhere", dir.path().join(".a.key.tmp")).unwrap();
        replace_file(&path, b"new", KEY_MODE, Durability::Lasting).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            KEY_MODE
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = replace_file(&dir.path().join("none/a"), b"", KEY_MODE, Durability::Lasting).unwrap_err();
        assert!(error.to_string().contains("none/"), "{error}");
    }

    #[test]
    fn broken_content_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let files = PairFiles::new(dir.path(), "x");
        assert!(files.read_key().unwrap().is_none() && files.read_certificates().unwrap().is_none());
        std::fs::write(&files.key, "garbage").unwrap();
        std::fs::write(&files.certificate, "garbage").unwrap();
        assert!(
            files
                .read_key()
                .unwrap_err()
                .to_string()
                .ends_with("x.key holds no usable private key")
        );
        assert!(
            files
                .read_certificates()
                .unwrap_err()
                .to_string()
                .ends_with("x.crt holds no usable certificate")
        );
    }
}
