//! HTTP as the daemon's clients speak it: HTTP/1.1 over TLS 1.3 with a client certificate, and plain for published
//! ports and the registry.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::rt::{Read, Write};
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_rustls::client::TlsStream;

use super::machine::{Machine, Place};
use super::wait_for;

/// No answer takes longer: not the stop of a broker that has to end its business first, not the pull of a large image.
const LIMIT: Duration = Duration::from_secs(120);

/// One request.
#[derive(Debug, Clone)]
pub struct Call {
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// `GET path`.
pub fn get(path: &str) -> Call {
    send("GET", path, Vec::new())
}

/// `POST path` with a JSON body.
pub fn post(path: &str, body: Value) -> Call {
    send("POST", path, Vec::new()).json(&body)
}

/// `DELETE path` without a body.
pub fn delete(path: &str) -> Call {
    send("DELETE", path, Vec::new())
}

/// Any request.
pub fn send(method: &str, path: &str, body: impl Into<Vec<u8>>) -> Call {
    Call {
        method: method.parse().unwrap(),
        path: path.into(),
        headers: Vec::new(),
        body: body.into(),
    }
}

impl Call {
    /// With one more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// With a JSON body.
    pub fn json(mut self, body: &Value) -> Self {
        self.body = body.to_string().into();
        self
    }

    pub(super) fn into_request(self, host: &str) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(self.method).uri(self.path).header(HOST, host);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        request.body(Full::from(self.body)).unwrap()
    }
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body as sent.
    pub body: Bytes,
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in an answer with {self:?}"))
    }

    /// `message` of the envelope.
    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().into()
    }

    /// Fails unless this is a failure envelope with that status and a message that starts so. Returns the message.
    #[track_caller]
    pub fn refused(&self, status: u16, message: &str) -> String {
        let said = self.text();
        assert_eq!(self.status, status, "{said}");
        let envelope = self.json();
        assert_eq!(envelope["status"], "fail", "{said}");
        assert!(self.message().starts_with(message), "wanted {message:?}, got {said}");
        assert_eq!(status_of(&self.code()), Some(status), "{said}");
        self.message()
    }

    /// `code` of the envelope of a failure.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().into()
    }

    /// As [`Reply::refused`], with that code.
    #[track_caller]
    pub fn refused_as(&self, status: u16, code: &str, message: &str) -> String {
        assert_eq!(self.code(), code, "{}", self.text());
        self.refused(status, message)
    }
}

/// The status that goes with a code of a failure; none if there is no such code.
pub fn status_of(code: &str) -> Option<u16> {
    let known = condenser::api::Code::ALL.iter().find(|known| known.word() == code);
    known.map(|code| code.status().as_u16())
}

/// Who the client says it is.
#[derive(Debug, Clone)]
pub enum Identity {
    /// `raindClient.crt`: `spiffe://raind/cli/admin`.
    Cli,
    /// `raindHookClient.crt`: `spiffe://raind/droplet/container`.
    Hook,
    /// The certificate of a container.
    Container(String),
    /// A certificate of the client CA with these URI SANs.
    Issued(Vec<String>),
    /// A certificate with that URI SAN that is signed by itself.
    Foreign(String),
    /// No certificate.
    Anonymous,
}

/// A client of one listener. Every request is a connection of its own; see [`Api::session`] for more.
pub struct Api {
    machine: Arc<Machine>,
    port: u16,
    tls: Arc<ClientConfig>,
}

