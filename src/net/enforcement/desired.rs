//! Computes the desired rules from a snapshot. Pure.

use std::sync::Arc;

use crate::model::{
    Directory, Endpoint, Policy, PolicyChain, PolicyStage, Service, ServicePort, Snapshot, all_endpoints, policies,
};
use crate::net::bridges::{Uplink, in_order};
use crate::net::firewall::{BalancedPort, Bridge, DesiredRules, FirewallSettings, PublishedPort, ResolvedPolicy};

/// The inputs of the rules, as of the snapshot.
///
/// A container publishes its ports while it runs ([`Container::is_published`](crate::model::Container::is_published)).
pub fn desired(snapshot: &Snapshot, uplink: Option<&Uplink>, settings: &FirewallSettings) -> DesiredRules {
    let bridges = in_order(snapshot)
        .iter()
        .map(|n| Bridge {
            name: n.name.clone(),
            subnet: n.subnet,
            gateway: n.gateway,
        })
        .collect();
    let ports = snapshot
        .containers()
        .iter()
        .filter(|c| c.is_published())
        .filter_map(|c| Some((c.status.attachment.as_ref()?, &c.spec.forwards)))
        .flat_map(|(attachment, forwards)| {
            forwards.iter().map(|f| PublishedPort {
                bridge: attachment.network.clone(),
                address: attachment.address,
                host_address: f.host_address.unwrap_or(settings.publish_address),
                host_port: f.host_port,
                container_port: f.container_port,
                protocol: f.protocol,
            })
        })
        .collect();
    let directory = Directory::new(snapshot);
    let in_force = snapshot.policies().iter().filter(|p| p.stage != PolicyStage::Added);
    DesiredRules {
        uplink: uplink.cloned(),
        bridges,
        ports,
        interfaces: directory.ends(),
        policy: policies::settings(snapshot),
        policies: in_force.filter_map(|p| resolved(p, &directory)).collect(),
        services: balanced_ports(snapshot),
        settings: settings.clone(),
    }
}

fn balanced_ports(snapshot: &Snapshot) -> Vec<BalancedPort> {
    let balanced = |(service, endpoints): (Arc<Service>, Vec<Endpoint>)| {
        let port = |p: &ServicePort| BalancedPort {
            service: service.id.clone(),
            host_port: p.port,
            target_port: p.target_port,
            protocol: p.protocol,
            affinity_seconds: service.affinity_seconds,
            endpoints: endpoints.clone(),
        };
        service.ports.iter().map(port).collect::<Vec<_>>()
    };
    all_endpoints(snapshot).into_iter().flat_map(balanced).collect()
}

/// `None` while an end of the policy does not resolve.
fn resolved(policy: &Policy, directory: &Directory<'_>) -> Option<ResolvedPolicy> {
    let sources = directory.resolve(&policy.source).ok()?;
    let (mut pairs, mut from, mut to) = (Vec::new(), Vec::new(), None);
    if policy.chain == PolicyChain::RaindEw {
        let destinations = directory.resolve(&policy.destination).ok()?;
        for source in &sources {
            // A container does not talk to itself through the bridge.
            let others = destinations.iter().filter(|d| d.veth != source.veth);
            pairs.extend(others.map(|d| (source.clone(), d.clone())));
        }
    } else {
        from = sources;
        to = Some(policies::block(&policy.destination)?);
    }
    Some(ResolvedPolicy {
        policy: policy.id.clone(),
        chain: policy.chain,
        pairs,
        sources: from,
        block: to,
        protocol: policy.protocol,
        dport: policy.dport,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::{container, network};
    use crate::model::{ContainerState, Operation};

    #[test]
    fn ports_are_published_while_their_container_runs() {
        let ports = |state, starting, operation| {
            let snapshot = Snapshot::build(|t| {
                t.put(network("raind0", "10.166.0.0/24")).unwrap();
                let mut c = container("a", "web").address("10.166.0.1").forward(80).in_state(state);
                (c.journal.operation, c.journal.starting) = (operation, starting);
                t.put(c).unwrap();
                // A member of a pod has no address of its own.
                t.put(container("b", "member").forward(81).in_state(ContainerState::Running))
                    .unwrap();
            });
            desired(&snapshot, None, &FirewallSettings::default()).ports.len()
        };
        use ContainerState::{Created, Creating, Running, Stopped};
        assert_eq!(
            [Creating, Created, Running, Stopped].map(|s| ports(s, false, None)),
            [0, 0, 1, 0]
        );
        assert_eq!([Creating, Created].map(|s| ports(s, true, None)), [1, 1]);
        assert_eq!(ports(Creating, true, Some(Operation::Restart)), 1);
        assert_eq!(ports(Running, false, Some(Operation::Delete)), 0);
    }
}
