//! The certificate listener (port 7757): certificates for containers that are being created (`docs/spec/api.md` 17).

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::response::IntoResponse;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::Coded;
use super::extract::{BODY_LIMIT, BodyError, read_body};
use super::{ApiError, AuditEntry, Code, Failure};
use crate::base::pki::{Pki, SignError, SigningRequest};
use crate::workload::container::ContainerService;

/// The services behind the certificate listener.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Signing {
    pub containers: ContainerService,
    pub pki: Arc<Pki>,
}

/// The routes of the certificate listener, with their OpenAPI description.
pub fn routes() -> OpenApiRouter<Signing> {
    OpenApiRouter::new().routes(routes!(sign))
}

/// Sign the certificate of a container; once per create or restart
#[utoipa::path(post, path = "/v1/pki/sign", tag = "pki",
    request_body(content = String, content_type = "application/pem-certificate-chain", description = "PKCS #10, PEM"),
    responses((status = 200, body = String, content_type = "application/x-pem-file"), (status = 400, body = Failure),
        (status = 403, body = Failure, description = "Not a container that is being created, or not its first request"),
        (status = 500, body = Failure)))]
async fn sign(
    State(signing): State<Signing>,
    entry: AuditEntry,
    request: Request,
) -> Result<impl IntoResponse, ApiError> {
    let body = read_body(request, BODY_LIMIT).await.map_err(|e| match e {
        // Clients expect 400 for this error.
        BodyError::TooLarge { .. } => ApiError::new(Code::InvalidBody, "request body: request too large"),
        BodyError::Broken(reason) => ApiError::new(Code::InvalidBody, format!("request body: {reason}")),
    })?;
    let request = SigningRequest::parse(&body)?;
    entry.target(|target| {
        target.common_name = request.common_name.clone();
        target.san_uri = request.uris.clone();
    });
    let id = request.container_id()?.to_owned();
    signing
        .containers
        .take_certificate_slot(&id)
        .await
        .map_err(|e| ApiError::from(e).prefixed("issue cert: "))?;
    let pem = signing
        .pki
        .sign_container(&id, &request)
        .map_err(|e| ApiError::new(Code::CertificateFailed, format!("issue cert: {e}")))?;
    Ok(([(header::CONTENT_TYPE, "application/x-pem-file")], pem))
}

impl Coded for SignError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid | Self::Signature => Code::InvalidCsr,
            Self::Spiffe(_) | Self::Role | Self::Key => Code::CsrDenied,
        }
    }
}
