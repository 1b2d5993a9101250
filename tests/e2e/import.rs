//! The takeover of an installation of the original.

use std::time::Duration;

use serde_json::json;

use crate::original::{Original, ROOTFS, fixture};
use crate::support::{HOST, Lab, Place, delete, get, post, wait_for};

/// Containers of the recordings.
const WEB: &str = "01m85d6ag2dj";
const DB: &str = "01m85d7qahjs";
const APP: &str = "01m85d7qtdrt";
const POD: &str = "01m85d84cgd7qrcptr06x2ypwt";
const INFRA: &str = "01m85d84g0qe";
const MEMBER: &str = "01m85d85374q";

const SERVE: &str = "trap 'exit 0' TERM; echo started; httpd -p 80 -h /; while :; do sleep 1000 & wait; done";
const WAIT: &str = "trap 'exit 0' TERM; echo started; while :; do sleep 1000 & wait; done";

fn state(lab: &Lab, id: &str) -> String {
    lab.api().container(id)["state"].as_str().unwrap().to_owned()
}

#[test]
fn an_installation_is_taken_over_and_its_containers_live_on() {
    let mut original = Original::recorded("bottle").certified();
    let pid = original.running(WEB, None, SERVE);
    original.attach(WEB, pid, "10.166.0.2");
    let waiting = original.created(DB, WAIT);
    // One whose pid was given to somebody else, and one of which only the directory is there.
    original.directory("01m85d67tym3", "running", 536);
    original.directory(APP, "running", 3089);
    let lab = &original.lab;
    lab.machine().write("/run/rules", fixture("iptables-bottle.txt"));
    lab.machine().run(&["iptables-restore", "/run/rules"]);
    lab.machine()
        .run(&["iptables", "-A", "FORWARD", "-s", "198.51.100.1", "-j", "ACCEPT"]);
    let before = ["csm.json", "ipam.json", "ilm.json", "npm.json", "bsm.json"].map(|name| original.store(name));

    let issued = "sha256sum /etc/raind/cert/raindClient* /etc/raind/cert/raindHook*";
    let certificates = || lab.machine().run(&["sh", "-c", issued]);
    let given = certificates();

    lab.daemon().start();
    // The server's is made anew when it does not name all addresses of the host.
    assert_eq!(certificates(), given, "RSA or not, they are used as they are");
    let all = lab.api().ok(get("/v1/containers"));
    assert_eq!(all.as_array().unwrap().len(), 5, "{all}");
    let states = [WEB, DB, "01m85d67tym3", "01m85d7ac6qa", APP].map(|id| state(lab, id));
    assert_eq!(states, ["running", "created", "stopped", "stopped", "stopped"]);
    let web = lab.api().container("web");
    assert_eq!(
        (web["pid"].as_i64(), &web["address"]),
        (Some(pid.into()), &json!("10.166.0.2")),
        "{web}"
    );
    assert!(lab.api().log("web").contains("started"));
    assert_eq!(lab.api().exec(WEB, "cat /hello; echo $FOO").trim(), "hello\nbar");
    let reply = lab.outside_get(&format!("{HOST}:8080"), "/hello").unwrap();
    assert_eq!(reply.text(), "hello\n");
    // Rules: ours in place of the original's, others as they were.
    let rules = lab.machine().run(&["iptables-save"]);
    assert!(
        !rules.contains("-A FORWARD -d 10.166.0.2/32 -i eth0 -o raind0"),
        "{rules}"
    );
    assert_eq!(
        rules.matches("-A FORWARD -s 198.51.100.1/32 -j ACCEPT").count(),
        1,
        "{rules}"
    );
    let policies = lab.api().ok(get("/v1/policies/RAIND-EW"));
    assert_eq!(policies["policies"][0]["comment"], "web to api", "{policies}");
    let networks = lab.api().ok(get("/v1/networks"));
    assert_eq!(networks.as_array().unwrap().len(), 2, "{networks}");
    assert_eq!(lab.api().ok(get("/v1/images"))[0]["repository"], "library/busybox");

    // Once, whatever the files say later; what runs is not touched by a restart.
    lab.daemon().kill9();
    original.change("csm.json", "\"name\": \"web\"", "\"name\": \"renamed\"");
    lab.daemon().start();
    assert_eq!(lab.api().container("web")["pid"].as_i64(), Some(pid.into()));
    original.change("csm.json", "\"name\": \"renamed\"", "\"name\": \"web\"");
    let after = ["csm.json", "ipam.json", "ilm.json", "npm.json", "bsm.json"].map(|name| original.store(name));
    assert_eq!(before, after);

    // A waiting process of the original is released, those that died are made again from the adopted image.
    lab.api().ok(post("/v1/bottle/shop/actions/start", json!({})));
    assert_eq!([DB, APP].map(|id| state(lab, id)), ["running", "running"]);
    assert_eq!(lab.api().container(DB)["pid"].as_i64(), Some(waiting.into()));
    lab.api().ok(post("/v1/bottle/shop/actions/stop", json!({})));
    lab.api().ok(post("/v1/bottle/shop/actions/delete", json!({})));

    lab.api().stop(WEB);
    let web = lab.api().container(WEB);
    assert_eq!(
        (&web["state"], &web["exitCode"]),
        (&json!("stopped"), &json!(-1)),
        "{web}"
    );
    lab.api().start(WEB);
    lab.api().stop(WEB);
    assert_eq!(
        lab.api().container(WEB)["exitCode"],
        0,
        "with a monitor of ours it is known"
    );
    let fresh = lab
        .api()
        .run(json!({ "image": "busybox:latest", "command": crate::until_term(0) }));
    assert_eq!(
        lab.api().exec(&fresh, "cat /hello").trim(),
        "hello",
        "an adopted image is one like any other"
    );
    lab.api().stop(&fresh);
    lab.api().delete(&fresh);
    for id in [WEB, "01m85d67tym3", "01m85d7ac6qa"] {
        lab.api().delete(id);
    }
    lab.api()
        .ok(delete("/v1/images").json(&json!({ "image": "busybox:latest" })));
    let kept = lab.machine().path(&format!("{ROOTFS}/hello"));
    assert!(kept.exists(), "the original's files stay, so that there is a way back");
}

