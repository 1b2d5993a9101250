//! Removes conntrack entries that contradict the current rules.
//!
//! Address translation is decided once per flow. A TCP connection ends with its peer, but a UDP flow lives as long as
//! packets arrive: a client that keeps sending would reach the address of a removed container forever, or, if it began
//! before the port was published, never reach the new one. So after a change of published UDP ports, or of the pods
//! behind a UDP port of a service, such flows are deleted; the next packet creates a new one by the rules in force.
//!
//! Established flows are accepted before any policy is evaluated. Those that the policies now deny are deleted, so that
//! their next packet is evaluated as a new one (`docs/spec/policy.md` P-17).

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::state::{DesiredRules, PublishedPort};
use crate::model;
use crate::model::PolicyProtocol;

/// Timeout for listing and deleting flows.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Buffer size for a netlink datagram; the kernel's are at most half that size.
const DATAGRAM: usize = 1 << 16;

/// An IPv4 flow in conntrack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// `None` for a protocol that policies cannot name.
    pub protocol: Option<PolicyProtocol>,
    /// The client. Protocols without ports have 0, here and below.
    pub source: SocketAddrV4,
    /// Original destination.
    pub destination: SocketAddrV4,
    /// Source of the replies; differs from the destination if that is translated.
    answers_from: SocketAddrV4,
    /// The kernel's key for it.
    original: Vec<Tuple>,
}

/// Deletes the flows that contradict the state. Returns how many there were.
pub(super) async fn sweep(state: &DesiredRules) -> Result<usize, String> {
    let port_mappings = state.port_mappings();
    delete(|flow| flow.protocol == Some(PolicyProtocol::Udp) && is_stale(flow, state, &port_mappings)).await
}

/// Deletes the flows that are now denied. Returns how many there were. Skips flows with a translated destination,
/// because the rules saw a different one.
pub async fn sever(denied: impl Fn(&Flow) -> bool) -> Result<usize, String> {
    delete(|flow| flow.answers_from == flow.destination && denied(flow)).await
}

async fn delete(chosen: impl Fn(&Flow) -> bool) -> Result<usize, String> {
    tokio::time::timeout(TIMEOUT, delete_all(chosen))
        .await
        .unwrap_or_else(|_| Err(format!("the kernel was not done within {} s", TIMEOUT.as_secs())))
}

async fn delete_all(chosen: impl Fn(&Flow) -> bool) -> Result<usize, String> {
    let mut kernel = Kernel::new()?;
    let mut flows = Vec::new();
    let all = ConntrackMessage::Get(Vec::new());
    kernel
        .ask(all, NLM_F_REQUEST | NLM_F_DUMP, |message| {
            flows.extend(flow(message).filter(&chosen));
        })
        .await?;
    let mut deleted = 0;
    let mut result = Ok(());
    for flow in flows {
        let delete = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(flow.original)]);
        match kernel.ask(delete, NLM_F_REQUEST | NLM_F_ACK, drop).await {
            Ok(()) => deleted += 1,
            // It may have ended by itself meanwhile; continue with the others.
            Err(error) => result = Err(error),
        }
    }
    result.map(|()| deleted)
}

/// A netlink socket for one request at a time.
///
/// Anybody who can send packets to the host decides how many flows there are. So we read one datagram of the reply at a
/// time, keep only matching flows, and stop reading when the future is dropped. `netlink_proto` reads the whole reply
/// in one step, in a task of its own, and logs a line for each message that nobody waits for any more.
struct Kernel {
    socket: TokioSocket,
    sequence: u32,
    datagram: Vec<u8>,
}

impl Kernel {
    fn new() -> Result<Self, String> {
        Ok(Self {
            socket: TokioSocket::new(NETLINK_NETFILTER).map_err(|e| e.to_string())?,
            sequence: 0,
            datagram: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Sends a request and passes each message of the reply to `each`. Messages that cannot be parsed are skipped.
    async fn ask(
        &mut self,
        message: ConntrackMessage,
        flags: u16,
        mut each: impl FnMut(NetfilterMessage),
    ) -> Result<(), String> {
        self.send(message, flags).await.map_err(|e| e.to_string())?;
        loop {
            self.datagram.clear();
            let received = self.socket.recv_from(&mut self.datagram).await;
            if received.map_err(|e| e.to_string())?.port_number() != 0 {
                continue; // Not from the kernel.
            }
            let mut rest = self.datagram.as_slice();
            while !rest.is_empty() {
                let length = NetlinkBuffer::new_checked(rest).map_err(|e| e.to_string())?.length() as usize;
                let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&rest[..length]);
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
                let Ok(answer) = answer else { continue };
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io().to_string()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(()),
                    _ => {}
                }
            }
        }
    }

    async fn send(&mut self, message: ConntrackMessage, flags: u16) -> std::io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let message = NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0), message);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut request = vec![0; message.buffer_len()];
        message.serialize(&mut request);
        self.socket.send_to(&request, &SocketAddr::new(0, 0)).await.map(drop)
    }
}

