//! Policies with real packets between real containers (`docs/spec/policy.md`, `docs/spec/api.md` 14).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Lab, OUTSIDE, Place, delete, get, post, send};
use crate::{lab_with_busybox, until_term};

/// How long a packet that must come may take on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// How long one that must not come is waited for.
const NEVER: Duration = Duration::from_millis(300);

/// A running container and its address.
struct Guest {
    id: String,
    address: Ipv4Addr,
    place: Place,
}

impl Guest {
    fn run(lab: &Lab, image: &str, name: &str) -> Self {
        Self::run_in(lab, image, name, "")
    }

    fn run_in(lab: &Lab, image: &str, name: &str, network: &str) -> Self {
        let request = json!({ "image": image, "name": name, "command": until_term(0), "network": network });
        let id = lab.api().run(request);
        Self {
            address: lab.api().container(&id)["address"].as_str().unwrap().parse().unwrap(),
            place: lab.network_of(&id),
            id,
        }
    }

    /// Takes TCP connections on a port for as long as the test runs.
    fn listen(&self, lab: &Lab, port: u16) {
        accept(lab, self.place, (Ipv4Addr::UNSPECIFIED, port).into());
    }

    /// Whether a connection from here to there comes about.
    fn opens(&self, lab: &Lab, address: Ipv4Addr, port: u16) -> bool {
        let to = SocketAddr::from((address, port));
        lab.machine()
            .at(self.place, || TcpStream::connect_timeout(&to, NEVER).is_ok())
    }

    fn pings(&self, lab: &Lab, address: Ipv4Addr) -> bool {
        let said = lab
            .api()
            .exec(&self.id, &format!("ping -c 1 -W 1 {address}; echo ended"));
        assert!(said.contains("ended"), "{said}");
        said.contains("1 packets received")
    }

    fn gone(self, lab: &Lab) {
        lab.api().stop(&self.id);
        lab.api().delete(&self.id);
    }
}

/// Takes TCP connections and answers each line with `+`.
fn accept(lab: &Lab, place: Place, address: SocketAddr) {
    let listener = lab.machine().at(place, || TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut byte = [0];
                while matches!(stream.read(&mut byte), Ok(1)) && stream.write_all(b"+").is_ok() {}
            });
        }
    });
}

/// Sends a byte and waits for the answer.
fn alive(stream: &mut TcpStream) -> bool {
    alive_within(stream, SOON)
}

fn alive_within(stream: &mut TcpStream, limit: Duration) -> bool {
    stream.set_read_timeout(Some(limit)).unwrap();
    stream.write_all(b"?").is_ok() && stream.read_exact(&mut [0]).is_ok()
}

fn add(lab: &Lab, policy: Value) -> String {
    lab.api().ok(post("/v1/policies", policy))["id"]
        .as_str()
        .unwrap()
        .into()
}

fn call(lab: &Lab, path: &str) -> Value {
    lab.api().ok(send("POST", &format!("/v1/policies/{path}"), Vec::new()))
}

fn commit(lab: &Lab) {
    assert_eq!(call(lab, "commit"), Value::Null);
}

fn remove(lab: &Lab, id: &str) {
    lab.api().ok(delete(&format!("/v1/policies/{id}")));
}

fn mode(lab: &Lab, mode: &str) {
    lab.api().ok(post("/v1/policies/ns/mode", json!({ "mode": mode })));
}

/// Status and reason of all policies of a chain.
fn statuses(lab: &Lab, chain: &str) -> Vec<(String, String)> {
    let list = lab.api().ok(get(&format!("/v1/policies/{chain}")));
    let policies = list["policies"].as_array().unwrap();
    assert_eq!(list["policies_total"], policies.len());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    policies
        .iter()
        .map(|p| (text(&p["status"]), text(&p["reason"])))
        .collect()
}

fn status(lab: &Lab, chain: &str) -> String {
    let all = statuses(lab, chain);
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].0.clone()
}

