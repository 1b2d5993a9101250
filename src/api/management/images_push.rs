//! `POST /v1/images/push` (`docs/spec/api.md` 7.12).

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use super::Management;
use crate::api::{ApiError, AuditEntry, Code, Failure, ProgressAnswer, ProgressLine, StrictJson, SuccessBody, success};
use crate::image::{Credentials, ImageError, ImageRef, PushRequest};

/// An image to push.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PushBody {
    /// Reference of an image that is present, required.
    #[schema(required)]
    image: String,
    /// Where it goes: registry, repository and tag [default: the image's own name]
    destination: String,
    /// Credentials for this push, instead of the stored ones. They are not kept.
    auth: Option<PushAuth>,
    /// Copy everything that the image's own registry has under this name: the index with all platforms and attestations,
    /// byte by byte. Then the image need not be present here [default: false]
    #[serde(rename = "allPlatforms")]
    all_platforms: bool,
}

/// Credentials for one request: `username` with `password`, or `token`.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PushAuth {
    /// User.
    username: String,
    /// Password or access token of the user.
    #[schema(value_type = String, format = Password)]
    password: Unspoken,
    /// Bearer token for the registry itself.
    #[schema(value_type = String, format = Password)]
    token: Unspoken,
}

/// Text that no message quotes: not even one about its type.
#[derive(Default)]
struct Unspoken(String);

impl<'de> Deserialize<'de> for Unspoken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer) {
            Ok(serde_json::Value::String(text)) => Ok(Self(text)),
            _ => Err(serde::de::Error::custom("expected a string")),
        }
    }
}

/// The description of the API is made from default values; a real one is never written.
impl Serialize for Unspoken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("")
    }
}

/// What is in the registry now.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PushedImage {
    /// The image, as given.
    image: String,
    /// Canonical string of where it is.
    destination: String,
    /// Digest of the manifest.
    manifest_digest: String,
    /// Digest of the configuration: the image's id; empty with `allPlatforms`.
    config_digest: String,
    /// Configuration and layers, in bytes.
    size_bytes: u64,
    /// What was uploaded, in bytes.
    uploaded_bytes: u64,
    /// Layers that were uploaded; with `allPlatforms`, layers and configurations.
    new_layers: usize,
    /// Layers that the repository had, or that the registry took from another one.
    present_layers: usize,
    /// Whether the image has another id than here: an earlier version of this daemon unpacked a layer of it and did not
    /// keep what its archive needs, or a layer that hides all below it took the place of those.
    rewritten: bool,
}

/// Push an image; only what the registry lacks is uploaded
///
/// With `Accept: application/x-ndjson` the answer has a line for each event. The push goes on if the client leaves.
#[utoipa::path(post, path = "/v1/images/push", tag = "images", request_body = PushBody,
    responses((status = 200, content((SuccessBody<PushedImage> = "application/json"),
            (ProgressLine = "application/x-ndjson"))), (status = 400, body = Failure),
        (status = 404, body = Failure), (status = 409, body = Failure, description = "A layer is lost"),
        (status = 502, body = Failure, description = "The registry failed or refused")))]
pub async fn push(
    State(m): State<Management>,
    entry: AuditEntry,
    answer: ProgressAnswer,
    StrictJson(body): StrictJson<PushBody>,
) -> Result<Response, ApiError> {
    let to = if body.destination.is_empty() {
        &body.image
    } else {
        &body.destination
    };
    entry.target(|target| target.image_ref = body.image.clone());
    entry.extra("destination", to.clone());
    let failed = |e: ImageError| ApiError::from(e).prefixed("push failed: ");
    let request = PushRequest {
        image: ImageRef::parse(&body.image).map_err(failed)?,
        destination: ImageRef::parse(to).map_err(failed)?,
        credentials: body.auth.map(credentials).transpose()?.flatten(),
        all_platforms: body.all_platforms,
    };
    let (images, image) = (m.images.clone(), body.image);
    let push = move |reporter, _| async move {
        let destination = request.destination.canonical();
        let pushed = images.push(request, reporter).await.map_err(failed)?;
        let view = PushedImage {
            image,
            destination,
            manifest_digest: pushed.manifest_digest,
            config_digest: pushed.config_digest,
            size_bytes: pushed.size,
            uploaded_bytes: pushed.uploaded,
            new_layers: pushed.new_layers,
            present_layers: pushed.present_layers,
            rewritten: pushed.is_rewritten,
        };
        Ok(success("push completed", view))
    };
    Ok(answer.run(&m.sessions, push).await)
}

fn credentials(auth: PushAuth) -> Result<Option<Credentials>, ApiError> {
    let has = |text: &str| !text.is_empty();
    match (has(&auth.username), has(&auth.password.0), has(&auth.token.0)) {
        (false, false, false) => Ok(None),
        (true, _, false) => Ok(Some(Credentials::password(auth.username, auth.password.0))),
        (false, false, true) => Ok(Some(Credentials::token(auth.token.0))),
        _ => {
            let message = "push failed: auth needs username and password, or token alone";
            Err(ApiError::new(Code::InvalidOption, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(auth: serde_json::Value) -> Result<bool, String> {
        let body = serde_json::json!({ "image": "a", "auth": auth });
        let body: PushBody = serde_json::from_value(body).map_err(|e| e.to_string())?;
        let given = body.auth.map(credentials).transpose().map_err(|e| e.message)?;
        Ok(given.flatten().is_some())
    }

    #[test]
    fn credentials_are_whole_and_never_quoted() {
        use serde_json::json;
        assert!(parsed(json!({ "username": "u", "password": "p" })).unwrap());
        assert!(parsed(json!({ "token": "t" })).unwrap());
        assert!(!parsed(json!({})).unwrap());
        for wrong in [
            json!({ "password": "hunter2" }),
            json!({ "username": "u", "token": "hunter2" }),
            json!({ "username": "u", "password": 42 }),
            json!({ "token": ["hunter2"] }),
        ] {
            let error = parsed(wrong).unwrap_err();
            assert!(!error.contains("hunter2") && !error.contains("42"), "{error}");
        }
        let given = Credentials::password("u".into(), "hunter2".into());
        assert!(!format!("{given:?}").contains("hunter2"));
    }
}
