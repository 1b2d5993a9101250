//! The most recent events, numbered, and their subscribers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

use super::event::{Event, events_of};
use crate::model::{Commit, Kind};

/// Number of events that are kept.
pub const KEPT: usize = 4096;

/// The most recent events. Clones share them.
#[derive(Debug, Clone)]
pub struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    /// Wakes subscribers that have read everything.
    more: Notify,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    capacity: usize,
    /// Number of the first event that is kept, or of the next one if there is none.
    first: u64,
}

/// The events that a client wants. An empty list matches every event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Any of these kinds.
    pub kinds: Vec<Kind>,
    /// Any of these ids or names.
    pub objects: Vec<String>,
}

/// An item of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// An object changed.
    Event(Arc<Event>),
    /// The events between the client's number and the next item are no longer available.
    Reset,
    /// The client was too slow: at least that many events are missing here, wanted or not.
    Lagged(u64),
}

/// A client's position in the events.
#[derive(Debug)]
pub struct Subscription {
    shared: Arc<Shared>,
    filter: Filter,
    /// Number of the last event that was examined.
    seen: u64,
    /// Whether to begin with a reset.
    reset: bool,
}

impl Events {
    /// Empty; keeps the newest `capacity` events.
    pub fn new(capacity: usize) -> Self {
        let started = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(1).max(1);
        Self::beginning_at(started, capacity)
    }

    fn beginning_at(first: u64, capacity: usize) -> Self {
        let ring = Ring {
            events: VecDeque::new(),
            capacity,
            first,
        };
        Self(Arc::new(Shared {
            ring: Mutex::new(ring),
            more: Notify::new(),
        }))
    }

