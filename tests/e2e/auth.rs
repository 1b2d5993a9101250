//! Who gets in where (`docs/spec/api.md` 2), and that every request is in the audit log.

use serde_json::{Value, json};

use crate::support::{Api, Identity, Lab, Place, get, post, send};
use crate::{lab_with_busybox, until_term};

const LISTENERS: [(u16, &str, &str); 3] = [
    (7755, "GET", "/v1/containers"),
    (7756, "POST", "/v1/hooks/droplet"),
    (7757, "POST", "/v1/pki/sign"),
];

fn issued(uris: &[&str]) -> Identity {
    Identity::Issued(uris.iter().map(|uri| (*uri).to_owned()).collect())
}

fn audit(lab: &Lab) -> Vec<Value> {
    let log = lab.machine().read("/var/log/raind/raind_audit.jsonl");
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

#[test]
fn without_a_certificate_of_ours_there_is_no_http() {
    let lab = Lab::running();
    for (port, method, path) in LISTENERS {
        let refusal = |identity| {
            lab.api_as(port, identity)
                .try_call(send(method, path, "{}"))
                .unwrap_err()
        };
        let alert = refusal(Identity::Anonymous);
        assert!(alert.contains("CertificateRequired"), "{port}: {alert}");
        let alert = refusal(Identity::Foreign("spiffe://raind/cli/admin".into()));
        assert!(
            alert.contains("UnknownCA") || alert.contains("unknown ca"),
            "{port}: {alert}"
        );
    }
}

#[test]
fn a_certificate_opens_its_own_listener_only() {
    let (lab, image) = lab_with_busybox();
    let container = lab.api().run(json!({ "image": image, "command": until_term(0) }));
    let identities = [
        (Identity::Cli, 7755),
        (Identity::Container(container), 7756),
        (Identity::Hook, 7757),
        (issued(&[]), 0),
        (issued(&["spiffe://raind/cli"]), 0),
        (issued(&["spiffe://raind/cli/"]), 0),
        (issued(&["spiffe://raind/cli/a/b"]), 0),
        (issued(&["spiffe://raind/containers/x"]), 0),
        (issued(&["spiffe://raind.example/cli/admin"]), 0),
        (issued(&["https://raind/cli/admin"]), 0),
        (issued(&["spiffe://raind/cli/admin", "spiffe://raind/cli/other"]), 0),
    ];
    for (identity, own) in identities {
        for (port, method, path) in LISTENERS {
            let api = lab.api_as(port, identity.clone());
            let reply = api.call(send(method, path, "{}"));
            if port == own {
                assert_ne!(reply.status, 403, "{identity:?} on {port}: {}", reply.text());
            } else {
                assert_eq!(reply.refused(403, "forbidden"), "forbidden", "{identity:?} on {port}");
                // Before routing: nothing is told about which paths exist.
                api.call(get("/nowhere")).refused(403, "forbidden");
            }
        }
    }
}

#[test]
fn only_tls_13_is_spoken_with_either_http() {
    let lab = Lab::running();
    let curl = |options: &[&str]| {
        let certificates = [
            "--cacert",
            "raind.crt",
            "--cert",
            "raindClient.crt",
            "--key",
            "raindClient.key",
        ]
        .map(|word| {
            if word.contains('.') {
                format!("/etc/raind/cert/{word}")
            } else {
                word.into()
            }
        });
        let common = ["curl", "-sS", "--max-time", "10", "-w", "%{http_version} %{http_code}"];
        let argv: Vec<_> = common
            .iter()
            .copied()
            .chain(certificates.iter().map(String::as_str))
            .collect();
        let output = lab.machine().output(&[&argv[..], options].concat());
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let url = "https://localhost:7755/v1/containers";
    assert!(curl(&["--http2", url]).ends_with("}\n2 200"));
    assert!(curl(&["--http1.1", url]).ends_with("}\n1.1 200"));
    let old = curl(&["--tls-max", "1.2", url]);
    assert!(old.contains("protocol version"), "{old}");
    let plain = curl(&["--http0.9", "http://localhost:7755/v1/containers"]);
    assert!(
        plain.contains("Client sent an HTTP request to an HTTPS server.") && plain.contains("400"),
        "{plain}"
    );
}

#[test]
fn every_request_is_audited_refused_ones_too() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let call = post(
        "/v1/containers",
        json!({ "image": image, "name": "audited", "env": ["TOKEN=hush"] }),
    );
    assert_eq!(api.call(call.header("x-request-id", "trace-1")).status, 200);
    lab.api_as(7755, Identity::Hook)
        .call(get("/v1/containers"))
        .refused(403, "forbidden");
    api.call(get("/v1/containers/nosuch")).refused(404, "");
    let records = crate::support::wait_for("the audit log", std::time::Duration::from_secs(5), || {
        let records = audit(&lab);
        let all = [
            "container.create",
            "container.list",
            "container.info",
            "image.pull",
            "pki.sign",
            "hook.createContainer",
        ];
        let missing: Vec<_> = all
            .iter()
            .filter(|action| !records.iter().any(|r| r["action"] == **action))
            .collect();
        if missing.is_empty() {
            Ok(records)
        } else {
            Err(format!("no {missing:?}"))
        }
    });
    let find = |action: &str| records.iter().find(|record| record["action"] == action).unwrap();

    let created = find("container.create");
    assert_eq!(created["correlation_id"], "trace-1");
    assert_eq!(created["severity"], "medium");
    assert_eq!(created["actor"]["spiffe_id"], "spiffe://raind/cli/admin");
    assert_eq!(created["actor"]["certt_fingerprint"].as_str().unwrap().len(), 64);
    assert_eq!(created["target"]["container_name"], "audited");
    assert_eq!(created["request"]["method"], "POST");
    assert_eq!(created["result"]["status"], "allow");
    assert_eq!(created["result"]["code"], 200);
    assert_eq!(created["runtime"]["component"], "condenser");

    let denied = find("container.list");
    assert_eq!(
        (&denied["result"]["status"], &denied["severity"]),
        (&json!("deny"), &json!("low"))
    );
    let failed = find("container.info");
    assert_eq!(
        (&failed["result"]["status"], &failed["result"]["code"]),
        (&json!("error"), &json!(404))
    );
    assert!(!lab.machine().read("/var/log/raind/raind_audit.jsonl").contains("hush"));
}

#[test]
fn keys_are_private_and_new() {
    let lab = Lab::running();
    let listed = lab
        .machine()
        .run(&["stat", "-c", "%n %a %U", "/etc/raind/cert", "/etc/raind/store"]);
    assert!(listed.lines().all(|line| line.ends_with("700 root")), "{listed}");
    for name in ["raind", "raindClientCA", "raindClient", "raindHookClient"] {
        let modes = lab.machine().run(&[
            "stat",
            "-c",
            "%a",
            &format!("/etc/raind/cert/{name}.key"),
            &format!("/etc/raind/cert/{name}.crt"),
        ]);
        assert_eq!(modes, "600\n644\n", "{name}");
        let key = lab.machine().read(&format!("/etc/raind/cert/{name}.key"));
        assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "{name}");
    }
    // A restart keeps them.
    let before = lab.machine().read("/etc/raind/cert/raindClient.crt");
    lab.daemon().restart();
    assert_eq!(lab.machine().read("/etc/raind/cert/raindClient.crt"), before);
}

#[test]
fn listeners_are_bound_where_they_should_be() {
    let lab = Lab::running();
    let open = |place: Place, address: &str| {
        let address = address.parse().unwrap();
        lab.machine().at(place, || {
            std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_secs(2)).is_ok()
        })
    };
    assert!(open(Place::Host, "127.0.0.1:7755") && open(Place::Host, "192.0.2.2:7756"));
    for port in [7755, 7757, 7758] {
        assert!(
            !open(Place::Outside, &format!("192.0.2.2:{port}")),
            "{port} is open to the outside"
        );
    }
}

#[test]
fn many_clients_at_once_are_served() {
    let lab = Lab::running();
    let api: &Api = &lab.api();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..10 {
                    api.ok(get("/v1/containers"));
                }
            });
        }
    });
}
