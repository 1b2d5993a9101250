//! A published port takes nothing that somebody else has: programs of the host, traffic on its way to others, ports of
//! what does not run.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::manifests::apply;
use crate::support::{HOST, ImageSpec, Lab, OUTSIDE, Place, get, post, send, wait_for, when};
use crate::{lab_with_busybox, until_term};

/// Long enough for an answer on a busy machine, shorter than the three seconds that an address without owner takes.
const AT_ONCE: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(10);

/// A program of the host that has a port.
#[allow(dead_code, reason = "a socket is held by being there")]
enum Holder {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

fn host_listens(lab: &Lab, address: &str) -> Holder {
    let address: SocketAddr = address.parse().unwrap();
    lab.machine()
        .at(Place::Host, || Holder::Tcp(TcpListener::bind(address).unwrap()))
}

fn host_receives(lab: &Lab, address: &str) -> Holder {
    let address: SocketAddr = address.parse().unwrap();
    lab.machine()
        .at(Place::Host, || Holder::Udp(UdpSocket::bind(address).unwrap()))
}

fn dial(lab: &Lab, place: Place, address: &str) -> std::io::Result<TcpStream> {
    let address: SocketAddr = address.parse().unwrap();
    lab.machine()
        .at(place, || TcpStream::connect_timeout(&address, Duration::from_secs(5)))
}

/// Waits until nobody answers there, which is told at once.
fn refuses(lab: &Lab, place: Place, address: &str) {
    wait_for(&format!("{address} refused from {place:?}"), SOON, || {
        let begun = Instant::now();
        match dial(lab, place, address) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && begun.elapsed() < AT_ONCE => Ok(()),
            other => Err(format!("{other:?} after {:?}", begun.elapsed())),
        }
    });
}

