//! Drains the unread rest of a request body after the answer.
//!
//! A handler that refuses a request early (a wrong path, query or name) has not read the body. Many clients read the
//! answer only after they have sent everything: if the connection is closed before, they report a connection error and
//! lose the message. Therefore the rest is read and discarded in the background, within limits.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{Request, header};
use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio_util::sync::CancellationToken;

/// How much is discarded before the connection is closed, in bytes, and for how long.
const MAX_BYTES: usize = 64 << 20;
const MAX_TIME: Duration = Duration::from_secs(30);

/// The body of a request. If it is dropped early, the rest is drained.
pub(super) struct Drained {
    body: Option<Incoming>,
    /// The client waits for `100 Continue`, which has not been sent.
    waits: bool,
    shutdown: CancellationToken,
}

impl Drained {
    /// `shutdown` stops the draining.
    pub(super) fn request(request: Request<Incoming>, shutdown: &CancellationToken) -> Request<Self> {
        let waits = request.headers().contains_key(header::EXPECT);
        request.map(|body| Self {
            body: Some(body),
            waits,
            shutdown: shutdown.clone(),
        })
    }
}

impl Body for Drained {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.waits = false;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !self.waits && !body.is_end_stream()) else {
            return;
        };
        let shutdown = self.shutdown.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::select! {
                    _ = tokio::time::timeout(MAX_TIME, drain(body)) => {}
                    () = shutdown.cancelled() => {}
                }
            });
        }
    }
}

async fn drain(mut body: Incoming) {
    let mut length = 0;
    while length <= MAX_BYTES
        && let Some(Ok(frame)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
    {
        length += frame.data_ref().map_or(0, Buf::remaining);
    }
}
