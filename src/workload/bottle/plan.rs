//! Translates a bottle into policies, container requests and display state. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;

use super::env::rewrite;
use super::order::start_order;
use super::{BottleError, BottleFile, OrderError};
use crate::model::{Bottle, Condition, Container, ContainerRequest, Policy, PolicyChain, PolicyStage, Snapshot};
use crate::net::policy::NewPolicy;

/// The start order of the services of a file.
pub fn order(file: &BottleFile) -> Result<Vec<String>, OrderError> {
    let needed = |name: &'_ str| {
        let service = &file.services[name];
        service.kept.depends_on.iter().map(|d| d.service.as_str()).collect()
    };
    let order = start_order(&file.services.keys().map(|name| (&**name, needed(name))).collect())?;
    for (service, entry) in &file.services {
        let healthy = |d: &&crate::model::Dependency| d.condition == Condition::Healthy;
        for dependency in entry.kept.depends_on.iter().filter(healthy) {
            let check = file.services[&dependency.service].options.health_check.as_ref();
            // Without a check of its own it may have its image's, which is not known here.
            if check.is_some_and(|check| check.disable) {
                let (service, dependency) = (service.clone(), dependency.service.clone());
                return Err(OrderError::NoHealthCheck { service, dependency });
            }
        }
    }
    Ok(order)
}

/// The bottle file's name for a chain.
pub fn policy_kind(chain: PolicyChain) -> &'static str {
    match chain {
        PolicyChain::RaindEw => "east-west",
        PolicyChain::RaindNsObs => "north-south_observe",
        PolicyChain::RaindNsEnf => "north-south_enforce",
    }
}

/// The policies of a file; its services are referred to by the names of their containers (`docs/spec/policy.md` 8).
pub fn policies(file: &BottleFile) -> Result<Vec<NewPolicy>, BottleError> {
    let refused = |problem: &str| Err(BottleError::PolicyFile(problem.to_owned()));
    let meant = |name: &str| match file.services.contains_key(name) {
        true => format!("{}-{name}", file.name),
        false => name.to_owned(),
    };
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok();
    let policy = |policy: &super::PolicyFile| {
        let chain = PolicyChain::ALL
            .into_iter()
            .find(|chain| policy_kind(*chain) == policy.kind);
        match (chain, is_address(&policy.destination)) {
            (None, _) => refused(&format!("unknown policy type: {}", policy.kind)),
            (Some(PolicyChain::RaindEw), true) => refused("east-west destination must be container name or id"),
            (Some(PolicyChain::RaindNsObs | PolicyChain::RaindNsEnf), false) => {
                refused("north-south destination must be ip address")
            }
            (Some(chain), _) => Ok(NewPolicy {
                chain: chain.name().to_owned(),
                source: meant(&policy.source),
                destination: meant(&policy.destination),
                protocol: policy.protocol.clone(),
                dport: policy.dest_port,
                comment: policy.comment.clone(),
            }),
        }
    };
    file.policies.iter().map(policy).collect()
}

/// Name of the automatic network of the bottle with that id: 15 characters, the kernel's limit.
pub fn network_name(id: &str) -> String {
    format!("raind{}", id.get(..10).unwrap_or(id))
}

/// The create request for the container of a service. `volumes` is the directory of the bottle's volumes.
pub fn request(
    bottle: &Bottle,
    service: &str,
    addresses: &BTreeMap<&str, Ipv4Addr>,
    volumes: &Path,
) -> ContainerRequest {
    let service = &bottle.services[service];
    let entry = &service.request;
    let direct = |name: &&str| service.depends_on.iter().any(|d| d.service == **name);
    let addresses = addresses.iter().filter(|(name, _)| direct(name));
    let addresses = addresses.map(|(name, address)| (*name, *address)).collect();
    let network = match (&entry.network[..], &bottle.network) {
        ("", Some(automatic)) => automatic,
        (named, _) => named,
    };
    let mount = |text: &String| match text.split_once(':') {
        Some((source, rest)) if bottle.volumes.iter().any(|volume| volume == source) => {
            format!("{}:{rest}", volumes.join(source).display())
        }
        _ => text.clone(),
    };
    ContainerRequest {
        mounts: entry.mounts.iter().map(mount).collect(),
        env: entry.env.iter().map(|entry| rewrite(entry, &addresses)).collect(),
        network: network.to_owned(),
        ..entry.clone()
    }
}

/// The mounts of a volume: image and container path for each service that mounts it, in start order.
pub fn mounts_of<'a>(bottle: &'a Bottle, volume: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let services = bottle.start_order.iter().filter_map(|name| bottle.services.get(name));
    services.flat_map(move |service| {
        let of_volume = move |mount: &'a String| match mount.split_once(':') {
            Some((source, rest)) if source == volume => Some(rest.split(':').next().unwrap_or(rest)),
            _ => None,
        };
        let paths = service.request.mounts.iter().filter_map(of_volume);
        paths.map(|path| (&service.request.image[..], path))
    })
}

/// The container of a service, if it exists.
pub fn container<'a>(snapshot: &'a Snapshot, bottle: &Bottle, service: &str) -> Option<&'a Arc<Container>> {
    snapshot.containers().get(bottle.containers.get(service)?)
}

/// The state that all containers share; `abnormal` if they differ or one is missing, `unknown` if there are none.
pub fn status(snapshot: &Snapshot, bottle: &Bottle) -> String {
    let mut states = bottle.containers.keys().map(|service| {
        let container = container(snapshot, bottle, service);
        container.map(|container| container.status.state)
    });
    match states.next() {
        None => "unknown".to_owned(),
        Some(Some(first)) if states.all(|state| state == Some(first)) => first.to_string(),
        Some(_) => "abnormal".to_owned(),
    }
}

