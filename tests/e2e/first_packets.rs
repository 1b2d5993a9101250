//! The network of a container is there from its first packet to its last.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::builds::Context;
use crate::support::{Lab, OUTSIDE, Place, delete, post, wait_for};
use crate::{lab_with_busybox, until_term};

/// Reads every ARP packet that passes an interface of the host.
struct Arp(OwnedFd);

impl Arp {
    fn listen(lab: &Lab) -> Self {
        lab.machine().at(Place::Host, || {
            let protocol = i32::from((libc::ETH_P_ARP as u16).to_be());
            // SAFETY: makes a descriptor, which is owned from here on.
            let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, protocol) };
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            // SAFETY: nobody else has it.
            Self(unsafe { OwnedFd::from_raw_fd(fd) })
        })
    }

    /// How often each container has asked for the owner of an address on its bridge since the last call.
    fn questions(&self, bridge: i32) -> HashMap<Ipv4Addr, u32> {
        let mut all = HashMap::new();
        loop {
            let mut frame = [0_u8; 128];
            // SAFETY: an address of this type may be all zeros.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: buffer and address are as long as is said.
            let got = unsafe {
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut length,
                )
            };
            if got < 0 {
                return all;
            }
            // RFC 826: operation at 20, sender at 28, target at 38 of the frame.
            let is_request = got >= 42 && frame[20..22] == [0, 1] && from.sll_pkttype != libc::PACKET_OUTGOING;
            if is_request && from.sll_ifindex == bridge {
                let sender: [u8; 4] = frame[28..32].try_into().unwrap();
                *all.entry(sender.into()).or_default() += 1;
            }
        }
    }
}

fn index(lab: &Lab, link: &str) -> i32 {
    let said = lab.machine().run(&["ip", "-j", "link", "show", link]);
    let said: Value = serde_json::from_str(&said).unwrap();
    said[0]["ifindex"].as_i64().unwrap() as i32
}

/// Creates a container, whose hooks speak to the host before anything else does, and asserts that every question for an
/// address was answered the first time.
fn first_packet_arrives(lab: &Lab, arp: &Arp, image: &str, network: &str) -> String {
    let bridge = index(lab, network);
    arp.questions(bridge);
    let id = lab
        .api()
        .create(json!({ "image": image, "command": until_term(0), "network": network }));
    let own: Ipv4Addr = lab.api().container(&id)["address"].as_str().unwrap().parse().unwrap();
    let asked = arp.questions(bridge);
    assert_eq!(
        asked.get(&own),
        Some(&1),
        "{own} had to ask again in {network}: {asked:?}"
    );
    id
}

#[test]
fn no_first_packet_is_lost() {
    let (lab, image) = lab_with_busybox();
    let arp = Arp::listen(&lab);
    let empty = |network: &str, rounds: usize| {
        for _ in 0..rounds {
            let one = first_packet_arrives(&lab, &arp, &image, network);
            let two = first_packet_arrives(&lab, &arp, &image, network);
            for id in [&one, &two] {
                lab.api().delete(id);
            }
        }
    };
    empty("raind0", 8);
    lab.api().ok(post("/v1/networks", json!({ "bridge": "fresh" })));
    empty("fresh", 4);
    lab.api().ok(delete("/v1/networks/fresh/actions/delete"));
    // On a busy machine, where what the kernel does later is done much later.
    let mut load: Vec<_> = (0..4)
        .map(|_| {
            let mut busy = lab.machine().command(Place::Host, "sh");
            busy.args(["-c", "while :; do :; done"]).spawn().unwrap()
        })
        .collect();
    empty("raind0", 2);
    load.iter_mut().for_each(|busy| busy.kill().unwrap());
}

#[test]
fn the_last_containers_of_a_full_network_have_theirs_too() {
    let (lab, image) = lab_with_busybox();
    let arp = Arp::listen(&lab);
    for _ in 0..40 {
        first_packet_arrives(&lab, &arp, &image, "raind0");
    }
}

#[test]
fn a_build_keeps_its_network_however_often_is_swept() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let listener = lab
        .machine()
        .at(Place::Outside, || TcpListener::bind((OUTSIDE, 8000)).unwrap());
    let may_end = Arc::new(AtomicBool::new(false));
    let answers = may_end.clone();
    std::thread::spawn(move || {
        for mut peer in listener.incoming().flatten() {
            if answers.load(Ordering::Relaxed) {
                let _ = peer.read(&mut [0; 1024]);
                let _ = peer.write_all(b"HTTP/1.0 200 OK\r\n\r\ngo\n");
            }
        }
    });
    let context = Context::new(&format!(
        "FROM {image}\nRUN until wget -qO- http://{OUTSIDE}:8000/ | grep -q go; do sleep 0.1; done\n"
    ));
    std::thread::scope(|scope| {
        let build = scope.spawn(|| lab.api().ok(context.post("?tag=slow:1")));
        let step = wait_for("the step of the build", Duration::from_secs(20), || {
            let list = lab.api().ok(crate::support::get("/v1/containers"));
            let found = list.as_array().unwrap().iter().find(|c| {
                c["containerId"].as_str().unwrap().starts_with("build-")
                    && c["state"] == "running"
                    && c["command"].to_string().contains("wget")
            });
            found.cloned().ok_or(list)
        });
        // What a sweep removes is the sign that it has been.
        for sweep in 0..2 {
            let litter = format!("/etc/raind/container/01kg2cnf0yt{sweep}");
            lab.machine().run(&["mkdir", &litter]);
            wait_for("a sweep", Duration::from_secs(20), || {
                match lab.machine().path(&litter).exists() {
                    false => Ok(()),
                    true => Err("nothing was swept"),
                }
            });
        }
        let pid = step["pid"].as_i64().unwrap();
        let links = lab
            .machine()
            .output_at(Place::Process(pid), &["ip", "link", "show", "eth0"]);
        assert!(links.status.success(), "the interface of a running build is gone");
        may_end.store(true, Ordering::Relaxed);
        wait_for("the end of the build", Duration::from_secs(20), || {
            match build.is_finished() {
                true => Ok(()),
                false => Err("it goes on"),
            }
        });
        build.join().unwrap();
    });
    lab.api().ok(delete("/v1/images").json(&json!({ "image": "slow:1" })));
    lab.api().ok(post("/v1/build/prune", json!({})));
    lab.assert_unchanged(&before);
}

#[test]
fn an_interface_without_a_row_goes() {
    let lab = Lab::running();
    lab.machine().run(&[
        "ip",
        "link",
        "add",
        "rd_01kg2cnf0ytv",
        "type",
        "veth",
        "peer",
        "name",
        "stray",
    ]);
    wait_for("the end of a stray interface", Duration::from_secs(20), || {
        let links = lab.machine().run(&["ip", "-o", "link"]);
        match links.contains("rd_01kg2cnf0ytv") {
            false => Ok(()),
            true => Err(links),
        }
    });
}