impl Api {
    pub(super) fn new(machine: Arc<Machine>, port: u16, identity: Identity) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&machine, "/etc/raind/cert/raind.crt")).unwrap();
        let tls =
            ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]).with_root_certificates(roots);
        let mut tls = match credentials(&machine, identity) {
            Some((certificate, key)) => tls.with_client_auth_cert(vec![certificate], key).unwrap(),
            None => tls.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self {
            machine,
            port,
            tls: Arc::new(tls),
        }
    }

    /// Sends one request. `Err` says why there was no HTTP answer, for example the TLS alert.
    pub fn try_call(&self, call: Call) -> Result<Reply, String> {
        self.session()?.call(call)
    }

    /// Sends one request that has to be answered.
    pub fn call(&self, call: Call) -> Reply {
        let said = format!("{} {}", call.method, call.path);
        self.try_call(call).unwrap_or_else(|e| panic!("{said}: {e}"))
    }

    /// Sends one request that has to succeed. Returns `data`, `null` when there is none.
    #[track_caller]
    pub fn ok(&self, call: Call) -> Value {
        let said = format!("{} {}", call.method, call.path);
        let reply = self.call(call);
        assert_eq!(reply.status, 200, "{said}: {}", reply.text());
        let envelope = reply.json();
        assert_eq!(envelope["status"], "success", "{said}: {envelope}");
        assert_eq!(envelope.get("code"), None, "{said}: {envelope}");
        envelope["data"].clone()
    }

    /// A connection that is kept.
    pub fn session(&self) -> Result<Session, String> {
        let (runtime, stream) = self.dial()?;
        let sender = runtime.block_on(open(TokioIo::new(stream)))?;
        Ok(Session {
            runtime,
            sender,
            host: "localhost".into(),
        })
    }

    /// A connection on which nothing was said yet, and what drives it.
    pub(super) fn dial(&self) -> Result<(Runtime, TlsStream<tokio::net::TcpStream>), String> {
        let runtime = runtime();
        let stream = connect(&self.machine, Place::Host, &format!("127.0.0.1:{}", self.port))?;
        let tls = tokio_rustls::TlsConnector::from(self.tls.clone());
        let stream = runtime.block_on(async {
            let stream = tokio::net::TcpStream::from_std(stream).map_err(|e| e.to_string())?;
            let name = ServerName::try_from("localhost").unwrap();
            tls.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))
        })?;
        Ok((runtime, stream))
    }

    /// Sends one request, and goes away without an answer when `moment` returns.
    pub fn hang_up_after(&self, call: Call, moment: impl FnOnce() + Send) {
        let Session {
            runtime,
            mut sender,
            host,
        } = self.session().unwrap();
        let request = call.into_request(&host);
        let (come, waited) = tokio::sync::oneshot::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                moment();
                drop(come);
            });
            runtime.block_on(async {
                tokio::select! {
                    answer = sender.send_request(request) => panic!("answered too early: {answer:?}"),
                    _ = waited => {}
                }
            });
        });
    }

    /// Creates a container and returns its id.
    #[track_caller]
    pub fn create(&self, request: Value) -> String {
        self.ok(post("/v1/containers", request))["id"].as_str().unwrap().into()
    }

    /// Starts a container.
    #[track_caller]
    pub fn start(&self, container: &str) {
        self.ok(post(&format!("/v1/containers/{container}/actions/start"), json!({})));
    }

    /// Creates and starts a container.
    #[track_caller]
    pub fn run(&self, request: Value) -> String {
        let id = self.create(request);
        self.start(&id);
        id
    }

    /// Stops a container.
    #[track_caller]
    pub fn stop(&self, container: &str) {
        self.ok(send(
            "POST",
            &format!("/v1/containers/{container}/actions/stop"),
            Vec::new(),
        ));
    }

    /// Deletes a container.
    #[track_caller]
    pub fn delete(&self, container: &str) {
        self.ok(delete(&format!("/v1/containers/{container}/actions/delete")));
    }

    /// The container object.
    #[track_caller]
    pub fn container(&self, container: &str) -> Value {
        self.ok(get(&format!("/v1/containers/{container}")))
    }

    /// Waits until the container is in that state and returns it.
    #[track_caller]
    pub fn wait_state(&self, container: &str, state: &str) -> Value {
        wait_for(state, Duration::from_secs(10), || {
            let found = self.container(container);
            if found["state"] == state { Ok(found) } else { Err(found) }
        })
    }

    /// The last 5,000 lines of the container's log.
    pub fn log(&self, container: &str) -> String {
        let reply = self.call(get(&format!("/v1/containers/{container}/log?tail_lines=5000")));
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.text()
    }

    /// Runs a shell script in a container through the API and returns what it printed, both streams.
    #[track_caller]
    pub fn exec(&self, container: &str, script: &str) -> String {
        // The answer comes at the launch; the end is seen in the log, after a line that no earlier exec can have left.
        let mark = ulid::Ulid::generate().to_string();
        let script = format!("echo {mark}\n{{ {script}\n}} 2>&1\nprintf '\\n%s' {mark}");
        let id = self.container(container)["containerId"].as_str().unwrap().to_owned();
        let command = json!({ "command": ["/bin/sh", "-c", script] });
        self.ok(post(&format!("/v1/containers/{id}/actions/exec"), command));
        let path = format!("/etc/raind/container/{id}/logs/exec.log");
        wait_for("the end of an exec", Duration::from_secs(20), || {
            let log = self.machine.read(&path);
            let Some((_, said)) = log.split_once(&format!("{mark}\n")) else {
                return Err(log);
            };
            let end = said.find(&format!("\n{mark}")).ok_or(log.as_str());
            end.map(|end| said[..end].to_owned()).map_err(str::to_owned)
        })
    }
}

