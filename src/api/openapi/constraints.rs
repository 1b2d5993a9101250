//! Constraints of requests that the types do not express: patterns, enumerations, ranges.
//!
//! The checks themselves are in the code that validates requests. The constraints repeat them so that clients, and
//! tests that generate requests, know them in advance. A constraint for a field that does not exist fails a test.

use serde_json::Value;
use utoipa::Number;
use utoipa::openapi::path::{Operation, Parameter};
use utoipa::openapi::schema::{ArrayItems, Object};
use utoipa::openapi::{OpenApi, RefOr, Schema};

use super::operations;

/// The constraint of a value.
#[derive(Clone, Copy)]
enum Rule {
    /// It must match this regular expression (ECMA-262).
    Pattern(&'static str),
    /// It must be one of these strings.
    OneOf(&'static [&'static str]),
    /// It must be a number in this range.
    Range(isize, isize),
    /// It must be a string of this length, in characters.
    Length(usize, usize),
    /// It must be a list with at least this many items.
    AtLeast(usize),
}

use Rule::{AtLeast, Length, OneOf, Pattern, Range};

/// `[registry/]path[:tag][@digest]`, as precisely as a pattern can express it.
const IMAGE: Rule = Pattern(
    "^([a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(:[0-9]{1,5})?/)?[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)\
     [a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[a-f0-9]{64})?$",
);
/// A host port and a container port, with optional address and protocol.
const PUBLISHED: Rule = Pattern("^[^:]+:[^:]+(:.*)?$");
const CHAINS: Rule = OneOf(&["RAIND-EW", "RAIND-NS-OBS", "RAIND-NS-ENF"]);
const PROTOCOLS: Rule = OneOf(&["", "icmp", "tcp", "udp"]);
const PORT: Rule = Range(0, 65_535);
const CHECK_TIME: Rule = Range(1, 3600);
const NOTHING: Rule = Length(0, 0);

/// Schema, field, constraint.
const FIELDS: &[(&str, &str, Rule)] = &[
    ("CreateBody", "image", IMAGE),
    ("CreateBody", "name", Pattern("^([A-Za-z0-9][A-Za-z0-9_.-]{0,127})?$")),
    (
        "CreateBody",
        "hostname",
        Pattern("^([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*)?$"),
    ),
    ("CreateBody", "hostname", Length(0, 63)),
    ("CreateBody", "port", PUBLISHED),
    ("CreateBody", "workingDir", Pattern("^(/[^\\u0000]*)?$")),
    ("CreateBody", "cpus", Range(0, 4096)),
    ("CreateBody", "pidsLimit", Range(0, 4_194_304)),
    ("CreateBody", "stopTimeout", Range(0, 3600)),
    (
        "RestartBody",
        "name",
        OneOf(&["", "no", "on-failure", "always", "unless-stopped"]),
    ),
    ("HealthCheckBody", "tcp", PORT),
    ("HealthCheckBody", "interval", CHECK_TIME),
    ("HealthCheckBody", "timeout", CHECK_TIME),
    ("HealthCheckBody", "retries", CHECK_TIME),
    ("HealthCheckBody", "startPeriod", Range(0, 3600)),
    ("HealthCheckBody", "startInterval", CHECK_TIME),
    ("ExecBody", "command", AtLeast(1)),
    ("ExecBody", "timeout", CHECK_TIME),
    ("PullBody", "image", IMAGE),
    ("ImageBody", "image", IMAGE),
    ("NetworkBody", "bridge", Pattern("^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$")),
    ("PodBody", "name", Pattern("^[A-Za-z0-9][A-Za-z0-9_.-]{0,252}$")),
    ("PodBody", "namespace", Pattern("^([A-Za-z0-9][A-Za-z0-9_.-]{0,62})?$")),
    ("PodBody", "networkNS", NOTHING),
    ("PodBody", "ipcNS", NOTHING),
    ("PodBody", "utsNS", NOTHING),
    ("PodBody", "userNS", NOTHING),
    (
        "PodContainerBody",
        "name",
        Pattern("^[A-Za-z0-9][A-Za-z0-9_.-]{0,118}$"),
    ),
    ("PodContainerBody", "image", IMAGE),
    ("PodContainerBody", "port", PUBLISHED),
    ("PolicyBody", "chain", CHAINS),
    ("PolicyBody", "source", Length(1, 253)),
    ("PolicyBody", "dest", Length(1, 253)),
    ("PolicyBody", "protocol", PROTOCOLS),
    ("PolicyBody", "dport", PORT),
    ("PolicyBody", "comment", Length(0, 256)),
    ("ModeBody", "mode", OneOf(&["observe", "enforce"])),
    // Fields of answers.
    (
        "ContainerView",
        "state",
        OneOf(&["creating", "created", "running", "stopped", "missing"]),
    ),
    (
        "PodView",
        "state",
        OneOf(&["created", "running", "degraded", "stopped", "succeeded", "failed"]),
    ),
    ("Done", "status", OneOf(&["success"])),
    ("Failure", "status", OneOf(&["fail"])),
];

