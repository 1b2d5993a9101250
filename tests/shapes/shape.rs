//! One program: how its image describes it, and the life that each of them has to lead.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{HOST, ImageSpec, Lab, Layer, Place, get, post, wait_for};

/// Longer than the slowest program (RabbitMQ) takes to come up with its share of a busy machine.
const PATIENCE: Duration = Duration::from_secs(150);
/// Seconds from the stop signal to KILL. A program that ends by KILL shows it by its exit code.
const GRACE: u64 = 60;
/// As every official image sets it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The port of the host.
const PORT: u16 = 18_000;

/// A program, declared.
pub struct Shape {
    /// Directory below `tests/shapes/images` and `target/shapes`.
    pub name: &'static str,
    /// `config` of the image: Entrypoint, Cmd, Env, User, WorkingDir, Volumes, ExposedPorts, StopSignal, Healthcheck.
    pub config: Value,
    /// What is published, as in `port` of the create request: `5432`, `53:udp`.
    pub port: &'static str,
    /// Further fields of the create request: secrets in `env`, limits.
    pub request: Value,
    /// How it ends by the signal of its image.
    pub end: End,
}

/// An end by the stop signal.
pub struct End {
    /// Exit code.
    pub code: i64,
    /// What the program says when this very signal has come; empty for those that say nothing.
    pub said: &'static str,
}

/// A container that runs.
pub struct Running<'a> {
    /// Its lab.
    pub lab: &'a Lab,
    /// Its id.
    pub id: String,
}

impl Shape {
    /// Pulls, creates, starts and asks until `probe` is content, then runs `checks`; stops it by its own signal; starts it
    /// again, with what the first run left, and asks again; kills it and removes it without a trace.
    pub fn lives(&self, probe: impl Fn(&Running) -> Result<(), String>, checks: impl FnOnce(&Running)) {
        let lab = Lab::running();
        let image = lab.pull(&self.image(), &format!("shapes/{}:1", self.name));
        let before = lab.inventory();
        let mut request = self.request.clone();
        request["image"] = json!(image);
        request["stopTimeout"] = json!(GRACE);
        request["port"] = json!([format!("{PORT}:{}", self.port)]);
        let running = Running {
            id: lab.api().create(request),
            lab: &lab,
        };
        self.come_up(&running, &probe);
        checks(&running);
        self.end(&running);
        self.come_up(&running, &probe);
        // Now without the time to put anything in order.
        let pid = lab.api().container(&running.id)["pid"].to_string();
        lab.machine().run(&["kill", "-9", &pid]);
        lab.api().wait_state(&running.id, "stopped");
        lab.api().delete(&running.id);
        lab.assert_unchanged(&before);
    }
}

impl Shape {
    fn come_up(&self, running: &Running, probe: impl Fn(&Running) -> Result<(), String>) {
        running.lab.api().start(&running.id);
        running.wait_until("an answer of the program", || probe(running));
        if !self.config["Healthcheck"].is_null() {
            let found = running.lab.api().container(&running.id);
            assert_ne!(
                found["health"],
                Value::Null,
                "the health check of the image is not used: {found}"
            );
            running.wait_until("a healthy program", || running.is_healthy());
        }
    }

    fn end(&self, running: &Running) {
        let api = running.lab.api();
        let said_before = api.log(&running.id).len();
        let begun = Instant::now();
        api.stop(&running.id);
        let taken = begun.elapsed();
        let found = api.container(&running.id);
        let log = api.log(&running.id);
        assert_eq!(found["exitCode"], self.end.code, "{found}\n{log}");
        assert!(taken < Duration::from_secs(GRACE), "{taken:?}");
        let last_words = log.get(said_before..).unwrap_or_default();
        assert!(
            last_words.contains(self.end.said),
            "no {:?} at the end of\n{log}",
            self.end.said
        );
    }

    fn image(&self) -> ImageSpec {
        let mut image = ImageSpec::scratch().set("Env", json!([PATH]));
        for layer in layers(self.name) {
            image = image.layer(layer);
        }
        for (field, value) in self.config.as_object().unwrap() {
            image = image.set(field, value.clone());
        }
        image
    }
}

