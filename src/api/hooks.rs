//! The hook listener (port 7756): container events from the runtime (`docs/spec/api.md` 16).

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{BODY_LIMIT, read_body};
use super::identity::Caller;
use super::{ApiError, AuditEntry, Code, Done, Failure, Success, done};
use crate::base::pki::SpiffeId;
use crate::runtime::hook::{EVENT_HEADER, HookEvent, HookState};
use crate::workload::container::{ContainerError, ContainerService};

/// The states that a report may contain.
const STATES: [&str; 4] = ["creating", "created", "running", "stopped"];

/// The routes of the hook listener, with their OpenAPI description.
pub fn routes() -> OpenApiRouter<ContainerService> {
    OpenApiRouter::new().routes(routes!(report))
}

/// Report an event of the container that the client certificate names
#[utoipa::path(post, path = "/v1/hooks/droplet", tag = "hooks",
    params(("X-Hook-Event" = String, Header, description = "createRuntime, createContainer, poststart, stopContainer or poststop")),
    request_body(content = String, content_type = "application/json", description = "State of the runtime"),
    responses((status = 200, body = Done), (status = 400, body = Failure),
        (status = 403, body = Failure, description = "The certificate speaks for another container, or for none"),
        (status = 409, body = Failure, description = "The event cannot occur in the state of the container"),
        (status = 413, body = Failure), (status = 500, body = Failure)))]
async fn report(
    State(containers): State<ContainerService>,
    Caller(caller): Caller,
    entry: AuditEntry,
    headers: HeaderMap,
    request: Request,
) -> Result<Success<Done>, ApiError> {
    let event = headers
        .get(EVENT_HEADER)
        .map(|v| v.to_str().unwrap_or_default())
        .filter(|v| !v.is_empty());
    let event = event.ok_or_else(|| ApiError::new(Code::UnknownEvent, "invalid request"))?;
    let body = read_body(request, BODY_LIMIT).await;
    let body = body.map_err(|e| ApiError::from(e).prefixed("read hook body failed: "))?;
    let state: HookState =
        serde_json::from_slice(&body).map_err(|e| ApiError::new(Code::InvalidBody, format!("invalid json: {e}")))?;
    entry.target(|target| target.container_id = state.id.clone());
    check_reporter(&containers, &caller, &state.id)
        .map_err(|reason| ApiError::new(Code::ReporterDenied, format!("validate failed: {reason}")))?;

    let failed = |e: ApiError| e.prefixed("service hook failed: ");
    let event: HookEvent = event
        .parse()
        .map_err(|()| ApiError::new(Code::UnknownEvent, format!("csm unknown eventType: {event}")))
        .map_err(failed)?;
    if !STATES.contains(&state.status.as_str()) {
        let sentence = format!("unknown status {:?}; it is one of {}", state.status, STATES.join(", "));
        return Err(failed(ApiError::new(Code::InvalidBody, sentence)));
    }
    containers.hook(event, state).await.map_err(|e| failed(e.into()))?;
    Ok(done("hook applied"))
}

/// A certificate may report only on the container with exactly the id that it contains.
fn check_reporter(containers: &ContainerService, caller: &SpiffeId, reported: &str) -> Result<(), String> {
    let SpiffeId::Container(id) = caller else {
        return Err(format!("invalid spiffe path: {caller}"));
    };
    match containers.find(id) {
        Ok(container) if container.id == *id => {}
        Ok(_) | Err(ContainerError::Ambiguous(_)) => return Err(format!("container: {id} not found")),
        Err(error) => return Err(error.to_string()),
    }
    if id != reported {
        return Err(format!(
            "SPIFFE ID did not match the state ID: spiffe={id}, state={reported}"
        ));
    }
    Ok(())
}
