//! The listeners as clients meet them: real sockets, real TLS, curl as the client (`docs/spec/api.md` 2).

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test may panic, its helpers too"
)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Path as Segment;
use axum::routing::{get, post};
use condenser::api::identity::Role;
use condenser::api::{StrictJson, done, listener, routing};
use condenser::base::pki::Pki;
use condenser::base::pki::pair::{Durability, PairFiles};
use condenser::observe::audit::AuditLog;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rstest::rstest;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

/// One listener of a daemon.
struct Daemon {
    dir: tempfile::TempDir,
    pki: Arc<Pki>,
    audit: AuditLog,
    address: SocketAddr,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
    /// Hears of every request to `/v1/slow` when it begins and when it has ended.
    slow: mpsc::UnboundedReceiver<&'static str>,
    /// Lets it end.
    go_on: Arc<Notify>,
}

impl Daemon {
    async fn start(role: Role) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Arc::new(Pki::load_or_create(&dir.path().join("cert"), &[]).unwrap());
        let audit = AuditLog::open(&dir.path().join("log"), "vm").unwrap();
        let (sender, slow) = mpsc::unbounded_channel();
        let go_on = Arc::new(Notify::new());
        let wait = {
            let go_on = Arc::clone(&go_on);
            move || async move {
                sender.send("begun").unwrap();
                go_on.notified().await;
                sender.send("ended").unwrap();
                done("at last")
            }
        };
        let routes = Router::new()
            .route("/v1/containers", get(|| async { done("list") }))
            .route(
                "/v1/containers/{id}",
                get(|Segment(id): Segment<String>| async move { done(id) }),
            )
            .route(
                "/v1/json",
                post(|StrictJson(value): StrictJson<Value>| async move { done(value.to_string()) }),
            )
            .route("/v1/slow", post(wait));
        let bound = listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = bound.address();
        let shutdown = CancellationToken::new();
        let app = routing::app(routes, role, audit.clone());
        let server = listener::serve(
            vec![bound],
            Arc::clone(&pki),
            app,
            audit.clone(),
            shutdown.clone(),
            PATIENCE,
        );
        Self {
            pki,
            audit,
            address,
            shutdown,
            server: tokio::spawn(server),
            dir,
            slow,
            go_on,
        }
    }

    fn cert(&self, file: &str) -> PathBuf {
        self.dir.path().join("cert").join(file)
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    /// A client certificate of our CA with these URIs. Returns the name of its files.
    fn client(&self, uris: &[&str]) -> PairFiles {
        let ca = PairFiles::new(&self.dir.path().join("cert"), "raindClientCA");
        let ca_certificate = ca.read_certificates().unwrap().unwrap().remove(0);
        let issuer = Issuer::from_ca_cert_der(&ca_certificate, ca.read_key().unwrap().unwrap()).unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = uris
            .iter()
            .map(|u| SanType::URI(Ia5String::try_from(*u).unwrap()))
            .collect();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let files = PairFiles::new(self.dir.path(), &format!("client{}", rand::random::<u32>()));
        files
            .write(&[certificate.der().clone()], &key, Durability::Replaceable)
            .unwrap();
        files
    }

    fn admin(&self) -> PairFiles {
        PairFiles::new(&self.dir.path().join("cert"), "raindClient")
    }

    /// The audit log once it has `n` lines.
    async fn audited(&self, n: usize) -> Vec<Value> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            self.audit.flush().await;
            let text = std::fs::read_to_string(self.dir.path().join("log/raind_audit.jsonl")).unwrap();
            let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            if lines.len() >= n {
                assert_eq!(lines.len(), n, "{text}");
                return lines;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "waiting for {n} audit records: {text}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn curl(&self, pair: Option<&PairFiles>, args: &[&str]) -> Answer {
        curl(&self.cert("raind.crt"), pair, args).await
    }
}

/// What curl says: the code 0 stands for no answer.
#[derive(Debug)]
struct Answer {
    code: u16,
    version: String,
    body: String,
    error: String,
}

impl Answer {
    fn message(&self) -> String {
        let envelope: Value = serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        envelope["message"].as_str().unwrap().to_owned()
    }
}

async fn curl(ca: &Path, pair: Option<&PairFiles>, args: &[&str]) -> Answer {
    let mut command = tokio::process::Command::new("curl");
    command.args([
        "-sS",
        "--max-time",
        "20",
        "--noproxy",
        "*",
        "-w",
        "\n%{http_code} %{http_version}",
        "--cacert",
    ]);
    command.arg(ca).args(args).kill_on_drop(true);
    if let Some(pair) = pair {
        command.arg("--cert").arg(&pair.certificate).arg("--key").arg(&pair.key);
    }
    let Output { stdout, stderr, .. } = command.output().await.unwrap();
    let stdout = String::from_utf8(stdout).unwrap();
    let (body, last) = stdout.rsplit_once('\n').unwrap();
    let (code, version) = last.split_once(' ').unwrap();
    Answer {
        code: code.parse().unwrap(),
        version: version.to_owned(),
        body: body.to_owned(),
        error: String::from_utf8(stderr).unwrap(),
    }
}

