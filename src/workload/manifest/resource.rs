//! Streams of documents, the supported kinds, and lists of resources.

use super::error::{ManifestError, Problem};
use super::metadata::or_default;
use super::reader::{Field, MOST_GROWTH, Object, Source, Warning};
use super::yaml::{Node, Value};
use super::{PodManifest, SetManifest, metadata, pod, service as services, set, yaml};
use crate::workload::balancer::NewService;

/// One resource of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Number of the document in the stream, from 1. The items of a `List` share theirs.
    pub number: usize,
    /// Its line in the stream, from 1.
    pub line: usize,
    /// `kind` as written.
    pub kind: String,
    /// The requested object.
    pub resource: Resource,
    /// Fields that have no effect.
    pub warnings: Vec<Warning>,
}

/// The content of a document. Names and namespaces in it are never empty.
#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    /// A pod.
    Pod(PodManifest),
    /// A replica set or a deployment.
    ReplicaSet(SetManifest),
    /// A service.
    Service(NewService),
}

/// The kinds of resources as stored: a `Deployment` is a replica set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKind {
    /// `Pod`
    Pod,
    /// `ReplicaSet`, `Deployment`
    ReplicaSet,
    /// `Service`
    Service,
}

/// The identity of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Its kind.
    pub kind: ResourceKind,
    /// `kind` as written.
    pub written_kind: String,
    /// Its name; for a replica set the identifying one, see [`SetManifest`].
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

type Result<T> = std::result::Result<T, ManifestError>;

/// All resources of a stream, in order; at least one. An invalid or duplicate resource makes the whole stream invalid.
pub fn parse(text: &str) -> Result<Vec<Document>> {
    let mut documents: Vec<Document> = Vec::new();
    each(text, &mut |root, source| {
        let (kind, written) = kind(root)?;
        let resource = root.object(|object| resource(kind, &written, object))?;
        let key = resource.key();
        if let Some(earlier) = documents.iter().find(|d| d.resource.key() == key) {
            let (number, line) = (earlier.number, earlier.line);
            let (_, namespace, name) = key;
            let problem =
                format!("{written} {namespace}/{name} is in the stream twice; see document {number}, line {line}");
            return Err(root.error(problem));
        }
        documents.push(Document {
            number: source.document,
            line: root.node().line,
            kind: written,
            resource,
            warnings: source.take_warnings(),
        });
        Ok(())
    })?;
    if documents.is_empty() {
        return Err(nothing(Problem::Nothing));
    }
    Ok(documents)
}

fn nothing(problem: Problem) -> ManifestError {
    ManifestError {
        problem,
        document: 1,
        line: 1,
        field: String::new(),
    }
}

/// The resources that a stream names, in order, possibly none. Only kind, name and namespace are read.
pub fn references(text: &str) -> Result<Vec<Reference>> {
    let mut references = Vec::new();
    each(text, &mut |root, _| {
        let (kind, written_kind) = kind(root)?;
        let (name, namespace) = root.object(|object| match kind {
            ResourceKind::ReplicaSet => set::identity(object),
            _ => {
                let (name, namespace) = object.get("metadata", |field| field.object(metadata::identity))?;
                Ok((name, namespace))
            }
        })?;
        if name.is_empty() {
            return Err(match kind {
                ResourceKind::Pod => root.error("pod name is required"),
                ResourceKind::ReplicaSet => root.error("replicaset template name is required"),
                ResourceKind::Service => root.problem(Problem::NoServiceName),
            });
        }
        let namespace = or_default(namespace);
        let reference = Reference {
            kind,
            written_kind,
            name,
            namespace,
        };
        if !references.contains(&reference) {
            references.push(reference);
        }
        Ok(())
    })?;
    Ok(references)
}

