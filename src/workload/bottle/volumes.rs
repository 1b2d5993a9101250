//! Volumes of bottles: `<root>/<bottle>/<volume>`. They outlive their bottle and are reused by the next one of that
//! name, until they are removed on request. Neither name contains a slash, so no two bottles share a directory.
//!
//! A new volume is filled in `<root>/<bottle>/.new-<volume>` and renamed when it is complete, so a crash leaves either
//! a complete volume or none. No volume has such a name, because volume names begin with a letter or digit.

use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::BottleError;
use crate::base::absent::absent_is_fine;
use crate::ops::task::blocking;

/// The directory of one bottle's volumes.
#[derive(Debug, Clone)]
pub(super) struct Volumes(pub PathBuf);

impl Volumes {
    /// The volumes that do not exist.
    pub async fn missing(&self, names: &[String]) -> Result<Vec<String>, BottleError> {
        let (root, names) = (self.0.clone(), names.to_vec());
        blocking(move || Ok(names.into_iter().filter(|name| !root.join(name).exists()).collect())).await
    }

    /// An empty directory, owned by root, to fill a new volume in. It becomes a volume with [`Volumes::publish`].
    pub async fn stage(&self, name: &str) -> Result<PathBuf, BottleError> {
        self.each(&[staging(name)], |path| {
            absent_is_fine(fs_err::remove_dir_all(path))?;
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
            // Regardless of the umask.
            fs_err::set_permissions(path, PermissionsExt::from_mode(0o755))
        })
        .await?;
        Ok(self.0.join(staging(name)))
    }

    /// Removes a partially filled volume, if there is one.
    pub async fn discard(&self, name: &str) -> Result<(), BottleError> {
        self.each(&[staging(name)], |path| absent_is_fine(fs_err::remove_dir_all(path)))
            .await
    }

    /// Turns a filled directory into a volume, durably.
    pub async fn publish(&self, name: &str) -> Result<(), BottleError> {
        let staged = self.0.join(staging(name));
        self.each(&[name.to_owned()], move |path| {
            let file = fs_err::File::open(&staged)?;
            rustix::fs::syncfs(&file)?;
            fs_err::rename(&staged, path)
        })
        .await
    }

    /// Creates missing volumes. Any user of a container can write to them: nobody else can enter the parent directory.
    pub async fn make(&self, names: &[String]) -> Result<(), BottleError> {
        self.each(names, |path| {
            let exists = path.exists();
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
            match exists {
                true => Ok(()),
                false => fs_err::set_permissions(path, PermissionsExt::from_mode(0o777)),
            }
        })
        .await
    }

    /// Removes the volumes with their content.
    pub async fn remove(&self, names: &[String]) -> Result<(), BottleError> {
        let staged: Vec<String> = names.iter().map(|name| staging(name)).collect();
        self.each(&[names, &staged].concat(), |path| {
            absent_is_fine(fs_err::remove_dir_all(path))
        })
        .await?;
        self.remove_root().await
    }

    /// Removes the volumes that are still empty: the undo of [`Volumes::make`].
    pub async fn remove_empty(&self, names: &[String]) -> Result<(), BottleError> {
        self.each(names, |path| absent_is_fine(if_empty(path))).await?;
        self.remove_root().await
    }

    async fn remove_root(&self) -> Result<(), BottleError> {
        let root = Self(PathBuf::new());
        let name = self.0.display().to_string();
        root.each(&[name], |path| absent_is_fine(if_empty(path))).await
    }

    async fn each(
        &self,
        names: &[String],
        work: impl Fn(&Path) -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), BottleError> {
        let (root, names) = (self.0.clone(), names.to_vec());
        let all = move || {
            names.into_iter().try_for_each(|volume| {
                let done = work(&root.join(&volume));
                done.map_err(|source| BottleError::Volume { volume, source })
            })
        };
        blocking(all).await
    }
}

/// Where a new volume is filled.
fn staging(name: &str) -> String {
    format!(".new-{name}")
}

fn if_empty(path: &Path) -> std::io::Result<()> {
    match fs_err::remove_dir(path) {
        Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_stays_until_it_is_removed_on_demand() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes(dir.path().join("blog"));
        let names = ["data".to_owned(), "cache".to_owned()];
        volumes.remove(&names).await.unwrap();
        volumes.make(&names).await.unwrap();
        let data = volumes.0.join("data");
        assert_eq!(data.metadata().unwrap().permissions().mode() & 0o7777, 0o777);
        std::fs::write(data.join("row"), "1").unwrap();
        std::fs::set_permissions(&data, PermissionsExt::from_mode(0o700)).unwrap();
        volumes.make(&names).await.unwrap();
        assert_eq!(
            data.metadata().unwrap().permissions().mode() & 0o7777,
            0o700,
            "as its users left it"
        );
        // A partial volume that a crash left is started over, and is removed with the rest.
        let staged = volumes.stage("logs").await.unwrap();
        std::fs::write(staged.join("half"), "1").unwrap();
        let staged = volumes.stage("logs").await.unwrap();
        assert_eq!(std::fs::read_dir(&staged).unwrap().count(), 0);
        std::fs::write(staged.join("whole"), "1").unwrap();
        let logs = ["logs".to_owned(), "more".to_owned()];
        assert_eq!(volumes.missing(&logs).await.unwrap(), logs);
        volumes.publish("logs").await.unwrap();
        assert_eq!(volumes.missing(&logs).await.unwrap(), logs[1..]);
        assert!(volumes.0.join("logs/whole").exists() && !staged.exists());
        volumes.stage("more").await.unwrap();
        volumes.remove(&logs).await.unwrap();
        assert_eq!(std::fs::read_dir(&volumes.0).unwrap().count(), 2, "data and cache");

        volumes.remove_empty(&names).await.unwrap();
        assert!(data.join("row").exists() && !volumes.0.join("cache").exists());
        volumes.remove(&names).await.unwrap();
        assert!(!volumes.0.exists());
    }
}
