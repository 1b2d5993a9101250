//! Anonymous volumes: one for each path that the image declares as a volume and nothing of the request covers.
//!
//! ```text
//! row (paths) -> <container>/volumes/<n>, filled from the image -> bundle mounts them -> … -> removed with the container
//! ```
//! They are filled once, between the row and the first bundle. If the daemon dies meanwhile, recovery undoes the whole
//! create. A restart mounts them as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;

use oci_spec::runtime::{Mount, MountBuilder};

use super::{ContainerError, ContainerService, blocking};
use crate::base::cause::Cause;
use crate::image::Copied;
use crate::model::{Container, ContainerRequest, ImageRunConfig, Inherited};
use crate::runtime::dir::ContainerDir;
use crate::runtime::{mounts, tmpfs};

/// Maximum number of volumes that an image may declare. Each is a mount of every container.
const MAX_VOLUMES: usize = 100;
/// Beginning of the names of annotations that are handed to the runtime. Others could change what a runtime does.
const PASSED_ANNOTATIONS: &str = "org.opencontainers.image.";

/// What a container takes over from its image. `annotations` are those of the manifest.
pub(super) fn inherited(
    config: &ImageRunConfig,
    annotations: BTreeMap<String, String>,
    request: &ContainerRequest,
) -> Result<Inherited, ContainerError> {
    let is_passed = |name: &String| name.starts_with(PASSED_ANNOTATIONS);
    Ok(Inherited {
        volumes: anonymous(&config.volumes, request)?,
        exposed_ports: config.exposed_ports.clone(),
        annotations: annotations.into_iter().filter(|(name, _)| is_passed(name)).collect(),
    })
}

/// The declared paths that neither a mount nor a tmpfs of the request covers: one at exactly that path, as in Docker.
fn anonymous(declared: &BTreeSet<String>, request: &ContainerRequest) -> Result<Vec<String>, ContainerError> {
    let of_mounts = request.mounts.iter().filter_map(|text| mounts::parse(text).ok());
    let of_tmpfs = request.options.tmpfs.iter().filter_map(|text| tmpfs::parse(text).ok());
    let covered: BTreeSet<PathBuf> = of_mounts
        .map(|mount| mount.destination)
        .chain(of_tmpfs.map(|tmpfs| tmpfs.destination))
        .collect();
    let mut paths = BTreeSet::new();
    for text in declared {
        match mounts::destination(text) {
            Some(path) => drop(paths.insert(path)),
            // The image works without, as it does where a path of it cannot be mounted.
            None => tracing::warn!(volume = %text, "the image declares a volume where nothing can be mounted"),
        }
    }
    if paths.len() > MAX_VOLUMES {
        let message = format!(
            "the image declares {} volumes; at most {MAX_VOLUMES} are possible",
            paths.len()
        );
        return Err(ContainerError::InvalidOption(message));
    }
    let paths = paths.difference(&covered);
    Ok(paths.map(|path| path.to_string_lossy().into_owned()).collect())
}

impl ContainerService {
    /// Makes the anonymous volumes of a new container, with the content that its image has there. A path that the image
    /// does not have becomes an empty directory of root.
    pub(super) async fn fill_volumes(&self, container: &Container) -> Result<(), ContainerError> {
        let paths = &container.spec.inherited.volumes;
        if paths.is_empty() {
            return Ok(());
        }
        let (dir, count) = (self.dir(&container.id), paths.len());
        blocking(move || make_directories(&dir, count)).await?;
        let (dir, images) = (self.dir(&container.id), &self.0.services.images);
        let mut has_files = false;
        for (n, path) in paths.iter().enumerate() {
            let copied = images.copy_from_layers(&container.spec.image.layers, path, dir.volume(n));
            has_files |= copied.await? == Copied::Files;
        }
        if has_files {
            // The container must not begin with half of its files after a crash of the machine.
            blocking(move || {
                let directory = fs_err::File::open(dir.volumes())?;
                Ok(rustix::fs::syncfs(&directory).map_err(std::io::Error::from)?)
            })
            .await?;
        }
        Ok(())
    }
}

fn make_directories(dir: &ContainerDir, count: usize) -> Result<(), ContainerError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir.volumes())?;
    for n in 0..count {
        std::fs::DirBuilder::new().mode(0o700).create(dir.volume(n))?;
        // Regardless of the umask.
        fs_err::set_permissions(dir.volume(n), PermissionsExt::from_mode(0o755))?;
    }
    Ok(())
}

