//! Extractors for requests (`docs/spec/api.md` 3.1 and 3.5). Every rejection is an [`ApiError`].

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, MatchedPath, Path, Query, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::BytesMut;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::Coded;
use super::{ApiError, Code, json_fields};

/// Maximum size of a JSON or YAML body, hook state and signing request, in bytes.
pub const BODY_LIMIT: usize = 1 << 20;

/// How much of an oversized body is read before the connection is closed, in bytes.
const DISCARD_LIMIT: usize = 64 << 20;
/// Time limit for sending an oversized body.
const BODY_TIME: Duration = Duration::from_secs(30);

/// A JSON object as body. `Content-Type` is ignored; `null` means the default value at every depth; bytes after the
/// value are an error. The type must have `#[serde(default, deny_unknown_fields)]` at every depth.
#[derive(Debug)]
pub struct StrictJson<T>(pub T);

/// Like [`StrictJson`], but a missing body counts as `{}`.
#[derive(Debug)]
pub struct OptionalJson<T>(pub T);

/// Path parameters, percent-decoded and not empty.
#[derive(Debug)]
pub struct PathParams<T>(pub T);

/// Query parameters. The check in [`query`](super::query) has already refused unknown ones.
#[derive(Debug)]
pub struct QueryParams<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for StrictJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        parse(&read_json_body(request).await?).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let body = read_json_body(request).await?;
        parse(if body.trim_ascii().is_empty() { b"{}" } else { &body }).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for PathParams<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let invalid = |why: String| ApiError::new(Code::InvalidPath, format!("invalid path: {why}"));
        let raw = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|e| invalid(e.body_text()))?;
        if let Some((name, _)) = raw.iter().find(|(_, value)| value.is_empty()) {
            let route = parts.extensions.get::<MatchedPath>().map_or("", |path| path.as_str());
            return Err(ApiError::new(Code::InvalidPath, missing(route, name)));
        }
        match Path::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(e) => Err(invalid(e.body_text())),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryParams<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(e) => {
                let message = format!("invalid query: {}", e.body_text());
                Err(ApiError::new(Code::InvalidQuery, message))
            }
        }
    }
}

/// The message for an empty path parameter; several routes have their own spelling.
fn missing(route: &str, parameter: &str) -> String {
    let of_container = route.strip_prefix("/v1/containers/{containerId}/");
    match (of_container, parameter) {
        (Some("actions/start" | "log" | "logpath" | "stats"), _) => "missing container Id".into(),
        (Some("attach" | "exec/attach"), _) => "missing container id".into(),
        (_, "bottleId" | "action") => "missing bottleId or action".into(),
        (_, "bridge") => "missing brige".into(),
        _ => format!("missing {parameter}"),
    }
}

/// The error of reading a body.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It exceeds the limit of the route.
    #[error("request body too large: at most {limit} bytes are accepted")]
    TooLarge {
        /// The limit of the route, in bytes.
        limit: usize,
    },
    /// The connection failed, or the client violated HTTP.
    #[error("the request body ended early: {0}")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Coded for BodyError {
    fn code(&self) -> Code {
        match self {
            Self::TooLarge { .. } => Code::BodyTooLarge,
            Self::Broken(_) => Code::InvalidBody,
        }
    }
}

impl BodyError {
    /// The error answer. `prefix` is used only if the body is invalid, because it would not help for an oversized body.
    pub fn refusal(self, prefix: &str) -> ApiError {
        match self {
            Self::TooLarge { .. } => self.into(),
            Self::Broken(_) => ApiError::from(self).prefixed(prefix),
        }
    }
}

/// The whole body of a request, up to `limit` bytes.
pub async fn read_body(request: Request, limit: usize) -> Result<Bytes, BodyError> {
    read_body_within(request, limit, BODY_TIME).await
}

async fn read_body_within(request: Request, limit: usize, time: Duration) -> Result<Bytes, BodyError> {
    if waits_for_consent(request.headers(), limit) {
        return Err(BodyError::TooLarge { limit });
    }
    tokio::time::timeout(time, collect(request.into_body(), limit))
        .await
        .unwrap_or_else(|_| Err(BodyError::Broken(format!("it took longer than {time:?}").into())))
}

/// Reads a body to its end. Data over the limit is read and discarded, because most clients read the answer only after
/// they have sent everything.
async fn collect(mut body: Body, limit: usize) -> Result<Bytes, BodyError> {
    let mut kept = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| BodyError::Broken(e.into()))?;
        let data = frame.into_data().unwrap_or_default();
        length += data.len();
        if length <= limit {
            kept.extend_from_slice(&data);
        } else if length > DISCARD_LIMIT {
            break;
        }
    }
    if length > limit {
        return Err(BodyError::TooLarge { limit });
    }
    Ok(kept.freeze())
}

/// Whether the client announced an oversized body and waits for `100 Continue`.
fn waits_for_consent(headers: &HeaderMap, limit: usize) -> bool {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    headers.contains_key(header::EXPECT) && length.is_some_and(|length: u64| length > limit as u64)
}

async fn read_json_body(request: Request) -> Result<Bytes, ApiError> {
    let body = read_body(request, BODY_LIMIT).await;
    body.map_err(|error| error.refusal("invalid json: "))
}

