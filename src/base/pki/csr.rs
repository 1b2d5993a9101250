//! Certificate signing requests of containers: what is read from them and what they may ask for
//! (`docs/spec/api.md` 17, `docs/spec/security.md` 4 and S-04).

use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::spiffe::{SpiffeError, segments, uris};

/// Smallest RSA modulus, in bits.
const MIN_RSA_BITS: usize = 3072;

/// A request with a valid signature. Only its public key and the container id, once checked, end up in a certificate.
#[derive(Debug)]
pub struct SigningRequest {
    /// Common name, for the audit log only.
    pub common_name: String,
    /// URIs among the subject alternative names.
    pub uris: Vec<String>,
    /// The key that the certificate will be for.
    pub(super) public_key: Vec<u8>,
    key: KeyKind,
}

#[derive(Debug)]
enum KeyKind {
    Rsa(usize),
    /// An elliptic curve that we accept.
    Curve,
    Other,
}

/// Why a request is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The text is not exactly one PEM block with a request in it.
    #[error("invalid csr")]
    Invalid,
    /// The requester does not hold the key.
    #[error("csr signture invalid")]
    Signature,
    /// The request does not carry a SPIFFE ID of our trust domain.
    #[error("spiffe policy denied: {0}")]
    Spiffe(#[from] SpiffeError),
    /// Only containers get certificates this way.
    #[error("role not allowed")]
    Role,
    /// We do not accept keys of this kind.
    #[error("key not allowed: RSA of at least {MIN_RSA_BITS} bits, ECDSA P-256 or P-384, or Ed25519 is required")]
    Key,
}

