//! What was shown to a source, and what must not be seen of it.

use std::sync::{Mutex, OnceLock, PoisonError};

use reqwest::Url;
use reqwest::header::HeaderValue;
use tokio::sync::OnceCell;

use super::credentials::Found;
use crate::image::reference::HUB;

/// What stands in place of a secret.
const HIDDEN: &str = "(hidden)";

/// Authentication state of a source.
#[derive(Default)]
pub(super) struct Auth {
    /// Value of `Authorization`. Locked while a new one is made: whoever comes then waits for it.
    pub(super) current: tokio::sync::Mutex<Option<HeaderValue>>,
    pub(super) found: OnceCell<Option<Found>>,
    /// Everything that must not be seen, should the source send it back.
    secrets: Mutex<Vec<String>>,
    /// Where the credential that was sent stands.
    pub(super) origin: OnceLock<String>,
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

    /// As it is, and as it would stand in a form or within a JSON document.
    pub(super) fn keep_secret(&self, secret: &str) {
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

/// Docker Hub as users name it.
pub(super) fn name(host: &str) -> &str {
    if host == HUB { "docker.io" } else { host }
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
