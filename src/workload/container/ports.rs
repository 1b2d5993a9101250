//! Published ports: from the client's notation to port forwards. Pure.
//!
//! ```text
//! [[<address>:][<host>]:]<container>[/<protocol>]        numbers, or ranges `<first>-<last>` of one length
//! ```
//! This is the syntax of docker, podman and compose; the protocol may also follow a colon (`docs/spec/api.md` 4.6).
//! Without a host port, a free one is assigned.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::ContainerError;
use crate::model::{Forward, Protocol};

/// Maximum number of published ports of one container. Each needs a descriptor and some rules.
const MAX_PORTS: usize = 2_000;

/// Parses all port strings; refuses duplicate host ports.
pub fn parse_ports(texts: &[String]) -> Result<Vec<Forward>, ContainerError> {
    let mut forwards: Vec<Forward> = Vec::with_capacity(texts.len());
    let mut published = Published::default();
    for text in texts {
        for forward in parse_port(text)? {
            published.add(&forward)?;
            forwards.push(forward);
        }
        if forwards.len() > MAX_PORTS {
            return Err(invalid(format!(
                "{text:?} makes more than {MAX_PORTS} ports; publish fewer"
            )));
        }
    }
    Ok(forwards)
}

/// Ports of the host, each at most once per address.
#[derive(Debug, Default)]
pub struct Published(HashMap<(u16, Protocol), Vec<Option<Ipv4Addr>>>);

impl Published {
    /// Refuses a port that is already present.
    pub fn add(&mut self, forward: &Forward) -> Result<(), ContainerError> {
        let (port, protocol) = (forward.host_port, forward.protocol);
        let known = self.0.entry((port, protocol)).or_default();
        if port != 0 && known.iter().any(|address| overlap(*address, forward.host_address)) {
            return Err(invalid(format!("host port {port}/{protocol} is published twice")));
        }
        known.push(forward.host_address);
        Ok(())
    }
}

/// Whether the published ports are the requested ones; a request may leave the host port open.
pub fn are_published(wanted: &[Forward], published: &[Forward]) -> bool {
    wanted.len() == published.len() && wanted.iter().zip(published).all(|(wanted, there)| wanted.allows(there))
}

/// The exposed ports of an image that `published` does not have, each for a free port of the host. What is no port is
/// ignored, as by the image's builder.
pub fn exposed_ports(exposed: &BTreeSet<String>, published: &[Forward]) -> Result<Vec<Forward>, ContainerError> {
    let mut forwards: Vec<Forward> = Vec::new();
    for text in exposed.iter().filter(|text| !text.contains(':')) {
        let Ok(ports) = parse_port(text) else {
            tracing::warn!(port = %text, "the image exposes a port that cannot be published");
            continue;
        };
        for forward in ports {
            let is_same =
                |other: &Forward| (other.container_port, other.protocol) == (forward.container_port, forward.protocol);
            if !published.iter().chain(&forwards).any(is_same) {
                forwards.push(forward);
            }
        }
        if forwards.len() + published.len() > MAX_PORTS {
            let message = format!("the image exposes more than {MAX_PORTS} ports; name those to publish");
            return Err(invalid(message));
        }
    }
    Ok(forwards)
}

fn overlap(a: Option<Ipv4Addr>, b: Option<Ipv4Addr>) -> bool {
    let is_any = |address: Option<Ipv4Addr>| address.is_none_or(|address| address.is_unspecified());
    a == b || is_any(a) || is_any(b)
}