impl SigningRequest {
    /// Reads a request and checks its signature.
    pub fn parse(pem: &[u8]) -> Result<Self, SignError> {
        let block = pem::parse(pem).map_err(|_| SignError::Invalid)?;
        if !matches!(block.tag(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
            return Err(SignError::Invalid);
        }
        let Ok((&[], request)) = X509CertificationRequest::from_der(block.contents()) else {
            return Err(SignError::Invalid);
        };
        match request.verify_signature() {
            Ok(()) => {}
            Err(X509Error::SignatureUnsupportedAlgorithm) => return Err(SignError::Key),
            Err(_) => return Err(SignError::Signature),
        }
        let info = &request.certification_request_info;
        let common_name = info.subject.iter_common_name().next().and_then(|cn| cn.as_str().ok());
        Ok(Self {
            common_name: common_name.unwrap_or_default().to_owned(),
            uris: request.requested_extensions().map_or_else(Vec::new, |extensions| {
                let names = extensions.filter_map(|extension| match extension {
                    ParsedExtension::SubjectAlternativeName(names) => Some(uris(&names.general_names)),
                    _ => None,
                });
                names.flatten().collect()
            }),
            public_key: info.subject_pki.raw.to_vec(),
            key: key_kind(info),
        })
    }

    /// The id of the container that the certificate is for, if policy allows it.
    pub fn container_id(&self) -> Result<&str, SignError> {
        let [uri] = &self.uris[..] else {
            return Err(SpiffeError::UriCount.into());
        };
        let (role, id) = segments(uri)?;
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if !role.bytes().chain(id.bytes()).all(allowed) {
            return Err(SpiffeError::Characters.into());
        }
        if role != "container" {
            return Err(SignError::Role);
        }
        match self.key {
            KeyKind::Curve => Ok(id),
            KeyKind::Rsa(bits) if bits >= MIN_RSA_BITS => Ok(id),
            KeyKind::Rsa(_) | KeyKind::Other => Err(SignError::Key),
        }
    }
}

fn key_kind(info: &x509_parser::certification_request::X509CertificationRequestInfo<'_>) -> KeyKind {
    match info.subject_pki.parsed() {
        Ok(PublicKey::RSA(key)) => KeyKind::Rsa(key.key_size()),
        // The library that writes the certificate supports exactly the curves that we accept.
        Ok(_) if SubjectPublicKeyInfo::from_der(info.subject_pki.raw).is_ok() => KeyKind::Curve,
        _ => KeyKind::Other,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType};
    use rstest::rstest;

    /// A request for these URIs, signed with `key`.
    pub fn request(uris: &[&str], key: &KeyPair) -> String {
        let mut params = CertificateParams::new(vec!["ignored.example".to_owned()]).unwrap();
        let name = |uri: &&str| SanType::URI((*uri).try_into().unwrap());
        params.subject_alt_names.extend(uris.iter().map(name));
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "raind-client");
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    fn judge(uris: &[&str]) -> Result<String, String> {
        let pem = request(uris, &KeyPair::generate().unwrap());
        let request = SigningRequest::parse(pem.as_bytes()).map_err(|e| e.to_string())?;
        assert_eq!(request.common_name, "raind-client");
        assert_eq!(request.uris, uris);
        request.container_id().map(str::to_owned).map_err(|e| e.to_string())
    }

    /// What openssl makes of these arguments.
    fn openssl(args: &[&str]) -> Vec<u8> {
        let output = std::process::Command::new("openssl").args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn openssl_request(key: &[&str]) -> Vec<u8> {
        let mut args = vec!["req", "-new", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=x"];
        args.extend(["-addext", "subjectAltName=URI:spiffe://raind/container/c1"]);
        args.extend(key);
        openssl(&args)
    }

    #[test]
    fn a_container_may_ask_for_itself() {
        assert_eq!(
            judge(&["spiffe://raind/container/01kg2cnf0ytv"]),
            Ok("01kg2cnf0ytv".into())
        );
    }

    #[rstest]
    #[case(&[], "spiffe policy denied: exactly one URI SAN is required")]
    #[case(&["spiffe://raind/container/a", "spiffe://raind/container/b"], "spiffe policy denied: exactly one URI SAN is required")]
    #[case(&["https://raind/container/a"], "spiffe policy denied: scheme must be spiffe")]
    #[case(&["spiffe://evil/container/a"], "spiffe policy denied: trust domain must be \"raind\"")]
    #[case(&["spiffe://raind/container"], "spiffe policy denied: path must be /<role>/<id>")]
    #[case(&["spiffe://raind/container/a/b"], "spiffe policy denied: path must be /<role>/<id>")]
    #[case(&["spiffe://raind/container/"], "spiffe policy denied: role/id empty")]
    #[case(&["spiffe://raind/container/A_b"], "spiffe policy denied: invalid characters in role/id")]
    #[case(&["spiffe://raind/cli/admin"], "role not allowed")]
    #[case(&["spiffe://raind/droplet/container"], "role not allowed")]
    fn and_for_nothing_else(#[case] uris: &[&str], #[case] message: &str) {
        assert_eq!(judge(uris), Err(message.into()));
    }

    #[test]
    fn what_is_no_request_is_invalid() {
        let key = KeyPair::generate().unwrap();
        let good = request(&[], &key);
        let der = pem::parse(&good).unwrap().into_contents();
        let with_tag = |tag: &str, der: &[u8]| pem::encode(&pem::Pem::new(tag, der));
        let trailing = [&der[..], &[0]].concat();
        for bad in [
            "hello".to_owned(),
            String::new(),
            with_tag("CERTIFICATE", &der),
            with_tag("CERTIFICATE REQUEST", &[0, 0, 0]),
            with_tag("CERTIFICATE REQUEST", &trailing),
        ] {
            assert_eq!(
                SigningRequest::parse(bad.as_bytes()).unwrap_err(),
                SignError::Invalid,
                "{bad}"
            );
        }
        SigningRequest::parse(with_tag("NEW CERTIFICATE REQUEST", &der).as_bytes()).unwrap();
        SigningRequest::parse(&[b"text before\n", good.as_bytes()].concat()).unwrap();
    }

    #[test]
    fn the_requester_must_hold_the_key() {
        let key = KeyPair::generate().unwrap();
        let mut der = pem::parse(request(&["spiffe://raind/container/a"], &key))
            .unwrap()
            .into_contents();
        let last = der.len() - 1;
        der[last] ^= 1;
        let pem = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der));
        let error = SigningRequest::parse(pem.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "csr signture invalid");
    }

    #[test]
    fn strong_keys_are_taken() {
        for kind in [&rcgen::PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let pem = request(&["spiffe://raind/container/a"], &KeyPair::generate_for(kind).unwrap());
            SigningRequest::parse(pem.as_bytes()).unwrap().container_id().unwrap();
        }
        let rsa = openssl_request(&["-newkey", "rsa:3072"]);
        SigningRequest::parse(&rsa).unwrap().container_id().unwrap();
    }

    #[test]
    fn weak_and_odd_keys_are_not() {
        let rsa = openssl_request(&["-newkey", "rsa:2048"]);
        assert_eq!(SigningRequest::parse(&rsa).unwrap().container_id(), Err(SignError::Key));
        let curve = openssl_request(&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp521r1"]);
        assert_eq!(SigningRequest::parse(&curve).unwrap_err(), SignError::Key);
    }
}
