//! `/v1/events`: changes of objects, as server-sent events. Not in the contract, but with its terms.
//!
//! ```text
//! id: 1770473214976263
//!
//! id: 1770473214976264 event: change data:
//! {"sequence":1770473214976264,"time":"…","kind":"container","action":"changed","id":"01m857ssbz87","name":"web",
//! "oldState":"created","newState":"running"}
//!
//! id: 1770473214976264
//! : heartbeat
//! ```
//!
//! The first block has only the current position, so that a client misses nothing when it reconnects with
//! `Last-Event-ID` (or `since`). `reset` and `lagged` mean that events are missing and that the client must read the
//! lists again.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{self, Sse};
use futures_util::{Stream, StreamExt, stream};
use serde::de::IntoDeserializer;
use serde::de::value::StrDeserializer;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::Management;
use super::conditions::ConditionView;
use crate::api::time::rfc3339;
use crate::api::{ApiError, Code, Failure, QueryParams};
use crate::model::{Health, Kind};
use crate::observe::events::{Action, Event, Filter, Item, Subscription};

/// Interval of heartbeats when there are no events.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Which events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Number of the last event that is known; the header `Last-Event-ID` wins [default: from now on]
    #[param(value_type = Option<u64>)]
    since: Option<String>,
    /// Only of these kinds, separated by commas
    #[param(example = "container,image")]
    kind: Option<String>,
    /// Only of objects with these ids or names, separated by commas
    id: Option<String>,
}

/// `data` of an event `change`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventView {
    /// Number of the event; grows by at least one from event to event, also over restarts of the daemon.
    sequence: u64,
    /// When it happened.
    time: String,
    /// `container`, `image`, `network`, `pod`, `replicaset`, `service`, `policy`, `policysettings` or `bottle`.
    #[schema(value_type = String)]
    kind: Kind,
    /// `created`, `changed`, `removed`, or `condition` when something begins or ceases to be wrong with it.
    action: &'static str,
    /// Id of the object.
    id: String,
    /// Name of the object.
    name: String,
    /// State before; absent for a new object and for kinds without states.
    #[serde(skip_serializing_if = "Option::is_none")]
    old_state: Option<String>,
    /// State now; absent for a removed object and for kinds without states.
    #[serde(skip_serializing_if = "Option::is_none")]
    new_state: Option<String>,
    /// What the health check of a container says: `starting`, `healthy` or `unhealthy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    health: Option<Health>,
    /// Exit status of a container that has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    /// Why it ended: `Completed`, `Error`, `OOMKilled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// More about the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// What is or was wrong; with `condition` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<ConditionView>,
}

impl EventView {
    fn new(sequence: u64, event: &Event) -> Self {
        let state =
            |observed: &Option<crate::observe::events::Observed>| observed.as_ref().and_then(|o| o.state.clone());
        let exit = event.new.as_ref().and_then(|observed| observed.exit.clone());
        let (exit_code, reason, message) = match exit {
            Some(exit) => (Some(exit.code), Some(exit.reason), Some(exit.message)),
            None => (None, None, None),
        };
        Self {
            sequence,
            time: rfc3339(Some(event.at)),
            kind: event.kind,
            action: match event.action {
                Action::Created => "created",
                Action::Changed => "changed",
                Action::Removed => "removed",
                Action::Condition => "condition",
            },
            id: event.id.clone(),
            name: event.name.clone(),
            old_state: state(&event.old),
            new_state: state(&event.new),
            health: event.new.as_ref().and_then(|observed| observed.health),
            exit_code,
            reason,
            message,
            condition: event.condition.clone().map(Into::into),
        }
    }
}

/// What happens to containers, images, networks, pods and all other objects, as it happens
///
/// Server-sent events: `change` (data as in the schema), `reset` (the number asked for is not known any more: read the
/// lists again), `lagged` (the client read too slowly and events are missing: the same). A comment every 15 s without
/// events. The stream ends when the daemon ends.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(EventsQuery, ("Last-Event-ID" = Option<u64>, Header, description = "Number of the last event that is known")),
    responses((status = 200, body = EventView, content_type = "text/event-stream"), (status = 400, body = Failure)))]
