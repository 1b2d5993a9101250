//! Derives events from commits of the store. Pure.

use jiff::Timestamp;

use crate::model::{Change, Commit, Exit, Health, Kind, Object, PolicySettings};
use crate::ops::conditions;
use crate::ops::conditions::Condition;

/// A change that is visible to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When it was committed.
    pub at: Timestamp,
    /// Kind of the object.
    pub kind: Kind,
    /// Id of the object.
    pub id: String,
    /// Its current or last name.
    pub name: String,
    /// What happened to it.
    pub action: Action,
    /// Its visible state before; `None` if it is new.
    pub old: Option<Observed>,
    /// Its visible state now; `None` if it was removed.
    pub new: Option<Observed>,
    /// What began or ceased to be wrong with it; only with [`Action::Condition`].
    pub condition: Option<Condition>,
}

impl Event {
    /// Something began or ceased to be wrong with an object.
    pub fn of_condition(observed: conditions::Observed) -> Self {
        Self {
            at: Timestamp::now(),
            kind: observed.kind,
            id: observed.id,
            name: observed.name,
            action: Action::Condition,
            old: None,
            new: None,
            condition: Some(observed.condition),
        }
    }
}

/// The kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The object was created.
    Created,
    /// The object changed.
    Changed,
    /// The object was removed.
    Removed,
    /// Something began or ceased to be wrong with it.
    Condition,
}

/// The state of an object that clients can see changes of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    name: String,
    /// State of its life cycle; `None` for kinds without one.
    pub state: Option<String>,
    /// Exit of its last run; `None` for kinds that do not run, before the first exit, and while it runs again.
    pub exit: Option<Exit>,
    /// Health of a container; `None` without a health check and for other kinds.
    pub health: Option<Health>,
    /// All other visible content.
    content: Option<String>,
}

impl Observed {
    fn of(object: &Object) -> Self {
        let plain = |name: &str| Self {
            name: name.to_owned(),
            state: None,
            exit: None,
            health: None,
            content: None,
        };
        match object {
            Object::Container(container) => Self {
                state: Some(container.status.state.to_string()),
                exit: container.status.exit.clone(),
                health: container.status.health,
                ..plain(&container.name)
            },
            Object::Image(image) => Self {
                content: Some(image.manifest_digest.clone()),
                ..plain(&image.id)
            },
            Object::Network(network) => plain(&network.name),
            Object::Bottle(bottle) => plain(&bottle.name),
            Object::Pod(pod) => Self {
                state: Some(pod.goal.to_string()),
                content: pod.problem.as_ref().map(|problem| format!("{problem:?}")),
                ..plain(&pod.name)
            },
            Object::ReplicaSet(set) => Self {
                content: Some(format!("{} {} {:?}", set.template.id, set.replicas, set.selector)),
                ..plain(&set.name)
            },
            Object::Service(service) => Self {
                content: Some(format!("{:?} {:?}", service.ports, service.selector)),
                ..plain(&service.name)
            },
            Object::Policy(policy) => Self {
                state: Some(policy.stage.to_string()),
                ..plain(&policy.id)
            },
            Object::Import(import) => plain(&import.id),
            Object::BuildCacheEntry(entry) => plain(&entry.id),
            Object::PolicySettings(settings) => Self {
                content: Some(format!("{settings:?}")),
                ..plain(PolicySettings::ID)
            },
        }
    }
}

/// The events of a commit.
pub fn events_of(commit: &Commit) -> impl Iterator<Item = Event> + '_ {
    commit.changes.iter().filter_map(|change| event_of(change, commit.at))
}

