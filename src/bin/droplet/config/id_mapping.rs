//! User and group id id_mappings.

use serde::Deserialize;

/// `linux.uidMappings[]`, `linux.gidMappings[]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
pub struct IdMapping {
    /// First id inside the container.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id on the host.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// Number of ids.
    pub size: u32,
}

/// Returns the configured id id_mappings, or the identity mapping of 65535 ids (9.6).
pub fn id_mappings(configured: &[IdMapping]) -> Vec<IdMapping> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    vec![IdMapping {
        container_id: 0,
        host_id: 0,
        size: 65535,
    }]
}

/// Returns the host id of an id in the container, or `None` if it is not mapped.
pub fn host_id(configured: &[IdMapping], id: u32) -> Option<u32> {
    id_mappings(configured).iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id)?;
        (offset < mapping.size).then(|| mapping.host_id.checked_add(offset))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped() {
        assert_eq!(host_id(&[], 33), Some(33));
        assert_eq!(host_id(&[], 65535), None);
        let shifted = [IdMapping {
            container_id: 0,
            host_id: 100_000,
            size: 10,
        }];
        assert_eq!(host_id(&shifted, 9), Some(100_009));
        assert_eq!(host_id(&shifted, 10), None);
    }
}
