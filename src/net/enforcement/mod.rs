//! Keeps the packet filter in sync with the store: one task changes the kernel's rules, the other modules here call it.

mod desired;
mod enforcer;
mod follow;
mod networks;

pub use desired::desired;
pub use enforcer::{Firewall, Trial};
pub use networks::{Networks, NetworksError};
