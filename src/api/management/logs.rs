//! `/v1/containers/{containerId}/log` (`docs/spec/api.md` 5.10).
//!
//! Extensions of the contract: `all`, `since`, `timestamps` and `follow`. Without them the answer is unchanged. If a
//! streamed answer is interrupted (the daemon shuts down, or the log is deleted faster than it is read), it ends with a
//! transfer error, so that a client does not take it for complete.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use utoipa::IntoParams;

use super::Management;
use super::containers::about;
use crate::api::{ApiError, AuditEntry, Code, Failure, PathParams, QueryParams};
use crate::workload::container::{ContainerError, DEFAULT_LINES, LogRequest};

/// Which part of a log.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// How many lines from the end, at most 5000 [default: 100; with `since`, no limit]
    #[param(value_type = Option<i64>)]
    tail_lines: Option<String>,
    /// `1`: the whole log, instead of `tail_lines`
    #[param(value_type = Option<bool>)]
    all: Option<String>,
    /// Only lines written since then: RFC 3339, or how long ago (`90s`, `1h30m`)
    #[param(example = "10m")]
    since: Option<String>,
    /// `1`: each line begins with the time it was written at, RFC 3339 in UTC, and a blank
    #[param(value_type = Option<bool>)]
    timestamps: Option<String>,
    /// `1`: goes on with what is written later, until the container has ended
    #[param(value_type = Option<bool>)]
    follow: Option<String>,
}

/// What a container wrote
#[utoipa::path(get, path = "/v1/containers/{containerId}/log", tag = "containers",
    params(("containerId" = String, Path), LogQuery),
    responses((status = 200, body = String, content_type = "text/plain"), (status = 400, body = Failure),
        (status = 404, body = Failure)))]
