//! The in-memory state and the transaction that changes it. No I/O here.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::records::{
    Bottle, BuildCacheEntry, Container, Forward, Image, Import, Network, Pod, Policy, PolicySettings, Protocol,
    ReplicaSet, Service, ServicePort,
};
use crate::base::cause::Cause;

/// A kind of stored object. One SQLite table each.
pub trait Record: Serialize + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static {
    /// The kind.
    const KIND: Kind;
    /// Key, unique within the kind.
    fn id(&self) -> &str;
    /// The name that people use.
    fn name(&self) -> &str;
    /// Namespace of the name; empty for kinds without namespaces.
    fn namespace(&self) -> &str {
        ""
    }
    /// Claims of this record: no record of any kind may hold them at the same time.
    fn claims(&self) -> Vec<Claim> {
        Vec::new()
    }
    /// The table of this kind.
    fn table(snapshot: &Snapshot) -> &Table<Self>;
    /// The table of this kind.
    fn table_mut(snapshot: &mut Snapshot) -> &mut Table<Self>;
    /// This record as a record of any kind.
    fn object(record: Arc<Self>) -> Object;
}

/// Declares the kinds: the enum, the tables of the snapshot and the union for change events, which must stay in step.
macro_rules! kinds {
    ($($kind:ident, $field:ident, $doc:literal);* $(;)?) => {
        /// The kinds of stored objects.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum Kind { $(#[doc = $doc] $kind),* }

        impl Kind {
            /// All kinds.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),*];

            /// Name of the SQLite table.
            pub fn table_name(self) -> &'static str {
                match self { $(Kind::$kind => stringify!($field)),* }
            }
        }

        /// A record of any kind.
        #[derive(Debug, Clone)]
        pub enum Object { $(#[doc = $doc] $kind(Arc<$kind>)),* }

        /// The whole state at one revision. Cheap to clone; clones share structure.
        #[derive(Debug, Clone, Default)]
        pub struct Snapshot {
            revision: u64,
            $($field: Table<$kind>,)*
            claims: OrdMap<Claim, Holder>,
        }

        impl Snapshot {
            $(#[doc = concat!("All records of: ", $doc)]
            pub fn $field(&self) -> &Table<$kind> { &self.$field })*

            /// Whether it has no records. A daemon that has served once has stored some.
            pub fn is_blank(&self) -> bool { true $(&& self.$field.is_empty())* }

            /// Adds a record that was read from disk.
            pub(crate) fn restore(&mut self, kind: Kind, document: &str) -> Result<(), BrokenRecord> {
                match kind { $(Kind::$kind => self.restore_as::<$kind>(document)),* }
            }
        }


        macro_rules! record_glue {
            $(($kind) => {
                const KIND: Kind = Kind::$kind;
                fn table(snapshot: &Snapshot) -> &Table<Self> { &snapshot.$field }
                fn table_mut(snapshot: &mut Snapshot) -> &mut Table<Self> { &mut snapshot.$field }
                fn object(record: Arc<Self>) -> Object { Object::$kind(record) }
            };)*
        }
    };
}

kinds! {
    Container, containers, "containers";
    Image, images, "images";
    Network, networks, "networks";
    Pod, pods, "pods";
    ReplicaSet, replicasets, "replica sets";
    Service, services, "services";
    Policy, policies, "policies";
    PolicySettings, policysettings, "settings of policies";
    Bottle, bottles, "bottles";
    Import, imports, "takeovers of an earlier installation";
    BuildCacheEntry, buildcache, "what builds keep for later ones";
}

impl Record for Container {
    record_glue!(Container);

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    /// A name that equals another container's id would make that container unreachable, so both are claimed as names.
    fn claims(&self) -> Vec<Claim> {
        let mut claims = vec![Claim::ContainerName(self.name.clone())];
        if self.id != self.name {
            claims.push(Claim::ContainerName(self.id.clone()));
        }
        claims.extend(self.status.attachment.iter().map(|a| Claim::Address(a.address)));
        claims.extend(self.spec.forwards.iter().map(Forward::claim));
        claims
    }
}

impl Forward {
    /// The claim of the host port. If the address comes from the configuration, the claim covers all addresses.
    pub fn claim(&self) -> Claim {
        let address = self.host_address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        Claim::HostPort(self.protocol, self.host_port, address)
    }
}

impl Record for Bottle {
    record_glue!(Bottle);

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    /// A name that equals another bottle's id would hide that bottle. Names of its containers are reserved until they
    /// exist.
    fn claims(&self) -> Vec<Claim> {
        let own = |word: &str| Claim::Name(Kind::Bottle, String::new(), word.to_owned());
        let mut claims = vec![own(&self.name)];
        if self.id != self.name {
            claims.push(own(&self.id));
        }
        let to_come = self
            .services
            .keys()
            .filter(|service| !self.containers.contains_key(*service));
        claims.extend(to_come.map(|service| Claim::ContainerName(self.container_name(service))));
        claims
    }
}

impl Record for Image {
    record_glue!(Image);

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.id
    }
}

