//! The start order of the services of a bottle (`docs/spec/api.md` 12.2). Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Why there is no order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// A service depends on one that is not in the file.
    #[error("service \"{service}\" depends on unknown service \"{dependency}\"")]
    Unknown {
        /// The dependent.
        service: String,
        /// The dependency.
        dependency: String,
    },
    /// Services depend on each other, or one on itself.
    #[error("dependency cycle detected")]
    Cycle,
    /// A service waits for another one to become healthy that has no health check.
    #[error("service \"{service}\" waits for \"{dependency}\" to be healthy, which has no healthcheck")]
    NoHealthCheck {
        /// The dependent.
        service: String,
        /// The dependency.
        dependency: String,
    },
}

/// Each service after its dependencies; ties are broken by name.
pub fn start_order(dependencies: &BTreeMap<&str, Vec<&str>>) -> Result<Vec<String>, OrderError> {
    for (service, needed) in dependencies {
        if let Some(unknown) = needed.iter().find(|needed| !dependencies.contains_key(*needed)) {
            let (service, dependency) = ((*service).to_owned(), (*unknown).to_owned());
            return Err(OrderError::Unknown { service, dependency });
        }
    }
    let mut waiting: BTreeMap<&str, BTreeSet<&str>> = dependencies
        .iter()
        .map(|(service, needed)| (*service, needed.iter().copied().collect()))
        .collect();
    let mut order = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let mut ready = waiting.iter().filter(|(_, needed)| needed.is_empty());
        let next = ready.next().map(|(service, _)| *service).ok_or(OrderError::Cycle)?;
        waiting.remove(next);
        for needed in waiting.values_mut() {
            needed.remove(next);
        }
        order.push(next.to_owned());
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(services: &[(&str, &[&str])]) -> Result<Vec<String>, OrderError> {
        let services = services.iter().map(|(name, needed)| (*name, needed.to_vec()));
        start_order(&services.collect())
    }

    #[test]
    fn dependencies_come_first_and_ties_go_by_name() {
        let found = order(&[
            ("web", &["db", "cache"]),
            ("db", &[]),
            ("cache", &["db"]),
            ("admin", &[]),
        ])
        .unwrap();
        assert_eq!(found, ["admin", "db", "cache", "web"]);
        assert_eq!(order(&[("b", &[]), ("a", &["b", "b"])]).unwrap(), ["b", "a"]);
    }

    #[test]
    fn what_cannot_be_ordered_is_refused() {
        let said = |services: &[(&str, &[&str])]| order(services).unwrap_err().to_string();
        let cycle = "dependency cycle detected";
        assert_eq!(said(&[("a", &["a"])]), cycle);
        assert_eq!(said(&[("a", &["b"]), ("b", &["c"]), ("c", &["a"]), ("d", &[])]), cycle);
        assert_eq!(
            said(&[("a", &[]), ("web", &["a", "db"])]),
            "service \"web\" depends on unknown service \"db\""
        );
    }

    proptest! {
        /// Edges only point to smaller numbers, so an order always exists.
        #[test]
        fn every_order_keeps_all_dependencies(edges in prop::collection::vec((0usize..20, 0usize..20), 0..60)) {
            let names: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
            let mut services: BTreeMap<&str, Vec<&str>> = names.iter().map(|n| (n.as_str(), Vec::new())).collect();
            for (a, b) in edges.into_iter().filter(|(a, b)| a != b) {
                services.get_mut(&*names[a.max(b)]).unwrap().push(&names[a.min(b)]);
            }
            let order = start_order(&services).unwrap();
            prop_assert_eq!(order.len(), services.len());
            let at = |name: &str| order.iter().position(|n| n == name).unwrap();
            for (service, needed) in &services {
                prop_assert!(needed.iter().all(|n| at(n) < at(service)));
            }
        }
    }
}
