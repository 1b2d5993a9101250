//! How a [`Source`] authenticates.
//!
//! ```text
//! no header -- 401 --> challenge: Basic            -> user and password
//!      ^                          Bearer           -> token service: anonymous | Basic | refresh token
//!      +------------- 401 (a token has expired) ------------+
//! ```
//! Credentials are looked up at the first 401, so a source that does not ask never gets them. They are sent only to
//! the source's own host and to its token service: over https, or on the same host if the source uses plain HTTP.

use std::sync::{Mutex, OnceLock, PoisonError};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{RequestBuilder, Url};
use tokio::sync::OnceCell;

use super::challenge::{Challenge, challenge, token_of};
use super::credentials::{Credential, Found, Secret};
use super::{Source, credentials};
use crate::image::ImageError;
use crate::image::reference::HUB;

const MAX_TOKEN_REPLY: u64 = 64 << 10;
/// Replacement for a secret.
const HIDDEN: &str = "(hidden)";

/// Authentication state of a source.
#[derive(Default)]
pub(super) struct Auth {
    /// Value of `Authorization`. Locked while it is renewed, so that others wait for the new one.
    current: tokio::sync::Mutex<Option<HeaderValue>>,
    found: OnceCell<Option<Found>>,
    /// Secrets to remove from everything that the source sends back.
    secrets: Mutex<Vec<String>>,
    /// Origin of the credential that was sent.
    origin: OnceLock<String>,
}

impl Auth {
    pub(super) async fn shown(&self) -> Option<HeaderValue> {
        self.current.lock().await.clone()
    }

    /// `text` with all secrets removed.
    pub(super) fn scrub(&self, text: &str) -> String {
        let secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        secrets
            .iter()
            .fold(text.to_owned(), |text, secret| text.replace(secret, HIDDEN))
    }

    /// Remembers the secret, and its form-encoded and JSON-encoded versions.
    fn keep_secret(&self, secret: &str) {
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        let json = serde_json::Value::from(secret).to_string();
        for form in [secret, &encoded(secret), json.trim_matches('"')] {
            if !form.is_empty() && !secrets.iter().any(|known| known == form) {
                secrets.push(form.to_owned());
            }
        }
        // Longest first: a short secret may be part of a longer one.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    }

    /// Tells the user how to resolve a refusal.
    pub(super) fn hint(&self, host: &str) -> String {
        match (self.origin.get(), self.found.get()) {
            (Some(origin), _) => format!(" (with the credentials of {origin})"),
            (None, Some(None)) => format!(
                " (there are no credentials for it; docker login {} makes them)",
                name(host)
            ),
            (None, _) => String::new(),
        }
    }
}

/// Text encoded as in a form or a query.
fn encoded(text: &str) -> String {
    let url = Url::parse_with_params("http://localhost/", [("", text)]);
    url.ok()
        .and_then(|url| Some(url.query()?.trim_start_matches('=').to_owned()))
        .unwrap_or_default()
}

/// The name of the registry as users know it.
fn name(host: &str) -> &str {
    if host == HUB { "docker.io" } else { host }
}

impl Source {
    /// The value of `Authorization` for the challenge of a 401. `refused` is the value that was rejected; if another
    /// task has renewed it meanwhile, its value is used.
    pub(super) async fn authenticate(
        &self,
        refused: Option<HeaderValue>,
        headers: &HeaderMap,
    ) -> Result<HeaderValue, ImageError> {
        let mut current = self.auth.current.lock().await;
        if let Some(value) = current.as_ref().filter(|value| Some(*value) != refused.as_ref()) {
            return Ok(value.clone());
        }
        let scope = format!("repository:{}:pull", self.path);
        let challenge = challenge(headers, &scope).map_err(|e| self.failed(e))?;
        let credential = self.credential().await?;
        let value = match (challenge, credential) {
            (_, Some(Credential::Bearer(token))) => self.header("Bearer", token)?,
            (Challenge::Basic, Some(Credential::Password { user, password })) => {
                self.header("Basic", &Credential::basic(user, password))?
            }
            (Challenge::Basic, _) => {
                let host = name(&self.endpoint.host);
                return Err(self.failed(format!(
                    "it wants credentials (Basic), and there are none for it in {}; docker login {host} makes them",
                    self.files()
                )));
            }
            (Challenge::Bearer { realm, service, scope }, credential) => {
                let token = self.token(realm, service, &scope, credential).await?;
                let value = self.header("Bearer", &token)?;
                *current = Some(value.clone());
                return Ok(value);
            }
        };
        if refused.as_ref() == Some(&value) {
            return Err(self.failed(format!("it refuses us (401){}", self.auth.hint(&self.endpoint.host))));
        }
        *current = Some(value.clone());
        Ok(value)
    }

