//! `/v1/policies` (`docs/spec/api.md` 14), the dry run of a commit, and explanations.

use axum::extract::State;
use axum::http::Uri;
use axum::routing::{MethodRouter, get};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::Management;
use crate::api::{
    ApiError, AuditEntry, Code, Done, Failure, MaybeBody, OptionalJson, PathParams, QueryParams, StrictJson, Success,
    SuccessBody, done, success, success_with,
};
use crate::model::{PolicyChain, UnknownChain};
use crate::net::firewall::Destination;
use crate::net::policy::{Difference, Entry, Explanation, NewPolicy, PolicyError, Question};

/// A chain: its mode and its policies.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyList {
    /// `deny_by_default`, `observe` or `enforce`; with the suffix `_next_commit` while it is pending.
    mode: String,
    /// Number of policies.
    policies_total: usize,
    /// The policies in the order of their addition.
    policies: Vec<PolicyView>,
}

/// A policy of a user. What is empty is left out.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyView {
    /// ULID in lower case.
    id: String,
    /// `before_commit`, `applied`, `unresolved` or `remove_next_commit`.
    status: &'static str,
    /// Why it is so.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// From whom.
    source: PolicyEnd,
    /// To whom.
    destination: PolicyEnd,
    /// `icmp`, `tcp` or `udp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<u16>,
    /// Free text.
    #[serde(skip_serializing_if = "String::is_empty")]
    comment: String,
}

/// One end of a policy; one of the fields is there.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct PolicyEnd {
    /// A container, pod or replica set.
    #[serde(skip_serializing_if = "Option::is_none")]
    container_name: Option<String>,
    /// An IPv4 address or block.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
}

impl PolicyEnd {
    fn named(name: &str) -> Self {
        Self {
            container_name: Some(name.to_owned()),
            address: None,
        }
    }

    fn at(address: impl ToString) -> Self {
        Self {
            container_name: None,
            address: Some(address.to_string()),
        }
    }
}

impl From<&Entry> for PolicyView {
    fn from(entry: &Entry) -> Self {
        let policy = &entry.policy;
        Self {
            id: policy.id.clone(),
            status: entry.status.word(),
            reason: entry.status.reason().to_owned(),
            source: PolicyEnd::named(&policy.source),
            destination: match policy.chain {
                PolicyChain::RaindEw => PolicyEnd::named(&policy.destination),
                PolicyChain::RaindNsObs | PolicyChain::RaindNsEnf => PolicyEnd::at(&policy.destination),
            },
            protocol: policy.protocol.map(|p| p.name()),
            dport: policy.dport,
            comment: policy.comment.clone(),
        }
    }
}

/// A policy to add.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyBody {
    /// `RAIND-EW`, `RAIND-NS-OBS` or `RAIND-NS-ENF`, required.
    #[schema(required)]
    chain: String,
    /// A container by name or id, a pod or a replica set, required. It may not exist yet.
    #[schema(required)]
    source: String,
    /// `RAIND-EW`: as `source`. Else an IPv4 address or block. Required.
    #[schema(required)]
    dest: String,
    /// `icmp`, `tcp`, `udp` or empty for any.
    protocol: String,
    /// Destination port, with tcp and udp; 0 for any.
    dport: i64,
    /// Free text, at most 256 bytes.
    comment: String,
}

impl From<&PolicyBody> for NewPolicy {
    fn from(body: &PolicyBody) -> Self {
        Self {
            chain: body.chain.clone(),
            source: body.source.clone(),
            destination: body.dest.clone(),
            protocol: body.protocol.clone(),
            dport: body.dport,
            comment: body.comment.clone(),
        }
    }
}

/// The policy that was added.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyId {
    /// ULID in lower case.
    id: String,
}

/// A North-South mode.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModeBody {
    /// `observe` or `enforce`, required.
    #[schema(required)]
    mode: String,
}

/// How to commit.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct CommitQuery {
    /// Only say what would change [default: false]
    #[serde(default)]
    dry_run: bool,
}

/// How to commit; the same as in the query.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CommitBody {
    /// Only say what would change [default: false]
    dry_run: bool,
}

/// What a commit would change.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommitPreview {
    /// Policies that would be in force or wait for what they name, with the status that they would have.
    added: Vec<PolicyView>,
    /// Policies that would be gone.
    removed: Vec<PolicyView>,
    /// The North-South mode, if it would change.
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<ModeChange>,
    /// Rules that would be new, as iptables-save prints them.
    rules_added: Vec<String>,
    /// Rules that would be gone.
    rules_removed: Vec<String>,
}