/// A kept connection.
pub struct Session {
    pub(super) runtime: Runtime,
    pub(super) sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Session {
    /// Sends one request over it.
    pub fn call(&mut self, call: Call) -> Result<Reply, String> {
        let request = call.into_request(&self.host);
        let exchange = async {
            self.sender.ready().await.map_err(|e| full(&e))?;
            let response = self.sender.send_request(request).await.map_err(|e| full(&e))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|e| full(&e))?.to_bytes();
            Ok(Reply {
                status: head.status.as_u16(),
                headers: head.headers,
                body,
            })
        };
        let limited = async { tokio::time::timeout(LIMIT, exchange).await };
        match self.runtime.block_on(limited) {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {LIMIT:?}")),
        }
    }
}

/// One request over plain HTTP.
pub fn plain(machine: &Machine, place: Place, address: &str, call: Call) -> Result<Reply, String> {
    plain_over(connect(machine, place, address)?, address, call)
}

/// One request over a connection to `address`.
pub fn plain_over(stream: TcpStream, address: &str, call: Call) -> Result<Reply, String> {
    stream.set_nonblocking(true).map_err(|e| e.to_string())?;
    let runtime = runtime();
    let sender = runtime.block_on(async {
        let stream = tokio::net::TcpStream::from_std(stream).map_err(|e| e.to_string())?;
        open(TokioIo::new(stream)).await
    })?;
    let host = address.to_owned();
    Session { runtime, sender, host }.call(call)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn connect(machine: &Machine, place: Place, address: &str) -> Result<TcpStream, String> {
    let address: SocketAddr = address.parse().expect("an address and a port");
    let stream = machine
        .at(place, || TcpStream::connect_timeout(&address, Duration::from_secs(5)))
        .map_err(|e| format!("{address}: {e}"))?;
    stream.set_nodelay(true).unwrap();
    stream.set_nonblocking(true).unwrap();
    Ok(stream)
}

async fn open<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, String>
where
    S: Read + Write + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(stream).await.map_err(|e| full(&e))?;
    // It ends with the sender; what went wrong on the way is what the sender reports.
    tokio::spawn(async { drop(connection.await) });
    Ok(sender)
}

/// An error with its causes.
fn full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn certificate(machine: &Machine, path: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(machine.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn credentials(machine: &Machine, identity: Identity) -> Option<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
    let pair = |stem: &str| {
        let key = PrivateKeyDer::from_pem_file(machine.path(&format!("{stem}.key"))).unwrap();
        Some((certificate(machine, &format!("{stem}.crt")), key))
    };
    match identity {
        Identity::Cli => pair("/etc/raind/cert/raindClient"),
        Identity::Hook => pair("/etc/raind/cert/raindHookClient"),
        Identity::Container(id) => pair(&format!("/etc/raind/container/{id}/cert/client")),
        Identity::Issued(uris) => {
            let key = KeyPair::from_pem(&machine.read("/etc/raind/cert/raindClientCA.key")).unwrap();
            let issuer = Issuer::from_ca_cert_pem(&machine.read("/etc/raind/cert/raindClientCA.crt"), key).unwrap();
            let own = KeyPair::generate().unwrap();
            let signed = client(&uris).signed_by(&own, &issuer).unwrap();
            Some((
                signed.der().clone(),
                PrivateKeyDer::try_from(own.serialize_der()).unwrap(),
            ))
        }
        Identity::Foreign(uri) => {
            let own = KeyPair::generate().unwrap();
            let signed = client(&[uri]).self_signed(&own).unwrap();
            Some((
                signed.der().clone(),
                PrivateKeyDer::try_from(own.serialize_der()).unwrap(),
            ))
        }
        Identity::Anonymous => None,
    }
}

fn client(uris: &[String]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()))
        .collect();
    params
}
