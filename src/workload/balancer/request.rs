//! Service requests and their validation. Pure.

use std::collections::BTreeMap;

use super::{MAX_AFFINITY, ServiceError};
use crate::model::names::{MAX_NAME, is_name};
use crate::model::{Service, ServicePort};

/// A requested service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewService {
    /// Required; unique among the services of the namespace.
    pub name: String,
    /// Required. Manifests default to `default`.
    pub namespace: String,
    /// Label selector for its pods. Empty matches none.
    pub selector: BTreeMap<String, String>,
    /// Its ports; each host port and protocol occurs once.
    pub ports: Vec<ServicePort>,
    /// Session affinity in seconds; `None` for no affinity.
    pub affinity_seconds: Option<u32>,
}

impl From<&Service> for NewService {
    /// The request that would create a service like this one.
    fn from(service: &Service) -> Self {
        Self {
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            selector: service.selector.clone(),
            ports: service.ports.clone(),
            affinity_seconds: service.affinity_seconds,
        }
    }
}

impl NewService {
    /// Refuses invalid requests. Conflicts of name and ports only show when they are reserved.
    pub fn check(&self) -> Result<(), ServiceError> {
        if self.name.is_empty() || self.namespace.is_empty() {
            return Err(ServiceError::NameRequired);
        }
        for (what, word) in [("service name", &self.name), ("namespace", &self.namespace)] {
            if !is_name(word, MAX_NAME) {
                let word = word.clone();
                return Err(ServiceError::InvalidName { what, word });
            }
        }
        if let Some(seconds) = self.affinity_seconds.filter(|s| !(1..=MAX_AFFINITY).contains(s)) {
            return Err(ServiceError::InvalidAffinity(seconds));
        }
        for (n, port) in self.ports.iter().enumerate() {
            for (field, number) in [("port", port.port), ("targetPort", port.target_port)] {
                if number == 0 {
                    return Err(ServiceError::PortZero(field));
                }
            }
            let is_same = |p: &ServicePort| (p.port, p.protocol) == (port.port, port.protocol);
            if self.ports[..n].iter().any(is_same) {
                let ServicePort { port, protocol, .. } = *port;
                return Err(ServiceError::PortTwice { port, protocol });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use rstest::rstest;

    fn shop(ports: &[(u16, u16, Protocol)]) -> NewService {
        let port = |&(port, target_port, protocol): &(u16, u16, Protocol)| ServicePort {
            port,
            target_port,
            protocol,
            written_protocol: protocol.to_string(),
        };
        NewService {
            name: "shop".into(),
            namespace: "default".into(),
            ports: ports.iter().map(port).collect(),
            ..NewService::default()
        }
    }

    #[rstest]
    #[case(&[(0, 80, Protocol::Tcp)], "invalid port: 0; a port is a number from 1 to 65535")]
    #[case(&[(80, 0, Protocol::Tcp)], "invalid targetPort: 0; a port is a number from 1 to 65535")]
    #[case(
        &[(80, 1, Protocol::Tcp), (80, 2, Protocol::Tcp)],
        "port 80/tcp is there twice; name each port and protocol once"
    )]
    fn ports_that_cannot_be_are_refused(#[case] ports: &[(u16, u16, Protocol)], #[case] message: &str) {
        assert_eq!(shop(ports).check().unwrap_err().to_string(), message);
    }

    #[test]
    fn one_port_may_be_there_for_both_protocols() {
        shop(&[(53, 53, Protocol::Tcp), (53, 53, Protocol::Udp)])
            .check()
            .unwrap();
        shop(&[]).check().unwrap();
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
            (&"n".repeat(129), "default", "invalid service name"),
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