fn explain(lab: &Lab, source: &str, destination: &str, protocol: &str, port: u16) -> Value {
    let query = format!("source={source}&destination={destination}&protocol={protocol}&port={port}");
    lab.api().ok(get(&format!("/v1/policies/explain?{query}")))
}

/// Packets that the rules with this text have seen.
fn counted(lab: &Lab, chain: &str, rule: &str) -> u64 {
    let listed = lab.machine().run(&["iptables", "-nvxL", chain]);
    let lines = listed.lines().filter(|l| l.contains(rule));
    let packets = lines.map(|l| l.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap());
    packets.sum()
}

#[test]
fn a_policy_opens_exactly_what_it_names() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let [web, db, other] = ["web", "db", "other"].map(|name| Guest::run(&lab, &image, name));
    for guest in [&web, &db] {
        for port in [80, 81] {
            guest.listen(&lab, port);
        }
    }
    let only = |open: bool| {
        assert_eq!(web.opens(&lab, db.address, 80), open, "what the policy names");
        assert!(!web.opens(&lab, db.address, 81), "another port");
        assert!(!db.opens(&lab, web.address, 80), "the other direction");
        assert!(!other.opens(&lab, db.address, 80), "another container");
        assert!(!web.pings(&lab, db.address), "another protocol");
    };
    only(false);
    assert_eq!(explain(&lab, "web", "db", "tcp", 80)["decision"], "deny");
    let rule = json!({ "chain": "RAIND-EW", "source": "web", "dest": db.id, "protocol": "tcp", "dport": 80 });
    let id = add(&lab, rule.clone());
    assert_eq!(status(&lab, "RAIND-EW"), "before_commit");
    lab.api()
        .call(post("/v1/policies", rule))
        .refused(409, "service failed: policy ");
    only(false);
    let preview = call(&lab, "commit?dryRun=true");
    assert_eq!(preview["added"][0]["id"], *id);
    assert_eq!(preview["added"][0]["status"], "applied");
    assert_eq!(preview["rulesAdded"].as_array().unwrap().len(), 2, "{preview}");
    assert_eq!(status(&lab, "RAIND-EW"), "before_commit", "a dry run changes nothing");
    commit(&lab);
    assert_eq!(status(&lab, "RAIND-EW"), "applied");
    only(true);
    let why = explain(&lab, "web", "db", "tcp", 80);
    assert_eq!(
        (&why["decision"], &why["policy"]["id"]),
        (&json!("allow"), &json!(id)),
        "{why}"
    );
    assert!(
        lab.machine()
            .run(&["iptables-save"])
            .contains(why["rule"].as_str().unwrap()),
        "{why}"
    );
    assert_eq!(explain(&lab, "web", "db", "tcp", 81)["decision"], "deny");
    assert!(counted(&lab, "RAIND-EW", &format!("RAIND-EW-ALLOW,id={id}")) > 0);
    assert!(counted(&lab, "RAIND-EW", "RAIND-EW-DENY,id=predefined") > 0);

    lab.daemon().restart();
    only(true);
    // A staged removal changes nothing; a committed one everything, established or not.
    remove(&lab, &id);
    assert_eq!(
        statuses(&lab, "RAIND-EW"),
        [("remove_next_commit".into(), "user operation".into())]
    );
    only(true);
    let to = SocketAddr::from((db.address, 80));
    let mut established = lab
        .machine()
        .at(web.place, || TcpStream::connect_timeout(&to, SOON))
        .unwrap();
    commit(&lab);
    assert!(statuses(&lab, "RAIND-EW").is_empty());
    only(false);
    assert!(!alive_within(&mut established, NEVER));
    drop(established);
    for guest in [web, db, other] {
        guest.gone(&lab);
    }
    lab.assert_unchanged(&before);
}