impl Record for Network {
    record_glue!(Network);

    fn id(&self) -> &str {
        &self.name
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn claims(&self) -> Vec<Claim> {
        vec![
            Claim::Network(self.name.clone()),
            Claim::Subnet(self.subnet),
            Claim::Address(self.gateway),
        ]
    }
}

impl Record for Pod {
    record_glue!(Pod);

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn claims(&self) -> Vec<Claim> {
        vec![Claim::Name(Kind::Pod, self.namespace.clone(), self.name.clone())]
    }
}

impl Record for ReplicaSet {
    record_glue!(ReplicaSet);

    fn id(&self) -> &str {
        &self.id
    }

    #[allow(clippy::misnamed_getters, reason = "the name of a record is what identifies it")]
    fn name(&self) -> &str {
        &self.manifest_name
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn claims(&self) -> Vec<Claim> {
        vec![Claim::Name(
            Kind::ReplicaSet,
            self.namespace.clone(),
            self.manifest_name.clone(),
        )]
    }
}

impl Record for Service {
    record_glue!(Service);

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn claims(&self) -> Vec<Claim> {
        let mut claims = vec![Claim::Name(Kind::Service, self.namespace.clone(), self.name.clone())];
        let port = |p: &ServicePort| Claim::HostPort(p.protocol, p.port, Ipv4Addr::UNSPECIFIED);
        claims.extend(self.ports.iter().map(port));
        claims
    }
}

impl Record for Policy {
    record_glue!(Policy);

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.id
    }
}

impl Record for PolicySettings {
    record_glue!(PolicySettings);

    fn id(&self) -> &str {
        Self::ID
    }

    fn name(&self) -> &str {
        Self::ID
    }
}

impl Record for BuildCacheEntry {
    record_glue!(BuildCacheEntry);

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.id
    }
}

impl Record for Import {
    record_glue!(Import);

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.id
    }
}

/// Something that at most one record may hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claim {
    /// A name or an id of a container.
    ContainerName(String),
    /// A name among the objects of one kind in a namespace.
    Name(Kind, String, String),
    /// An IPv4 address inside the runtime subnet.
    Address(Ipv4Addr),
    /// A host port at one address; 0.0.0.0 stands for all addresses and conflicts with each.
    HostPort(Protocol, u16, Ipv4Addr),
    /// Name of a network, which is the name of its bridge.
    Network(String),
    /// A block of addresses.
    Subnet(Ipv4Net),
}

impl Claim {
    /// Whether two claims conflict.
    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::HostPort(protocol, port, address), Self::HostPort(protocol2, port2, address2)) => {
                let is_same = (protocol, port) == (protocol2, port2);
                is_same && (address == address2 || address.is_unspecified() || address2.is_unspecified())
            }
            _ => self == other,
        }
    }
}

/// A stored document that cannot be parsed, or whose claims another record holds.
#[derive(Debug)]
pub struct BrokenRecord {
    /// Kind of the record.
    pub kind: Kind,
    /// What is wrong with it.
    pub source: Cause,
}

/// The record that holds a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: String,
}

