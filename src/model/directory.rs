//! Resolves names in policies to the current interfaces. Pure.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::model::{Claim, Container, Kind, Operation, Pod, ReplicaSet, Role, Snapshot};

/// Namespace of an unqualified name.
const NAMESPACE: &str = "default";

/// An interface of a container or pod in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Name of the container that owns it; for a pod its infra container.
    pub container: String,
    /// The interface on the host.
    pub veth: String,
    /// The network, which is the bridge.
    pub bridge: String,
    /// The address.
    pub address: Ipv4Addr,
}

/// Why a name cannot be resolved at the moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// There is no container, pod or replica set of that name; the contract's words.
    #[error("container: {0} not found")]
    NotFound(String),
    /// The pod exists and has no address yet.
    #[error("pod: {0} has no address yet")]
    PodWithoutAddress(String),
    /// No pod of the replica set has an address.
    #[error("replica set: {0} has no pods")]
    NoPods(String),
}

/// Resolves names in one snapshot.
pub struct Directory<'a> {
    snapshot: &'a Snapshot,
    /// Pod id -> its infra container.
    infra: HashMap<&'a str, &'a Arc<Container>>,
    /// Replica set id -> its pods, by id.
    pods: HashMap<&'a str, Vec<&'a Arc<Pod>>>,
    /// Namespace and display name -> replica set.
    sets: HashMap<(&'a str, &'a str), &'a Arc<ReplicaSet>>,
}

impl<'a> Directory<'a> {
    /// Scans every container, pod and replica set once.
    pub fn new(snapshot: &'a Snapshot) -> Self {
        let infra = snapshot.containers().iter().filter_map(|c| match &c.role {
            Role::Infra { pod } => Some((pod.as_str(), c)),
            _ => None,
        });
        let mut pods: HashMap<&str, Vec<&Arc<Pod>>> = HashMap::new();
        for pod in snapshot.pods().iter() {
            if let Some(owner) = &pod.owner {
                pods.entry(owner).or_default().push(pod);
            }
        }
        let sets = snapshot.replicasets().iter();
        Self {
            snapshot,
            infra: infra.collect(),
            pods,
            sets: sets.map(|set| ((&*set.namespace, &*set.name), set)).collect(),
        }
    }

    /// Resolves a name to its interfaces; the result is never empty.
    ///
    /// The first match: a container by name or id (for a member of a pod, the pod's interface), a pod, a replica set
    /// (all its pods that have an address). Pods and replica sets are named by id, by `<name>` in the namespace
    /// `default`, or by `<namespace>/<name>`; a replica set also by the name in its manifest.
    pub fn resolve(&self, name: &str) -> Result<Vec<End>, Unresolved> {
        let missing = || Unresolved::NotFound(name.to_owned());
        if let Some(container) = self.container(name) {
            let end = match container.role.pod() {
                Some(pod) => self.pod_end(pod),
                None => end(container),
            };
            return end.map(|end| vec![end]).ok_or_else(missing);
        }
        if let Some(pod) = self.pod(name) {
            let end = self.pod_end(&pod.id);
            return end
                .map(|end| vec![end])
                .ok_or_else(|| Unresolved::PodWithoutAddress(name.to_owned()));
        }
        let set = self.replica_set(name).ok_or_else(missing)?;
        let pods = self.pods.get(&*set.id).into_iter().flatten();
        let ends: Vec<_> = pods.filter_map(|pod| self.pod_end(&pod.id)).collect();
        if ends.is_empty() {
            return Err(Unresolved::NoPods(name.to_owned()));
        }
        Ok(ends)
    }

    /// All interfaces, by id of their container.
    pub fn ends(&self) -> Vec<End> {
        self.snapshot.containers().iter().filter_map(end).collect()
    }

    /// The interface with that address.
    pub fn at(&self, address: Ipv4Addr) -> Option<End> {
        let holder = self.snapshot.holder(&Claim::Address(address))?;
        end(self.snapshot.containers().get(&holder.id)?)
    }

    /// The name that a policy stores for the client's input: the id of a container becomes its name.
    pub fn canonical(&self, written: &str) -> String {
        self.container(written)
            .map_or_else(|| written.to_owned(), |c| c.name.clone())
    }

