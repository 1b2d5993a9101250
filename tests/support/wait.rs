//! Waiting: for a condition, never for a time. Who waits in vain is told for what, and what was there instead.

use std::fmt::{Debug, Display};
use std::time::{Duration, Instant};

/// Longer than anything takes that should happen at once, on a machine that does other things too.
pub const SOON: Duration = Duration::from_secs(30);

/// Asks again and again until the answer is `Ok`; panics with the last answer when the time is over.
#[track_caller]
pub fn wait_for<T, E: Display>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T, E>) -> T {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(found) => return found,
            Err(last) => std::thread::sleep(pause(what, limit, begun, &last)),
        }
    }
}

/// [`wait_for`] in a test whose other tasks have to go on meanwhile.
pub async fn wait_for_async<T, E: Display>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T, E>) -> T {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(found) => return found,
            Err(last) => tokio::time::sleep(pause(what, limit, begun, &last)).await,
        }
    }
}

/// An answer for [`wait_for`]: what was seen, if it is as it should be.
pub fn when<T: Debug>(seen: T, is_so: impl FnOnce(&T) -> bool) -> Result<T, String> {
    if is_so(&seen) {
        Ok(seen)
    } else {
        Err(format!("{seen:?}"))
    }
}

/// Short at first; what takes long is asked less often, because asking costs it the processor.
#[track_caller]
fn pause(what: &str, limit: Duration, begun: Instant, last: &dyn Display) -> Duration {
    let waited = begun.elapsed();
    assert!(waited < limit, "waited {limit:?} for {what}; last seen: {last}");
    (waited / 20).clamp(Duration::from_millis(5), Duration::from_millis(100))
}
