//! Common behaviour of all routes of a listener: answers for requests without a handler (`docs/spec/api.md` 3.1).

use std::any::Any;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use super::identity::Role;
use super::{ApiError, Code, audit, error, identity};
use crate::observe::audit::AuditLog;

/// The complete application of one listener: the routes, restricted to clients of this role, with an audit record per
/// request.
pub fn app(routes: Router, role: Role, log: AuditLog) -> Router {
    let around = ServiceBuilder::new()
        .layer(from_fn_with_state(log, audit::record))
        .layer(from_fn_with_state(role, identity::require));
    Router::new().fallback_service(around.service(finish(routes)))
}

/// Completes the routes of one listener: answers 404, 405 and panics with envelopes.
pub fn finish(routes: Router) -> Router {
    let routes = routes.fallback(unknown_path).method_not_allowed_fallback(wrong_method);
    let around = ServiceBuilder::new()
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(exact_methods));
    // A layer of the router itself would run only after the method has been matched.
    Router::new().fallback_service(around.service(routes))
}

async fn unknown_path() -> ApiError {
    ApiError::new(Code::RouteNotFound, "404 page not found")
}

async fn wrong_method() -> ApiError {
    ApiError::new(Code::MethodNotAllowed, "method not allowed")
}

/// The router answers HEAD for every GET route, but the contract requires 405. Therefore HEAD is hidden from it and
/// from `Allow`.
async fn exact_methods(mut request: Request, next: Next) -> Response {
    let head = request.method() == Method::HEAD;
    if head {
        *request.method_mut() = Method::TRACE;
    }
    let mut response = next.run(request).await;
    if head {
        *response.body_mut() = Body::empty();
    }
    if response.status() == StatusCode::METHOD_NOT_ALLOWED
        && let Some(allow) = response.headers_mut().get_mut(header::ALLOW)
        && let Ok(text) = allow.to_str()
    {
        let methods: Vec<_> = text.split(',').map(str::trim).filter(|m| *m != "HEAD").collect();
        if let Ok(value) = HeaderValue::from_str(&methods.join(", ")) {
            *allow = value;
        }
    }
    response
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response<Body> {
    error::panicked(&*panic).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::envelope::tests::parts;
    use crate::api::{Failure, PathParams, Success, SuccessBody, done, success};
    use axum::routing::{delete, get, post};
    use rstest::rstest;
    use tower::ServiceExt;

    async fn crash() -> ApiError {
        panic!("on purpose")
    }

    fn router() -> Router {
        let greet = |PathParams(id): PathParams<String>| async move { done(format!("hello {id}")) };
        finish(
            Router::new()
                .route("/v1/containers", get(|| async { done("list") }).post(crash))
                .route("/v1/containers/stats", get(|| async { done("stats") }))
                .route("/v1/containers/{containerId}", get(greet))
                .route("/v1/containers/{containerId}/actions/start", post(greet))
                .route("/v1/containers/{containerId}/actions/stop", post(greet))
                .route("/v1/containers/{containerId}/attach", get(greet))
                .route("/v1/pods/{podId}/actions/start", post(greet))
                .route("/v1/networks/{bridge}/actions/delete", delete(greet))
                .route("/v1/bottle/{bottleId}/actions/{action}", post(greet)),
        )
    }

    async fn call(method: &str, path: &str) -> Response {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        router().oneshot(request).await.unwrap()
    }

    async fn answer(method: &str, path: &str) -> (u16, String) {
        let (code, kind, body) = parts(call(method, path).await).await;
        assert_eq!(kind, "application/json");
        let envelope: serde_json::Value = serde_json::from_str(&body).unwrap();
        (code, envelope["message"].as_str().unwrap().to_owned())
    }

    #[rstest]
    #[case("GET", "/v1/containers", 200, "list")]
    #[case("GET", "/v1/containers/stats", 200, "stats")]
    #[case("GET", "/v1/containers/a%20b", 200, "hello a b")]
    #[case("GET", "/v1/containers/%ff", 400, "invalid path: Invalid UTF-8 in `containerId`")]
    #[case("GET", "/v1/containers/", 404, "404 page not found")]
    #[case("GET", "/V1/containers", 404, "404 page not found")]
    #[case("GET", "/", 404, "404 page not found")]
    #[case("PUT", "/v1/containers", 405, "method not allowed")]
    #[case("OPTIONS", "/v1/containers", 405, "method not allowed")]
    #[case(
        "POST",
        "/v1/containers",
        500,
        "internal error: the request failed unexpectedly, see the daemon's log"
    )]
    #[case("POST", "/v1/containers//actions/start", 400, "missing container Id")]
    #[case("POST", "/v1/containers//actions/stop", 400, "missing containerId")]
    #[case("GET", "/v1/containers//attach", 400, "missing container id")]
    #[case("POST", "/v1/pods//actions/start", 400, "missing podId")]
    #[case("DELETE", "/v1/networks//actions/delete", 400, "missing brige")]
    #[case("POST", "/v1/bottle//actions/start", 400, "missing bottleId or action")]
    #[case("POST", "/v1/bottle//actions/", 404, "404 page not found")]
    #[case("GET", "/v1/containers//actions/start", 405, "method not allowed")]
    #[tokio::test]
    async fn every_answer_is_an_envelope(
        #[case] method: &str,
        #[case] path: &str,
        #[case] code: u16,
        #[case] message: &str,
    ) {
        assert_eq!(answer(method, path).await, (code, message.to_owned()));
    }

    #[rstest]
    #[case("/v1/containers", 405)]
    #[case("/v1/nope", 404)]
    #[tokio::test]
    async fn head_is_refused_without_a_body(#[case] path: &str, #[case] code: u16) {
        let response = call("HEAD", path).await;
        assert_eq!(response.status(), code);
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert!(body.is_empty());
    }

    #[rstest]
    #[case("PUT", "/v1/containers", "GET, POST")]
    #[case("HEAD", "/v1/containers", "GET, POST")]
    #[case("TRACE", "/v1/containers/x", "GET")]
    #[case("GET", "/v1/containers//actions/start", "POST")]
    #[tokio::test]
    async fn allow_is_one_line(#[case] method: &str, #[case] path: &str, #[case] allow: &str) {
        let response = call(method, path).await;
        let values: Vec<_> = response.headers().get_all(header::ALLOW).iter().collect();
        assert_eq!(values, [allow]);
    }

    /// A documented handler, as all of them are.
    #[utoipa::path(get, path = "/v1/images", responses(
        (status = 200, body = SuccessBody<Vec<String>>),
        (status = 500, body = Failure),
    ))]
    async fn documented() -> Result<Success<SuccessBody<Vec<String>>>, ApiError> {
        Ok(success("retrieve image list success", vec![]))
    }

    #[tokio::test]
    async fn a_documented_handler_is_served_and_described() {
        let (routes, document) = utoipa_axum::router::OpenApiRouter::<()>::new()
            .routes(utoipa_axum::routes!(documented))
            .split_for_parts();
        let request = Request::builder().uri("/v1/images").body(Body::empty()).unwrap();
        assert_eq!(finish(routes).oneshot(request).await.unwrap().status(), 200);
        let document = serde_json::to_value(document).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        assert_eq!(
            schemas.keys().collect::<Vec<_>>(),
            ["Code", "Failure", "SuccessBody_Vec_String"]
        );
        let body = &schemas["SuccessBody_Vec_String"];
        assert_eq!(body["required"], serde_json::json!(["status", "message", "data"]));
        assert_eq!(body["properties"]["data"]["type"], "array");
    }
}
