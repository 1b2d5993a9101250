//! Builds, pushes, saves, loads and prunes whose daemon is killed: no image ever refers to a layer that is missing, no
//! tag in the registry is half there, and after a prune nothing is left.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::{number, seed};
use crate::builds::Context;
use crate::support::{Api, Call, Lab, SOON, delete, get, post, send, wait_for, when};

const CLIENTS: u64 = 5;
/// How many names there are, and how many different commands build files run.
const NAMES: u32 = 4;
const COMMANDS: u32 = 6;
/// The daemon is killed so long after it serves, or after a build has succeeded in this life, in milliseconds.
const SHORT_LIFE: u64 = 300;
const LONG_LIFE: u64 = 1500;

struct Yard<'a> {
    lab: &'a Lab,
    seed: u64,
    /// Clients work while they hold it for reading.
    open: RwLock<()>,
    over: AtomicBool,
    deaths: AtomicU64,
    /// From before the daemon is killed until it serves again.
    down: AtomicBool,
    answers: Mutex<BTreeMap<(&'static str, u16), u64>>,
    failures: Mutex<BTreeMap<String, u64>>,
}

#[test]
fn a_daemon_that_is_killed_while_it_makes_and_moves_images_loses_and_leaves_nothing() {
    let lab = Lab::running();
    let before = lab.inventory();
    let yard = Yard {
        lab: &lab,
        seed: seed(),
        open: RwLock::default(),
        over: AtomicBool::new(false),
        deaths: AtomicU64::new(0),
        down: AtomicBool::new(false),
        answers: Mutex::default(),
        failures: Mutex::default(),
    };
    std::thread::scope(|scope| {
        let _end = OnDrop(&yard.over);
        for client in 0..CLIENTS {
            let yard = &yard;
            scope.spawn(move || yard.client(client));
        }
        yard.kills(number("STORM_KILLS", 20));
    });
    let answers = yard.answers.lock().unwrap().clone();
    println!("STORM_SEED={} answers: {answers:?}", yard.seed);
    for what in ["build", "push", "save", "load", "prune"] {
        assert!(
            answers.get(&(what, 200)).is_some_and(|count| *count > 0),
            "no {what} succeeded: {answers:?}"
        );
    }
    let failures = yard.failures.lock().unwrap();
    assert!(failures.is_empty(), "STORM_SEED={}: {failures:#?}", yard.seed);
    yard.check();
    yard.every_pushed_tag_is_whole();
    yard.clear();
    lab.assert_unchanged(&before);
}

