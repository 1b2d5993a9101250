//! The rows of services.

use std::sync::Arc;

use jiff::Timestamp;

use super::{NewService, ServiceError};
use crate::model::{Claim, Kind, Protocol, Service, ServicePort, Txn, by_creation, fresh_ulid};
use crate::net::ports::HostPorts;
use crate::store::Store;

/// Creates, updates, removes and finds services. Clones share the store.
#[derive(Clone)]
pub struct ServiceRegistry {
    store: Store,
    ports: HostPorts,
    reserved: Arc<[u16]>,
}

impl ServiceRegistry {
    /// `reserved` are TCP ports of the host that the daemon itself listens on.
    pub fn new(store: Store, ports: HostPorts, reserved: impl Into<Arc<[u16]>>) -> Self {
        let reserved = reserved.into();
        Self { store, ports, reserved }
    }

    /// Creates a service. Reserves its name and its host ports in the same transaction.
    pub async fn create(&self, request: NewService) -> Result<Arc<Service>, ServiceError> {
        self.holding(request, |t, request| put(t, fresh_ulid(), Timestamp::now(), request))
            .await
    }

    /// Updates an existing service to match the request. It keeps its id and its creation time.
    pub async fn replace(&self, id: &str, request: NewService) -> Result<Arc<Service>, ServiceError> {
        let id = id.to_owned();
        self.holding(request, move |t, request| match t.get::<Service>(&id) {
            Some(service) => put(t, id, service.created_at, request),
            None => Err(ServiceError::NotFound(id)),
        })
        .await
    }

    /// Binds the ports of a service on the host, then claims them and its name in our records.
    async fn holding(
        &self,
        request: NewService,
        change: impl FnOnce(&mut Txn, NewService) -> Result<Arc<Service>, ServiceError> + Send + 'static,
    ) -> Result<Arc<Service>, ServiceError> {
        self.check(&request)?;
        self.ports.hold_for_service(&request.ports)?;
        let changed = self.store.transact(move |t| change(t, request)).await;
        // Release ports that were bound for a change that failed, and ports that the service no longer has.
        self.ports.keep();
        changed
    }

    /// Removes a service, which frees its name and its ports. Returns its last state.
    pub async fn remove(&self, id: &str) -> Result<Arc<Service>, ServiceError> {
        let id = id.to_owned();
        let removed = self
            .store
            .transact(move |t| t.remove::<Service>(&id).ok_or(ServiceError::NotFound(id)))
            .await;
        self.ports.keep();
        removed
    }

    /// The service of that id, else of that name in the namespace (`docs/spec/api.md` 4.3).
    pub fn find(&self, parameter: &str, namespace: &str) -> Result<Arc<Service>, ServiceError> {
        let snapshot = self.store.snapshot();
        let by_name = || {
            let claim = Claim::Name(Kind::Service, namespace.to_owned(), parameter.to_owned());
            snapshot.services().get(&snapshot.holder(&claim)?.id)
        };
        let found = snapshot.services().get(parameter).or_else(by_name);
        found
            .cloned()
            .ok_or_else(|| ServiceError::NotFound(parameter.to_owned()))
    }

    /// All services by creation time, then id.
    pub fn list(&self) -> Vec<Arc<Service>> {
        by_creation(self.store.snapshot().services().iter().cloned())
    }

    fn check(&self, request: &NewService) -> Result<(), ServiceError> {
        request.check()?;
        let is_reserved = |p: &&ServicePort| p.protocol == Protocol::Tcp && self.reserved.contains(&p.port);
        match request.ports.iter().find(is_reserved) {
            Some(port) => Err(ServiceError::PortTaken {
                port: port.port,
                protocol: port.protocol,
                holder: "condenser itself".into(),
            }),
            None => Ok(()),
        }
    }
}

fn put(t: &mut Txn, id: String, created_at: Timestamp, request: NewService) -> Result<Arc<Service>, ServiceError> {
    let service = Service {
        id,
        name: request.name,
        namespace: request.namespace,
        selector: request.selector,
        ports: request.ports,
        affinity_seconds: request.affinity_seconds,
        created_at,
    };
    t.put(service)
        .map_err(|taken| ServiceError::taken(&taken, t.snapshot()))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::fixtures::{container, service};
    use crate::store::StoreError;

    fn request(name: &str, ports: &[u16]) -> NewService {
        NewService::from(&service("any", name, ports))
    }

    fn registry() -> (tempfile::TempDir, ServiceRegistry) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).unwrap();
        // An address that no other test on this machine uses.
        let [.., a, b] = std::process::id().to_be_bytes();
        let ports = HostPorts::new(store.clone(), Default::default(), Ipv4Addr::new(127, a, b, 1));
        (dir, ServiceRegistry::new(store, ports, [7755]))
    }

    fn said<T: std::fmt::Debug>(result: Result<T, ServiceError>) -> String {
        result.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_service_is_found_by_id_and_by_name_in_its_namespace() {
        let (_dir, registry) = registry();
        let shop = registry.create(request("shop", &[80])).await.unwrap();
        let prod = NewService {
            namespace: "prod".into(),
            ..request("shop", &[81])
        };
        let prod = registry.create(prod).await.unwrap();
        let find = |parameter: &str, namespace| registry.find(parameter, namespace).map(|s| s.id.clone());
        assert_eq!(find("shop", "default").unwrap(), shop.id);
        assert_eq!(find("shop", "prod").unwrap(), prod.id);
        assert_eq!(find(&shop.id, "prod").unwrap(), shop.id);
        assert_eq!(said(find("nope", "default")), "serviceId=nope not found");
        assert_eq!(shop.id.len(), 26);
        let listed: Vec<_> = registry.list().iter().map(|s| s.id.clone()).collect();
        assert_eq!(listed, [shop.id.clone(), prod.id.clone()]);
    }

    #[tokio::test]
    async fn names_and_ports_have_one_holder() {
        let (_dir, registry) = registry();
        registry.create(request("shop", &[80, 443])).await.unwrap();
        registry
            .store
            .transact(|t| {
                t.put(container("a", "web").forward(8080)).unwrap();
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
        for (name, port, message) in [
            ("shop", 90, "name already used by other service"),
            ("blog", 443, "port 443/tcp is already used by service default/shop"),
            ("blog", 8080, "port 8080/tcp is already used by container web"),
            ("blog", 7755, "port 7755/tcp is already used by condenser itself"),
        ] {
            assert_eq!(said(registry.create(request(name, &[port])).await), message);
        }
        assert_eq!(registry.list().len(), 1);
    }

    #[tokio::test]
    async fn a_replacement_keeps_the_id_and_swaps_the_ports() {
        let (_dir, registry) = registry();
        let shop = registry.create(request("shop", &[80])).await.unwrap();
        let now = registry.replace(&shop.id, request("shop", &[81])).await.unwrap();
        assert_eq!((&now.id, now.created_at), (&shop.id, shop.created_at));
        let blog = registry.create(request("blog", &[80])).await.unwrap();
        let refused = registry.replace(&shop.id, request("shop", &[80])).await;
        assert_eq!(said(refused), "port 80/tcp is already used by service default/blog");
        assert_eq!(registry.find("shop", "default").unwrap(), now, "nothing changed");
        registry.remove(&blog.id).await.unwrap();
        let back = registry.replace(&shop.id, NewService::from(&*shop)).await.unwrap();
        assert_eq!(back, shop);
        let unknown = registry.replace(&blog.id, request("blog", &[])).await;
        assert_eq!(said(unknown), format!("serviceId={} not found", blog.id));
        assert!(registry.remove(&blog.id).await.is_err());
    }
}
