//! The root file system of a container, set up in a mount namespace of the monitor (`docs/spec/runtime.md` 9.2, 16.5).
//!
//! The overlay is mounted with the host's privileges, which it needs to mark directories opaque (R2). Bind mounts are
//! attached to a private directory from checked descriptors and with their final flags, so that no unprivileged user of
//! the host can change what is mounted. Then the monitor returns to the host's mount namespace, and only the namespace
//! of the container keeps the mounts.

pub mod bind;
pub mod cgroup_mount;
mod copy_up;
pub mod error;
pub mod image_paths;
pub mod mount_namespace;
pub mod mount_points;
pub mod overlay;
pub mod passwd;
pub mod resolve;
pub mod shm;
pub mod tmpfs;
