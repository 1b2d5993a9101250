//! Rules as text for iptables, in the form in which iptables-save prints them, so that the output can be compared. The
//! only module that knows iptables syntax. Pure.

use std::fmt;

use super::rule::{Chain, Client, Match, Rule, State, Table, Target};
use super::rules::rules;
use super::state::DesiredRules;

/// `iptables-restore --noflush` input for all our chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// For iptables.
    pub v4: String,
    /// For ip6tables.
    pub v6: String,
}

/// The rules of a state.
pub fn render(state: &DesiredRules) -> Ruleset {
    let rules = rules(state);
    let text = |tables: &[Table]| tables.iter().map(Table::to_string).collect();
    Ruleset {
        v4: text(&rules.v4),
        v6: text(&rules.v6),
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "*{}", self.name)?;
        for chain in &self.chains {
            writeln!(f, ":{} - [0:0]", chain.name)?;
        }
        for chain in &self.chains {
            write!(f, "{chain}")?;
        }
        writeln!(f, "COMMIT")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.rules {
            writeln!(f, "-A {} {rule}", self.name)?;
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.matches, self.target)
    }
}

/// The order of iptables-save: addresses, interfaces, protocol, then matches.
impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ends(f)?;
        self.connection(f)?;
        self.bridge_ports(f)?;
        self.ports(f)?;
        self.chance(f)
    }
}

impl Match {
    fn ends(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A block that holds every address is no condition, and iptables-save does not print it.
        let destination = self.destination.filter(|net| net.prefix_len() > 0);
        given(f, "-s", self.source)?;
        given(f, "! -s", self.not_source)?;
        given(f, "-d", destination)?;
        given(f, "! -d", self.not_destination)?;
        given(f, "-i", self.input.as_deref())?;
        given(f, "! -i", self.not_input.as_deref())?;
        given(f, "-o", self.output.as_deref())?;
        given(f, "-p", self.protocol)
    }

    fn connection(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from_host {
            f.write_str("-m addrtype --src-type LOCAL ")?;
        }
        if self.to_host {
            f.write_str("-m addrtype --dst-type LOCAL ")?;
        }
        // The states of one match are alternatives, so requiring both takes two matches.
        if self.is_translated {
            f.write_str("-m conntrack --ctstate DNAT ")?;
        }
        f.write_str(match self.state {
            Some(State::New) => "-m conntrack --ctstate NEW ",
            Some(State::Known) => "-m conntrack --ctstate RELATED,ESTABLISHED ",
            Some(State::NotKnown) => "-m conntrack ! --ctstate RELATED,ESTABLISHED ",
            None => "",
        })
    }

    fn bridge_ports(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bridged || self.bridge_in.is_some() || self.bridge_out.is_some() {
            f.write_str("-m physdev ")?;
        }
        given(f, "--physdev-in", self.bridge_in.as_deref())?;
        given(f, "--physdev-out", self.bridge_out.as_deref())?;
        if self.bridged {
            f.write_str("--physdev-is-bridged ")?;
        }
        Ok(())
    }

    fn ports(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (option, port) in [("--sport", self.sport), ("--dport", self.dport)] {
            if let (Some(protocol), Some(port)) = (self.protocol, port) {
                write!(f, "-m {protocol} {option} {port} ")?;
            }
        }
        if self.syn {
            f.write_str("-m tcp --tcp-flags FIN,SYN,RST,ACK SYN ")?;
        }
        Ok(())
    }

    fn chance(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(left) = self.one_of {
            write!(f, "-m statistic --mode random --probability {:.11} ", part(left))?;
        }
        let (what, list) = match &self.client {
            Some(Client::Returns { list, seconds }) => (format!("--update --seconds {seconds} --reap"), list),
            Some(Client::IsNoted { list }) => ("--set".to_owned(), list),
            None => return Ok(()),
        };
        write!(f, "-m recent {what} --name {list} --mask 255.255.255.255 --rsource ")
    }
}

fn given(f: &mut fmt::Formatter<'_>, option: &str, value: Option<impl fmt::Display>) -> fmt::Result {
    match value {
        Some(value) => write!(f, "{option} {value} "),
        None => Ok(()),
    }
}

/// The probability of one in `left`, rounded as the kernel does it, so that it reads back unchanged.
fn part(left: u32) -> f64 {
    const WHOLE: u32 = 1 << 31;
    f64::from((WHOLE + left / 2) / left.max(1)) / f64::from(WHOLE)
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
            Self::SendTo(address) => write!(f, "-j DNAT --to-destination {address}"),
            Self::Masquerade => f.write_str("-j MASQUERADE"),
        }
    }
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
