//! The DNS server of the outside: knows a handful of names, over UDP and TCP.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};

use super::OUTSIDE;
use super::machine::{Machine, Place};

/// Names that exist, all of them the outside's address. `big.lab` has so many addresses that UDP cannot carry them.
const NAMES: [&str; 4] = ["registry-1.docker.io.", "registry.k8s.io.", "web.lab.", "big.lab."];
/// Addresses of `big.lab`.
const MANY: u8 = 120;

/// Two threads that answer until the server is dropped.
pub struct Server {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens on port 53 of the outside.
    pub fn start(machine: &Machine) -> Self {
        let (udp, tcp) = machine.at(Place::Outside, || {
            let address = (OUTSIDE, 53);
            (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap())
        });
        let over = Arc::new(AtomicBool::new(false));
        let (over_udp, over_tcp) = (over.clone(), over.clone());
        udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        Self {
            over,
            threads: vec![
                std::thread::spawn(move || serve_udp(&udp, &over_udp)),
                std::thread::spawn(move || serve_tcp(&tcp, &over_tcp)),
            ],
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, over: &AtomicBool) {
    let mut buffer = [0; 4096];
    while !over.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        if let Some(reply) = answer(&buffer[..length], 512) {
            let _ = socket.send_to(&reply, client);
        }
    }
}

fn serve_tcp(listener: &TcpListener, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            if stream.read_exact(&mut query).is_err() {
                break;
            }
            let Some(reply) = answer(&query, usize::from(u16::MAX)) else {
                break;
            };
            let size = u16::try_from(reply.len()).unwrap().to_be_bytes();
            if stream.write_all(&[&size[..], &reply].concat()).is_err() {
                break;
            }
        }
    }
}

/// The reply to a query; with the TC bit and without answers when it is longer than `limit`.
fn answer(query: &[u8], limit: usize) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?;
    let mut reply = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_query(question.clone());
    let name = question.name().to_ascii().to_ascii_lowercase();
    if !NAMES.contains(&name.as_str()) {
        reply.metadata.response_code = ResponseCode::NXDomain;
    } else if question.query_type() == RecordType::A {
        let many = (1..=MANY).map(|last| Ipv4Addr::new(198, 51, 100, last));
        let one = OUTSIDE.parse::<Ipv4Addr>();
        let addresses: Vec<_> = if name == "big.lab." {
            many.collect()
        } else {
            one.into_iter().collect()
        };
        for address in addresses {
            reply.add_answer(Record::from_rdata(
                question.name().clone(),
                60,
                RData::A(address.into()),
            ));
        }
    }
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    reply.metadata.truncation = true;
    reply.answers.clear();
    reply.to_vec().ok()
}
