//! Clients that create, start, exec, stop and delete containers, own ones and shared ones, while the weather does its
//! worst; and a ledger of what ran and must go on running.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::checker::assert_agreement;
use super::{number, seed};
use crate::support::{Api, Call, Lab, delete, get, post};
use crate::until_term;

const CLIENTS: u64 = 8;
/// How many containers all clients share, and how many each has of its own.
const SHARED: u64 = 4;
const OWN: u64 = 3;
/// The daemon is killed so long after it serves, or after it was launched; in milliseconds. Most operations do not live
/// through a short life; in every second a few succeed, so that there is something to lose.
const SHORT_LIFE: u64 = 400;
const LONG_LIFE: u64 = 2500;
/// Longest time between two strikes, in milliseconds.
const STRIKE_PAUSE: u64 = 200;

/// What a container does; its name says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// Runs until it is asked to end.
    Lasting,
    /// The same, with a published port.
    Published(u64),
    /// Has to be killed.
    Stubborn,
    /// Ends at once by itself.
    Short,
}

/// A name that clients use, again and again.
#[derive(Debug, Clone)]
struct Slot {
    name: String,
    sort: Sort,
}

impl Slot {
    fn shared(index: u64) -> Self {
        let sorts = [Sort::Lasting, Sort::Stubborn, Sort::Short, Sort::Published(9000)];
        Self {
            name: format!("shared-{index}"),
            sort: sorts[index as usize % sorts.len()],
        }
    }

    fn own(client: u64, index: u64) -> Self {
        let sorts = [Sort::Published(9001 + client), Sort::Lasting, Sort::Short];
        Self {
            name: format!("own-{client}-{index}"),
            sort: sorts[index as usize % sorts.len()],
        }
    }

    fn request(&self, image: &str) -> Value {
        let shell = |script: &str| json!(["/bin/sh", "-c", script]);
        let mut request = json!({ "image": image, "name": self.name, "command": until_term(0) });
        match self.sort {
            Sort::Lasting => {}
            Sort::Published(port) => request["port"] = json!([format!("{port}:80")]),
            Sort::Stubborn => {
                request["command"] = shell("trap '' TERM; while :; do sleep 1000; done");
                request["stopTimeout"] = json!(1);
            }
            Sort::Short => request["command"] = shell("exit 0"),
        }
        request
    }
}

/// What is known of a name.
#[derive(Debug, Default)]
struct Known {
    /// Stops in progress.
    stops: u32,
    /// Counts stops.
    generation: u64,
    /// Id and pid of what was started and nobody has asked to end since.
    alive: Option<(String, i64)>,
}

/// A storm over a lab.
pub struct Storm<'a> {
    lab: &'a Lab,
    image: String,
    seed: u64,
    known: Mutex<BTreeMap<String, Known>>,
    /// Clients work while they hold it for reading.
    open: RwLock<()>,
    over: AtomicBool,
    deaths: AtomicU64,
    /// From before the daemon is killed until it serves again.
    down: AtomicBool,
    /// Answers by what was asked and status; 0 is none.
    answers: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// How often an answer came that no request of ours deserves, or none although the daemon lived.
    failures: Mutex<BTreeMap<String, u64>>,
}

