//! How operations are carried out: one lock per object, and controllers that keep what is and what should be the same.

pub mod controller;
pub mod lock;