/// Parses one port string. A range yields several ports.
fn parse_port(text: &str) -> Result<Vec<Forward>, ContainerError> {
    let (ports, protocol) = split_protocol(text);
    if ports.starts_with('[') || ports.matches(':').count() > 2 && ports.split(':').all(is_hexadecimal) {
        let message = format!("{text:?} names an IPv6 address; ports are published at IPv4 addresses");
        return Err(invalid(message));
    }
    let fields: Vec<&str> = ports.split(':').collect();
    let (address, host, container) = match fields[..] {
        [""] => return Err(ContainerError::PortFormat(text.to_owned())),
        [container] => ("", "", container),
        [host, container] => ("", host, container),
        [address, host, container] => (address, host, container),
        _ => return Err(ContainerError::PortFormat(text.to_owned())),
    };
    let protocol = match protocol.unwrap_or("tcp").to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => {
            return Err(invalid(format!(
                "{other:?} in {text:?} is not a protocol; use tcp or udp"
            )));
        }
    };
    let address = match address {
        "" => None,
        address => Some(
            address
                .parse()
                .map_err(|_| invalid(format!("{address:?} in {text:?} is not an IPv4 address")))?,
        ),
    };
    let containers = range(container, text)?;
    let hosts = match host {
        "" => None,
        host => Some(range(host, text)?),
    };
    if hosts.as_ref().is_some_and(|hosts| hosts.len() != containers.len()) {
        return Err(invalid(format!("the ranges in {text:?} have different lengths")));
    }
    let hosts = hosts.into_iter().flatten().chain(std::iter::repeat(0));
    let forward = |(host_port, container_port)| Forward {
        host_address: address,
        host_port,
        container_port,
        protocol,
    };
    Ok(hosts.zip(containers).map(forward).collect())
}

/// Splits off the protocol: the text after a slash, or a word after the last colon.
fn split_protocol(text: &str) -> (&str, Option<&str>) {
    if let Some((ports, protocol)) = text.rsplit_once('/') {
        return (ports, Some(protocol));
    }
    match text.rsplit_once(':') {
        Some((ports, last)) if last.starts_with(|c: char| c.is_ascii_alphabetic()) => (ports, Some(last)),
        _ => (text, None),
    }
}

fn is_hexadecimal(field: &str) -> bool {
    field.bytes().all(|b| b.is_ascii_hexdigit())
}

fn range(field: &str, text: &str) -> Result<RangeInclusive<u16>, ContainerError> {
    let (first, last) = field.split_once('-').unwrap_or((field, field));
    let (first, last) = (port(first), port(last));
    match (first, last) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(invalid(format!(
            "{field:?} in {text:?} is not a port number from 1 to 65535, nor a range of them"
        ))),
    }
}

fn port(field: &str) -> Option<u16> {
    let digits = !field.is_empty() && field.bytes().all(|b| b.is_ascii_digit());
    let number = digits.then(|| field.parse::<u16>().ok()).flatten();
    number.filter(|number| *number > 0)
}

