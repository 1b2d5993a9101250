//! Conditions on the wire, as a field of their objects, and `/v1/firewall/status`. Not in the original.

use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::Management;
use crate::api::time::rfc3339;
use crate::api::{Success, SuccessBody, success};
use crate::ops::conditions::{Condition, ConditionType, RULES, Status};

/// One thing that is, or is not, as it should be.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConditionView {
    /// `Ready`, `Started`, `Reconciled` (what its controller last tried) or `Published` (its ports of the host).
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    kind: ConditionType,
    /// `True`, `False` or `Unknown`.
    #[schema(value_type = String)]
    status: Status,
    /// Why, in one word that stays the same: `ErrImagePull`, `CrashLoopBackOff`, `OOMKilled`, `PortTaken`, …
    reason: String,
    /// The same in a sentence, with the words of the registry, the runtime or the check; may be empty.
    message: String,
    /// Since when it says this.
    changed_at: String,
    /// How many tries in a row have failed; absent where nobody counts them.
    #[serde(skip_serializing_if = "is_zero")]
    tries: u32,
    /// When the next one comes by itself; absent if none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_try_at: Option<String>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl From<Condition> for ConditionView {
    fn from(c: Condition) -> Self {
        let time = |time: Timestamp| rfc3339(Some(time));
        Self {
            kind: c.kind,
            status: c.status,
            reason: c.reason,
            message: c.message,
            changed_at: time(c.changed_at),
            tries: c.tries,
            next_try_at: c.next_try_at.map(time),
        }
    }
}

/// The conditions as a field of their object.
pub(super) fn views(conditions: Vec<Condition>) -> Vec<ConditionView> {
    conditions.into_iter().map(Into::into).collect()
}

/// The rule set as a whole.
#[derive(Debug, Serialize, ToSchema)]
pub struct RulesView {
    /// What its controller last tried.
    conditions: Vec<ConditionView>,
}

/// Whether the packet filter holds the rules of the state
#[utoipa::path(get, path = "/v1/firewall/status", tag = "policies",
    responses((status = 200, body = SuccessBody<RulesView>)))]
pub async fn rules(State(m): State<Management>) -> Success<SuccessBody<RulesView>> {
    let (kind, id) = RULES;
    let conditions = views(m.conditions.of(kind, id));
    success("firewall status", RulesView { conditions })
}
