//! The part of the registry that is pushed to. Faults stand under `GREET`, `BEGIN`, `PATCH`, `STATE`, `FINISH` and
//! `MANIFEST`.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Response, header};
use futures_util::StreamExt;
use serde_json::Value;

use super::{Behaviour, Fault, Shared, answer, digest, fault, unknown};

/// What goes before every request: the note, the token, the faults that are the same everywhere.
fn first(
    b: &mut Behaviour,
    step: &str,
    detail: &str,
    headers: &HeaderMap,
) -> Result<Option<Fault>, Box<Response<Body>>> {
    b.requests.push(format!("{step} {detail}"));
    let fault = fault(b, step);
    if matches!(fault, Some(Fault::ExpireToken)) {
        b.token += 1;
    }
    if let Some(refused) = unknown(b, headers) {
        return Err(refused.into());
    }
    match fault {
        Some(Fault::Status(status)) => Err(answer(status).body("not now".into()).unwrap().into()),
        Some(Fault::Refuse(status, words)) => Err(answer(status).body(words.into()).unwrap().into()),
        fault => Ok(fault),
    }
}

/// Ends the connection without an answer.
fn hang_up() -> ! {
    std::panic::resume_unwind(Box::new("hung up"))
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> String {
    headers
        .get(name)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

pub(super) async fn version(state: Shared, headers: HeaderMap) -> Response<Body> {
    match first(&mut state.lock().unwrap(), "GREET", "", &headers) {
        Err(refused) => *refused,
        Ok(_) => answer(200).body("{}".into()).unwrap(),
    }
}

pub(super) async fn begin(
    state: Shared,
    Path(name): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response<Body> {
    let mut b = state.lock().unwrap();
    let detail = query.get("from").cloned().unwrap_or_default();
    if let Err(refused) = first(&mut b, "BEGIN", &detail, &headers) {
        return *refused;
    }
    let wanted = query.get("mount").filter(|_| b.mounts);
    if wanted.is_some_and(|digest| b.blobs.contains_key(digest)) {
        return answer(201).body(Body::empty()).unwrap();
    }
    b.next_upload += 1;
    let id = b.next_upload.to_string();
    b.uploads.insert(id.clone(), Vec::new());
    let location = format!("/v2/{name}/blobs/uploads/{id}?state=0");
    answer(202)
        .header(header::LOCATION, location)
        .body(Body::empty())
        .unwrap()
}

pub(super) async fn patch(
    State(state): Shared,
    Path((name, id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Response<Body> {
    let range = text(&headers, header::CONTENT_RANGE);
    let fault = match first(&mut state.lock().unwrap(), "PATCH", &range, &headers) {
        Err(refused) => return *refused,
        Ok(fault) => fault,
    };
    let limit = match fault {
        Some(Fault::Cut(at)) => at,
        _ => usize::MAX,
    };
    let mut pieces = body.into_data_stream();
    let mut received = Vec::new();
    while received.len() < limit
        && let Some(Ok(piece)) = pieces.next().await
    {
        received.extend_from_slice(&piece);
    }
    received.truncate(limit);
    let mut b = state.lock().unwrap();
    if matches!(fault, Some(Fault::Forget)) {
        b.uploads.remove(&id);
    }
    let Some(upload) = b.uploads.get_mut(&id) else {
        return answer(404).body("no such upload".into()).unwrap();
    };
    let from: usize = range.split('-').next().unwrap().parse().unwrap();
    if from != upload.len() {
        return answer(416).body(Body::empty()).unwrap();
    }
    upload.extend_from_slice(&received);
    let length = upload.len();
    drop(b);
    if limit != usize::MAX {
        hang_up();
    }
    uploaded(202, &name, &id, length)
}

fn uploaded(status: u16, name: &str, id: &str, length: usize) -> Response<Body> {
    let location = format!("/v2/{name}/blobs/uploads/{id}?state={length}");
    let range = format!("0-{}", length.saturating_sub(1));
    let response = answer(status)
        .header(header::LOCATION, location)
        .header(header::RANGE, range);
    response.body(Body::empty()).unwrap()
}

pub(super) async fn state(
    State(shared): Shared,
    Path((name, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    let mut b = shared.lock().unwrap();
    if let Err(refused) = first(&mut b, "STATE", "", &headers) {
        return *refused;
    }
    match b.uploads.get(&id) {
        Some(upload) => uploaded(204, &name, &id, upload.len()),
        None => answer(404).body("no such upload".into()).unwrap(),
    }
}

pub(super) async fn cancel(State(shared): Shared, Path((_, id)): Path<(String, String)>) -> Response<Body> {
    shared.lock().unwrap().uploads.remove(&id);
    answer(204).body(Body::empty()).unwrap()
}

pub(super) async fn finish(
    State(shared): Shared,
    Path((_, id)): Path<(String, String)>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> Response<Body> {
    let mut b = shared.lock().unwrap();
    let fault = match first(&mut b, "FINISH", "", &headers) {
        Err(refused) => return *refused,
        Ok(fault) => fault,
    };
    let Some(mut upload) = b.uploads.remove(&id) else {
        return answer(404).body("no such upload".into()).unwrap();
    };
    if matches!(fault, Some(Fault::Forget)) {
        return answer(404).body("no such upload".into()).unwrap();
    }
    upload.extend_from_slice(&body);
    let wanted = query.get("digest").cloned().unwrap_or_default();
    if digest(&upload) != wanted {
        return answer(400).body("DIGEST_INVALID".into()).unwrap();
    }
    b.blobs.insert(wanted, upload.into());
    drop(b);
    if matches!(fault, Some(Fault::Cut(_))) {
        hang_up();
    }
    answer(201).body(Body::empty()).unwrap()
}

/// As a registry does, takes only a manifest whose blobs it has.
pub(super) async fn put_manifest(
    State(shared): Shared,
    Path((_, reference)): Path<(String, String)>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> Response<Body> {
    let mut b = shared.lock().unwrap();
    if let Err(refused) = first(&mut b, "MANIFEST", &reference, &headers) {
        return *refused;
    }
    let manifest: Value = serde_json::from_slice(&body).unwrap();
    let ids = |name: &str| {
        let entries = manifest[name].as_array().into_iter().flatten();
        entries
            .map(|entry| entry["digest"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let config = manifest["config"]["digest"].as_str().map(str::to_owned);
    let has_blobs = ids("layers")
        .into_iter()
        .chain(config)
        .all(|id| b.blobs.contains_key(&id));
    if !has_blobs || !ids("manifests").iter().all(|id| b.manifests.contains_key(id)) {
        return answer(400).body("MANIFEST_BLOB_UNKNOWN".into()).unwrap();
    }
    let media_type = text(&headers, header::CONTENT_TYPE);
    let id = digest(&body);
    b.manifests.insert(id.clone(), (media_type.clone(), body.clone()));
    b.manifests.insert(reference, (media_type, body));
    answer(201)
        .header("docker-content-digest", id)
        .body(Body::empty())
        .unwrap()
}
