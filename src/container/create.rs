//! Create: validate, have the image, reserve, write the bundle, let the runtime set it up.

use std::sync::Arc;

use jiff::Timestamp;

use crate::apparmor::Confinement;
use crate::image::{ImageRef, Platform, still_present};
use crate::metrics::Verb;
use crate::network::ipam;
use crate::store::{
    Attachment, Claim, Container, ContainerOptions, ContainerState, Forward, Image, ImageRunConfig, Network, Operation,
    ProcessSpec, Protocol, Retries, Txn,
};

use super::request::{effective_command, environment, parse_ports};
use super::{ContainerError, ContainerService, CreateRequest, bundle, names, options, transitions};

/// How often an image that vanishes between pull and use is asked for again.
const ENSURE_TRIES: usize = 3;

/// A request whose every part was checked without looking at an image.
#[derive(Clone)]
struct Wish {
    reference: ImageRef,
    name: String,
    network: String,
    forwards: Vec<Forward>,
    options: ContainerOptions,
    request: CreateRequest,
}

impl ContainerService {
    /// Makes a container that waits for its start and returns its id. A failure leaves nothing behind.
    pub async fn create(&self, request: CreateRequest) -> Result<String, ContainerError> {
        let service = self.clone();
        self.detached(Verb::ContainerCreate, async move {
            let wish = service.check(request).await?;
            for _ in 0..ENSURE_TRIES {
                let image = service
                    .0
                    .services
                    .images
                    .ensure(&wish.reference, &Platform::host())
                    .await?;
                let process = service.process(&wish.request, &image).await?;
                match service.create_from(wish.clone(), image, process).await {
                    // Removed or replaced by another request in this moment: the reference may mean a new one now.
                    Err(ContainerError::ImageGone(_)) => {}
                    result => return result,
                }
            }
            Err(ContainerError::ImageGone(wish.reference.canonical()))
        })
        .await
    }

    /// Refuses what cannot work before anything is downloaded. What others may take meanwhile is checked again when it
    /// is reserved.
    async fn check(&self, request: CreateRequest) -> Result<Wish, ContainerError> {
        if !request.pod_id.is_empty() {
            return Err(ContainerError::PodNotFound(request.pod_id));
        }
        if !request.name.is_empty() && !names::valid(&request.name) {
            return Err(ContainerError::InvalidName(request.name));
        }
        if let (true, Confinement::Unconfined(reason)) =
            (self.0.settings.require_apparmor, &self.0.settings.confinement)
        {
            return Err(ContainerError::Unconfined(reason.clone()));
        }
        let snapshot = self.snapshot();
        if snapshot.containers().get(&request.name).is_some() {
            return Err(ContainerError::NameIsId(request.name));
        }
        if snapshot.holder(&Claim::ContainerName(request.name.clone())).is_some() {
            return Err(ContainerError::NameTaken(request.name));
        }
        let reference = ImageRef::parse(&request.image)?;
        let options = options::check(&request.options)?;
        let forwards = parse_ports(&request.ports)?;
        let reserved = &self.0.settings.reserved_ports;
        if let Some(f) = forwards
            .iter()
            .find(|f| f.protocol == Protocol::Tcp && reserved.contains(&f.host_port))
        {
            let holder = "condenser itself".to_owned();
            return Err(ContainerError::PortTaken {
                port: f.host_port,
                protocol: f.protocol,
                holder,
            });
        }
        let network = if request.network.is_empty() {
            self.0.settings.default_network.clone()
        } else {
            request.network.clone()
        };
        if snapshot.networks().get(&network).is_none() {
            return Err(ContainerError::NetworkNotFound(network));
        }
        let (mounts, root) = (request.mounts.clone(), self.0.settings.root.clone());
        super::blocking(move || bundle::mounts(&mounts, &root).map(drop)).await?;
        Ok(Wish {
            reference,
            name: request.name.clone(),
            network,
            forwards,
            options,
            request,
        })
    }

    /// What runs: the request over the image configuration.
    async fn process(&self, request: &CreateRequest, image: &Image) -> Result<ProcessSpec, ContainerError> {
        let config: &ImageRunConfig = &image.config;
        let args = effective_command(&request.options.entrypoint, &request.command, config)?;
        let (env, ignored) = environment(&config.env, &request.env);
        if !ignored.is_empty() {
            // Their values may be secrets, their names are not known: only the number is said.
            tracing::warn!(count = ignored.len(), image = %image.id, "environment entries without '=' have no effect");
        }
        let user = match &request.options.user[..] {
            "" if self.0.settings.run_as_image_user => &config.user,
            requested => requested,
        };
        let diff_ids: Vec<String> = image.layers.iter().map(|l| l.diff_id.clone()).collect();
        let user = self.0.services.images.resolve_user(&diff_ids, user).await?;
        let cwd = [&request.options.working_dir, &config.working_dir]
            .into_iter()
            .find(|dir| !dir.is_empty());
        let cwd = cwd.map_or("/", |dir| dir).to_owned();
        // Without its primary group among the supplementary ones a process could drop it (CVE-2023-25173).
        let mut additional_gids = vec![user.gid];
        additional_gids.extend(user.additional_gids.into_iter().filter(|gid| *gid != user.gid));
        Ok(ProcessSpec {
            args,
            env,
            cwd,
            uid: user.uid,
            gid: user.gid,
            additional_gids,
        })
    }

