//! Create: validate, obtain the image, reserve, write the bundle, have the runtime set it up.

use std::sync::Arc;

use jiff::Timestamp;

use super::bottle::enter;
use super::part::Part;
use super::ports::{exposed_ports, parse_ports};
use super::pull::check_platform;
use super::request::{effective_command, environment};
use super::spec::is_unreachable;
use super::{ContainerError, ContainerService, PodRole, blocking, bundle, cgroup, options, transitions, volumes};
use crate::image::{ImageRef, still_present};
use crate::model::{
    Attachment, Claim, Container, ContainerImage, ContainerRequest, ContainerSpec, Forward, Holder, Image,
    ImageRunConfig, Inherited, Kind, Network, Pod, PodGoal, ProcessSpec, Txn, container_names, names,
};
use crate::net::bridges::ipam;
use crate::observe::metrics::Verb;

/// How often to obtain an image again that is removed between pull and use.
const ENSURE_TRIES: usize = 3;

/// A request that passed all checks that need no image.
#[derive(Clone)]
pub(super) struct CheckedRequest {
    /// `None` for the built-in image.
    reference: Option<ImageRef>,
    name: String,
    /// `None` for a member of a pod, which uses the network of the pod.
    network: Option<String>,
    forwards: Vec<Forward>,
    request: ContainerRequest,
    part: Part,
    /// What the image adds, once it is known.
    inherited: Inherited,
}

impl ContainerService {
    /// Makes a container that waits for its start and returns its id. A failure leaves nothing behind.
    /// Without a name it gets a random one.
    pub async fn create(&self, name: String, request: ContainerRequest) -> Result<String, ContainerError> {
        self.create_as(name, request, Part::Alone).await
    }

    pub(super) async fn create_as(
        &self,
        name: String,
        request: ContainerRequest,
        part: Part,
    ) -> Result<String, ContainerError> {
        let service = self.clone();
        self.detached(Verb::ContainerCreate, async move {
            let checked = service.check(name, request, part).await?;
            let images = &service.0.services.images;
            let _hold = checked.reference.as_ref().map(|image| images.hold(image));
            let mut gone = String::new();
            for _ in 0..ENSURE_TRIES {
                let image = service.image(&checked).await?;
                let process = service.process(&checked, &image).await?;
                let checked = service.with_image(checked.clone(), &image).await?;
                match service.create_from(checked, image, process).await {
                    // Another request has just removed or replaced the image: the reference may have a new one now.
                    Err(ContainerError::ImageGone(image)) => gone = image,
                    result => return result,
                }
            }
            Err(ContainerError::ImageGone(gone))
        })
        .await
    }

    /// Refuses what cannot work before anything is downloaded. What others may take meanwhile is checked again when it
    /// is reserved.
    pub(super) async fn check(
        &self,
        name: String,
        mut request: ContainerRequest,
        part: Part,
    ) -> Result<CheckedRequest, ContainerError> {
        let role = part.pod().map(|part| &part.role);
        let is_infra = matches!(role, Some(PodRole::Infra));
        if !name.is_empty() && !is_infra && !names::is_container_name(&name) {
            return Err(ContainerError::InvalidName(name));
        }
        self.confinement().await?;
        let snapshot = self.snapshot();
        if snapshot.containers().get(&name).is_some() {
            return Err(ContainerError::NameIsId(name));
        }
        let holder = snapshot.holder(&Claim::ContainerName(name.clone()));
        // Its bottle has kept the name for it.
        let is_kept = |holder: &Holder| holder.kind == Kind::Bottle && Some(&*holder.id) == part.bottle_id();
        if holder.is_some_and(|holder| !is_kept(holder)) {
            return Err(ContainerError::NameTaken(name));
        }
        let reference = match is_infra && request.image.is_empty() {
            true => None,
            false => Some(ImageRef::parse(&request.image)?),
        };
        if let Some(part) = part.pod() {
            if !is_infra && request.options.shm_bytes.is_some() {
                let message = "shmSize: the containers of a pod share its /dev/shm, which has a size already";
                return Err(ContainerError::InvalidOption(message.into()));
            }
            if request.publish_all {
                let message = "publishAll: the ports of a pod are published at its address; name them in the pod";
                return Err(ContainerError::InvalidOption(message.into()));
            }
            request.options.hostname = Some(part.host_name.clone());
        }
        let forwards = parse_ports(&request.ports)?;
        self.check_ports(&forwards)?;
        let network = match role {
            None | Some(PodRole::Infra) => Some(self.network(&request.network)?),
            Some(PodRole::Member | PodRole::Added) => None,
        };
        let mut policy = self.mount_policy(part.pod_id(), part.bottle_id());
        if matches!(role, Some(PodRole::Member)) || part.bottle().is_some() {
            // Its description was checked when it was stored.
            policy = policy.with_accepted(bundle::sources(&request.mounts));
        }
        let mounts = request.mounts.clone();
        blocking(move || bundle::mounts(&mounts, &policy).map(drop)).await?;
        Ok(CheckedRequest {
            reference,
            name,
            network,
            forwards,
            request,
            part,
            inherited: Inherited::default(),
        })
    }