impl<'a> Storm<'a> {
    /// A storm with a seed of its own, see [`seed`].
    pub fn new(lab: &'a Lab, image: &str) -> Self {
        Self {
            lab,
            image: image.to_owned(),
            seed: seed(),
            known: Mutex::default(),
            open: RwLock::default(),
            over: AtomicBool::new(false),
            deaths: AtomicU64::new(0),
            down: AtomicBool::new(false),
            answers: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// A source of choices that follows from the seed.
    pub fn random(&self, number: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_mul(1000) + number)
    }

    /// Has the clients at work while `weather` runs; then all agrees, and what ran runs.
    pub fn blow(&self, weather: impl FnOnce()) {
        std::thread::scope(|scope| {
            // However the weather ends, the clients are to end.
            let _end = OnDrop(|| self.over.store(true, Ordering::Relaxed));
            for client in 0..CLIENTS {
                scope.spawn(move || self.client(client));
            }
            weather();
        });
        println!("STORM_SEED={} answers: {:?}", self.seed, self.answers.lock().unwrap());
        self.check();
    }

    /// Kills the daemon so often, some of the times while it starts, and compares after every start.
    pub fn kills(&self, count: u64) {
        let mut rng = self.random(CLIENTS);
        let mut below = |most: u64| Duration::from_millis(rng.random_range(0..most));
        let lives = [LONG_LIFE, SHORT_LIFE].into_iter().cycle();
        for life in lives.take_while(|_| self.deaths.load(Ordering::SeqCst) < count) {
            std::thread::sleep(below(life));
            self.down.store(true, Ordering::SeqCst);
            self.deaths.fetch_add(1, Ordering::SeqCst);
            self.lab.daemon().kill9();
            let _closed = self.open.write().unwrap();
            while self.deaths.load(Ordering::SeqCst) < count && below(SHORT_LIFE).as_millis() % 3 == 0 {
                self.lab.daemon().launch();
                std::thread::sleep(below(SHORT_LIFE));
                self.deaths.fetch_add(1, Ordering::SeqCst);
                self.lab.daemon().kill9();
            }
            self.lab.daemon().start();
            self.check();
            self.down.store(false, Ordering::SeqCst);
        }
        println!("STORM_SEED={}: {count} deaths", self.seed);
    }

    /// Does something harmful again and again for a while.
    pub fn strikes(&self, seconds: u64, mut strike: impl FnMut(&mut StdRng)) {
        let mut rng = self.random(CLIENTS);
        let end = Instant::now() + Duration::from_secs(number("STORM_SECONDS", seconds));
        while Instant::now() < end {
            strike(&mut rng);
            std::thread::sleep(Duration::from_millis(rng.random_range(1..STRIKE_PAUSE)));
        }
    }

    /// The API agrees with the kernel, and what ran and nobody stopped still runs.
    pub fn check(&self) {
        assert_agreement(self.lab);
        for (name, known) in &*self.known.lock().unwrap() {
            if let Some((id, pid)) = &known.alive {
                let row = self.lab.api().container(name);
                assert!(
                    row["containerId"] == **id && row["state"] == "running" && row["pid"] == *pid,
                    "STORM_SEED={}: {name} ran as {id}, process {pid}; now it is {row}",
                    self.seed
                );
            }
        }
    }

    /// Nothing failed that had no reason to.
    pub fn assert_no_failures(&self) {
        self.assert_failures(|_| false);
    }

    /// Every failure is one of these.
    pub fn assert_failures(&self, expected: impl Fn(&str) -> bool) {
        let mut failures = self.failures.lock().unwrap().clone();
        println!("STORM_SEED={} failures: {failures:#?}", self.seed);
        failures.retain(|failure, _| !expected(failure));
        assert!(failures.is_empty(), "STORM_SEED={}: {failures:#?}", self.seed);
    }

    /// In calm, everything can be stopped and deleted, at the first try.
    pub fn clear(&self) {
        let api = self.lab.api();
        for row in api.ok(get("/v1/containers")).as_array().unwrap() {
            let id = row["containerId"].as_str().unwrap();
            if row["state"] == "running" {
                self.stop_in_calm(&api, id);
            }
            api.delete(id);
        }
        assert_eq!(api.ok(get("/v1/containers")), json!([]));
        let log = self.lab.daemon().log();
        assert!(!log.contains("panicked"), "STORM_SEED={}: {log}", self.seed);
    }

    /// Stops what a list called running. A short one may have ended since: then there is nothing to stop, and the answer
    /// says so.
    fn stop_in_calm(&self, api: &Api, id: &str) {
        let reply = api.call(post(&format!("/v1/containers/{id}/actions/stop"), json!({})));
        let now = api.container(id);
        let is_fine = reply.status == 200 || (reply.status == 409 && now["exitCode"] == 0);
        assert!(
            is_fine && now["state"] == "stopped",
            "STORM_SEED={}: a stop of {now} was answered by {}",
            self.seed,
            reply.text()
        );
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
            let slot = match rng.random_range(0..5) {
                0 | 1 => Slot::shared(rng.random_range(0..SHARED)),
                _ => Slot::own(number, rng.random_range(0..OWN)),
            };
            self.act(&api, &slot, rng.random_range(0..100));
        }
    }

