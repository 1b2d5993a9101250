//! Authorization of clients per listener (`docs/spec/api.md` 2). It runs before routing: a wrong role gets 403 even for
//! unknown paths.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::{ApiError, Code};
use crate::base::pki::spiffe::uri_names;
use crate::base::pki::{SpiffeError, SpiffeId};

/// The client of a connection. It is an extension of each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Address and port.
    pub address: SocketAddr,
    /// The client's certificate. The handshake has verified it against our CA.
    pub certificate: Option<PeerCertificate>,
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The SPIFFE id.
    pub spiffe: Result<SpiffeId, SpiffeError>,
    /// All URIs in its subject alternative names.
    pub uris: Vec<String>,
    /// SHA-256 of its DER form, in hex.
    pub fingerprint: String,
}

impl PeerIdentity {
    /// The client with this leaf certificate (DER).
    pub fn new(address: SocketAddr, certificate: Option<&[u8]>) -> Self {
        Self {
            address,
            certificate: certificate.map(PeerCertificate::new),
        }
    }
}

impl PeerCertificate {
    fn new(der: &[u8]) -> Self {
        let (spiffe, uris) = match uri_names(der) {
            Ok(uris) => (SpiffeId::from_uris(&uris), uris),
            Err(error) => (Err(error), Vec::new()),
        };
        Self {
            spiffe,
            uris,
            fingerprint: hex::encode(Sha256::digest(der)),
        }
    }
}

/// The client role of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Users of the management API, `spiffe://raind/cli/<name>`.
    Cli,
    /// Containers that report on themselves, `spiffe://raind/container/<id>`.
    Container,
    /// The runtime, which requests certificates, `spiffe://raind/droplet/<name>`.
    Droplet,
}

impl Role {
    fn admits(self, id: &SpiffeId) -> bool {
        matches!(
            (self, id),
            (Self::Cli, SpiffeId::Cli(_))
                | (Self::Container, SpiffeId::Container(_))
                | (Self::Droplet, SpiffeId::Droplet(_))
        )
    }
}

/// Accepts only clients with this role.
pub async fn require(State(role): State<Role>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Arc<PeerIdentity>>();
    let refusal = match peer.and_then(|peer| peer.certificate.as_ref()) {
        None => ApiError::new(Code::CertificateRequired, "client certificate required"),
        Some(PeerCertificate { spiffe: Ok(id), .. }) if role.admits(id) => return next.run(request).await,
        Some(_) => ApiError::new(Code::RoleDenied, "forbidden"),
    };
    refusal.into_response()
}

/// The identity with which a request was admitted.
#[derive(Debug, Clone)]
pub struct Caller(pub SpiffeId);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let peer = parts.extensions.get::<Arc<PeerIdentity>>();
        match peer.and_then(|peer| peer.certificate.as_ref()) {
            Some(PeerCertificate { spiffe: Ok(id), .. }) => Ok(Self(id.clone())),
            _ => Err(ApiError::new(Code::RoleDenied, "forbidden")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn_with_state;
    use rstest::rstest;
    use tower::ServiceExt;

    fn peer(spiffe: Result<SpiffeId, SpiffeError>) -> PeerIdentity {
        PeerIdentity {
            address: ([127, 0, 0, 1], 1).into(),
            certificate: Some(PeerCertificate {
                spiffe,
                uris: vec![],
                fingerprint: String::new(),
            }),
        }
    }

    async fn status(role: Role, peer: Option<PeerIdentity>) -> u16 {
        let app = Router::new()
            .fallback(|| async { "served" })
            .layer(from_fn_with_state(role, require));
        let mut request = Request::builder().uri("/anything").body(Body::empty()).unwrap();
        if let Some(peer) = peer {
            request.extensions_mut().insert(Arc::new(peer));
        }
        app.oneshot(request).await.unwrap().status().as_u16()
    }

    #[rstest]
    #[case(Role::Cli, SpiffeId::Cli("admin".into()))]
    #[case(Role::Cli, SpiffeId::Cli("bob".into()))]
    #[case(Role::Container, SpiffeId::Container("01".into()))]
    #[case(Role::Droplet, SpiffeId::Droplet("container".into()))]
    #[tokio::test]
    async fn the_right_role_passes(#[case] role: Role, #[case] id: SpiffeId) {
        assert_eq!(status(role, Some(peer(Ok(id.clone())))).await, 200);
        for other in [Role::Cli, Role::Container, Role::Droplet] {
            let expected = if other == role { 200 } else { 403 };
            assert_eq!(status(other, Some(peer(Ok(id.clone())))).await, expected);
        }
    }

    #[tokio::test]
    async fn nobody_does_not() {
        assert_eq!(status(Role::Cli, None).await, 401);
        let without = PeerIdentity::new(([127, 0, 0, 1], 1).into(), None);
        assert_eq!(status(Role::Cli, Some(without)).await, 401);
        assert_eq!(status(Role::Cli, Some(peer(Err(SpiffeError::UriCount)))).await, 403);
        let garbage = PeerIdentity::new(([127, 0, 0, 1], 1).into(), Some(b"garbage"));
        assert_eq!(status(Role::Cli, Some(garbage)).await, 403);
    }
}
