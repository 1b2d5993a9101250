//! Conditions: tell clients why an object is not in its desired state ([decision
//! 18](../../docs/decisions/0018-conditions-are-observed.md)).
//!
//! ```text
//! what a controller last tried  --fail, succeed--> Conditions (in memory) --\
//! rows: exits, back-off, probes, ready pods --------------------------------+--> observed --> API, metrics
//!                                                                                    \--> tell --> events
//! ```
//!
//! Conditions that follow from rows are computed on demand ([`of_container`], [`of_pod`], …). The result of an attempt,
//! which no row records, is kept in [`Conditions`], outside the store: a restarted daemon tries again.
//!
//! This module never decides anything. No controller reads a condition.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Notify;

use crate::model::{Kind, PolicySettings};

/// The whole rule set, which has no record of its own: it is shown as the policy settings.
pub const RULES: (Kind, &str) = (Kind::PolicySettings, PolicySettings::ID);

/// Longest message, in bytes.
pub const MAX_MESSAGE: usize = 4096 + 512;
/// Most conditions that are kept. True ones are evicted first.
const MAX_KEPT: usize = 16_384;

/// The type of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ConditionType {
    /// It is ready.
    Ready,
    /// Its last start succeeded: for containers and bottles.
    Started,
    /// Its controller's last reconciliation succeeded.
    Reconciled,
    /// No other object holds its host ports: for containers and services.
    Published,
}

impl ConditionType {
    /// All types.
    pub const ALL: [Self; 4] = [Self::Ready, Self::Started, Self::Reconciled, Self::Published];
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "Ready",
            Self::Started => "Started",
            Self::Reconciled => "Reconciled",
            Self::Published => "Published",
        })
    }
}

/// The status of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Status {
    /// True.
    True,
    /// False; the reason says why.
    False,
    /// Unknown so far.
    Unknown,
}

/// One thing that is, or is not, as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its type.
    pub kind: ConditionType,
    /// Its status.
    pub status: Status,
    /// One stable word that says why; Kubernetes' word if there is one.
    pub reason: String,
    /// The reason as a sentence, with the underlying error. Printable, at most [`MAX_MESSAGE`] bytes.
    pub message: String,
    /// When status, reason and message last changed.
    pub changed_at: Timestamp,
    /// Number of consecutive failed attempts; 0 if they are not counted.
    pub tries: u32,
    /// When the next automatic attempt is due, if any.
    pub next_try_at: Option<Timestamp>,
}

impl Condition {
    /// A condition without attempts.
    pub fn new(kind: ConditionType, status: Status, reason: &str, message: &str, changed_at: Timestamp) -> Self {
        Self {
            kind,
            status,
            reason: reason.to_owned(),
            message: printable(message),
            changed_at,
            tries: 0,
            next_try_at: None,
        }
    }

    /// Whether it equals `other` apart from the times.
    pub fn says(&self, other: &Self) -> bool {
        let said = |c: &Self| (c.kind, c.status);
        said(self) == said(other) && (&self.reason, &self.message) == (&other.reason, &other.message)
    }
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One stable word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

impl Failure {
    /// From an error whose type knows the word.
    pub fn new(reason: &'static str, error: &impl fmt::Display) -> Self {
        let message = error.to_string();
        Self { reason, message }
    }
}

/// A condition and the object it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Observed {
    pub kind: Kind,
    pub id: String,
    pub name: String,
    pub condition: Condition,
}

impl Observed {
    /// The key: object and type.
    pub fn key(&self) -> (Kind, String, ConditionType) {
        (self.kind, self.id.clone(), self.condition.kind)
    }
}

/// The last attempts and their results. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Conditions(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    kept: Mutex<Kept>,
    changed: Notify,
}

type Key = (Kind, String, ConditionType);

#[derive(Debug, Default)]
struct Kept {
    revision: u64,
    of: BTreeMap<Key, Condition>,
    /// The conditions last announced, including those computed from rows.
    seen: Vec<Observed>,
    /// When conditions whose start no row records were first seen.
    since: HashMap<Key, Condition>,
}

