//! Image references: the one parser of `[registry[:port]/]path[:tag][@sha256:hex]` (`docs/spec/api.md` 4.5, the OCI
//! distribution specification's grammar for names and tags). Pure.

use std::fmt;

use super::ImageError;
use super::digest::Digest;

/// The default registry.
pub(super) const HUB: &str = "registry-1.docker.io";
/// Its aliases.
const HUB_ALIASES: [&str; 3] = ["docker.io", "index.docker.io", HUB];
/// Longest repository name that registries accept.
const MAX_REPOSITORY: usize = 255;
/// Longest tag.
const MAX_TAG: usize = 128;

/// A reference to an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    registry: String,
    /// Path within the registry.
    path: String,
    /// The repository as stored and displayed.
    repository: String,
    /// Tag or digest.
    reference: String,
}

impl ImageRef {
    /// Parses a reference. If it has both a tag and a digest, the digest wins.
    pub fn parse(given: &str) -> Result<Self, ImageError> {
        let invalid = || ImageError::InvalidReference(given.to_owned());
        let (rest, digest) = match given.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|_| invalid())?)),
            None => (given, None),
        };
        let (name, tag) = split_tag(rest);
        if name.is_empty() {
            return Err(ImageError::EmptyRepository);
        }
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(invalid());
        }
        let (registry, path) = split_registry(name);
        if registry.is_some_and(|r| !is_registry(r)) || !is_path(path) {
            return Err(invalid());
        }
        let registry = registry.filter(|r| registry_name(r) != HUB);
        let (path, repository) = match registry {
            Some(registry) => (path.to_owned(), format!("{registry}/{path}")),
            None if path.contains('/') => (path.to_owned(), path.to_owned()),
            None => (format!("library/{path}"), format!("library/{path}")),
        };
        if repository.len() > MAX_REPOSITORY {
            return Err(invalid());
        }
        Ok(Self {
            registry: registry.unwrap_or(HUB).to_owned(),
            path,
            repository,
            reference: digest.map_or_else(|| tag.unwrap_or("latest").to_owned(), |d| d.to_string()),
        })
    }

    /// The repository as stored and displayed. Always contains a `/`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, or `sha256:…`.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// `<repository>:<reference>`: the id of the image's row.
    pub fn canonical(&self) -> String {
        self.to_string()
    }

    /// `host[:port]` of the registry.
    pub(super) fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's name within the registry.
    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.reference)
    }
}

/// The canonical name of a registry with several names.
pub(super) fn registry_name(host: &str) -> &str {
    if HUB_ALIASES.contains(&host) { HUB } else { host }
}

/// A `:` before the last `/` belongs to a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => (Some(first), rest),
        _ => (None, name),
    }
}

/// `host[:port]`; the host is a DNS name, an IPv4 address or an IPv6 address in brackets.
pub(super) fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(is_label),
    };
    host_ok && port.is_none_or(|p| p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok_and(|p| p > 0))
}

fn is_label(label: &str) -> bool {
    let alphanumeric_at = |at: Option<u8>| at.is_some_and(|b| b.is_ascii_alphanumeric());
    label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && alphanumeric_at(label.bytes().next())
        && alphanumeric_at(label.bytes().last())
}

/// Segments of lower-case letters and digits with separators `.`, `_`, `__` or any number of `-` between them.
fn is_path(path: &str) -> bool {
    path.split('/').all(|segment| {
        let separators = segment.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let edges_ok = !segment.is_empty() && !segment.starts_with(SEPARATORS) && !segment.ends_with(SEPARATORS);
        edges_ok
            && separators
                .into_iter()
                .all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
    })
}

const SEPARATORS: [char; 3] = ['.', '_', '-'];

