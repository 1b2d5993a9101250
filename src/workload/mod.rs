//! What runs: containers, and everything that is made of them.

pub mod apply;
pub mod balancer;
pub mod bottle;
pub mod build;
pub mod conditions;
pub mod container;
pub mod disk;
pub mod import;
pub mod manifest;
pub mod pod;
pub mod replica_set;
