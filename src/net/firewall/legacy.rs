//! Rules that the original daemon put directly into built-in chains (`docs/spec/network.md` 5.4, 8.2, 11.3). It never
//! removed them on exit; if they stayed, they would open ports to whichever container gets the address next.

use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

use super::tables::{Opt, options};
use crate::net::DEFAULT_SUBNET;

/// What the value of an option must be.
enum Value {
    /// Any single value that is not negated.
    Any,
    Is(&'static str),
    /// The original's fixed runtime subnet.
    Runtime,
    /// One address in that subnet.
    Container,
    /// Address and port in that subnet.
    Endpoint,
}
use Value::*;

type Shape = (&'static str, &'static str, &'static [(&'static str, Value)]);

/// A rule is a leftover if it has exactly the options of a shape.
const SHAPES: &[Shape] = &[
    (
        "filter",
        "INPUT",
        &[
            ("-s", Runtime),
            ("-d", Any),
            ("-p", Is("tcp")),
            ("--dport", Is("7756")),
            ("-j", Is("ACCEPT")),
        ],
    ),
    (
        "filter",
        "INPUT",
        &[
            ("-s", Runtime),
            ("-d", Any),
            ("-p", Is("tcp")),
            ("--dport", Is("7755")),
            ("-j", Is("DROP")),
        ],
    ),
    (
        "nat",
        "POSTROUTING",
        &[("-s", Runtime), ("-o", Any), ("-j", Is("MASQUERADE"))],
    ),
    // DNS redirect and published port.
    (
        "nat",
        "PREROUTING",
        &[
            ("-i", Any),
            ("-p", Any),
            ("--dport", Any),
            ("-j", Is("DNAT")),
            ("--to-destination", Endpoint),
        ],
    ),
    (
        "nat",
        "PREROUTING",
        &[
            ("-i", Any),
            ("-p", Any),
            ("-m", Is("addrtype")),
            ("--dst-type", Is("LOCAL")),
            ("--dport", Any),
            ("-j", Is("DNAT")),
            ("--to-destination", Endpoint),
        ],
    ),
    (
        "nat",
        "OUTPUT",
        &[
            ("-p", Any),
            ("-m", Is("addrtype")),
            ("--dst-type", Is("LOCAL")),
            ("--dport", Any),
            ("-j", Is("DNAT")),
            ("--to-destination", Endpoint),
        ],
    ),
    // Published ports and services.
    (
        "filter",
        "FORWARD",
        &[
            ("-d", Container),
            ("-i", Any),
            ("-o", Any),
            ("-p", Any),
            ("--dport", Any),
            ("-j", Is("ACCEPT")),
        ],
    ),
    (
        "filter",
        "FORWARD",
        &[
            ("-s", Container),
            ("-i", Any),
            ("-o", Any),
            ("-p", Any),
            ("--sport", Any),
            ("-j", Is("ACCEPT")),
        ],
    ),
    (
        "filter",
        "FORWARD",
        &[
            ("-d", Container),
            ("-i", Any),
            ("-o", Any),
            ("-p", Any),
            ("-m", Is("conntrack")),
            ("--ctstate", Is("DNAT")),
            ("--dport", Any),
            ("-j", Is("ACCEPT")),
        ],
    ),
];

/// Whether the original daemon left this rule.
pub(super) fn is_leftover(table: &str, chain: &str, rule: &str) -> bool {
    let mut shapes = SHAPES.iter().filter(|(t, c, _)| (*t, *c) == (table, chain)).peekable();
    if shapes.peek().is_none() {
        return false;
    }
    let options = options(rule);
    shapes.any(|(_, _, shape)| {
        let has = |(name, value): &(&str, Value)| options.iter().any(|o| o.name == *name && value.matches(o));
        options.len() == shape.len() && shape.iter().all(has)
    })
}

impl Value {
    fn matches(&self, option: &Opt<'_>) -> bool {
        let [text] = option.values[..] else { return false };
        let inside = |address: Ipv4Addr| DEFAULT_SUBNET.contains(&address);
        !option.negated
            && match self {
                Any => true,
                Is(word) => text == *word,
                Runtime => text.parse() == Ok(DEFAULT_SUBNET),
                Container => text
                    .parse()
                    .is_ok_and(|net: Ipv4Net| net.prefix_len() == 32 && inside(net.addr())),
                Endpoint => text.parse().is_ok_and(|end: SocketAddrV4| inside(*end.ip())),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::firewall::plan::PREFIX;
    use crate::net::firewall::tables::{Tables, target};

    /// All rules of the original in built-in chains in these recordings, except jumps to its own chains.
    #[test]
    fn every_rule_of_the_original_is_recognised() {
        for text in [
            include_str!("../../../tests/fixtures/iptables-port-forward.txt"),
            include_str!("../../../tests/fixtures/iptables-second-network.txt"),
        ] {
            let saved = Tables::parse(text);
            let mut seen = 0;
            for table in saved.names() {
                for (chain, rules) in saved.chains(table).filter(|(chain, _)| !chain.starts_with(PREFIX)) {
                    for rule in rules.iter().filter(|r| !target(r).unwrap().starts_with(PREFIX)) {
                        assert!(is_leftover(table, chain, rule), "{table} {chain} {rule}");
                        seen += 1;
                    }
                }
            }
            assert!(seen >= 15, "{seen}");
        }
    }

    #[test]
    fn rules_of_others_are_not() {
        for (table, chain, rule) in [
            ("nat", "POSTROUTING", "-s 10.0.0.0/8 -o eth0 -j MASQUERADE"),
            ("nat", "POSTROUTING", "-s 10.166.0.0/16 ! -o docker0 -j MASQUERADE"),
            (
                "nat",
                "PREROUTING",
                "-i eth0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80",
            ),
            (
                "nat",
                "DOCKER",
                "-i eth0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.166.0.2:80",
            ),
            ("filter", "FORWARD", "-d 10.166.0.2/32 -j ACCEPT"),
            (
                "filter",
                "FORWARD",
                "-d 10.166.0.0/24 -i eth0 -o raind0 -p tcp -m tcp --dport 80 -j ACCEPT",
            ),
            (
                "filter",
                "FORWARD",
                "-d 10.166.0.2/32 -i eth0 -o raind0 -p tcp -m tcp --dport 80 -j DROP",
            ),
            (
                "filter",
                "INPUT",
                "-s 10.166.0.0/16 -p tcp -m tcp --dport 7756 -j ACCEPT",
            ),
            (
                "filter",
                "INPUT",
                r#"-s 10.166.0.0/16 -d 192.0.2.2/32 -p tcp -m comment --comment "mine" --dport 7755 -j DROP"#,
            ),
        ] {
            assert!(!is_leftover(table, chain, rule), "{table} {chain} {rule}");
        }
    }
}
