//! Registration: creates all parts of a bottle, containers in start order, and starts nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use jiff::Timestamp;

use super::volumes::Volumes;
use super::{BottleError, BottleFile, Bottles, ServiceFile, parse, plan};
use crate::image::Copied;
use crate::model::container_names::fresh_id;
use crate::model::{self, Bottle, BottleOperation, Claim, Kind, Snapshot, Txn};
use crate::net::bridges::NetworkError;
use crate::net::enforcement::NetworksError;
use crate::net::policy::NewPolicy;
use crate::workload::container::{BottlePart, ContainerError};
use crate::workload::manifest::Warning;

/// A bottle that was registered.
#[derive(Debug, Clone)]
pub struct Registered {
    /// Its row.
    pub bottle: Arc<Bottle>,
    /// Fields of its file that have no effect.
    pub warnings: Vec<Warning>,
}

/// A validated file.
struct Registration {
    file: BottleFile,
    order: Vec<String>,
    policies: Vec<NewPolicy>,
    services: BTreeMap<String, model::BottleService>,
}

impl Bottles {
    /// Creates a bottle from the text of its file. A failure leaves nothing behind.
    pub async fn register(&self, text: &str) -> Result<Registered, BottleError> {
        let file = parse(text)?;
        let order = plan::order(&file)?;
        if is_taken(&self.snapshot(), &file.name) {
            return Err(BottleError::NameTaken);
        }
        let policies = plan::policies(&file)?;
        let services = services(&file)?;
        let plan = Registration {
            file,
            order,
            policies,
            services,
        };
        let service = self.clone();
        self.detached(async move { service.register_planned(plan).await }).await
    }

    async fn register_planned(&self, plan: Registration) -> Result<Registered, BottleError> {
        self.check_containers(&plan).await?;
        let id = fresh_bottle_id(&self.snapshot());
        // Lock before the row exists, so that nobody who sees the row can get the lock first.
        let _lock = self.0.locks.lock(&id).await;
        let row = new_bottle(id, &plan);
        let reserved = self.0.parts.store.transact(move |t| reserve(t, row)).await?;
        tracing::info!(bottle.id = %reserved.id, bottle.name = %reserved.name, "registering bottle");
        match self.set_up(&reserved, &plan).await {
            Ok(bottle) => {
                tracing::info!(bottle.id = %bottle.id, bottle.name = %bottle.name, "bottle registered");
                let warnings = plan.file.warnings;
                Ok(Registered { bottle, warnings })
            }
            Err(error) => {
                tracing::warn!(bottle.id = %reserved.id, %error, "registration failed, undoing it");
                if let Err(undo) = self.dismantle(&reserved, BottleOperation::Register).await {
                    tracing::error!(bottle.id = %reserved.id, error = %undo, "undo of a registration is not complete");
                }
                Err(error)
            }
        }
    }

    /// Refuses invalid containers before there is anything to undo.
    async fn check_containers(&self, plan: &Registration) -> Result<(), BottleError> {
        let mut draft = new_bottle(String::new(), plan);
        // Objects that do not exist yet cannot be checked.
        draft.network = None;
        let volumes = std::mem::take(&mut draft.volumes);
        for entry in draft.services.values_mut() {
            let is_volume = |mount: &String| volumes.iter().any(|v| mount.split(':').next() == Some(v));
            entry.request.mounts.retain(|mount| !is_volume(mount));
        }
        for name in &plan.order {
            let request = plan::request(&draft, name, &BTreeMap::new(), &self.0.parts.volume_root);
            let container = draft.container_name(name);
            let checked = self.0.parts.containers.check_for_bottle(container, request).await;
            checked.map_err(BottleError::Create)?;
        }
        Ok(())
    }

    /// All steps after the row. The caller undoes them as a whole.
    async fn set_up(&self, bottle: &Bottle, plan: &Registration) -> Result<Arc<Bottle>, BottleError> {
        let parts = &self.0.parts;
        if !plan.policies.is_empty() {
            parts.policies.add_and_commit(plan.policies.clone(), &bottle.id).await?;
        }
        if let Some(network) = &bottle.network {
            self.make_network(bottle, network).await?;
        }
        self.make_volumes(bottle).await?;
        for name in &plan.order {
            self.make_container(bottle, name).await?;
        }
        let row = self.update(&bottle.id, |_| {}).await?;
        for id in row.containers.values() {
            parts.containers.refresh_hosts(id).await.map_err(BottleError::Create)?;
        }
        let whole = |bottle: &mut Bottle| {
            bottle.operation = None;
            bottle.new_volumes.clear();
        };
        self.update(&bottle.id, whole).await
    }