/// The service in the first document that is not empty (`docs/spec/api.md` 10).
pub fn service(text: &str) -> Result<(NewService, Vec<Warning>)> {
    let documents = yaml::documents(text)?;
    let Some((number, node)) = documents.first() else {
        return Err(nothing(Problem::NoService));
    };
    let source = Source::new(*number);
    let root = Field::root(&source, String::new(), node);
    let (kind, written) = written_kind(&root)?;
    if kind != Some(ResourceKind::Service) {
        return Err(root.problem(Problem::NotAService(written)));
    }
    let manifest = root.object(|object| {
        known(object);
        services::read(object)
    })?;
    Ok((manifest, source.take_warnings()))
}

/// Calls `act` for every resource: documents, and items of lists.
fn each(text: &str, act: &mut dyn FnMut(&Field<'_>, &Source) -> Result<()>) -> Result<()> {
    let mut room = MOST_GROWTH;
    for (number, node) in yaml::documents(text)? {
        let source = Source::with_room(number, room);
        each_in(&Field::root(&source, String::new(), &node), &source, act)?;
        room = source.room();
    }
    Ok(())
}

/// The tree limits the nesting of lists.
fn each_in(root: &Field<'_>, source: &Source, act: &mut dyn FnMut(&Field<'_>, &Source) -> Result<()>) -> Result<()> {
    if !is_list(root.node()) {
        return act(root, source);
    }
    let items = root.object(|list| {
        known(list);
        list.field("metadata");
        list.items("items")
    })?;
    items.iter().try_for_each(|item| each_in(item, source, act))
}

fn is_list(node: &Node) -> bool {
    let Value::Map(entries) = &node.value else { return false };
    let kind = entries.iter().find(|(key, _)| key == "kind");
    kind.is_some_and(|(_, node)| matches!(&node.value, Value::Scalar { text, .. } if text == "List"))
}

fn kind(root: &Field<'_>) -> Result<(ResourceKind, String)> {
    match written_kind(root)? {
        (Some(kind), written) => Ok((kind, written)),
        (None, written) => Err(root.problem(Problem::UnsupportedKind(written))),
    }
}

fn written_kind(root: &Field<'_>) -> Result<(Option<ResourceKind>, String)> {
    let Value::Map(entries) = &root.node().value else {
        return Err(root.error("a document must be a mapping"));
    };
    let written = match entries.iter().find(|(key, _)| key == "kind") {
        Some((_, node)) => match &node.value {
            Value::Scalar { text, .. } => text.clone(),
            Value::Null => String::new(),
            _ => return Err(root.error("kind must be a string")),
        },
        None => String::new(),
    };
    let kind = match &written[..] {
        "" => return Err(root.problem(Problem::NoKind)),
        "Pod" => Some(ResourceKind::Pod),
        "ReplicaSet" | "Deployment" => Some(ResourceKind::ReplicaSet),
        "Service" => Some(ResourceKind::Service),
        _ => None,
    };
    Ok((kind, written))
}

fn resource(kind: ResourceKind, written: &str, object: &mut Object<'_>) -> Result<Resource> {
    known(object);
    match kind {
        ResourceKind::Pod => pod::read(object).map(Resource::Pod),
        ResourceKind::ReplicaSet => set::read(object, written == "Deployment").map(Resource::ReplicaSet),
        ResourceKind::Service => services::read(object).map(Resource::Service),
    }
}

/// Fields that every resource has and that we ignore.
fn known(object: &mut Object<'_>) {
    for name in ["apiVersion", "kind"] {
        object.field(name);
    }
}

impl Resource {
    /// Kind, namespace and name.
    pub fn key(&self) -> (ResourceKind, &str, &str) {
        match self {
            Self::Pod(pod) => (ResourceKind::Pod, &pod.namespace, &pod.name),
            Self::ReplicaSet(set) => (ResourceKind::ReplicaSet, &set.namespace, &set.manifest_name),
            Self::Service(service) => (ResourceKind::Service, &service.namespace, &service.name),
        }
    }
}
