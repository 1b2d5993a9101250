//! Published ports, what containers reach and what they do not (`contract/network.md` 8, 13).

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use serde_json::json;

use crate::support::{HOST, ImageSpec, Lab, OUTSIDE, Place, wait_for};
use crate::{lab_with_busybox, until_term};

/// Long enough for an answer on a busy machine, short enough to wait for one that must not come.
const WGET: &str = "wget -T 2 -q -O -";

fn web_server(lab: &Lab, name: &str, ports: &[&str]) -> (String, String) {
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let command = ["/bin/httpd", "-f", "-h", "/www"];
    let api = lab.api();
    let id = api.run(json!({ "image": image, "name": name, "command": command, "port": ports }));
    let address = api.container(&id)["address"].as_str().unwrap().to_owned();
    (id, address)
}

fn answers(lab: &Lab, from: &str, ask: impl Fn() -> String) {
    wait_for(&format!("an answer to {from}"), Duration::from_secs(5), || {
        match ask() {
            said if said == "hello from the lab\n" => Ok(()),
            said => Err(format!("{said}\n{}", lab.machine().run(&["iptables-save"]))),
        }
    });
}

fn all_ways_answer(lab: &Lab, web: &str, client: &str) {
    let text = |reply: Result<crate::support::Reply, String>| reply.map_or_else(|e| e, |reply| reply.text());
    answers(lab, "the outside", || {
        text(lab.outside_get(&format!("{HOST}:8080"), "/"))
    });
    answers(lab, "the host by its address", || {
        text(lab.host_get(&format!("{HOST}:8080"), "/"))
    });
    answers(lab, "the host by 127.0.0.1", || {
        text(lab.host_get("127.0.0.1:8080", "/"))
    });
    answers(lab, "another container", || {
        lab.api().exec(client, &format!("{WGET} http://{HOST}:8080/"))
    });
    answers(lab, "the container itself", || {
        lab.api().exec(web, &format!("{WGET} http://{HOST}:8080/"))
    });
}

#[test]
fn a_published_port_answers_from_everywhere() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let client = api.run(json!({ "image": image, "name": "client", "command": until_term(0) }));
    let (web, address) = web_server(&lab, "web", &["8080:80"]);
    all_ways_answer(&lab, &web, &client);

    // Containers do not reach each other otherwise.
    let direct = api.exec("client", &format!("{WGET} http://{address}/"));
    assert!(!direct.contains("hello"), "{direct}");

    // Rules are derived from the state, not from the moment of creation.
    lab.daemon().restart();
    all_ways_answer(&lab, &web, &client);
    api.stop(&web);
    api.start(&web);
    all_ways_answer(&lab, &web, &client);

    for id in [&web, &client] {
        api.stop(id);
        api.delete(id);
    }
    lab.outside_get(&format!("{HOST}:8080"), "/").unwrap_err();
    lab.assert_unchanged(&before);
}

#[test]
fn a_published_port_answers_where_forwarding_is_denied_by_default() {
    let (lab, image) = lab_with_busybox();
    lab.machine().run(&["iptables", "-P", "FORWARD", "DROP"]);
    let client = lab.api().run(json!({ "image": image, "command": until_term(0) }));
    let (web, _) = web_server(&lab, "web", &["8080:80"]);
    all_ways_answer(&lab, &web, &client);
}

#[test]
fn udp_is_published_too() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let script = "trap 'exit 0' TERM; while :; do nc -u -l -p 53 -w 1 -e /bin/echo pong; done";
    let id = api.run(json!({ "image": image, "command": ["/bin/sh", "-c", script], "port": ["5353:53:udp"] }));
    let asks = [(Place::Outside, HOST), (Place::Host, HOST), (Place::Host, "127.0.0.1")];
    for (place, address) in asks {
        wait_for(
            &format!("pong from {address} to {place:?}"),
            Duration::from_secs(20),
            || {
                let ask = || -> std::io::Result<String> {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
                    socket.connect((address, 5353))?;
                    socket.send(b"ping\n")?;
                    let mut buffer = [0; 64];
                    let length = socket.recv(&mut buffer)?;
                    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
                };
                match lab.machine().at(place, ask) {
                    Ok(said) if said == "pong\n" => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            },
        );
    }
    api.stop(&id);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn the_outside_sees_the_host_and_never_a_container() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let listener = lab
        .machine()
        .at(Place::Outside, || TcpListener::bind((OUTSIDE, 8000)).unwrap());
    listener.set_nonblocking(true).unwrap();
    let id =
        api.run(json!({ "image": image, "command": ["/bin/sh", "-c", format!("{WGET} http://{OUTSIDE}:8000/; :")] }));
    let (_, peer) = wait_for("a visitor", Duration::from_secs(10), || listener.accept());
    assert_eq!(peer.ip().to_string(), HOST);
    api.wait_state(&id, "stopped");
}

#[test]
fn names_resolve_through_the_daemon_whatever_server_is_asked() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let id = api.run(json!({ "image": image, "command": until_term(0) }));
    for server in ["", "198.51.100.9"] {
        let said = api.exec(&id, &format!("nslookup -type=a web.lab {server}"));
        assert!(said.contains("Address: 192.0.2.1"), "server {server:?}: {said}");
    }
    let said = api.exec(&id, "nslookup -type=a nosuch.lab");
    assert!(said.contains("NXDOMAIN"), "{said}");
}

#[test]
fn the_daemon_is_out_of_reach_for_containers() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let id = api.run(json!({ "image": image, "command": until_term(0) }));
    let gateway = "10.166.0.254";
    for port in [7755, 7757, 7758] {
        for address in [HOST, gateway] {
            let said = api.exec(&id, &format!("nc -z -w 1 {address} {port} && echo open || echo closed"));
            assert_eq!(said, "closed\n", "{address}:{port}");
        }
    }
    // Hooks that run inside a container's network have to get through; everybody outside has not.
    let said = api.exec(&id, &format!("nc -z -w 1 {HOST} 7756 && echo open || echo closed"));
    assert_eq!(said, "open\n");
}
