//! What the daemon tells a service manager, and what a reload takes into use.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;

use crate::support::{HOST, Lab, get, wait_for};
use crate::{lab_with_busybox, until_term};

/// The socket of a service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn of(lab: &Lab) -> Self {
        let socket = UnixDatagram::bind(lab.machine().path("/run/notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        lab.daemon().set("NOTIFY_SOCKET", "/run/notify");
        Self(socket)
    }

    fn next(&self) -> String {
        let mut buffer = [0; 1024];
        let length = self.0.recv(&mut buffer).expect("a message of the daemon");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    /// All messages up to the first that contains `word`.
    fn until(&self, word: &str) -> Vec<String> {
        let mut heard = Vec::new();
        while !heard.last().is_some_and(|message: &String| message.contains(word)) {
            heard.push(self.next());
        }
        heard
    }
}

fn reload(lab: &Lab, expected: &str) {
    let before = lab.daemon().log().matches(expected).count();
    kill(lab.daemon().pid(), Signal::SIGHUP).unwrap();
    wait_for(expected, Duration::from_secs(10), || {
        let log = lab.daemon().log();
        if log.matches(expected).count() > before {
            Ok(())
        } else {
            Err(log)
        }
    });
}

#[test]
fn the_service_manager_hears_of_start_reload_and_end() {
    let (lab, image) = lab_with_busybox();
    lab.api().run(json!({ "image": image, "command": until_term(0) }));
    lab.daemon().stop();
    let manager = Manager::of(&lab);
    lab.daemon().set("WATCHDOG_USEC", "600000").launch();
    let heard = manager.until("READY=1");
    // Not a moment later.
    assert_eq!(lab.api().ok(get("/v1/containers"))[0]["state"], "running");
    let (ready, stages) = heard.split_last().unwrap();
    assert!(ready.contains("STATUS=serving on 127.0.0.1:7755"), "{ready}");
    assert!(
        stages.iter().all(|stage| stage.contains("EXTEND_TIMEOUT_USEC=")),
        "{stages:?}"
    );
    assert!(
        stages
            .iter()
            .any(|stage| stage.contains("STATUS=recovering 1 containers")),
        "{stages:?}"
    );
    for _ in 0..3 {
        assert_eq!(manager.next(), "WATCHDOG=1\n");
    }
    kill(lab.daemon().pid(), Signal::SIGHUP).unwrap();
    manager.until("RELOADING=1");
    manager.until("READY=1");
    manager.until("WATCHDOG=1");
    lab.daemon().stop();
    let end = manager.until("STOPPING=1");
    assert!(
        end.iter().rev().skip(1).all(|message| message == "WATCHDOG=1\n"),
        "{end:?}"
    );
}

#[test]
fn a_replaced_certificate_is_used_after_a_reload() {
    let lab = Lab::running();
    let mut kept = lab.api().session().unwrap();
    assert_eq!(kept.call(get("/v1/containers")).unwrap().status, 200);
    let former = lab.api();

    let key = KeyPair::generate().unwrap();
    let names = ["localhost", "127.0.0.1", HOST, "10.166.0.254"].map(str::to_owned);
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap().pem();
    lab.machine().write("/etc/raind/cert/raind.crt", &certificate);
    lab.machine().write("/etc/raind/cert/raind.key", key.serialize_pem());
    former.ok(get("/v1/containers"));
    reload(&lab, "certificates and log files reloaded");
    let error = former.try_call(get("/v1/containers")).unwrap_err();
    assert!(error.contains("TLS: "), "{error}");
    lab.api().ok(get("/v1/containers"));
    assert_eq!(
        kept.call(get("/v1/containers")).unwrap().status,
        200,
        "connections stay"
    );
    assert_eq!(
        lab.machine().read("/etc/raind/cert/raind.crt"),
        certificate,
        "the file is the operator's"
    );

    // Half of a pair: what is in use stays, and so does the file.
    let other = KeyPair::generate().unwrap().serialize_pem();
    lab.machine().write("/etc/raind/cert/raind.key", &other);
    reload(&lab, "cannot reload certificates; keeping the current ones");
    assert!(
        lab.daemon()
            .log()
            .contains("raind.crt: its key is of another certificate")
    );
    lab.api().ok(get("/v1/containers"));
    assert_eq!(lab.machine().read("/etc/raind/cert/raind.key"), other);
}

#[test]
fn logs_that_were_moved_away_are_made_again() {
    let lab = Lab::running();
    lab.api().ok(get("/v1/containers"));
    let audit = "/var/log/raind/raind_audit.jsonl";
    lab.machine().run(&["mv", audit, "/var/log/raind/moved"]);
    lab.api().ok(get("/v1/networks"));
    wait_for("the record in the moved file", Duration::from_secs(5), || {
        let moved = lab.machine().read("/var/log/raind/moved");
        if moved.contains("/v1/networks") {
            Ok(())
        } else {
            Err(moved)
        }
    });
    reload(&lab, "certificates and log files reloaded");
    lab.api().ok(get("/v1/images"));
    wait_for("the record in the new file", Duration::from_secs(5), || {
        let anew = lab.machine().read(audit);
        if anew.contains("/v1/images") && !anew.contains("/v1/networks") {
            Ok(())
        } else {
            Err(anew)
        }
    });
    assert!(!lab.machine().read("/var/log/raind/moved").contains("/v1/images"));
}
