//! Credentials from docker's `config.json` and the `auth.json` of containers(5). They are read for every pull, so
//! that a `docker login` takes effect at once.
//!
//! ```text
//! for each file: credHelpers[host] or credsStore -> the helper program; else auths[the longest matching key]
//! ```
//! Secrets are a [`Secret`], which cannot be printed. Errors contain the file name and the position, never the
//! content.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::credential::{Credential, Secret};
use super::helper;
use crate::image::reference::{HUB, registry_name};

/// Maximum size of a file, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Docker Hub's key in files and for helper programs.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// A credential and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub credential: Credential,
    /// Name of the file or of the helper program.
    pub origin: String,
}

/// Credentials that came with a request. They are used for that request alone, and cannot be printed.
#[derive(Clone)]
pub struct Credentials(Credential);

impl Credentials {
    /// User and password.
    pub fn password(user: String, password: String) -> Self {
        let password = Secret(password);
        Self(Credential::Password { user, password })
    }

    /// A token for the registry itself (RFC 6750).
    pub fn token(token: String) -> Self {
        Self(Credential::Bearer(Secret(token)))
    }

    pub(super) fn found(&self) -> Found {
        Found {
            credential: self.0.clone(),
            origin: "the request".into(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(credentials)")
    }
}

/// The credential for `path` at `host`, from the first file that has one. The error describes what is wrong with a
/// file or a helper program.
pub(super) async fn find(files: &[PathBuf], host: &str, path: &str) -> Result<Option<Found>, String> {
    for file in files {
        let reading = file.clone();
        let read = tokio::task::spawn_blocking(move || read(&reading)).await;
        let Some(text) = read.map_err(|e| e.to_string()).flatten()? else {
            continue;
        };
        let known = Known::parse(&text).map_err(|e| format!("the credentials file {} {e}", file.display()))?;
        if let Some(program) = known.helper(host) {
            let name = if host == HUB { HUB_KEY } else { host };
            if let Some(credential) = helper::ask(program, name).await? {
                let origin = format!("docker-credential-{program}");
                return Ok(Some(Found { credential, origin }));
            }
        }
        let entry = known.entry(host, path);
        let credential = entry.map(|(key, entry)| {
            let invalid = |e| format!("the credentials file {} has an auth for {key} that {e}", file.display());
            entry.credential().map_err(invalid)
        });
        if let Some(credential) = credential.transpose()?.flatten() {
            let origin = file.display().to_string();
            return Ok(Some(Found { credential, origin }));
        }
    }
    Ok(None)
}

/// The content of a file, if it exists.
#[expect(clippy::disallowed_methods, reason = "the error names the file already")]
fn read(path: &Path) -> Result<Option<String>, String> {
    let failed = |e: &dyn fmt::Display| format!("the credentials file {} cannot be read: {e}", path.display());
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(&e)),
    };
    // Opening a fifo would wait for a writer.
    if !metadata.is_file() {
        return Err(failed(&"it is not a file"));
    }
    if metadata.permissions().mode() & 0o044 != 0 {
        tracing::warn!(path = %path.display(), "others can read the credentials file; chmod it to 600");
    }
    let file = std::fs::File::open(path).map_err(|e| failed(&e))?;
    let mut text = String::new();
    file.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(|e| failed(&e))?;
    if text.len() as u64 > MAX_FILE {
        return Err(failed(&format!("it is longer than {MAX_FILE} bytes")));
    }
    Ok(Some(text))
}

/// The members of a file that we use.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Known {
    auths: BTreeMap<String, Option<Entry>>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

impl Known {
    fn parse(text: &str) -> Result<Self, String> {
        // The parser's own messages quote the text.
        serde_json::from_str(text).map_err(|e| {
            let kind = if e.is_data() {
                "has a value of the wrong kind"
            } else {
                "is not JSON"
            };
            format!("{kind} at line {}, column {}", e.line(), e.column())
        })
    }

