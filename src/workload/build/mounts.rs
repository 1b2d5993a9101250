//! `RUN --mount`.
//!
//! ```text
//! wanted (checked, sources found) -- hash --> the key of the step
//!                                 -- mount -> directories and files on the host -> the command -> end: removed, or kept
//! ```
//! Read-only files of the context are mounted as they are; those of a stage or image, and what a command may write, are
//! copied into a directory of the step, which goes with it. A cache mount is a directory that stays ([`super::cache`]).

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::cache::{Key, MountLease};
use super::file::{Mount, MountKind, Sharing};
use super::files::{self, Placement, Selection, Sources};
use super::secrets::SecretFiles;
use super::settings::joined;
use super::stage::Stage;
use super::{Build, BuildError, context, drop_elsewhere};
use crate::image::{Layers, Scratch, User};
use crate::ops::lock::KeyGuard;
use crate::ops::task::blocking;
use crate::workload::container::StepMount;

/// Where a secret is by default.
const SECRETS: &str = "/run/secrets";
/// Where a secret for a variable is while its command runs.
const SECRET_VARIABLES: &str = "/run/.build-secret";
/// Mode of a cache mount by default.
const CACHE_MODE: u32 = 0o755;
/// Mode of a file with a secret by default.
const SECRET_MODE: u32 = 0o400;

/// The mounts of a command, before it is known whether it has to run.
pub(super) struct Wanted {
    mounts: Vec<WantedMount>,
    context: Arc<Scratch>,
    cancelled: CancellationToken,
}

struct WantedMount {
    mount: Mount,
    /// Absolute and clean; empty if there is none.
    target: String,
    /// Of `from`; `None` for the context.
    layers: Option<Layers>,
    /// For errors: where the source is.
    place: String,
}

/// What is mounted while a command runs.
pub(super) struct Mounted {
    pub(super) binds: Vec<StepMount>,
    pub(super) tmpfs: Vec<String>,
    scratch: Arc<Scratch>,
    files: usize,
    places: Vec<PathBuf>,
    /// Variables that are secrets, and where their files are.
    variables: Vec<(String, String)>,
    secrets: Option<SecretFiles>,
    leases: Vec<MountLease>,
    /// Of caches that one command has at a time.
    turns: Vec<KeyGuard>,
}

impl Stage<'_> {
    /// Checks the mounts of a command and finds their sources.
    pub(super) async fn wanted(&self, mounts: &[Mount], cwd: &str) -> Result<Wanted, BuildError> {
        let mut wanted = Vec::new();
        for mount in mounts {
            let target = mount.target.as_deref().unwrap_or_default();
            let target = match (mount.kind, target) {
                (MountKind::Secret, "") if mount.env.is_none() => {
                    format!("{SECRETS}/{}", mount.id.as_deref().unwrap_or_default())
                }
                (_, "") => String::new(),
                (_, target) => joined(cwd, target),
            };
            let (layers, place) = match mount.from.as_deref() {
                Some(from) if matches!(mount.kind, MountKind::Bind | MountKind::Cache) => {
                    let (layers, place) = self.layers_of(from).await?;
                    (Some(layers), place)
                }
                _ => (None, self.build.place.clone()),
            };
            let checked = WantedMount {
                mount: mount.clone(),
                target,
                layers,
                place,
            };
            if self.build.takes(&checked)? {
                wanted.push(checked);
            }
        }
        Ok(Wanted {
            mounts: wanted,
            context: self.build.context.clone(),
            cancelled: self.build.cancelled.clone(),
        })
    }
}

