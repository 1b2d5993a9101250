//! `docs/openapi.json` is what the handlers say. After a change of the API: `UPDATE=1 cargo test --test openapi`.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is a failed test"
)]

use std::path::Path;

#[test]
fn the_description_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let current = condenser::api::openapi::openapi_json();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    let difference = stored.lines().zip(current.lines()).position(|(old, new)| old != new);
    assert!(
        stored == current,
        "docs/openapi.json is out of date from line {}; run `UPDATE=1 cargo test --test openapi` and commit it",
        difference.unwrap_or(stored.lines().count()) + 1
    );
}
