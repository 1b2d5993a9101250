//! The real hook agent against real listeners (`docs/spec/runtime.md` 7).

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test may panic, its helpers too"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use condenser::api::identity::Role;
use condenser::api::{ApiError, Code, done, listener, routing};
use condenser::base::pki::pair::{Durability, PairFiles, belongs_to, expires_within};
use condenser::base::pki::spiffe::uri_names;
use condenser::base::pki::{Pki, SigningRequest};
use condenser::observe::audit::AuditLog;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rstest::rstest;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

const ID: &str = "01kg2cnf0ytv";
const STATE: &str =
    "{\n    \"ociVersion\": \"1.3.0\",\n    \"id\": \"01kg2cnf0ytv\",\n    \"status\": \"creating\"\n}\n";

/// What a daemon was told: event, content type, body.
type Told = Arc<Mutex<Vec<(String, String, String)>>>;

/// The two listeners that hooks talk to. What they hear is recorded; they answer as the contract says.
struct Daemon {
    dir: tempfile::TempDir,
    hooks: u16,
    signing: u16,
    told: Told,
    /// What is answered instead of a success.
    refusal: Arc<Mutex<Option<ApiError>>>,
    _stop: tokio_util::sync::DropGuard,
}

#[derive(Clone)]
struct Heard {
    told: Told,
    refusal: Arc<Mutex<Option<ApiError>>>,
    pki: Arc<Pki>,
}

impl Heard {
    fn hear(&self, headers: &HeaderMap, body: &Bytes) -> Result<(), ApiError> {
        let header = |name| headers.get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
        let body = String::from_utf8(body.to_vec()).unwrap();
        self.told
            .lock()
            .unwrap()
            .push((header("x-hook-event"), header("content-type"), body));
        self.refusal.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

async fn hook(State(heard): State<Heard>, headers: HeaderMap, body: Bytes) -> Response {
    let heard = heard.hear(&headers, &body);
    heard.map(|()| done("hook applied")).into_response()
}

async fn sign(State(heard): State<Heard>, headers: HeaderMap, body: Bytes) -> Result<String, ApiError> {
    heard.hear(&headers, &body)?;
    let request = SigningRequest::parse(&body).unwrap();
    assert_eq!(request.common_name, "raind-client");
    Ok(heard
        .pki
        .sign_container(request.container_id().unwrap(), &request)
        .unwrap())
}

impl Daemon {
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    /// `prepare` gets the certificate directory before the daemon does.
    async fn start_with(prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("cert")).unwrap();
        std::fs::create_dir_all(dir.path().join("container").join(ID).join("cert")).unwrap();
        prepare(&dir.path().join("cert"));
        let pki = Arc::new(Pki::load_or_create(&dir.path().join("cert"), &[]).unwrap());
        let audit = AuditLog::open(&dir.path().join("log"), "vm").unwrap();
        let stop = CancellationToken::new();
        let told = Told::default();
        let refusal = Arc::default();
        let heard = Heard {
            told: Arc::clone(&told),
            refusal: Arc::clone(&refusal),
            pki: Arc::clone(&pki),
        };
        let serve = async |route: &str, handler, role| {
            let routes = Router::new().route(route, handler).with_state(heard.clone());
            let bound = listener::bind("0.0.0.0:0".parse().unwrap()).await.unwrap();
            let port = bound.address().port();
            let app = routing::app(routes, role, audit.clone());
            let time = Duration::from_secs(10);
            tokio::spawn(listener::serve(
                vec![bound],
                Arc::clone(&pki),
                app,
                audit.clone(),
                stop.clone(),
                time,
            ));
            port
        };
        Self {
            hooks: serve("/v1/hooks/droplet", post(hook), Role::Container).await,
            signing: serve("/v1/pki/sign", post(sign), Role::Droplet).await,
            dir,
            told,
            refusal,
            _stop: stop.drop_guard(),
        }
    }

    fn container(&self) -> PairFiles {
        PairFiles::new(&self.container_cert(), "client")
    }

    fn container_cert(&self) -> PathBuf {
        self.dir.path().join("container").join(ID).join("cert")
    }

    fn refuse(&self, code: Code, message: &str) {
        *self.refusal.lock().unwrap() = Some(ApiError::new(code, message));
    }

    fn told(&self) -> Vec<(String, String, String)> {
        self.told.lock().unwrap().clone()
    }

    async fn request_certificate(&self) -> Outcome {
        let url = format!("https://localhost:{}/v1/pki/sign", self.signing);
        let hook = PairFiles::new(&self.dir.path().join("cert"), "raindHookClient");
        self.agent(&url, "requestCert", &hook).await
    }

    async fn report(&self, event: &str) -> Outcome {
        self.agent(&self.hook_url("localhost"), event, &self.container()).await
    }

    fn hook_url(&self, host: &str) -> String {
        format!("https://{host}:{}/v1/hooks/droplet", self.hooks)
    }

    async fn agent(&self, url: &str, event: &str, pair: &PairFiles) -> Outcome {
        let ca = self.dir.path().join("cert/raind.crt");
        let agent = env!("CARGO_BIN_EXE_condenser-hook-agent");
        let mut command = tokio::process::Command::new(agent);
        // The path again, as a runtime hands it over that does not know argv[0] to be there already.
        command
            .arg(agent)
            .args(["--url", url, "--event", event, "--ca"])
            .arg(&ca);
        command.arg("--cert").arg(&pair.certificate).arg("--key").arg(&pair.key);
        command.env_clear().env("RAIND-HOOK-SETTER", "CONDENSER");
        command.env("RAIND_ROOT_DIR", self.dir.path().join("container"));
        command
            .env("HTTPS_PROXY", "http://127.0.0.1:9")
            .env("https_proxy", "http://127.0.0.1:9");
        run(command, STATE).await
    }

    /// Gives the container a pair like that of a first `requestCert`, but for this id and with this time left.
    fn give_container(&self, id: &str, left: Duration) {
        let ca = PairFiles::new(&self.dir.path().join("cert"), "raindClientCA");
        let ca_certificate = ca.read_certificates().unwrap().unwrap().remove(0);
        let issuer = Issuer::from_ca_cert_der(&ca_certificate, ca.read_key().unwrap().unwrap()).unwrap();
        let mut params = CertificateParams::default();
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + left).into();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let uri = format!("spiffe://raind/container/{id}");
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri).unwrap())];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        self.container()
            .write(&[certificate.der().clone()], &key, Durability::Replaceable)
            .unwrap();
    }

    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let entries = std::fs::read_dir(self.container_cert()).unwrap().map(Result::unwrap);
        let mut files: Vec<_> = entries
            .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
            .collect();
        files.sort();
        files
    }
}

