//! Storms: many clients at work while things break at random, and afterwards the API and the kernel agree, what ran
//! still runs, and nothing is left over.
//!
//! - `driver`: the clients, what may not be lost, and the daemon's deaths
//! - `checker`: whether the API and the kernel agree
//! - `faults`: the same with other things that break at random
//! - `images`: builds, pushes, loads and prunes in a storm
//! - `sets`: pods, replica sets and services in a storm
//!
//! Every storm prints its seed and `STORM_SEED` repeats its choices (not the interleaving of its threads).
//! `scripts/storm.sh` runs them longer.

pub mod checker;
mod driver;
pub mod faults;
mod images;
mod sets;

use driver::Storm;
use rand::RngExt;

use crate::lab_with_busybox;

/// A number from the environment.
fn number<T: std::str::FromStr>(variable: &str, default: T) -> T {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Draws a seed, unless `STORM_SEED` has one, and prints it: what fails is to be repeated.
fn seed() -> u64 {
    let seed = number("STORM_SEED", rand::rng().random_range(0..1_000_000));
    println!("STORM_SEED={seed}");
    seed
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
