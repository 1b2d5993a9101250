use axum::Router;
use axum::extract::Request;
use axum::routing::post;
use futures_util::StreamExt;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use std::sync::Arc;

use super::*;
use crate::api::success;
use crate::observe::audit::{AuditLog, FILE};
use crate::ops::progress::{Transfer, TransferState};

fn sessions() -> Sessions {
    Sessions {
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
    }
}

/// What happens in an operation.
#[derive(Clone, Default)]
struct Script {
    /// Events before it waits.
    events: Vec<ProgressEvent>,
    /// It waits for this, if anything.
    gate: Option<Arc<Notify>>,
    /// It ends when its client goes away.
    for_its_client: bool,
    /// Its result.
    fails: bool,
}

fn app(script: Script, sessions: Sessions) -> Router {
    let handler = move |answer: ProgressAnswer| async move {
        let operation = move |reporter: Reporter, client: Client| async move {
            for event in script.events {
                reporter.report(event).await;
            }
            let opened = async {
                if let Some(gate) = &script.gate {
                    gate.notified().await;
                }
            };
            tokio::select! {
                () = opened => {}
                () = client.gone(), if script.for_its_client => {
                    return Err(ApiError::new(Code::Cancelled, "cancelled"));
                }
            }
            match script.fails {
                false => Ok(success("all done", json!({ "image": "a" }))),
                true => Err(ApiError::new(Code::ManifestNotFound, "nothing there")),
            }
        };
        answer.run(&sessions, operation).await
    };
    Router::new().route("/v1/images", post(handler))
}

async fn call(app: Router, accept: &str) -> Response {
    let request = Request::post("/v1/images").header("accept", accept).body(Body::empty());
    app.oneshot(request.unwrap()).await.unwrap()
}

fn layer(state: TransferState, done: u64) -> ProgressEvent {
    ProgressEvent::Transfer(Transfer {
        digest: "sha256:a".into(),
        state,
        done,
        total: 10,
    })
}

/// Status, content type and body.
async fn parts(response: Response) -> (u16, String, String) {
    let (status, kind) = (
        response.status().as_u16(),
        response.headers()[header::CONTENT_TYPE].clone(),
    );
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (
        status,
        kind.to_str().unwrap().to_owned(),
        String::from_utf8(body.to_vec()).unwrap(),
    )
}

#[rstest]
#[case("application/x-ndjson", true)]
#[case("Application/X-NDJSON, */*", true)]
#[case("application/x-ndjson;q=0.9, */*", true)]
#[case("application/x-ndjson, application/json", true)]
#[case("application/json;q=0.5, application/x-ndjson;q=0.6", true)]
#[case("application/json, application/x-ndjson", false)]
#[case("application/x-ndjson;q=0.5, application/json", false)]
#[case("application/x-ndjson;q=0", false)]
#[case("application/x-ndjson;q=x", false)]
#[case("application/json", false)]
#[case("*/*", false)]
#[case("", false)]
fn lines_have_to_be_preferred(#[case] accept: &str, #[case] wanted: bool) {
    let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
    assert_eq!(prefers_lines(&headers), wanted);
    assert!(!prefers_lines(&HeaderMap::new()));
}

#[tokio::test]
async fn a_client_that_does_not_ask_gets_the_plain_answer() {
    for (fails, status, body) in [
        (
            false,
            200,
            "{\"status\":\"success\",\"message\":\"all done\",\"data\":{\"image\":\"a\"}}\n",
        ),
        (
            true,
            404,
            "{\"status\":\"fail\",\"message\":\"nothing there\",\"code\":\"manifest_not_found\"}\n",
        ),
    ] {
        let script = Script {
            events: vec![ProgressEvent::Phase("resolving")],
            fails,
            ..Script::default()
        };
        let response = call(app(script, sessions()), "*/*").await;
        assert_eq!(parts(response).await, (status, "application/json".into(), body.into()));
    }
}

#[tokio::test]
async fn events_are_lines_and_the_last_one_is_the_result() {
    let script = Script {
        events: vec![
            ProgressEvent::Phase("layers"),
            layer(TransferState::Downloading, 1),
            layer(TransferState::Downloading, 5),
            layer(TransferState::Downloading, 9),
        ],
        ..Script::default()
    };
    let response = call(app(script.clone(), sessions()), MEDIA_TYPE).await;
    let (status, kind, body) = parts(response).await;
    assert_eq!((status, kind.as_str()), (200, MEDIA_TYPE));
    let lines: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: Vec<String> = lines
        .iter()
        .map(|line| format!("{} {}", line["event"].as_str().unwrap(), line["done"]))
        .collect();
    // Those in between are left out, the last one is not.
    assert_eq!(said, ["phase null", "transfer 1", "transfer 9", "result null"]);
    assert_eq!(
        lines[3],
        json!({ "event": "result", "message": "all done", "data": { "image": "a" } })
    );

    let failing = Script { fails: true, ..script };
    let (status, _, body) = parts(call(app(failing, sessions()), MEDIA_TYPE).await).await;
    assert_eq!(status, 200, "it had begun");
    assert_eq!(
        body.lines().last().unwrap(),
        r#"{"event":"error","status":404,"code":"manifest_not_found","message":"nothing there"}"#
    );
}