impl Yard<'_> {
    fn random(&self, number: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_mul(1000) + number)
    }

    fn kills(&self, count: u64) {
        let mut rng = self.random(CLIENTS);
        for life in [LONG_LIFE, SHORT_LIFE].into_iter().cycle().take(count as usize) {
            if life == LONG_LIFE {
                let before = self.built();
                wait_for("a build that succeeds", SOON, || {
                    when(self.built(), |built| *built > before)
                });
            }
            std::thread::sleep(Duration::from_millis(rng.random_range(0..life)));
            self.down.store(true, Ordering::SeqCst);
            self.deaths.fetch_add(1, Ordering::SeqCst);
            self.lab.daemon().kill9();
            let _closed = self.open.write().unwrap();
            self.lab.daemon().start();
            self.check();
            self.down.store(false, Ordering::SeqCst);
        }
    }

    /// How many builds have succeeded.
    fn built(&self) -> u64 {
        self.answers
            .lock()
            .unwrap()
            .get(&("build", 200))
            .copied()
            .unwrap_or_default()
    }

    /// Every image that is listed is there as a whole: saving it reads every byte and compares every digest.
    fn check(&self) {
        let api = self.lab.api();
        for image in names(&api) {
            let saved = api.call(get(&format!("/v1/images/save?image={image}")));
            let said = if saved.status == 200 {
                String::new()
            } else {
                saved.text()
            };
            assert_eq!(saved.status, 200, "STORM_SEED={}: {image}: {said}", self.seed);
            assert!(
                is_whole(&saved.body),
                "STORM_SEED={}: the archive of {image} is cut short",
                self.seed
            );
        }
    }

    /// What the registry lists under a tag can be pulled.
    fn every_pushed_tag_is_whole(&self) {
        let (api, registry) = (self.lab.api(), self.lab.registry());
        for image in names(&api) {
            api.ok(delete("/v1/images").json(&json!({ "image": image })));
        }
        api.ok(post("/v1/build/prune", json!({})));
        let mut pulled = 0;
        for name in 0..NAMES {
            let reply = api.call(post("/v1/images", json!({ "image": registry.name(&app(name)) })));
            assert!(
                matches!(reply.status, 200 | 404),
                "STORM_SEED={}: {}",
                self.seed,
                reply.text()
            );
            pulled += u32::from(reply.status == 200);
        }
        assert!(pulled > 0, "nothing was pushed");
        self.check();
    }

    fn clear(&self) {
        let api = self.lab.api();
        for image in names(&api) {
            api.ok(delete("/v1/images").json(&json!({ "image": image })));
        }
        api.ok(post("/v1/build/prune", json!({})));
        assert_eq!(api.ok(get("/v1/images")), json!([]));
        assert_eq!(api.ok(get("/v1/containers")), json!([]));
        let log = self.lab.daemon().log();
        assert!(!log.contains("panicked"), "STORM_SEED={}: {log}", self.seed);
    }

    fn client(&self, number: u64) {
        let api = self.lab.api();
        let mut rng = self.random(number);
        while !self.over.load(Ordering::Relaxed) {
            if self.down.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            let _open = self.open.read();
            let (choice, name) = (rng.random_range(0..100), app(rng.random_range(0..NAMES)));
            match choice {
                0..40 => {
                    let context = context(rng.random_range(0..COMMANDS), rng.random_range(0..COMMANDS));
                    self.ask(&api, "build", context.post(&format!("?tag={name}")));
                }
                40..60 => {
                    let destination = self.lab.registry().name(&name);
                    let body = json!({ "image": name, "destination": destination });
                    self.ask(&api, "push", post("/v1/images/push", body));
                }
                60..75 => self.move_over(&api, &name, &app(rng.random_range(0..NAMES))),
                75..85 => {
                    let body = json!({ "image": name, "target": app(rng.random_range(0..NAMES)) });
                    self.ask(&api, "tag", post("/v1/images/tag", body));
                }
                85..92 => {
                    self.ask(&api, "prune", post("/v1/build/prune", json!({})));
                    self.ask(&api, "prune", post("/v1/images/prune", json!({})));
                }
                _ => {
                    self.ask(&api, "remove", delete("/v1/images").json(&json!({ "image": name })));
                }
            }
        }
    }

    /// Saves an image, and loads the archive.
    fn move_over(&self, api: &Api, one: &str, other: &str) {
        let names = if one == other {
            format!("image={one}")
        } else {
            format!("image={one}&image={other}")
        };
        if let Some(archive) = self.ask(api, "save", get(&format!("/v1/images/save?{names}"))) {
            self.ask(
                api,
                "load",
                send("POST", "/v1/images/load", archive).header("Content-Type", "application/x-tar"),
            );
        }
    }

    /// Sends a request and counts its answer; the body if it succeeded.
    fn ask(&self, api: &Api, what: &'static str, call: Call) -> Option<Vec<u8>> {
        let deaths = || self.deaths.load(Ordering::SeqCst);
        let (before, down) = (deaths(), self.down.load(Ordering::SeqCst));
        let answer = api.try_call(call);
        let failure = match &answer {
            // What is not there, or was changed by another client.
            Ok(reply) if matches!(reply.status, 200 | 404 | 409) => None,
            Ok(reply) => Some(format!("{what}: {} {}", reply.status, reply.message())),
            Err(_) if down || deaths() > before => None,
            Err(error) => Some(format!("{what}: {error}")),
        };
        let status = answer.as_ref().map_or(0, |reply| reply.status);
        *self.answers.lock().unwrap().entry((what, status)).or_default() += 1;
        if let Some(failure) = failure {
            *self.failures.lock().unwrap().entry(failure).or_default() += 1;
        }
        answer
            .ok()
            .filter(|reply| reply.status == 200)
            .map(|reply| reply.body.to_vec())
    }
}

fn app(number: u32) -> String {
    format!("yard/app:{number}")
}

/// Two stages with commands, of which other build files have some too.
fn context(first: u32, second: u32) -> Context {
    let busybox = "COPY busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n";
    Context::with_busybox(&format!(
        "FROM scratch AS tools\n{busybox}RUN echo {first} > /first\nFROM scratch\n{busybox}COPY --from=tools /first \
         /first\nRUN echo {second} > /second; /bin/busybox ln /second /twin\nCMD [\"/bin/busybox\", \"true\"]\n"
    ))
}

fn names(api: &Api) -> Vec<String> {
    let images = api.ok(get("/v1/images"));
    let name = |image: &Value| {
        let part = |part: &str| image[part].as_str().unwrap().to_owned();
        format!("{}:{}", part("repository"), part("reference"))
    };
    images.as_array().unwrap().iter().map(name).collect()
}

/// An archive that ends with its two blocks of zeros.
fn is_whole(archive: &[u8]) -> bool {
    archive.len() > 1024 && archive.ends_with(&[0; 1024])
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
