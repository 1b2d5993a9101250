//! Cached answers: serialized once, and sent to every client until the store changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use crate::api::envelope;
use crate::api::envelope::Success;

/// The cached answer of one route. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct CachedResponse(Arc<Mutex<Option<Written>>>);

#[derive(Debug, Clone)]
struct Written {
    revision: Revision,
    answer: (StatusCode, Bytes),
}

/// The revisions of the snapshot and of the conditions.
type Revision = (u64, u64);

impl CachedResponse {
    /// The answer for this snapshot and these conditions. It must not depend on anything else. Read
    /// `revision` before both.
    pub(super) fn get<B: Serialize>(&self, revision: Revision, answer: impl FnOnce() -> Success<B>) -> Response {
        let kept = self.lock().clone().filter(|kept| kept.revision == revision);
        let answer = kept.map_or_else(|| answer().write(), |kept| kept.answer);
        let kept = answer.clone();
        *self.lock() = Some(Written { revision, answer: kept });
        envelope::send(answer)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Written>> {
        // Each update replaces the whole value, so a poisoned lock is harmless.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::envelope::success;
    use crate::api::envelope::tests::parts;
    use crate::model::{PolicySettings, Txn};
    use crate::net::policy::PolicyError;
    use crate::store::Store;

    #[tokio::test]
    async fn an_answer_is_made_once_for_each_revision() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).unwrap();
        let kept = CachedResponse::default();
        let ask = async |n: u32, conditions: u64| {
            parts(kept.get((store.snapshot().revision(), conditions), || success("read", n))).await
        };
        let first = ask(1, 0).await;
        assert_eq!(first.2, "{\"status\":\"success\",\"message\":\"read\",\"data\":1}\n");
        assert_eq!(ask(2, 0).await, first);
        let change = |t: &mut Txn| Ok::<_, PolicyError>(t.put(PolicySettings::default())?);
        store.transact(change).await.unwrap();
        assert!(ask(3, 0).await.2.contains("3"));
        assert!(ask(4, 1).await.2.contains("4"));
    }
}
