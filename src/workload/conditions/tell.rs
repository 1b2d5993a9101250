//! Sends events when something begins or ceases to be wrong.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_util::sync::CancellationToken;

use super::observed::{all, exists};
use crate::observe::events::{Event, Events};
use crate::ops::conditions::{Condition, Conditions, Observed, Status};
use crate::ops::controller::RESYNC;
use crate::store::Store;

/// Collects changes for this time. Shorter problems are not reported.
const PAUSE: Duration = Duration::from_millis(100);

/// Until `stop`, compares all conditions with the reported ones and sends events: after each change, and every
/// [`RESYNC`] for changes caused by time alone. Forgets the conditions of deleted objects.
pub async fn tell(store: Store, known: Conditions, events: Events, stop: CancellationToken) {
    let mut commits = store.subscribe();
    let mut resync = tokio::time::interval(RESYNC);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = resync.tick() => {}
            () = known.changed() => {}
            commit = commits.recv() => if matches!(commit, Err(RecvError::Closed)) { return },
        }
        // Drain the queue: the comparison below covers all changes.
        while matches!(commits.try_recv(), Ok(_) | Err(TryRecvError::Lagged(_))) {}
        let snapshot = known.retain(|| store.snapshot(), |snapshot, kind, id| exists(snapshot, kind, id));
        let now = all(&snapshot, &known);
        let before = known.remember(now.clone());
        let gone = |old: &Observed| exists(&snapshot, old.kind, &old.id).then(|| cleared(old));
        events.add_all(news(&before, &now, gone));
        if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
            return;
        }
    }
}

/// The event for a failed condition that has disappeared.
fn cleared(old: &Observed) -> Observed {
    let condition = Condition::new(old.condition.kind, Status::True, "Cleared", "", Timestamp::now());
    Observed {
        condition,
        ..old.clone()
    }
}

/// The events between two observations.
fn news(before: &[Observed], now: &[Observed], gone: impl Fn(&Observed) -> Option<Observed>) -> Vec<Event> {
    let old: HashMap<_, _> = before.iter().map(|o| (o.key(), o)).collect();
    let is_wrong = |o: &Observed| o.condition.status == Status::False;
    let mut seen = HashSet::new();
    let mut events = Vec::new();
    for new in now {
        let known = old.get(&new.key()).copied();
        seen.insert(new.key());
        let same = known.is_some_and(|known| known.condition.says(&new.condition));
        if !same && (is_wrong(new) || known.is_some_and(is_wrong)) {
            events.push(Event::of_condition(new.clone()));
        }
    }
    let vanished = before.iter().filter(|o| is_wrong(o) && !seen.contains(&o.key()));
    events.extend(vanished.filter_map(gone).map(Event::of_condition));
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Kind;
    use crate::ops::conditions::ConditionType;
    use crate::ops::conditions::ConditionType::{Ready, Started};

    fn observed(id: &str, kind: ConditionType, status: Status, reason: &str) -> Observed {
        Observed {
            kind: Kind::Pod,
            id: id.into(),
            name: id.into(),
            condition: Condition::new(kind, status, reason, "", Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn what_begins_and_ceases_to_be_wrong_is_told() {
        let told = |before: &[Observed], now: &[Observed]| {
            let events = news(before, now, |old| (old.id != "gone").then(|| cleared(old)));
            let said = events.into_iter().map(|event| {
                let condition = event.condition.unwrap();
                format!("{} {:?} {}", event.id, condition.status, condition.reason)
            });
            said.collect::<Vec<_>>()
        };
        let (fine, wrong) = (
            observed("a", Ready, Status::True, "ContainersReady"),
            observed("a", Ready, Status::False, "ErrImagePull"),
        );
        let other = observed("a", Ready, Status::False, "CrashLoopBackOff");
        let early = observed("a", Ready, Status::Unknown, "Starting");
        assert_eq!(told(&[], std::slice::from_ref(&fine)), [""; 0], "a quiet life");
        assert_eq!(told(std::slice::from_ref(&early), std::slice::from_ref(&fine)), [""; 0]);
        assert_eq!(told(&[early], std::slice::from_ref(&wrong)), ["a False ErrImagePull"]);
        assert_eq!(
            told(std::slice::from_ref(&wrong), std::slice::from_ref(&wrong)),
            [""; 0]
        );
        assert_eq!(
            told(std::slice::from_ref(&wrong), &[other]),
            ["a False CrashLoopBackOff"]
        );
        assert_eq!(told(&[wrong], &[fine]), ["a True ContainersReady"]);
        let start = observed("a", Started, Status::False, "RunContainerError");
        assert_eq!(told(&[start], &[]), ["a True Cleared"]);
        let gone = observed("gone", Started, Status::False, "RunContainerError");
        assert_eq!(told(&[gone], &[]), [""; 0], "its removal is told");
    }
}
