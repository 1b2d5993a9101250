//! Registry settings of the operator: mirrors, CA files, plain HTTP. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use crate::image::reference::{is_registry, registry_name};

/// One `[[registry]]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryEntry {
    /// `host[:port]` as references name it; `docker.io` is Docker Hub.
    pub host: String,
    /// Mirrors, asked before the registry, in this order: `[http[s]://]host[:port][/prefix]`; TLS without a scheme.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// PEM file with CA certificates that are trusted in addition to the system's, for the registry and its mirrors.
    pub ca: Option<PathBuf>,
    /// Whether to use plain HTTP for the registry itself.
    #[serde(default)]
    pub insecure: bool,
}

/// All `[[registry]]` tables of one configuration layer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct RegistryEntries(pub Vec<RegistryEntry>);

/// The command line form: inline TOML tables, separated by commas.
impl FromStr for RegistryEntries {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct File {
            registry: RegistryEntries,
        }
        let file: File = toml::from_str(&format!("registry = [{text}]")).map_err(|e| e.message().to_owned())?;
        Ok(file.registry)
    }
}

/// Timeouts for registries. The defaults suit the Internet; tests use others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Limit for name resolution, TCP and TLS together.
    pub connect: Duration,
    /// Longest silence within an answer. There is no limit for a whole layer: a large one on a slow line is fine.
    pub idle: Duration,
    /// Pause before the second attempt of a request; it triples with each further one.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            pause: Duration::from_millis(200),
        }
    }
}

/// The validated settings of all registries. A registry without settings is reached over TLS at its own host.
#[derive(Debug, Clone, Default)]
pub struct Registries(BTreeMap<String, Entry>);

#[derive(Debug, Clone, Default)]
struct Entry {
    mirrors: Vec<RegistryEndpoint>,
    ca: Option<PathBuf>,
    insecure: bool,
}

/// One endpoint: a registry or a mirror of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RegistryEndpoint {
    /// `host[:port]`.
    pub host: String,
    pub tls: bool,
    /// Prefix of the repository name, with a trailing `/`, or empty.
    pub prefix: String,
    /// PEM files with additional CA certificates.
    pub ca: Vec<PathBuf>,
}

impl Registries {
    /// Validates the configuration. `insecure` lists registries in plain HTTP. The error quotes the value.
    pub fn new(entries: RegistryEntries, insecure: &[String]) -> Result<Self, String> {
        let mut all = BTreeMap::<String, Entry>::new();
        for RegistryEntry {
            host,
            mirrors,
            ca,
            insecure,
        } in entries.0
        {
            if !is_registry(&host) {
                return Err(format!("{host:?} is not host[:port] of a registry"));
            }
            if let Some(path) = ca.as_ref().filter(|path| !path.is_absolute()) {
                return Err(format!("the ca {} of {host} is not an absolute path", path.display()));
            }
            let mirrors = mirrors.iter().map(|text| mirror(text)).collect::<Result<_, _>>()?;
            if all
                .insert(registry_name(&host).to_owned(), Entry { mirrors, ca, insecure })
                .is_some()
            {
                return Err(format!("{host} is described twice"));
            }
        }
        for host in insecure {
            all.entry(registry_name(host).to_owned()).or_default().insecure = true;
        }
        Ok(Self(all))
    }

    /// Where to ask for images of `registry`: its mirrors in order, and itself.
    pub(super) fn endpoints(&self, registry: &str) -> (Vec<RegistryEndpoint>, RegistryEndpoint) {
        let entry = self.0.get(registry);
        let itself = RegistryEndpoint {
            host: registry.to_owned(),
            tls: !entry.is_some_and(|e| e.insecure),
            prefix: String::new(),
            ca: Vec::new(),
        };
        let with_ca = |mut endpoint: RegistryEndpoint| {
            let own = self.0.get(&endpoint.host).filter(|_| endpoint.host != registry);
            let files = [entry, own].into_iter().flatten().filter_map(|e| e.ca.clone());
            endpoint.ca.extend(files);
            endpoint
        };
        let mirrors = entry.map(|e| &e.mirrors[..]).unwrap_or_default();
        (mirrors.iter().cloned().map(with_ca).collect(), with_ca(itself))
    }
}

