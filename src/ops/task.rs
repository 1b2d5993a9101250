//! Work in tasks of its own: operations that go on when their client leaves, and what blocks.
//!
//! A panic is a defect of ours, which the log describes; whoever waits gets [`Unfinished`] as their own error.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinError;
use tokio_util::task::TaskTracker;

/// The work ended without an answer.
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
    /// Runs an operation to its end, also when the caller is dropped. It is one of those that [`Operations::finish`]
    /// waits for. It begins with the call, and is on the heap: what the caller awaits is small, however much the
    /// operation keeps, so that operations may call each other without filling the stack of a worker.
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

    /// Waits until none is in progress. New ones are still taken: close the listeners first.
    pub async fn finish(&self) {
        self.0.close();
        self.0.wait().await;
    }
}

/// Runs work to its end, also when the caller is dropped; nobody waits for it at a shutdown.
pub fn detached<T, E>(work: impl Future<Output = Result<T, E>> + Send + 'static) -> BoxFuture<'static, Result<T, E>>
where
    T: Send + 'static,
    E: From<Unfinished> + Send + 'static,
{
    let task = tokio::spawn(Box::pin(work));
    async move { task.await.unwrap_or_else(unfinished) }.boxed()
}

/// Runs what blocks, such as work on files, away from the executor.
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