fn invalid(message: String) -> ContainerError {
    ContainerError::InvalidPort(message)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// In the format of `docker ps`.
    fn parsed(texts: &[&str]) -> Result<Vec<String>, String> {
        let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
        let shown = |f: &Forward| {
            let address = f.host_address.map_or("*".to_owned(), |a| a.to_string());
            format!("{address}:{}->{}/{}", f.host_port, f.container_port, f.protocol)
        };
        let all = parse_ports(&texts).map_err(|e| e.to_string())?;
        Ok(all.iter().map(shown).collect())
    }

    #[rstest]
    #[case("8080:80", "*:8080->80/tcp")]
    #[case("53:5353:UDP", "*:53->5353/udp")]
    #[case("53:5353/udp", "*:53->5353/udp")]
    #[case("80", "*:0->80/tcp")]
    #[case("80/UDP", "*:0->80/udp")]
    #[case(":80", "*:0->80/tcp")]
    #[case("127.0.0.1:8080:80", "127.0.0.1:8080->80/tcp")]
    #[case("127.0.0.1:8080:80:udp", "127.0.0.1:8080->80/udp")]
    #[case("127.0.0.1::80/tcp", "127.0.0.1:0->80/tcp")]
    #[case("0.0.0.0:8080:80", "0.0.0.0:8080->80/tcp")]
    fn port_strings(#[case] text: &str, #[case] meant: &str) {
        assert_eq!(parsed(&[text]).unwrap(), [meant]);
    }

    #[test]
    fn exposed_ports_are_published_once() {
        let exposed = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<BTreeSet<_>>();
        let published = parse_ports(&["8080:80".to_owned()]).unwrap();
        let texts = exposed(&[
            "80/tcp",
            "53/udp",
            "80",
            "90-91",
            "91/tcp",
            "8080:80/tcp",
            "x",
            "1/sctp",
            "",
        ]);
        let found: Vec<_> = exposed_ports(&texts, &published)
            .unwrap()
            .iter()
            .map(|f| {
                format!(
                    "{:?} {}->{}/{}",
                    f.host_address, f.host_port, f.container_port, f.protocol
                )
            })
            .collect();
        assert_eq!(found, ["None 0->53/udp", "None 0->90/tcp", "None 0->91/tcp"]);
        let error = exposed_ports(&exposed(&["1-2001/tcp"]), &published)
            .unwrap_err()
            .to_string();
        assert!(error.contains("more than 2000 ports"), "{error}");
    }

    #[test]
    fn ranges_are_ports() {
        assert_eq!(
            parsed(&["127.0.0.1:8000-8002:80-82/udp"]).unwrap(),
            [
                "127.0.0.1:8000->80/udp",
                "127.0.0.1:8001->81/udp",
                "127.0.0.1:8002->82/udp"
            ]
        );
        assert_eq!(parsed(&["80-81"]).unwrap(), ["*:0->80/tcp", "*:0->81/tcp"]);
        assert_eq!(parsed(&["1-2000:1-2000"]).unwrap().len(), MAX_PORTS);
    }

    #[rstest]
    #[case("", "port format failed: ")]
    #[case("1:2:tcp:3", "port format failed: 1:2:tcp:3")]
    #[case("1:2:3:4/tcp", "IPv6")]
    #[case("[::1]:1:2", "IPv6")]
    #[case("0:80", "not a port number")]
    #[case("80:0", "not a port number")]
    #[case("65536:80", "not a port number")]
    #[case("+80:80", "not a port number")]
    #[case("-p:80", "not a port number")]
    #[case("9-8:9-8", "not a port number")]
    #[case("80:80:", "\"80\" in \"80:80:\" is not an IPv4 address")]
    #[case("localhost:80:80", "\"localhost\" in \"localhost:80:80\" is not an IPv4 address")]
    #[case("8080:80:sctp", "not a protocol")]
    #[case("8080:80/", "not a protocol")]
    #[case("1-2:1-3", "ranges in \"1-2:1-3\" have different lengths")]
    #[case("1-3:1", "different lengths")]
    #[case("1-2001:1-2001", "more than 2000 ports")]
    fn bad_port_strings(#[case] text: &str, #[case] part: &str) {
        let error = parsed(&[text]).unwrap_err();
        assert!(
            error.starts_with("forward rule failed: ") && error.contains(part),
            "{error}"
        );
    }

    #[test]
    fn a_host_port_is_published_once_at_an_address() {
        parsed(&["80:1", "80:1:udp", "81:1"]).unwrap();
        parsed(&["127.0.0.1:80:1", "127.0.0.2:80:1", "1", "1", "1"]).unwrap();
        for both in [
            ["80:1", "80:2"],
            ["127.0.0.1:80:1", "80:2"],
            ["0.0.0.0:80:1", "127.0.0.1:80:2"],
        ] {
            let error = parsed(&both).unwrap_err();
            assert!(error.contains("host port 80/tcp is published twice"), "{error}");
        }
    }

    #[test]
    fn any_number_is_what_was_asked_for_without_one() {
        let all = |texts: [&str; 2]| parse_ports(&texts.map(str::to_owned)).unwrap();
        let wanted = all(["80", "8080:80"]);
        assert!(are_published(&wanted, &all(["32768:80", "8080:80"])));
        assert!(!are_published(&wanted, &all(["32768:80", "8081:80"])));
        assert!(!are_published(&wanted, &all(["127.0.0.1:32768:80", "8080:80"])));
        assert!(!are_published(&wanted, &[]));
    }
}
