//! Pods and their containers in the rows: which one holds the namespaces, which ones join, and their addresses. Pure.

use std::sync::Arc;

use crate::model::{Attachment, Container, Snapshot};

/// The infra container of a pod.
pub fn infra_of<'a>(snapshot: &'a Snapshot, pod_id: &str) -> Option<&'a Arc<Container>> {
    let mut containers = snapshot.containers().iter();
    containers.find(|c| c.is_infra() && c.role.pod() == Some(pod_id))
}

/// The place of a container in a network: its own, or that of its pod.
pub(super) fn place_of<'a>(snapshot: &'a Snapshot, container: &'a Container) -> Option<&'a Attachment> {
    let of_pod = || infra_of(snapshot, container.role.pod()?)?.status.attachment.as_ref();
    container.status.attachment.as_ref().or_else(of_pod)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::container;

    #[test]
    fn members_are_where_their_pod_is() {
        let member = container("a", "member").member_of("p");
        let snapshot = Snapshot::build(|t| {
            for c in [
                member.clone(),
                container("b", "infra-q").infra_of("q").address("10.166.0.9"),
                container("c", "infra-p").infra_of("p").address("10.166.0.8"),
            ] {
                t.put(c).unwrap();
            }
        });
        let address = |c: &Container| place_of(&snapshot, c).map(|place| place.address);
        assert_eq!(address(&member), Some([10, 166, 0, 8].into()));
        assert_eq!(
            address(&container("d", "own").address("10.166.0.7")),
            Some([10, 166, 0, 7].into())
        );
        assert_eq!(address(&container("e", "nowhere")), None);
        assert_eq!(address(&container("f", "lost").member_of("r")), None);
    }
}