impl Running<'_> {
    /// Asks until the answer is `Ok`, as long as the program runs; what it said is a part of the failure.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut ask: impl FnMut() -> Result<(), String>) {
        wait_for(what, PATIENCE, || {
            ask().map_err(|answer| {
                let found = self.lab.api().container(&self.id);
                let said = format!("{answer}: {found}\n{}", self.log());
                assert_eq!(found["state"], "running", "instead of {what}: {said}");
                said
            })
        });
    }

    /// Body of a GET at the published port.
    pub fn http(&self, path: &str) -> Result<String, String> {
        let reply = self.lab.outside_get(&format!("{HOST}:{PORT}"), path)?;
        match reply.status {
            200 => Ok(reply.text()),
            status => Err(format!("{status}: {}", reply.text())),
        }
    }

    /// Whether a GET at the published port answers with a body that contains `wanted`.
    pub fn http_says(&self, path: &str, wanted: &str) -> Result<(), String> {
        contains(&self.http(path)?, wanted)
    }

    /// Standard output of a client that the image brings. It sees the container's files, and the outside's network. In its
    /// arguments `@HOST` and `@PORT` are the published ones.
    pub fn client(&self, argv: &[&str]) -> Result<String, String> {
        let pid = self.lab.api().container(&self.id)["pid"].clone();
        let root = format!("/proc/{pid}/root");
        let mut command = vec!["chroot", &root, "/usr/bin/env", "-i", PATH];
        let port = PORT.to_string();
        let argv: Vec<_> = argv
            .iter()
            .map(|word| word.replace("@HOST", HOST).replace("@PORT", &port))
            .collect();
        command.extend(argv.iter().map(String::as_str));
        let output = self.lab.machine().output_at(Place::Outside, &command);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(said)
        } else {
            Err(format!(
                "{}: {said}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ))
        }
    }

    /// Standard output of a command in the container, as its user.
    #[track_caller]
    pub fn exec(&self, argv: &[&str]) -> String {
        let request = json!({ "command": argv, "wait": true, "timeout": 60 });
        let path = format!("/v1/containers/{}/actions/exec", self.id);
        let said = self.lab.api().ok(post(&path, request));
        assert_eq!(said["exitCode"], 0, "{argv:?}: {said}");
        said["stdout"].as_str().unwrap().to_owned()
    }

    /// What the program has written to its standard output and error.
    pub fn log(&self) -> String {
        self.lab.api().log(&self.id)
    }

    fn is_healthy(&self) -> Result<(), String> {
        let found = self.lab.api().ok(get(&format!("/v1/containers/{}", self.id)));
        match found["health"].as_str() {
            Some("healthy") => Ok(()),
            other => Err(format!("health {other:?}")),
        }
    }
}

/// `Ok` when `wanted` is in `said`.
pub fn contains(said: &str, wanted: &str) -> Result<(), String> {
    if said.contains(wanted) {
        Ok(())
    } else {
        Err(format!("no {wanted:?} in {said:?}"))
    }
}

/// A connection to the published port, from the outside.
pub fn dial(running: &Running) -> Result<std::net::TcpStream, String> {
    let stream = running
        .lab
        .machine()
        .at(Place::Outside, || std::net::TcpStream::connect((HOST, PORT)))
        .map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    Ok(stream)
}

/// The layers that `scripts/shapes.sh` has made, bottom first.
fn layers(name: &str) -> Vec<Layer> {
    let layout = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/shapes"))
        .join(name)
        .join("oci");
    let blob = |digest: &Value| {
        let path = layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let index = std::fs::read(layout.join("index.json"))
        .unwrap_or_else(|e| panic!("{}: {e}; run scripts/shapes.sh first", layout.display()));
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let manifest = json(&blob(&json(&index)["manifests"][0]["digest"]));
    let config = json(&blob(&manifest["config"]["digest"]));
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), diff_ids.len());
    let pair = layers.iter().zip(diff_ids);
    pair.map(|(layer, diff_id)| Layer::packed(blob(&layer["digest"]), diff_id.as_str().unwrap()))
        .collect()
}