/// The committed policies of a bottle, in the order of its file.
pub fn policies_of(snapshot: &Snapshot, bottle: &Bottle) -> Vec<Arc<Policy>> {
    let own = |policy: &&Arc<Policy>| policy.owner.as_ref() == Some(&bottle.id) && policy.stage != PolicyStage::Added;
    snapshot.policies().iter().filter(own).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ContainerState;
    use crate::model::fixtures::{bottle, container};
    use crate::workload::bottle::file::parse;

    fn file(text: &str) -> BottleFile {
        parse(text).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn a_service_that_must_be_healthy_needs_a_check() {
        let text = "bottle: {name: x}\nservices:\n  db: {image: a, healthcheck: {disable: true}}\n  web: {image: a, depends_on: {db: {condition: \
                    service_healthy}}}\n";
        assert_eq!(
            order(&file(text)).unwrap_err().to_string(),
            "service \"web\" waits for \"db\" to be healthy, which has no healthcheck"
        );
        let text = text.replace("disable: true", "tcp: 80");
        assert_eq!(order(&file(&text)).unwrap(), ["db", "web"]);
    }

    #[test]
    fn policies_name_containers() {
        let text = |policy: &str| format!("bottle: {{name: x}}\nservices: {{a: {{image: i}}}}\npolicies:\n- {policy}");
        let one = |policy: &str| policies(&file(&text(policy))).map(|mut all| all.remove(0));
        let policy = one("{type: east-west, source: a, destination: other, protocol: tcp, dest_port: 80}").unwrap();
        assert_eq!(
            (&*policy.chain, &*policy.source, &*policy.destination, policy.dport),
            ("RAIND-EW", "x-a", "other", 80)
        );
        for (policy, problem) in [
            (
                "{type: up-down, source: a, destination: b}",
                "unknown policy type: up-down",
            ),
            (
                "{type: east-west, source: a, destination: 1.2.3.4}",
                "east-west destination must be container name or id",
            ),
            (
                "{type: north-south_enforce, source: a, destination: b}",
                "north-south destination must be ip address",
            ),
        ] {
            assert_eq!(
                one(policy).unwrap_err().to_string(),
                format!("policy failed: {problem}")
            );
        }
        one("{type: north-south_observe, source: a, destination: 203.0.113.0/24}").unwrap();
    }

    #[test]
    fn a_request_has_addresses_network_and_directories() {
        let mut bottle = bottle("01kh3w0000ab", "blog", &["db", "web"]);
        bottle.network = Some(network_name(&bottle.id));
        bottle.volumes = vec!["data".into()];
        let web = bottle.services.get_mut("web").unwrap();
        web.request.env = vec!["DB=db:3306".into(), "SELF=web".into(), "X=cache".into()];
        web.request.mounts = vec!["data:/var/data:ro".into(), "/srv:/srv".into()];
        web.depends_on = vec![crate::model::Dependency {
            service: "db".into(),
            condition: Condition::Started,
        }];
        let addresses = BTreeMap::from([("db", [10, 166, 1, 1].into()), ("cache", [10, 166, 1, 2].into())]);
        let made = request(&bottle, "web", &addresses, Path::new("/v/blog"));
        assert_eq!(made.env, ["DB=10.166.1.1:3306", "SELF=web", "X=cache"]);
        assert_eq!(made.mounts, ["/v/blog/data:/var/data:ro", "/srv:/srv"]);
        assert_eq!(made.network, "raind01kh3w0000");
        bottle.services.get_mut("web").unwrap().request.network = "raind0".into();
        let made = request(&bottle, "web", &addresses, Path::new("/v/blog"));
        assert_eq!(made.network, "raind0");
    }

    #[test]
    fn a_volume_is_mounted_by_services_in_their_order() {
        let mut bottle = bottle("b1", "b", &["web", "db"]);
        bottle.start_order = vec!["db".into(), "web".into()];
        for (name, image, mounts) in [
            ("web", "w", vec!["data:/w:ro", "other:/o"]),
            ("db", "d", vec!["/srv:/s", "data:/d"]),
        ] {
            let service = bottle.services.get_mut(name).unwrap();
            service.request.image = image.into();
            service.request.mounts = mounts.into_iter().map(str::to_owned).collect();
        }
        assert_eq!(
            mounts_of(&bottle, "data").collect::<Vec<_>>(),
            [("d", "/d"), ("w", "/w")]
        );
        assert_eq!(mounts_of(&bottle, "none").count(), 0);
    }

    #[test]
    fn the_word_for_the_states_of_all() {
        let said = |states: &[Option<ContainerState>]| {
            let names: Vec<String> = (0..states.len()).map(|n| format!("s{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut bottle = bottle("b1", "b", &names);
            let snapshot = Snapshot::build(|t| {
                for (name, state) in names.iter().zip(states) {
                    bottle.containers.insert((*name).to_owned(), format!("id-{name}"));
                    if let Some(state) = state {
                        t.put(container(&format!("id-{name}"), name).in_state(*state)).unwrap();
                    }
                }
            });
            status(&snapshot, &bottle)
        };
        let (running, stopped) = (Some(ContainerState::Running), Some(ContainerState::Stopped));
        assert_eq!(said(&[]), "unknown");
        assert_eq!(said(&[running, running]), "running");
        assert_eq!(said(&[stopped]), "stopped");
        for states in [&[running, stopped][..], &[running, None], &[None, running], &[None]] {
            assert_eq!(said(states), "abnormal", "{states:?}");
        }
    }
}
