//! The forwarder on loopback, with servers that behave well and badly.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::task::JoinHandle;

use super::*;

/// A server that answers with `records` addresses; over UDP it truncates the answer if `cuts`. Counts its queries.
#[derive(Clone)]
struct Server {
    address: SocketAddr,
    asked: Arc<[AtomicUsize; 2]>,
}

impl Server {
    async fn start(records: u8, cuts: bool) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let udp = UdpSocket::bind(tcp.local_addr().unwrap()).await.unwrap();
        let server = Self {
            address: tcp.local_addr().unwrap(),
            asked: Arc::default(),
        };
        let asked = server.asked.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                tokio::select! {
                    received = udp.recv_from(&mut buffer) => {
                        let (length, client) = received.unwrap();
                        asked[0].fetch_add(1, Ordering::SeqCst);
                        udp.send_to(&answer(&buffer[..length], records, cuts), client).await.unwrap();
                    }
                    accepted = tcp.accept() => {
                        let mut stream = accepted.unwrap().0;
                        asked[1].fetch_add(1, Ordering::SeqCst);
                        let query = read_message(&mut stream).await.unwrap().unwrap();
                        write_message(&mut stream, &answer(&query, records, false)).await.unwrap();
                    }
                }
            }
        });
        server
    }

    /// Number of queries over UDP and over TCP.
    fn asked(&self) -> [usize; 2] {
        [0, 1].map(|n| self.asked[n].load(Ordering::SeqCst))
    }
}

fn answer(query: &[u8], records: u8, cuts: bool) -> Vec<u8> {
    let query = Message::from_vec(query).unwrap();
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    message.metadata.truncation = cuts;
    message.add_queries(query.queries.clone());
    for n in 0..if cuts { 0 } else { records } {
        let address = RData::A(A(Ipv4Addr::new(192, 0, 2, n)));
        message.add_answer(Record::from_rdata(query.queries[0].name.clone(), 60, address));
    }
    message.to_vec().unwrap()
}

fn query(id: u16) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii("example.test.").unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

async fn forwarder(upstreams: &[SocketAddr], allowed: &str) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let forwarder = Forwarder::bind(
        "127.0.0.1:0".parse().unwrap(),
        upstreams.to_vec(),
        allowed.parse().unwrap(),
    )
    .await
    .unwrap();
    let cancel = CancellationToken::new();
    let address = forwarder.address().unwrap();
    (address, cancel.clone(), tokio::spawn(forwarder.run(cancel)))
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(query).await.unwrap();
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn ask_tcp(stream: &mut TcpStream, query: &[u8]) -> Message {
    write_message(stream, query).await.unwrap();
    Message::from_vec(&read_message(stream).await.unwrap().unwrap()).unwrap()
}

/// Nobody listens there, so the system refuses at once.
const CLOSED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

#[tokio::test]
async fn udp_and_tcp_clients_get_the_answer() {
    let server = Server::start(2, false).await;
    let (address, ..) = forwarder(&[server.address], "127.0.0.0/8").await;
    let reply = ask_udp(address, &query(7)).await;
    assert_eq!((reply.metadata.id, reply.answers.len()), (7, 2));
    let mut stream = TcpStream::connect(address).await.unwrap();
    for id in [8, 9] {
        let reply = ask_tcp(&mut stream, &query(id)).await;
        assert_eq!((reply.metadata.id, reply.answers.len()), (id, 2));
    }
    assert_eq!(server.asked(), [3, 0], "by UDP, whatever the client uses");
}

#[tokio::test]
async fn a_cut_answer_is_asked_for_by_tcp() {
    let server = Server::start(120, true).await;
    let (address, ..) = forwarder(&[server.address], "127.0.0.0/8").await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert_eq!(ask_tcp(&mut stream, &query(7)).await.answers.len(), 120);
    assert_eq!(server.asked(), [1, 1]);
    let reply = ask_udp(address, &query(8)).await;
    assert!(
        reply.metadata.truncation && reply.answers.is_empty(),
        "too long for this client over UDP"
    );
}