fn mirror(text: &str) -> Result<RegistryEndpoint, String> {
    let invalid = || format!("the mirror {text:?} is not [http[s]://]host[:port][/prefix]");
    let (tls, rest) = match text.split_once("://") {
        Some(("https", rest)) => (true, rest),
        Some(("http", rest)) => (false, rest),
        Some(_) => return Err(invalid()),
        None => (true, text),
    };
    let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_end_matches('/');
    // Refuse a mirror that a URL parser would rewrite.
    let url = Url::parse(&format!("https://{rest}")).map_err(|_| invalid())?;
    if !is_registry(host) || url.path().trim_matches('/') != prefix || url.query().or(url.fragment()).is_some() {
        return Err(invalid());
    }
    let prefix = if prefix.is_empty() {
        String::new()
    } else {
        format!("{prefix}/")
    };
    Ok(RegistryEndpoint {
        host: host.to_owned(),
        tls,
        prefix,
        ca: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(text: &str, insecure: &[&str]) -> Result<Registries, String> {
        let insecure: Vec<String> = insecure.iter().map(|s| (*s).to_owned()).collect();
        Registries::new(text.parse()?, &insecure)
    }

    fn urls(registries: &Registries, registry: &str) -> Vec<String> {
        let (mirrors, itself) = registries.endpoints(registry);
        let endpoints = mirrors.into_iter().chain([itself]);
        let scheme = |tls| if tls { "https" } else { "http" };
        endpoints
            .map(|e| format!("{}://{}/{} {:?}", scheme(e.tls), e.host, e.prefix, e.ca))
            .collect()
    }

    #[test]
    fn mirrors_come_first_and_inherit_the_ca() {
        let text = r#"{host = "docker.io", mirrors = ["https://m.example:5000", "http://[::1]:80/hub/"], ca = "/a.pem"},
                      {host = "m.example:5000", ca = "/b.pem"}"#;
        let all = registries(text, &["plain:5000"]).unwrap();
        assert_eq!(
            urls(&all, "registry-1.docker.io"),
            [
                r#"https://m.example:5000/ ["/a.pem", "/b.pem"]"#,
                r#"http://[::1]:80/hub/ ["/a.pem"]"#,
                r#"https://registry-1.docker.io/ ["/a.pem"]"#
            ]
        );
        assert_eq!(urls(&all, "m.example:5000"), [r#"https://m.example:5000/ ["/b.pem"]"#]);
        assert_eq!(urls(&all, "plain:5000"), ["http://plain:5000/ []"]);
        assert_eq!(urls(&all, "other"), ["https://other/ []"]);
    }

    #[rstest::rstest]
    #[case(r#"{host = "a/b"}"#, "not host[:port]")]
    #[case(r#"{host = "docker.io"}, {host = "index.docker.io"}"#, "twice")]
    #[case(r#"{host = "a.b", ca = "c.pem"}"#, "not an absolute path")]
    #[case(r#"{host = "a.b", mirrors = ["ftp://m"]}"#, "the mirror \"ftp://m\"")]
    #[case(r#"{host = "a.b", mirrors = ["https://user:secret@m"]}"#, "is not [http[s]")]
    #[case(r#"{host = "a.b", mirrors = ["m/a/../b"]}"#, "is not [http[s]")]
    #[case(r#"{host = "a.b", mirrors = ["m/a?b"]}"#, "is not [http[s]")]
    #[case(r#"{host = "a.b", mirror = "m"}"#, "unknown field `mirror`")]
    #[case(r#"{mirrors = []}"#, "missing field `host`")]
    fn what_cannot_work_is_refused(#[case] text: &str, #[case] reason: &str) {
        let error = registries(text, &[]).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}