fn answers(lab: &Lab, place: Place, address: &str, text: &str) {
    wait_for(&format!("{text:?} at {address} from {place:?}"), SOON, || {
        match lab.get_from(place, address, "/") {
            Ok(reply) if reply.text().trim() == text => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

fn start(lab: &Lab, id: &str) -> crate::support::Reply {
    lab.api()
        .call(post(&format!("/v1/containers/{id}/actions/start"), json!({})))
}

/// A container that serves `word` on its ports, before it is started.
fn web(lab: &Lab, image: &str, word: &str, ports: &[&str]) -> String {
    let script = format!(
        "mkdir -p /srv; echo {word} > /srv/index.html; for p in 81 82; do httpd -p $p -h /srv; done; exec httpd -f -h /srv"
    );
    lab.api()
        .create(json!({ "image": image, "command": ["/bin/sh", "-c", script], "port": ports }))
}

fn listening(lab: &Lab) -> String {
    lab.machine().run(&["ss", "-Hltunp"])
}

fn is_held(lab: &Lab, port: u16) -> bool {
    let ours = |line: &str| line.contains(&format!(":{port} ")) && line.contains("condenser");
    listening(lab).lines().any(ours)
}

#[test]
fn what_a_program_of_the_host_has_is_refused() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let holders = [
        (host_listens(&lab, "0.0.0.0:8090"), 8090, "tcp"),
        (host_listens(&lab, "127.0.0.1:8091"), 8091, "tcp"),
        (host_listens(&lab, &format!("{HOST}:8092")), 8092, "tcp"),
        (host_listens(&lab, "[::]:8093"), 8093, "tcp"),
        (host_receives(&lab, "0.0.0.0:8094"), 8094, "udp"),
        (host_receives(&lab, "127.0.0.1:8095"), 8095, "udp"),
        (host_receives(&lab, "[::]:8096"), 8096, "udp"),
    ];
    for (_, port, protocol) in &holders {
        let wanted = format!("{port}:80:{protocol}");
        let taken = format!("host port {port}/{protocol} is already used by ");
        let ports = json!([wanted]);
        let said = api
            .call(post(
                "/v1/containers",
                json!({ "image": image, "command": until_term(0), "port": ports }),
            ))
            .refused(409, "service failed: forward rule failed: ");
        assert!(said.contains(&taken), "{said}");
        let pod = json!({ "name": format!("p{port}"), "containers": [{ "name": "c", "image": image, "port": ports }] });
        let said = api.call(post("/v1/pods", pod)).refused(409, "");
        assert!(said.contains(&taken), "{said}");
        let bottle =
            format!("bottle: {{name: b{port}}}\nservices: {{web: {{image: \"{image}\", ports: [\"{wanted}\"]}}}}\n");
        let said = api.call(send("POST", "/v1/bottle", bottle)).refused(409, "");
        assert!(said.contains(&taken), "{said}");
        let service = format!(
            "kind: Service\nmetadata: {{name: s{port}}}\nspec: {{selector: {{a: b}}, ports: [{{port: {port}, protocol: {}}}]}}\n",
            protocol.to_uppercase()
        );
        for path in ["/v1/services", "/v1/resource/apply"] {
            let said = api.call(send("POST", path, service.clone())).refused(409, "");
            assert!(
                said.contains(&format!("port {port}/{protocol} is already used by ")),
                "{said}"
            );
        }
        let pod = format!(
            "kind: Pod\nmetadata: {{name: m{port}}}\nspec: {{containers: [{{name: c, image: \"{image}\", ports: [{{containerPort: \
             80, hostPort: {port}, protocol: {}}}]}}]}}\n",
            protocol.to_uppercase()
        );
        let set = format!(
            "kind: Deployment\nmetadata: {{name: d{port}}}\nspec: {{selector: {{matchLabels: {{a: b}}}}, template: {{metadata: \
             {{labels: {{a: b}}}}, {}}}}}\n",
            pod.lines().last().unwrap()
        );
        for text in [pod, set] {
            let said = api.call(send("POST", "/v1/resource/apply", text)).refused(409, "");
            assert!(said.contains(&taken), "{said}");
        }
    }
    assert_eq!(api.ok(get("/v1/pods")), json!([]));
    lab.assert_unchanged(&before);
}

#[test]
fn who_came_between_create_and_start_keeps_the_port() {
    let (lab, image) = lab_with_busybox();
    let id = web(&lab, &image, "container", &["8080:80", "5353:53:udp"]);
    refuses(&lab, Place::Outside, &format!("{HOST}:8080"));
    assert!(!is_held(&lab, 8080), "a container that was not started holds nothing");
    let holder = host_listens(&lab, "0.0.0.0:8080");
    let said = start(&lab, &id).refused(409, "");
    assert!(said.contains("host port 8080/tcp is already used by "), "{said}");
    let Holder::Tcp(listener) = &holder else { unreachable!() };
    let client = dial(&lab, Place::Outside, &format!("{HOST}:8080")).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(b"host").unwrap();
    drop(peer);
    let mut said = String::new();
    { client }.read_to_string(&mut said).unwrap();
    assert_eq!(said, "host");
    drop(holder);
    let holder = host_receives(&lab, "127.0.0.1:5353");
    let said = start(&lab, &id).refused(409, "");
    assert!(said.contains("host port 5353/udp is already used by "), "{said}");
    assert!(!is_held(&lab, 8080), "what was got before the failure is let go of");
    drop(holder);
    lab.api().start(&id);
    answers(&lab, Place::Outside, &format!("{HOST}:8080"), "container");
}

#[test]
fn the_port_of_what_does_not_run_refuses_at_once() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let at = format!("{HOST}:8080");
    let id = web(&lab, &image, "container", &["8080:80"]);
    for place in [Place::Outside, Place::Host] {
        refuses(&lab, place, &at);
    }
    api.start(&id);
    // The port is there when the answer comes; the server may need a moment more, and until then it is refused.
    answers(&lab, Place::Outside, &at, "container");
    api.stop(&id);
    for place in [Place::Outside, Place::Host] {
        refuses(&lab, place, &at);
    }
    lab.daemon().restart();
    refuses(&lab, Place::Outside, &at);
    api.start(&id);
    answers(&lab, Place::Outside, &at, "container");
    lab.machine()
        .run(&["kill", "-9", &api.container(&id)["pid"].to_string()]);
    api.wait_state(&id, "stopped");
    refuses(&lab, Place::Outside, &at);
    api.delete(&id);
    // Everything is let go of.
    drop(host_listens(&lab, "0.0.0.0:8080"));
}

#[test]
fn traffic_for_others_is_left_alone() {
    let (lab, image) = lab_with_busybox();
    let machine = lab.machine();
    for line in [
        "netns add second",
        "link add eth1 type veth peer name eth0 netns second",
        "addr add 203.0.113.2/24 dev eth1",
        "link set eth1 up",
        "-n second link set lo up",
        "-n second addr add 203.0.113.1/24 dev eth0",
        "-n second link set eth0 up",
        "-n second route add default via 203.0.113.2",
        "-n outside route add 203.0.113.0/24 via 192.0.2.2",
    ] {
        machine.run(&[&["ip"][..], &line.split(' ').collect::<Vec<_>>()].concat());
    }
    let namespace = std::fs::File::open(machine.path("/run/netns/second")).unwrap();
    let listener = std::thread::scope(|scope| {
        let bind = || {
            nix::sched::setns(namespace.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            TcpListener::bind("0.0.0.0:8080").unwrap()
        };
        scope.spawn(bind).join().unwrap()
    });
    std::thread::spawn(move || {
        for peer in listener.incoming().flatten() {
            let _ = (&peer).write_all(b"second");
        }
    });
    let id = web(&lab, &image, "container", &["8080:80"]);
    lab.api().start(&id);
    answers(&lab, Place::Outside, &format!("{HOST}:8080"), "container");
    for place in [Place::Outside, Place::Host, lab.network_of(&id)] {
        let mut said = String::new();
        let peer = dial(&lab, place, "203.0.113.1:8080");
        peer.unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "second", "{place:?}");
    }
}

/// Without a rule against it the packet would be translated before the kernel asks what it does here with that address.
#[test]
fn a_neighbour_does_not_reach_what_is_published_on_the_loopback() {
    let (lab, image) = lab_with_busybox();
    let machine = lab.machine();
    let id = web(&lab, &image, "mine", &["127.0.0.1:9090:80"]);
    lab.api().start(&id);
    answers(&lab, Place::Host, "127.0.0.1:9090", "mine");
    // The outside sends what is for the loopback to the host, and has none itself: it would take an answer. A rule that
    // does nothing counts what arrives.
    let redirect = format!(
        "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
        ip addr flush dev lo
        ip route add 127.0.0.0/8 via {HOST} src {OUTSIDE}"
    );
    machine.run(&["ip", "netns", "exec", "outside", "sh", "-ec", &redirect]);
    let counted = [
        "-t",
        "mangle",
        "-A",
        "PREROUTING",
        "-i",
        "eth0",
        "-d",
        "127.0.0.1",
        "-p",
        "tcp",
    ];
    machine.run(&[&["iptables"], &counted[..]].concat());
    std::thread::scope(|scope| {
        let attempt = scope.spawn(|| dial(&lab, Place::Outside, "127.0.0.1:9090"));
        wait_for("a packet for the loopback", SOON, || {
            let rules = machine.run(&["iptables", "-t", "mangle", "-vxnL", "PREROUTING"]);
            when(rules, |rules| {
                let packets = rules
                    .lines()
                    .filter_map(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
                packets.sum::<u64>() > 0
            })
        });
        attempt.join().unwrap().unwrap_err();
    });
    answers(&lab, Place::Host, "127.0.0.1:9090", "mine");
}

#[test]
fn ports_are_written_as_elsewhere() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    lab.machine()
        .run(&["ip", "addr", "add", "192.0.2.77/24", "dev", "eth0"]);
    let run = |word: &str, ports: &[&str]| {
        let id = web(&lab, &image, word, ports);
        api.start(&id);
        id
    };
    let local = run("local", &["127.0.0.1:8080:80", "192.0.2.77:8080:80/tcp"]);
    run("host", &[&format!("{HOST}:8080:80")]);
    answers(&lab, Place::Host, "127.0.0.1:8080", "local");
    answers(&lab, Place::Outside, "192.0.2.77:8080", "local");
    answers(&lab, Place::Outside, &format!("{HOST}:8080"), "host");
    answers(&lab, Place::Host, &format!("{HOST}:8080"), "host");
    assert_eq!(api.container(&local)["forwards"][0]["address"], "127.0.0.1");
    api.stop(&local);
    refuses(&lab, Place::Host, "127.0.0.1:8080");
    answers(&lab, Place::Outside, &format!("{HOST}:8080"), "host");
    run("loopback", &["127.0.0.1:9090:80"]);
    answers(&lab, Place::Host, "127.0.0.1:9090", "loopback");
    refuses(&lab, Place::Outside, &format!("{HOST}:9090"));

    run("range", &["7000-7002:80-82", "7000-7002:80-82/udp"]);
    for port in 7000..=7002 {
        answers(&lab, Place::Outside, &format!("{HOST}:{port}"), "range");
    }
    let any = run("any", &["80", "127.0.0.1::81"]);
    let forwards = api.container(&any)["forwards"].clone();
    let [one, two] = [0, 1].map(|n| forwards[n]["source"].as_u64().unwrap());
    answers(&lab, Place::Outside, &format!("{HOST}:{one}"), "any");
    answers(&lab, Place::Host, &format!("127.0.0.1:{two}"), "any");
    refuses(&lab, Place::Outside, &format!("{HOST}:{two}"));

    let create = |ports: Value| {
        api.call(post(
            "/v1/containers",
            json!({ "image": image, "command": until_term(0), "port": ports }),
        ))
    };
    for (ports, status, message) in [
        (
            json!(["8080:80"]),
            409,
            "host port 8080/tcp is already used by container ",
        ),
        (
            json!([format!("{HOST}:8080:81")]),
            409,
            "host port 8080/tcp is already used by container ",
        ),
        (
            json!(["127.0.0.1:7001:80"]),
            409,
            "host port 7001/tcp is already used by container ",
        ),
        (
            json!(["1:2", "127.0.0.1:1:3"]),
            400,
            "host port 1/tcp is published twice",
        ),
        (
            json!(["192.0.2.99:1:2"]),
            400,
            "192.0.2.99 is not an address of this host",
        ),
        (json!(["[::1]:1:2"]), 400, "IPv6"),
        (json!(["localhost:1:2"]), 400, "\"localhost\""),
        (json!(["1-3:1-2"]), 400, "ranges"),
        (json!(["3-1:3-1"]), 400, "not a port number"),
        (json!(["1:2/sctp"]), 400, "not a protocol"),
    ] {
        let said = create(ports).refused(status, "service failed: forward rule failed: ");
        assert!(said.contains(message), "{said}");
    }
}

#[test]
fn pods_bottles_and_manifests_name_addresses_too() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let serve = |word: &str| {
        json!([
            "/bin/sh",
            "-c",
            format!("mkdir /srv; echo {word} > /srv/index.html; exec httpd -f -h /srv")
        ])
    };
    let pod = json!({ "kind": "Pod", "metadata": { "name": "shop" }, "spec": { "containers": [{
        "name": "c", "image": image, "command": serve("pod"),
        "ports": [{ "containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1" }, { "containerPort": 81, "hostIP": HOST }],
    }] } });
    apply(&api, &pod.to_string());
    let bottle = json!({ "bottle": { "name": "blog" }, "services": { "web": {
        "image": image, "command": serve("bottle"), "ports": [format!("{HOST}:8080:80/tcp")] } } });
    let reply = api.call(send("POST", "/v1/bottle", bottle.to_string()));
    assert_eq!(reply.status, 201, "{}", reply.text());
    api.ok(send("POST", "/v1/bottle/blog/actions/start", ""));
    answers(&lab, Place::Host, "127.0.0.1:8080", "pod");
    answers(&lab, Place::Outside, &format!("{HOST}:8080"), "bottle");
    // A port without a number of the host gets one, and keeps it while the pod is kept up.
    let made = api.ok(post(
        "/v1/pods",
        json!({ "name": "any", "containers": [{ "name": "c", "image": image, "command": serve("any"), "port": ["80"] }] }),
    ));
    let id = made["podId"].as_str().unwrap().to_owned();
    let source = || {
        let containers = api.ok(get("/v1/containers"));
        let all = containers.as_array().unwrap().iter();
        let infra = all
            .clone()
            .find(|c| c["podId"] == id.as_str() && c["forwards"][0].is_object());
        infra.unwrap()["forwards"][0]["source"].as_u64().unwrap()
    };
    let act = |action: &str| api.ok(post(&format!("/v1/pods/{id}/actions/{action}"), json!({})));
    act("start");
    let port = source();
    answers(&lab, Place::Outside, &format!("{HOST}:{port}"), "any");
    act("stop");
    refuses(&lab, Place::Outside, &format!("{HOST}:{port}"));
    act("start");
    answers(&lab, Place::Outside, &format!("{HOST}:{port}"), "any");
    assert_eq!(source(), port);
}

#[test]
fn the_configuration_says_where_ports_are_published() {
    let lab = Lab::start();
    lab.daemon().set("CONDENSER_PUBLISH_ADDRESS", "127.0.0.1");
    lab.daemon().start();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let plain = web(&lab, &image, "plain", &["8080:80", "0.0.0.0:8081:80"]);
    lab.api().start(&plain);
    answers(&lab, Place::Host, "127.0.0.1:8080", "plain");
    answers(&lab, Place::Outside, &format!("{HOST}:8081"), "plain");
    refuses(&lab, Place::Outside, &format!("{HOST}:8080"));
    // Somebody else may have the rest of the host.
    drop(host_listens(&lab, &format!("{HOST}:8080")));
}

#[test]
fn a_socket_of_ours_holds_the_port_while_the_container_runs() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let id = web(&lab, &image, "container", &["8080:80", "8080:80/udp"]);
    api.start(&id);
    let at = format!("{HOST}:8080");
    answers(&lab, Place::Outside, &at, "container");
    assert_eq!(listening(&lab).matches(":8080 ").count(), 2, "{}", listening(&lab));
    assert!(is_held(&lab, 8080));
    for address in ["0.0.0.0:8080", "127.0.0.1:8080", "[::]:8080"] {
        let address: SocketAddr = address.parse().unwrap();
        lab.machine().at(Place::Host, || {
            assert_eq!(TcpListener::bind(address).unwrap_err().kind(), ErrorKind::AddrInUse);
            assert_eq!(UdpSocket::bind(address).unwrap_err().kind(), ErrorKind::AddrInUse);
        });
    }
    // Without rules the holder answers nobody, and hangs nobody.
    lab.machine().run(&["iptables", "-t", "nat", "-F"]);
    let begun = Instant::now();
    let refused = dial(&lab, Place::Host, &at);
    if let Err(error) = refused {
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    assert!(begun.elapsed() < AT_ONCE);
    answers(&lab, Place::Outside, &at, "container");

    lab.daemon().kill9();
    lab.daemon().start();
    wait_for("the holder after a crash", SOON, || {
        is_held(&lab, 8080).then_some(()).ok_or("not held")
    });
    api.stop(&id);
    wait_for("the end of the holder", SOON, || {
        (!is_held(&lab, 8080)).then_some(()).ok_or("held")
    });
}

#[test]
fn a_port_that_was_taken_while_the_daemon_was_away_is_told_of() {
    let (lab, image) = lab_with_busybox();
    let id = web(&lab, &image, "container", &["8080:80"]);
    lab.api().start(&id);
    let at = format!("{HOST}:8080");
    answers(&lab, Place::Outside, &at, "container");
    lab.daemon().kill9();
    let holder = host_listens(&lab, "0.0.0.0:8080");
    lab.daemon().start();
    wait_for("a line in the log", SOON, || {
        let log = lab.daemon().log();
        let says = |line: &&str| line.contains("WARN") && line.contains("8080/tcp") && line.contains("stays published");
        log.lines().find(says).map(drop).ok_or("nothing said")
    });
    assert_eq!(lab.api().container(&id)["state"], "running");
    answers(&lab, Place::Outside, &at, "container");
    drop(holder);
    wait_for("the port to be held again", Duration::from_secs(15), || {
        is_held(&lab, 8080).then_some(()).ok_or("not held")
    });
}
