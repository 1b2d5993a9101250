//! What isolates and limits the processes of a container.
//!
//! [`plan`] checks a configuration; [`init`] sets up the container's init with libcontainer, and [`exec`] starts further
//! processes in it.

pub mod apparmor;
pub mod cgroup;
pub mod exec;
pub mod init;
pub mod namespaces;
pub mod network;
pub mod plan;
pub mod process;
pub mod rootfs;
pub mod seccomp;