/// A change of the North-South mode.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModeChange {
    /// In force.
    from: String,
    /// After the commit.
    to: String,
}

impl From<Difference> for CommitPreview {
    fn from(difference: Difference) -> Self {
        let views = |entries: &[Entry]| entries.iter().map(PolicyView::from).collect();
        Self {
            added: views(&difference.added),
            removed: views(&difference.removed),
            mode: difference.mode.map(|(from, to)| ModeChange {
                from: from.to_string(),
                to: to.to_string(),
            }),
            rules_added: difference.rules_added,
            rules_removed: difference.rules_removed,
        }
    }
}

/// The first packet of a connection.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ExplainQuery {
    /// A container, pod or replica set, or its address, required.
    #[serde(default)]
    #[param(required)]
    source: String,
    /// The same, or any IPv4 address, required.
    #[serde(default)]
    #[param(required)]
    destination: String,
    /// `icmp`, `tcp`, `udp`; without it, a protocol that no rule names.
    #[serde(default)]
    protocol: String,
    /// Destination port; without it, one that no rule names.
    #[serde(default)]
    port: i64,
}

/// What becomes of a packet, and why.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExplanationView {
    /// `allow` or `deny`.
    decision: &'static str,
    /// In words.
    reason: String,
    /// Chain of the rule that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<String>,
    /// That rule, as iptables-save prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    /// The policy of a user that the rule comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<PolicyView>,
    /// The container that sends it, with its address.
    source: PolicyEnd,
    /// Where it goes.
    destination: PolicyEnd,
}

impl ExplanationView {
    fn new(explanation: Explanation, policy: Option<&Entry>) -> Self {
        let Explanation { packet, verdict } = explanation;
        let end = |end: &crate::model::End| PolicyEnd {
            container_name: Some(end.container.clone()),
            address: Some(end.address.to_string()),
        };
        Self {
            decision: if verdict.allowed { "allow" } else { "deny" },
            reason: verdict.reason,
            chain: verdict.chain,
            rule: verdict.rule,
            policy: policy.map(PolicyView::from),
            source: end(&packet.source),
            destination: match &packet.destination {
                Destination::End(to) => end(to),
                Destination::Address(address) => PolicyEnd::at(address),
            },
        }
    }
}

fn failed(error: PolicyError) -> ApiError {
    ApiError::from(error).prefixed("service failed: ")
}

fn echo(body: &impl Serialize) -> Value {
    json!(body)
}

/// The policies of a chain: RAIND-EW, RAIND-NS-OBS or RAIND-NS-ENF
#[utoipa::path(get, path = "/v1/policies/{policy}", tag = "policies",
    params(("policy" = String, Path, description = "Name of the chain")),
    responses((status = 200, body = SuccessBody<PolicyList>), (status = 404, body = Failure)))]
pub async fn list(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(chain): PathParams<String>,
) -> Result<Success<SuccessBody<PolicyList>>, ApiError> {
    entry.target(|target| target.chain = chain.clone());
    let chain: PolicyChain = chain
        .parse()
        .map_err(|e: UnknownChain| ApiError::new(Code::ChainNotFound, e.to_string()))?;
    let (mode, entries) = m.policies.list(chain);
    let list = PolicyList {
        mode,
        policies_total: entries.len(),
        policies: entries.iter().map(PolicyView::from).collect(),
    };
    Ok(success("get list success", list))
}

/// Rejects path segments that other routes use, because they are neither chains nor ids.
pub fn no_chain_or_policy() -> MethodRouter<Management> {
    let word = |uri: Uri| uri.path().rsplit('/').next().unwrap_or_default().to_owned();
    let unknown = |word: String| ApiError::new(Code::ChainNotFound, UnknownChain(word).to_string());
    let no_chain = move |uri: Uri| async move { unknown(word(uri)) };
    let no_policy = move |uri: Uri| async move { failed(PolicyError::NotFound(word(uri))) };
    get(no_chain).delete(no_policy)
}

/// Stage a policy
#[utoipa::path(post, path = "/v1/policies", tag = "policies", request_body = PolicyBody,
    responses((status = 200, body = SuccessBody<PolicyId>), (status = 400, body = Failure),
        (status = 409, body = Failure, description = "The same policy is there already"), (status = 500, body = Failure)))]