/// Exit code and what was printed, on either stream.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: i32,
    output: String,
}

impl Outcome {
    fn of(code: i32, output: &str) -> Self {
        Self {
            code,
            output: output.to_owned(),
        }
    }
}

async fn run(mut command: tokio::process::Command, stdin: &str) -> Outcome {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // The agent may have ended without reading.
    let _ = pipe.write_all(stdin.as_bytes()).await;
    drop(pipe);
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await;
    let output = output.unwrap().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    Outcome::of(output.status.code().unwrap(), &text)
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_its_certificate_and_reports_with_it() {
    let daemon = Daemon::start().await;
    assert_eq!(daemon.request_certificate().await, Outcome::of(0, ""));
    let names: Vec<_> = daemon.files().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["client.crt", "client.key"]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let files = daemon.container();
    assert_eq!((mode(&files.key), mode(&files.certificate)), (0o600, 0o644));
    let certificate = files.read_certificates().unwrap().unwrap().remove(0);
    assert!(belongs_to(&certificate, &files.read_key().unwrap().unwrap()));
    assert_eq!(
        uri_names(&certificate).unwrap(),
        ["spiffe://raind/container/01kg2cnf0ytv"]
    );
    assert!(!expires_within(&certificate, SystemTime::now(), DAY * 364));

    for event in [
        "createRuntime",
        "createContainer",
        "poststart",
        "stopContainer",
        "poststop",
    ] {
        assert_eq!(daemon.report(event).await, Outcome::of(0, ""), "{event}");
    }
    let told = daemon.told();
    assert_eq!(
        (told[0].0.as_str(), told[0].1.as_str()),
        ("", "application/pem-certificate-chain")
    );
    assert!(told[0].2.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
    let report = |event: &str| (event.to_owned(), "application/json".to_owned(), STATE.to_owned());
    let reports = [
        "createRuntime",
        "createContainer",
        "poststart",
        "stopContainer",
        "poststop",
    ]
    .map(report);
    assert_eq!(told[1..], reports);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_lasts_is_left_alone() {
    let daemon = Daemon::start().await;
    daemon.give_container(ID, DAY * 31);
    let before = daemon.files();
    daemon.refuse(Code::CsrDenied, "not needed");
    assert_eq!(daemon.request_certificate().await, Outcome::of(0, ""));
    assert_eq!((daemon.files(), daemon.told().len()), (before, 0));
}

#[rstest]
#[case::expires_soon(|d: &Daemon| d.give_container(ID, DAY * 29))]
#[case::has_expired(|d: &Daemon| d.give_container(ID, Duration::ZERO))]
#[case::of_another_container(|d: &Daemon| d.give_container("other", DAY * 365))]
#[case::no_certificate(|d: &Daemon| std::fs::remove_file(d.container().certificate).unwrap())]
#[case::no_key(|d: &Daemon| std::fs::remove_file(d.container().key).unwrap())]
#[case::broken(|d: &Daemon| std::fs::write(d.container().certificate, "garbage").unwrap())]
#[case::not_of_one_kind(|d: &Daemon| {
    std::fs::write(d.container().key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
})]
#[tokio::test(flavor = "multi_thread")]
async fn any_other_pair_is_replaced(#[case] spoil: fn(&Daemon)) {
    let daemon = Daemon::start().await;
    daemon.give_container(ID, DAY * 365);
    spoil(&daemon);
    assert_eq!(daemon.request_certificate().await, Outcome::of(0, ""));
    assert_eq!(daemon.report("createRuntime").await, Outcome::of(0, ""));
    assert_eq!(daemon.files().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_a_failure_and_leaves_nothing() {
    let daemon = Daemon::start().await;
    daemon.refuse(Code::CsrDenied, "issue cert: invalid container id");
    let text = "request cert: 403 Forbidden: issue cert: invalid container id\n";
    assert_eq!(daemon.request_certificate().await, Outcome::of(1, text));
    assert_eq!(daemon.files(), []);

    daemon.give_container(ID, DAY * 20);
    let before = daemon.files();
    assert_eq!(daemon.request_certificate().await, Outcome::of(1, text));
    assert_eq!(daemon.files(), before, "what is there is still good for a while");

    daemon.refuse(Code::UnexpectedEvent, "service hook failed: too early");
    let text = "post state failed: 409 Conflict: service hook failed: too early\n";
    assert_eq!(daemon.report("poststart").await, Outcome::of(1, text));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_certificate_of_an_earlier_installation_is_trusted() {
    let daemon = Daemon::start_with(|cert| {
        let mut command = std::process::Command::new("openssl");
        command.args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "365",
            "-subj",
            "/CN=raind",
        ]);
        command.args([
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "extendedKeyUsage=serverAuth",
        ]);
        command.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
        let output = command
            .arg("-keyout")
            .arg(cert.join("raind.key"))
            .arg("-out")
            .arg(cert.join("raind.crt"));
        assert!(output.output().unwrap().status.success());
    })
    .await;
    let key = std::fs::read(daemon.dir.path().join("cert/raind.key")).unwrap();
    assert!(key.len() > 1000, "it is still the RSA key");
    assert_eq!(daemon.request_certificate().await, Outcome::of(0, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_name_is_not_trusted() {
    let daemon = Daemon::start().await;
    daemon.give_container(ID, DAY * 365);
    assert_eq!(
        daemon
            .agent(&daemon.hook_url("127.0.0.1"), "poststart", &daemon.container())
            .await
            .code,
        0
    );
    let outcome = daemon
        .agent(&daemon.hook_url("127.0.0.2"), "poststart", &daemon.container())
        .await;
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.output.starts_with("post: cannot connect to 127.0.0.2:"),
        "{outcome:?}"
    );
    assert_eq!(daemon.told().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_does_not_answer_is_given_up() {
    let daemon = Daemon::start().await;
    daemon.give_container(ID, DAY * 365);
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", mute.local_addr().unwrap());
    let begun = Instant::now();
    let outcome = daemon.agent(&url, "poststart", &daemon.container()).await;
    assert_eq!(outcome.code, 1);
    assert!(outcome.output.contains("it took longer than 5 s"), "{outcome:?}");
    assert!(begun.elapsed() < Duration::from_secs(15));
    let closed = mute.local_addr().unwrap();
    drop(mute);
    let outcome = daemon
        .agent(&format!("https://{closed}/"), "poststart", &daemon.container())
        .await;
    assert!(outcome.output.contains("Connection refused"), "{outcome:?}");
}

#[tokio::test]
async fn wrong_use_is_told_from_failure() {
    let agent = || tokio::process::Command::new(env!("CARGO_BIN_EXE_condenser-hook-agent"));
    let missing = Outcome::of(2, "required flags: --url --event --ca --cert --key\n");
    assert_eq!(run(agent(), "").await, missing);
    let mut command = agent();
    command.args(["--url", "u", "--event", "e", "--ca", "c", "--cert", "x", "--key", "k"]);
    assert_eq!(run(command, "").await, Outcome::of(2, "invalid raind-hook client\n"));
    let mut command = agent();
    command.args([
        "--url",
        "u",
        "--event",
        "startContainer",
        "--ca",
        "c",
        "--cert",
        "x",
        "--key",
        "k",
    ]);
    command.env("RAIND-HOOK-SETTER", "CONDENSER");
    assert_eq!(
        run(command, "").await,
        Outcome::of(1, "invalid event: startContainer\n")
    );
}
