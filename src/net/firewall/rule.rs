//! Rules as data: the same rules are rendered for the kernel and evaluated for single packets. No syntax of any packet
//! filter tool is in here; [`render`](super::render) writes them for iptables.

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

use crate::model::PolicyProtocol;

/// Log group for traffic between containers.
pub(super) const GROUP_EW: u8 = 10;

/// A table of the packet filter with all our chains in it.
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
    /// Id of the user policy that it comes from.
    pub policy: Option<String>,
}

/// Conditions on a packet; a `None` or `false` matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Match {
    pub source: Option<Ipv4Net>,
    pub not_source: Option<Ipv4Net>,
    pub destination: Option<Ipv4Net>,
    pub not_destination: Option<Ipv4Net>,
    /// Input interface; a trailing `+` is a wildcard.
    pub input: Option<String>,
    pub not_input: Option<String>,
    pub output: Option<String>,
    pub protocol: Option<PolicyProtocol>,
    /// The source is a host address.
    pub from_host: bool,
    /// The destination is a host address.
    pub to_host: bool,
    /// The destination of its connection was translated.
    pub is_translated: bool,
    pub state: Option<State>,
    pub bridged: bool,
    /// Input bridge port.
    pub bridge_in: Option<String>,
    /// Output bridge port.
    pub bridge_out: Option<String>,
    pub sport: Option<u16>,
    pub dport: Option<u16>,
    /// TCP: the first packet of a connection.
    pub syn: bool,
    /// One in this many connections, at random; not 0.
    pub one_of: Option<u32>,
    pub client: Option<Client>,
}

/// State of a packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    New,
    Known,
    /// Any state except known.
    NotKnown,
}

/// Lists of recent clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Client {
    /// The client is on the list and was last seen within this time; refreshes its entry.
    Returns { list: String, seconds: u32 },
    /// Matches any client and puts it on the list.
    IsNoted { list: String },
}

/// The target of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Accept,
    Drop,
    Return,
    Jump(ChainName),
    /// Logs to a group and continues.
    Log {
        prefix: String,
        group: u8,
    },
    /// Translates the destination of the connection.
    SendTo(SocketAddrV4),
    /// Translates the source of the connection to the host's address.
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

    /// Packets that leave there.
    pub fn to(bridge: &str) -> Self {
        Self {
            output: Some(bridge.to_owned()),
            ..Self::default()
        }
    }

    /// Packets that enter there.
    pub fn from(bridge: &str) -> Self {
        Self {
            input: Some(bridge.to_owned()),
            ..Self::default()
        }
    }

    /// Packets that enter and leave there.
    pub fn between(input: &str, output: &str) -> Self {
        Self {
            output: Some(output.to_owned()),
            ..Self::from(input)
        }
    }

    /// Packets to a port of that protocol.
    pub fn to_port(protocol: impl Into<PolicyProtocol>, port: u16) -> Self {
        Self {
            protocol: Some(protocol.into()),
            dport: Some(port),
            ..Self::default()
        }
    }
}
