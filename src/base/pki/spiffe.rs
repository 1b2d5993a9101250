//! SPIFFE IDs: who a certificate speaks for (`docs/spec/security.md` 1 and S-01).

use std::fmt;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The trust domain of every ID.
pub const TRUST_DOMAIN: &str = "raind";

/// An identity, `spiffe://raind/<role>/<name>`. Segments are compared as a whole, never as prefixes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SpiffeId {
    /// A user of the management API, by name.
    Cli(String),
    /// A container, by id: may report its own life-cycle events.
    Container(String),
    /// The low-level runtime: may ask for certificates of containers.
    Droplet(String),
}

/// Why this is not a SPIFFE ID of our trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// The subject alternative names contain no URI, or several.
    #[error("exactly one URI SAN is required")]
    UriCount,
    /// Another scheme.
    #[error("scheme must be spiffe")]
    Scheme,
    /// Another trust domain.
    #[error("trust domain must be \"{TRUST_DOMAIN}\"")]
    TrustDomain,
    /// The path does not have two segments.
    #[error("path must be /<role>/<id>")]
    Path,
    /// An empty path segment.
    #[error("role/id empty")]
    Empty,
    /// A character that is not allowed there.
    #[error("invalid characters in role/id")]
    Characters,
    /// A role that does not exist.
    #[error("unknown role {0}")]
    Role(String),
    /// The certificate cannot be parsed.
    #[error("the certificate cannot be parsed")]
    Certificate,
}

impl SpiffeId {
    /// Parses the text of an ID. Names may use the characters that the SPIFFE standard allows.
    pub fn parse(uri: &str) -> Result<Self, SpiffeError> {
        let (role, name) = segments(uri)?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if !name.chars().all(allowed) || name == "." || name == ".." {
            return Err(SpiffeError::Characters);
        }
        let name = name.to_owned();
        match role {
            "cli" => Ok(Self::Cli(name)),
            "container" => Ok(Self::Container(name)),
            "droplet" => Ok(Self::Droplet(name)),
            other => Err(SpiffeError::Role(other.to_owned())),
        }
    }

    /// The ID among the subject alternative names of a certificate.
    pub fn from_uris(uris: &[String]) -> Result<Self, SpiffeError> {
        match uris {
            [uri] => Self::parse(uri),
            _ => Err(SpiffeError::UriCount),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (role, name) = match self {
            Self::Cli(name) => ("cli", name),
            Self::Container(id) => ("container", id),
            Self::Droplet(name) => ("droplet", name),
        };
        write!(f, "spiffe://{TRUST_DOMAIN}/{role}/{name}")
    }
}

/// Role and name of an ID of our trust domain. Neither is empty; their characters are not checked.
pub(super) fn segments(uri: &str) -> Result<(&str, &str), SpiffeError> {
    let rest = uri.strip_prefix("spiffe://").ok_or(SpiffeError::Scheme)?;
    let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    if domain != TRUST_DOMAIN {
        return Err(SpiffeError::TrustDomain);
    }
    let (role, name) = path.split_once('/').ok_or(SpiffeError::Path)?;
    if name.contains('/') {
        return Err(SpiffeError::Path);
    }
    if role.is_empty() || name.is_empty() {
        return Err(SpiffeError::Empty);
    }
    Ok((role, name))
}

/// All URIs among the subject alternative names of a DER certificate, in order.
pub fn uri_names(certificate: &[u8]) -> Result<Vec<String>, SpiffeError> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| SpiffeError::Certificate)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| SpiffeError::Certificate)?;
    Ok(names.map_or_else(Vec::new, |names| uris(&names.value.general_names)))
}

/// The URIs of a list of names.
pub(super) fn uris(names: &[GeneralName<'_>]) -> Vec<String> {
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    names.iter().filter_map(uri).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("spiffe://raind/cli/admin", SpiffeId::Cli("admin".into()))]
    #[case("spiffe://raind/cli/Bob.Smith_2", SpiffeId::Cli("Bob.Smith_2".into()))]
    #[case("spiffe://raind/container/01kg2cnf0ytv", SpiffeId::Container("01kg2cnf0ytv".into()))]
    #[case("spiffe://raind/droplet/container", SpiffeId::Droplet("container".into()))]
    fn an_id_reads_as_it_prints(#[case] text: &str, #[case] id: SpiffeId) {
        assert_eq!(SpiffeId::parse(text), Ok(id.clone()));
        assert_eq!(id.to_string(), text);
    }

    #[rstest]
    #[case("", SpiffeError::Scheme)]
    #[case("https://raind/cli/admin", SpiffeError::Scheme)]
    #[case("SPIFFE://raind/cli/admin", SpiffeError::Scheme)]
    #[case("spiffe://raind.example/cli/admin", SpiffeError::TrustDomain)]
    #[case("spiffe://user@raind/cli/admin", SpiffeError::TrustDomain)]
    #[case("spiffe://raind:1/cli/admin", SpiffeError::TrustDomain)]
    #[case("spiffe:///cli/admin", SpiffeError::TrustDomain)]
    #[case("spiffe://raind", SpiffeError::Path)]
    #[case("spiffe://raind/cli", SpiffeError::Path)]
    #[case("spiffe://raind/cli/a/b", SpiffeError::Path)]
    #[case("spiffe://raind/cli/a/", SpiffeError::Path)]
    #[case("spiffe://raind/cli/", SpiffeError::Empty)]
    #[case("spiffe://raind//admin", SpiffeError::Empty)]
    #[case("spiffe://raind/cli/..", SpiffeError::Characters)]
    #[case("spiffe://raind/cli/a?b", SpiffeError::Characters)]
    #[case("spiffe://raind/cli/a%2fb", SpiffeError::Characters)]
    #[case("spiffe://raind/containerx/a", SpiffeError::Role("containerx".into()))]
    #[case("spiffe://raind/Cli/a", SpiffeError::Role("Cli".into()))]
    fn anything_else_is_nobody(#[case] text: &str, #[case] error: SpiffeError) {
        assert_eq!(SpiffeId::parse(text), Err(error));
    }

    #[test]
    fn one_uri_and_no_other_number() {
        let id = "spiffe://raind/cli/admin".to_owned();
        assert!(SpiffeId::from_uris(std::slice::from_ref(&id)).is_ok());
        assert_eq!(SpiffeId::from_uris(&[]), Err(SpiffeError::UriCount));
        assert_eq!(SpiffeId::from_uris(&[id.clone(), id]), Err(SpiffeError::UriCount));
    }
}