#[tokio::test]
async fn what_fails_before_it_begins_is_an_ordinary_failure() {
    let script = Script {
        fails: true,
        ..Script::default()
    };
    let (status, kind, body) = parts(call(app(script, sessions()), MEDIA_TYPE).await).await;
    assert_eq!((status, kind.as_str()), (404, "application/json"), "{body}");
    let silent = call(app(Script::default(), sessions()), MEDIA_TYPE).await;
    let (status, _, body) = parts(silent).await;
    assert_eq!(
        (status, body.as_str()),
        (
            200,
            "{\"event\":\"result\",\"message\":\"all done\",\"data\":{\"image\":\"a\"}}\n"
        )
    );
}

#[tokio::test(start_paused = true)]
async fn while_nothing_happens_empty_lines_keep_the_connection() {
    let gate = Arc::new(Notify::new());
    let script = Script {
        gate: Some(gate.clone()),
        ..Script::default()
    };
    let mut body = call(app(script, sessions()), MEDIA_TYPE)
        .await
        .into_body()
        .into_data_stream();
    let begun = tokio::time::Instant::now();
    for _ in 0..2 {
        assert_eq!(body.next().await.unwrap().unwrap(), "\n");
    }
    let passed = begun.elapsed();
    assert!(passed >= SILENCE && passed < SILENCE * 3, "{passed:?}");
    gate.notify_one();
    assert!(
        body.next()
            .await
            .unwrap()
            .unwrap()
            .starts_with(b"{\"event\":\"result\"")
    );
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn an_operation_for_its_client_alone_ends_when_the_client_leaves() {
    let gate = Arc::new(Notify::new());
    for for_its_client in [true, false] {
        let sessions = sessions();
        let script = Script {
            events: vec![ProgressEvent::Phase("layers")],
            gate: Some(gate.clone()),
            for_its_client,
            ..Script::default()
        };
        let response = call(app(script, sessions.clone()), MEDIA_TYPE).await;
        let mut body = response.into_body().into_data_stream();
        body.next().await.unwrap().unwrap();
        drop(body);
        if !for_its_client {
            gate.notify_one();
        }
        sessions.tasks.close();
        sessions.tasks.wait().await;
    }
}

#[tokio::test]
async fn at_the_end_of_the_daemon_the_answer_says_so() {
    let sessions = sessions();
    let script = Script {
        events: vec![ProgressEvent::Phase("layers")],
        gate: Some(Arc::default()),
        ..Script::default()
    };
    let response = call(app(script, sessions.clone()), MEDIA_TYPE).await;
    sessions.stop.cancel();
    let (_, _, body) = parts(response).await;
    assert!(body.contains("\"code\":\"cancelled\""), "{body}");
    sessions.tasks.close();
    sessions.tasks.wait().await;
}

/// The audit record has the outcome of the operation, not the status of the head.
#[rstest]
#[case(true, false, 404, "nothing there")]
#[case(false, false, 200, "")]
#[case(true, true, 404, "nothing there")]
#[tokio::test]
async fn the_audit_record_has_the_outcome(
    #[case] fails: bool,
    #[case] leaves: bool,
    #[case] code: u16,
    #[case] reason: &str,
) {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "vm").unwrap();
    let (sessions, gate) = (sessions(), Arc::new(Notify::new()));
    let script = Script {
        events: vec![ProgressEvent::Phase("layers")],
        gate: Some(gate.clone()),
        fails,
        ..Script::default()
    };
    let app = app(script, sessions.clone());
    let app = app.layer(axum::middleware::from_fn_with_state(
        log.clone(),
        crate::api::audit::record,
    ));
    let response = call(app, MEDIA_TYPE).await;
    if leaves {
        drop(response);
        gate.notify_one();
    } else {
        gate.notify_one();
        parts(response).await;
    }
    sessions.tasks.close();
    sessions.tasks.wait().await;
    log.flush().await;
    let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1, "{text}");
    let result = &lines[0]["result"];
    assert_eq!(
        (&result["code"], result["reason"].as_str().unwrap_or_default()),
        (&json!(code), reason)
    );
    assert_eq!(lines[0]["action"], "image.pull");
}