    async fn credential(&self) -> Result<Option<&Credential>, ImageError> {
        let find = async || {
            let found = credentials::find(self.credential_files(), &self.endpoint.host, &self.path).await;
            found.map_err(|e| self.failed(e))
        };
        let found = self.auth.found.get_or_try_init(find).await?;
        let Some(Found { credential, origin }) = found else {
            return Ok(None);
        };
        let _ = self.auth.origin.set(origin.clone());
        match credential {
            Credential::Password { user, password } => {
                self.auth.keep_secret(&password.0);
                self.auth.keep_secret(&Credential::basic(user, password).0);
            }
            Credential::Identity(token) | Credential::Bearer(token) => self.auth.keep_secret(&token.0),
        }
        Ok(Some(credential))
    }

    /// Requests a token from the token service.
    async fn token(
        &self,
        realm: Url,
        service: Option<String>,
        scope: &str,
        credential: Option<&Credential>,
    ) -> Result<Secret, ImageError> {
        let place = realm.host_str().unwrap_or_default().to_owned();
        let https = realm.scheme() == "https";
        if !https && self.endpoint.tls {
            return Err(self.failed(format!("its token service {realm} is not https")));
        }
        // Plain HTTP can be tampered with: an attacker could redirect the credential to any host.
        if credential.is_some() && !self.endpoint.tls && !self.is_at(&realm) {
            return Err(self.failed(format!(
                "it speaks plain HTTP and names a token service on another host ({place}); credentials are not sent there"
            )));
        }
        let request = self.token_request(realm, service, scope, credential).await?;
        let response = self.send(&format!("token service {place}"), Some(request)).await?;
        if !response.status().is_success() {
            return Err(self
                .refusal(&format!("it gives no token for {}", self.path), response)
                .await);
        }
        let reply = self.small_body(response, MAX_TOKEN_REPLY).await?;
        let token = token_of(&reply).map_err(|e| self.failed(e))?;
        Ok(Secret(token))
    }

    async fn token_request(
        &self,
        mut realm: Url,
        service: Option<String>,
        scope: &str,
        credential: Option<&Credential>,
    ) -> Result<RequestBuilder, ImageError> {
        let pair = self.pair().await?;
        let mut asked = vec![("scope", scope)];
        asked.extend(service.as_deref().map(|service| ("service", service)));
        if let Some(Credential::Identity(token)) = credential {
            asked.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "condenser"),
                ("refresh_token", &token.0),
            ]);
            let mut form = realm.clone();
            form.query_pairs_mut().clear().extend_pairs(asked);
            // Use the client that follows no redirects: a redirect would resend the body.
            let request = pair
                .stays
                .post(realm)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
            return Ok(request.body(form.query().unwrap_or_default().to_owned()));
        }
        asked.reverse();
        realm.query_pairs_mut().extend_pairs(asked);
        let request = pair.follows.get(realm);
        Ok(match credential {
            Some(Credential::Password { user, password }) => request.basic_auth(user, Some(&password.0)),
            _ => request,
        })
    }

    /// Whether the URL has our host, with any port.
    fn is_at(&self, url: &Url) -> bool {
        let own = Url::parse(&format!("http://{}", self.endpoint.host));
        own.is_ok_and(|own| own.host() == url.host())
    }

    fn header(&self, scheme: &str, secret: &Secret) -> Result<HeaderValue, ImageError> {
        self.auth.keep_secret(&secret.0);
        let mut value = HeaderValue::from_str(&format!("{scheme} {}", secret.0)).map_err(|_| {
            self.failed(format!(
                "the {scheme} credential has characters that a header cannot have"
            ))
        })?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn files(&self) -> String {
        let files = self.credential_files().iter().map(|path| path.display().to_string());
        files.collect::<Vec<_>>().join(" or ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_known_in_whatever_dress() {
        let auth = Auth::default();
        auth.keep_secret("hunter\"2/=+");
        for said in [
            "hunter\"2/=+",
            "refresh_token=hunter%222%2F%3D%2B&x",
            r#"{"got": "hunter\"2/=+"}"#,
        ] {
            let shown = auth.scrub(said);
            assert!(shown.contains(HIDDEN) && !shown.contains("hunter"), "{shown}");
        }
    }
}
