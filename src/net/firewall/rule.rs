//! Rules as data: what is rendered for the kernel is the same that is asked about single packets. No word of any packet
//! filter tool is in here; [`render`](super::render) writes them for iptables.

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

use crate::model::PolicyProtocol;

/// Listeners that are told of traffic between containers.
pub(super) const GROUP_EW: u8 = 10;

/// A table of the packet filter with all chains of ours in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub name: &'static str,
    pub chains: Vec<Chain>,
}

/// Name of a chain.
pub(super) type ChainName = Cow<'static, str>;

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub name: ChainName,
    pub rules: Vec<Rule>,
}

/// A rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub matches: Match,
    pub target: Target,
    /// Id of the policy of a user that it comes from.
    pub policy: Option<String>,
}

/// What a packet must have; every `None` and `false` matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Match {
    pub source: Option<Ipv4Net>,
    pub not_source: Option<Ipv4Net>,
    pub destination: Option<Ipv4Net>,
    pub not_destination: Option<Ipv4Net>,
    /// Where it comes in; a trailing `+` stands for any rest.
    pub input: Option<String>,
    pub not_input: Option<String>,
    pub output: Option<String>,
    pub protocol: Option<PolicyProtocol>,
    /// From an address of the host.
    pub from_host: bool,
    /// To an address of the host.
    pub to_host: bool,
    /// Its connection was given another destination.
    pub is_translated: bool,
    pub state: Option<State>,
    pub bridged: bool,
    /// Port of the bridge that it comes in through.
    pub bridge_in: Option<String>,
    /// Port of the bridge that it goes out through.
    pub bridge_out: Option<String>,
    pub sport: Option<u16>,
    pub dport: Option<u16>,
    /// TCP: the first packet of a connection.
    pub syn: bool,
    /// One of so many connections, by chance; not 0.
    pub one_of: Option<u32>,
    pub client: Option<Client>,
}

/// State of a packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    New,
    Known,
    /// Anything but known.
    NotKnown,
}

/// Lists of the clients that were here lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Client {
    /// It is on the list and has not been away for so long; its time begins anew.
    Returns { list: String, seconds: u32 },
    /// Any: it is put on the list.
    IsNoted { list: String },
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Accept,
    Drop,
    Return,
    Jump(ChainName),
    /// Goes on after telling a group of listeners.
    Log {
        prefix: String,
        group: u8,
    },
    /// It and its connection go there instead.
    SendTo(SocketAddrV4),
    /// It and its connection come from the host's address instead.
    Masquerade,
}

impl Chain {
    pub fn new(name: impl Into<ChainName>) -> Self {
        Self {
            name: name.into(),
            rules: Vec::new(),
        }
    }

    pub fn add(&mut self, matches: Match, target: Target) {
        self.rules.push(Rule::new(matches, target));
    }

    pub fn add_if(&mut self, condition: bool, matches: Match, target: Target) {
        if condition {
            self.add(matches, target);
        }
    }
}

impl Rule {
    pub fn new(matches: Match, target: Target) -> Self {
        Self {
            matches,
            target,
            policy: None,
        }
    }
}

impl Target {
    pub fn log(prefix: impl Into<String>, group: u8) -> Self {
        Self::Log {
            prefix: prefix.into(),
            group,
        }
    }

    pub fn jump(chain: &'static str) -> Self {
        Self::Jump(chain.into())
    }

    pub fn send_to(address: Ipv4Addr, port: u16) -> Self {
        Self::SendTo(SocketAddrV4::new(address, port))
    }
}

impl Match {
    /// The same for new connections only.
    pub fn new_only(&self) -> Self {
        Self {
            state: Some(State::New),
            ..self.clone()
        }
    }

    /// What goes out there.
    pub fn to(bridge: &str) -> Self {
        Self {
            output: Some(bridge.to_owned()),
            ..Self::default()
        }
    }

    /// What comes in there.
    pub fn from(bridge: &str) -> Self {
        Self {
            input: Some(bridge.to_owned()),
            ..Self::default()
        }
    }

    /// What comes in and goes out there.
    pub fn between(input: &str, output: &str) -> Self {
        Self {
            output: Some(output.to_owned()),
            ..Self::from(input)
        }
    }

    /// What goes to a port of that protocol.
    pub fn to_port(protocol: impl Into<PolicyProtocol>, port: u16) -> Self {
        Self {
            protocol: Some(protocol.into()),
            dport: Some(port),
            ..Self::default()
        }
    }
}