/// One JSON object, with the rules of [`StrictJson`].
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.trim_ascii().is_empty() {
        return Err(ApiError::new(Code::InvalidBody, "invalid json: EOF"));
    }
    let invalid = |e: String| ApiError::new(Code::InvalidBody, format!("invalid json: {e}"));
    let json_fields::Distinct(value) = serde_json::from_slice(body).map_err(|e| invalid(e.to_string()))?;
    let value = without_nulls(value);
    // Serde would also accept a list of the fields for a struct.
    if !value.is_object() {
        return Err(ApiError::new(Code::InvalidBody, "invalid json: not an object"));
    }
    json_fields::refuse_nul(&value).map_err(invalid)?;
    json_fields::read(value).map_err(invalid)
}

/// A top-level `null` becomes `{}`; a member that is `null` counts as missing.
fn without_nulls(value: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(members) => {
                members.retain(|_, member| !member.is_null());
                members.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    if value.is_null() {
        return Value::Object(serde_json::Map::new());
    }
    let mut value = value;
    strip(&mut value);
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        image: String,
        port: Vec<String>,
        tty: bool,
        inner: Inner,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        n: i32,
    }

    fn request(body: impl Into<Body>) -> Request {
        Request::builder().body(body.into()).unwrap()
    }

    async fn strict(body: &str) -> Result<Sample, ApiError> {
        StrictJson::from_request(request(body.to_owned()), &())
            .await
            .map(|StrictJson(v)| v)
    }

    #[rstest]
    #[case("{}")]
    #[case("null")]
    #[case(" {\"image\":null,\"port\":null,\"tty\":null,\"inner\":null}\n")]
    #[case("{\"inner\":{\"n\":null}}")]
    #[tokio::test]
    async fn absent_and_null_are_the_zero_value(#[case] body: &str) {
        assert_eq!(strict(body).await.unwrap(), Sample::default());
    }

    #[rstest]
    #[case("", "invalid json: EOF")]
    #[case(" \n", "invalid json: EOF")]
    #[case("{", "invalid json: EOF while parsing")]
    #[case("{} {}", "invalid json: trailing characters")]
    #[case("{}x", "invalid json: trailing characters")]
    #[case("[]", "invalid json: not an object")]
    #[case(
        "{\"image\":\"a\",\"image\":\"b\"}",
        "invalid json: \"image\" is there twice at line 1 column "
    )]
    #[case("{\"inner\":{\"n\":1,\"n\":null}}", "invalid json: \"n\" is there twice")]
    #[case("{\"nope\":1}", "invalid json: unknown field `nope`")]
    #[case("{\"Image\":\"x\"}", "invalid json: unknown field `Image`")]
    #[case("{\"inner\":{\"m\":1}}", "invalid json: inner: unknown field `m`, expected `n`")]
    #[case("{\"image\":1}", "invalid json: image: invalid type: integer `1`, expected a string")]
    #[case(
        "{\"port\":\"80\"}",
        "invalid json: port: invalid type: string \"80\", expected a list"
    )]
    #[case(
        "{\"port\":[\"80\",8]}",
        "invalid json: port[1]: invalid type: integer `8`, expected a string"
    )]
    #[case(
        "{\"tty\":\"yes\"}",
        "invalid json: tty: invalid type: string \"yes\", expected true or false"
    )]
    #[case(
        "{\"inner\":{\"n\":\"1\"}}",
        "invalid json: inner.n: invalid type: string \"1\", expected a whole number"
    )]
    #[case("{\"port\":[\"\",\"a\\u0000b\"]}", "invalid json: port[1] contains a NUL character")]
    #[case("{\"a\\u0000b\":1}", "invalid json: a name contains a NUL character")]
    #[tokio::test]
    async fn anything_else_is_refused(#[case] body: &str, #[case] message: &str) {
        let error = strict(body).await.unwrap_err();
        assert_eq!(error.status(), 400);
        assert!(error.message.starts_with(message), "{}", error.message);
    }

    #[tokio::test]
    async fn deep_nesting_is_an_error_and_not_a_crash() {
        let error = strict(&"[".repeat(BODY_LIMIT - 1)).await.unwrap_err();
        assert!(error.message.contains("recursion limit"), "{}", error.message);
    }

    #[tokio::test]
    async fn start_takes_no_body() {
        for body in ["", "\n", "{}", "null"] {
            let OptionalJson(value) = OptionalJson::<Sample>::from_request(request(body), &()).await.unwrap();
            assert_eq!(value, Sample::default());
        }
        let error = OptionalJson::<Sample>::from_request(request("{"), &())
            .await
            .unwrap_err();
        assert_eq!(error.status(), 400);
    }

    #[tokio::test]
    async fn one_mebibyte_is_the_limit() {
        let blank = |n: usize| format!("{{}}{}", " ".repeat(n - 2));
        strict(&blank(BODY_LIMIT)).await.unwrap();
        assert_eq!(strict(&blank(BODY_LIMIT + 1)).await.unwrap_err().status(), 413);
        let streamed = Body::from_stream(futures_util::stream::repeat_with(|| {
            Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 4096]))
        }));
        let endless = StrictJson::<Sample>::from_request(request(streamed), &()).await;
        assert_eq!(endless.unwrap_err().status(), 413);
        let announced = Request::builder()
            .header("content-length", "99999999")
            .header("expect", "100-continue")
            .body(Body::empty());
        let early = StrictJson::<Sample>::from_request(announced.unwrap(), &()).await;
        assert_eq!(early.unwrap_err().status(), 413);
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        let stalled = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let read = read_body_within(request(stalled), BODY_LIMIT, Duration::from_millis(20)).await;
        let error = read.unwrap_err().to_string();
        assert_eq!(error, "the request body ended early: it took longer than 20ms");
    }
}