impl Build {
    /// Whether there is something to mount. What cannot be is an error, unless the mount is optional.
    fn takes(&self, wanted: &WantedMount) -> Result<bool, BuildError> {
        let mount = &wanted.mount;
        let refused = |why: &str| Err(BuildError::Refused(format!("--mount={}: {why}", mount.text)));
        if wanted.target.contains(':') {
            return refused("a target with a colon is not supported");
        }
        match mount.kind {
            MountKind::Ssh if mount.required => refused(
                "ssh agents cannot be forwarded to this daemon; give the key as a secret, or clone into the context",
            ),
            MountKind::Ssh => Ok(false),
            MountKind::Secret => {
                if let Some(name) = mount.env.as_deref().filter(|name| !is_variable(name)) {
                    return refused(&format!("{name:?} cannot be the name of a variable"));
                }
                let id = mount.id.clone().unwrap_or_default();
                match self.request.secrets.get(&id) {
                    None if mount.required => Err(BuildError::NoSecret(id)),
                    found => Ok(found.is_some()),
                }
            }
            MountKind::Cache if mount.from.is_none() && mount.source.is_some() => {
                refused("the source of a cache is a path in what from names; add from, or leave source out")
            }
            _ if wanted.target == "/" => refused("nothing can be mounted over the root of the container"),
            _ => Ok(true),
        }
    }
}

fn is_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl Wanted {
    /// Adds what the mounts mean for the result of the command: words, and contents of bind mounts. The contents of caches
    /// and secrets do not count.
    pub(super) async fn hash(&self, mut key: Key) -> Result<String, BuildError> {
        key.add((self.mounts.len() as u64).to_le_bytes());
        for wanted in &self.mounts {
            let mount = &wanted.mount;
            key.add(format!("{:?} {:?} {:?}", mount.kind, mount.env, mount.size));
            key.add(&wanted.target);
            key.add(mount.id.as_deref().unwrap_or_default());
            key.add(format!(
                "{} {:?} {:?} {:?}",
                mount.readonly, mount.mode, mount.uid, mount.gid
            ));
            if mount.kind == MountKind::Bind {
                key = self.hash_files(key, wanted).await?;
            }
        }
        Ok(key.finish())
    }

    async fn hash_files(&self, mut key: Key, wanted: &WantedMount) -> Result<Key, BuildError> {
        let hash = move |sources: Sources<'_>| {
            files::hash(&mut key, &[sources], &as_it_is("/"))?;
            Ok(key)
        };
        self.read(wanted, hash).await
    }

    /// Calls `work` with the files that are the source of a mount.
    async fn read<T: Send + 'static>(
        &self,
        wanted: &WantedMount,
        work: impl FnOnce(Sources<'_>) -> Result<T, BuildError> + Send + 'static,
    ) -> Result<T, BuildError> {
        let (selection, place) = (wanted.selection(), wanted.place.clone());
        let cancelled = self.cancelled.clone();
        let read = move |root: &Path| {
            work(Sources {
                root,
                place: &place,
                selection: &selection,
                keeps_owners: true,
                cancelled: &cancelled,
            })
        };
        let context = self.context.clone();
        match &wanted.layers {
            Some(layers) => layers.read(read).await,
            None => blocking(move || read(context.path())).await,
        }
    }

    /// Makes everything that is mounted.
    pub(super) async fn mount(self, build: &Build, user: &User) -> Result<Mounted, BuildError> {
        let scratch = build.service.0.images.scratch().await?;
        let mut mounted = Mounted {
            binds: Vec::new(),
            tmpfs: Vec::new(),
            scratch: Arc::new(scratch),
            files: 0,
            places: Vec::new(),
            variables: Vec::new(),
            secrets: None,
            leases: Vec::new(),
            turns: Vec::new(),
        };
        // In one order everywhere, so that commands that share several caches do not wait for each other.
        let locked = self
            .mounts
            .iter()
            .filter(|wanted| wanted.mount.sharing == Sharing::Locked);
        for key in locked.map(WantedMount::cache_key).collect::<BTreeSet<_>>() {
            let lock = format!("cache mount {key}");
            let turn = tokio::select! {
                turn = build.service.0.locks.lock(&lock) => turn,
                () = build.cancelled.cancelled() => return Err(BuildError::Cancelled),
            };
            mounted.turns.push(turn);
        }
        for wanted in &self.mounts {
            match wanted.mount.kind {
                MountKind::Bind => mounted.add_files(&self, wanted).await?,
                MountKind::Cache => mounted.add_cache(build, &self, wanted).await?,
                MountKind::Tmpfs => mounted.add_tmpfs(wanted),
                MountKind::Secret => mounted.add_secret(build, wanted, user)?,
                MountKind::Ssh => {}
            }
        }
        Ok(mounted)
    }

    /// Copies the source of a mount to a path that does not exist yet.
    async fn copy(&self, wanted: &WantedMount, to: PathBuf) -> Result<(), BuildError> {
        let copy = move |sources: Sources<'_>| {
            let parent = to.parent().unwrap_or(&to);
            let name = to.file_name().unwrap_or_default().to_string_lossy();
            files::copy(parent, &[sources], &as_it_is(&format!("/{name}")))
        };
        self.read(wanted, copy).await
    }
}