#[test]
fn an_end_that_nobody_saw_is_recorded() {
    let mut original = Original::recorded("bottle");
    let pid = original.running(WEB, None, WAIT);
    let lab = &original.lab;
    lab.daemon().start();
    assert_eq!(state(lab, WEB), "running");
    lab.machine().run(&["kill", "-9", &pid.to_string()]);
    let web = lab.api().wait_state(WEB, "stopped");
    assert_eq!(
        (&web["exitCode"], &web["message"]),
        (&json!(-1), &json!("process down detected.")),
        "{web}"
    );
}

#[test]
fn a_pod_lives_on_and_is_kept_alive() {
    let mut original = Original::recorded("pod");
    let infra = original.running(INFRA, None, WAIT);
    original.attach(INFRA, infra, "10.166.0.4");
    let member = original.running(MEMBER, Some(infra), WAIT);
    let lab = &original.lab;
    lab.daemon().start();
    let pod = || lab.api().ok(get(&format!("/v1/pods/{POD}")));
    assert_eq!(
        (&pod()["state"], &pod()["runningContainers"]),
        (&json!("running"), &json!(1)),
        "{}",
        pod()
    );
    assert_eq!(pod()["networkNS"], format!("/proc/{infra}/ns/net"));
    let pid = |id: &str| lab.api().container(id)["pid"].as_i64();
    lab.machine().run(&["kill", "-9", &member.to_string()]);
    wait_for("the member, started again", Duration::from_secs(30), || {
        match pid(MEMBER) {
            Some(pid) if pid != 0 && pid != i64::from(member) && pod()["state"] == "running" => Ok(()),
            _ => Err(lab.api().container(MEMBER)),
        }
    });
    assert_eq!(pid(INFRA), Some(infra.into()), "what lives was never touched");
    let network = |pid: i64| lab.machine().run(&["readlink", &format!("/proc/{pid}/ns/net")]);
    assert_eq!(network(pid(MEMBER).unwrap()), network(infra.into()));
}

#[test]
fn a_takeover_that_is_killed_begins_from_the_beginning() {
    let original = Original::recorded("bottle");
    let lab = &original.lab;
    let adopted = || {
        let links = std::fs::read_dir(lab.machine().path("/etc/raind/image/l"));
        links.is_ok_and(|mut links| links.next().is_some())
    };
    lab.daemon().launch();
    // It is between the adoption of the image and the commit, or just behind that.
    wait_for("the adopted image", Duration::from_secs(30), || {
        if adopted() { Ok(()) } else { Err(lab.daemon().log()) }
    });
    lab.daemon().kill9();
    lab.daemon().start();
    assert_eq!(lab.api().ok(get("/v1/containers")).as_array().unwrap().len(), 5);
    assert_eq!(lab.api().ok(get("/v1/images")).as_array().unwrap().len(), 1);
    assert!(adopted());
}

/// The daemon has to end with code 1 and one line with these words, and nothing may have become of the stores.
fn refuses(lab: &Lab, words: &[&str]) {
    let output = lab.daemon().run(&[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("condenser: ")).collect();
    assert_eq!((output.status.code(), errors.len()), (Some(1), 1), "{said}");
    for word in words {
        assert!(errors[0].contains(word), "{word}: {said}");
    }
}

#[test]
fn what_cannot_be_taken_over_is_refused_and_nothing_is_changed() {
    let original = Original::recorded("bottle");
    let lab = &original.lab;
    let before = lab.inventory();
    original.change("npm.json", "\"policies\": {", "\"policies\": [");
    refuses(
        lab,
        &["/etc/raind/store/npm.json", "line 14 column 15", "nothing was changed"],
    );
    original.change("npm.json", "\"policies\": [", "\"policies\": {");
    original.change("bsm.json", "\"version\": \"0.1.0\"", "\"version\": \"7\"");
    refuses(lab, &["/etc/raind/store/bsm.json", "\"7\" is not known", "line 2"]);
    original.change("bsm.json", "\"version\": \"7\"", "\"version\": \"0.1.0\", \"later\": 1");
    let lock = std::fs::File::open(lab.machine().path("/etc/raind/store/csm.json.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    refuses(lab, &["csm.json.lock", "original daemon", "stop it"]);
    drop(lock);
    let taken = lab
        .machine()
        .at(Place::Host, || std::net::TcpListener::bind("127.0.0.1:7755").unwrap());
    refuses(lab, &["7755"]);
    drop(taken);
    // No link, no rule, no address.
    let left = before.same_as(&lab.inventory()).err().unwrap_or_default();
    for kind in ["iptables: +", "links: +", "addresses: +"] {
        assert!(!left.contains(kind), "{left}");
    }
    lab.daemon().start();
    assert_eq!(lab.api().ok(get("/v1/containers")).as_array().unwrap().len(), 5);
    assert!(lab.daemon().log().contains("bsm.json: ignored unknown members later"));
}