pub async fn add(
    State(m): State<Management>,
    entry: AuditEntry,
    body: Result<StrictJson<PolicyBody>, ApiError>,
) -> Result<Success<SuccessBody<PolicyId>>, ApiError> {
    let StrictJson(body) = body.map_err(|e| e.with_data(echo(&PolicyBody::default())))?;
    entry.target(|target| {
        target.chain = body.chain.clone();
        target.source = body.source.clone();
        target.destination = body.dest.clone();
        target.protocol = body.protocol.clone();
        target.dport = body.dport;
        target.comment = body.comment.clone();
    });
    let added = m.policies.add(NewPolicy::from(&body)).await;
    let policy = added.map_err(|e| failed(e).with_data(echo(&body)))?;
    entry.target(|target| target.policy_id = policy.id.clone());
    Ok(success("policy created", PolicyId { id: policy.id.clone() }))
}

/// Stage the removal of a policy; one that was never committed is gone at once
#[utoipa::path(delete, path = "/v1/policies/{policy}", tag = "policies",
    params(("policy" = String, Path, description = "Id of the policy")),
    responses((status = 200, body = Done), (status = 404, body = Failure), (status = 500, body = Failure)))]
pub async fn remove(
    State(m): State<Management>,
    entry: AuditEntry,
    PathParams(id): PathParams<String>,
) -> Result<Success<Done>, ApiError> {
    entry.target(|target| target.policy_id = id.clone());
    m.policies.remove(&id).await.map_err(failed)?;
    Ok(done("request accept. remove next commit"))
}

/// Put everything that is staged in force, or say what that would change
///
/// With `dryRun` nothing is changed and `data` is the difference; without it there is no `data`.
#[utoipa::path(post, path = "/v1/policies/commit", tag = "policies", params(CommitQuery), request_body = Option<CommitBody>,
    responses((status = 200, body = MaybeBody<CommitPreview>, description = "Without `dryRun` there is no `data`"),
        (status = 400, body = Failure),
        (status = 500, body = Failure, description = "Nothing has changed; the message says why")))]
pub async fn commit(
    State(m): State<Management>,
    QueryParams(query): QueryParams<CommitQuery>,
    OptionalJson(body): OptionalJson<CommitBody>,
) -> Result<Success<MaybeBody<CommitPreview>>, ApiError> {
    if query.dry_run || body.dry_run {
        let difference = m.policies.dry_run().map_err(failed)?;
        return Ok(success_with("policy commit dry run", Some(difference.into())));
    }
    m.policies.commit().await.map_err(failed)?;
    Ok(success_with("policy committed", None))
}

/// Forget everything that is staged
#[utoipa::path(post, path = "/v1/policies/revert", tag = "policies",
    responses((status = 200, body = Done), (status = 500, body = Failure)))]
pub async fn revert(State(m): State<Management>) -> Result<Success<Done>, ApiError> {
    m.policies.revert().await.map_err(failed)?;
    Ok(done("policy reverted"))
}

/// Stage a North-South mode; the mode in force takes back what is pending
#[utoipa::path(post, path = "/v1/policies/ns/mode", tag = "policies", request_body = ModeBody,
    responses((status = 200, body = SuccessBody<ModeBody>), (status = 400, body = Failure),
        (status = 409, body = Failure, description = "It is in force already"), (status = 500, body = Failure)))]
pub async fn set_mode(
    State(m): State<Management>,
    body: Result<StrictJson<ModeBody>, ApiError>,
) -> Result<Success<SuccessBody<ModeBody>>, ApiError> {
    let StrictJson(body) = body.map_err(|e| e.with_data(echo(&ModeBody::default())))?;
    let staged = m.policies.set_mode(&body.mode).await;
    staged.map_err(|e| failed(e).with_data(echo(&body)))?;
    Ok(success("North-South Mode changed", body))
}

/// What becomes of the first packet of a connection, and which rule and policy say so
#[utoipa::path(get, path = "/v1/policies/explain", tag = "policies", params(ExplainQuery),
    responses((status = 200, body = SuccessBody<ExplanationView>), (status = 400, body = Failure),
        (status = 404, body = Failure, description = "Source or destination has no address")))]
pub async fn explain(
    State(m): State<Management>,
    QueryParams(query): QueryParams<ExplainQuery>,
) -> Result<Success<SuccessBody<ExplanationView>>, ApiError> {
    let question = Question {
        source: query.source,
        destination: query.destination,
        protocol: query.protocol,
        port: query.port,
    };
    let explanation = m.policies.explain(&question).map_err(failed)?;
    let policy = explanation.verdict.policy.as_ref().and_then(|id| m.policies.get(id));
    Ok(success(
        "policy explained",
        ExplanationView::new(explanation, policy.as_ref()),
    ))
}
