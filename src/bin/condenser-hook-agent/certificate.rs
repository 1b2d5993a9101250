//! `requestCert`: makes sure that a container has a key and a valid certificate (`docs/spec/runtime.md` 7.4).

use std::path::Path;
use std::time::SystemTime;

use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use serde::Deserialize;

use condenser::base::cause::Cause;
use condenser::base::pki::pair::{Durability, PairFiles, belongs_to, expires_within, parse, unix};
use condenser::base::pki::spiffe::uri_names;
use condenser::base::pki::{RENEWAL, SpiffeId};
use condenser::runtime::dir::{ContainerDir, valid_id};

use crate::error::AgentError;
use crate::options::Options;
use crate::request::post;

#[derive(Deserialize)]
struct State {
    id: String,
}

/// Does nothing if the container's key and certificate are complete, match and do not expire soon. Otherwise requests a
/// new certificate. Writes nothing before the daemon has signed, so a failure keeps the old files.
pub fn ensure(options: &Options, root: &Path, state: &[u8]) -> Result<(), AgentError> {
    let State { id } = serde_json::from_slice(state).map_err(|e| AgentError::Json(e.into()))?;
    if !valid_id(&id) {
        return Err(AgentError::Json(Cause::new(format!("{id:?} is not a container id"))));
    }
    let files = PairFiles::new(&ContainerDir::new(root, &id).cert(), "client");
    let id = SpiffeId::Container(id);
    if is_valid(&files, &id) {
        return Ok(());
    }
    let key = KeyPair::generate()?;
    let request = signing_request(&id, &key)?;
    let headers = [("content-type", "application/pem-certificate-chain")];
    let response = post(options, &headers, request.into_bytes())?;
    if !response.is_success() {
        return Err(AgentError::Certificate(Cause::new(response.error_message())));
    }
    let signed = pem::parse(&response.body).map(|block| CertificateDer::from(block.into_contents()));
    let signed = signed.ok().filter(|certificate| belongs_to(certificate, &key));
    let foreign = || AgentError::Certificate(Cause::new("the answer is not a certificate for our key"));
    let signed = signed.ok_or_else(foreign)?;
    files
        .write(&[signed], &key, Durability::Replaceable)
        .map_err(|e| AgentError::Certificate(e.into()))
}

fn is_valid(files: &PairFiles, id: &SpiffeId) -> bool {
    let (Ok(Some(certificates)), Ok(Some(key))) = (files.read_certificates(), files.read_key()) else {
        return false;
    };
    let certificate = &certificates[0];
    let now = SystemTime::now();
    let has_begun = parse(certificate).is_some_and(|c| c.validity().not_before.timestamp() <= unix(now));
    has_begun
        && !expires_within(certificate, now, RENEWAL)
        && belongs_to(certificate, &key)
        && uri_names(certificate).is_ok_and(|uris| uris == [id.to_string()])
}

fn signing_request(id: &SpiffeId, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "raind-client");
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(id.to_string())?)];
    params.serialize_request(key)?.pem()
}