impl Conditions {
    /// Records a failed attempt. `next` is when it is retried automatically.
    pub fn fail(&self, (kind, id): (Kind, &str), of: ConditionType, failure: &Failure, next: Option<Timestamp>) {
        let now = Timestamp::now();
        self.set(kind, id, of, |before| {
            let failed = before.filter(|known| known.status == Status::False);
            Condition {
                tries: failed.map_or(0, |known| known.tries).saturating_add(1),
                next_try_at: next,
                ..Condition::new(of, Status::False, failure.reason, &failure.message, now)
            }
        });
    }

    /// Records a successful attempt.
    pub fn succeed(&self, (kind, id): (Kind, &str), of: ConditionType) {
        let now = Timestamp::now();
        self.set(kind, id, of, |_| Condition::new(of, Status::True, "Succeeded", "", now));
    }

    /// Forgets a condition.
    pub fn clear(&self, (kind, id): (Kind, &str), of: ConditionType) {
        let mut kept = self.kept();
        if kept.of.remove(&(kind, id.to_owned(), of)).is_some() {
            kept.revision += 1;
            drop(kept);
            self.0.changed.notify_one();
        }
    }

    /// All conditions of an object.
    pub fn of(&self, kind: Kind, id: &str) -> Vec<Condition> {
        let kept = self.kept();
        let known = |of| kept.of.get(&(kind, id.to_owned(), of)).cloned();
        ConditionType::ALL.into_iter().filter_map(known).collect()
    }

    /// One condition of an object.
    pub fn get(&self, kind: Kind, id: &str, of: ConditionType) -> Option<Condition> {
        self.kept().of.get(&(kind, id.to_owned(), of)).cloned()
    }

    #[cfg(test)]
    fn all(&self) -> Vec<(Kind, String, Condition)> {
        let kept = self.kept();
        let entry = |((kind, id, _), condition): (&Key, &Condition)| (*kind, id.clone(), condition.clone());
        kept.of.iter().map(entry).collect()
    }

    /// Takes `view` under the lock and forgets objects that do not exist in it.
    pub fn retain<V>(&self, view: impl FnOnce() -> V, exists: impl Fn(&V, Kind, &str) -> bool) -> V {
        let mut kept = self.kept();
        let (before, view) = (kept.of.len(), view());
        kept.of.retain(|(kind, id, _), _| exists(&view, *kind, id));
        if kept.of.len() != before {
            kept.revision += 1;
        }
        view
    }

    /// Increases with every change, also of the number of attempts.
    pub fn revision(&self) -> u64 {
        self.kept().revision
    }

    /// Returns when a condition has changed since the last call.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// For a condition whose start no row records: it starts when it is first seen.
    pub fn dated(&self, kind: Kind, id: &str, status: Status, reason: &str, message: &str) -> Condition {
        let new = Condition::new(ConditionType::Ready, status, reason, message, Timestamp::now());
        let mut kept = self.kept();
        match kept.since.entry((kind, id.to_owned(), new.kind)) {
            Entry::Occupied(known) if known.get().says(&new) => known.get().clone(),
            entry => entry.insert_entry(new).get().clone(),
        }
    }

    /// Stores the conditions seen now; returns the previous ones.
    pub fn remember(&self, now: Vec<Observed>) -> Vec<Observed> {
        let mut kept = self.kept();
        let keys: HashSet<Key> = now.iter().map(Observed::key).collect();
        kept.since.retain(|key, _| keys.contains(key));
        std::mem::replace(&mut kept.seen, now)
    }