impl WantedMount {
    /// Which cache mount it is.
    fn cache_key(&self) -> String {
        match self.mount.id.as_deref() {
            None | Some("") => self.target.clone(),
            Some(id) => id.to_owned(),
        }
    }

    fn selection(&self) -> Selection {
        Selection::exactly(self.mount.source.as_deref().unwrap_or_default())
    }
}

/// Copies keep their owners and modes.
fn as_it_is(destination: &str) -> Placement {
    Placement {
        destination: destination.to_owned(),
        into: false,
        owner: None,
        mode: None,
    }
}

impl Mounted {
    /// The places in the container.
    pub(super) fn places(&self) -> Vec<PathBuf> {
        self.places.clone()
    }

    /// Mounts a file or directory of the host.
    pub(super) fn bind(&mut self, source: PathBuf, target: PathBuf, read_only: bool) -> Result<(), BuildError> {
        self.places.push(target.clone());
        // The runtime refuses links on the way.
        let parent = fs_err::canonicalize(source.parent().unwrap_or(&source))?;
        let source = parent.join(source.file_name().unwrap_or_default());
        self.binds.push(StepMount {
            source,
            target,
            read_only,
        });
        Ok(())
    }

    /// A path for something of this command only.
    fn place(&mut self) -> PathBuf {
        self.files += 1;
        self.scratch.path().join(self.files.to_string())
    }

    /// A file for this command only.
    pub(super) fn file(&mut self, content: &[u8], mode: u32) -> Result<PathBuf, BuildError> {
        let path = self.place();
        fs_err::write(&path, content)?;
        fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        Ok(path)
    }

    async fn add_files(&mut self, all: &Wanted, wanted: &WantedMount) -> Result<(), BuildError> {
        let mount = &wanted.mount;
        let source = match wanted.layers.is_none() && mount.readonly {
            true => in_context(all.context.path(), mount.source.as_deref(), &wanted.place)?,
            false => {
                let copy = self.place();
                all.copy(wanted, copy.clone()).await?;
                copy
            }
        };
        self.bind(source, (&wanted.target).into(), mount.readonly)
    }

