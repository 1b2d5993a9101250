//! Decides what to set up, and checks names and addresses.

use std::net::Ipv4Addr;

use super::error::NetworkError;
use crate::config::{Config, NamespaceKind, NetConfig};

/// Maximum length of an interface name, without the terminating NUL.
const MAX_NAME: usize = 15;

/// What to set up in a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkPlan {
    /// Joined or host network: set up nothing.
    Nothing,
    /// Set up only the loopback interface.
    Loopback,
    /// Set up loopback and a veth pair.
    Veth(Veth),
}

/// A veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Veth {
    /// Name of the host end.
    pub name: String,
    /// Bridge to attach the host end to.
    pub bridge: String,
    /// Address in the container.
    pub address: Ipv4Addr,
    /// Prefix length of the address.
    pub prefix: u8,
    /// Gateway of the default route.
    pub gateway: Option<Ipv4Addr>,
}

/// Returns what a container needs. Checks names and addresses.
pub fn plan(config: &Config, net: Option<&NetConfig>) -> Result<NetworkPlan, NetworkError> {
    match config.namespace(NamespaceKind::Network) {
        None => return Ok(NetworkPlan::Nothing),
        Some(namespace) if namespace.path.is_some() => return Ok(NetworkPlan::Nothing),
        Some(_) => {}
    }
    let Some(net) = net.filter(|net| !net.interface.ipv4.address.is_empty()) else {
        return Ok(NetworkPlan::Loopback);
    };
    let ipv4 = &net.interface.ipv4;
    let invalid_address = || invalid("address", &ipv4.address);
    let (address, prefix) = ipv4.address.split_once('/').ok_or_else(invalid_address)?;
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32);
    Ok(NetworkPlan::Veth(Veth {
        name: interface_name(&net.interface.name)?,
        bridge: interface_name(&net.bridge_interface)?,
        address: address.parse().map_err(|_| invalid_address())?,
        prefix: prefix.ok_or_else(invalid_address)?,
        gateway: match ipv4.gateway.as_str() {
            "" => None,
            gateway => Some(gateway.parse().map_err(|_| invalid("gateway", gateway))?),
        },
    }))
}

fn interface_name(name: &str) -> Result<String, NetworkError> {
    let allowed = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
    let valid = (1..=MAX_NAME).contains(&name.len()) && name.chars().all(allowed) && name != "." && name != "..";
    valid
        .then(|| name.to_owned())
        .ok_or_else(|| invalid("interface name", name))
}

fn invalid(what: &str, value: &str) -> NetworkError {
    NetworkError::Annotation(format!("invalid {what} {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(namespaces: &str, net: &str) -> Result<NetworkPlan, NetworkError> {
        let text = format!(r#"{{"linux":{{"namespaces":{namespaces}}},"annotations":{{}}}}"#);
        let config = Config::parse(text.as_bytes(), std::path::Path::new("config.json")).unwrap();
        let net: NetConfig = serde_json::from_str(net).unwrap();
        plan(&config, Some(&net))
    }

    const NEW: &str = r#"[{"type":"network"}]"#;

    #[test]
    fn only_a_new_namespace_with_an_address_gets_an_interface() {
        let net = r#"{"bridgeInterface":"raind0","interface":{"name":"rd_x","ipv4":{"address":"10.1.2.3/24","gateway":"10.1.2.254"}}}"#;
        let NetworkPlan::Veth(veth) = planned(NEW, net).unwrap() else {
            panic!("no interface planned");
        };
        assert_eq!((veth.name.as_str(), veth.prefix), ("rd_x", 24));
        assert_eq!(veth.gateway, Some(Ipv4Addr::new(10, 1, 2, 254)));
        assert_eq!(
            planned(NEW, r#"{"interface":{"ipv4":{"address":""}}}"#).unwrap(),
            NetworkPlan::Loopback
        );
        assert_eq!(planned("[]", net).unwrap(), NetworkPlan::Nothing);
        assert_eq!(
            planned(r#"[{"type":"network","path":"/p"}]"#, net).unwrap(),
            NetworkPlan::Nothing
        );
    }

    #[test]
    fn an_invalid_value_is_named() {
        let error_for = |name: &str, address: &str, gateway: &str| {
            let net = format!(
                r#"{{"bridgeInterface":"b","interface":{{"name":"{name}","ipv4":{{"address":"{address}","gateway":"{gateway}"}}}}}}"#
            );
            planned(NEW, &net).unwrap_err().to_string()
        };
        for (error, expected) in [
            (
                error_for("sixteen_letters_", "1.2.3.4/8", ""),
                r#"invalid interface name "sixteen_letters_""#,
            ),
            (error_for("a/b", "1.2.3.4/8", ""), r#"invalid interface name "a/b""#),
            (error_for("rd", "1.2.3.4", ""), r#"invalid address "1.2.3.4""#),
            (error_for("rd", "1.2.3.4/33", ""), r#"invalid address "1.2.3.4/33""#),
            (error_for("rd", "1.2.3.4/8", "x"), r#"invalid gateway "x""#),
        ] {
            assert_eq!(error, format!("annotation io.raind.net.config: {expected}"));
        }
    }
}