#[rstest]
#[case("--http1.1", "1.1")]
#[case("--http2", "2")]
#[tokio::test(flavor = "multi_thread")]
async fn the_admin_is_served_in_both_versions(#[case] option: &str, #[case] version: &str) {
    let daemon = Daemon::start(Role::Cli).await;
    let answer = daemon
        .curl(Some(&daemon.admin()), &[option, &daemon.url("/v1/containers")])
        .await;
    assert_eq!((answer.code, answer.version.as_str()), (200, version), "{answer:?}");
    assert_eq!(answer.body, "{\"status\":\"success\",\"message\":\"list\"}\n");
    let by_address = format!("https://{}/v1/containers", daemon.address);
    assert_eq!(
        daemon.curl(Some(&daemon.admin()), &[option, &by_address]).await.code,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handshake_refuses_with_the_alerts_of_the_contract() {
    let daemon = Daemon::start(Role::Cli).await;
    let url = daemon.url("/v1/containers");
    let elsewhere = Daemon::start(Role::Cli).await;
    for (pair, args, alert) in [
        (None, vec![], "certificate required"),
        (Some(elsewhere.admin()), vec![], "unknown ca"),
        (Some(daemon.admin()), vec!["--tls-max", "1.2"], "protocol version"),
    ] {
        let answer = daemon.curl(pair.as_ref(), &[&args[..], &[&url]].concat()).await;
        assert_eq!(answer.code, 0, "{answer:?}");
        assert!(answer.error.contains(&format!("alert {alert}")), "{answer:?}");
    }
    for line in daemon.audited(3).await {
        assert_eq!(
            (&line["action"], &line["result"]["status"]),
            (&"tls.handshake".into(), &"deny".into())
        );
        assert_eq!(line["actor"]["peer_ip"], "127.0.0.1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_gets_a_hint() {
    let daemon = Daemon::start(Role::Cli).await;
    let mut stream = TcpStream::connect(daemon.address).await.unwrap();
    stream
        .write_all(b"GET /v1/containers HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let hint = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
    assert_eq!(answer, hint);
    drop(stream);
    assert_eq!(
        daemon.audited(1).await[0]["result"]["reason"],
        "plain HTTP on a TLS port"
    );
}

#[rstest]
#[case::no_uri(Role::Cli, &[], 403)]
#[case::two_uris(Role::Cli, &["spiffe://raind/cli/admin", "spiffe://raind/cli/bob"], 403)]
#[case::no_name(Role::Cli, &["spiffe://raind/cli"], 403)]
#[case::other_domain(Role::Cli, &["spiffe://evil/cli/admin"], 403)]
#[case::another_user(Role::Cli, &["spiffe://raind/cli/bob"], 200)]
#[case::container_on_management(Role::Cli, &["spiffe://raind/container/a"], 403)]
#[case::droplet_on_management(Role::Cli, &["spiffe://raind/droplet/container"], 403)]
#[case::cli_on_hooks(Role::Container, &["spiffe://raind/cli/admin"], 403)]
#[case::no_slash(Role::Container, &["spiffe://raind/containerx/a"], 403)]
#[case::container_on_hooks(Role::Container, &["spiffe://raind/container/a"], 200)]
#[case::cli_on_ca(Role::Droplet, &["spiffe://raind/cli/admin"], 403)]
#[case::droplet_on_ca(Role::Droplet, &["spiffe://raind/droplet/container"], 200)]
#[tokio::test(flavor = "multi_thread")]
async fn the_role_is_judged_before_routing(#[case] role: Role, #[case] uris: &[&str], #[case] code: u16) {
    let daemon = Daemon::start(role).await;
    let client = daemon.client(uris);
    let known = daemon.curl(Some(&client), &[&daemon.url("/v1/containers")]).await;
    let unknown = daemon.curl(Some(&client), &[&daemon.url("/v1/nope")]).await;
    assert_eq!(known.code, code, "{known:?}");
    if code == 403 {
        assert_eq!((known.message(), unknown.code), ("forbidden".into(), 403));
    } else {
        assert_eq!((unknown.message(), unknown.code), ("404 page not found".into(), 404));
    }
    let lines = daemon.audited(2).await;
    assert_eq!(lines[0]["result"]["code"], code);
    assert_eq!(lines[0]["result"]["status"], if code == 403 { "deny" } else { "allow" });
    assert_eq!(lines[0]["actor"]["spiffe_id"].as_str(), uris.first().copied());
    assert_eq!(lines[0]["actor"]["certt_fingerprint"].as_str().unwrap().len(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_and_paths_are_exact() {
    let daemon = Daemon::start(Role::Cli).await;
    let admin = daemon.admin();
    for version in ["--http1.1", "--http2"] {
        let head = daemon
            .curl(Some(&admin), &["-I", version, &daemon.url("/v1/containers")])
            .await;
        assert_eq!(head.code, 405, "{head:?}");
        assert!(head.body.to_lowercase().contains("allow: get\r\n"), "{head:?}");
    }
    let slash = daemon.curl(Some(&admin), &[&daemon.url("/v1/containers/")]).await;
    assert_eq!((slash.code, slash.message().as_str()), (404, "404 page not found"));
    let decoded = daemon.curl(Some(&admin), &[&daemon.url("/v1/containers/a%20b")]).await;
    assert_eq!(decoded.message(), "a b");
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn too_large_a_body_is_refused_while_it_is_sent(
    #[values("--http1.1", "--http2")] version: &str,
    #[values("Expect:", "Transfer-Encoding: chunked")] header: &str,
) {
    let daemon = Daemon::start(Role::Cli).await;
    let body = daemon.dir.path().join("body");
    std::fs::write(&body, vec![b' '; 20 << 20]).unwrap();
    let data = format!("@{}", body.display());
    let url = daemon.url("/v1/json");
    let args = [version, "-H", header, "--data-binary", &data, &url];
    let answer = daemon.curl(Some(&daemon.admin()), &args).await;
    assert_eq!(answer.code, 413, "{answer:?}");
}

/// What refuses them does not look at the body.
#[rstest]
#[case("POST", "/v1/nowhere", 404, "404 page not found")]
#[case("PUT", "/v1/containers", 405, "method not allowed")]
#[tokio::test(flavor = "multi_thread")]
async fn an_early_refusal_arrives_although_the_body_is_large(
    #[values("--http1.1", "--http2")] version: &str,
    #[values("Expect:", "Transfer-Encoding: chunked")] header: &str,
    #[case] method: &str,
    #[case] path: &str,
    #[case] code: u16,
    #[case] message: &str,
) {
    let daemon = Daemon::start(Role::Cli).await;
    let body = daemon.dir.path().join("body");
    std::fs::write(&body, vec![b' '; 5 << 20]).unwrap();
    let (data, url) = (format!("@{}", body.display()), daemon.url(path));
    let args = ["-X", method, version, "-H", header, "--data-binary", &data, &url];
    let answer = daemon.curl(Some(&daemon.admin()), &args).await;
    assert_eq!((answer.code, &*answer.error), (code, ""), "{answer:?}");
    assert_eq!(answer.message(), message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_client_keeps_nobody_waiting() {
    let daemon = Daemon::start(Role::Cli).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(daemon.address).await.unwrap());
    }
    let answer = daemon
        .curl(Some(&daemon.admin()), &[&daemon.url("/v1/containers")])
        .await;
    assert_eq!(answer.code, 200);
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_progress_outlives_the_shutdown_signal() {
    let mut daemon = Daemon::start(Role::Cli).await;
    let (ca, admin, url) = (daemon.cert("raind.crt"), daemon.admin(), daemon.url("/v1/slow"));
    let request = tokio::spawn(async move { curl(&ca, Some(&admin), &["-X", "POST", &url]).await });
    assert_eq!(daemon.slow.recv().await, Some("begun"));
    daemon.shutdown.cancel();
    // The socket closes as soon as the signal is seen.
    while TcpStream::connect(daemon.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    daemon.go_on.notify_one();
    assert_eq!(request.await.unwrap().message(), "at last");
    tokio::time::timeout(PATIENCE, daemon.server).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_carried_out_although_its_client_is_gone() {
    let mut daemon = Daemon::start(Role::Cli).await;
    let (ca, admin, url) = (daemon.cert("raind.crt"), daemon.admin(), daemon.url("/v1/slow"));
    let request = tokio::spawn(async move { curl(&ca, Some(&admin), &["-X", "POST", &url]).await });
    assert_eq!(daemon.slow.recv().await, Some("begun"));
    // This kills curl.
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    daemon.go_on.notify_one();
    assert_eq!(daemon.slow.recv().await, Some("ended"));
    assert_eq!(
        daemon.audited(1).await[0]["result"]["code"],
        200,
        "what was done, not what was received"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_used_without_a_restart() {
    let daemon = Daemon::start(Role::Cli).await;
    let former = std::fs::read(daemon.cert("raind.crt")).unwrap();
    daemon.pki.renew_due(&["192.0.2.9".parse().unwrap()]).unwrap();
    assert_ne!(former, std::fs::read(daemon.cert("raind.crt")).unwrap());
    let answer = daemon
        .curl(Some(&daemon.admin()), &[&daemon.url("/v1/containers")])
        .await;
    assert_eq!(answer.code, 200, "{answer:?}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let first = listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let error = listener::bind(first.address()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&first.address().to_string()), "{error}");
}