/// `port_mappings` are those of the state.
fn is_stale(flow: &Flow, state: &DesiredRules, port_mappings: &[PublishedPort]) -> bool {
    let to = flow.destination;
    let answers = flow.answers_from;
    let mut published = port_mappings
        .iter()
        .filter(|p| p.protocol == model::Protocol::Udp && p.host_port == to.port() && p.is_at(*to.ip()));
    if answers == to {
        // Not translated, but a new flow would be.
        let host = [state.uplink.as_ref().map(|u| u.address)];
        let mut local = host
            .into_iter()
            .flatten()
            .chain(state.bridges.iter().map(|b| b.gateway));
        published.next().is_some() && (to.ip().is_loopback() || local.any(|a| a == *to.ip()))
    } else {
        // Translated to a container that is not, or no longer, behind this port.
        state.settings.runtime_subnet.contains(answers.ip())
            && answers != state.settings.dns
            && !published.any(|p| (p.address, p.container_port) == (*answers.ip(), answers.port()))
    }
}

fn flow(message: NetfilterMessage) -> Option<Flow> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else {
        return None;
    };
    let mut original = None;
    let mut reply = None;
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = Some(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = Some(tuple),
            _ => {}
        }
    }
    let original = original?;
    let (source, destination, protocol) = ends(&original)?;
    let (answers_from, ..) = ends(&reply?)?;
    Some(Flow {
        protocol,
        source,
        destination,
        answers_from,
        original,
    })
}

/// Source, destination and protocol of one direction; `None` if it is not IPv4. Protocols without ports have 0.
fn ends(tuple: &[Tuple]) -> Option<(SocketAddrV4, SocketAddrV4, Option<PolicyProtocol>)> {
    let unset = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let (mut source, mut destination, mut known) = (unset, unset, None);
    for part in tuple {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(IpAddr::V4(ip)) => source.set_ip(*ip),
                        IPTuple::DestinationAddress(IpAddr::V4(ip)) => destination.set_ip(*ip),
                        _ => return None,
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(protocol) => known = known_protocol(*protocol),
                        ProtoTuple::SourcePort(port) => source.set_port(*port),
                        ProtoTuple::DestinationPort(port) => destination.set_port(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some((source, destination, known))
}

fn known_protocol(protocol: Protocol) -> Option<PolicyProtocol> {
    match protocol {
        Protocol::Icmp => Some(PolicyProtocol::Icmp),
        Protocol::Tcp => Some(PolicyProtocol::Tcp),
        Protocol::Udp => Some(PolicyProtocol::Udp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::bridges::Uplink;
    use crate::net::firewall::{Bridge, PublishedPort};

    fn state() -> DesiredRules {
        DesiredRules {
            uplink: Some(Uplink {
                interface: "eth0".into(),
                address: Ipv4Addr::new(192, 0, 2, 2),
            }),
            bridges: vec![Bridge {
                name: "raind0".into(),
                subnet: "10.166.0.0/24".parse().unwrap(),
                gateway: Ipv4Addr::new(10, 166, 0, 254),
            }],
            ports: vec![PublishedPort {
                bridge: "raind0".into(),
                address: Ipv4Addr::new(10, 166, 0, 7),
                host_address: Ipv4Addr::UNSPECIFIED,
                host_port: 5353,
                container_port: 53,
                protocol: model::Protocol::Udp,
            }],
            ..DesiredRules::default()
        }
    }

    fn is_stale_flow(destination: &str, answers_from: &str) -> bool {
        let flow = Flow {
            protocol: Some(PolicyProtocol::Udp),
            source: "10.166.0.8:5000".parse().unwrap(),
            destination: destination.parse().unwrap(),
            answers_from: answers_from.parse().unwrap(),
            original: Vec::new(),
        };
        is_stale(&flow, &state(), &state().port_mappings())
    }

    #[test]
    fn flows_to_what_is_no_longer_published_are_stale() {
        assert!(is_stale_flow("192.0.2.2:5353", "10.166.0.9:53"), "another container");
        assert!(is_stale_flow("192.0.2.2:5353", "10.166.0.7:54"), "another port of it");
        assert!(
            is_stale_flow("192.0.2.2:5354", "10.166.0.7:53"),
            "another port of the host"
        );
        assert!(!is_stale_flow("192.0.2.2:5353", "10.166.0.7:53"), "as published");
    }

    #[test]
    fn flows_that_began_before_the_port_was_published_are_stale() {
        assert!(is_stale_flow("192.0.2.2:5353", "192.0.2.2:5353"));
        assert!(is_stale_flow("127.0.0.1:5353", "127.0.0.1:5353"));
        assert!(is_stale_flow("10.166.0.254:5353", "10.166.0.254:5353"));
        assert!(
            !is_stale_flow("192.0.2.2:5354", "192.0.2.2:5354"),
            "a port that is not published"
        );
    }

    #[test]
    fn other_flows_are_left_alone() {
        assert!(!is_stale_flow("9.9.9.9:53", "10.166.254.254:1053"), "redirected DNS");
        assert!(
            !is_stale_flow("198.51.100.1:5353", "198.51.100.1:5353"),
            "to another host"
        );
        assert!(
            !is_stale_flow("192.0.2.2:5354", "172.17.0.2:53"),
            "published by another program"
        );
        assert!(
            !is_stale_flow("10.166.254.254:1053", "10.166.254.254:1053"),
            "DNS from the host"
        );
    }
}
