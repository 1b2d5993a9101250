//! `/v1/policies` (`contract/api.md` 14). User policies come later; the chains and the mode are there.

use serde::Serialize;
use utoipa::ToSchema;

use crate::api::{ApiError, AuditEntry, Failure, PathParams, Success, SuccessBody, success};
use crate::policy::{Chain, PolicyDefaults, UnknownChain};

/// A chain: its mode and its policies.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyList {
    /// `deny_by_default`, `observe` or `enforce`.
    mode: String,
    /// Number of policies.
    policies_total: usize,
    /// The policies in order of creation.
    policies: Vec<PolicyView>,
}

/// A user policy.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyView {}

/// The policies of a chain: RAIND-EW, RAIND-NS-OBS or RAIND-NS-ENF
#[utoipa::path(get, path = "/v1/policies/{chain}", tag = "policies", params(("chain" = String, Path)),
    responses((status = 200, body = SuccessBody<PolicyList>), (status = 404, body = Failure)))]
pub async fn list(
    entry: AuditEntry,
    PathParams(chain): PathParams<String>,
) -> Result<Success<SuccessBody<PolicyList>>, ApiError> {
    entry.target(|target| target.chain = chain.clone());
    let chain: Chain = chain
        .parse()
        .map_err(|e: UnknownChain| ApiError::not_found(e.to_string()))?;
    let mode = chain.mode(&PolicyDefaults::default());
    Ok(success(
        "get list success",
        PolicyList {
            mode,
            policies_total: 0,
            policies: Vec::new(),
        },
    ))
}
