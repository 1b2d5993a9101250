//! What hooks may report and which certificates they get (`docs/spec/api.md` 16 and 17), with a runtime that does only
//! what the test tells it, so that a container can be held in any state.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use serde_json::{Value, json};

use crate::support::{Call, Identity, ImageSpec, Lab, Reply, get, post, send, wait_for};

const GATE: &str = "/run/gate";

/// A container in the making, whose `create` ends when the test says so.
struct Making {
    lab: Arc<Lab>,
    id: String,
    request: Option<JoinHandle<Reply>>,
}

impl Making {
    fn begin() -> Self {
        let lab = Arc::new(Lab::start());
        let runtime = "/run/runtime-of-the-test";
        let script = format!("#!/bin/sh\n[ \"$1\" != create ] || while [ ! -e {GATE} ]; do sleep 0.01; done\n");
        std::fs::write(lab.machine().path(runtime), script).unwrap();
        std::fs::set_permissions(lab.machine().path(runtime), PermissionsExt::from_mode(0o755)).unwrap();
        lab.daemon().set("CONDENSER_DROPLET", runtime).start();
        let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
        let wish = json!({ "image": image, "name": "web", "command": ["true"] });
        let request = std::thread::spawn({
            let lab = Arc::clone(&lab);
            move || lab.api().call(post("/v1/containers", wish))
        });
        let id = wait_for("a container in the making", Duration::from_secs(10), || {
            let list = lab.api().ok(get("/v1/containers"));
            let id = list[0]["containerId"].as_str().map(str::to_owned);
            id.ok_or_else(|| list.to_string())
        });
        Self {
            lab,
            id,
            request: Some(request),
        }
    }

    /// Lets `create` end.
    fn finish(&mut self) {
        std::fs::write(self.lab.machine().path(GATE), "").unwrap();
        let reply = self.request.take().unwrap().join().unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    fn state(&self) -> String {
        self.lab.api().container(&self.id)["state"].as_str().unwrap().to_owned()
    }

    /// Asks for a signature as the runtime does.
    fn sign(&self, request: impl Into<Vec<u8>>) -> Reply {
        self.lab
            .api_as(7757, Identity::Hook)
            .call(send("POST", "/v1/pki/sign", request))
    }

    /// Reports as the container of this id.
    fn report_as(&self, id: &str, call: Call) -> Reply {
        let identity = Identity::Issued(vec![format!("spiffe://raind/container/{id}")]);
        self.lab.api_as(7756, identity).call(call)
    }

    /// Reports an event of the container itself.
    fn report(&self, event: &str, state: Value) -> Reply {
        self.report_as(&self.id, hook(event, state))
    }

    fn audited(&self, action: &str) -> Vec<Value> {
        let log = self.lab.machine().read("/var/log/raind/raind_audit.jsonl");
        let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.filter(|record| record["action"] == action).collect()
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // A failed test must not leave the request waiting for a runtime that waits for the test.
        let _ = std::fs::write(self.lab.machine().path(GATE), "");
        if let Some(request) = self.request.take() {
            let _ = request.join();
        }
    }
}

fn hook(event: &str, state: Value) -> Call {
    post("/v1/hooks/droplet", state).header("x-hook-event", event)
}

fn signing_request(uris: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "raind-client");
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().unwrap()))
        .collect();
    params
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap()
}

#[test]
fn a_container_in_the_making_gets_one_certificate() {
    let mut making = Making::begin();
    let own = format!("spiffe://raind/container/{}", making.id);
    for (uris, message) in [
        (&[][..], "spiffe policy denied: exactly one URI SAN is required"),
        (
            &[own.as_str(), own.as_str()][..],
            "spiffe policy denied: exactly one URI SAN is required",
        ),
        (
            &["https://raind/container/a"][..],
            "spiffe policy denied: scheme must be spiffe",
        ),
        (
            &["spiffe://evil/container/a"][..],
            "spiffe policy denied: trust domain must be \"raind\"",
        ),
        (
            &["spiffe://raind/container/a/b"][..],
            "spiffe policy denied: path must be /<role>/<id>",
        ),
        (
            &["spiffe://raind/container/A"][..],
            "spiffe policy denied: invalid characters in role/id",
        ),
        (&["spiffe://raind/cli/admin"][..], "role not allowed"),
        (
            &["spiffe://raind/container/01nobody0000"][..],
            "issue cert: invalid container id",
        ),
        // Its name is not its identity.
        (
            &["spiffe://raind/container/web"][..],
            "issue cert: invalid container id",
        ),
    ] {
        let said = making.sign(signing_request(uris)).refused(403, "");
        assert_eq!(said, message);
    }
    making.sign("hello").refused(400, "invalid csr");
    making
        .sign(vec![b'x'; (1 << 20) + 1])
        .refused(400, "request body: request too large");

    let signed = making.sign(signing_request(&[&own]));
    assert_eq!(signed.status, 200, "{}", signed.text());
    assert_eq!(signed.headers["content-type"], "application/x-pem-file");
    assert!(signed.text().starts_with("-----BEGIN CERTIFICATE-----\n"));
    making
        .sign(signing_request(&[&own]))
        .refused(403, "issue cert: invalid container id");

    making.finish();
    making
        .sign(signing_request(&[&own]))
        .refused(403, "issue cert: invalid container id");
    let records = making.audited("pki.sign");
    let granted = records.iter().find(|record| record["result"]["code"] == 200).unwrap();
    assert_eq!(
        granted["target"],
        json!({ "common_name": "raind-client", "san_uri": [own] })
    );
    assert_eq!(granted["severity"], "high");
    assert!(
        records
            .iter()
            .any(|r| r["result"]["status"] == "deny" && r["severity"] == "critical")
    );
}