    /// The request, completed with the settings of the image.
    async fn with_image(&self, mut checked: CheckedRequest, image: &Image) -> Result<CheckedRequest, ContainerError> {
        let checks = checked.part.pod().is_none() && !checked.request.no_health_check;
        options::complete(&mut checked.request.options, &image.config, checks);
        if checked.request.publish_all {
            let exposed = exposed_ports(&image.config.exposed_ports, &checked.forwards)?;
            checked.forwards.extend(exposed);
        }
        let annotations = self.0.services.images.annotations(image).await;
        checked.inherited = volumes::inherited(&image.config, annotations, &checked.request)?;
        Ok(checked)
    }

    fn network(&self, requested: &str) -> Result<String, ContainerError> {
        let network = match requested {
            "" => &self.0.settings.default_network,
            named => named,
        };
        match self.snapshot().networks().get(network) {
            Some(network) => Ok(network.name.clone()),
            None => Err(ContainerError::NetworkNotFound(network.to_owned())),
        }
    }

    async fn image(&self, checked: &CheckedRequest) -> Result<Arc<Image>, ContainerError> {
        let Some(reference) = &checked.reference else {
            return Ok(self.0.services.images.pause());
        };
        let image = self.obtain_image(reference, checked.request.pull).await?;
        check_platform(&image)?;
        Ok(image)
    }

