//! Ports of a service: strings, or mappings in the long form of the Compose specification. Pure.

use crate::workload::manifest::ManifestError;
use crate::workload::manifest::reader::{Field, Object};

/// Converts one entry of `ports` into the equivalent string.
pub(super) fn port(field: &Field<'_>) -> Result<String, ManifestError> {
    if field.is_mapping() {
        return field.object(long);
    }
    field.string()
}

fn long(port: &mut Object<'_>) -> Result<String, ManifestError> {
    let target = port.string("target")?;
    if target.is_empty() {
        return Err(port.missing("target", "the port of the container is required"));
    }
    let (address, host) = (port.string("host_ip")?, port.string("published")?);
    let protocol = match port.string("protocol")? {
        protocol if protocol.is_empty() => "tcp".to_owned(),
        protocol => protocol,
    };
    // `mode` is for clusters, the other two are for human readers.
    for name in ["mode", "name", "app_protocol"] {
        port.field(name);
    }
    Ok(format!("{address}:{host}:{target}/{protocol}"))
}

#[cfg(test)]
mod tests {
    use crate::workload::bottle::file::parse;

    fn ports(text: &str) -> Result<Vec<String>, String> {
        let text = format!("bottle: {{name: x}}\nservices: {{web: {{image: i, ports: {text}}}}}\n");
        let file = parse(&text).map_err(|e| e.to_string())?;
        Ok(file.services["web"].kept.request.ports.clone())
    }

    #[test]
    fn both_forms_of_compose_are_read() {
        let text = "[8080, '80:80/udp', {target: 80}, {target: 80, published: '8080', host_ip: 127.0.0.1, protocol: udp, \
                    mode: host}]";
        let read = ports(text).unwrap();
        assert_eq!(read, ["8080", "80:80/udp", "::80/tcp", "127.0.0.1:8080:80/udp"]);
        crate::workload::container::parse_ports(&read).unwrap();
        assert!(ports("[{published: 80}]").unwrap_err().contains("target"));
    }
}