    async fn create_from(&self, wish: Wish, image: Arc<Image>, process: ProcessSpec) -> Result<String, ContainerError> {
        let id = names::fresh_id(&self.snapshot(), Timestamp::now());
        // Taken before the row exists: the first to see the row must not be faster than we are.
        let _lock = self.0.locks.lock(&id).await;
        let container = self.reserve(id, wish, image, process).await?;
        let id = container.id.clone();
        tracing::info!(container.id = %id, container.name = %container.name, "creating container");
        match self.set_up(&container).await {
            Ok(()) => {
                tracing::info!(container.id = %id, "container created");
                Ok(id)
            }
            Err(error) => {
                tracing::warn!(container.id = %id, %error, "create failed, undoing it");
                if let Err(undo) = self.dismantle(&container).await {
                    tracing::error!(container.id = %id, error = %undo, "undo of a failed create is not complete");
                }
                Err(error)
            }
        }
    }

    /// Name, address, host ports and row, all or nothing.
    async fn reserve(
        &self,
        id: String,
        wish: Wish,
        image: Arc<Image>,
        process: ProcessSpec,
    ) -> Result<Arc<Container>, ContainerError> {
        let reserve = self.0.services.store.transact(move |t| {
            // Between pull and now the image may have been removed; its layers are only safe under a committed row.
            if !still_present(t, &image) {
                return Err(ContainerError::ImageGone(image.id.clone()));
            }
            let network = t
                .get::<Network>(&wish.network)
                .ok_or_else(|| ContainerError::NetworkNotFound(wish.network.clone()))?;
            let address =
                ipam::lowest_free(t.snapshot(), &network).ok_or_else(|| ContainerError::SubnetFull(network.subnet))?;
            let row = new_row(
                t,
                id,
                wish,
                &image,
                process,
                Attachment {
                    network: network.name.clone(),
                    address,
                },
            );
            t.put(row).map_err(|taken| ContainerError::taken(taken, t.snapshot()))
        });
        reserve.await
    }

    /// Everything after the row: directory, rules, runtime. The caller undoes it as a whole.
    async fn set_up(&self, container: &Container) -> Result<(), ContainerError> {
        self.write_bundle(container).await?;
        self.0.services.firewall.apply().await?;
        self.runtime_create(container).await
    }

    /// The runtime's create, and the state it leads to, with which the operation is over. Hooks have normally told of the
    /// state already.
    pub(super) async fn runtime_create(&self, container: &Container) -> Result<(), ContainerError> {
        self.0
            .services
            .runtime
            .create(&container.id, container.tty)
            .await
            .map_err(|source| ContainerError::Runtime {
                step: "create container failed",
                source,
            })?;
        let process = self.runtime_process(&container.id).await;
        let id = container.id.clone();
        self.update(&id, move |c| {
            transitions::created(c, process, Timestamp::now());
            c.certificate_due = false;
            c.operation = None;
            Ok(())
        })
        .await?;
        self.watch(&id);
        Ok(())
    }
}

fn new_row(t: &Txn, id: String, wish: Wish, image: &Image, spec: ProcessSpec, attachment: Attachment) -> Container {
    let now = Timestamp::now();
    let name = if wish.name.is_empty() {
        names::fresh_name(t.snapshot())
    } else {
        wish.name
    };
    Container {
        id,
        name,
        pod_id: None,
        bottle_id: None,
        spiffe_id: None,
        state: ContainerState::Creating,
        operation: Some(Operation::Create),
        process: None,
        exit: None,
        image_repository: image.repository.clone(),
        image_reference: image.reference.clone(),
        layers: image.layers.iter().map(|l| l.diff_id.clone()).collect(),
        spec,
        mounts: wish.request.mounts,
        tty: wish.request.tty,
        options: wish.options,
        stopped_by_user: false,
        restarts: 0,
        retries: Retries::default(),
        health: None,
        readiness: None,
        attachment: Some(attachment),
        forwards: wish.forwards,
        certificate_due: true,
        creating_at: Some(now),
        created_at: Some(now),
        started_at: None,
        stopped_at: None,
    }
}
