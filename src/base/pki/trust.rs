//! The TLS side of our own clients, which trust one certificate file (`docs/spec/security.md` 3, porting hint).

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::pair::{parse, parse_certificates, parse_key};

/// Why a client cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file contains no PEM certificate.
    #[error("no certificate in the {0} file")]
    Certificate(&'static str),
    /// A file contains no PEM key.
    #[error("no private key in the key file")]
    Key,
    /// Certificate and key do not form a valid configuration.
    #[error(transparent)]
    Tls(#[from] Error),
}

/// A TLS 1.3 configuration that trusts only the certificates of `trusted` and presents a client certificate; all in PEM.
pub fn client_config(trusted: &[u8], certificate: &[u8], key: &[u8]) -> Result<ClientConfig, TrustError> {
    let trusted = parse_certificates(trusted).ok_or(TrustError::Certificate("CA"))?;
    let chain = parse_certificates(certificate).ok_or(TrustError::Certificate("client certificate"))?;
    let key = parse_key(key).ok_or(TrustError::Key)?;
    let provider = Arc::new(ring::default_provider());
    let verifier = PinnedOrIssued::new(trusted, &provider)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
    Ok(config)
}

/// Accepts the trusted certificate itself if its validity and names are right, and applies the usual rules to anything else.
/// Earlier installations have a server certificate that is also a CA, which the usual rules refuse.
#[derive(Debug)]
struct PinnedOrIssued {
    trusted: Vec<CertificateDer<'static>>,
    issued: Arc<WebPkiServerVerifier>,
}

impl PinnedOrIssued {
    fn new(trusted: Vec<CertificateDer<'static>>, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in &trusted {
            roots.add(certificate.clone())?;
        }
        let issued = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        Ok(Self { trusted, issued })
    }
}

impl ServerCertVerifier for PinnedOrIssued {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.trusted.iter().any(|trusted| trusted == end_entity) {
            return self
                .issued
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        }
        let validity = parse(end_entity)
            .ok_or(CertificateError::BadEncoding)?
            .validity()
            .clone();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < validity.not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > validity.not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        webpki::EndEntityCert::try_from(end_entity)
            .and_then(|certificate| certificate.verify_is_valid_for_subject_name(server_name))
            .map_err(|_| CertificateError::NotValidForName)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.issued.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.issued.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.issued.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd};
    use rstest::rstest;
    use std::time::Duration;

    const YEAR: u64 = 365 * 24 * 60 * 60;

    fn params(is_ca: IsCa) -> CertificateParams {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.is_ca = is_ca;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2025, 1, 1);
        params
    }

    fn self_signed(is_ca: IsCa) -> CertificateDer<'static> {
        params(is_ca)
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .der()
            .clone()
    }

    fn verify(
        trusted: &CertificateDer<'static>,
        shown: &CertificateDer<'_>,
        name: &'static str,
        now: u64,
    ) -> Result<(), Error> {
        let provider = Arc::new(ring::default_provider());
        let verifier = PinnedOrIssued::new(vec![trusted.clone()], &provider).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let name = ServerName::try_from(name).unwrap();
        verifier.verify_server_cert(shown, &[], &name, &[], now).map(drop)
    }

    const IN_2022: u64 = 52 * YEAR;

    #[rstest]
    fn the_trusted_certificate_itself_is_accepted_ca_or_not(
        #[values(IsCa::ExplicitNoCa, IsCa::Ca(BasicConstraints::Unconstrained))] is_ca: IsCa,
    ) {
        let own = self_signed(is_ca);
        for name in ["localhost", "127.0.0.1"] {
            verify(&own, &own, name, IN_2022).unwrap();
        }
        for name in ["127.0.0.2", "example.org"] {
            let wrong = verify(&own, &own, name, IN_2022).unwrap_err();
            assert_eq!(wrong, CertificateError::NotValidForName.into());
        }
        let over = verify(&own, &own, "localhost", 56 * YEAR).unwrap_err();
        assert_eq!(over, CertificateError::Expired.into());
        let early = verify(&own, &own, "localhost", 49 * YEAR).unwrap_err();
        assert_eq!(early, CertificateError::NotValidYet.into());
    }

    #[test]
    fn another_certificate_of_the_same_name_is_not() {
        let own = self_signed(IsCa::ExplicitNoCa);
        let other = self_signed(IsCa::ExplicitNoCa);
        verify(&own, &other, "localhost", IN_2022).unwrap_err();
    }

    #[test]
    fn one_issued_by_a_trusted_ca_is_accepted() {
        let key = KeyPair::generate().unwrap();
        let authority = params(IsCa::Ca(BasicConstraints::Unconstrained))
            .self_signed(&key)
            .unwrap();
        let issuer = Issuer::from_ca_cert_der(authority.der(), key).unwrap();
        let leaf = params(IsCa::ExplicitNoCa)
            .signed_by(&KeyPair::generate().unwrap(), &issuer)
            .unwrap();
        verify(authority.der(), leaf.der(), "localhost", IN_2022).unwrap();
        verify(authority.der(), leaf.der(), "127.0.0.2", IN_2022).unwrap_err();
    }

    #[test]
    fn what_is_no_pem_is_named() {
        let own = pem::encode(&pem::Pem::new("CERTIFICATE", self_signed(IsCa::ExplicitNoCa).to_vec()));
        let refused = |ca: &str, certificate: &str| {
            let config = client_config(ca.as_bytes(), certificate.as_bytes(), b"garbage");
            config.err().unwrap().to_string()
        };
        assert_eq!(refused("garbage", &own), "no certificate in the CA file");
        assert_eq!(
            refused(&own, "garbage"),
            "no certificate in the client certificate file"
        );
        assert_eq!(refused(&own, &own), "no private key in the key file");
    }
}