pub async fn watch(
    State(m): State<Management>,
    QueryParams(query): QueryParams<EventsQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let (since, filter) = query.parse(&headers)?;
    let subscription = m.events.subscribe(since, filter);
    let pieces = rendered(subscription, HEARTBEAT).map(Ok);
    Ok(Sse::new(pieces.take_until(m.sessions.stop.cancelled_owned())))
}

impl EventsQuery {
    fn parse(&self, headers: &HeaderMap) -> Result<(Option<u64>, Filter), ApiError> {
        let known = match headers.get("last-event-id") {
            Some(value) => Some(String::from_utf8_lossy(value.as_bytes()).into_owned()),
            None => self.since.clone(),
        };
        let since = known.map(|text| number(&text)).transpose()?;
        let kinds = words(&self.kind).map(kind).collect::<Result<_, _>>()?;
        let objects = words(&self.id).map(str::to_owned).collect();
        Ok((since, Filter { kinds, objects }))
    }
}

fn number(text: &str) -> Result<u64, ApiError> {
    text.trim()
        .parse()
        .map_err(|_| invalid(format!("invalid since: {text:?} is not the number of an event")))
}

fn kind(word: &str) -> Result<Kind, ApiError> {
    let word: StrDeserializer<'_, serde::de::value::Error> = word.into_deserializer();
    // The error lists the valid kinds.
    Kind::deserialize(word).map_err(|error| invalid(format!("invalid kind: {error}")))
}

fn invalid(message: String) -> ApiError {
    ApiError::new(Code::InvalidQuery, message)
}

fn words(list: &Option<String>) -> impl Iterator<Item = &str> {
    let words = list.iter().flat_map(|list| list.split(','));
    words.map(str::trim).filter(|word| !word.is_empty())
}

fn rendered(subscription: Subscription, heartbeat: Duration) -> impl Stream<Item = sse::Event> + Send + 'static {
    let place = sse::Event::default().id(subscription.position().to_string());
    let rest = stream::unfold(subscription, move |mut subscription| async move {
        let event = match tokio::time::timeout(heartbeat, subscription.next()).await {
            Ok(item) => render(&item, subscription.position()),
            Err(_) => sse::Event::default().comment("heartbeat"),
        };
        Some((event.id(subscription.position().to_string()), subscription))
    });
    stream::once(async { place }).chain(rest)
}