    /// The process: the request merged over the image configuration.
    async fn process(&self, checked: &CheckedRequest, image: &Image) -> Result<ProcessSpec, ContainerError> {
        let (request, config): (_, &ImageRunConfig) = (&checked.request, &image.config);
        let entrypoint = match request.keep_entrypoint {
            true => &config.entrypoint,
            false => &request.entrypoint,
        };
        let args = effective_command(entrypoint, &request.command, config)?;
        let (env, ignored) = environment(&config.env, &request.env, request.tty);
        if !ignored.is_empty() {
            // The values may be secrets and the names are unknown, so log only the number.
            tracing::warn!(count = ignored.len(), image = %image.id, "environment entries without '=' have no effect");
        }
        let of_image = match self.0.settings.run_as_image_user {
            true => &config.user,
            false => "",
        };
        let with_group;
        let user = match &request.user[..] {
            "" => of_image,
            // The manifest of a pod names a group without a user.
            group if group.starts_with(':') && checked.part.pod().is_some() => {
                with_group = format!("{}{group}", of_image.split(':').next().unwrap_or_default());
                &with_group
            }
            requested => requested,
        };
        let diff_ids: Vec<String> = image.layers.iter().map(|l| l.diff_id.clone()).collect();
        let name = user;
        let user = self.0.services.images.resolve_user(&diff_ids, name).await?;
        if request.options.not_root && user.uid == 0 {
            return Err(ContainerError::RunsAsRoot {
                image: image.id.clone(),
                user: name.to_owned(),
            });
        }
        let cwd = [&request.working_dir, &config.working_dir]
            .into_iter()
            .find(|dir| !dir.is_empty());
        let cwd = cwd.map_or("/", |dir| dir).to_owned();
        // Unless the primary group is among the supplementary ones, a process could drop it (CVE-2023-25173).
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

    async fn create_from(
        &self,
        checked: CheckedRequest,
        image: Arc<Image>,
        process: ProcessSpec,
    ) -> Result<String, ContainerError> {
        let id = container_names::fresh_id(&self.snapshot(), Timestamp::now());
        // Lock before the row exists, so that nobody who sees the row can get ahead of this operation.
        let _lock = self.0.locks.lock(&id).await;
        let container = self.reserve(id, checked, image, process).await?;
        let id = container.id.clone();
        tracing::info!(container.id = %id, container.name = %container.name, "creating container");
        let made = match self.fill_volumes(&container).await {
            Ok(()) => self.set_up(&container).await,
            Err(error) => Err(error),
        };
        match made {
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

    /// Reserves name, address and host ports and writes the row, all or nothing.
    async fn reserve(
        &self,
        id: String,
        checked: CheckedRequest,
        image: Arc<Image>,
        process: ProcessSpec,
    ) -> Result<Arc<Container>, ContainerError> {
        let ports = self.0.services.ports.clone();
        let reserve = self.0.services.store.transact(move |t| {
            // The image may have been removed since the pull; only a committed row protects its layers.
            if !still_present(t, &image) {
                return Err(ContainerError::ImageGone(image.id.clone()));
            }
            let attachment = checked.network.as_ref().map(|network| attach(t, network)).transpose()?;
            if let Some(part) = checked.part.pod()
                && t.get::<Pod>(&part.pod_id)
                    .is_none_or(|pod| pod.goal == PodGoal::Removed)
            {
                return Err(ContainerError::PodNotFound(part.pod_id.clone()));
            }
            if let Some(part) = checked.part.bottle() {
                enter(t, part, &id)?;
            }
            let forwards = ports.assign(t.snapshot(), checked.forwards.clone(), &[])?;
            let checked = CheckedRequest { forwards, ..checked };
            let row = new_row(t, id, checked, &image, process, attachment);
            t.put(row).map_err(|taken| ContainerError::taken(taken, t.snapshot()))
        });
        reserve.await
    }

    /// Everything after the row: directory, rules, runtime, and the resulting state, which completes the operation.
    /// Hooks have usually reported that state already. On failure the caller undoes everything.
    pub(super) async fn set_up(&self, container: &Container) -> Result<(), ContainerError> {
        let host = self.host_of(container)?;
        self.write_bundle(container, host.as_ref()).await?;
        self.0.services.firewall.apply().await?;
        let (id, runtime) = (container.id.clone(), &self.0.services.runtime);
        runtime
            .create(&id, container.spec.tty)
            .await
            .map_err(|source| ContainerError::Runtime {
                step: "create container failed",
                source,
            })?;
        if let (Some(host), Some(pod)) = (&host, container.role.pod())
            && !host.is_alive()
        {
            self.delete_in_runtime(&id).await?;
            return Err(ContainerError::NoInfra(pod.to_owned()));
        }
        let process = self.runtime_process(&id).await;
        if is_unreachable(container) {
            // What the hook that it does not have would do.
            cgroup::seal(&id);
        }
        self.update(&id, move |c| {
            transitions::created(c, process, Timestamp::now());
            c.journal.joined = host;
            c.journal.certificate_due = false;
            c.journal.operation = None;
            Ok(())
        })
        .await?;
        self.watch(&id);
        Ok(())
    }
}

/// The lowest free address of a network.
fn attach(t: &Txn, network: &str) -> Result<Attachment, ContainerError> {
    let network = t
        .get::<Network>(network)
        .ok_or_else(|| ContainerError::NetworkNotFound(network.to_owned()))?;
    let address =
        ipam::lowest_free(t.snapshot(), &network).ok_or_else(|| ContainerError::SubnetFull(network.subnet))?;
    Ok(Attachment {
        network: network.name.clone(),
        address,
    })
}

fn new_row(
    t: &Txn,
    id: String,
    checked: CheckedRequest,
    image: &Image,
    process: ProcessSpec,
    attachment: Option<Attachment>,
) -> Container {
    let name = if checked.name.is_empty() {
        container_names::fresh_name(t.snapshot())
    } else {
        checked.name
    };
    let spec = ContainerSpec {
        image: ContainerImage {
            repository: image.repository.clone(),
            reference: image.reference.clone(),
            layers: image.layers.iter().map(|l| l.diff_id.clone()).collect(),
        },
        process,
        tty: checked.request.tty,
        options: checked.request.options,
        mounts: checked.request.mounts,
        forwards: checked.forwards,
        inherited: checked.inherited,
    };
    let mut row = Container::new(id, name, checked.part.role(), spec).being_created(Timestamp::now());
    row.status.attachment = attachment;
    // A member that a client made waits for its client, also in a running pod.
    let role = checked.part.pod().map(|part| &part.role);
    row.journal.stopped_by_user = matches!(role, Some(PodRole::Added));
    row
}
