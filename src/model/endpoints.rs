//! The current endpoints of services. Pure.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::model::{Pod, PodStatus, Service, Snapshot, by_creation, pod_statuses};

/// A pod that receives clients of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its address.
    pub address: Ipv4Addr,
    /// The network that the address is in.
    pub network: String,
    /// Its id.
    pub pod_id: String,
}

/// The endpoints of a service among `pods`, by address: those in its namespace that have all labels of its selector,
/// are ready and have an address (`docs/spec/network.md` 11.2, N-22). An empty selector matches none.
pub fn endpoints(service: &Service, pods: &[(Arc<Pod>, PodStatus)]) -> Vec<Endpoint> {
    if service.selector.is_empty() {
        return Vec::new();
    }
    let mut endpoints: Vec<_> = pods
        .iter()
        .filter(|(pod, status)| status.ready && selects(service, pod))
        .filter_map(|(pod, status)| {
            let attachment = status.infra.as_ref()?.status.attachment.as_ref()?;
            Some(Endpoint {
                address: attachment.address,
                network: attachment.network.clone(),
                pod_id: pod.id.clone(),
            })
        })
        .collect();
    endpoints.sort();
    endpoints
}

/// Whether a pod is in the namespace of a service and has all labels of its selector.
pub fn selects(service: &Service, pod: &Pod) -> bool {
    let labels = &pod.template.labels;
    let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
    pod.namespace == service.namespace && !service.selector.is_empty() && service.selector.iter().all(has)
}

/// All services by creation time, then id, each with its endpoints.
pub fn all_endpoints(snapshot: &Snapshot) -> Vec<(Arc<Service>, Vec<Endpoint>)> {
    let services = by_creation(snapshot.services().iter().cloned());
    if services.is_empty() {
        return Vec::new();
    }
    let pods = pod_statuses(snapshot);
    let with_endpoints = |service: Arc<Service>| {
        let endpoints = endpoints(&service, &pods);
        (service, endpoints)
    };
    services.into_iter().map(with_endpoints).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::{container, pod, service, tcp_check};
    use crate::model::{ContainerState, PodGoal, Txn};

    /// A running pod with the label `app: <name>`.
    fn running(t: &mut Txn, id: &str, name: &str, address: &str) {
        let mut pod = pod(id, name, &["web"]);
        pod.goal = PodGoal::Running;
        t.put(pod).unwrap();
        let names = [
            format!("condenser-pod-infra-{id}"),
            crate::model::member_name(id, "web"),
        ];
        for (n, name) in names.iter().enumerate() {
            let part = container(&format!("{id}-{n}"), name).in_state(ContainerState::Running);
            let part = match n {
                0 => part.infra_of(id).address(address),
                _ => part.member_of(id),
            };
            t.put(part).unwrap();
        }
    }

    /// Addresses behind the service `shop`, whose selector is `app: shop`.
    fn addresses(change: impl FnOnce(&mut Txn)) -> Vec<String> {
        let snapshot = Snapshot::build(|t| {
            running(t, "01aaaaaaaaaaaaaa", "shop", "10.166.0.9");
            running(t, "01bbbbbbbbbbbbbb", "blog", "10.166.0.2");
            let mut twin = pod("01cccccccccccccc", "twin", &["web"]);
            twin.template.labels = [("app", "shop"), ("tier", "web")]
                .map(|(k, v)| (k.into(), v.into()))
                .into();
            running(t, "01cccccccccccccc", "twin", "10.166.0.10");
            t.update::<Pod>("01cccccccccccccc", |p| p.template.labels = twin.template.labels)
                .unwrap();
            t.put(service("s", "shop", &[80])).unwrap();
            change(t);
        });
        let (_, endpoints) = all_endpoints(&snapshot).pop().unwrap();
        endpoints.iter().map(|e| e.address.to_string()).collect()
    }

    fn update<R: crate::model::Record>(id: &str, change: impl FnOnce(&mut R)) -> impl FnOnce(&mut Txn) {
        move |t| drop(t.update::<R>(id, change).unwrap().unwrap())
    }

    #[test]
    fn pods_with_all_labels_of_the_selector_are_behind_it() {
        assert_eq!(addresses(|_| {}), ["10.166.0.9", "10.166.0.10"], "by address");
        let select = |labels: &'static [(&str, &str)]| {
            addresses(update("s", move |s: &mut Service| {
                s.selector = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            }))
        };
        assert_eq!(select(&[("app", "shop"), ("tier", "web")]), ["10.166.0.10"]);
        assert!(select(&[("app", "shop"), ("tier", "db")]).is_empty());
        assert!(select(&[]).is_empty(), "an empty selector matches nothing");
    }

    #[test]
    fn pods_of_other_namespaces_are_not() {
        let left = addresses(update("01aaaaaaaaaaaaaa", |p: &mut Pod| p.namespace = "prod".into()));
        assert_eq!(left, ["10.166.0.10"]);
    }

    #[test]
    fn only_ready_pods_are() {
        use crate::model::{Container, Health};
        let stop =
            |id: &'static str| addresses(update(id, |c: &mut Container| c.status.state = ContainerState::Stopped));
        assert_eq!(stop("01aaaaaaaaaaaaaa-0"), ["10.166.0.10"], "infra has ended");
        assert_eq!(stop("01aaaaaaaaaaaaaa-1"), ["10.166.0.10"], "a member has ended");
        for goal in [PodGoal::Stopped, PodGoal::Removed, PodGoal::Created] {
            let left = addresses(update("01aaaaaaaaaaaaaa", move |p: &mut Pod| p.goal = goal));
            assert_eq!(left, ["10.166.0.10"], "{goal}");
        }
        let probed = |readiness| {
            addresses(update("01aaaaaaaaaaaaaa-1", move |c: &mut Container| {
                c.status.readiness = readiness;
                c.spec.options.readiness_check = Some(tcp_check());
            }))
        };
        assert_eq!(probed(None), ["10.166.0.10"]);
        assert_eq!(probed(Some(Health::Unhealthy)), ["10.166.0.10"]);
        assert_eq!(probed(Some(Health::Healthy)), ["10.166.0.9", "10.166.0.10"]);
    }
}