/// Operation (`*` for all), parameter, constraint.
const PARAMETERS: &[(&str, &str, Rule)] = &[
    ("*", "containerId", Length(1, 128)),
    ("*", "podId", Length(1, 253)),
    ("*", "replicaSetId", Length(1, 253)),
    ("*", "serviceId", Length(1, 253)),
    ("*", "bottleId", Length(1, 63)),
    ("*", "bridge", Length(1, 15)),
    ("*", "namespace", Pattern("^([A-Za-z0-9][A-Za-z0-9_.-]{0,127})?$")),
    ("bottles_act", "action", OneOf(&["start", "stop", "delete"])),
    ("policies_list", "policy", CHAINS),
    ("policies_remove", "policy", Length(1, 128)),
    ("policies_explain", "source", Length(1, 253)),
    ("policies_explain", "destination", Length(1, 253)),
    ("policies_explain", "protocol", PROTOCOLS),
    ("policies_explain", "port", PORT),
    ("containers_log", "tail_lines", Range(0, 5000)),
    ("images_status", "image", IMAGE),
    ("images_disk_usage", "image", IMAGE),
    ("images_build", "tag", IMAGE),
];

/// Adds the constraints to a document. Returns those whose field or parameter does not exist.
pub(super) fn apply(document: &mut OpenApi) -> Vec<String> {
    let mut lost = Vec::new();
    for (schema, field, rule) in FIELDS {
        let schemas = document.components.get_or_insert_default().schemas.get_mut(*schema);
        let property = match schemas {
            Some(RefOr::T(Schema::Object(object))) => object.properties.get_mut(*field),
            _ => None,
        };
        if !property.is_some_and(|property| rule.add_to(property)) {
            lost.push(format!("{schema}.{field}"));
        }
    }
    for (operation, name, rule) in PARAMETERS {
        let mut found = false;
        let all = document.paths.paths.values_mut().flat_map(operations);
        for parameter in all.filter(|o| is_meant(operation, o)).flat_map(parameters) {
            if let (true, Some(schema)) = (parameter.name == *name, &mut parameter.schema) {
                found |= rule.add_to(schema);
            }
        }
        if !found {
            lost.push(format!("{operation} {name}"));
        }
    }
    lost
}

fn is_meant(wanted: &str, operation: &Operation) -> bool {
    wanted == "*" || operation.operation_id.as_deref() == Some(wanted)
}

fn parameters(operation: &mut Operation) -> impl Iterator<Item = &mut Parameter> {
    let all = operation.parameters.iter_mut().flatten();
    all.filter_map(|parameter| match parameter {
        RefOr::T(parameter) => Some(parameter),
        RefOr::Ref(_) => None,
    })
}

impl Rule {
    /// Returns whether it could be added: a reference to another schema cannot be changed.
    fn add_to(self, schema: &mut RefOr<Schema>) -> bool {
        match schema {
            RefOr::T(Schema::Object(object)) => {
                self.add_to_object(object);
                true
            }
            RefOr::T(Schema::Array(array)) => match (self, &mut array.items) {
                (AtLeast(count), _) => {
                    array.min_items = Some(count);
                    true
                }
                (_, ArrayItems::RefOrSchema(items)) => self.add_to(items),
                _ => false,
            },
            _ => false,
        }
    }

    fn add_to_object(self, object: &mut Object) {
        match self {
            Pattern(pattern) => object.pattern = Some(pattern.to_owned()),
            OneOf(words) => object.enum_values = Some(words.iter().map(|word| Value::from(*word)).collect()),
            Range(least, most) => {
                object.minimum = Some(Number::Int(least));
                object.maximum = Some(Number::Int(most));
            }
            Length(least, most) => {
                object.min_length = (least > 0).then_some(least);
                object.max_length = Some(most);
            }
            AtLeast(_) => {}
        }
    }
}
