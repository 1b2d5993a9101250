use Health::{Healthy, Starting, Unhealthy};
use proptest::prelude::*;

use super::*;
use crate::model::fixtures::tcp_check;

fn check(retries: u32, successes: u32) -> HealthCheck {
    HealthCheck {
        interval: 30,
        retries,
        successes,
        ..tcp_check()
    }
}

/// The state after each answer: `+` a success, `-` a failure, `.` a failure in the start period.
fn told(check: &HealthCheck, answers: &str) -> Vec<Health> {
    let mut tally = Tally::from(Starting);
    let after = answers.chars().map(|answer| {
        tally.note(check, answer == '+', answer == '.');
        tally.health
    });
    after.collect()
}

#[test]
fn failures_in_a_row_make_it_unhealthy_and_one_success_healthy() {
    let told = told(&check(3, 1), "--+--+---+");
    assert_eq!(told[..2], [Starting; 2]);
    assert_eq!(told[2..8], [Healthy; 6]);
    assert_eq!(told[8..], [Unhealthy, Healthy]);
}

#[test]
fn successes_may_be_needed_in_a_row_too() {
    assert_eq!(told(&check(1, 2), "+-++"), [Starting, Unhealthy, Unhealthy, Healthy]);
}

#[test]
fn the_start_period_forgives_until_the_first_success() {
    assert_eq!(
        told(&check(1, 1), "....+."),
        [Starting, Starting, Starting, Starting, Healthy, Unhealthy]
    );
}

#[test]
fn while_it_starts_it_is_asked_more_often() {
    let check = check(3, 1);
    let mut tally = Tally::from(Starting);
    assert_eq!(tally.pause(&check, true), STARTING_INTERVAL);
    assert_eq!(tally.pause(&check, false), Duration::from_secs(30));
    tally.note(&check, true, true);
    assert_eq!(tally.pause(&check, true), Duration::from_secs(30));
}

proptest! {
    /// The result depends only on the last answers: the newest sufficiently long series of equal ones.
    #[test]
    fn the_last_long_row_decides(answers in proptest::collection::vec(any::<bool>(), 0..60), retries in 1u32..5, successes in 1u32..5) {
        let text: String = answers.iter().map(|success| if *success { '+' } else { '-' }).collect();
        let mut expected = Starting;
        for row in answers.chunk_by(|a, b| a == b) {
            let (needed, health) = if row[0] { (successes, Healthy) } else { (retries, Unhealthy) };
            if row.len() >= needed as usize {
                expected = health;
            }
        }
        prop_assert_eq!(told(&check(retries, successes), &text).last().copied().unwrap_or(Starting), expected);
    }
}
