//! Which status an error of a service becomes (`docs/spec/api.md` 0.1).

use crate::api::ApiError;
use crate::image::ImageError;
use crate::net::bridges::NetworkError;
use crate::net::enforcement::NetworksError;
use crate::net::policy::PolicyError;
use crate::runtime::RuntimeError;
use crate::workload::apply::{ApplyError, Cause};
use crate::workload::balancer::ServiceError;
use crate::workload::bottle::BottleError;
use crate::workload::build::BuildError;
use crate::workload::container::ContainerError;
use crate::workload::manifest::Problem;
use crate::workload::pod::PodError;
use crate::workload::replica_set::SetError;

impl From<ContainerError> for ApiError {
    fn from(error: ContainerError) -> Self {
        use ContainerError as E;
        let message = error.to_string();
        match error {
            E::Image(image) => image.into(),
            E::NotFound(_) | E::PodNotFound(_) | E::BottleNotFound(_) | E::NetworkNotFound(_) => {
                Self::not_found(message)
            }
            E::InvalidName(_)
            | E::NameIsId(_)
            | E::NoCommand
            | E::RunsAsRoot { .. }
            | E::InvalidOption(_)
            | E::InvalidMount(_)
            | E::PortFormat(_)
            | E::InvalidPort(_)
            | E::EmptyCommand
            | E::TooManyLines(_) => Self::bad_request(message),
            E::Ambiguous(_)
            | E::ImageGone(_)
            | E::NameTaken(_)
            | E::PortTaken { .. }
            | E::SubnetFull(_)
            | E::NoInfra(_)
            | E::AlreadyStarted(_)
            | E::WrongState { .. }
            | E::NotRunning(_)
            | E::NoTerminal(_)
            | E::TooManyClients(_)
            | E::ManagedByBottle { .. }
            | E::UnexpectedEvent { .. } => Self::conflict(message),
            E::NoCertificateDue => Self::forbidden(message),
            E::Runtime {
                source: RuntimeError::Refused { .. },
                ..
            } => Self::bad_request(message),
            E::Runtime { .. }
            | E::Port(_)
            | E::Cleanup { .. }
            | E::Io(_)
            | E::Firewall(_)
            | E::Network(_)
            | E::Store(_)
            | E::Unconfined(_)
            | E::Panicked => Self::internal(message),
        }
    }
}

impl From<BuildError> for ApiError {
    fn from(error: BuildError) -> Self {
        use BuildError as E;
        const PREFIX: &str = "build failed: ";
        let message = error.to_string();
        match error {
            E::Context(_) if error.is_too_large() => Self::too_large(message),
            E::Context(_) if error.is_internal() => Self::internal(message),
            E::NoTag | E::Context(_) | E::DripfilePath => Self::bad_request(message),
            E::NoDripfile(_)
            | E::LongDripfile { .. }
            | E::Dripfile(_)
            | E::DigestTag(_)
            | E::NoSource(_)
            | E::Files(_)
            | E::NothingToRun
            | E::Run { .. }
            | E::RunTime(_) => Self::bad_request(message).prefixed(PREFIX),
            E::Image(error) => Self::from(error).prefixed(PREFIX),
            E::Container(error) => Self::from(error).prefixed(PREFIX),
            E::Cancelled | E::Io(_) => Self::internal(message).prefixed(PREFIX),
        }
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        use ImageError as E;
        let message = error.to_string();
        match error {
            E::EmptyRepository
            | E::InvalidReference(_)
            | E::UnknownUser { .. }
            | E::NoLayer(_)
            | E::NotAnImage { .. } => Self::bad_request(message),
            E::ManifestNotFound(_) | E::NoPlatform { .. } | E::NotFound(_) => Self::not_found(message),
            E::InUse { .. } | E::LayerLost(_) => Self::conflict(message),
            E::Registry { .. } | E::BadImage { .. } | E::BadLayer { .. } => Self::bad_gateway(message),
            E::Store(_) | E::Io(_) => Self::internal(message),
        }
    }
}

impl From<NetworksError> for ApiError {
    fn from(error: NetworksError) -> Self {
        use NetworkError as E;
        let message = error.to_string();
        match error {
            NetworksError::Network(E::BadName(_)) => Self::bad_request(message),
            NetworksError::Network(E::NotFound(_)) => Self::not_found(message),
            NetworksError::Network(
                E::Exists(_) | E::Foreign(_) | E::InUse(_) | E::Default(_) | E::NoSubnet(_) | E::Taken(_),
            ) => Self::conflict(message),
            NetworksError::Network(E::Sysctl { .. } | E::Kernel { .. } | E::NoLink(_) | E::Store(_))
            | NetworksError::Firewall(_) => Self::internal(message),
        }
    }
}

