//! The network of a container (`docs/spec/runtime.md` 10): a veth pair, which `create` makes after init exists.
//!
//! The host end is attached to the bridge; the other end is `eth0` in the container's network namespace. The daemon
//! chooses the addresses. This module does not change firewall, forwarding or MTU. A failure leaves nothing behind: the
//! pair is deleted with its host end, and at the latest with the container's namespace.

mod connect;
mod error;
mod netlink;
mod plan;

pub use connect::{connect, disconnect, remove_stale};
pub use error::NetworkError;
pub use plan::{NetworkPlan, plan};
