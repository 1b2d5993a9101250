//! How a [`Source`] is told who we are.
//!
//! ```text
//! nothing shown -- 401 --> challenge: Basic            -> user and password
//!      ^                              Bearer           -> token service: anonymous | Basic | refresh token
//!      +------------- 401 (a token has expired) ------------+
//! ```
//! Credentials are looked up at the first 401, so nobody gets them who does not ask, and sent only to the source's own
//! host and to the token service that it names: over https, or on the same host when the source speaks plain HTTP.

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{RequestBuilder, Url};

use super::auth::name;
use super::challenge::{Challenge, challenge, token_of};
use super::credential::{Credential, Secret};
use super::credentials::Found;
use super::{Source, credentials};
use crate::image::ImageError;

const MAX_TOKEN_REPLY: u64 = 64 << 10;

impl Source {
    /// The value of `Authorization` that answers the challenge of a 401. `refused` is what was shown then; if somebody
    /// else has renewed it meanwhile, theirs is good.
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
                return Err(self.denied(format!(
                    "it wants credentials (Basic), and there are none for it in {}; docker login {host} makes them",
                    self.files()
                )));
            }
            (Challenge::Bearer { realm, service, scope }, credential) => {
                let scope = self.scopes.as_ref().unwrap_or(&scope);
                let token = self.token(realm, service, scope, credential).await?;
                let value = self.header("Bearer", &token)?;
                *current = Some(value.clone());
                return Ok(value);
            }
        };
        if refused.as_ref() == Some(&value) {
            return Err(self.denied(format!("it refuses us (401){}", self.auth.hint(&self.endpoint.host))));
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

    /// Asks the token service.
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
        // Whoever can change what a plain registry says could have us send it anywhere.
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
        let service = service.as_deref().map(|service| ("service", service));
        if let Some(Credential::Identity(token)) = credential {
            let mut asked = vec![("scope", scope)];
            asked.extend(service);
            asked.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "condenser"),
                ("refresh_token", &token.0),
            ]);
            let mut form = realm.clone();
            form.query_pairs_mut().clear().extend_pairs(asked);
            // With the client that follows no redirect: it would take the body along.
            let request = pair
                .stays
                .post(realm)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
            return Ok(request.body(form.query().unwrap_or_default().to_owned()));
        }
        // Several scopes are one parameter each here, and one text in a form (RFC 6749, 3.3).
        let asked = service
            .into_iter()
            .chain(scope.split(' ').map(|scope| ("scope", scope)));
        realm.query_pairs_mut().extend_pairs(asked);
        let request = pair.follows.get(realm);
        Ok(match credential {
            Some(Credential::Password { user, password }) => request.basic_auth(user, Some(&password.0)),
            _ => request,
        })
    }

    /// Whether the URL's host is ours, on whatever port.
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