    /// A new volume is initialised from an image, with the files at the path where the volume is mounted: from the
    /// first service in order whose image has files there, else from the first one whose image has a directory there.
    /// Volumes are created before any container, because a container keeps the directory it was created with.
    async fn make_volumes(&self, bottle: &Bottle) -> Result<(), BottleError> {
        let volumes = self.volumes(&bottle.name);
        let new = volumes.missing(&bottle.volumes).await?;
        // Record them first, so that recovery removes what a crash leaves of them.
        let noted = new.clone();
        self.update(&bottle.id, move |bottle| bottle.new_volumes = noted)
            .await?;
        for volume in &new {
            let mut like = None;
            for (image, path) in plan::mounts_of(bottle, volume) {
                let copied = self.copy_into(&volumes, volume, image, path).await?;
                if copied == Copied::Files || (copied == Copied::Empty && like.is_none()) {
                    like = Some((image, path, copied));
                }
                if copied == Copied::Files {
                    break;
                }
            }
            match like {
                Some((_, _, Copied::Files)) => {}
                Some((image, path, _)) => drop(self.copy_into(&volumes, volume, image, path).await?),
                None => {
                    volumes.discard(volume).await?;
                    continue;
                }
            }
            volumes.publish(volume).await?;
        }
        volumes.make(&bottle.volumes).await
    }

    async fn copy_into(&self, volumes: &Volumes, volume: &str, image: &str, path: &str) -> Result<Copied, BottleError> {
        let staged = volumes.stage(volume).await?;
        let copied = self.0.parts.containers.copy_from_image(image, path, &staged).await;
        copied.map_err(BottleError::Create)
    }

    async fn make_network(&self, bottle: &Bottle, network: &str) -> Result<(), BottleError> {
        let made = self.0.parts.networks.create(network).await;
        if let Err(NetworksError::Network(NetworkError::Exists(_))) = &made {
            // It belongs to another owner, so it must not be removed with the bottle.
            self.update(&bottle.id, |bottle| bottle.network = None).await?;
        }
        made.map(drop).map_err(BottleError::CreateNetwork)
    }

    async fn make_container(&self, bottle: &Bottle, name: &str) -> Result<(), BottleError> {
        let snapshot = self.snapshot();
        let now = snapshot.bottles().get(&bottle.id).map_or(bottle, AsRef::as_ref);
        let address = |name: &'_ String| {
            Some(
                plan::container(&snapshot, now, name)?
                    .status
                    .attachment
                    .as_ref()?
                    .address,
            )
        };
        let addresses: BTreeMap<&str, Ipv4Addr> = now
            .containers
            .keys()
            .filter_map(|name| Some((name.as_str(), address(name)?)))
            .collect();
        let volumes = self.volumes(&bottle.name);
        let request = plan::request(now, name, &addresses, &volumes.0);
        let part = BottlePart {
            bottle_id: bottle.id.clone(),
            service: name.to_owned(),
        };
        let container = now.container_name(name);
        let made = self.0.parts.containers.create_in_bottle(container, request, part).await;
        made.map(drop).map_err(BottleError::Create)
    }

    /// Updates the row.
    pub(super) async fn update(
        &self,
        id: &str,
        change: impl FnOnce(&mut Bottle) + Send + 'static,
    ) -> Result<Arc<Bottle>, BottleError> {
        let id = id.to_owned();
        let update = self.0.parts.store.transact(move |t| match t.update(&id, change) {
            Ok(row) => row.ok_or(BottleError::NotFound(id)),
            Err(_) => Err(BottleError::NameTaken),
        });
        update.await
    }
}

/// The services as they are kept, with their choices checked.
fn services(file: &BottleFile) -> Result<BTreeMap<String, model::BottleService>, BottleError> {
    let service = |(name, service): (&String, &ServiceFile)| {
        let mut kept = service.kept.clone();
        kept.request = service
            .options
            .clone()
            .complete(kept.request)
            .map_err(BottleError::Create)?;
        Ok((name.clone(), kept))
    };
    file.services.iter().map(service).collect()
}

fn new_bottle(id: String, plan: &Registration) -> Bottle {
    let file = &plan.file;
    let services = plan.services.clone();
    let names_a_network = services.values().any(|service| !service.request.network.is_empty());
    Bottle {
        network: (!names_a_network).then(|| plan::network_name(&id)),
        id,
        name: file.name.clone(),
        services,
        start_order: plan.order.clone(),
        containers: BTreeMap::new(),
        volumes: file.volumes.iter().cloned().collect(),
        new_volumes: Vec::new(),
        operation: Some(BottleOperation::Register),
        created_at: Timestamp::now(),
    }
}

/// Reserves the name of the bottle and those of its containers, all or nothing.
fn reserve(t: &mut Txn, bottle: Bottle) -> Result<Arc<Bottle>, BottleError> {
    t.put(bottle).map_err(|taken| match taken.claim {
        Claim::ContainerName(name) => BottleError::Create(ContainerError::NameTaken(name)),
        _ => BottleError::NameTaken,
    })
}

fn is_taken(snapshot: &Snapshot, name: &str) -> bool {
    let claim = Claim::Name(Kind::Bottle, String::new(), name.to_owned());
    snapshot.holder(&claim).is_some()
}

/// An id that no other bottle has as name or id, and whose network name is free (B9).
fn fresh_bottle_id(snapshot: &Snapshot) -> String {
    loop {
        let id = fresh_id(snapshot, Timestamp::now());
        let network = plan::network_name(&id);
        let clashes = snapshot.bottles().iter().any(|b| b.network.as_ref() == Some(&network));
        if !clashes && !is_taken(snapshot, &id) && snapshot.networks().get(&network).is_none() {
            return id;
        }
    }
}