/// A claim was refused because another record holds it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{claim:?} is held by {:?} {}", holder.kind, holder.id)]
pub struct Taken {
    /// The claim.
    pub claim: Claim,
    /// Its holder.
    pub holder: Holder,
}

/// The records of one kind, by id.
#[derive(Debug, Clone)]
pub struct Table<R>(OrdMap<String, Arc<R>>);

impl<R> Default for Table<R> {
    fn default() -> Self {
        Self(OrdMap::new())
    }
}

impl<R: Record> Table<R> {
    /// The record of that id.
    pub fn get(&self, id: &str) -> Option<&Arc<R>> {
        self.0.get(id)
    }

    /// All records, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<R>> {
        self.0.values()
    }

    /// The records whose id begins with `prefix`, by id.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<R>> {
        self.0
            .range(prefix.to_owned()..)
            .map(|(_, r)| r)
            .take_while(move |r| r.id().starts_with(prefix))
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Snapshot {
    /// A snapshot without a database, for tests of pure functions.
    #[cfg(test)]
    pub(crate) fn build(change: impl FnOnce(&mut Txn)) -> Self {
        let mut txn = Txn::new(Self::default());
        change(&mut txn);
        txn.next
    }

    /// The state that a transaction would produce, without committing it.
    pub fn preview<T, E>(&self, change: impl FnOnce(&mut Txn) -> Result<T, E>) -> Result<(Self, T), E> {
        let mut txn = Txn::new(self.clone());
        let value = change(&mut txn)?;
        Ok((txn.next, value))
    }

    /// Number of commits since the store was opened. Every published snapshot increases it.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The record of that id.
    pub fn get<R: Record>(&self, id: &str) -> Option<&Arc<R>> {
        R::table(self).get(id)
    }

    /// The holder of a claim.
    pub fn holder(&self, claim: &Claim) -> Option<&Holder> {
        self.claims.get(claim)
    }

    /// Holders of all claims that conflict with `claim`: its own holder, and for a port also those of the same port at
    /// overlapping addresses.
    pub fn rivals(&self, claim: &Claim) -> impl Iterator<Item = &Holder> {
        let (from, to) = match claim {
            Claim::HostPort(protocol, port, _) => (
                Claim::HostPort(*protocol, *port, Ipv4Addr::UNSPECIFIED),
                Claim::HostPort(*protocol, *port, Ipv4Addr::BROADCAST),
            ),
            claim => (claim.clone(), claim.clone()),
        };
        self.claims
            .range(from..=to)
            .filter(|(other, _)| claim.overlaps(other))
            .map(|(_, holder)| holder)
    }

    /// The holder of a port in words, as in `service default/shop`; for an infra container, its pod.
    pub fn describe(&self, holder: &Holder) -> String {
        let pod_of = |container: &Container| self.pods.get(container.role.pod()?);
        match holder.kind {
            Kind::Container => match self.containers.get(&holder.id) {
                Some(container) => match pod_of(container) {
                    Some(pod) => format!("pod {}/{}", pod.namespace, pod.name),
                    None => format!("container {}", container.name),
                },
                None => format!("container {}", holder.id),
            },
            Kind::Service => match self.services.get(&holder.id) {
                Some(service) => format!("service {}/{}", service.namespace, service.name),
                None => format!("service {}", holder.id),
            },
            kind => format!("{} {}", kind.table_name().trim_end_matches('s'), holder.id),
        }
    }

    fn restore_as<R: Record>(&mut self, document: &str) -> Result<(), BrokenRecord> {
        let record: R = serde_json::from_str(document).map_err(|e| BrokenRecord {
            kind: R::KIND,
            source: e.into(),
        })?;
        self.claim(&record).map_err(|taken| BrokenRecord {
            kind: R::KIND,
            source: taken.into(),
        })?;
        R::table_mut(self).0.insert(record.id().to_owned(), Arc::new(record));
        Ok(())
    }

    fn claim<R: Record>(&mut self, record: &R) -> Result<(), Taken> {
        let claims = record.claims();
        let is_other = |holder: &&Holder| holder.kind != R::KIND || holder.id != record.id();
        for claim in &claims {
            if let Some(holder) = self.rivals(claim).find(is_other) {
                return Err(Taken {
                    claim: claim.clone(),
                    holder: holder.clone(),
                });
            }
        }
        for claim in claims {
            self.claims.insert(
                claim,
                Holder {
                    kind: R::KIND,
                    id: record.id().to_owned(),
                },
            );
        }
        Ok(())
    }

    fn release<R: Record>(&mut self, record: &R, keep: &[Claim]) {
        for claim in record.claims() {
            if !keep.contains(&claim) {
                self.claims.remove(&claim);
            }
        }
    }
}

