//! Maps errors of services to codes (`docs/spec/errors.md`), and thereby to statuses.

use crate::api::Code;
use crate::api::error::Coded;
use crate::image::{ImageError, RegistryTrouble};
use crate::model::Unresolved;
use crate::net::bridges::NetworkError;
use crate::net::enforcement::NetworksError;
use crate::net::firewall::FirewallError;
use crate::net::policy::PolicyError;
use crate::runtime::RuntimeError;
use crate::store::StoreError;
use crate::workload::apply::{ApplyError, ResourceError};
use crate::workload::balancer::ServiceError;
use crate::workload::bottle::BottleError;
use crate::workload::build::BuildError;
use crate::workload::container::ContainerError;
use crate::workload::disk::DiskError;
use crate::workload::manifest::{ManifestError, Problem, ResourceKind};
use crate::workload::pod::PodError;
use crate::workload::replica_set::SetError;

impl Coded for ContainerError {
    fn code(&self) -> Code {
        use ContainerError as E;
        match self {
            E::Image(image) => image.code(),
            E::NotFound(_) => Code::ContainerNotFound,
            E::Ambiguous(_) => Code::ContainerAmbiguous,
            E::PodNotFound(_) => Code::PodNotFound,
            E::BottleNotFound(_) => Code::BottleNotFound,
            E::NetworkNotFound(_) => Code::NetworkNotFound,
            E::InvalidName(_) | E::NameIsId(_) => Code::InvalidName,
            E::NameTaken(_) => Code::NameTaken,
            E::NoCommand | E::EmptyCommand => Code::CommandMissing,
            E::RunsAsRoot { .. } => Code::RunsAsRoot,
            E::InvalidOption(_) => Code::InvalidOption,
            E::InvalidMount(_) => Code::InvalidMount,
            E::PortFormat(_) | E::InvalidPort(_) => Code::InvalidPort,
            E::PortTaken { .. } => Code::PortTaken,
            E::Port(_) => Code::PortFailed,
            E::TooManyLines(_) => Code::InvalidQuery,
            E::ImageGone(_) => Code::ImageGone,
            E::SubnetFull(_) => Code::AddressesExhausted,
            E::NoInfra(_) => Code::PodNotRunning,
            E::AlreadyStarted(_) => Code::AlreadyStarted,
            E::WrongState { .. } => Code::WrongState,
            E::NotRunning(_) => Code::NotRunning,
            E::NoTerminal(_) => Code::NoTerminal,
            E::TooManyClients(_) => Code::TooManyClients,
            E::ManagedByBottle { .. } => Code::ManagedByBottle,
            E::UnexpectedEvent { .. } => Code::UnexpectedEvent,
            E::NoCertificateDue => Code::CsrDenied,
            E::Runtime { source, .. } => match source {
                RuntimeError::Refused { .. } => Code::RuntimeRefused,
                RuntimeError::Spawn { .. } | RuntimeError::Failed { .. } | RuntimeError::TimedOut { .. } => {
                    Code::RuntimeFailed
                }
            },
            E::Cleanup { .. } => Code::RemovalFailed,
            E::Spec(_) | E::Claim(_) => Code::Internal,
            E::Io(_) => Code::FilesFailed,
            E::Firewall(error) => error.code(),
            E::Store(error) | E::Network(NetworkError::Store(error)) => error.code(),
            E::Network(_) => Code::NetworkFailed,
            E::Unconfined(_) => Code::AppArmorUnavailable,
            E::Panicked => Code::Internal,
        }
    }
}

impl Coded for DiskError {
    fn code(&self) -> Code {
        match self {
            Self::Image(error) => error.code(),
            Self::Container(error) => error.code(),
            Self::Build(error) => error.code(),
            Self::Io(_) => Code::FilesFailed,
            Self::Unfinished(_) => Code::Internal,
        }
    }
}

impl Coded for BuildError {
    fn code(&self) -> Code {
        use BuildError as E;
        match self {
            E::Context(_) if self.is_too_large() => Code::BodyTooLarge,
            E::Context(_) if self.is_internal() => Code::FilesFailed,
            E::Context(_) => Code::InvalidBuildContext,
            E::NoTag | E::NoTarget { .. } | E::NoPlatform(_) => Code::InvalidQuery,
            E::DripfilePath | E::NoDripfile(_) | E::LongDripfile { .. } | E::File(_) | E::Ignore { .. } => {
                Code::InvalidBuildFile
            }
            E::DigestTag(_) => Code::InvalidImageReference,
            E::OtherPlatform(_) => Code::PlatformNotFound,
            E::NoSource { .. } | E::Refused(_) | E::NothingToRun | E::NoSecret(_) | E::Download { .. } => {
                Code::BuildStepRefused
            }
            E::TooMuch(_) => Code::BuildStepRefused,
            E::At { source, .. } => source.code(),
            E::Run { .. } => Code::BuildCommandFailed,
            E::RunTime(_) => Code::BuildCommandTimeout,
            E::Image(error) => error.code(),
            E::Container(error) => error.code(),
            E::Cancelled => Code::Cancelled,
            E::Io(_) | E::Read { .. } => Code::FilesFailed,
            E::Unfinished { .. } => Code::Internal,
        }
    }

