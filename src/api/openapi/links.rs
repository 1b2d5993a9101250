//! Links between operations: values of an answer that other requests take as parameters (OpenAPI 3.1, Link Object).
//! Readers, and tests that generate requests, can follow them.

use utoipa::openapi::link::Link;
use utoipa::openapi::{OpenApi, RefOr};

use super::operations;

/// A value in an answer of an operation, and the parameter of other operations that takes it.
struct Gives {
    from: &'static str,
    status: &'static str,
    /// A runtime expression.
    value: &'static str,
    parameter: &'static str,
    to: &'static [&'static str],
}

const OF_CONTAINER: &[&str] = &[
    "containers_get",
    "containers_start",
    "containers_exec",
    "containers_stats",
    "containers_log",
    "containers_log_path",
    "containers_stop",
    "containers_delete",
];
const OF_POD: &[&str] = &["pods_get", "pods_start", "pods_stop", "pods_remove"];
const OF_SET: &[&str] = &["replicasets_get", "replicasets_scale", "replicasets_remove"];
const OF_SERVICE: &[&str] = &["services_get", "services_remove"];
const OF_BOTTLE: &[&str] = &["bottles_get", "bottles_act"];
const OF_IMAGE: &[&str] = &["images_status", "images_disk_usage"];

const LINKS: &[Gives] = &[
    gives(
        "containers_create",
        "200",
        "$response.body#/data/id",
        "containerId",
        OF_CONTAINER,
    ),
    gives(
        "containers_list",
        "200",
        "$response.body#/data/0/containerId",
        "containerId",
        OF_CONTAINER,
    ),
    gives("pods_create", "200", "$response.body#/data/podId", "podId", OF_POD),
    gives("pods_list", "200", "$response.body#/data/0/podId", "podId", OF_POD),
    gives(
        "resources_apply",
        "201",
        "$response.body#/data/pods/0/podId",
        "podId",
        OF_POD,
    ),
    gives(
        "resources_apply",
        "201",
        "$response.body#/data/services/0/serviceId",
        "serviceId",
        OF_SERVICE,
    ),
    gives(
        "replicasets_list",
        "200",
        "$response.body#/data/0/replicaSetId",
        "replicaSetId",
        OF_SET,
    ),
    gives(
        "services_create",
        "201",
        "$response.body#/data/serviceId",
        "serviceId",
        OF_SERVICE,
    ),
    gives(
        "services_list",
        "200",
        "$response.body#/data/0/serviceId",
        "serviceId",
        OF_SERVICE,
    ),
    gives(
        "bottles_register",
        "201",
        "$response.body#/data/bottleId",
        "bottleId",
        OF_BOTTLE,
    ),
    gives(
        "bottles_list",
        "200",
        "$response.body#/data/bottles/0/bottleId",
        "bottleId",
        OF_BOTTLE,
    ),
    gives(
        "networks_create",
        "200",
        "$response.body#/data/bridge",
        "bridge",
        &["networks_delete"],
    ),
    gives(
        "policies_add",
        "200",
        "$response.body#/data/id",
        "policy",
        &["policies_remove"],
    ),
    gives("images_pull", "200", "$response.body#/data/image", "image", OF_IMAGE),
    gives("images_build", "200", "$response.body#/data/image", "image", OF_IMAGE),
];

const fn gives(
    from: &'static str,
    status: &'static str,
    value: &'static str,
    parameter: &'static str,
    to: &'static [&'static str],
) -> Gives {
    Gives {
        from,
        status,
        value,
        parameter,
        to,
    }
}

/// Adds the links to a document. Returns those whose operation, answer or parameter does not exist.
pub(super) fn apply(document: &mut OpenApi) -> Vec<String> {
    let mut lost = Vec::new();
    for link in LINKS {
        for target in link.to {
            let takes = operations_of(document).any(|(name, parameters)| {
                name == *target && parameters.iter().any(|parameter| parameter == link.parameter)
            });
            if !(takes && add(document, link, target)) {
                lost.push(format!("{} {} -> {target}", link.from, link.status));
            }
        }
    }
    lost
}

fn operations_of(document: &mut OpenApi) -> impl Iterator<Item = (String, Vec<String>)> {
    let all = document.paths.paths.values_mut().flat_map(operations);
    all.map(|operation| {
        let parameters = operation.parameters.iter().flatten();
        let parameters = parameters.filter_map(|parameter| match parameter {
            RefOr::T(parameter) => Some(parameter.name.clone()),
            RefOr::Ref(_) => None,
        });
        (operation.operation_id.clone().unwrap_or_default(), parameters.collect())
    })
}

fn add(document: &mut OpenApi, link: &Gives, target: &str) -> bool {
    let mut all = document.paths.paths.values_mut().flat_map(operations);
    let Some(from) = all.find(|operation| operation.operation_id.as_deref() == Some(link.from)) else {
        return false;
    };
    match from.responses.responses.get_mut(link.status) {
        Some(RefOr::T(response)) => {
            let to = Link::builder()
                .operation_id(target)
                .parameter(link.parameter, link.value)
                .build();
            response.links.insert(target.to_owned(), to.into());
            true
        }
        _ => false,
    }
}