/// One object before and after a commit. At least one side is present.
#[derive(Debug, Clone)]
pub struct Change {
    /// Kind of the object.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// The old state; `None` if it is new.
    pub old: Option<Object>,
    /// The new state; `None` if it was removed.
    pub new: Option<Object>,
}

/// The changes of one transaction.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Revision of the snapshot that contains it.
    pub revision: u64,
    /// When it was committed.
    pub at: Timestamp,
    /// Each changed object once.
    pub changes: Vec<Change>,
}

/// A change in progress: it reads its own writes, which nobody else sees until the commit.
pub struct Txn {
    base: Snapshot,
    pub(crate) next: Snapshot,
    pub(crate) writes: BTreeMap<(Kind, String), Write>,
}

/// The last state of one object within a transaction, as written to disk.
pub(crate) struct Write {
    pub row: Option<Row>,
    pub old: Option<Object>,
    pub new: Option<Object>,
}

pub(crate) struct Row {
    pub name: String,
    pub namespace: String,
    pub document: String,
}

impl Txn {
    pub(crate) fn new(base: Snapshot) -> Self {
        let mut next = base.clone();
        next.revision += 1;
        Self {
            base,
            next,
            writes: BTreeMap::new(),
        }
    }

    /// The state including the writes of this transaction.
    pub fn snapshot(&self) -> &Snapshot {
        &self.next
    }

    /// The record of that id.
    pub fn get<R: Record>(&self, id: &str) -> Option<Arc<R>> {
        self.next.get::<R>(id).cloned()
    }

    /// Inserts or replaces a record. Fails without a change if another record holds one of its claims.
    pub fn put<R: Record>(&mut self, record: R) -> Result<Arc<R>, Taken> {
        let previous = self.next.get::<R>(record.id()).cloned();
        self.next.claim(&record)?;
        if let Some(previous) = &previous {
            self.next.release(previous.as_ref(), &record.claims());
        }
        // Records are plain data: strings, numbers and lists. Serialising them cannot fail.
        #[allow(clippy::expect_used)]
        let document = serde_json::to_string(&record).expect("plain data");
        let row = Row {
            name: record.name().to_owned(),
            namespace: record.namespace().to_owned(),
            document,
        };
        let record = Arc::new(record);
        R::table_mut(&mut self.next)
            .0
            .insert(record.id().to_owned(), record.clone());
        self.note::<R>(record.id(), Some(row), Some(R::object(record.clone())));
        Ok(record)
    }

    /// Updates the record of that id in place; `None` if there is none. Claims are checked as in [`Txn::put`].
    pub fn update<R: Record>(&mut self, id: &str, change: impl FnOnce(&mut R)) -> Result<Option<Arc<R>>, Taken> {
        let Some(current) = self.get::<R>(id) else {
            return Ok(None);
        };
        let mut record = R::clone(&current);
        change(&mut record);
        self.put(record).map(Some)
    }

    /// Removes a record and all its claims. `None` if there was none.
    pub fn remove<R: Record>(&mut self, id: &str) -> Option<Arc<R>> {
        let record = R::table_mut(&mut self.next).0.remove(id)?;
        self.next.release(record.as_ref(), &[]);
        self.note::<R>(id, None, None);
        Some(record)
    }

