//! Certificate authorities, and what they sign for servers.

use std::sync::Arc;

use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};

use super::machine::Machine;

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// One that nobody trusts yet.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "lab authority");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Makes one and adds it to the CA store of the lab.
    pub fn trusted_by(machine: &Machine) -> Self {
        let authority = Self::new();
        let store = "/etc/ssl/certs/ca-certificates.crt";
        machine.write(store, machine.read(store) + &authority.0.pem());
        authority
    }

    /// A certificate for a server with these names, and its key.
    pub fn issue(&self, names: &[&str]) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap();
        (certificate.signed_by(&key, &self.0).unwrap(), key)
    }
}

/// The certificate of a new authority in PEM, and a server configuration with a certificate of it for `host`.
pub fn authority(host: &str) -> (String, Arc<rustls::ServerConfig>) {
    let authority = Authority::new();
    let (certificate, key) = authority.issue(&[host]);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    (authority.0.pem(), Arc::new(config))
}