#[tokio::test]
async fn the_next_server_answers_for_a_dead_one_and_is_preferred_then() {
    let server = Server::start(1, false).await;
    let dead = Server::start(1, false).await;
    let (address, ..) = forwarder(&[CLOSED, server.address, dead.address], "127.0.0.0/8").await;
    for id in 0..5 {
        assert_eq!(ask_udp(address, &query(id)).await.answers.len(), 1);
    }
    assert_eq!((server.asked(), dead.asked()), ([5, 0], [0, 0]));
}

#[tokio::test]
async fn no_server_is_a_server_failure() {
    let (address, ..) = forwarder(&[CLOSED], "127.0.0.0/8").await;
    let reply = ask_udp(address, &query(7)).await;
    assert_eq!(
        (reply.metadata.id, reply.metadata.response_code),
        (7, ResponseCode::ServFail)
    );
}

#[tokio::test]
async fn a_forged_answer_is_passed_over() {
    let liar = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (address, ..) = forwarder(&[liar.local_addr().unwrap()], "127.0.0.0/8").await;
    let lies = async {
        let mut buffer = [0; 512];
        let (length, client) = liar.recv_from(&mut buffer).await.unwrap();
        let truth = answer(&buffer[..length], 1, false);
        let mut wrong_id = truth.clone();
        wrong_id[0] ^= 1;
        let mut wrong_question = Message::from_vec(&truth).unwrap();
        wrong_question.queries[0].name = Name::from_ascii("example.org.").unwrap();
        for message in [wrong_id, wrong_question.to_vec().unwrap(), b"junk".to_vec(), truth] {
            liar.send_to(&message, client).await.unwrap();
        }
    };
    let asked = query(7);
    let (reply, ()) = tokio::join!(ask_udp(address, &asked), lies);
    assert_eq!(reply.queries[0].name.to_string(), "example.test.");
    assert_eq!(reply.answers.len(), 1);
}

#[tokio::test]
async fn strangers_are_not_answered() {
    let server = Server::start(1, false).await;
    let (address, ..) = forwarder(&[server.address], "127.0.0.2/32").await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert!(
        read_message(&mut stream).await.ok().flatten().is_none(),
        "the connection is closed"
    );
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    stranger.send_to(&query(7), address).await.unwrap();
    let friend = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    friend.send_to(&query(8), address).await.unwrap();
    friend.recv_from(&mut [0; 512]).await.unwrap();
    assert_eq!(server.asked(), [1, 0], "the stranger came first and was passed over");
}

#[tokio::test]
async fn what_is_no_query_is_refused_by_udp() {
    let (address, ..) = forwarder(&[CLOSED], "127.0.0.0/8").await;
    let empty = Message::new(7, MessageType::Query, OpCode::Query).to_vec().unwrap();
    assert_eq!(
        ask_udp(address, &empty).await.metadata.response_code,
        ResponseCode::FormErr
    );
}

#[tokio::test]
async fn it_ends_when_cancelled_though_a_query_is_under_way() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (address, cancel, task) = forwarder(&[silent.local_addr().unwrap()], "127.0.0.0/8").await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&query(7), address).await.unwrap();
    silent.recv_from(&mut [0; 512]).await.unwrap();
    cancel.cancel();
    tokio::time::timeout(Duration::from_secs(1), task)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn what_cannot_begin_says_why() {
    let held = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = held.local_addr().unwrap();
    let allowed: Ipv4Net = "10.0.0.0/8".parse().unwrap();
    let error = Forwarder::bind(taken, vec![CLOSED], allowed)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains(&taken.to_string()) && error.contains("tcp"), "{error}");
    let error = Forwarder::bind(taken, Vec::new(), allowed).await.unwrap_err();
    assert!(matches!(error, DnsError::NoUpstream));
}