    fn prefix(&self) -> &'static str {
        match self {
            Self::Context(_) | Self::NoTag | Self::DripfilePath => "",
            _ => "build failed: ",
        }
    }
}

impl Coded for ImageError {
    fn code(&self) -> Code {
        use ImageError as E;
        match self {
            E::EmptyRepository | E::InvalidReference(_) | E::DigestName(_) => Code::InvalidImageReference,
            E::BadArchive(_) => Code::InvalidImageArchive,
            E::InvalidChange(_) => Code::InvalidOption,
            E::UnknownUser { .. } => Code::UnknownUser,
            E::NoLayer(_) => Code::BuildStepRefused,
            E::NotAnImage { .. } => Code::NotAnImage,
            E::ManifestNotFound(_) => Code::ManifestNotFound,
            E::NoPlatform { .. } | E::OtherPlatform { .. } => Code::PlatformNotFound,
            E::NotFound(_) => Code::ImageNotFound,
            E::InUse { .. } => Code::ImageInUse,
            E::LayerLost(_) => Code::LayerLost,
            E::Registry { trouble, .. } => match trouble {
                RegistryTrouble::Denied => Code::RegistryDenied,
                RegistryTrouble::Limited => Code::RegistryLimited,
                RegistryTrouble::Other => Code::RegistryFailed,
            },
            E::BadImage { .. } | E::BadLayer { .. } => Code::BadImage,
            E::DiskFull { .. } => Code::DiskFull,
            E::Store(error) => error.code(),
            E::Io(_) => Code::FilesFailed,
            E::GivenUp => Code::Cancelled,
            E::Unfinished { .. } | E::Taken(_) => Code::Internal,
        }
    }
}

impl Coded for NetworkError {
    fn code(&self) -> Code {
        match self {
            Self::BadName(_) => Code::InvalidName,
            Self::NotFound(_) => Code::NetworkNotFound,
            Self::Exists(_) | Self::Foreign(_) | Self::Taken(_) => Code::NameTaken,
            Self::InUse(_) => Code::NetworkInUse,
            Self::Default(_) => Code::DefaultNetwork,
            Self::NoSubnet(_) => Code::SubnetsExhausted,
            Self::Sysctl { .. } | Self::Kernel { .. } | Self::NoLink(_) => Code::NetworkFailed,
            Self::Store(error) => error.code(),
        }
    }
}

impl Coded for NetworksError {
    fn code(&self) -> Code {
        match self {
            Self::Network(error) => error.code(),
            Self::Firewall(error) => error.code(),
        }
    }
}

impl Coded for PolicyError {
    fn code(&self) -> Code {
        use PolicyError as E;
        match self {
            E::UnknownChain(_) | E::UnknownMode(_) | E::Invalid(_) => Code::InvalidPolicy,
            E::NotFound(_) => Code::PolicyNotFound,
            E::Unresolved(Unresolved::NotFound(_)) => Code::EndNotFound,
            E::Unresolved(Unresolved::PodWithoutAddress(_) | Unresolved::NoPods(_)) => Code::EndWithoutAddress,
            E::Duplicate(_) => Code::PolicyExists,
            E::ModeAlreadySet(_) => Code::ModeAlreadySet,
            E::Firewall(error) => error.code(),
            E::Store(error) => error.code(),
            E::Taken(_) => Code::Internal,
        }
    }
}

impl Coded for PodError {
    fn code(&self) -> Code {
        use PodError as E;
        match self {
            E::Container(container) => container.code(),
            E::NotFound(_) => Code::PodNotFound,
            E::NoName | E::InvalidName { .. } | E::NoContainerName => Code::InvalidName,
            E::InvalidTemplate(_) => Code::InvalidPod,
            E::NameTaken { .. } => Code::NameTaken,
            E::Owned { .. } => Code::ManagedByReplicaSet,
            E::BeingRemoved(_) => Code::BeingRemoved,
            E::Unsettled(_) => Code::PodUnsettled,
            E::Volumes(_) => Code::FilesFailed,
            E::Store(error) => error.code(),
            E::Panicked => Code::Internal,
        }
    }
}

impl Coded for ServiceError {
    fn code(&self) -> Code {
        use ServiceError as E;
        match self {
            E::NotFound(_) => Code::ServiceNotFound,
            E::NameRequired | E::InvalidName { .. } => Code::InvalidName,
            E::PortZero(_) | E::PortTwice { .. } => Code::InvalidPort,
            E::InvalidAffinity(_) => Code::InvalidOption,
            E::NameTaken => Code::NameTaken,
            E::PortTaken { .. } => Code::PortTaken,
            E::Port(_) => Code::PortFailed,
            E::Store(error) => error.code(),
        }
    }
}