#[test]
fn a_report_has_to_be_one_of_its_own_container() {
    let making = Making::begin();
    let id = making.id.as_str();
    let state = json!({ "id": id, "status": "creating" });
    making
        .report_as(id, post("/v1/hooks/droplet", state.clone()))
        .refused(400, "invalid request");
    making.report("", state.clone()).refused(400, "invalid request");
    let text = |body: &[u8]| send("POST", "/v1/hooks/droplet", body).header("x-hook-event", "createRuntime");
    making.report_as(id, text(b"{")).refused(400, "invalid json: ");
    making
        .report_as(id, text(&vec![b' '; (1 << 20) + 1]))
        .refused(413, "read hook body failed: ");

    let other = making.report("createRuntime", json!({ "id": "01kother0000", "status": "creating" }));
    let mismatch = format!("validate failed: SPIFFE ID did not match the state ID: spiffe={id}, state=01kother0000");
    assert_eq!(other.refused(403, ""), mismatch);
    let ghost = making.report_as(
        "ghost",
        hook("createRuntime", json!({ "id": "ghost", "status": "creating" })),
    );
    assert_eq!(ghost.refused(403, ""), "validate failed: container: ghost not found");
    let by_name = making.report_as(
        "web",
        hook("createRuntime", json!({ "id": "web", "status": "creating" })),
    );
    by_name.refused(403, "validate failed: ");

    let unknown = making.report("startContainer", state);
    assert_eq!(
        unknown.refused(400, ""),
        "service hook failed: csm unknown eventType: startContainer"
    );
    making
        .report("createRuntime", json!({ "id": id, "status": "free text" }))
        .refused(400, "service hook failed: ");
    making
        .report("createRuntime", json!({ "id": id }))
        .refused(400, "service hook failed: ");

    let denied = making.audited("hook.createRuntime");
    let denied = denied
        .iter()
        .find(|r| r["target"]["container_id"] == "01kother0000")
        .unwrap();
    assert_eq!(
        (&denied["result"]["status"], &denied["severity"]),
        (&json!("deny"), &json!("high"))
    );
    assert_eq!(
        making.audited("hook.apply").len(),
        3,
        "no event, an empty one, an unknown one"
    );
}

#[test]
fn events_are_taken_in_the_states_where_they_can_occur() {
    let mut making = Making::begin();
    let state = json!({ "id": making.id, "status": "running", "pid": 4711, "more": { "is": "allowed" } });
    let applied = |making: &Making, event: &str| {
        let reply = making.report(event, state.clone());
        assert_eq!((reply.status, reply.text().as_str()), (200, APPLIED), "{event}");
    };
    let refused = |making: &Making, event: &str| {
        making
            .report(event, state.clone())
            .refused(409, "service hook failed: ");
    };

    refused(&making, "poststart");
    refused(&making, "stopContainer");
    applied(&making, "createRuntime");
    assert_eq!(making.state(), "creating", "not what the report says");
    applied(&making, "createContainer");
    assert_eq!(making.state(), "created");
    refused(&making, "createRuntime");
    refused(&making, "createContainer");
    making.finish();

    applied(&making, "poststart");
    assert_eq!(making.state(), "running");
    for event in ["createRuntime", "createContainer", "poststart", "poststop"] {
        refused(&making, event);
    }
    let end = json!({ "id": making.id, "status": "stopped", "exit_code": 3, "reason": "Error", "message": "gone" });
    assert_eq!(making.report("stopContainer", end.clone()).status, 200);
    let container = making.lab.api().container(&making.id);
    let shown = ["state", "exitCode", "reason", "message"].map(|field| container[field].clone());
    assert_eq!(shown, [json!("stopped"), json!(3), json!("Error"), json!("gone")]);
    // Late and repeated reports change nothing.
    applied(&making, "poststart");
    assert_eq!(making.report("stopContainer", end).status, 200);
    applied(&making, "poststop");
    assert_eq!(making.state(), "stopped");
}

const APPLIED: &str = "{\"status\":\"success\",\"message\":\"hook applied\"}\n";