    fn act(&self, api: &Api, slot: &Slot, choice: u32) {
        let name = &slot.name;
        let action = |verb: &str, body: Value| post(&format!("/v1/containers/{name}/actions/{verb}"), body);
        match choice {
            0..30 => {
                self.ask(api, slot, "create", post("/v1/containers", slot.request(&self.image)));
            }
            30..60 => self.start(api, slot, action("start", json!({}))),
            60..68 => {
                self.ask(api, slot, "exec", action("exec", json!({ "command": ["/bin/true"] })));
            }
            68..76 => {
                let body = json!({ "command": ["/bin/echo", "here"], "wait": true });
                self.ask(api, slot, "wait", action("exec", body));
            }
            76..88 => self.stop(api, slot, action("stop", json!({}))),
            _ => {
                let call = delete(&format!("/v1/containers/{name}/actions/delete"));
                self.ask(api, slot, "delete", call);
            }
        }
    }

    fn start(&self, api: &Api, slot: &Slot, call: Call) {
        let generation = self.know(slot, |known| known.generation);
        if self.ask(api, slot, "start", call) != 200 || slot.sort == Sort::Short {
            return;
        }
        let Ok(reply) = api.try_call(get(&format!("/v1/containers/{}", slot.name))) else {
            return;
        };
        let row = &reply.json()["data"];
        if row["state"] == "running" {
            let found = (
                row["containerId"].as_str().unwrap().to_owned(),
                row["pid"].as_i64().unwrap(),
            );
            self.know(slot, |known| {
                if known.stops == 0 && known.generation == generation {
                    known.alive = Some(found);
                }
            });
        }
    }

    fn stop(&self, api: &Api, slot: &Slot, call: Call) {
        self.know(slot, |known| {
            known.stops += 1;
            known.generation += 1;
            known.alive = None;
        });
        self.ask(api, slot, "stop", call);
        self.know(slot, |known| known.stops -= 1);
    }

    fn know<T>(&self, slot: &Slot, work: impl FnOnce(&mut Known) -> T) -> T {
        work(self.known.lock().unwrap().entry(slot.name.clone()).or_default())
    }

    /// Sends a request and counts its answer; its status, 0 without one.
    fn ask(&self, api: &Api, slot: &Slot, what: &'static str, call: Call) -> u16 {
        let deaths = || self.deaths.load(Ordering::SeqCst);
        let (before, down) = (deaths(), self.down.load(Ordering::SeqCst));
        let answer = api.try_call(call);
        let failure = match &answer {
            // What is not there, or not in a state for it.
            Ok(reply) if matches!(reply.status, 200 | 404 | 409) => None,
            Ok(reply) => Some(format!("{} {}", reply.status, reply.message())),
            Err(_) if down || deaths() > before => None,
            Err(error) => Some(error.clone()),
        };
        let status = answer.map_or(0, |reply| reply.status);
        *self.answers.lock().unwrap().entry((what, status)).or_default() += 1;
        if let Some(failure) = failure {
            let said = format!("{what} of {:?}: {failure}", slot.sort);
            *self.failures.lock().unwrap().entry(said).or_default() += 1;
        }
        status
    }
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
