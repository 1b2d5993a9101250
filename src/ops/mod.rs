//! How operations are carried out: one lock per object, tasks that outlive their client, and controllers that keep what is
//! and what should be the same.

pub mod controller;
pub mod lock;
pub mod task;
