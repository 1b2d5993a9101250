//! Listening on a port that an earlier daemon may not have released yet.
//!
//! If a daemon is killed while it starts a child, the child keeps the daemon's sockets until it executes its program. A
//! daemon that starts within these milliseconds would find its ports taken.
//!
//! What this module never does: share a port (no `SO_REUSEPORT`), or wait for a port that somebody else serves on.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

/// How long a port that is in use is tried again. A fork and an exec take a few milliseconds, more on a busy machine.
const PATIENCE: Duration = Duration::from_secs(1);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// Calls `bind` until it returns anything but [`io::ErrorKind::AddrInUse`], for about a second. Returns the last result.
pub async fn when_free<T, F: Future<Output = io::Result<T>>>(mut bind: impl FnMut() -> F) -> io::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match bind().await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                tokio::time::sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_port_that_is_let_go_of_soon_is_waited_for() {
        let before = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = before.local_addr().unwrap();
        let begun = Instant::now();
        let held = Duration::from_millis(300);
        let holder = tokio::spawn(async move {
            tokio::time::sleep(held).await;
            drop(before);
        });
        when_free(|| TcpListener::bind(address)).await.unwrap();
        assert!(begun.elapsed() >= held);
        holder.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_stays_taken_is_an_error() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        let begun = Instant::now();
        let error = when_free(|| TcpListener::bind(address)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!((PATIENCE..2 * PATIENCE).contains(&begun.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn other_errors_are_told_at_once() {
        let begun = Instant::now();
        let refused = || io::Error::from(io::ErrorKind::AddrNotAvailable);
        let error = when_free(async || Err::<(), _>(refused())).await.unwrap_err();
        assert_eq!(
            (error.kind(), begun.elapsed()),
            (io::ErrorKind::AddrNotAvailable, Duration::ZERO)
        );
    }
}