    fn note<R: Record>(&mut self, id: &str, row: Option<Row>, new: Option<Object>) {
        let old = self.base.get::<R>(id).cloned().map(R::object);
        self.writes.insert((R::KIND, id.to_owned()), Write { row, old, new });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::{bottle, container, network};

    fn txn() -> Txn {
        Txn::new(Snapshot::default())
    }

    #[test]
    fn a_claim_has_one_holder() {
        let mut t = txn();
        t.put(container("a", "web").forward(8080).address("10.166.0.1"))
            .unwrap();
        for second in [
            container("b", "web"),
            container("b", "a"),
            container("b", "x").forward(8080),
            container("b", "x").address("10.166.0.1"),
        ] {
            let taken = t.put(second).unwrap_err();
            assert_eq!(
                taken.holder,
                Holder {
                    kind: Kind::Container,
                    id: "a".into()
                }
            );
            assert!(t.get::<Container>("b").is_none(), "a refused put changes nothing");
        }
        t.put(container("b", "x").forward(8081)).unwrap();
    }

    #[test]
    fn a_port_has_a_holder_at_each_address_or_one_at_all() {
        let at = |address: Option<&str>| {
            let mut c = container("x", "x").forward(80);
            c.spec.forwards[0].host_address = address.map(|a| a.parse().unwrap());
            c
        };
        let (one, two, all) = (Some("127.0.0.1"), Some("192.0.2.2"), Some("0.0.0.0"));
        for (first, second, fits) in [
            (one, two, true),
            (one, one, false),
            (one, None, false),
            (one, all, false),
            (None, one, false),
            (all, two, false),
        ] {
            let mut t = txn();
            t.put(Container {
                id: "a".into(),
                name: "a".into(),
                ..at(first)
            })
            .unwrap();
            let put = t.put(Container {
                id: "b".into(),
                name: "b".into(),
                ..at(second)
            });
            assert_eq!(put.is_ok(), fits, "{first:?} {second:?}");
            t.remove::<Container>("a");
            t.put(Container {
                id: "b".into(),
                name: "b".into(),
                ..at(second)
            })
            .unwrap();
        }
    }

    #[test]
    fn a_bottle_keeps_names_until_its_containers_have_them() {
        let mut t = txn();
        let mut blog = bottle("b1", "blog", &["db", "web"]);
        t.put(blog.clone()).unwrap();
        assert_eq!(t.put(container("a", "blog-db")).unwrap_err().holder.kind, Kind::Bottle);
        blog.containers.insert("db".into(), "a".into());
        t.put(blog).unwrap();
        t.put(container("a", "blog-db")).unwrap();
        t.put(container("c", "blog-web")).unwrap_err();
        for other in [
            bottle("b2", "blog", &[]),
            bottle("b2", "b1", &[]),
            bottle("b2", "b", &[]),
        ] {
            let is_free = other.name == "b";
            assert_eq!(t.put(other).is_ok(), is_free);
        }
        t.remove::<Bottle>("b1");
        t.put(container("c", "blog-web")).unwrap();
    }

    #[test]
    fn claims_go_over_kinds() {
        let mut t = txn();
        t.put(network("raind0", "10.166.0.0/24")).unwrap();
        let taken = t.put(container("a", "web").address("10.166.0.254")).unwrap_err();
        assert_eq!(taken.holder.kind, Kind::Network);
    }

    #[test]
    fn an_update_frees_what_it_gives_up() {
        let mut t = txn();
        t.put(container("a", "web").forward(80)).unwrap();
        t.update::<Container>("a", |c| c.spec.forwards.clear()).unwrap();
        t.put(container("b", "x").forward(80)).unwrap();
        t.remove::<Container>("b").unwrap();
        t.put(container("c", "x").forward(80)).unwrap();
    }

    #[test]
    fn prefixes_find_ids() {
        let mut t = txn();
        for id in ["01ab1", "01ab2", "01ac"] {
            t.put(container(id, id)).unwrap();
        }
        let found: Vec<_> = t
            .snapshot()
            .containers()
            .with_prefix("01ab")
            .map(|c| c.id.clone())
            .collect();
        assert_eq!(found, ["01ab1", "01ab2"]);
    }
}