    fn container(&self, name: &str) -> Option<&'a Arc<Container>> {
        let holder = self.snapshot.holder(&Claim::ContainerName(name.to_owned()))?;
        self.snapshot.containers().get(&holder.id)
    }

    fn pod(&self, name: &str) -> Option<&'a Arc<Pod>> {
        let pods = self.snapshot.pods();
        pods.get(name).or_else(|| pods.get(&self.holder(Kind::Pod, name)?))
    }

    fn replica_set(&self, name: &str) -> Option<&'a Arc<ReplicaSet>> {
        let sets = self.snapshot.replicasets();
        sets.get(name)
            .or_else(|| sets.get(&self.holder(Kind::ReplicaSet, name)?))
            .or_else(|| self.sets.get(&with_namespace(name)).copied())
    }

    fn holder(&self, kind: Kind, name: &str) -> Option<String> {
        let (namespace, name) = with_namespace(name);
        let claim = Claim::Name(kind, namespace.to_owned(), name.to_owned());
        Some(self.snapshot.holder(&claim)?.id.clone())
    }

    fn pod_end(&self, pod: &str) -> Option<End> {
        end(self.infra.get(pod)?)
    }
}

fn with_namespace(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or((NAMESPACE, name))
}

/// An object that is being removed has no interface: its rules must be gone before its address is reused.
fn end(container: &Arc<Container>) -> Option<End> {
    if container.journal.operation == Some(Operation::Delete) {
        return None;
    }
    let attachment = container.status.attachment.as_ref()?;
    Some(End {
        container: container.name.clone(),
        veth: container.veth(),
        bridge: attachment.network.clone(),
        address: attachment.address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::{container, pod, replica_set};

    fn snapshot() -> Snapshot {
        Snapshot::build(|t| {
            t.put(container("aaaaaaaaaaaa", "web").address("10.166.0.1")).unwrap();
            let mut going = container("bbbbbbbbbbbb", "going").address("10.166.0.2");
            going.journal.operation = Some(Operation::Delete);
            t.put(going).unwrap();
            t.put(ReplicaSet {
                manifest_name: "shop-rs".into(),
                ..replica_set("01set", "shop", 1)
            })
            .unwrap();
            for (n, owner) in [(1, Some("01set")), (2, Some("01set")), (3, None)] {
                let mut pod = pod(&format!("01pod{n}"), &format!("pod-{n}"), &["app"]);
                pod.owner = owner.map(str::to_owned);
                t.put(pod).unwrap();
            }
            for n in 1..3 {
                let pod = format!("01pod{n}");
                let infra = container(&format!("infra000000{n}"), &format!("condenser-pod-infra-{pod}"));
                t.put(infra.infra_of(&pod).address(&format!("10.166.0.1{n}"))).unwrap();
                let member = container(&format!("member00000{n}"), &format!("app-{n}"));
                t.put(member.member_of(&pod)).unwrap();
            }
        })
    }

    fn addresses(name: &str) -> Result<Vec<String>, String> {
        let snapshot = snapshot();
        let ends = Directory::new(&snapshot).resolve(name);
        ends.map(|ends| ends.iter().map(|e| e.address.to_string()).collect())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn names_mean_interfaces() {
        for (name, wanted) in [
            ("web", vec!["10.166.0.1"]),
            ("aaaaaaaaaaaa", vec!["10.166.0.1"]),
            ("app-2", vec!["10.166.0.12"]),
            ("condenser-pod-infra-01pod1", vec!["10.166.0.11"]),
            ("pod-1", vec!["10.166.0.11"]),
            ("default/pod-1", vec!["10.166.0.11"]),
            ("01pod1", vec!["10.166.0.11"]),
            ("shop", vec!["10.166.0.11", "10.166.0.12"]),
            ("shop-rs", vec!["10.166.0.11", "10.166.0.12"]),
            ("default/shop", vec!["10.166.0.11", "10.166.0.12"]),
            ("01set", vec!["10.166.0.11", "10.166.0.12"]),
        ] {
            assert_eq!(
                addresses(name),
                Ok(wanted.into_iter().map(str::to_owned).collect()),
                "{name}"
            );
        }
    }

    #[test]
    fn what_means_nothing_says_why() {
        for (name, reason) in [
            ("db", "container: db not found"),
            ("going", "container: going not found"),
            ("other/pod-1", "container: other/pod-1 not found"),
            ("pod-3", "pod: pod-3 has no address yet"),
        ] {
            assert_eq!(addresses(name), Err(reason.to_owned()));
        }
        let empty = Snapshot::build(|t| {
            t.put(replica_set("01set", "shop", 1)).unwrap();
        });
        let reason = Directory::new(&empty).resolve("shop").unwrap_err().to_string();
        assert_eq!(reason, "replica set: shop has no pods");
    }

    #[test]
    fn ids_of_containers_become_names_and_everything_else_stays() {
        let snapshot = snapshot();
        let directory = Directory::new(&snapshot);
        assert_eq!(directory.canonical("aaaaaaaaaaaa"), "web");
        assert_eq!(directory.canonical("01pod1"), "01pod1");
        assert_eq!(directory.canonical("later"), "later");
        assert_eq!(directory.at([10, 166, 0, 12].into()).unwrap().veth, "rd_infra0000002");
        assert_eq!(directory.at([10, 166, 0, 99].into()), None);
    }
}