fn event_of(change: &Change, at: Timestamp) -> Option<Event> {
    // Files that builds keep for themselves are nothing that clients manage.
    if change.kind == Kind::BuildCacheEntry {
        return None;
    }
    let (old, new) = (
        change.old.as_ref().map(Observed::of),
        change.new.as_ref().map(Observed::of),
    );
    let action = match (&old, &new) {
        (None, Some(_)) => Action::Created,
        (Some(_), None) => Action::Removed,
        (Some(before), Some(after)) if before != after => Action::Changed,
        _ => return None,
    };
    Some(Event {
        at,
        kind: change.kind,
        id: change.id.clone(),
        name: new.as_ref().or(old.as_ref())?.name.clone(),
        action,
        old,
        new,
        condition: None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::fixtures::{container, network};
    use crate::model::{Container, ContainerState, Operation};

    fn change(old: Option<Container>, new: Option<Container>) -> Option<Event> {
        let object = |container: Container| Object::Container(Arc::new(container));
        let change = Change {
            kind: Kind::Container,
            id: "a".into(),
            old: old.map(object),
            new: new.map(object),
        };
        event_of(&change, Timestamp::UNIX_EPOCH)
    }

    fn web(state: ContainerState) -> Container {
        container("a", "web").in_state(state)
    }

    #[test]
    fn a_life_of_a_container() {
        let created = change(None, Some(web(ContainerState::Creating))).unwrap();
        assert_eq!((created.action, created.name.as_str()), (Action::Created, "web"));
        assert_eq!(created.new.unwrap().state.as_deref(), Some("creating"));

        let mut ended = web(ContainerState::Stopped);
        ended.status.exit = Some(Exit {
            code: 3,
            reason: "Error".into(),
            message: String::new(),
        });
        let changed = change(Some(web(ContainerState::Running)), Some(ended.clone())).unwrap();
        assert_eq!(changed.action, Action::Changed);
        assert_eq!(changed.old.unwrap().state.as_deref(), Some("running"));
        assert_eq!(changed.new.unwrap().exit.unwrap().code, 3);

        let removed = change(Some(ended), None).unwrap();
        assert_eq!((removed.action, removed.new), (Action::Removed, None));
        assert_eq!(removed.name, "web");
    }

    #[test]
    fn what_nobody_sees_is_no_event() {
        let mut journal = web(ContainerState::Stopped);
        journal.journal.operation = Some(Operation::Delete);
        journal.journal.certificate_due = true;
        assert_eq!(change(Some(web(ContainerState::Stopped)), Some(journal)), None);
    }

    #[test]
    fn a_change_of_health_is_one() {
        let with_health = |health| {
            let mut running = web(ContainerState::Running);
            running.status.health = Some(health);
            Some(running)
        };
        let event = change(with_health(Health::Starting), with_health(Health::Healthy)).unwrap();
        assert_eq!(event.action, Action::Changed);
        assert_eq!(event.new.unwrap().health, Some(Health::Healthy));
    }

    #[test]
    fn a_later_report_of_the_exit_is_one() {
        let exit = |code| {
            let mut ended = web(ContainerState::Stopped);
            ended.status.exit = Some(Exit {
                code,
                reason: "Error".into(),
                message: String::new(),
            });
            Some(ended)
        };
        assert_eq!(change(exit(-1), exit(137)).unwrap().action, Action::Changed);
    }

    #[test]
    fn one_event_per_object_of_a_commit() {
        let network = network("raind1", "10.166.1.0/24");
        let commit = Commit {
            revision: 1,
            at: Timestamp::UNIX_EPOCH,
            changes: vec![
                Change {
                    kind: Kind::Container,
                    id: "a".into(),
                    old: None,
                    new: Some(Object::Container(Arc::new(web(ContainerState::Creating)))),
                },
                Change {
                    kind: Kind::Network,
                    id: "raind1".into(),
                    old: None,
                    new: Some(Object::Network(Arc::new(network))),
                },
            ],
        };
        let seen: Vec<_> = events_of(&commit).map(|event| (event.kind, event.id)).collect();
        assert_eq!(seen, [(Kind::Container, "a".into()), (Kind::Network, "raind1".into())]);
    }
}
