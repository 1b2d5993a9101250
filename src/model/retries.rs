//! Counts restarts and decides whether a container counts as stable. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::{Container, Retries};

/// A run of this length resets the count of restarts.
const LONG_RUN: Duration = Duration::from_secs(10);

/// How many restarts there were since the last long run. An attempt that did not start keeps the times of the run
/// before it.
pub fn in_a_row(c: &Container, started_at: Timestamp) -> u32 {
    let led_to_a_run = c.journal.retries.last.is_none_or(|last| last <= started_at);
    let ran_long = c
        .status
        .stopped_at
        .is_some_and(|stopped_at| stopped_at.duration_since(started_at) >= LONG_RUN.try_into().unwrap_or_default());
    if led_to_a_run && ran_long {
        0
    } else {
        c.journal.retries.in_a_row
    }
}

/// Counts a restart that is about to be attempted.
pub fn count(c: &mut Container, now: Timestamp) {
    let in_a_row = c.status.started_at.map_or(0, |started_at| in_a_row(c, started_at));
    c.status.restarts = c.status.restarts.saturating_add(1);
    c.journal.retries = Retries {
        in_a_row: in_a_row.saturating_add(1),
        last: Some(now),
    };
}

/// Until when a running container does not count as stable, because it exited by itself and has not run for long since.
/// `None` if it is stable.
pub fn steady_from(c: &Container) -> Option<Timestamp> {
    let started_at = c.status.started_at.filter(|_| c.journal.retries.in_a_row > 0)?;
    started_at.checked_add(LONG_RUN).ok()
}
