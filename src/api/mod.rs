//! HTTP, and nothing but HTTP: what a request means on the wire and how an answer looks (`docs/spec/api.md` 0 to 3).
//!
//! A handler reads its parameters with the extractors of [`extract`], calls one method of a domain service and renders
//! with [`success`] or [`ApiError`], which has a [`Code`]; it holds no rule. [`routing::app`] puts around the routes of a listener what they have
//! in common: the audit record, the check of the client's role, envelopes for unknown paths and methods and for handlers
//! that panicked. [`listener::serve`] puts that on sockets.
//!
//! Known oddities of the wire that stay for old clients and must not spread: `DELETE …/actions/delete`, `statedAt`,
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
pub mod openapi;
pub mod pki;
pub mod query;
pub mod routing;
pub mod time;

pub use audit::AuditEntry;
pub use client::Client;
pub use code::Code;
pub use envelope::{Done, Failure, MaybeBody, Success, SuccessBody, done, success, success_with};
pub use error::ApiError;
pub use extract::{OptionalJson, PathParams, QueryParams, StrictJson};
