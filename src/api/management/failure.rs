//! Which status an error of a service becomes (`contract/api.md` 0.1).

use crate::api::ApiError;
use crate::build::BuildError;
use crate::container::ContainerError;
use crate::image::ImageError;

impl From<ContainerError> for ApiError {
    fn from(error: ContainerError) -> Self {
        use ContainerError as E;
        let message = error.to_string();
        match error {
            E::Image(image) => image.into(),
            E::NotFound(_) | E::PodNotFound(_) | E::NetworkNotFound(_) => Self::not_found(message),
            E::InvalidName(_)
            | E::NameIsId(_)
            | E::NoCommand
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
            | E::AlreadyStarted(_)
            | E::WrongState { .. }
            | E::NotRunning(_)
            | E::NoTerminal(_)
            | E::TooManyClients(_)
            | E::ManagedByBottle { .. }
            | E::UnexpectedEvent { .. } => Self::conflict(message),
            E::NoCertificateDue => Self::forbidden(message),
            E::Runtime { .. }
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
            E::EmptyRepository | E::InvalidReference(_) | E::UnknownUser { .. } | E::NoLayer(_) => {
                Self::bad_request(message)
            }
            E::ManifestNotFound(_) | E::NoPlatform { .. } | E::NotFound(_) => Self::not_found(message),
            E::InUse { .. } => Self::conflict(message),
            E::Registry { .. } | E::BadImage { .. } | E::BadLayer { .. } => Self::bad_gateway(message),
            E::Store(_) | E::Io(_) => Self::internal(message),
        }
    }
}
