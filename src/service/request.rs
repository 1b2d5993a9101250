//! What clients ask for, and what of it is refused. Pure.

use std::collections::BTreeMap;

use super::{MAX_AFFINITY, ServiceError};
use crate::store::{Protocol, Service, ServicePort};

/// A service as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewService {
    /// Required; unique among the services of the namespace.
    pub name: String,
    /// Required. Manifests say `default` when they say nothing.
    pub namespace: String,
    /// Labels of its pods. Empty matches none.
    pub selector: BTreeMap<String, String>,
    /// Its ports.
    pub ports: Vec<NewPort>,
    /// For how many seconds a client stays with one pod; `None` for no affinity.
    pub affinity_seconds: Option<u32>,
}

/// A port of a service as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewPort {
    /// Port of the host.
    pub port: i64,
    /// Port of the pods; `None` for the same.
    pub target_port: Option<i64>,
    /// TCP or UDP in any case; empty for `tcp`. Shown as written.
    pub protocol: String,
}

impl From<&Service> for NewService {
    /// What would make a service like this one.
    fn from(service: &Service) -> Self {
        let port = |p: &ServicePort| NewPort {
            port: p.port.into(),
            target_port: Some(p.target_port.into()),
            protocol: p.written_protocol.clone(),
        };
        Self {
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            selector: service.selector.clone(),
            ports: service.ports.iter().map(port).collect(),
            affinity_seconds: service.affinity_seconds,
        }
    }
}

impl NewService {
    /// Refuses what could not work, and returns the ports as they are stored. Whether ports and name are free is known
    /// only when they are reserved.
    pub fn check(&self) -> Result<Vec<ServicePort>, ServiceError> {
        if self.name.is_empty() || self.namespace.is_empty() {
            return Err(ServiceError::NameRequired);
        }
        for (what, word) in [("service name", &self.name), ("namespace", &self.namespace)] {
            if !is_name(word) {
                let word = word.clone();
                return Err(ServiceError::InvalidName { what, word });
            }
        }
        if let Some(seconds) = self.affinity_seconds.filter(|s| !(1..=MAX_AFFINITY).contains(s)) {
            return Err(ServiceError::InvalidAffinity(seconds));
        }
        let mut ports: Vec<ServicePort> = Vec::with_capacity(self.ports.len());
        for port in &self.ports {
            let port = port.check()?;
            if ports.iter().any(|p| (p.port, p.protocol) == (port.port, port.protocol)) {
                let ServicePort { port, protocol, .. } = port;
                return Err(ServiceError::PortTwice { port, protocol });
            }
            ports.push(port);
        }
        Ok(ports)
    }
}

impl NewPort {
    fn check(&self) -> Result<ServicePort, ServiceError> {
        let written_protocol = match &self.protocol[..] {
            "" => "tcp",
            written => written,
        };
        let protocol = match &written_protocol.to_ascii_lowercase()[..] {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(ServiceError::InvalidProtocol(written_protocol.to_owned())),
        };
        Ok(ServicePort {
            port: number("port", self.port)?,
            target_port: number("targetPort", self.target_port.unwrap_or(self.port))?,
            protocol,
            written_protocol: written_protocol.to_owned(),
        })
    }
}

fn number(field: &'static str, number: i64) -> Result<u16, ServiceError> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(ServiceError::InvalidPort { field, number }),
    }
}

/// As for containers, except that a service has no words that a route has taken.
fn is_name(word: &str) -> bool {
    word.len() <= 253
        && word.starts_with(|c: char| c.is_ascii_alphanumeric())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn shop(ports: &[(i64, Option<i64>, &str)]) -> NewService {
        NewService {
            name: "shop".into(),
            namespace: "default".into(),
            ports: ports
                .iter()
                .map(|(port, target_port, protocol)| NewPort {
                    port: *port,
                    target_port: *target_port,
                    protocol: (*protocol).into(),
                })
                .collect(),
            ..NewService::default()
        }
    }

    #[test]
    fn ports_are_stored_with_the_protocol_as_written() {
        let ports = shop(&[(80, None, ""), (80, Some(53), "UDP"), (443, Some(8443), "Tcp")])
            .check()
            .unwrap();
        let seen: Vec<_> = ports
            .iter()
            .map(|p| (p.port, p.target_port, p.protocol, &p.written_protocol[..]))
            .collect();
        assert_eq!(
            seen,
            [
                (80, 80, Protocol::Tcp, "tcp"),
                (80, 53, Protocol::Udp, "UDP"),
                (443, 8443, Protocol::Tcp, "Tcp"),
            ]
        );
    }

    #[rstest]
    #[case(&[(0, None, "")], "invalid port: 0; a port is a number from 1 to 65535")]
    #[case(&[(65_536, None, "")], "invalid port: 65536; a port is a number from 1 to 65535")]
    #[case(&[(-1, Some(80), "")], "invalid port: -1; a port is a number from 1 to 65535")]
    #[case(&[(80, Some(0), "")], "invalid targetPort: 0; a port is a number from 1 to 65535")]
    #[case(&[(80, None, "sctp")], "invalid protocol: \"sctp\"; use TCP or UDP")]
    #[case(&[(80, None, ""), (80, Some(1), "TCP")], "port 80/tcp is there twice; name each port and protocol once")]
    fn what_cannot_be_a_port_is_refused(#[case] ports: &[(i64, Option<i64>, &str)], #[case] message: &str) {
        assert_eq!(shop(ports).check().unwrap_err().to_string(), message);
    }

    #[test]
    fn names_are_needed_and_can_be_part_of_a_path() {
        for (name, namespace, message) in [
            ("", "default", "name and namespace are required"),
            ("shop", "", "name and namespace are required"),
            ("a/b", "default", "invalid service name: \"a/b\""),
            ("-a", "default", "invalid service name"),
            ("a\nb", "default", "invalid service name"),
            ("a", "x y", "invalid namespace: \"x y\""),
            (&"n".repeat(254), "default", "invalid service name"),
        ] {
            let request = NewService {
                name: name.into(),
                namespace: namespace.into(),
                ..NewService::default()
            };
            let said = request.check().unwrap_err().to_string();
            assert!(said.starts_with(message), "{said}");
        }
    }

    #[test]
    fn an_affinity_has_limits() {
        let with = |seconds| NewService {
            affinity_seconds: Some(seconds),
            ..shop(&[])
        };
        assert!(with(1).check().is_ok() && with(MAX_AFFINITY).check().is_ok());
        assert!(with(0).check().is_err() && with(MAX_AFFINITY + 1).check().is_err());
    }
}
