//! What is not about containers: certificates, sockets, times, program files. Uses nothing else of this crate.

pub(crate) mod elf;
pub mod pki;
pub mod sockets;
pub mod time;
