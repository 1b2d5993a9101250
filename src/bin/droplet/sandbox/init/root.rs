//! Mounts the root file system of a container and writes the bundle for libcontainer.

use std::path::{Path, PathBuf};

use condenser::runtime::dir::ContainerDir;

use super::bundle::{self, Host};
use super::error::InitError;
use crate::container::files::replace;
use crate::sandbox::cgroup::{self, Cgroup};
use crate::sandbox::namespaces;
use crate::sandbox::plan::Plan;
use crate::sandbox::process::program::Program;
use crate::sandbox::rootfs::bind::{Bind, attach_mounts};
use crate::sandbox::rootfs::error::RootfsError;
use crate::sandbox::rootfs::passwd::home_directory;
use crate::sandbox::rootfs::resolve::resolve;
use crate::sandbox::rootfs::shm::SharedMemory;
use crate::sandbox::rootfs::tmpfs::{self, StagedTmpfs};
use crate::sandbox::rootfs::{cgroup_mount, image_paths, mount_points, overlay};

/// A root file system that is ready for libcontainer.
#[derive(Debug)]
pub struct Root {
    /// The program with its complete environment.
    pub program: Program,
    /// Whether libcontainer changes to the working directory.
    pub in_working_directory: bool,
}

/// The mounts inside the root file system.
struct Mounts {
    etc: Vec<Bind>,
    tmpfs: Vec<StagedTmpfs>,
    binds: Vec<Bind>,
    shm: Option<Bind>,
    cgroup: Option<Bind>,
}

/// Mounts the root file system and writes libcontainer's bundle. `limits` tells whether libcontainer sets the limits.
pub fn prepare_root(plan: &Plan, shared: Option<&SharedMemory>, limits: bool) -> Result<Root, InitError> {
    let root = &plan.config.root.path;
    if let Some(image) = &plan.image {
        overlay::mount_overlay(image, root, namespaces::in_user_namespace())?;
        image_paths::make_shared_directories(root)?;
        image_paths::ensure_mtab(root)?;
    }
    let mounts = prepare_mounts(plan, shared)?;
    check_mount_points(root, &mounts)?;
    let in_working_directory = ensure_working_directory(plan, &mounts);
    write_bundle(plan, &mounts, in_working_directory, limits)?;

    let process = &plan.config.process;
    let mut env = process.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", home_directory(root, process.user.uid)));
    }
    Ok(Root {
        program: Program::new(&process.args, &env)?,
        in_working_directory,
    })
}

fn prepare_mounts(plan: &Plan, shared: Option<&SharedMemory>) -> Result<Mounts, InitError> {
    let root = &plan.config.root.path;
    let run = plan.container.run_dir();
    let directory = run.join("mounts");
    // Make these files first: a tmpfs may copy them from the image.
    let etc = etc_files(plan)?;
    let memory = plan.config.linux.resources.memory.limit.filter(|limit| *limit > 0);
    let memory = memory.map_or(u64::MAX, |limit| limit as u64);
    let cgroup = Cgroup::new(&plan.config, &plan.container.id)?;
    Ok(Mounts {
        etc,
        tmpfs: tmpfs::mount_all(&plan.tmpfs, &directory, root, memory)?,
        binds: attach_mounts(&plan.mounts, &plan.policy, root, &directory)?,
        shm: shared.map(|shared| shared.attach(&run.join("shm"))).transpose()?,
        cgroup: cgroup_mount::prepare(&cgroup, &run.join("cgroup"))?,
    })
}

/// Checks the mounts in the order in which they are mounted.
fn check_mount_points(root: &Path, mounts: &Mounts) -> Result<(), RootfsError> {
    let tmpfs: Vec<Bind> = mounts.tmpfs.iter().map(StagedTmpfs::to_bind).collect();
    let mut user_mounts: Vec<&Bind> = tmpfs.iter().chain(&mounts.binds).collect();
    user_mounts.sort_by_key(|bind| bind.destination.components().count());
    mount_points::check(root, mounts.etc.iter().chain(user_mounts)).map_err(RootfsError::MountPoint)
}

/// Makes the working directory if possible. Returns whether libcontainer can change to it.
fn ensure_working_directory(plan: &Plan, mounts: &Mounts) -> bool {
    let cwd = &plan.config.process.cwd;
    let binds = mounts.binds.iter().map(|bind| (&*bind.destination, &*bind.source));
    let tmpfs = mounts.tmpfs.iter().map(|tmpfs| (&*tmpfs.destination, &*tmpfs.source));
    let mounted: Vec<(&Path, &Path)> = binds.chain(tmpfs).collect();
    cwd.is_absolute() && image_paths::ensure_directory(&plan.config.root.path, cwd, &mounted, plan.image.is_some())
}

fn write_bundle(plan: &Plan, mounts: &Mounts, in_working_directory: bool, limits: bool) -> std::io::Result<()> {
    let spec = bundle::spec(
        &plan.config,
        &Host {
            unified_cgroups: cgroup::unified(),
            limits,
            cgroup: &plan.cgroup,
            terminal: plan.tty,
            cwd: if in_working_directory {
                &plan.config.process.cwd
            } else {
                Path::new("/")
            },
            joined: &plan.joined,
            binds: &mounts.binds,
            tmpfs: &mounts.tmpfs,
            etc: &mounts.etc,
            cgroup_mount: mounts.cgroup.as_ref(),
            shm: mounts.shm.as_ref(),
        },
    );
    let directory = plan.container.run_dir().join("bundle");
    fs_err::create_dir_all(&directory)?;
    replace(&directory.join("config.json"), spec.to_string().as_bytes(), 0o600)
}

/// Returns the existing files of the container's directory and their destinations in the image.
fn etc_files(plan: &Plan) -> std::io::Result<Vec<Bind>> {
    let root = &plan.config.root.path;
    container_etc_files(&plan.container.dir)
        .into_iter()
        .filter(|(source, _)| source.exists())
        .map(|(source, destination)| {
            Ok(Bind {
                source,
                destination: match plan.image {
                    Some(_) => image_paths::ensure_file(root, destination.as_ref())?,
                    None => resolve(root, destination.as_ref())?,
                },
            })
        })
        .collect()
}

/// Returns the files of the container's directory that are mounted over those of the image (9.3, 14 to 16).
fn container_etc_files(dir: &ContainerDir) -> [(PathBuf, &'static str); 3] {
    ["/etc/resolv.conf", "/etc/hostname", "/etc/hosts"].map(|destination| {
        let name = destination.trim_start_matches("/etc/");
        (dir.etc().join(name), destination)
    })
}