pub async fn log(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
    QueryParams(query): QueryParams<LogQuery>,
) -> Result<Response, ApiError> {
    about(&m, &entry, &id);
    let request = query.parse(Timestamp::now())?;
    let failed = |error| ApiError::from(error).prefixed("tail failed: ");
    let pieces = m.containers.log(&id, request).await.map_err(failed)?;
    let body = if request.follow {
        Body::from_stream(until(m.sessions.stop, pieces))
    } else if request.lines.is_some() {
        // The log fits into memory, so the answer can have a length.
        let text = pieces.try_collect::<Vec<Bytes>>().await;
        Body::from(text.map_err(|error| failed(ContainerError::from(error)))?.concat())
    } else {
        Body::from_stream(pieces)
    };
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// The chunks, or an error if `stop` is cancelled first.
pub(super) fn until(
    stop: CancellationToken,
    pieces: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let cut_off = stop.clone();
    let end = stream::once(async move { cut_off.is_cancelled() })
        .filter_map(async |cut_off| cut_off.then(|| Err(std::io::Error::other("the daemon is shutting down"))));
    pieces.take_until(stop.cancelled_owned()).chain(end)
}

impl LogQuery {
    fn parse(&self, now: Timestamp) -> Result<LogRequest, ApiError> {
        let given = match &self.tail_lines {
            None => None,
            Some(text) => Some(lines(text)?),
        };
        let since = self
            .since
            .as_deref()
            .map(|text| moment("since", text, now))
            .transpose()?;
        let all = flag("all", &self.all)?;
        if all && given.is_some() {
            return Err(invalid("invalid query: all and tail_lines exclude each other"));
        }
        Ok(LogRequest {
            lines: given.or((!all && since.is_none()).then_some(DEFAULT_LINES)),
            since,
            timestamps: flag("timestamps", &self.timestamps)?,
            follow: flag("follow", &self.follow)?,
        })
    }
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(Code::InvalidQuery, message)
}

fn lines(text: &str) -> Result<i64, ApiError> {
    let lines = text.parse().ok().filter(|lines| *lines >= 0);
    lines.ok_or_else(|| {
        let most = crate::workload::container::MAX_LINES;
        invalid(format!(
            "invalid tail_lines: {text:?} is not a whole number from 0 to {most}; all=1 gives the whole log"
        ))
    })
}

fn flag(name: &str, value: &Option<String>) -> Result<bool, ApiError> {
    match value.as_deref() {
        Some("1" | "true") => Ok(true),
        None | Some("" | "0" | "false") => Ok(false),
        Some(other) => Err(invalid(format!("invalid {name}: {other:?} is neither 1 nor 0"))),
    }
}

/// A point in time, or a duration before `now`.
pub(super) fn moment(name: &str, text: &str, now: Timestamp) -> Result<Timestamp, ApiError> {
    let ago = || {
        text.parse::<SignedDuration>()
            .ok()
            .and_then(|ago| now.checked_sub(ago).ok())
    };
    // In a query, an unescaped plus sign is decoded as a space.
    let time = || text.replace(' ', "+").parse().ok();
    ago().or_else(time).ok_or_else(|| {
        invalid(format!(
            "invalid {name}: {text:?} is neither a time (RFC 3339) nor a duration like 10m"
        ))
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn parse(query: &str) -> Result<LogRequest, ApiError> {
        let uri = format!("/log?{query}").parse().unwrap();
        let axum::extract::Query(query) = axum::extract::Query::<LogQuery>::try_from_uri(&uri).unwrap();
        query.parse("2026-02-07T12:00:00Z".parse().unwrap())
    }

    #[rstest]
    #[case("", Some(100), None)]
    #[case("stream=1", Some(100), None)]
    #[case("tail_lines=0", Some(0), None)]
    #[case("all=1", None, None)]
    #[case("all=0", Some(100), None)]
    #[case("since=90s", None, Some("2026-02-07T11:58:30Z"))]
    #[case("since=1h30m&tail_lines=5", Some(5), Some("2026-02-07T10:30:00Z"))]
    #[case("since=2026-02-07T11:00:00.5Z", None, Some("2026-02-07T11:00:00.5Z"))]
    #[case("since=2026-02-07T20:00:00%2B09:00", None, Some("2026-02-07T11:00:00Z"))]
    #[case("since=2026-02-07T20:00:00+09:00", None, Some("2026-02-07T11:00:00Z"))]
    fn a_part_of_the_log(#[case] query: &str, #[case] lines: Option<i64>, #[case] since: Option<&str>) {
        let request = parse(query).unwrap();
        assert_eq!(
            (request.lines, request.since),
            (lines, since.map(|text| text.parse().unwrap()))
        );
        assert!(!request.follow && !request.timestamps);
    }

    #[test]
    fn flags() {
        let request = parse("follow=1&timestamps=true").unwrap();
        assert!(request.follow && request.timestamps);
    }

    #[rstest]
    #[case("tail_lines=x", "invalid tail_lines")]
    #[case("tail_lines=", "invalid tail_lines")]
    #[case(
        "tail_lines=-1",
        "invalid tail_lines: \"-1\" is not a whole number from 0 to 5000; all=1 gives"
    )]
    #[case("follow=yes", "invalid follow: \"yes\" is neither 1 nor 0")]
    #[case("since=yesterday", "invalid since: \"yesterday\" is neither a time")]
    #[case("since=", "invalid since: \"\" is neither a time")]
    #[case("all=1&tail_lines=5", "invalid query: all and tail_lines exclude each other")]
    fn nonsense(#[case] query: &str, #[case] message: &str) {
        let error = parse(query).unwrap_err();
        assert_eq!(error.status(), 400);
        assert!(error.message.starts_with(message), "{}", error.message);
    }

    #[tokio::test]
    async fn what_is_cut_off_ends_with_an_error() {
        let stop = CancellationToken::new();
        let one = || stream::iter([Ok(Bytes::from_static(b"a"))]);
        let whole: Vec<_> = until(stop.clone(), one()).collect().await;
        assert!(matches!(&whole[..], [Ok(_)]));
        let mut endless = Box::pin(until(stop.clone(), one().chain(stream::pending())));
        endless.next().await.unwrap().unwrap();
        stop.cancel();
        endless.next().await.unwrap().unwrap_err();
        assert!(endless.next().await.is_none());
    }
}
