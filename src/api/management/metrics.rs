//! `/metrics`: metrics for Prometheus. Not in the original.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::Management;
use crate::observe::metrics;
use crate::workload::conditions;

/// Figures of running containers and of the daemon, for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "metrics",
    responses((status = 200, body = String, content_type = "text/plain",
        description = "Text exposition format, version 0.0.4")))]
pub async fn scrape(State(m): State<Management>) -> Response {
    let measured = m.sampler.measure_all(m.containers.list()).await;
    let observed = conditions::all(&m.store.snapshot(), &m.conditions);
    let text = metrics::expose(&m.activity, measured, observed);
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}