#[test]
fn only_a_commit_commits() {
    let (lab, image) = lab_with_busybox();
    let [web, db] = ["web", "db"].map(|name| Guest::run(&lab, &image, name));
    db.listen(&lab, 80);
    add(&lab, json!({ "chain": "RAIND-EW", "source": "web", "dest": "db" }));
    mode(&lab, "enforce");
    let is_staged = || {
        assert_eq!(status(&lab, "RAIND-EW"), "before_commit");
        assert_eq!(
            lab.api().ok(get("/v1/policies/RAIND-NS-ENF"))["mode"],
            "enforce_next_commit"
        );
        assert!(!web.opens(&lab, db.address, 80));
        assert!(
            lab.machine()
                .run(&["iptables-save"])
                .contains("-A RAIND-ROOT -j RAIND-NS-OBS")
        );
    };
    is_staged();
    Guest::run(&lab, &image, "passer-by").gone(&lab);
    lab.api().ok(post("/v1/networks", json!({ "bridge": "mynet" })));
    lab.api().ok(delete("/v1/networks/mynet/actions/delete"));
    is_staged();
    lab.daemon().kill9();
    lab.daemon().start();
    is_staged();
    call(&lab, "revert");
    assert!(statuses(&lab, "RAIND-EW").is_empty());
    assert_eq!(lab.api().ok(get("/v1/policies/RAIND-NS-ENF"))["mode"], "observe");
    commit(&lab);
    assert!(!web.opens(&lab, db.address, 80));
}

#[test]
fn a_policy_waits_for_its_containers() {
    let (lab, image) = lab_with_busybox();
    let web = Guest::run(&lab, &image, "web");
    web.listen(&lab, 80);
    add(&lab, json!({ "chain": "RAIND-EW", "source": "web", "dest": "db" }));
    commit(&lab);
    let missing = [("unresolved".to_owned(), "container: db not found".to_owned())];
    assert_eq!(statuses(&lab, "RAIND-EW"), missing);
    for network in ["", "mynet"] {
        if !network.is_empty() {
            lab.api().ok(post("/v1/networks", json!({ "bridge": network })));
        }
        // The address of the first one is free again, and the second one is in another network.
        let db = Guest::run_in(&lab, &image, "db", network);
        assert_eq!(status(&lab, "RAIND-EW"), "applied");
        db.listen(&lab, 80);
        assert!(web.opens(&lab, db.address, 80), "{network:?}");
        assert!(web.pings(&lab, db.address), "{network:?}");
        assert!(!db.opens(&lab, web.address, 80), "{network:?}");
        db.gone(&lab);
        assert_eq!(statuses(&lab, "RAIND-EW"), missing);
        let stranger = Guest::run_in(&lab, &image, "stranger", network);
        stranger.listen(&lab, 80);
        assert!(!web.opens(&lab, stranger.address, 80), "{network:?}");
        stranger.gone(&lab);
    }
}

