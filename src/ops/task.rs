//! Runs work in tasks of its own: operations that continue when their client leaves, and blocking work.
//!
//! A panic is a bug of ours and is logged; the waiting caller gets [`Unfinished`].

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinError;
use tokio_util::task::TaskTracker;

/// The work ended without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operation failed unexpectedly; see the daemon's log")]
pub struct Unfinished;

impl From<Unfinished> for std::io::Error {
    fn from(unfinished: Unfinished) -> Self {
        Self::other(unfinished)
    }
}

/// Operations in progress. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Operations(TaskTracker);

impl Operations {
    /// Runs an operation to completion, even if the caller is dropped. [`Operations::finish`] waits for it. It begins
    /// with the call and lives on the heap: the future that the caller awaits is small, so operations can call each
    /// other without overflowing the stack of a worker.
    pub fn run<T, E>(
        &self,
        operation: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, E>>
    where
        T: Send + 'static,
        E: From<Unfinished> + Send + 'static,
    {
        let task = self.0.spawn(Box::pin(operation));
        async move { task.await.unwrap_or_else(unfinished) }.boxed()
    }

    /// Waits until no operation is in progress. New ones are still accepted: close the listeners first.
    pub async fn finish(&self) {
        self.0.close();
        self.0.wait().await;
    }
}

/// Runs work to completion, even if the caller is dropped; a shutdown does not wait for it.
pub fn detached<T, E>(work: impl Future<Output = Result<T, E>> + Send + 'static) -> BoxFuture<'static, Result<T, E>>
where
    T: Send + 'static,
    E: From<Unfinished> + Send + 'static,
{
    let task = tokio::spawn(Box::pin(work));
    async move { task.await.unwrap_or_else(unfinished) }.boxed()
}

/// Runs blocking work, such as file I/O, off the executor.
pub async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Unfinished> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.unwrap_or_else(unfinished)
}

fn unfinished<T, E: From<Unfinished>>(error: JoinError) -> Result<T, E> {
    tracing::error!(%error, "work ended without an answer");
    Err(Unfinished.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_operation_goes_on_when_its_client_leaves() {
        let operations = Operations::default();
        let (done, seen) = tokio::sync::oneshot::channel();
        let (go, begun) = tokio::sync::oneshot::channel::<()>();
        let operation = async move {
            begun.await.unwrap();
            done.send(()).unwrap();
            Ok::<_, Unfinished>(())
        };
        let client = tokio::time::timeout(std::time::Duration::ZERO, operations.run(operation));
        assert!(client.await.is_err(), "the client has left");
        go.send(()).unwrap();
        operations.finish().await;
        seen.await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let panics = async || -> Result<(), Unfinished> { panic!("a defect") };
        assert_eq!(Operations::default().run(panics()).await, Err(Unfinished));
        assert_eq!(detached(panics()).await, Err(Unfinished));
        let blocks = || -> Result<(), Unfinished> { panic!("a defect") };
        assert_eq!(blocking(blocks).await, Err(Unfinished));
    }
}