fn is_tag(tag: &str) -> bool {
    tag.len() <= MAX_TAG
        && !tag.is_empty()
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[rstest::rstest]
    #[case("ubuntu", HUB, "library/ubuntu", "latest")]
    #[case("ubuntu:24.04", HUB, "library/ubuntu", "24.04")]
    #[case("library/ubuntu:24.04", HUB, "library/ubuntu", "24.04")]
    #[case("me/app", HUB, "me/app", "latest")]
    #[case("docker.io/nginx", HUB, "library/nginx", "latest")]
    #[case("index.docker.io/library/nginx:1", HUB, "library/nginx", "1")]
    #[case("registry-1.docker.io/a/b/c:1", HUB, "a/b/c", "1")]
    #[case("registry.k8s.io/pause:3.9", "registry.k8s.io", "registry.k8s.io/pause", "3.9")]
    #[case("localhost:5000/app:1", "localhost:5000", "localhost:5000/app", "1")]
    #[case("localhost/app", "localhost", "localhost/app", "latest")]
    #[case("localhost:5000", HUB, "library/localhost", "5000")]
    #[case("[::1]:5000/app", "[::1]:5000", "[::1]:5000/app", "latest")]
    #[case(
        "10.0.0.1:5000/a_b/c__d/e--f.g:V1.0-rc_1",
        "10.0.0.1:5000",
        "10.0.0.1:5000/a_b/c__d/e--f.g",
        "V1.0-rc_1"
    )]
    fn what_is_meant(#[case] given: &str, #[case] registry: &str, #[case] repository: &str, #[case] reference: &str) {
        let parsed = ImageRef::parse(given).unwrap();
        assert_eq!(
            (parsed.registry(), parsed.repository(), parsed.reference()),
            (registry, repository, reference)
        );
        assert!(parsed.repository().contains('/'));
        assert_eq!(parsed.canonical(), format!("{repository}:{reference}"));
    }

    #[test]
    fn a_digest_wins_over_the_tag() {
        for given in [format!("nginx@sha256:{HEX}"), format!("nginx:1.2@sha256:{HEX}")] {
            let parsed = ImageRef::parse(&given).unwrap();
            assert_eq!(parsed.canonical(), format!("library/nginx:sha256:{HEX}"));
            assert_eq!(parsed.path(), "library/nginx");
        }
    }

    #[test]
    fn the_stored_form_reads_as_itself() {
        for given in ["ubuntu", "localhost:5000/app:1", "a.b/c/d"] {
            let parsed = ImageRef::parse(given).unwrap();
            assert_eq!(ImageRef::parse(&parsed.canonical()).unwrap(), parsed);
        }
    }

    #[rstest::rstest]
    #[case("../../x@y")]
    #[case("x@..")]
    #[case("..")]
    #[case("a/../b")]
    #[case("/etc/passwd")]
    #[case("a//b")]
    #[case("a/")]
    #[case("docker.io/")]
    #[case("Ubuntu")]
    #[case("a b")]
    #[case(" ")]
    #[case("a:")]
    #[case("a:-x")]
    #[case("a:x/../y")]
    #[case("a\n")]
    #[case("a..b")]
    #[case("a._b")]
    #[case("a___b")]
    #[case("-a/b")]
    #[case("localhost:0/a")]
    #[case("localhost:65536/a")]
    #[case("localhost:+1/a")]
    #[case("host:5000:1/a")]
    #[case("a.-b/c")]
    #[case("user@host.io/app")]
    #[case("host.io?x/app")]
    #[case("[::1/app")]
    #[case("a@sha256:00")]
    #[case("a@sha512:00")]
    #[case("ä")]
    fn what_is_refused(#[case] given: &str) {
        let error = ImageRef::parse(given).unwrap_err();
        assert_eq!(error.to_string(), format!("invalid image reference: {given}"));
    }

    #[test]
    fn limits() {
        ImageRef::parse(&format!("a:{}", "t".repeat(128))).unwrap();
        ImageRef::parse(&format!("a:{}", "t".repeat(129))).unwrap_err();
        ImageRef::parse(&format!("a/{}", "n".repeat(253))).unwrap();
        ImageRef::parse(&format!("a/{}", "n".repeat(254))).unwrap_err();
    }

    #[test]
    fn no_name_at_all() {
        for given in ["", ":latest"] {
            assert_eq!(
                ImageRef::parse(given).unwrap_err().to_string(),
                "empty repository: name an image, as in alpine:3.20 or registry.example:5000/team/app:1.0"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics_or_leaves_the_grammar(given in "[a-z0-9./:@_\\-A-Z ]{0,40}") {
            if let Ok(parsed) = ImageRef::parse(&given) {
                assert!(!parsed.repository().contains("..") && parsed.repository().contains('/'));
            }
        }
    }
}
