//! Keeps the packet filter as the store says: one task that owns the kernel's rules, and who asks it.

mod desired;
mod enforcer;
mod follow;
mod networks;

pub use desired::desired;
pub use enforcer::{Firewall, Trial};
pub use networks::{Networks, NetworksError};
