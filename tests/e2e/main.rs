//! End-to-end tests: the real daemon, runtime and hook agent in a lab, seen through their interfaces only.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is a failed test"
)]

#[path = "../support/mod.rs"]
mod support;

mod attacks;
mod auth;
mod backup;
mod big_context;
mod bottles;
mod build_cache;
mod build_language;
mod builds;
mod closed;
mod conditions;
mod crash;
mod disk;
mod docs;
mod events;
mod exec;
mod faults;
mod first_packets;
mod fresh;
mod health;
mod hooks;
mod image_places;
mod image_says;
mod image_settings;
mod images;
mod images_moved;
mod import;
mod inside;
mod install;
mod lab;
mod lifecycle;
mod load;
mod logs;
mod manager;
mod manifests;
mod many;
mod metrics;
mod migration;
mod mistakes;
mod mounts;
mod networks;
mod options;
mod original;
mod pods;
mod policies;
mod ports;
mod processes;
mod progress;
mod publishing;
mod recovery;
mod refusals;
mod registries;
mod replay;
mod replicasets;
mod restarts;
mod rollouts;
mod scan;
mod services;
mod startup;
mod storm;
mod terminals;
mod volumes;
mod workloads;

use serde_json::{Value, json};
use support::{ImageSpec, Lab};

/// A command that runs until it is asked to end, and then ends with that code.
fn until_term(code: u8) -> Value {
    let script = format!("trap 'exit {code}' TERM; echo started; while :; do sleep 1000 & wait $!; done");
    json!(["/bin/sh", "-c", script])
}

/// A lab whose daemon serves and has busybox, and the name of that image.
fn lab_with_busybox() -> (Lab, String) {
    let lab = Lab::running();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    (lab, image)
}
