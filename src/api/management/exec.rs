//! `…/actions/exec` (`docs/spec/api.md` 5.8). `wait` is not in the contract and is off by default.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::Management;
use super::containers::{Id, about};
use crate::api::{ApiError, AuditEntry, Client, Code, Failure, PathParams, StrictJson, Success, SuccessBody, success};
use crate::runtime::exec::ExecOutcome;
use crate::workload::container::ExecRequest;

/// A command to run in a container.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExecBody {
    /// Argument vector, not empty.
    #[schema(required)]
    command: Vec<String>,
    /// Pseudo-terminal, reached through the exec attach.
    tty: bool,
    /// Answer when it has ended, with exit code and output. Not with `tty`. A client that goes away ends it.
    wait: bool,
    /// With `wait`: seconds until it is killed, with what it has started; 1 to 3600 [default: no limit]
    timeout: Option<u32>,
}

/// What the answer says.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Executed {
    /// Without `wait`.
    Launched(Id),
    /// With `wait`.
    Ended(Ended),
}

/// How a command ended that was waited for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// The parameter as given.
    id: String,
    /// Exit status, or 128 + signal number; 137 after a time-out. 127 when there is no such program, 126 when it cannot
    /// be executed; `stderr` then says why.
    exit_code: i32,
    /// Standard output, at most its last MiB. What is not UTF-8 is replaced by U+FFFD.
    stdout: String,
    /// Standard error, likewise.
    stderr: String,
    /// Whether the beginning of one of them is missing.
    truncated: bool,
    /// Whether it was killed because its time was over.
    timed_out: bool,
}

impl Ended {
    fn new(id: String, outcome: ExecOutcome) -> Self {
        Self {
            id,
            exit_code: outcome.exit_code,
            stdout: text(outcome.stdout),
            stderr: text(outcome.stderr),
            truncated: outcome.truncated,
            timed_out: outcome.timed_out,
        }
    }
}

/// Most output is valid UTF-8 and does not need to be copied.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

impl ExecBody {
    fn check(&self) -> Result<(), ApiError> {
        if self.wait && self.tty {
            return Err(ApiError::new(Code::InvalidOption, "wait and tty exclude each other"));
        }
        if self.timeout.is_some() && !self.wait {
            return Err(ApiError::new(Code::InvalidOption, "timeout requires wait"));
        }
        Ok(())
    }
}

/// Run one more process in a running container; the answer comes when it was launched, or with `wait` when it has ended
#[utoipa::path(post, path = "/v1/containers/{containerId}/actions/exec", tag = "containers",
    params(("containerId" = String, Path)), request_body = ExecBody,
    responses((status = 200, body = SuccessBody<Executed>), (status = 400, body = Failure),
        (status = 404, body = Failure), (status = 409, body = Failure), (status = 500, body = Failure)))]
pub async fn exec(
    State(m): State<Management>,
    entry: AuditEntry,
    client: Client,
    PathParams(id): PathParams<String>,
    body: Result<StrictJson<ExecBody>, ApiError>,
) -> Result<Success<SuccessBody<Executed>>, ApiError> {
    about(&m, &entry, &id);
    let StrictJson(body) = body.map_err(|e| e.with_data(json!({ "id": id })))?;
    entry.target(|target| {
        target.command = body.command.clone();
        target.tty = body.tty;
    });
    let executed = match body.check() {
        Err(error) => Err(error),
        Ok(()) if body.wait => wait(&m, &client, &id, body).await,
        Ok(()) => {
            let launched = m.containers.exec(&id, body.tty, body.command).await;
            launched
                .map(|()| Executed::Launched(Id { id: id.clone() }))
                .map_err(ApiError::from)
        }
    };
    let executed = executed.map_err(|error| {
        let error = error.prefixed("service failed: ");
        // On this route, only invalid requests have data in the error.
        if error.status() == StatusCode::BAD_REQUEST {
            error.with_data(json!({ "id": id }))
        } else {
            error
        }
    })?;
    Ok(success("container executed", executed))
}

/// Kills the process when its client disconnects or the daemon shuts down.
async fn wait(m: &Management, client: &Client, id: &str, body: ExecBody) -> Result<Executed, ApiError> {
    let request = ExecRequest {
        command: body.command,
        timeout: body.timeout.map(|seconds| Duration::from_secs(seconds.into())),
    };
    tokio::select! {
        outcome = m.containers.exec_wait(id, request) => Ok(Executed::Ended(Ended::new(id.to_owned(), outcome?))),
        () = client.gone() => Err(killed("the client has gone")),
        () = m.sessions.stop.cancelled() => Err(killed("the daemon is shutting down")),
    }
}

fn killed(because: &str) -> ApiError {
    ApiError::new(Code::Cancelled, format!("{because}; the process was killed"))
}
