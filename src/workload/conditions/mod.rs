//! Conditions of objects: derived from their rows and the outcome of recent tries
//! ([`Conditions`](crate::ops::conditions::Conditions)), and the events that report changes.

mod observed;
mod tell;

pub use observed::{all, of_container, of_pod, of_service, of_set};
pub use tell::tell;
