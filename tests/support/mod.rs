//! The test lab: the real programs on a machine of their own.
//!
//! A [`Lab`] is a set of private namespaces made by `scripts/lab.sh` (see there for the picture): the daemon, its
//! containers and everything that they program live in it, under the paths and names of a real installation. Labs run
//! side by side, touch nothing outside, and leave nothing behind, also when the test is killed.
//!
//! ```no_run
//! let lab = Lab::running();                                        // a lab and a daemon that serves
//! let image = lab.push(&ImageSpec::busybox().cmd(&["httpd", "-f"]), "web:1");
//! lab.api().ok(post("/v1/images", json!({ "image": image })));
//! let before = lab.inventory();
//! let id = lab.api().create(json!({ "image": image, "port": ["8080:80"] }));
//! lab.api().start(&id);
//! assert_eq!(lab.outside_get("192.0.2.2:8080", "/").status, 404);
//! lab.api().stop(&id);
//! lab.api().delete(&id);
//! lab.assert_unchanged(&before);                                   // rules, links, mounts, cgroups, processes, files
//! ```
//!
//! What the lab never does: change the machine's network, mounts or files, or wait for a fixed time.
//!
//! Tests of one part stand in the same namespaces themselves ([`machine::within`]) and call it as a library: [`net`] is the
//! host of networks and rules, [`sandbox`] that of the runtime. Image stores need no namespaces: [`images`]. All wait by
//! [`wait_for`], and all pull from one [`Registry`].

#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "each test program uses a part of it, and a failed expectation in the lab is a failed test"
)]

mod api;
pub mod authority;
mod daemon;
mod dns;
mod forks;
mod image;
pub mod images;
mod inventory;
mod machine;
pub mod net;
mod registry;
pub mod sandbox;
mod streams;
mod wait;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use api::{Api, Call, Identity, Reply, Session, delete, get, post, send, status_of};
pub use daemon::Daemon;
pub use forks::Forks;
pub use image::{ImageSpec, Layer};
pub use inventory::Inventory;
pub use machine::{Machine, Place};
pub use registry::{GUARDED, Pushed, Registry};
pub use streams::{Answer, Terminal};
pub use wait::{SOON, wait_for, wait_for_async, when};

/// Address of the lab's uplink, the host address of the daemon.
pub const HOST: &str = "192.0.2.2";
/// Address of the outside: registry, DNS server, clients of published ports.
pub const OUTSIDE: &str = "192.0.2.1";
/// The registry that speaks plain HTTP, as the daemon of a lab is told by default.
pub const REGISTRY: &str = "192.0.2.1:5000";

/// A machine with an outside and, once started, a daemon.
pub struct Lab {
    machine: Arc<Machine>,
    daemon: Daemon,
    registry: OnceLock<Registry>,
    hub: OnceLock<Registry>,
    authority: authority::Authority,
    /// Ends the outside's DNS server with the lab.
    _dns: dns::Server,
}

impl Lab {
    /// A lab without a running daemon.
    pub fn start() -> Self {
        // Twice in one process is fine: the first one stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let machine = Arc::new(Machine::start());
        let authority = authority::Authority::trusted_by(&machine);
        Self {
            daemon: Daemon::new(machine.clone()),
            registry: OnceLock::new(),
            hub: OnceLock::new(),
            authority,
            _dns: dns::Server::start(&machine),
            machine,
        }
    }

    /// A lab whose daemon serves.
    pub fn running() -> Self {
        let lab = Self::start();
        lab.daemon.start();
        lab
    }

    /// The namespaces: commands, files and sockets in them.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// The daemon's process.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Changes the database of a daemon that is gone, in a copy: SQLite does not find its way to files of the lab.
    pub fn with_database(&self, work: impl FnOnce(&rusqlite::Connection)) {
        let here = tempfile::tempdir().unwrap();
        let stored = self.machine.path("/etc/raind/store/condenser.db");
        let copy = here.path().join("condenser.db");
        std::fs::copy(&stored, &copy).unwrap();
        // What the daemon wrote last is in a file beside it, unless it had the time to bring both together.
        let [log, log_copy] = [&stored, &copy].map(|path| path.with_extension("db-wal"));
        if log.exists() {
            std::fs::copy(&log, &log_copy).unwrap();
            std::fs::remove_file(log).unwrap();
        }
        let database = rusqlite::Connection::open(&copy).unwrap();
        work(&database);
        database.close().unwrap();
        assert!(!log_copy.exists(), "all of it is in the one file");
        std::fs::copy(copy, stored).unwrap();
    }

    /// The management API as the CLI speaks it: port 7755 with `raindClient.crt`.
    pub fn api(&self) -> Api {
        self.api_as(7755, Identity::Cli)
    }

    /// A listener of the daemon, with any identity.
    pub fn api_as(&self, port: u16, identity: Identity) -> Api {
        Api::new(self.machine.clone(), port, identity)
    }

    /// The registry at [`REGISTRY`], a real docker-registry; started on first use.
    pub fn registry(&self) -> &Registry {
        self.registry.get_or_init(|| Registry::plain(&self.machine))
    }

    /// A stand-in for Docker Hub: the same images under the hub's name, over TLS with a certificate that the lab's CA
    /// store trusts; started on first use.
    pub fn hub(&self) -> &Registry {
        // Uploads go through the plain one.
        self.registry();
        self.hub.get_or_init(|| Registry::hub(&self.machine, &self.authority))
    }

    /// Uploads an image to [`REGISTRY`] under `name` (`app:1`) and returns the name that the daemon pulls it by.
    pub fn push(&self, image: &ImageSpec, name: &str) -> String {
        self.registry().push(image, name);
        format!("{REGISTRY}/{name}")
    }

    /// Uploads an image and has the daemon pull it.
    pub fn pull(&self, image: &ImageSpec, name: &str) -> String {
        let reference = self.push(image, name);
        self.api()
            .ok(post("/v1/images", serde_json::json!({ "image": reference })));
        reference
    }

    /// One GET over plain HTTP from there.
    pub fn get_from(&self, place: Place, address: &str, path: &str) -> Result<Reply, String> {
        api::plain(&self.machine, place, address, get(path))
    }

    /// One GET from the outside, as a client of a published port sees it.
    pub fn outside_get(&self, address: &str, path: &str) -> Result<Reply, String> {
        self.get_from(Place::Outside, address, path)
    }

    /// The network of a running container.
    pub fn network_of(&self, container: &str) -> Place {
        Place::Process(self.api().container(container)["pid"].as_i64().unwrap())
    }

    /// All that the daemon can leave behind, for [`Lab::assert_unchanged`], in a moment in which it runs no tool.
    pub fn inventory(&self) -> Inventory {
        wait_for("a daemon that runs no tool", Duration::from_secs(30), || {
            Inventory::take(&self.machine, self.daemon.pid_inside())
        })
    }

    /// Fails when anything is there now that was not, or the other way round. Processes that are on their way out get
    /// five seconds.
    pub fn assert_unchanged(&self, before: &Inventory) {
        wait_for("the machine as it was before", Duration::from_secs(5), || {
            before.same_as(&self.inventory())
        });
    }

    /// The same after a purge, which leaves tables of the packet filter behind, but no rule of ours and all of others.
    pub fn assert_purged(&self, before: &Inventory) {
        let before = before.clone().without_empty_tables();
        wait_for("the machine as it was before", Duration::from_secs(5), || {
            before.same_as(&self.inventory().without_empty_tables())
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of the daemon ----\n{}---- end ----", self.daemon.log());
        }
    }
}
