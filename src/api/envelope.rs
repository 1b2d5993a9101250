//! The response envelope (`docs/spec/api.md` 3.2): one JSON object on one line, terminated by a line feed.

use std::borrow::Cow;

use axum::body::Bytes;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::Code;

/// A success with data, as on the wire.
#[derive(Debug, Serialize, ToSchema)]
pub struct SuccessBody<T> {
    /// Always `success`.
    #[schema(value_type = String, example = "success")]
    status: &'static str,
    /// What was done, for people.
    #[schema(value_type = String)]
    message: Cow<'static, str>,
    /// The result.
    data: T,
}

/// A success without data, as on the wire.
#[derive(Debug, Serialize, ToSchema)]
pub struct Done {
    /// Always `success`.
    #[schema(value_type = String, example = "success")]
    status: &'static str,
    /// What was done, for people.
    #[schema(value_type = String)]
    message: Cow<'static, str>,
}

/// A success that has data or not, depending on the request, as on the wire.
#[derive(Debug, Serialize, ToSchema)]
pub struct MaybeBody<T> {
    /// Always `success`.
    #[schema(value_type = String, example = "success")]
    status: &'static str,
    /// What was done, for people.
    #[schema(value_type = String)]
    message: Cow<'static, str>,
    /// The result, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<T>,
}

/// A failure, as on the wire. Made from an [`ApiError`](super::ApiError).
#[derive(Debug, Serialize, ToSchema)]
pub struct Failure {
    /// Always `fail`.
    #[schema(value_type = String, example = "fail")]
    pub(super) status: &'static str,
    /// What was wrong, for people.
    pub(super) message: String,
    /// What was wrong, for programs.
    pub(super) code: Code,
    /// On some routes the empty shape of the success data, so that clients that decode both alike find the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub(super) data: Option<serde_json::Value>,
}

/// A successful answer: status code and envelope.
#[derive(Debug)]
pub struct Success<B> {
    code: StatusCode,
    body: B,
}

/// 200 with data.
pub fn success<T: Serialize>(message: impl Into<Cow<'static, str>>, data: T) -> Success<SuccessBody<T>> {
    Success {
        code: StatusCode::OK,
        body: SuccessBody {
            status: "success",
            message: message.into(),
            data,
        },
    }
}

/// 200 with optional data.
pub fn success_with<T: Serialize>(message: impl Into<Cow<'static, str>>, data: Option<T>) -> Success<MaybeBody<T>> {
    Success {
        code: StatusCode::OK,
        body: MaybeBody {
            status: "success",
            message: message.into(),
            data,
        },
    }
}

/// 200 without data.
pub fn done(message: impl Into<Cow<'static, str>>) -> Success<Done> {
    Success {
        code: StatusCode::OK,
        body: Done {
            status: "success",
            message: message.into(),
        },
    }
}

impl<B> Success<B> {
    /// The same with status 201. Only for the routes that `docs/spec/api.md` 1 marks with 201.
    pub fn created(mut self) -> Self {
        self.code = StatusCode::CREATED;
        self
    }
}

impl<T: Serialize> Success<SuccessBody<T>> {
    /// Message and data of the answer.
    pub(super) fn into_parts(self) -> serde_json::Result<(String, serde_json::Value)> {
        let data = serde_json::to_value(self.body.data)?;
        Ok((self.body.message.into_owned(), data))
    }
}

impl<B: Serialize> Success<B> {
    /// Status and body of the response.
    pub(super) fn write(&self) -> (StatusCode, Bytes) {
        write(self.code, &self.body)
    }
}

impl<B: Serialize> IntoResponse for Success<B> {
    fn into_response(self) -> Response {
        send(self.write())
    }
}

/// The response for one envelope.
pub(super) fn render(code: StatusCode, body: &impl Serialize) -> Response {
    send(write(code, body))
}

/// Status and body of the response for one envelope.
pub(super) fn write(code: StatusCode, body: &impl Serialize) -> (StatusCode, Bytes) {
    let (code, mut line) = match serde_json::to_vec(body) {
        Ok(json) => (code, json),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            let fixed = br#"{"status":"fail","message":"internal error: the answer cannot be written as JSON","code":"internal"}"#;
            (StatusCode::INTERNAL_SERVER_ERROR, fixed.to_vec())
        }
    };
    line.push(b'\n');
    (code, line.into())
}

/// The response with the output of [`write`].
pub(super) fn send((code, line): (StatusCode, Bytes)) -> Response {
    let length = HeaderValue::from(line.len());
    let mut response = (code, line).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, length);
    response
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::{ApiError, Code};

    /// Status, content type and body of a response.
    pub async fn parts(response: Response) -> (u16, String, String) {
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let header = |name| head.headers.get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
        if let Some(length) = head.headers.get(header::CONTENT_LENGTH) {
            assert_eq!(length.to_str().unwrap(), body.len().to_string());
        }
        let body = String::from_utf8(body.to_vec()).unwrap();
        (head.status.as_u16(), header(header::CONTENT_TYPE), body)
    }

    #[tokio::test]
    async fn an_envelope_is_one_line_of_json() {
        let with_data = success("cotainer created", serde_json::json!({"id": "01"})).into_response();
        assert_eq!(
            parts(with_data).await,
            (
                200,
                "application/json".into(),
                "{\"status\":\"success\",\"message\":\"cotainer created\",\"data\":{\"id\":\"01\"}}\n".into()
            )
        );
        let (code, _, body) = parts(done("policy committed").created().into_response()).await;
        assert_eq!(
            (code, body.as_str()),
            (201, "{\"status\":\"success\",\"message\":\"policy committed\"}\n")
        );
    }

    #[tokio::test]
    async fn a_failure_has_data_only_when_given() {
        let error = ApiError::new(Code::ContainerNotFound, "container: web not found").prefixed("service failed: ");
        let (code, kind, body) = parts(error.clone().into_response()).await;
        assert_eq!((code, kind.as_str()), (404, "application/json"));
        assert_eq!(
            body,
            "{\"status\":\"fail\",\"message\":\"service failed: container: web not found\",\"code\":\"container_not_found\"}\n"
        );
        let error = error.with_data(serde_json::json!({"id": "web"}));
        let (_, _, body) = parts(error.into_response()).await;
        assert_eq!(
            body,
            "{\"status\":\"fail\",\"message\":\"service failed: container: web not found\",\"code\":\"container_not_found\",\"data\":{\"id\":\"web\"}}\n"
        );
    }

    #[tokio::test]
    async fn an_empty_list_is_a_list() {
        let (_, _, body) = parts(success("network list", Vec::<u8>::new()).into_response()).await;
        assert_eq!(
            body,
            "{\"status\":\"success\",\"message\":\"network list\",\"data\":[]}\n"
        );
    }
}