/// The mounts of a container's anonymous volumes. They are writable, whatever its root is.
pub(super) fn binds(container: &Container, dir: &ContainerDir) -> Result<Vec<Mount>, ContainerError> {
    let volumes = container.spec.inherited.volumes.iter().enumerate();
    let bind = |(n, path): (usize, &String)| {
        let mount = mounts::Mount {
            source: dir.volume(n),
            destination: path.into(),
            read_only: false,
            no_exec: false,
        };
        let (kind, options) = mount.to_config(true);
        let built = MountBuilder::default()
            .destination(&mount.destination)
            .typ(kind)
            .source(&mount.source)
            .options(options.into_iter().map(str::to_owned).collect::<Vec<_>>())
            .build();
        built.map_err(|error| ContainerError::InvalidMount(Cause::from(error)))
    };
    volumes.map(bind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ContainerOptions;
    use crate::model::fixtures::container;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn config(volumes: &[&str]) -> ImageRunConfig {
        ImageRunConfig {
            volumes: strings(volumes).into_iter().collect(),
            ..ImageRunConfig::default()
        }
    }

    #[test]
    fn what_the_request_mounts_there_counts() {
        let declared = config(&["/data/", "/data", "/var//lib/../db", "/cache", "/a:b", "/logs/app"]);
        let request = ContainerRequest {
            mounts: strings(&["/srv/x:/var/db", "/srv/y:/logs:ro"]),
            options: ContainerOptions {
                tmpfs: strings(&["/cache:size=1m"]),
                ..ContainerOptions::default()
            },
            ..ContainerRequest::default()
        };
        let found = inherited(&declared, BTreeMap::new(), &request).unwrap();
        // A mount of the parent does not cover it.
        assert_eq!(found.volumes, ["/a:b", "/data", "/logs/app"]);
    }

    #[test]
    fn where_nothing_can_be_mounted_there_is_no_volume() {
        let declared = config(&["/", "", "data", "/proc/x", "/dev", "/a\0b", "/ok"]);
        let found = inherited(&declared, BTreeMap::new(), &ContainerRequest::default()).unwrap();
        assert_eq!(found.volumes, ["/ok"]);
        let many: Vec<String> = (0..=MAX_VOLUMES).map(|n| format!("/{n}")).collect();
        let many = ImageRunConfig {
            volumes: many.into_iter().collect(),
            ..ImageRunConfig::default()
        };
        let error = inherited(&many, BTreeMap::new(), &ContainerRequest::default()).unwrap_err();
        assert!(error.to_string().contains("declares 101 volumes"), "{error}");
    }

    #[test]
    fn annotations_that_a_runtime_might_obey_are_not_passed_on() {
        let annotations = [
            "org.opencontainers.image.source",
            "run.oci.handler",
            "io.raind.image.config",
        ];
        let annotations = annotations.map(|name| (name.to_owned(), "x".to_owned())).into();
        let found = inherited(&config(&[]), annotations, &ContainerRequest::default()).unwrap();
        assert_eq!(
            found.annotations.into_keys().collect::<Vec<_>>(),
            ["org.opencontainers.image.source"]
        );
    }

    #[test]
    fn volumes_are_directories_of_the_container() {
        let root = tempfile::tempdir().unwrap();
        let dir = ContainerDir::new(root.path(), "01abcdefghjk");
        make_directories(&dir, 2).unwrap();
        let mode = |path: PathBuf| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!([dir.path().to_owned(), dir.volumes()].map(mode), [0o700; 2]);
        assert_eq!([dir.volume(0), dir.volume(1)].map(mode), [0o755; 2]);
        let mut c = container("01abcdefghjk", "web");
        c.spec.inherited.volumes = strings(&["/a:b", "/data"]);
        let binds = binds(&c, &dir).unwrap();
        let said: Vec<_> = binds
            .iter()
            .map(|mount| (mount.source().clone().unwrap(), mount.destination().clone()))
            .collect();
        assert_eq!(said, [(dir.volume(0), "/a:b".into()), (dir.volume(1), "/data".into())]);
        assert_eq!(binds[0].options().as_deref(), Some(&["bind".to_owned()][..]));
    }
}
