//! Refuses unknown query parameters. Otherwise a client that sends `tail` instead of `tail_lines` would get the whole
//! log and not notice the mistake.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::Method;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::{OpenApi, RefOr};

use super::{ApiError, Code};

/// Later clients of the original send it with some requests; on other routes it has no effect (`docs/spec/api.md`
/// 20.2).
const ANYWHERE: &str = "stream";

/// Path as in the OpenAPI description, method -> the accepted parameters.
type Known = HashMap<(String, Method), BTreeSet<String>>;

/// Adds the check to the routes that the document describes. Other routes are not changed.
pub fn checked(routes: Router, document: &OpenApi) -> Router {
    routes.layer(from_fn_with_state(Arc::new(known(document)), check))
}

fn known(document: &OpenApi) -> Known {
    let mut known = Known::new();
    for (path, item) in &document.paths.paths {
        let operations = [
            (Method::GET, &item.get),
            (Method::PUT, &item.put),
            (Method::POST, &item.post),
            (Method::DELETE, &item.delete),
        ];
        for (method, operation) in operations {
            if let Some(operation) = operation {
                known.insert((path.clone(), method), names(operation));
            }
        }
    }
    known
}

fn names(operation: &Operation) -> BTreeSet<String> {
    let parameters = operation.parameters.iter().flatten();
    let query = parameters.filter_map(|parameter| match parameter {
        RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query => Some(parameter.name.clone()),
        _ => None,
    });
    query.collect()
}

async fn check(State(known): State<Arc<Known>>, request: Request, next: Next) -> Response {
    match refusal(&known, &request) {
        Some(error) => error.into_response(),
        None => next.run(request).await,
    }
}

fn refusal(known: &Known, request: &Request) -> Option<ApiError> {
    request.uri().query()?;
    let path = request.extensions().get::<MatchedPath>()?.as_str().to_owned();
    let known = known.get(&(path, request.method().clone()))?;
    // The extractor of the handler reports an unreadable query.
    let Query(given) = Query::<Vec<(String, String)>>::try_from_uri(request.uri()).ok()?;
    let is_unknown = |name: &String| name != ANYWHERE && !name.is_empty() && !known.contains(name);
    let unknown = given.into_iter().map(|(name, _)| name).find(is_unknown)?;
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let rest = match &known[..] {
        [] => "this route takes none".to_owned(),
        known => format!("this route knows {}", known.join(", ")),
    };
    let message = format!("invalid query: unknown parameter {unknown:?}; {rest}");
    Some(ApiError::new(Code::InvalidQuery, message))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use rstest::rstest;
    use tower::ServiceExt;

    use super::*;
    use crate::api::envelope::tests::parts;

    async fn asked(method: &str, uri: &str) -> (u16, String) {
        let document = crate::api::openapi::document();
        let routes = Router::new()
            .route("/v1/containers/{containerId}/log", get(async || "log"))
            .route("/v1/pods", get(async || "pods").post(async || "made"))
            .route("/other", get(async || "other"));
        let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
        let response = checked(routes, &document).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        match status {
            400 => {
                let body: serde_json::Value = serde_json::from_str(&parts(response).await.2).unwrap();
                (status, body["message"].as_str().unwrap().to_owned())
            }
            _ => (status, String::new()),
        }
    }

    #[rstest]
    #[case("GET", "/v1/containers/a/log?tail_lines=5&follow=1")]
    #[case("GET", "/v1/containers/a/log?stream=1")]
    #[case("GET", "/v1/containers/a/log?")]
    #[case("GET", "/v1/containers/a/log?&")]
    #[case("GET", "/v1/pods?stream=1")]
    #[case("GET", "/other?tail=5")]
    #[tokio::test]
    async fn what_a_route_knows_passes(#[case] method: &str, #[case] uri: &str) {
        assert_eq!(asked(method, uri).await.0, 200);
    }

    #[tokio::test]
    async fn what_it_does_not_know_is_refused_with_what_it_does() {
        let (status, message) = asked("GET", "/v1/containers/a/log?tail=5").await;
        assert_eq!(status, 400);
        assert!(
            message.starts_with("invalid query: unknown parameter \"tail\"; this route knows all, "),
            "{message}"
        );
        assert!(message.contains("tail_lines"), "{message}");
        let none = (
            400,
            "invalid query: unknown parameter \"x y\"; this route takes none".to_owned(),
        );
        assert_eq!(asked("POST", "/v1/pods?x%20y=1").await, none);
        assert_eq!(asked("GET", "/v1/pods?stream=1&Namespace").await.0, 400);
    }
}
