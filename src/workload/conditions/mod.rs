//! Conditions of objects: what follows from their rows, joined with what was last tried
//! ([`Conditions`](crate::ops::conditions::Conditions)), and the events that tell of changes.

mod observed;
mod tell;

pub use observed::{all, of_container, of_pod, of_service, of_set};
pub use tell::tell;
