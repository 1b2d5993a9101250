//! The stored objects: plain data, each serialised as one JSON document. The field names are those on disk; a field
//! that is added later needs `#[serde(default)]`, any other change a migration (`database.rs`).

mod bottle;
mod build_cache;
mod container;
mod image;
mod import;
mod network;
mod pod;
mod policy;
mod request;

pub use bottle::*;
pub use build_cache::*;
pub use container::*;
pub use image::*;
pub use import::*;
pub use network::*;
pub use pod::*;
pub use policy::*;
pub use request::*;

#[cfg(test)]
pub(crate) mod fixtures;
