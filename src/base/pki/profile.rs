//! What the certificates of each kind say (`docs/spec/security.md` 3).

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, Error, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};

use super::spiffe::SpiffeId;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const AUTHORITY_VALIDITY: Duration = DAY.saturating_mul(5 * 365);
const CLIENT_VALIDITY: Duration = DAY.saturating_mul(365);

/// A self-signed server certificate for `localhost`, `127.0.0.1` and these addresses. It is not a CA; clients
/// trust this exact certificate.
pub fn server(addresses: &[IpAddr], key: &KeyPair, now: SystemTime) -> Result<Certificate, Error> {
    let mut params = params("raind", now, Duration::from_secs(60 * 60), AUTHORITY_VALIDITY);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = vec![SanType::DnsName(Ia5String::try_from("localhost")?)];
    let addresses = server_addresses(addresses).into_iter().map(SanType::IpAddress);
    params.subject_alt_names.extend(addresses);
    params.self_signed(key)
}

/// The addresses of a server certificate, each once.
pub fn server_addresses(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut all = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    for address in addresses {
        if !all.contains(address) {
            all.push(*address);
        }
    }
    all
}

/// The self-signed CA of all client certificates.
pub fn authority(key: &KeyPair, now: SystemTime) -> Result<Certificate, Error> {
    let mut params = params(
        "raind client issuer",
        now,
        Duration::from_secs(60 * 60),
        AUTHORITY_VALIDITY,
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.self_signed(key)
}

/// A client certificate for a key pair that we made.
pub fn client(
    common_name: &str,
    id: &SpiffeId,
    key: &KeyPair,
    issuer: &Issuer<'_, KeyPair>,
    now: SystemTime,
) -> Result<Certificate, Error> {
    client_params(common_name, id, now)?.signed_by(key, issuer)
}

/// A container's certificate. It takes only the public key (DER `SubjectPublicKeyInfo`) from the request.
pub fn container(
    id: &str,
    public_key: &[u8],
    issuer: &Issuer<'_, KeyPair>,
    now: SystemTime,
) -> Result<Certificate, Error> {
    let key = SubjectPublicKeyInfo::from_der(public_key)?;
    client_params("raind-client", &SpiffeId::Container(id.to_owned()), now)?.signed_by(&key, issuer)
}

fn client_params(common_name: &str, id: &SpiffeId, now: SystemTime) -> Result<CertificateParams, Error> {
    let mut params = params(common_name, now, Duration::from_secs(5 * 60), CLIENT_VALIDITY);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(id.to_string())?)];
    Ok(params)
}

fn params(common_name: &str, now: SystemTime, backdated: Duration, validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(SerialNumber::from_slice(&rand::random::<[u8; 16]>()));
    params.not_before = (now - backdated).into();
    params.not_after = (now + validity).into();
    params
}
