//! What caused an error, whatever its type, for errors that several waiters are told.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A shared error. As a source it is the error itself, which can be downcast.
#[derive(Clone)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

impl Cause {
    /// An error, or a sentence that stands for one.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Cause {
    fn from(error: E) -> Self {
        Self(Arc::new(error))
    }
}

// Not an error itself: then it would stand between an error and its source.
impl Deref for Cause {
    type Target = dyn Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, Clone, thiserror::Error)]
    #[error("cannot write: {0}")]
    struct Failed(#[source] Cause);

    #[test]
    fn the_source_is_the_error_itself() {
        let failed = Failed(io::Error::from(io::ErrorKind::StorageFull).into()).clone();
        let source = failed.source().unwrap().downcast_ref::<io::Error>().unwrap();
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert_eq!(failed.to_string(), format!("cannot write: {source}"));
    }

    #[test]
    fn a_sentence_stands_for_an_error() {
        assert_eq!(Failed(Cause::new("it is full")).to_string(), "cannot write: it is full");
    }
}
