//! Container errors. The texts are part of the contract (`docs/spec/api.md` 5); the API adds its prefix.

use crate::base::cause::Cause;
use crate::image::ImageError;
use crate::model::{ContainerState, Taken};
use crate::net::bridges::NetworkError;
use crate::net::firewall::FirewallError;
use crate::net::ports::PortError;
use crate::ops::task::Unfinished;
use crate::runtime::RuntimeError;
use crate::runtime::hook::HookEvent;
use crate::store::StoreError;

/// Why an operation on a container failed. A failed operation leaves nothing behind unless its variant says so.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the words of the text above them")]
pub enum ContainerError {
    /// No container has that name, id or id prefix.
    #[error("container: {0} not found")]
    NotFound(String),
    /// Several ids begin with the prefix.
    #[error("container: {0} is ambiguous; give more of the id, or the name")]
    Ambiguous(String),
    /// The pod does not exist.
    #[error("pod: {0} not found")]
    PodNotFound(String),
    /// The container is a member of a pod whose infra container does not run, or has ended in the meantime.
    #[error("pod {0} has no running infra container to join; start the pod")]
    NoInfra(String),
    /// The bottle does not exist, or no longer.
    #[error("bottle: {0} not found")]
    BottleNotFound(String),
    /// The name is outside the grammar, or reserved.
    #[error(
        "invalid container name: {0:?}; use up to 128 letters, digits, '_', '.', '-', beginning with a letter or digit"
    )]
    InvalidName(String),
    /// The name would hide another container.
    #[error("invalid container name: {0:?} is the id of another container")]
    NameIsId(String),
    /// Another container has the name.
    #[error("name: {0} already used by other container")]
    NameTaken(String),
    /// The image cannot be obtained.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image was removed or replaced while the container was being created.
    #[error("image {0} was removed meanwhile; try again")]
    ImageGone(String),
    /// Neither the request nor the image names a command.
    #[error("create spec failed: no command: the image has neither entrypoint nor cmd, so the request must name one")]
    NoCommand,
    /// The container must not run as root, and its image names no other user.
    #[error(
        "container has runAsNonRoot and image {image} runs as root (USER {user:?}); give runAsUser, or an image with \
         another USER"
    )]
    RunsAsRoot { image: String, user: String },
    /// AppArmor is required but not available.
    #[error("containers must be confined (require_apparmor) and cannot be: {0}")]
    Unconfined(String),
    /// A mount string is refused.
    #[error("create spec failed: {0}")]
    InvalidMount(#[source] Cause),
    /// A limit or other option is invalid.
    #[error("invalid option: {0}")]
    InvalidOption(String),
    /// A port string is outside the grammar.
    #[error(
        "forward rule failed: port format failed: {0}; write [address:][host:]container[/protocol], as in 8080:80 or \
         5353:53/udp"
    )]
    PortFormat(String),
    /// The port number or protocol does not exist.
    #[error("forward rule failed: {0}")]
    InvalidPort(String),
    /// The host port is taken.
    #[error("forward rule failed: host port {port}/{protocol} is already used by {holder}")]
    PortTaken {
        port: u16,
        protocol: crate::model::Protocol,
        holder: String,
    },
    /// The kernel refuses to bind a port.
    #[error("forward rule failed: {0}")]
    Port(#[source] PortError),
    /// The network does not exist.
    #[error("target bridge not configured: {0}; GET /v1/networks says which networks there are")]
    NetworkNotFound(String),
    /// The network has no free address.
    #[error("no free ip in subnet {0}")]
    SubnetFull(ipnet::Ipv4Net),
    /// Start of a running container.
    #[error("container: {0} already started")]
    AlreadyStarted(String),
    /// The operation is not possible in that state.
    #[error("{operation} operation not allowed to current container status: {state}")]
    WrongState {
        operation: &'static str,
        state: ContainerState,
    },
    /// Exec in a container that does not run.
    #[error("container: {0} not running.")]
    NotRunning(String),
    /// Attach to a container that was created without a terminal.
    #[error("container: {0} has tty mode disabled.\nif attach operation needed, use -t option when create container")]
    NoTerminal(String),
    /// The terminal has its maximum number of clients.
    #[error("container: {0} already has {max} attached clients; detach one first", max = super::MAX_CLIENTS)]
    TooManyClients(String),
    /// Exec without a command.
    #[error("a command is needed: `command` must name a program")]
    EmptyCommand,
    /// Stop, start or delete of a container that a bottle manages. `word` is the client's sub-command.
    #[error(
        "direct {phrase} of container: {container} is not supported as it's managed by bottle: {bottle}.\nuse 'raind \
         bottle {word} <bottle-id|bottle-name>'"
    )]
    ManagedByBottle {
        phrase: &'static str,
        container: String,
        bottle: String,
        word: &'static str,
    },
    /// The hook event cannot occur in that state.
    #[error("event {event} is not expected in state {state}")]
    UnexpectedEvent { event: HookEvent, state: ContainerState },
    /// A certificate was requested outside a create or restart, or a second time.
    #[error("invalid container id")]
    NoCertificateDue,
    /// A runtime call failed; `step` is the contract's prefix.
    #[error("{step}: {source}")]
    Runtime { step: &'static str, source: RuntimeError },
    /// A later step of a removal failed. The container stays, marked as failed; the removal can be repeated.
    #[error("{step}: {source}")]
    Cleanup { step: &'static str, source: Cause },
    /// The OCI configuration of the container could not be built: a defect.
    #[error("create spec failed: {0}")]
    Spec(#[source] Cause),
    /// Another record holds something that should belong only to this container.
    #[error("reserve failed: {:?} is taken", .0.claim)]
    Claim(#[source] Taken),
    /// More lines of a log than the maximum.
    #[error("invalid tail lines: max={0}")]
    TooManyLines(usize),
    /// Files of the container cannot be written or read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The rules could not be applied.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// A network interface could not be configured.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The state could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operation ended without a result: a defect, which the log describes.
    #[error("the operation failed unexpectedly; see the daemon's log")]
    Panicked,
}

impl From<Unfinished> for ContainerError {
    fn from(_: Unfinished) -> Self {
        Self::Panicked
    }
}

impl From<PortError> for ContainerError {
    fn from(error: PortError) -> Self {
        match error {
            PortError::Taken { port, protocol, holder } => Self::PortTaken { port, protocol, holder },
            PortError::NoAddress(_) => Self::InvalidPort(error.to_string()),
            PortError::NoneFree(_) | PortError::Kernel { .. } => Self::Port(error),
        }
    }
}

impl ContainerError {
    /// A stable one-word reason why a container is missing or does not run; the kubelet's word where it has one.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Image(error) => error.reason(),
            Self::ImageGone(_) => "ErrImagePull",
            Self::Runtime { step, .. } if step.starts_with("start") => "RunContainerError",
            Self::NoInfra(_) => "FailedCreatePodSandBox",
            Self::PortTaken { .. } => "PortTaken",
            Self::Port(error) => error.reason(),
            Self::SubnetFull(_) => "NoAddressLeft",
            Self::Network(error) => error.reason(),
            Self::Firewall(error) => error.reason(),
            Self::NoCommand
            | Self::RunsAsRoot { .. }
            | Self::InvalidMount(_)
            | Self::InvalidOption(_)
            | Self::PortFormat(_)
            | Self::InvalidPort(_)
            | Self::NetworkNotFound(_) => "CreateContainerConfigError",
            Self::Unconfined(_) => "Unconfined",
            Self::Cleanup { .. } => "CleanupFailed",
            Self::Store(_) => "StoreFailed",
            _ => "CreateContainerError",
        }
    }

    /// A claim that another record holds, in the words of the contract.
    pub(super) fn taken(taken: Taken, snapshot: &crate::model::Snapshot) -> Self {
        use crate::model::Claim;
        match &taken.claim {
            &Claim::HostPort(protocol, port, _) => {
                let holder = snapshot.describe(&taken.holder);
                Self::PortTaken { port, protocol, holder }
            }
            Claim::ContainerName(name) => Self::NameTaken(name.clone()),
            // An address is chosen from the unclaimed ones in the same transaction.
            _ => Self::Claim(taken),
        }
    }
}
