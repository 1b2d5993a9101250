//! Networks through the API (`docs/spec/api.md` 13, `docs/spec/network.md` 9).

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Lab, OUTSIDE, Place, delete, get, post};
use crate::{lab_with_busybox, until_term};

const NEVER: Duration = Duration::from_millis(300);

fn create(lab: &Lab, bridge: &str) -> Value {
    lab.api().ok(post("/v1/networks", json!({ "bridge": bridge })))
}

fn run(lab: &Lab, image: &str, network: &str) -> (String, String, Place) {
    let request = json!({ "image": image, "command": until_term(0), "network": network });
    let id = lab.api().run(request);
    let address = lab.api().container(&id)["address"].as_str().unwrap().to_owned();
    let place = lab.network_of(&id);
    (id, address, place)
}

fn opens(lab: &Lab, place: Place, address: &str) -> bool {
    let to: SocketAddr = address.parse().unwrap();
    lab.machine()
        .at(place, || TcpStream::connect_timeout(&to, NEVER).is_ok())
}

#[test]
fn a_new_network_is_closed_and_has_names_and_a_way_out() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    assert_eq!(create(&lab, "mynet"), json!({ "bridge": "mynet" }));
    let default = run(&lab, &image, "");
    let [one, two] = [(); 2].map(|()| run(&lab, &image, "mynet"));
    assert_eq!(one.1, "10.166.1.1");
    let mut list = lab.api().ok(get("/v1/networks"));
    for network in list.as_array_mut().unwrap() {
        network.as_object_mut().unwrap().remove("Conditions");
    }
    let wanted = json!([
        { "Interface": "raind0", "Address": "10.166.0.254/24", "NumContainers": 1 },
        { "Interface": "mynet", "Address": "10.166.1.254/24", "NumContainers": 2 },
    ]);
    assert_eq!(list, wanted);
    let servers = [&default, &one, &two]
        .map(|(_, _, place)| lab.machine().at(*place, || TcpListener::bind("0.0.0.0:80").unwrap()));
    let way_out = lab
        .machine()
        .at(Place::Outside, || TcpListener::bind((OUTSIDE, 8000)).unwrap());
    for (from, to) in [(&one, &two), (&one, &default), (&default, &one)] {
        assert!(!opens(&lab, from.2, &format!("{}:80", to.1)), "{} to {}", from.1, to.1);
    }
    assert!(opens(&lab, one.2, &format!("{OUTSIDE}:8000")));
    let said = lab.api().exec(&one.0, "nslookup -type=a web.lab");
    assert!(said.contains(OUTSIDE), "{said}");

    let api = lab.api();
    api.call(delete("/v1/networks/mynet/actions/delete"))
        .refused(409, "delete failed: network: mynet contains existing container");
    drop((servers, way_out));
    for (id, ..) in [default, one, two] {
        api.stop(&id);
        api.delete(&id);
    }
    let gone = api.call(delete("/v1/networks/mynet/actions/delete"));
    assert_eq!(
        (gone.status, gone.message()),
        (200, "delete network: mynet completed".into())
    );
    lab.assert_unchanged(&before);
}

#[test]
fn interfaces_of_others_are_not_touched() {
    let lab = Lab::running();
    let machine = lab.machine();
    machine.run(&["ip", "link", "add", "docker0", "type", "bridge"]);
    let before = lab.inventory();
    let api = lab.api();
    for name in ["docker0", "eth0", "lo", "raind0", "raindDns"] {
        api.call(post("/v1/networks", json!({ "bridge": name })))
            .refused(409, &format!("create failed: interface: {name} is already created"));
    }
    for name in ["docker0", "eth0", "lo", "raindDns", "nosuch"] {
        api.call(delete(&format!("/v1/networks/{name}/actions/delete")))
            .refused(404, &format!("delete failed: bridge: {name} not found"));
    }
    api.call(delete("/v1/networks/raind0/actions/delete"))
        .refused(409, "delete failed: network: raind0");
    for name in ["", "-x", "a/b", "this-name-is-too-long"] {
        api.call(post("/v1/networks", json!({ "bridge": name })))
            .refused(400, "create failed: network name ");
    }
    lab.assert_unchanged(&before);
}

#[test]
fn a_network_whose_bridge_vanished_can_be_removed_and_survives_a_crash() {
    let lab = Lab::running();
    let before = lab.inventory();
    create(&lab, "mynet");
    lab.daemon().kill9();
    lab.machine().run(&["ip", "link", "del", "mynet"]);
    lab.daemon().start();
    lab.machine().run(&["ip", "link", "show", "mynet"]);
    lab.machine().run(&["ip", "link", "del", "mynet"]);
    lab.api().ok(delete("/v1/networks/mynet/actions/delete"));
    lab.assert_unchanged(&before);
}
