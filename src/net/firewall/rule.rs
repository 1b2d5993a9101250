//! Rules about forwarded packets as data: the same values are rendered for the kernel and asked about single packets.

use std::fmt;

use ipnet::Ipv4Net;

use crate::model::PolicyProtocol;

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
    /// Where it comes in; a trailing `+` stands for any rest.
    pub input: Option<String>,
    pub not_input: Option<String>,
    pub output: Option<String>,
    pub protocol: Option<PolicyProtocol>,
    pub state: Option<State>,
    pub bridged: bool,
    /// Port of the bridge that it comes in through.
    pub bridge_in: Option<String>,
    /// Port of the bridge that it goes out through.
    pub bridge_out: Option<String>,
    pub dport: Option<u16>,
    /// TCP: the first packet of a connection.
    pub syn: bool,
}

/// State of a packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    New,
    Known,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Accept,
    Drop,
    Return,
    Jump(&'static str),
    /// Goes on after telling a group of listeners.
    Log {
        prefix: String,
        group: u8,
    },
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub name: &'static str,
    pub rules: Vec<Rule>,
}

impl Chain {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            rules: Vec::new(),
        }
    }

    pub fn add(&mut self, matches: Match, target: Target) {
        self.rules.push(Rule {
            matches,
            target,
            policy: None,
        });
    }

    pub fn add_if(&mut self, condition: bool, matches: Match, target: Target) {
        if condition {
            self.add(matches, target);
        }
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
}

/// The order of iptables-save: addresses, interfaces, protocol, then matches.
impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(net) = self.source {
            write!(f, "-s {net} ")?;
        }
        if let Some(net) = self.not_source {
            write!(f, "! -s {net} ")?;
        }
        // A block that holds every address is no condition, and is not printed as one.
        if let Some(net) = self.destination.filter(|net| net.prefix_len() > 0) {
            write!(f, "-d {net} ")?;
        }
        if let Some(name) = &self.input {
            write!(f, "-i {name} ")?;
        }
        if let Some(name) = &self.not_input {
            write!(f, "! -i {name} ")?;
        }
        if let Some(name) = &self.output {
            write!(f, "-o {name} ")?;
        }
        if let Some(protocol) = self.protocol {
            write!(f, "-p {protocol} ")?;
        }
        match self.state {
            Some(State::New) => f.write_str("-m conntrack --ctstate NEW ")?,
            Some(State::Known) => f.write_str("-m conntrack --ctstate RELATED,ESTABLISHED ")?,
            None => {}
        }
        if self.bridged || self.bridge_in.is_some() || self.bridge_out.is_some() {
            f.write_str("-m physdev ")?;
        }
        if let Some(port) = &self.bridge_in {
            write!(f, "--physdev-in {port} ")?;
        }
        if let Some(port) = &self.bridge_out {
            write!(f, "--physdev-out {port} ")?;
        }
        if self.bridged {
            f.write_str("--physdev-is-bridged ")?;
        }
        if let (Some(protocol), Some(port)) = (self.protocol, self.dport) {
            write!(f, "-m {protocol} --dport {port} ")?;
        }
        if self.syn {
            f.write_str("-m tcp --tcp-flags FIN,SYN,RST,ACK SYN ")?;
        }
        Ok(())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("-j ACCEPT"),
            Self::Drop => f.write_str("-j DROP"),
            Self::Return => f.write_str("-j RETURN"),
            Self::Jump(chain) => write!(f, "-j {chain}"),
            Self::Log { prefix, group } => {
                write!(f, "-j NFLOG --nflog-prefix \"{prefix}\" --nflog-group {group}")
            }
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.matches, self.target)
    }
}