#[test]
fn the_way_out_is_observed_and_enforced() {
    let (lab, image) = lab_with_busybox();
    let [web, db] = ["web", "db"].map(|name| Guest::run(&lab, &image, name));
    let outside: Ipv4Addr = OUTSIDE.parse().unwrap();
    for port in [8001, 8002] {
        accept(&lab, Place::Outside, (outside, port).into());
    }
    let open = |guest: &Guest| [8001, 8002].map(|port| guest.opens(&lab, outside, port));
    let agrees = || {
        for (name, guest) in [("web", &web), ("db", &db)] {
            for (port, open) in [8001, 8002].into_iter().zip(open(guest)) {
                let why = explain(&lab, name, OUTSIDE, "tcp", port);
                assert_eq!(why["decision"] == "allow", open, "{name} {port}: {why}");
            }
        }
    };
    assert_eq!((open(&web), open(&db)), ([true, true], [true, true]));
    agrees();
    assert!(counted(&lab, "RAIND-NS-OBS", "RAIND-NS-ALLOW,id=predefined") > 0);
    let policy = |chain: &str| json!({ "chain": chain, "source": "web", "dest": "192.0.2.0/24", "protocol": "tcp", "dport": 8001 });
    let denied = add(&lab, policy("RAIND-NS-OBS"));
    let allowed = add(&lab, policy("RAIND-NS-ENF"));
    let connect = |port| {
        let to = SocketAddr::from((outside, port));
        lab.machine()
            .at(web.place, || TcpStream::connect_timeout(&to, SOON))
            .unwrap()
    };
    let [mut cut, mut kept] = [8001, 8002].map(connect);
    assert!(alive(&mut cut) && alive(&mut kept));
    commit(&lab);
    assert!(
        !alive_within(&mut cut, NEVER),
        "what is denied now ends, established or not"
    );
    assert!(alive(&mut kept));
    assert_eq!((open(&web), open(&db)), ([false, true], [true, true]));
    agrees();
    assert!(counted(&lab, "RAIND-NS-OBS", &format!("RAIND-NS-DENY,id={denied}")) > 0);
    mode(&lab, "enforce");
    assert_eq!(
        (open(&web), open(&db)),
        ([false, true], [true, true]),
        "it is only staged"
    );
    commit(&lab);
    assert_eq!(lab.api().ok(get("/v1/policies/RAIND-NS-ENF"))["mode"], "enforce");
    assert_eq!((open(&web), open(&db)), ([true, false], [false, false]));
    assert!(!alive_within(&mut kept, NEVER), "nor does the mode spare it");
    agrees();
    assert!(counted(&lab, "RAIND-NS-ENF", &format!("RAIND-NS-ALLOW,id={allowed}")) > 0);
    assert!(counted(&lab, "RAIND-NS-ENF", "RAIND-NS-DENY,id=predefined") > 0);
    lab.daemon().restart();
    assert_eq!((open(&web), open(&db)), ([true, false], [false, false]));
}

#[test]
fn commits_open_no_window_and_break_nothing() {
    let (lab, image) = lab_with_busybox();
    let [web, db] = ["web", "db"].map(|name| Guest::run(&lab, &image, name));
    db.listen(&lab, 80);
    let udp = |place, port: u16| {
        let socket = lab
            .machine()
            .at(place, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        socket.set_read_timeout(Some(NEVER)).unwrap();
        socket
    };
    let (open, closed) = (udp(db.place, 1001), udp(db.place, 1002));
    let allow = json!({ "chain": "RAIND-EW", "source": "web", "dest": "db", "protocol": "tcp", "dport": 80 });
    add(&lab, allow);
    add(
        &lab,
        json!({ "chain": "RAIND-EW", "source": "web", "dest": "db", "protocol": "udp", "dport": 1001 }),
    );
    commit(&lab);
    let to = SocketAddr::from((db.address, 80));
    let mut established = lab
        .machine()
        .at(web.place, || TcpStream::connect_timeout(&to, SOON))
        .unwrap();
    let (over, sent, came, leaked) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let address = db.address;
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                leaked.fetch_add(usize::from(closed.recv(&mut [0; 8]).is_ok()), Ordering::SeqCst);
            }
        });
        threads.spawn(|| {
            // The denied ones go with the allowed ones; an allowed one is waited for, so that none is lost in a queue.
            while !over.load(Ordering::SeqCst) {
                let client = udp(web.place, 0);
                client.send_to(b"!", (address, 1002)).unwrap();
                client.send_to(b"?", (address, 1001)).unwrap();
                sent.fetch_add(1, Ordering::SeqCst);
                open.set_read_timeout(Some(SOON)).unwrap();
                came.fetch_add(usize::from(open.recv(&mut [0; 8]).is_ok()), Ordering::SeqCst);
            }
        });
        let mut last: Option<String> = None;
        for n in 0..100 {
            if let Some(id) = last {
                remove(&lab, &id);
            }
            let port = 2000 + n;
            last = Some(add(
                &lab,
                json!({ "chain": "RAIND-EW", "source": "web", "dest": "db", "protocol": "tcp", "dport": port }),
            ));
            commit(&lab);
            assert!(alive(&mut established), "commit {n}");
        }
        over.store(true, Ordering::SeqCst);
    });
    let [sent, came, leaked] = [sent, came, leaked].map(AtomicUsize::into_inner);
    assert!(sent > 100, "only {sent} packets");
    assert_eq!((came, leaked), (sent, 0));
}