impl Coded for BottleError {
    fn code(&self) -> Code {
        use BottleError as E;
        match self {
            E::Yaml(_) | E::NoName | E::NoServices | E::Invalid(_) | E::Dependency(_) => Code::InvalidBottle,
            E::PolicyFile(_) => Code::InvalidPolicy,
            E::NotFound(_) => Code::BottleNotFound,
            E::NameTaken => Code::NameTaken,
            E::Unfinished(_) => Code::BeingRemoved,
            E::NotHealthy { .. } => Code::NotHealthy,
            E::Policy(cause) | E::RemovePolicies(cause) => cause.code(),
            E::CreateNetwork(cause) | E::RemoveNetwork(cause) => cause.code(),
            E::Create(cause) | E::Service { source: cause, .. } => cause.code(),
            E::Volume { .. } => Code::FilesFailed,
            E::Store(error) => error.code(),
            E::Panicked => Code::Internal,
        }
    }
}

impl Coded for SetError {
    fn code(&self) -> Code {
        match self {
            Self::Pod(pod) => pod.code(),
            Self::NotFound(_) => Code::ReplicaSetNotFound,
            Self::BeingRemoved(_) => Code::BeingRemoved,
            Self::Store(error) => error.code(),
            Self::Panicked => Code::Internal,
        }
    }
}

impl Coded for ResourceError {
    fn code(&self) -> Code {
        match self {
            Self::Pod(error) => error.code(),
            Self::Service(error) => error.code(),
            Self::Set(error) => error.code(),
        }
    }
}

impl Coded for ManifestError {
    fn code(&self) -> Code {
        match self.problem {
            Problem::UnsupportedKind(_) => Code::UnsupportedKind,
            Problem::NoKind
            | Problem::NoServiceName
            | Problem::Nothing
            | Problem::NoService
            | Problem::NotAService(_)
            | Problem::Other(_) => Code::InvalidManifest,
        }
    }

    fn prefix(&self) -> &'static str {
        match self.problem {
            Problem::NoKind | Problem::UnsupportedKind(_) | Problem::NoServiceName => "",
            Problem::Nothing | Problem::NoService | Problem::NotAService(_) | Problem::Other(_) => "invalid yaml: ",
        }
    }
}

impl Coded for ApplyError {
    fn code(&self) -> Code {
        use ApplyError as E;
        match self {
            E::Manifest(error) => error.code(),
            E::Failed { failed, .. } => failed.what.code(),
            E::NotFound(ResourceKind::Pod) => Code::PodNotFound,
            E::NotFound(ResourceKind::ReplicaSet) => Code::ReplicaSetNotFound,
            E::NotFound(ResourceKind::Service) => Code::ServiceNotFound,
            E::Remove { .. } => Code::RemovalFailed,
            E::Panicked => Code::Internal,
        }
    }

    fn prefix(&self) -> &'static str {
        match self {
            Self::Manifest(error) => error.prefix(),
            _ => "",
        }
    }
}

impl Coded for FirewallError {
    fn code(&self) -> Code {
        match self {
            Self::Missing(_) | Self::Run { .. } | Self::Timeout { .. } | Self::Refused { .. } | Self::Unverified(_) => {
                Code::FirewallFailed
            }
            Self::Stopped => Code::Cancelled,
        }
    }
}

impl Coded for StoreError {
    fn code(&self) -> Code {
        match self {
            Self::Open { .. } | Self::InUse { .. } | Self::Document { .. } | Self::Commit(_) => Code::StoreFailed,
            Self::Closed => Code::Cancelled,
            Self::Panicked => Code::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ApiError;
    use crate::model::Protocol;
    use crate::workload::apply::Failed;

    #[test]
    fn what_failed_within_something_has_the_code_of_its_cause() {
        let cause = ContainerError::PortTaken {
            port: 80,
            protocol: Protocol::Tcp,
            holder: "nginx".into(),
        };
        let what = ResourceError::Set(SetError::Pod(PodError::Container(cause)));
        let failed = Box::new(Failed { step: "", what });
        let (place, undone) = (String::new(), String::new());
        let error = ApiError::from(ApplyError::Failed { failed, place, undone });
        assert_eq!((error.code, error.status().as_u16()), (Code::PortTaken, 409));
        assert!(error.message.contains("80/tcp is already used by nginx"), "{error}");
    }

    #[test]
    fn a_manifest_and_a_build_have_the_words_of_the_contract_in_front() {
        let refused = |problem| ManifestError {
            problem,
            document: 1,
            line: 1,
            field: String::new(),
        };
        let error = ApiError::from(ApplyError::Manifest(refused(Problem::Nothing)));
        assert!(error.message.starts_with("invalid yaml: no resource"), "{error}");
        let error = ApiError::from(ApplyError::Manifest(refused(Problem::UnsupportedKind("Job".into()))));
        assert_eq!(error.code, Code::UnsupportedKind);
        assert!(
            error.message.starts_with("unsupported kind: Job; use one of "),
            "{error}"
        );
        let error = ApiError::from(BuildError::Image(ImageError::NotFound("a:1".into())));
        assert_eq!(
            (error.code, &error.message[..]),
            (Code::ImageNotFound, "build failed: a:1 not found")
        );
        assert!(
            ApiError::from(BuildError::NoTag)
                .message
                .starts_with("missing tag query: ")
        );
    }
}
