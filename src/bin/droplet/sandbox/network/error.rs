//! Errors of the network setup.

use std::time::Duration;

/// Time limit for interface and bridge to become operational. This usually takes a millisecond, but the kernel may
/// delay such work by a second.
pub const OPERATIONAL_LIMIT: Duration = Duration::from_secs(5);

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The annotation has an invalid value.
    #[error("annotation io.raind.net.config: {0}")]
    Annotation(String),
    /// A netlink or system call failed.
    #[error("{action} {object}: {source}")]
    Kernel {
        /// The operation that failed.
        action: &'static str,
        /// The interface, address or route of the operation.
        object: String,
        /// Reason.
        source: std::io::Error,
    },
    /// An interface of that name exists, and this runtime must not delete it.
    #[error("interface {0} exists and is in use")]
    InUse(String),
    /// An interface did not become operational in time.
    #[error("interface {0} did not become operational within {limit} s; check that it and its bridge are up", limit = OPERATIONAL_LIMIT.as_secs())]
    NotOperational(String),
}
