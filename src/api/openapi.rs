//! The OpenAPI description of the management API, generated from the handlers.
//!
//! Handlers describe only their own details. This module adds the common parts: the required client certificate, the
//! answers of the layers around every handler, and operation ids that are unique in the whole document.

use axum::http::StatusCode;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, Response};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use super::management;

mod constraints;
mod links;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Condenser API",
        description = "Management API of Condenser, a high-level container runtime for one Linux host. \
                       TLS 1.3 with a client certificate `spiffe://raind/cli/<name>` is required.",
    ),
    servers((url = "https://localhost:7755")),
    tags(
        (name = "containers", description = "Containers and their life cycle"),
        (name = "terminals", description = "Attaching to terminals over WebSocket"),
        (name = "events", description = "What happens, as it happens"),
        (name = "images", description = "Images that are present on this host"),
        (name = "system", description = "Space on disk"),
        (name = "replicasets", description = "Sets of pods that are kept alive"),
        (name = "resources", description = "Manifests"),
        (name = "bottles", description = "Groups of containers that one file describes"),
        (name = "networks", description = "Bridges that containers are attached to"),
        (name = "policies", description = "Which flows are allowed"),
        (name = "metrics", description = "Figures for Prometheus"),
    )
)]
struct Description;

/// Name of the security scheme in the document.
const CERTIFICATE: &str = "clientCertificate";

/// The document. It depends only on the code.
pub fn document() -> utoipa::openapi::OpenApi {
    let (_, mut document) = OpenApiRouter::with_openapi(Description::openapi())
        .merge(management::routes())
        .split_for_parts();
    Shared.modify(&mut document);
    constraints::apply(&mut document);
    links::apply(&mut document);
    document
}

/// The document, OpenAPI 3.1, indented.
pub fn openapi_json() -> String {
    let document = document();
    // Serializing a document of strings, numbers and lists cannot fail.
    let text = document.to_pretty_json().unwrap_or_default();
    text + "\n"
}

/// Adds the common parts to all operations.
struct Shared;

impl Modify for Shared {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::MutualTls {
            description: Some(
                "A certificate of the daemon's client CA with one URI, `spiffe://raind/cli/<name>`".into(),
            ),
            deprecated: None,
            extensions: None,
        };
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(CERTIFICATE, scheme);
        document.security = Some(vec![SecurityRequirement::new::<_, [String; 0], String>(
            CERTIFICATE,
            [],
        )]);
        document
            .paths
            .paths
            .values_mut()
            .flat_map(operations)
            .for_each(complete);
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete]
        .into_iter()
        .flatten()
}

fn complete(operation: &mut Operation) {
    // The name of a handler is unique only in its file, and each file has one tag.
    let tag = operation.tags.iter().flatten().next();
    if let (Some(tag), Some(name)) = (tag, &operation.operation_id) {
        operation.operation_id = Some(format!("{tag}_{name}"));
    }
    let responses = &mut operation.responses.responses;
    let mut add = |code: &str, description| {
        responses.entry(code.into()).or_insert_with(|| failure(description));
    };
    add("403", "The client certificate has another role");
    add("500", "");
    // Every route refuses unknown query parameters.
    add("400", "");
    if operation.request_body.is_some() {
        add("413", "");
    }
    for (code, response) in responses {
        if let RefOr::T(response) = response
            && response.description.is_empty()
        {
            let status = code.parse().ok().and_then(|code: u16| StatusCode::from_u16(code).ok());
            let reason = status.and_then(|status| status.canonical_reason());
            response.description = reason.unwrap_or(code).to_owned();
        }
    }
}

fn failure(description: &str) -> RefOr<Response> {
    let mut response = Response::new(description);
    let content = Content::new(Some(Ref::from_schema_name("Failure")));
    response.content.insert("application/json".into(), content.into());
    RefOr::T(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    /// Every operation of the document, with its method and path.
    fn all() -> Vec<(String, Value)> {
        let document: Value = serde_json::from_str(&openapi_json()).unwrap();
        let mut all = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                all.push((format!("{method} {path}"), operation.clone()));
            }
        }
        all
    }

    #[test]
    fn constraints_and_links_are_about_what_is_there() {
        let (_, mut document) = OpenApiRouter::with_openapi(Description::openapi())
            .merge(management::routes())
            .split_for_parts();
        Shared.modify(&mut document);
        assert_eq!(constraints::apply(&mut document), [""; 0]);
        assert_eq!(links::apply(&mut document), [""; 0]);
    }

    #[test]
    fn parameters_stand_where_they_are_read() {
        for (operation, content) in all() {
            let (_, path) = operation.split_once(' ').unwrap();
            let in_path: Vec<&str> = path
                .split('/')
                .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
                .collect();
            let parameters = content["parameters"].as_array().cloned().unwrap_or_default();
            let described = parameters.iter().filter(|parameter| parameter["in"] == "path");
            let described: Vec<&str> = described.map(|parameter| parameter["name"].as_str().unwrap()).collect();
            assert_eq!(described, in_path, "{operation}");
        }
    }

    #[test]
    fn operations_have_names_of_their_own() {
        let names: BTreeSet<_> = all().into_iter().map(|(_, o)| o["operationId"].to_string()).collect();
        assert_eq!(names.len(), all().len());
        assert!(names.contains("\"images_pull\""), "{names:?}");
    }

    #[test]
    fn every_answer_is_described() {
        for (operation, content) in all() {
            let responses = content["responses"].as_object().unwrap();
            // A successful WebSocket upgrade answers 101.
            let success = |code: &str| code.starts_with('2') || code == "101";
            assert!(responses.keys().any(|code| success(code)), "{operation}");
            for code in ["400", "403", "500"] {
                assert!(responses.contains_key(code), "{operation}: {code}");
            }
            for (code, response) in responses {
                assert!(
                    !response["description"].as_str().unwrap().is_empty(),
                    "{operation}: {code}"
                );
                if !success(code) {
                    let schema = &response["content"]["application/json"]["schema"]["$ref"];
                    assert_eq!(schema, "#/components/schemas/Failure", "{operation}: {code}");
                }
            }
        }
    }

    #[test]
    fn every_operation_has_an_audit_action() {
        for (operation, _) in all() {
            let (method, path) = operation.split_once(' ').unwrap();
            let method = method.to_uppercase().parse().unwrap();
            // The action of a bottle is a path parameter; each action has its own name in the audit log.
            let path = path.replace("{action}", "start");
            let (action, _) = super::super::action::action_of(&method, &path, None);
            assert_ne!(action, "unknown", "{operation}");
        }
    }
}
