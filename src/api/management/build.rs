//! `POST /v1/images/build` (`docs/spec/api.md` 7.4).

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::TryStreamExt;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::Management;
use crate::api::{
    ApiError, AuditEntry, Client, Code, Failure, ProgressAnswer, ProgressLine, QueryParams, SuccessBody, success,
};
use crate::workload::build::{BuildError, BuildRequest};

/// The header that carries secrets. Headers are in no log, and in no audit entry.
const SECRET_HEADER: &str = "x-build-secret";

/// What to build.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes the query; repeated parameters are read one by one")]
pub struct BuildQuery {
    /// Name of the new image, required; may be repeated for further names.
    #[param(required)]
    tag: Option<Vec<String>>,
    /// Path of the build file in the context [default: `dockerfile`, else `Dripfile`, else `Dockerfile`]
    dripfile: Option<String>,
    /// Older name of the same.
    dockerfile: Option<String>,
    /// Network of `RUN` commands [default: raind0]
    network: Option<String>,
    /// Value of an `ARG`: `NAME=value`; may be repeated.
    buildarg: Option<Vec<String>>,
    /// Name or number of the stage to build [default: the last one]
    target: Option<String>,
    /// Label of the image: `key=value`; may be repeated.
    label: Option<Vec<String>>,
    /// Whether to carry out all steps again [default: false]
    no_cache: Option<bool>,
    /// Another spelling of the same.
    nocache: Option<bool>,
    /// Whether to ask the registry for base images that are present [default: false]
    pull: Option<bool>,
    /// `os/architecture[/variant]`, one that runs on this host [default: the host's]
    platform: Option<String>,
}

/// The image that was built.
#[derive(Debug, Serialize, ToSchema)]
pub struct BuiltImage {
    /// Canonical string.
    image: String,
}

/// Build an image from a build file and its context
///
/// With `Accept: application/x-ndjson` the answer has a line for each event.
#[utoipa::path(post, path = "/v1/images/build", tag = "images",
    params(BuildQuery,
        ("X-Build-Secret" = Option<Vec<String>>, Header, description = "`id=<base64>`: a secret for \
            `RUN --mount=type=secret`; may be repeated. It is neither stored nor logged")),
    request_body(content = Vec<u8>, content_type = "application/x-tar", description = "Uncompressed tar of the context"),
    responses((status = 200, content((SuccessBody<BuiltImage> = "application/json"),
            (ProgressLine = "application/x-ndjson"))),
        (status = 400, body = Failure),
        (status = 404, body = Failure, description = "No such base image or network"),
        (status = 413, body = Failure), (status = 500, body = Failure),
        (status = 502, body = Failure, description = "The registry of the base image failed, refused or lied")))]
pub async fn build(
    State(m): State<Management>,
    entry: AuditEntry,
    QueryParams(query): QueryParams<Vec<(String, String)>>,
    answer: ProgressAnswer,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let tag = query.iter().find(|(name, _)| name == "tag");
    entry.target(|target| target.image_ref = tag.map(|(_, tag)| tag.clone()).unwrap_or_default());
    let request = request(query, &headers)?;
    let context = body.into_data_stream().map_err(std::io::Error::other);
    let (builds, stop) = (m.builds.clone(), m.sessions.stop.clone());
    let build = move |reporter, client: Client| async move {
        let image = tokio::select! {
            built = builds.build(request, context, &stop, reporter) => built?,
            // The client is gone, so nobody reads this. Dropping the future cancels the build.
            () = client.gone() => return Err(BuildError::Cancelled.into()),
        };
        Ok(success("build completed", BuiltImage { image }))
    };
    Ok(answer.run(&m.sessions, build).await)
}