#[test]
fn what_cannot_be_meant_is_refused_with_the_request() {
    let lab = Lab::running();
    let api = lab.api();
    let body =
        json!({ "chain": "RAIND-EW", "source": "web", "dest": "db", "protocol": "", "dport": 80, "comment": "" });
    let reply = api.call(post("/v1/policies", body.clone()));
    reply.refused(400, "service failed: dport 80 needs the protocol tcp or udp");
    assert_eq!(reply.json()["data"], body);
    api.call(get("/v1/policies/NOPE"))
        .refused(404, "Chain: NOPE is invalid");
    api.call(get("/v1/policies/commit"))
        .refused(404, "Chain: commit is invalid");
    api.call(delete("/v1/policies/revert"))
        .refused(404, "service failed: ID: revert not found");
    api.call(get("/v1/policies/explain?source=web&destination=db"))
        .refused(404, "service failed: container: web not found");
}

#[test]
fn a_crash_in_a_commit_leaves_rules_and_store_in_agreement() {
    let lab = Lab::running();
    for round in 0..5 {
        let port = 3000 + round;
        let rule =
            json!({ "chain": "RAIND-NS-OBS", "source": "web", "dest": "192.0.2.9", "protocol": "tcp", "dport": port });
        // A policy has rules only for a container that is there; the mode has rules always.
        add(&lab, rule);
        let now = lab.api().ok(get("/v1/policies/RAIND-NS-OBS"))["mode"].clone();
        let other = if now == "observe" { "enforce" } else { "observe" };
        mode(&lab, other);
        let wanted = if other == "observe" {
            "-j RAIND-NS-OBS"
        } else {
            "-j RAIND-NS-ENF"
        };
        std::thread::scope(|threads| {
            // Whether it is answered depends on who is faster.
            threads.spawn(|| drop(lab.api().try_call(send("POST", "/v1/policies/commit", Vec::new()))));
            while !lab.machine().run(&["iptables-save", "-t", "filter"]).contains(wanted) {}
            lab.daemon().kill9();
        });
        lab.daemon().start();
        let list = lab.api().ok(get("/v1/policies/RAIND-NS-OBS"));
        let staged = list["mode"] == format!("{other}_next_commit");
        let statuses = statuses(&lab, "RAIND-NS-OBS");
        let last = &statuses.last().unwrap().0;
        assert_eq!(last == "before_commit", staged, "all or nothing: {list}");
        let in_force = if (other == "observe") != staged {
            "-j RAIND-NS-OBS"
        } else {
            "-j RAIND-NS-ENF"
        };
        assert!(lab.machine().run(&["iptables-save"]).contains(in_force), "{list}");
        call(&lab, "revert");
    }
}

#[test]
fn the_lines_of_the_documentation_work() {
    let (lab, image) = lab_with_busybox();
    for name in ["web", "db"] {
        Guest::run(&lab, &image, name);
    }
    let id = add(&lab, json!({ "chain": "RAIND-EW", "source": "db", "dest": "web" }));
    let text = include_str!("../../docs/policies.md");
    let blocks = text
        .split("```sh\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap());
    let lines: Vec<&str> = blocks
        .flat_map(str::lines)
        .filter(|line| line.starts_with("api "))
        .collect();
    assert!(lines.len() >= 14, "{lines:?}");
    let curl = "curl -sS --cacert /etc/raind/cert/raind.crt --cert /etc/raind/cert/raindClient.crt \
                --key /etc/raind/cert/raindClient.key \"$@\"";
    for line in lines {
        let script = format!("API=https://localhost:7755/v1; ID={id}; api() {{ {curl}; }}\n{line}");
        let said = lab.machine().run(&["bash", "-c", &script]);
        println!("$ {line}\n{said}");
        assert!(said.starts_with("{\"status\":\"success\""), "{line}: {said}");
    }
}