fn render(item: &Item, sequence: u64) -> sse::Event {
    let (name, data) = match item {
        // Serializing a struct of strings and numbers cannot fail.
        Item::Event(event) => (
            "change",
            serde_json::to_string(&EventView::new(sequence, event)).unwrap_or_default(),
        ),
        Item::Reset => ("reset", json!({ "sequence": sequence }).to_string()),
        Item::Lagged(missed) => ("lagged", json!({ "sequence": sequence, "missed": missed }).to_string()),
    };
    sse::Event::default().event(name).data(data)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::http::HeaderValue;
    use axum::response::IntoResponse;
    use jiff::Timestamp;
    use rstest::rstest;
    use tokio::sync::broadcast;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::model::fixtures::container;
    use crate::model::{Change, Commit, ContainerState, Exit, Object};
    use crate::observe::events::Events;

    fn ended() -> Commit {
        let running = container("a", "web").in_state(ContainerState::Running);
        let mut stopped = running.clone();
        stopped.status.state = ContainerState::Stopped;
        stopped.status.exit = Some(Exit {
            code: 137,
            reason: "Error".into(),
            message: String::new(),
        });
        Commit {
            revision: 1,
            at: Timestamp::UNIX_EPOCH,
            changes: vec![Change {
                kind: Kind::Container,
                id: "a".into(),
                old: Some(Object::Container(Arc::new(running))),
                new: Some(Object::Container(Arc::new(stopped))),
            }],
        }
    }

    /// The next blocks of a stream.
    async fn blocks(stream: impl Stream<Item = sse::Event> + Send + 'static, count: usize) -> Vec<String> {
        let response = Sse::new(stream.map(Ok::<_, Infallible>)).into_response();
        let mut body = response.into_body().into_data_stream();
        let mut blocks = Vec::new();
        for _ in 0..count {
            let block = tokio::time::timeout(Duration::from_secs(10), body.next())
                .await
                .unwrap();
            blocks.push(String::from_utf8(block.unwrap().unwrap().to_vec()).unwrap());
        }
        blocks
    }

    #[tokio::test]
    async fn an_event_is_a_block() {
        let (sender, commits) = broadcast::channel(4);
        let events = Events::new(16);
        tokio::spawn(events.clone().run(commits, CancellationToken::new()));
        let subscription = events.subscribe(None, Filter::default());
        let at = subscription.position();
        sender.send(Arc::new(ended())).unwrap();
        let time = rfc3339(Some(Timestamp::UNIX_EPOCH));
        let next = at + 1;
        let expected = format!(
            "event: change\ndata: {{\"sequence\":{next},\"time\":\"{time}\",\"kind\":\"container\",\
             \"action\":\"changed\",\"id\":\"a\",\"name\":\"web\",\"oldState\":\"running\",\
             \"newState\":\"stopped\",\"exitCode\":137,\"reason\":\"Error\",\"message\":\"\"}}\nid: {next}\n\n"
        );
        let found = blocks(rendered(subscription, Duration::from_millis(50)), 3).await;
        assert_eq!(
            found,
            [
                format!("id: {at}\n\n"),
                expected,
                format!(": heartbeat\nid: {next}\n\n")
            ]
        );
    }

    #[tokio::test]
    async fn a_place_that_is_not_known_is_a_reset() {
        let subscription = Events::new(16).subscribe(Some(1), Filter::default());
        let at = subscription.position();
        let found = blocks(rendered(subscription, HEARTBEAT), 2).await;
        assert_eq!(
            found[1],
            format!("event: reset\ndata: {{\"sequence\":{at}}}\nid: {at}\n\n")
        );
    }

    fn parse(query: &str, last: Option<&'static str>) -> Result<(Option<u64>, Filter), ApiError> {
        let uri = format!("/v1/events?{query}").parse().unwrap();
        let axum::extract::Query(query) = axum::extract::Query::<EventsQuery>::try_from_uri(&uri).unwrap();
        let mut headers = HeaderMap::new();
        if let Some(last) = last {
            headers.insert("last-event-id", HeaderValue::from_static(last));
        }
        query.parse(&headers)
    }

    #[test]
    fn a_query_says_what_is_wanted() {
        let (since, filter) = parse("since=5&kind=image,%20network&id=web,a", None).unwrap();
        assert_eq!((since, &filter.kinds[..]), (Some(5), &[Kind::Image, Kind::Network][..]));
        assert_eq!(filter.objects, ["web", "a"]);
        let (since, filter) = parse("since=5&kind=", Some("7")).unwrap();
        assert_eq!(
            (since, filter),
            (Some(7), Filter::default()),
            "a client that comes back"
        );
    }

    #[rstest]
    #[case("since=x", None, "invalid since: \"x\" is not the number of an event")]
    #[case("since=5", Some("-1"), "invalid since: \"-1\" is not the number of an event")]
    #[case(
        "kind=pood",
        None,
        "invalid kind: unknown variant `pood`, expected one of `container`, `image`"
    )]
    fn nonsense(#[case] query: &str, #[case] last: Option<&'static str>, #[case] message: &str) {
        let error = parse(query, last).unwrap_err();
        assert_eq!(error.status(), 400);
        assert!(error.message.starts_with(message), "{}", error.message);
    }
}
