//! The text of a container's `/etc/hosts`. Pure.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::membership::place_of;
use crate::model::{Container, Snapshot};

/// The text of `/etc/hosts`.
pub(super) fn hosts(container: &Container, address: Option<Ipv4Addr>, services: &str) -> String {
    let name = host_name(container);
    let own = address.map(|address| format!("{address} {name}\n"));
    format!("127.0.0.1 localhost\n{}{services}", own.unwrap_or_default())
}

pub(super) fn host_name(container: &Container) -> &str {
    container.spec.options.hostname.as_ref().unwrap_or(&container.id)
}

/// The `/etc/hosts` lines of all services of the container's bottle, including its own, that have an address.
pub(super) fn hosts_of_services(snapshot: &Snapshot, container: &Container) -> String {
    let mut lines = String::new();
    let bottle = container.role.bottle().and_then(|id| snapshot.bottles().get(id));
    for (service, id) in bottle.iter().flat_map(|bottle| &bottle.containers) {
        let member = snapshot.containers().get(id);
        if let Some((member, place)) = member.and_then(|member| Some((member, place_of(snapshot, member)?))) {
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{} {service} {}", place.address, member.name);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Role;
    use crate::model::fixtures::{bottle, container};

    #[test]
    fn services_with_an_address_are_in_hosts() {
        let member = |id: &str, name: &str| {
            let mut member = container(id, name);
            member.role = Role::Service { bottle: "b1".into() };
            member
        };
        let snapshot = Snapshot::build(|t| {
            let mut blog = bottle("b1", "blog", &["db", "web", "gone", "later"]);
            for (service, id) in [("db", "a"), ("web", "b"), ("gone", "c")] {
                blog.containers.insert(service.into(), id.into());
            }
            t.put(blog).unwrap();
            t.put(member("a", "blog-db").address("10.166.1.1")).unwrap();
            t.put(member("b", "blog-web").address("10.166.1.2")).unwrap();
            t.put(container("d", "other").address("10.166.0.1")).unwrap();
        });
        let lines = |id: &str| hosts_of_services(&snapshot, snapshot.containers().get(id).unwrap());
        assert_eq!(lines("a"), "10.166.1.1 db blog-db\n10.166.1.2 web blog-web\n");
        assert_eq!(lines("b"), lines("a"));
        assert_eq!(lines("d"), "");
    }
}
