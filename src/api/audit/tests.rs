use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::post;
use rstest::rstest;
use tower::ServiceExt;

use super::*;
use crate::api::identity::Role;
use crate::api::{ApiError, Code, done, routing};
use crate::observe::audit::FILE;

struct Fixture {
    dir: tempfile::TempDir,
    log: AuditLog,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open(dir.path(), "vm").unwrap();
        Self { dir, log }
    }

    /// The answer (as text) to a request of this client, from a management listener with a few routes.
    async fn call(&self, request: axum::http::request::Builder, uri: &str) -> String {
        let routes = Router::new()
            .route("/v1/images", post(pull))
            .route("/v1/policies/{id}", axum::routing::delete(missing))
            .route("/v1/policies/commit", post(crash));
        let peer = PeerIdentity {
            address: "[::ffff:192.0.2.7]:1234".parse().unwrap(),
            certificate: Some(crate::api::identity::PeerCertificate {
                spiffe: crate::base::pki::SpiffeId::parse(uri),
                uris: vec![uri.to_owned()],
                fingerprint: "ab".into(),
            }),
        };
        let request = request.extension(Arc::new(peer)).body(Body::empty()).unwrap();
        let app = routing::app(routes, Role::Cli, self.log.clone());
        let body = app.oneshot(request).await.unwrap().into_body();
        String::from_utf8(axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec()).unwrap()
    }

    async fn lines(&self) -> Vec<Value> {
        self.log.flush().await;
        let text = std::fs::read_to_string(self.dir.path().join(FILE)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn only_line(&self) -> Value {
        let mut lines = self.lines().await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.remove(0)
    }
}

async fn pull(audit: AuditEntry) -> impl axum::response::IntoResponse {
    audit.target(|t| t.image_ref = "library/busybox:latest".into());
    audit.extra("os", "linux");
    done("pull completed")
}

async fn missing(audit: AuditEntry) -> ApiError {
    audit.target(|t| t.policy_id = "nope".into());
    ApiError::new(Code::PolicyNotFound, "service failed: ID: nope not found")
}

async fn crash() -> ApiError {
    panic!("on purpose")
}

fn request(method: &str, path: &str) -> axum::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost:7755")
}

const ADMIN: &str = "spiffe://raind/cli/admin";

#[tokio::test]
async fn a_request_is_recorded_as_the_contract_says() {
    let fixture = Fixture::new();
    let body = fixture
        .call(request("POST", "/v1/images?x=1").header("x-request-id", "a/b-1"), ADMIN)
        .await;
    let line = fixture.only_line().await;
    assert_eq!(line["correlation_id"], "a/b-1");
    assert_eq!(
        (&line["severity"], &line["action"]),
        (&"medium".into(), &"image.pull".into())
    );
    let actor = serde_json::json!({"spiffe_id": ADMIN, "certt_fingerprint": "ab", "peer_ip": "192.0.2.7"});
    assert_eq!(line["actor"], actor);
    assert_eq!(
        line["target"],
        serde_json::json!({"image_ref": "library/busybox:latest"})
    );
    assert_eq!(line["extra"], serde_json::json!({"os": "linux"}));
    let asked = serde_json::json!({"method": "POST", "path": "/v1/images", "host": "localhost:7755"});
    assert_eq!(line["request"], asked);
    assert_eq!(
        (&line["result"]["status"], &line["result"]["code"]),
        (&"allow".into(), &200.into())
    );
    assert_eq!(line["result"]["bytes"], body.len());
    assert_eq!(
        line["runtime"],
        serde_json::json!({"component": "condenser", "node": "vm"})
    );
    line["generated_ts"].as_str().unwrap().parse::<Timestamp>().unwrap();
    uuid::Uuid::parse_str(line["event_id"].as_str().unwrap()).unwrap();
}

#[rstest]
#[case("DELETE", "/v1/policies/nope", ADMIN, "policy.delete", "high", "error", 404)]
#[case("POST", "/v1/policies/commit", ADMIN, "policy.commit", "critical", "error", 500)]
#[case(
    "POST",
    "/v1/images",
    "spiffe://raind/droplet/container",
    "image.pull",
    "high",
    "deny",
    403
)]
#[case("GET", "/v1/nope", "spiffe://raind/container/a", "unknown", "medium", "deny", 403)]
#[case("GET", "/v1/nope", ADMIN, "unknown", "medium", "error", 404)]
#[case("HEAD", "/v1/images", ADMIN, "unknown", "medium", "error", 405)]
#[tokio::test]
async fn what_is_not_allowed_is_raised(
    #[case] method: &str,
    #[case] path: &str,
    #[case] uri: &str,
    #[case] action: &str,
    #[case] severity: &str,
    #[case] status: &str,
    #[case] code: u16,
) {
    let fixture = Fixture::new();
    fixture.call(request(method, path), uri).await;
    let line = fixture.only_line().await;
    let found = (
        &line["action"],
        &line["severity"],
        &line["result"]["status"],
        &line["result"]["code"],
    );
    assert_eq!(found, (&action.into(), &severity.into(), &status.into(), &code.into()));
    assert_eq!(line["request"]["method"], method);
    assert!(!line["result"]["reason"].as_str().unwrap().is_empty());
}

#[rstest]
#[case("a b")]
#[case("\"x")]
#[case("")]
#[case(&"a".repeat(129))]
#[tokio::test]
async fn a_harmful_request_id_is_replaced(#[case] id: &str) {
    let fixture = Fixture::new();
    fixture
        .call(request("POST", "/v1/images").header("x-request-id", id), ADMIN)
        .await;
    let made = fixture.only_line().await["correlation_id"].as_str().unwrap().to_owned();
    assert!(made.starts_with("vm/") && made.ends_with("-000001"), "{made}");
}

#[tokio::test]
async fn a_session_that_keeps_the_entry_is_recorded_at_its_end() {
    let fixture = Fixture::new();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let sender = Arc::new(Mutex::new(Some(sender)));
    let upgrade = move |audit: AuditEntry| async move {
        let _ = sender.lock().unwrap().take().unwrap().send(audit);
        StatusCode::SWITCHING_PROTOCOLS
    };
    let app = Router::new()
        .route("/v1/containers/{id}/attach", axum::routing::get(upgrade))
        .layer(from_fn_with_state(fixture.log.clone(), record));
    let request = request("GET", "/v1/containers/a/attach").body(Body::empty()).unwrap();
    drop(app.oneshot(request).await.unwrap());
    assert!(fixture.lines().await.is_empty());
    let session = receiver.await.unwrap();
    session.add_bytes(7);
    drop(session);
    let line = fixture.only_line().await;
    assert_eq!(
        (&line["action"], &line["severity"]),
        (&"ws.attach".into(), &"high".into())
    );
    assert_eq!(line["result"]["code"], 101);
    assert_eq!(line["result"]["bytes"], 7);
}
