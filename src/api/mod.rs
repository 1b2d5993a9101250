//! The HTTP layer: the wire format of requests and answers (`docs/spec/api.md` 0 to 3).
//!
//! A handler reads its parameters with the extractors of [`extract`], calls one method of a domain service and renders
//! the answer with [`success`] or with [`ApiError`], which has a [`Code`]; it contains no domain logic.
//! [`routing::app`] adds the common layers of a listener: the audit record, the check of the client's role, and
//! envelopes for unknown paths and methods and for handlers that panicked. [`listener::serve`] serves the result on
//! sockets.
//!
//! The API keeps these oddities for old clients; do not add more: `DELETE …/actions/delete`, `statedAt`,
//! `cotainer created`, `missing brige`, `csr signture invalid`, the capitalised fields of networks.

pub mod action;
pub mod audit;
pub mod client;
pub mod code;
pub mod envelope;
pub mod error;
pub mod extract;
mod handshakes;
pub mod hooks;
pub mod identity;
mod json_fields;
mod leftover;
pub mod listener;
pub mod management;
pub mod ndjson;
pub mod openapi;
pub mod pki;
pub mod query;
pub mod routing;
mod sessions;
pub mod time;

pub use audit::AuditEntry;
pub use client::Client;
pub use code::Code;
pub use envelope::{Done, Failure, MaybeBody, Success, SuccessBody, done, success, success_with};
pub use error::ApiError;
pub use extract::{OptionalJson, PathParams, QueryParams, StrictJson};
pub use ndjson::{ProgressAnswer, ProgressLine};
pub use sessions::Sessions;
