//! Storms: many clients at work while things break at random, and afterwards the API and the kernel agree, what ran
//! still runs, and nothing is left over.
//!
//! - `driver`: the clients, what may not be lost, and the daemon's deaths
//! - `checker`: whether the API and the kernel agree
//! - `faults`: the same with other things that break
//! - `many`: hundreds at once, with nothing that breaks
//! - `sets`: pods, replica sets and services in a storm
//!
//! Every storm prints its seed and `STORM_SEED` repeats its choices (not the interleaving of its threads).
//! `scripts/storm.sh` runs them longer.

mod checker;
mod driver;
mod faults;
mod many;
mod sets;

use driver::Storm;

use crate::lab_with_busybox;

/// A number from the environment.
fn number<T: std::str::FromStr>(variable: &str, default: T) -> T {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[test]
fn a_daemon_that_is_killed_all_the_time_loses_and_leaves_nothing() {
    let (lab, image) = lab_with_busybox();
    let before = lab.inventory();
    let storm = Storm::new(&lab, &image);
    storm.blow(|| storm.kills(number("STORM_KILLS", 30)));
    storm.assert_no_failures();
    storm.clear();
    lab.assert_unchanged(&before);
}