/// The request of a query and its headers.
pub(super) fn request(query: Vec<(String, String)>, headers: &HeaderMap) -> Result<BuildRequest, ApiError> {
    let mut request = BuildRequest::default();
    let mut dockerfile = String::new();
    for (name, value) in query {
        match &name[..] {
            "tag" => request.tags.push(value),
            "dripfile" => request.dripfile = value,
            "dockerfile" => dockerfile = value,
            "network" => request.network = value,
            "buildarg" => insert(&mut request.args, "buildarg", &value)?,
            "label" => insert(&mut request.labels, "label", &value)?,
            "target" => request.target = value,
            "no_cache" | "nocache" => request.no_cache |= flag(&name, &value)?,
            "pull" => request.pull = flag(&name, &value)?,
            "platform" => request.platform = value,
            // Unknown ones have been refused, but for those that are without effect everywhere.
            _ => {}
        }
    }
    if request.dripfile.is_empty() {
        request.dripfile = dockerfile;
    }
    for header in headers.get_all(SECRET_HEADER) {
        let (id, value) = secret(header.as_bytes()).ok_or_else(|| {
            let message =
                "invalid header X-Build-Secret: write <id>=<base64>, with an id of letters, digits, _, - and .";
            ApiError::new(Code::InvalidQuery, message)
        })?;
        request.secrets.insert(id, value);
    }
    Ok(request)
}

fn insert(into: &mut BTreeMap<String, String>, parameter: &str, value: &str) -> Result<(), ApiError> {
    match value.split_once('=').filter(|(name, _)| !name.is_empty()) {
        Some((name, value)) if !value.contains('\0') => {
            into.insert(name.to_owned(), value.to_owned());
            Ok(())
        }
        _ => {
            let message = format!("invalid query: {parameter} needs name=value, as in {parameter}=VERSION=1.2");
            Err(ApiError::new(Code::InvalidQuery, message))
        }
    }
}

fn flag(parameter: &str, value: &str) -> Result<bool, ApiError> {
    match value {
        "1" | "true" | "" => Ok(true),
        "0" | "false" => Ok(false),
        _ => {
            let message = format!("invalid query: {parameter} is true or false");
            Err(ApiError::new(Code::InvalidQuery, message))
        }
    }
}

/// `id=<base64>`. No part of it is told in an error.
fn secret(header: &[u8]) -> Option<(String, Vec<u8>)> {
    let (id, value) = std::str::from_utf8(header).ok()?.split_once('=')?;
    let is_id = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    let value = STANDARD.decode(value.trim()).ok()?;
    is_id.then(|| (id.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn parsed(query: &[(&str, &str)]) -> Result<BuildRequest, String> {
        let query = query.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        request(query.collect(), &HeaderMap::new()).map_err(|e| format!("{e:?}"))
    }

    #[test]
    fn parameters_may_be_repeated() {
        let request = parsed(&[
            ("tag", "a"),
            ("tag", "b"),
            ("dockerfile", "D"),
            ("buildarg", "A=1=2"),
            ("buildarg", "B="),
            ("label", "l=x"),
            ("nocache", "1"),
            ("pull", "false"),
            ("target", "t"),
            ("platform", "linux/amd64"),
        ])
        .unwrap();
        assert_eq!(request.tags, ["a", "b"]);
        assert_eq!(request.dripfile, "D");
        assert_eq!((&request.args["A"][..], &request.args["B"][..]), ("1=2", ""));
        assert_eq!(request.labels["l"], "x");
        assert!(request.no_cache && !request.pull);
        for (name, value) in [("buildarg", "x"), ("label", "=x"), ("pull", "perhaps")] {
            assert!(
                parsed(&[(name, value)]).unwrap_err().contains("invalid query"),
                "{name}"
            );
        }
    }

    #[test]
    fn secrets_come_in_headers() {
        assert_eq!(secret(b"id=aGkK"), Some(("id".into(), b"hi\n".to_vec())));
        for wrong in ["id", "=aGkK", "a/b=aGkK", "id=!"] {
            assert_eq!(secret(wrong.as_bytes()), None, "{wrong}");
        }
        let mut headers = HeaderMap::new();
        headers.append(SECRET_HEADER, HeaderValue::from_static("a=aGkK"));
        headers.append(SECRET_HEADER, HeaderValue::from_static("b=aGkK"));
        let request = request(Vec::new(), &headers).unwrap();
        assert_eq!(format!("{:?}", request.secrets), "{\"a\", \"b\"}");
        headers.append(SECRET_HEADER, HeaderValue::from_static("hidden"));
        let error = format!("{:?}", super::request(Vec::new(), &headers).unwrap_err());
        assert!(error.contains("X-Build-Secret") && !error.contains("hidden"), "{error}");
    }
}