    /// The helper program for the host, if one is configured.
    fn helper(&self, host: &str) -> Option<&str> {
        let own = self.cred_helpers.iter().find(|(key, _)| normal(key) == host);
        let name = own.map(|(_, name)| name).or(self.creds_store.as_ref());
        name.map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The entry for the host, or for the longest matching prefix of the repository name on it.
    fn entry(&self, host: &str, path: &str) -> Option<(&str, &Entry)> {
        let full_name = format!("{host}/{path}");
        let fits = |key: &str| {
            full_name
                .strip_prefix(key)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let entries = self
            .auths
            .iter()
            .filter_map(|(key, entry)| Some((key, entry.as_ref()?)));
        let fitting = entries.filter(|(key, _)| fits(&normal(key)));
        let best = fitting.max_by_key(|(key, _)| normal(key).len());
        best.map(|(key, entry)| (&**key, entry))
    }
}

/// Normalizes a key: `https://host/v1/` and `host` are the same; Docker Hub has several names.
fn normal(key: &str) -> String {
    let key = key
        .split_once("://")
        .map_or(key, |(_, rest)| rest)
        .trim_end_matches('/');
    let key = ["/v1", "/v2"]
        .iter()
        .find_map(|end| key.strip_suffix(end))
        .unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = registry_name(host);
    if path.is_empty() {
        host.to_owned()
    } else {
        format!("{host}/{path}")
    }
}

impl Entry {
    /// `None` for an entry that only records a login.
    fn credential(&self) -> Result<Option<Credential>, String> {
        let non_empty = |secret: &Option<Secret>| secret.clone().filter(|s| !s.0.is_empty());
        if let Some(token) = non_empty(&self.identitytoken) {
            return Ok(Some(Credential::Identity(token)));
        }
        if let Some(token) = non_empty(&self.registrytoken) {
            return Ok(Some(Credential::Bearer(token)));
        }
        if let Some(auth) = non_empty(&self.auth) {
            let invalid = || "is not the base64 of user:password".to_owned();
            let bytes = STANDARD.decode(auth.0.trim()).map_err(|_| invalid())?;
            let text = String::from_utf8(bytes).map_err(|_| invalid())?;
            let (user, password) = text.split_once(':').ok_or_else(invalid)?;
            let password = Secret(password.trim_end_matches('\0').to_owned());
            let user = user.to_owned();
            return Ok(Some(Credential::Password { user, password }));
        }
        let user = self.username.clone().filter(|user| !user.is_empty());
        let pair = user.zip(self.password.clone());
        Ok(pair.map(|(user, password)| Credential::Password { user, password }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Credential {
        Credential::Password {
            user: user.into(),
            password: Secret(password.into()),
        }
    }

    async fn found(text: &str, host: &str, path: &str) -> Result<Option<Credential>, String> {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("config.json");
        std::fs::write(&file, text).unwrap();
        let files = [scratch.path().join("missing.json"), file];
        Ok(find(&files, host, path).await?.map(|found| found.credential))
    }

    #[tokio::test]
    async fn the_longest_key_that_fits_wins() {
        // u:p, team:t, deep:d, hub:h
        let text = r#"{"auths": {
            "reg.io": {"auth": "dTpw"}, "reg.io/team": {"auth": "dGVhbTp0"}, "reg.io/team/deep": {"auth": "ZGVlcDpk"},
            "https://index.docker.io/v1/": {"auth": "aHViOmg="}, "https://other:5000": {"auth": "dTpw"},
            "empty.io": {}, "null.io": null}, "HttpHeaders": {"User-Agent": "x"}}"#;
        for (host, path, wanted) in [
            ("reg.io", "app", Some(password("u", "p"))),
            ("reg.io", "teammate/app", Some(password("u", "p"))),
            ("reg.io", "team/app", Some(password("team", "t"))),
            ("reg.io", "team/deep/er", Some(password("deep", "d"))),
            (HUB, "library/alpine", Some(password("hub", "h"))),
            ("other:5000", "a", Some(password("u", "p"))),
            ("other", "a", None),
            ("eg.io", "a", None),
            ("empty.io", "a", None),
            ("null.io", "a", None),
        ] {
            assert_eq!(found(text, host, path).await.unwrap(), wanted, "{host}/{path}");
        }
    }

    #[tokio::test]
    async fn the_kinds_of_entries() {
        for (entry, wanted) in [
            (r#""auth": "dTpwOnE=""#, password("u", "p:q")),
            (r#""username": "u", "password": "p""#, password("u", "p")),
            (
                r#""auth": "dTpw", "identitytoken": "i""#,
                Credential::Identity(Secret("i".into())),
            ),
            (r#""registrytoken": "r""#, Credential::Bearer(Secret("r".into()))),
        ] {
            let text = format!(r#"{{"auths": {{"docker.io": {{{entry}}}}}}}"#);
            assert_eq!(found(&text, HUB, "library/a").await.unwrap(), Some(wanted));
        }
    }

    #[rstest::rstest]
    #[case(r#"{"auths": "hunter2"}"#, "has a value of the wrong kind at line 1")]
    #[case(r#"{"auths": {"reg.io": {"auth": hunter2"#, "is not JSON at line 1")]
    #[case(
        r#"{"auths": {"reg.io": {"auth": "hunter2!"}}}"#,
        "an auth for reg.io that is not the base64"
    )]
    #[case(
        r#"{"auths": {"reg.io": {"auth": "aHVudGVyMg=="}}}"#,
        "an auth for reg.io that is not the base64"
    )]
    #[case(r#"{"credsStore": "../hunter"}"#, "is not the name of a credential helper")]
    #[tokio::test]
    async fn what_is_wrong_is_told_without_what_is_secret(#[case] text: &str, #[case] reason: &str) {
        let error = found(text, "reg.io", "a").await.unwrap_err();
        assert!(error.contains(reason), "{error}");
        assert!(!error.contains("hunter2") && !error.contains("aHVudGVyMg"), "{error}");
    }

    #[test]
    fn a_secret_cannot_be_printed() {
        assert!(!format!("{:?}", password("u", "hunter2")).contains("hunter2"));
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let scratch = tempfile::tempdir().unwrap();
        let fifo = scratch.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&fifo).unwrap_err().contains("it is not a file"));
        assert_eq!(read(&scratch.path().join("none")).unwrap(), None);
    }
}
