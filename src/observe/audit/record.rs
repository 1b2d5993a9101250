//! One line of the audit log (`docs/spec/api.md` 21). Log shippers rely on the field names, misspelt ones included.

use serde::Serialize;
use serde_json::{Map, Value};

/// Severity of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Reading.
    Information,
    /// Unknown actions.
    Low,
    /// Changing.
    Medium,
    /// Deleting, running commands, signing certificates.
    High,
    /// Changing which parties may communicate.
    Critical,
}

impl Severity {
    /// The next higher severity; critical is the highest.
    pub fn raised(self) -> Self {
        match self {
            Self::Information => Self::Low,
            Self::Low => Self::Medium,
            Self::Medium => Self::High,
            Self::High | Self::Critical => Self::Critical,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// 2xx, 3xx, and 101 for a WebSocket.
    Allow,
    /// 401 and 403.
    Deny,
    /// Everything else.
    Error,
}

impl Outcome {
    /// The outcome for an HTTP status.
    pub fn of(code: u16) -> Self {
        match code {
            101 | 200..=399 => Self::Allow,
            401 | 403 => Self::Deny,
            _ => Self::Error,
        }
    }
}

/// One record.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// When the request began, RFC 3339 with nanoseconds.
    pub generated_ts: String,
    /// Random UUID.
    pub event_id: String,
    /// Correlation id, sent by the client or generated.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub correlation_id: String,
    /// Severity of the action, raised if the result is not `allow`.
    pub severity: Severity,
    /// Who made the request.
    pub actor: Actor,
    /// The action.
    pub action: String,
    /// The object of the action.
    pub target: Target,
    /// The request line.
    pub request: RequestInfo,
    /// The outcome.
    pub result: ResultInfo,
    /// The process that recorded it.
    pub runtime: RuntimeInfo,
    /// Details without a field in `target`.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub extra: Map<String, Value>,
}

/// Who made a request.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Actor {
    /// First URI of the client certificate.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub spiffe_id: String,
    /// SHA-256 of the client certificate, hex (sic).
    #[serde(rename = "certt_fingerprint", skip_serializing_if = "String::is_empty")]
    pub certificate_fingerprint: String,
    /// Address without the port.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer_ip: String,
}

/// The object of a request, as far as known. Environment variables are never recorded.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs, reason = "the names say it, and the contract lists them")]
pub struct Target {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image_ref: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mount: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chain: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub destination: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub dport: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub common_name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub san_uri: Vec<String>,
}

/// The request line.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)]
pub struct RequestInfo {
    pub method: String,
    pub path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
}

/// The result of a request.
#[derive(Debug, Clone, Serialize)]
pub struct ResultInfo {
    /// The outcome for the code.
    pub status: Outcome,
    /// HTTP status; 0 if the connection failed before HTTP.
    pub code: u16,
    /// Error message.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Length of the response body.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes: i64,
    /// Duration from the request to the end of the response, in milliseconds (sic).
    #[serde(rename = "latence_ms", skip_serializing_if = "is_zero")]
    pub latency_ms: i64,
}

/// The process that recorded a request.
#[derive(Debug, Clone, Serialize)]
pub struct RuntimeInfo {
    /// Always `condenser`.
    pub component: &'static str,
    /// Host name.
    pub node: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(n: &i64) -> bool {
    *n == 0
}
