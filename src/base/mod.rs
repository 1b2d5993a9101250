//! Parts that know nothing of containers: certificates, sockets, times, space on disk, ELF files. They use nothing else of this crate.

pub(crate) mod absent;
pub mod cause;
pub(crate) mod elf;
pub mod pki;
pub mod sockets;
pub mod space;
pub mod time;