impl From<PolicyError> for ApiError {
    fn from(error: PolicyError) -> Self {
        use PolicyError as E;
        let message = error.to_string();
        match error {
            E::UnknownChain(_) | E::UnknownMode(_) | E::Invalid(_) => Self::bad_request(message),
            E::NotFound(_) | E::Unresolved(_) => Self::not_found(message),
            E::Duplicate(_) | E::ModeAlreadySet(_) => Self::conflict(message),
            E::Firewall(_) | E::Store(_) | E::Taken(_) => Self::internal(message),
        }
    }
}

impl From<PodError> for ApiError {
    fn from(error: PodError) -> Self {
        use PodError as E;
        let message = error.to_string();
        match error {
            E::Container(container) => container.into(),
            E::NotFound(_) => Self::not_found(message),
            E::NoName | E::InvalidName { .. } | E::InvalidTemplate(_) | E::NoContainerName => {
                Self::bad_request(message)
            }
            E::NameTaken { .. } | E::Owned { .. } | E::BeingRemoved(_) | E::Unsettled(_) => Self::conflict(message),
            E::Volumes(_) | E::Store(_) | E::Panicked => Self::internal(message),
        }
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        use ServiceError as E;
        let message = error.to_string();
        match error {
            E::NotFound(_) => Self::not_found(message),
            E::NameRequired | E::InvalidName { .. } | E::PortZero(_) | E::PortTwice { .. } | E::InvalidAffinity(_) => {
                Self::bad_request(message)
            }
            E::NameTaken | E::PortTaken { .. } => Self::conflict(message),
            E::Port(_) | E::Store(_) => Self::internal(message),
        }
    }
}

impl From<BottleError> for ApiError {
    fn from(error: BottleError) -> Self {
        use BottleError as E;
        let message = error.to_string();
        // A message says what failed; the status is that of the cause.
        let like = |cause: Self| Self {
            message: message.clone(),
            ..cause
        };
        match error {
            E::Yaml(_) | E::NoName | E::NoServices | E::Invalid(_) | E::Dependency(_) | E::PolicyFile(_) => {
                Self::bad_request(message)
            }
            E::NotFound(_) => Self::not_found(message),
            E::NameTaken | E::Unfinished(_) | E::NotHealthy { .. } => Self::conflict(message),
            E::Policy(cause) | E::RemovePolicies(cause) => like(cause.into()),
            E::CreateNetwork(cause) | E::RemoveNetwork(cause) => like(cause.into()),
            E::Create(cause) | E::Service { source: cause, .. } => like(cause.into()),
            E::Volume { .. } | E::Store(_) | E::Panicked => Self::internal(message),
        }
    }
}

impl From<SetError> for ApiError {
    fn from(error: SetError) -> Self {
        use SetError as E;
        let message = error.to_string();
        match error {
            E::Pod(pod) => pod.into(),
            E::NotFound(_) => Self::not_found(message),
            E::BeingRemoved(_) => Self::conflict(message),
            E::Store(_) | E::Panicked => Self::internal(message),
        }
    }
}

impl From<Cause> for ApiError {
    fn from(what: Cause) -> Self {
        match what {
            Cause::Pod(error) => error.into(),
            Cause::Service(error) => error.into(),
            Cause::Set(error) => error.into(),
        }
    }
}

impl From<ApplyError> for ApiError {
    fn from(error: ApplyError) -> Self {
        use ApplyError as E;
        let message = error.to_string();
        match error {
            E::Manifest(error) => {
                let prefix = match error.problem {
                    Problem::NoKind | Problem::UnsupportedKind(_) | Problem::NoServiceName => "",
                    Problem::Nothing | Problem::NoService | Problem::Other(_) => "invalid yaml: ",
                };
                Self::bad_request(message).prefixed(prefix)
            }
            E::Failed { failed, .. } => Self {
                message,
                ..failed.what.into()
            },
            E::NotFound(_) => Self::not_found(message),
            E::Remove { .. } | E::Panicked => Self::internal(message),
        }
    }
}