    async fn add_cache(&mut self, build: &Build, all: &Wanted, wanted: &WantedMount) -> Result<(), BuildError> {
        let mount = &wanted.mount;
        let service = &build.service.0;
        let key = wanted.cache_key();
        let attributes = (
            mount.mode.unwrap_or(CACHE_MODE),
            (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0)),
        );
        let alone = mount.sharing == Sharing::Private;
        let images = &service.images;
        let lease = service.mounts.lease(images, &key, &key, alone, attributes).await?;
        let (path, is_new) = (lease.path.clone(), lease.is_new);
        self.leases.push(lease);
        if wanted.layers.is_some() && is_new {
            all.copy(wanted, path.clone()).await?;
        }
        self.bind(path, (&wanted.target).into(), mount.readonly)
    }

    fn add_tmpfs(&mut self, wanted: &WantedMount) {
        let size = wanted
            .mount
            .size
            .map(|size| format!(",size={size}"))
            .unwrap_or_default();
        self.places.push((&wanted.target).into());
        self.tmpfs
            .push(format!("{}:exec,notmpcopyup,mode=1777{size}", wanted.target));
    }

    fn add_secret(&mut self, build: &Build, wanted: &WantedMount, user: &User) -> Result<(), BuildError> {
        let mount = &wanted.mount;
        let value = build.request.secrets.get(mount.id.as_deref().unwrap_or_default());
        let Some(value) = value else { return Ok(()) };
        if self.secrets.is_none() {
            self.secrets = Some(SecretFiles::new(&build.service.0.settings.secret_dir)?);
        }
        let mut add = |mode, owner| match &mut self.secrets {
            Some(files) => Ok(files.add(&value, mode, owner)?),
            None => Err(BuildError::NothingToRun),
        };
        let variable = mount.env.as_ref();
        let of_variable = variable.map(|_| add(SECRET_MODE, (user.uid, user.gid))).transpose()?;
        let of_target = (!wanted.target.is_empty()).then(|| {
            let owner = (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0));
            add(mount.mode.unwrap_or(SECRET_MODE), owner)
        });
        let of_target = of_target.transpose()?;
        if let Some((path, variable)) = of_variable.zip(variable) {
            let target = format!("{SECRET_VARIABLES}-{}", self.variables.len());
            self.bind(path, (&target).into(), true)?;
            self.variables.push((variable.clone(), target));
        }
        match of_target {
            Some(path) => self.bind(path, (&wanted.target).into(), true),
            None => Ok(()),
        }
    }

    /// The command with its secret variables. They are read by a shell in the container: what a container's environment
    /// is, the daemon stores.
    pub(super) fn wrapped(&self, args: Vec<String>) -> Vec<String> {
        if self.variables.is_empty() {
            return args;
        }
        let exports = self.variables.iter();
        let exports: String = exports
            .map(|(name, path)| format!("{name}=\"$(cat '{path}')\" || exit 1; export {name}; "))
            .collect();
        let line = format!("{exports}exec \"$@\"");
        let shell = ["/bin/sh", "-c", &line, "sh"].map(str::to_owned);
        shell.into_iter().chain(args).collect()
    }

    /// Removes what was only for the command, and records the use of caches.
    pub(super) async fn end(self, build: &Build) {
        for lease in self.leases {
            if let Err(error) = lease.end(&build.service.0.images).await {
                tracing::warn!(%error, "the use of a cache mount cannot be recorded");
            }
        }
        drop((self.secrets, self.turns));
        drop_elsewhere(self.scratch).await;
    }
}

/// The real path of something in the context.
fn in_context(root: &Path, source: Option<&str>, place: &str) -> Result<PathBuf, BuildError> {
    let source = source.unwrap_or_default();
    let missing = || BuildError::NoSource {
        path: source.to_owned(),
        place: place.to_owned(),
    };
    let clean = context::clean_within(source).ok_or_else(missing)?;
    let opened = context::open(root, &clean).map_err(|_| missing())?;
    let path = fs_err::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()))?;
    let root = fs_err::canonicalize(root)?;
    match path.starts_with(root) {
        true => Ok(path),
        false => Err(missing()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_variables() {
        assert!(is_variable("TOKEN_1") && is_variable("_x"));
        for name in ["", "1x", "a b", "a=b", "a;b", "é"] {
            assert!(!is_variable(name), "{name}");
        }
    }

    #[test]
    fn a_source_stays_within_the_context() {
        let place = tempfile::tempdir().unwrap();
        let context = place.path().join("context");
        std::fs::create_dir_all(context.join("a")).unwrap();
        std::fs::create_dir(place.path().join("outside")).unwrap();
        std::os::unix::fs::symlink("/a", context.join("link")).unwrap();
        std::os::unix::fs::symlink(place.path().join("outside"), context.join("out")).unwrap();
        let root = std::fs::canonicalize(&context).unwrap();
        assert_eq!(in_context(&context, Some("link"), "").unwrap(), root.join("a"));
        assert_eq!(in_context(&context, None, "").unwrap(), root);
        for source in ["out", "../outside", "none"] {
            in_context(&context, Some(source), "").unwrap_err();
        }
    }
}
