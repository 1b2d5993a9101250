//! What the rows say of pods and their containers: who holds the namespaces, who joins them, and where they are. Pure.

use std::sync::Arc;

use crate::model::{Attachment, Container, INFRA_PREFIX, Snapshot};

/// The infra container of a pod.
pub fn infra_of<'a>(snapshot: &'a Snapshot, pod_id: &str) -> Option<&'a Arc<Container>> {
    let mut containers = snapshot.containers().iter();
    containers.find(|c| c.pod_id.as_deref() == Some(pod_id) && c.name.starts_with(INFRA_PREFIX))
}

/// Whether it joins the namespaces of another container.
pub(super) fn is_member(container: &Container) -> bool {
    container.pod_id.is_some() && container.attachment.is_none()
}

/// The place of a container in a network: its own, or its pod's.
pub(super) fn place_of<'a>(snapshot: &'a Snapshot, container: &'a Container) -> Option<&'a Attachment> {
    let of_pod = || infra_of(snapshot, container.pod_id.as_deref()?)?.attachment.as_ref();
    container.attachment.as_ref().or_else(of_pod)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::container;

    #[test]
    fn members_are_where_their_pod_is() {
        let in_pod = |id: &str, name: &str, pod: &str| Container {
            pod_id: Some(pod.into()),
            ..container(id, name)
        };
        let member = in_pod("a", "member", "p");
        let snapshot = Snapshot::build(|t| {
            for c in [
                member.clone(),
                in_pod("b", &format!("{INFRA_PREFIX}q"), "q").address("10.166.0.9"),
                in_pod("c", &format!("{INFRA_PREFIX}p"), "p").address("10.166.0.8"),
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
        assert_eq!(address(&in_pod("f", "lost", "r")), None);
    }
}
