//! What can be shown to a registry, and that it is never shown to anybody else.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(super) struct Secret(pub(super) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What we can show to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Credential {
    Password {
        user: String,
        password: Secret,
    },
    /// A refresh token of the registry's token service.
    Identity(Secret),
    /// A token for the registry itself.
    Bearer(Secret),
}

impl Credential {
    /// The value of an `Authorization: Basic`, without the word.
    pub(super) fn basic(user: &str, password: &Secret) -> Secret {
        Secret(STANDARD.encode(format!("{user}:{}", password.0)))
    }
}
