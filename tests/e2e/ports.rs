//! Published ports, what containers reach and what they do not (`docs/spec/network.md` 8, 13).

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use serde_json::json;

use crate::support::{HOST, ImageSpec, Lab, OUTSIDE, Place, wait_for};
use crate::{lab_with_busybox, until_term};

/// Long enough for an answer on a busy machine, short enough to wait for one that must not come.
const PATIENCE: Duration = Duration::from_secs(2);

/// A running web server and its address.
fn web_server(lab: &Lab, ports: &[&str]) -> (String, String) {
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let command = ["/bin/httpd", "-f", "-h", "/www"];
    let id = lab
        .api()
        .run(json!({ "image": image, "command": command, "port": ports }));
    let address = lab.api().container(&id)["address"].as_str().unwrap().to_owned();
    (id, address)
}

fn all_ways_answer(lab: &Lab, web: &str, client: &str) {
    let ways = [
        ("the outside", Place::Outside, HOST),
        ("the host by its address", Place::Host, HOST),
        ("the host by 127.0.0.1", Place::Host, "127.0.0.1"),
        ("another container", lab.network_of(client), HOST),
        ("the container itself", lab.network_of(web), HOST),
    ];
    for (who, place, address) in ways {
        wait_for(&format!("an answer to {who}"), Duration::from_secs(5), || {
            match lab.get_from(place, &format!("{address}:8080"), "/") {
                Ok(reply) if reply.text() == "hello from the lab\n" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}

fn opens(lab: &Lab, place: Place, address: &str) -> bool {
    let address: SocketAddr = address.parse().unwrap();
    lab.machine()
        .at(place, || TcpStream::connect_timeout(&address, PATIENCE).is_ok())
}

#[test]
fn a_published_port_answers_from_everywhere() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let client = api.run(json!({ "image": image, "command": until_term(0) }));
    let (web, address) = web_server(&lab, &["8080:80"]);
    all_ways_answer(&lab, &web, &client);
    assert!(
        !opens(&lab, lab.network_of(&client), &format!("{address}:80")),
        "containers reach each other directly"
    );

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
    assert!(!opens(&lab, Place::Outside, &format!("{HOST}:8080")));
    lab.assert_unchanged(&before);
}

#[test]
fn a_published_port_answers_where_forwarding_is_denied_by_default() {
    let (lab, image) = lab_with_busybox();
    lab.machine().run(&["iptables", "-P", "FORWARD", "DROP"]);
    let client = lab.api().run(json!({ "image": image, "command": until_term(0) }));
    let (web, _) = web_server(&lab, &["8080:80"]);
    all_ways_answer(&lab, &web, &client);
}

#[test]
fn udp_is_published_too() {
    let (lab, image) = lab_with_busybox();
    let api = lab.api();
    let before = lab.inventory();
    let id = api.run(json!({ "image": image, "command": until_term(0), "port": ["5353:1053:udp"] }));
    let server = lab
        .machine()
        .at(lab.network_of(&id), || UdpSocket::bind("0.0.0.0:1053").unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    for (place, address) in [(Place::Outside, HOST), (Place::Host, HOST), (Place::Host, "127.0.0.1")] {
        let client = lab.machine().at(place, || UdpSocket::bind("0.0.0.0:0").unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.connect((address, 5353)).unwrap();
        client.send(b"ping").unwrap();
        let mut buffer = [0; 16];
        let (length, peer) = server
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("{address} to {place:?}: {e}"));
        server.send_to(&buffer[..length], peer).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 4, "{address} to {place:?}");
    }
    drop(server);
    api.stop(&id);
    api.delete(&id);
    lab.assert_unchanged(&before);
}

#[test]
fn the_outside_sees_the_host_and_never_a_container() {
    let (lab, image) = lab_with_busybox();
    let id = lab.api().run(json!({ "image": image, "command": until_term(0) }));
    let listener = lab
        .machine()
        .at(Place::Outside, || TcpListener::bind((OUTSIDE, 8000)).unwrap());
    let address = listener.local_addr().unwrap();
    lab.machine()
        .at(lab.network_of(&id), || TcpStream::connect_timeout(&address, PATIENCE))
        .expect("a way out");
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip().to_string(), HOST);
}

/// Asks for the addresses of a name; also whether the answer was cut.
fn resolve(lab: &Lab, place: Place, name: &str, server: &str, tcp: bool) -> (Vec<String>, bool) {
    use std::io::{Read, Write};
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let query = query.to_vec().unwrap();
    let server: SocketAddr = format!("{server}:53").parse().unwrap();
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut answer = vec![0; 65_535];
        if tcp {
            let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(&[&u16::try_from(query.len()).unwrap().to_be_bytes()[..], &query].concat())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            answer.truncate(u16::from_be_bytes(length).into());
            stream.read_exact(&mut answer)?;
        } else {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(server)?;
            socket.send(&query)?;
            let length = socket.recv(&mut answer)?;
            answer.truncate(length);
        }
        Ok(answer)
    };
    let answer = lab
        .machine()
        .at(place, ask)
        .unwrap_or_else(|e| panic!("{name} from {server}: {e}"));
    let answer = Message::from_vec(&answer).unwrap();
    let addresses = answer.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(address.to_string()),
        _ => None,
    });
    (addresses.collect(), answer.metadata.truncation)
}

#[test]
fn names_resolve_through_the_daemon_whatever_server_is_asked() {
    let (lab, image) = lab_with_busybox();
    let id = lab.api().run(json!({ "image": image, "command": until_term(0) }));
    let place = lab.network_of(&id);
    for server in ["10.166.0.254", "198.51.100.9"] {
        for tcp in [false, true] {
            let one = vec![OUTSIDE.to_owned()];
            assert_eq!(
                resolve(&lab, place, "web.lab.", server, tcp),
                (one, false),
                "{server}, tcp {tcp}"
            );
        }
        assert_eq!(resolve(&lab, place, "nosuch.lab.", server, false), (vec![], false));
        // Too long for UDP: the client is told to come back over TCP, and then gets all.
        assert!(resolve(&lab, place, "big.lab.", server, false).1);
        assert_eq!(resolve(&lab, place, "big.lab.", server, true).0.len(), 120);
    }
    let said = lab.api().exec(&id, "nslookup -type=a web.lab");
    assert!(said.contains(OUTSIDE), "{said}");
}

#[test]
fn the_daemon_is_out_of_reach_for_containers() {
    let (lab, image) = lab_with_busybox();
    let id = lab.api().run(json!({ "image": image, "command": until_term(0) }));
    let place = lab.network_of(&id);
    for port in [7755, 7757, 7758] {
        for address in [HOST, "10.166.0.254"] {
            assert!(!opens(&lab, place, &format!("{address}:{port}")), "{address}:{port}");
        }
    }
    // Hooks that run inside a container's network have to get through; everybody outside has not.
    assert!(opens(&lab, place, &format!("{HOST}:7756")));
    assert!(!opens(&lab, Place::Outside, &format!("{HOST}:7756")));
}
