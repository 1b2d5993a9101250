//! The import of an installation of the original: its seven JSON stores become rows, once, at the first start
//! (`docs/spec/storage.md` 13).
//!
//! ```text
//! blank database + at least one store
//!   -> locks taken, files read      (files)     nothing is changed up to here: a refusal leaves everything as it was
//!   -> parsed, all of them          (json, containers, ipam, images, pods, services, bottles, policies)
//!   -> looked at the machine        (machine)   which of its containers live
//!   -> rows                         (the same modules, pure)
//!   -> images adopted, state files of the containers completed: harmless if the import stops here
//!   -> one transaction              (commit)    rows and the record of the takeover, all or nothing
//! ```
//! A database is blank until the first commit; the import's own record ends that. So an import that is interrupted at
//! any point is repeated from the beginning at the next start, and one that was committed is never repeated.
//!
//! This module never writes to a JSON store or removes anything. Directories, links and rules on the machine that
//! belong to nothing imported are removed later by the usual recovery.

mod bottles;
mod commit;
mod containers;
mod files;
mod images;
mod ipam;
mod json;
mod machine;
mod pods;
mod policies;
mod services;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use self::files::Files;
use crate::image::{ImageError, ImageService};
use crate::model::{Bottle, Container, Image, Import, Network, Pod, Policy, PolicySettings, ReplicaSet, Service};
use crate::ops::task::{Unfinished, blocking};
use crate::store::{Store, StoreError};

/// Why an installation was not imported. Nothing was committed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A store cannot be read.
    #[error("cannot take over {}: {error}; nothing was changed", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        error: std::io::Error,
    },
    /// A store is in use.
    #[error("{} is held by another process: the original daemon still runs; stop it first", .0.display())]
    Locked(PathBuf),
    /// A store has an invalid format or an unknown version.
    #[error(
        "cannot take over {}: {message}; nothing was changed (repair the file, or move the JSON files away to begin \
         with nothing)", path.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// The error and its position.
        message: String,
    },
    /// The image store failed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A container's state file cannot be written.
    #[error("cannot complete the state file of a container: {0}")]
    State(#[source] std::io::Error),
    /// The transaction failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file task ended unexpectedly.
    #[error(transparent)]
    Task(#[from] Unfinished),
}

/// Paths of the original.
#[derive(Debug, Clone)]
pub struct Places {
    /// Directory of the stores.
    pub stores: PathBuf,
    /// Directory of the container directories.
    pub containers: PathBuf,
    /// Directory with a cgroup (v2) for each container.
    pub cgroups: PathBuf,
}

/// Imports existing stores if this is the first start. Returns the import record of this start or an earlier one; the
/// daemon follows the settings of the original that are in it. Nobody may prune images or use the store meanwhile.
pub async fn run(places: &Places, store: &Store, images: &ImageService) -> Result<Option<Arc<Import>>, ImportError> {
    take_over(places, store, images).await?;
    Ok(store.snapshot().imports().get(Import::ID).cloned())
}

/// The import itself. Returns `Ok` and does nothing if the database is not blank or there is no store.
pub async fn take_over(places: &Places, store: &Store, images: &ImageService) -> Result<(), ImportError> {
    if !store.snapshot().is_blank() {
        return Ok(());
    }
    let stores = places.stores.clone();
    // Hold the locks until the commit.
    let Some((_locks, files)) = blocking(move || files::open(&stores)).await? else {
        return Ok(());
    };
    let mut warnings = Vec::new();
    let old = Old::parse(&files, &mut warnings)?;
    let (look, places_seen) = (old.containers.clone(), places.clone());
    let seen = blocking(move || Ok::<_, ImportError>(machine::look(look.pids(), &places_seen))).await?;
    let adopted = images::adopt(&old.images, images, &mut warnings).await?;
    let now = Timestamp::now();
    let rows = old.rows(&seen, adopted, now, &mut warnings);
    let (containers, root) = (rows.containers.clone(), places.containers.clone());
    blocking(move || machine::complete_states(&root, &containers).map_err(ImportError::State)).await?;
    let record = Import {
        id: Import::ID.to_owned(),
        at: now,
        sources: files.sources(),
        warnings,
        runtime_subnet: old.ipam.subnet(),
        dns_upstreams: old.ipam.upstreams(),
    };
    let record = store.transact(move |t| commit::write(t, rows, record)).await?;
    for warning in &record.warnings {
        tracing::warn!("import: {warning}");
    }
    let files: Vec<_> = record.sources.iter().map(|file| &*file.name).collect();
    tracing::info!(
        ?files,
        warnings = record.warnings.len(),
        "an installation of the original was taken over"
    );
    Ok(())
}

/// All stores of the original.
#[derive(Debug, Default)]
struct Old {
    containers: containers::Stored,
    ipam: ipam::Stored,
    images: images::Stored,
    pods: pods::Stored,
    services: services::Stored,
    bottles: bottles::Stored,
    policies: policies::Stored,
    /// The policies of the last commit.
    committed: Option<policies::Stored>,
}

/// The result of the mapping.
#[derive(Debug, Default)]
struct Rows {
    networks: Vec<Network>,
    images: Vec<Image>,
    containers: Vec<Container>,
    pods: Vec<Pod>,
    sets: Vec<ReplicaSet>,
    services: Vec<Service>,
    bottles: Vec<Bottle>,
    policies: Vec<Policy>,
    settings: Option<PolicySettings>,
}

impl Old {
    fn parse(files: &Files, warnings: &mut Vec<String>) -> Result<Self, ImportError> {
        Ok(Self {
            containers: json::parse(files, "csm.json", warnings)?.unwrap_or_default(),
            ipam: json::parse(files, "ipam.json", warnings)?.unwrap_or_default(),
            images: json::parse(files, "ilm.json", warnings)?.unwrap_or_default(),
            pods: json::parse(files, "psm.json", warnings)?.unwrap_or_default(),
            services: json::parse(files, "ssm.json", warnings)?.unwrap_or_default(),
            bottles: json::parse(files, "bsm.json", warnings)?.unwrap_or_default(),
            policies: match json::parse(files, "npm.json", warnings)? {
                Some(policies) => policies,
                // A revert was interrupted.
                None => json::parse(files, "npm.json.org", warnings)?.unwrap_or_default(),
            },
            committed: json::parse(files, "npm.json.running", warnings)?,
        })
    }

    fn rows(&self, seen: &machine::Seen, images: Vec<Image>, now: Timestamp, warnings: &mut Vec<String>) -> Rows {
        let around = containers::Around {
            seen,
            images: &images,
            ipam: &self.ipam,
            pods: &self.pods,
            bottles: &self.bottles,
            now,
        };
        let containers = self.containers.rows(&around, warnings);
        self.ipam.check(|id| self.containers.keeps(id), warnings);
        let (pods, sets) = self.pods.rows(now, warnings);
        let (policies, settings) = self
            .policies
            .rows(self.committed.as_ref(), &self.bottles, now, warnings);
        Rows {
            networks: self.ipam.networks(now),
            bottles: self.bottles.rows(&containers, now, warnings),
            services: self.services.rows(now, warnings),
            images,
            containers,
            pods,
            sets,
            policies,
            settings,
        }
    }
}

/// The end of an id or word, to make names unique.
fn tail(id: &str) -> &str {
    id.get(id.len().saturating_sub(8)..).unwrap_or(id)
}