    /// Turns commits of the store into events until `stop`.
    pub async fn run(self, mut commits: broadcast::Receiver<Arc<Commit>>, stop: CancellationToken) {
        loop {
            let received = tokio::select! {
                () = stop.cancelled() => return,
                received = commits.recv() => received,
            };
            match received {
                Ok(commit) => self.add(&commit),
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "events were lost: the store changed faster than they were read");
                    self.lose();
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// The events after number `since`; without it, those from now on.
    pub fn subscribe(&self, since: Option<u64>, filter: Filter) -> Subscription {
        let ring = self.0.ring();
        let newest = ring.next() - 1;
        let known = since.is_none_or(|since| (ring.first - 1..=newest).contains(&since));
        Subscription {
            shared: self.0.clone(),
            filter,
            seen: since.filter(|_| known).unwrap_or(newest),
            reset: !known,
        }
    }

    fn add(&self, commit: &Commit) {
        self.add_all(events_of(commit));
    }

    /// Tells events that are no commits.
    pub fn add_all(&self, events: impl IntoIterator<Item = Event>) {
        let mut ring = self.0.ring();
        events.into_iter().for_each(|event| ring.push(event));
        drop(ring);
        self.0.more.notify_waiters();
    }

    /// Leaves a gap in the numbers, which every subscriber notices.
    fn lose(&self) {
        let mut ring = self.0.ring();
        ring.first = ring.next() + 1;
        ring.events.clear();
        drop(ring);
        self.0.more.notify_waiters();
    }
}

impl Shared {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// Number of the next event.
    fn next(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    fn push(&mut self, event: Event) {
        if self.events.len() == self.capacity {
            self.events.pop_front();
            self.first += 1;
        }
        self.events.push_back(Arc::new(event));
    }
}

impl Filter {
    fn wants(&self, event: &Event) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && (self.objects.is_empty() || self.objects.iter().any(|o| *o == event.id || *o == event.name))
    }
}

impl Subscription {
    /// Number of the last event that the client has seen or filtered out. Resubscribing with it misses nothing.
    pub fn position(&self) -> u64 {
        self.seen
    }

    /// Waits for the next item. Cancel safe.
    pub async fn next(&mut self) -> Item {
        loop {
            let shared = self.shared.clone();
            // Before reading, so that an event in between is noticed.
            let more = shared.more.notified();
            if let Some(item) = self.take() {
                return item;
            }
            more.await;
        }
    }

    fn take(&mut self) -> Option<Item> {
        if std::mem::take(&mut self.reset) {
            return Some(Item::Reset);
        }
        let ring = self.shared.ring();
        if let Some(missed) = ring.first.checked_sub(self.seen + 1).filter(|missed| *missed > 0) {
            self.seen = ring.first - 1;
            return Some(Item::Lagged(missed));
        }
        while let Some(event) = ring.events.get((self.seen + 1 - ring.first) as usize) {
            self.seen += 1;
            if self.filter.wants(event) {
                return Some(Item::Event(event.clone()));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::fixtures::{container, network};
    use crate::model::{Change, Object};

    fn made(number: usize) -> Commit {
        let id = format!("c{number}");
        let object = Object::Container(Arc::new(container(&id, &format!("name{number}"))));
        Commit {
            revision: number as u64,
            at: Timestamp::UNIX_EPOCH,
            changes: vec![Change {
                kind: Kind::Container,
                id,
                old: None,
                new: Some(object),
            }],
        }
    }

    fn events(capacity: usize, count: usize) -> Events {
        let events = Events::beginning_at(1000, capacity);
        (0..count).for_each(|n| events.add(&made(n)));
        events
    }

    /// The items that are available without waiting: ids of events, or the kind of item.
    fn available(subscription: &mut Subscription) -> Vec<String> {
        std::iter::from_fn(|| subscription.take())
            .map(|item| match item {
                Item::Event(event) => event.id.clone(),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn one_reads_on_where_one_left_off() {
        let events = events(4, 3);
        let mut all = events.subscribe(Some(999), Filter::default());
        assert_eq!(available(&mut all), ["c0", "c1", "c2"]);
        assert_eq!(all.position(), 1002);
        let mut rest = events.subscribe(Some(1001), Filter::default());
        assert_eq!(available(&mut rest), ["c2"]);
        let mut new = events.subscribe(None, Filter::default());
        assert!(available(&mut new).is_empty());
        assert_eq!(new.position(), 1002);
        events.add(&made(3));
        assert_eq!(available(&mut new), ["c3"]);
    }

    #[test]
    fn a_number_that_is_not_kept_is_a_reset() {
        // 1002 to 1005 are kept.
        assert_eq!(
            available(&mut events(4, 6).subscribe(Some(1001), Filter::default())).len(),
            4
        );
        for unknown in [0, 998, 1000, 1006, u64::MAX] {
            let events = events(4, 6);
            let mut subscription = events.subscribe(Some(unknown), Filter::default());
            assert_eq!(available(&mut subscription), ["Reset"], "{unknown}");
            assert_eq!(subscription.position(), 1005);
            events.add(&made(9));
            assert_eq!(available(&mut subscription), ["c9"]);
        }
    }

    #[test]
    fn who_is_too_slow_is_told_and_goes_on() {
        let events = events(4, 2);
        let mut slow = events.subscribe(Some(999), Filter::default());
        assert!(matches!(slow.take(), Some(Item::Event(_))));
        (2..8).for_each(|n| events.add(&made(n)));
        assert_eq!(available(&mut slow), ["Lagged(3)", "c4", "c5", "c6", "c7"]);
    }

    #[test]
    fn what_the_daemon_itself_missed_is_a_gap_for_all() {
        let events = events(4, 2);
        let mut one = events.subscribe(None, Filter::default());
        events.lose();
        events.add(&made(5));
        assert_eq!(available(&mut one), ["Lagged(1)", "c5"]);
        assert_eq!(
            available(&mut events.subscribe(Some(1001), Filter::default())),
            ["Reset"]
        );
    }

    #[test]
    fn a_filter_takes_kinds_ids_and_names() {
        let events = events(9, 3);
        let net = Object::Network(Arc::new(network("raind1", "10.166.1.0/24")));
        events.add(&Commit {
            revision: 9,
            at: Timestamp::UNIX_EPOCH,
            changes: vec![Change {
                kind: Kind::Network,
                id: "raind1".into(),
                old: None,
                new: Some(net),
            }],
        });
        let matching = |kinds: &[Kind], objects: &[&str]| {
            let filter = Filter {
                kinds: kinds.to_vec(),
                objects: objects.iter().map(|o| (*o).to_owned()).collect(),
            };
            let mut subscription = events.subscribe(Some(999), filter);
            let found = available(&mut subscription);
            assert_eq!(subscription.position(), 1003, "what is not wanted counts as seen");
            found
        };
        assert_eq!(matching(&[Kind::Network], &[]), ["raind1"]);
        assert_eq!(matching(&[Kind::Network, Kind::Container], &[]).len(), 4);
        assert_eq!(matching(&[], &["c1", "name2"]), ["c1", "c2"]);
        assert_eq!(matching(&[Kind::Container], &["raind1"]), [] as [&str; 0]);
    }

    #[tokio::test]
    async fn events_come_as_they_happen() {
        let (sender, commits) = broadcast::channel(16);
        let events = Events::new(4);
        let stop = CancellationToken::new();
        let run = tokio::spawn(events.clone().run(commits, stop.clone()));
        let mut one = events.subscribe(None, Filter::default());
        for n in 0..3 {
            sender.send(Arc::new(made(n))).unwrap();
            let item = tokio::time::timeout(Duration::from_secs(10), one.next()).await.unwrap();
            assert!(matches!(item, Item::Event(event) if event.id == format!("c{n}")));
        }
        stop.cancel();
        run.await.unwrap();
    }
}
