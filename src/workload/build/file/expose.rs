//! The ports of `EXPOSE`.

use super::error::{Problem, shown};
use super::resolver::Resolver;

/// Ports of all protocols.
const MAX_PORTS: usize = 3 << 16;

/// The ports of the words, each as `80/tcp`. A word may have several after its variables are replaced. When only the
/// syntax is checked, words with variables stay as they are.
pub(super) fn ports(written: &[String], resolver: &mut Resolver<'_>) -> Result<Vec<String>, Problem> {
    let mut ports = Vec::new();
    for word in written {
        let words = resolver.words(word)?;
        if !resolver.knows(word) {
            ports.push(word.clone());
            continue;
        }
        for port in words {
            let Some((protocol, first, last)) = parse(&port) else {
                let port = shown(&port);
                let message = format!("invalid port: {port}; use 80, 80/udp, 80/sctp or a range such as 8000-8010");
                return Err(Problem::new(message));
            };
            if ports.len() + usize::from(last - first) >= MAX_PORTS {
                return Err(Problem::new("EXPOSE has more ports than there are"));
            }
            ports.extend((first..=last).map(|port| format!("{port}/{protocol}")));
        }
    }
    Ok(ports)
}

/// `[[ip:]hostport:]port[-port][/protocol]`: what is before the port of the container has no meaning here.
fn parse(word: &str) -> Option<(&'static str, u16, u16)> {
    let word = word.rsplit(':').next()?;
    let (range, protocol) = word.split_once('/').unwrap_or((word, ""));
    let protocols = ["tcp", "udp", "sctp"].into_iter();
    let protocol = match protocol {
        "" => "tcp",
        _ => protocols
            .into_iter()
            .find(|known| known.eq_ignore_ascii_case(protocol))?,
    };
    let number = |text: &str| -> Option<u16> {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((protocol, first, last))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("80", Some(("tcp", 80, 80)))]
    #[case("80/UDP", Some(("udp", 80, 80)))]
    #[case("8000-8010/sctp", Some(("sctp", 8000, 8010)))]
    #[case("127.0.0.1:8080:80", Some(("tcp", 80, 80)))]
    #[case("80/", Some(("tcp", 80, 80)))]
    #[case("65535", Some(("tcp", 65535, 65535)))]
    #[case("65536", None)]
    #[case("80/icmp", None)]
    #[case("http", None)]
    #[case("2-1", None)]
    #[case("-1", None)]
    #[case("+1", None)]
    #[case("", None)]
    fn what_is_a_port(#[case] word: &str, #[case] port: Option<(&str, u16, u16)>) {
        assert_eq!(parse(word), port);
    }
}
