//! Why a manifest is refused, and where.

use super::yaml::YamlError;

/// A manifest that is refused: what is wrong, and the document, line and field it stands in.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{problem}{}", self.place())]
pub struct ManifestError {
    /// What is wrong.
    pub problem: Problem,
    /// Number of the document in the stream, from 1.
    pub document: usize,
    /// Line in the stream, from 1.
    pub line: usize,
    /// Path of the field, as in `spec.containers[0].image`; empty for the document as a whole.
    pub field: String,
}

/// What is wrong with a manifest. The first five are words of the contract that stand for themselves
/// (`docs/spec/api.md` 11.5); the API puts `invalid yaml: ` before the others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A document does not say what it is.
    #[error("kind is required; use one of Pod, Deployment, ReplicaSet, Service and List")]
    NoKind,
    /// A kind that this daemon does not have.
    #[error("unsupported kind: {0}; use one of Pod, Deployment, ReplicaSet, Service and List")]
    UnsupportedKind(String),
    /// Anything but a service, where only a service is taken.
    #[error("unsupported kind: {0}; only Service is taken here")]
    NotAService(String),
    /// A service without a name.
    #[error("name and namespace are required; write them in metadata, the namespace may be missing")]
    NoServiceName,
    /// The stream has no document that says anything.
    #[error("no resource in the body; send at least one document with a kind")]
    Nothing,
    /// A service is asked for, and there is no document.
    #[error("service manifest not found; send a document with kind: Service")]
    NoService,
    /// Everything else.
    #[error("{0}")]
    Other(String),
}

impl ManifestError {
    /// Where it is, for people.
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
