//! The overlay of an image's layers.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use super::error::{RootfsError, system_error};
use crate::config::ImageConfig;

/// Maximum length of mount options: one page.
const MAX_OPTIONS: usize = 4095;

/// Mounts the overlay of an image on `target`. `user_xattr` means that this process is in a user namespace (14.4).
pub fn mount_overlay(image: &ImageConfig, target: &Path, user_xattr: bool) -> Result<(), RootfsError> {
    if image.rootfs_type != "overlay" {
        return Err(RootfsError::Type(image.rootfs_type.clone()));
    }
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map_err(|e| system_error("open layer", path, e))
    };
    let layers = image
        .image_layer
        .iter()
        .map(|layer| open(layer))
        .collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = (open(&image.upper_dir)?, open(&image.work_dir)?);
    // Descriptors are shorter than paths, so 127 layers fit the mount options, and they need no escaping (R11).
    let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lower = layers.iter().map(path).collect::<Vec<_>>().join(":");
    let mut options = format!("lowerdir={lower},upperdir={},workdir={}", path(&upper), path(&work));
    options.push_str(match user_xattr {
        true => ",userxattr",
        // `userxattr` implies these. A changed file must be complete in the upper directory, because a build makes a
        // layer of that directory.
        false => ",redirect_dir=off,metacopy=off",
    });
    if layers.is_empty() || options.len() > MAX_OPTIONS {
        return Err(RootfsError::Layers(layers.len()));
    }
    // The string contains no NUL, only numbers and constants.
    let options = std::ffi::CString::new(options).map_err(std::io::Error::other)?;
    rustix::mount::mount(
        "overlay",
        target,
        "overlay",
        MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .map_err(|e| system_error("mount overlay on", target, e))
}
