//! Why a manifest is refused, and where.

use super::yaml::YamlError;

/// An invalid manifest: the error, and its document, line and field.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{problem}{}", self.place())]
pub struct ManifestError {
    /// The error.
    pub problem: Problem,
    /// Number of the document in the stream, from 1.
    pub document: usize,
    /// Line in the stream, from 1.
    pub line: usize,
    /// Path of the field, as in `spec.containers[0].image`; empty for the document as a whole.
    pub field: String,
}

/// The error in a manifest. The first five are fixed texts of the contract (`docs/spec/api.md` 11.5); the API puts
/// `invalid yaml: ` before the others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A document has no kind.
    #[error("kind is required; use one of Pod, Deployment, ReplicaSet, Service and List")]
    NoKind,
    /// An unsupported kind.
    #[error("unsupported kind: {0}; use one of Pod, Deployment, ReplicaSet, Service and List")]
    UnsupportedKind(String),
    /// A resource other than a service, where only services are accepted.
    #[error("unsupported kind: {0}; only Service is taken here")]
    NotAService(String),
    /// A service without a name.
    #[error("name and namespace are required; write them in metadata, the namespace may be missing")]
    NoServiceName,
    /// All documents of the stream are empty.
    #[error("no resource in the body; send at least one document with a kind")]
    Nothing,
    /// A service is expected, but there is no document.
    #[error("service manifest not found; send a document with kind: Service")]
    NoService,
    /// Everything else.
    #[error("{0}")]
    Other(String),
}

impl ManifestError {
    /// The position, for people.
    fn place(&self) -> String {
        if matches!(self.problem, Problem::Nothing | Problem::NoService) {
            return String::new();
        }
        let field = match &self.field[..] {
            "" => String::new(),
            field => format!(", field {field}"),
        };
        format!(" (document {}, line {}{field})", self.document, self.line)
    }
}

impl From<YamlError> for ManifestError {
    fn from(error: YamlError) -> Self {
        Self {
            problem: Problem::Other(error.problem),
            document: error.document,
            line: error.line,
            field: String::new(),
        }
    }
}