    fn set(&self, kind: Kind, id: &str, of: ConditionType, next: impl FnOnce(Option<&Condition>) -> Condition) {
        let mut kept = self.kept();
        let key = (kind, id.to_owned(), of);
        let before = kept.of.get(&key);
        let mut new = next(before);
        let says_the_same = before.is_some_and(|known| known.says(&new));
        if let Some(known) = before.filter(|_| says_the_same) {
            new.changed_at = known.changed_at;
            if *known == new {
                return;
            }
        } else if before.is_none() && kept.of.len() >= MAX_KEPT && !kept.make_room(&new) {
            return;
        }
        kept.of.insert(key, new);
        kept.revision += 1;
        drop(kept);
        if !says_the_same {
            self.0.changed.notify_one();
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Evict a true condition to make room for a false one.
    fn make_room(&mut self, new: &Condition) -> bool {
        let is_true = |condition: &Condition| condition.status == Status::True;
        let gone = self.of.iter().find(|(_, condition)| is_true(condition));
        let gone = gone.filter(|_| !is_true(new)).map(|(key, _)| key.clone());
        gone.is_some_and(|key| self.of.remove(&key).is_some())
    }
}

/// External text without terminal control characters; line breaks stay. Long text is truncated.
fn printable(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.trim_end().chars() {
        let before = shown.len();
        match letter {
            '\n' | '\t' | '"' | '\'' | '\\' => shown.push(letter),
            letter => shown.extend(letter.escape_debug()),
        }
        if shown.len() > MAX_MESSAGE - 3 {
            shown.truncate(before);
            shown.push_str("...");
            break;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use ConditionType::{Reconciled, Started};

    const POD: (Kind, &str) = (Kind::Pod, "p");

    fn failure(message: &str) -> Failure {
        Failure::new("ErrImagePull", &message)
    }

    #[test]
    fn tries_are_counted_and_the_time_of_change_stays() {
        let known = Conditions::default();
        let next = Some(Timestamp::UNIX_EPOCH);
        known.fail(POD, Reconciled, &failure("no such image"), next);
        let first = known.get(Kind::Pod, "p", Reconciled).unwrap();
        assert_eq!((first.status, first.tries, first.next_try_at), (Status::False, 1, next));
        known.fail(POD, Reconciled, &failure("no such image"), None);
        let second = known.get(Kind::Pod, "p", Reconciled).unwrap();
        assert_eq!((second.tries, second.changed_at), (2, first.changed_at));
        known.fail(POD, Reconciled, &failure("another one"), None);
        assert_eq!(known.get(Kind::Pod, "p", Reconciled).unwrap().tries, 3);
        known.succeed(POD, Reconciled);
        let fine = known.get(Kind::Pod, "p", Reconciled).unwrap();
        assert_eq!((fine.status, fine.tries, &fine.message[..]), (Status::True, 0, ""));
        known.fail(POD, Reconciled, &failure("again"), None);
        assert_eq!(known.get(Kind::Pod, "p", Reconciled).unwrap().tries, 1);
        known.clear(POD, Reconciled);
        assert_eq!(known.of(Kind::Pod, "p"), []);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_says_something_new_is_told() {
        let known = Conditions::default();
        let is_told = async || {
            let told = tokio::time::timeout(std::time::Duration::from_millis(1), known.changed());
            told.await.is_ok()
        };
        known.succeed(POD, Reconciled);
        assert!(is_told().await);
        let revision = known.revision();
        known.succeed(POD, Reconciled);
        assert_eq!((is_told().await, known.revision()), (false, revision));
        known.fail(POD, Reconciled, &failure("no"), None);
        assert!(is_told().await);
        known.fail(POD, Reconciled, &failure("no"), None);
        assert_eq!((is_told().await, known.revision()), (false, revision + 2));
        known.clear(POD, Reconciled);
        assert!(is_told().await);
        known.clear(POD, Reconciled);
        assert!(!is_told().await);
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let known = Conditions::default();
        known.succeed(POD, Reconciled);
        known.succeed((Kind::Container, "p"), Started);
        known.retain(|| Kind::Pod, |kept, kind, _| kind == *kept);
        let left: Vec<_> = known.all().into_iter().map(|(kind, ..)| kind).collect();
        assert_eq!(left, [Kind::Pod]);
    }

    #[test]
    fn a_full_registry_keeps_what_is_wrong() {
        let known = Conditions::default();
        for n in 0..MAX_KEPT + 1 {
            known.succeed((Kind::Pod, &n.to_string()), Reconciled);
        }
        assert_eq!(known.all().len(), MAX_KEPT);
        known.fail(POD, Reconciled, &failure("no"), None);
        assert_eq!(known.all().len(), MAX_KEPT);
        assert!(known.get(Kind::Pod, "p", Reconciled).is_some());
    }

    #[test]
    fn messages_are_printable_and_short() {
        let said = |text: &str| Condition::new(Started, Status::False, "x", text, Timestamp::UNIX_EPOCH).message;
        assert_eq!(said("a\n\"b\" \u{1b}[2J\u{202e}\n"), "a\n\"b\" \\u{1b}[2J\\u{202e}");
        assert_eq!(
            said(&"\u{65e5}".repeat(5000)).len(),
            MAX_MESSAGE - (MAX_MESSAGE - 3) % 3
        );
        assert!(said(&"x".repeat(5000)).ends_with("xx..."));
    }
}
