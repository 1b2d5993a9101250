//! What can go wrong with a container. The texts are the contract's (`docs/spec/api.md` 5); the API adds its prefix.

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

/// Why an operation on a container failed. Nothing of a failed operation stays, unless its variant says so.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the words of the text above them")]
pub enum ContainerError {
    /// No container of that name, id or id prefix.
    #[error("container: {0} not found")]
    NotFound(String),
    /// A prefix that several ids begin with.
    #[error("container: {0} is ambiguous; give more of the id, or the name")]
    Ambiguous(String),
    /// The pod does not exist.
    #[error("pod: {0} not found")]
    PodNotFound(String),
    /// A member of a pod whose infra container does not run, or ended meanwhile.
    #[error("pod {0} has no running infra container to join; start the pod")]
    NoInfra(String),
    /// The bottle does not exist, or no more.
    #[error("bottle: {0} not found")]
    BottleNotFound(String),
    /// A name outside the grammar, or reserved.
    #[error(
        "invalid container name: {0:?}; use up to 128 letters, digits, '_', '.', '-', beginning with a letter or digit"
    )]
    InvalidName(String),
    /// A name that would hide another container.
    #[error("invalid container name: {0:?} is the id of another container")]
    NameIsId(String),
    /// Another container has the name.
    #[error("name: {0} already used by other container")]
    NameTaken(String),
    /// The image cannot be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image was removed or replaced while the container was being made.
    #[error("image {0} was removed meanwhile; try again")]
    ImageGone(String),
    /// Neither request nor image say what to run.
    #[error("create spec failed: no command: the image has neither entrypoint nor cmd, so the request must name one")]
    NoCommand,
    /// A container that must not run as root, and whose image runs as nobody else.
    #[error(
        "container has runAsNonRoot and image {image} runs as root (USER {user:?}); give runAsUser, or an image with \
         another USER"
    )]
    RunsAsRoot { image: String, user: String },
    /// AppArmor is required and not there.
    #[error("containers must be confined (require_apparmor) and cannot be: {0}")]
    Unconfined(String),
    /// A mount string that is refused.
    #[error("create spec failed: {0}")]
    InvalidMount(#[source] Cause),
    /// A limit or other choice that cannot be.
    #[error("invalid option: {0}")]
    InvalidOption(String),
    /// A port string outside the grammar.
    #[error(
        "forward rule failed: port format failed: {0}; write [address:][host:]container[/protocol], as in 8080:80 or \
         5353:53/udp"
    )]
    PortFormat(String),
    /// A port number or protocol that does not exist.
    #[error("forward rule failed: {0}")]
    InvalidPort(String),
    /// Somebody else has the host port.
    #[error("forward rule failed: host port {port}/{protocol} is already used by {holder}")]
    PortTaken {
        port: u16,
        protocol: crate::model::Protocol,
        holder: String,
    },
    /// The kernel does not let us hold a port.
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
    /// One client more than a terminal takes.
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
    /// A hook that cannot occur in that state.
    #[error("event {event} is not expected in state {state}")]
    UnexpectedEvent { event: HookEvent, state: ContainerState },
    /// A certificate was asked for outside a create or restart, or a second time.
    #[error("invalid container id")]
    NoCertificateDue,
    /// A runtime call failed; `step` is the contract's prefix.
    #[error("{step}: {source}")]
    Runtime { step: &'static str, source: RuntimeError },
    /// A later step of a removal failed. The container stays, marked; the removal can be repeated.
    #[error("{step}: {source}")]
    Cleanup { step: &'static str, source: Cause },
    /// The runtime's description of the container could not be made: a defect.
    #[error("create spec failed: {0}")]
    Spec(#[source] Cause),
    /// Another record has what the container needs and should be its own.
    #[error("reserve failed: {:?} is taken", .0.claim)]
    Claim(#[source] Taken),
    /// More lines of a log than are given out at once.
    #[error("invalid tail lines: max={0}")]
    TooManyLines(usize),
    /// Files of the container cannot be written or read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The rules could not be applied.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// An interface could not be handled.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The state could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operation ended without an answer: a defect, which the log describes.
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
    /// A claim that another record holds, in the words of the contract.
    pub(super) fn taken(taken: Taken, snapshot: &crate::model::Snapshot) -> Self {
        use crate::model::Claim;
        match &taken.claim {
            &Claim::HostPort(protocol, port, _) => {
                let holder = snapshot.describe(&taken.holder);
                Self::PortTaken { port, protocol, holder }
            }
            Claim::ContainerName(name) => Self::NameTaken(name.clone()),
            // An address is drawn in the same transaction from those that nobody claims.
            _ => Self::Claim(taken),
        }
    }
}
