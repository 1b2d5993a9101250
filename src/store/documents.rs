//! Migrations of stored documents from one version to the next. Like the other migrations they are never edited once
//! released: they use the field names and prefixes of their time, not the current ones.

use rusqlite::{Transaction, params};
use serde_json::{Map, Value, json};

type Fields = Map<String, Value>;

/// 5 to 6: the fields of a container are sorted by what they are, and what it is in a pod, bottle or build is a role of
/// its own instead of two ids and the beginning of a name. What pods and bottles ask their containers to be is one
/// object, the same everywhere.
pub(super) fn sort_fields(txn: &Transaction<'_>) -> rusqlite::Result<()> {
    rewrite(txn, "containers", container)?;
    rewrite(txn, "pods", with_template)?;
    rewrite(txn, "replicasets", with_template)?;
    rewrite(txn, "bottles", bottle)
}

/// Leave a document that cannot be parsed to the loader, which reports its kind.
fn rewrite(txn: &Transaction<'_>, table: &str, change: impl Fn(Fields) -> Fields) -> rusqlite::Result<()> {
    let mut select = txn.prepare(&format!("SELECT id, document FROM {table}"))?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let rows: Vec<(String, String)> = rows.collect::<rusqlite::Result<_>>()?;
    let mut update = txn.prepare(&format!("UPDATE {table} SET document = ?2 WHERE id = ?1"))?;
    for (id, document) in rows {
        if let Ok(fields) = serde_json::from_str(&document) {
            update.execute(params![id, Value::Object(change(fields)).to_string()])?;
        }
    }
    Ok(())
}

fn container(mut old: Fields) -> Fields {
    let role = role(&old);
    let old = &mut old;
    let image = take(
        old,
        &[
            ("image_repository", "repository"),
            ("image_reference", "reference"),
            ("layers", "layers"),
        ],
    );
    let mut spec = take(old, &[("spec", "process")]);
    spec.insert("image".into(), Value::Object(image));
    spec.append(&mut same(old, &["tty", "options", "mounts", "forwards"]));
    let status = same(
        old,
        &[
            "state",
            "process",
            "exit",
            "attachment",
            "spiffe_id",
            "health",
            "readiness",
            "ready_at",
            "restarts",
            "creating_at",
            "created_at",
            "started_at",
            "stopped_at",
        ],
    );
    let journal = same(
        old,
        &[
            "operation",
            "certificate_due",
            "starting",
            "stopped_by_user",
            "retries",
            "joined",
        ],
    );
    let mut new = same(old, &["id", "name"]);
    new.insert("role".into(), role);
    new.insert("spec".into(), Value::Object(spec));
    new.insert("status".into(), Value::Object(status));
    new.insert("journal".into(), Value::Object(journal));
    new
}

fn with_template(mut old: Fields) -> Fields {
    let entries = old
        .get_mut("template")
        .and_then(|template| template.pointer_mut("/spec/containers"));
    let entries = entries.and_then(Value::as_array_mut);
    entries.into_iter().flatten().for_each(sort_request);
    old
}

fn bottle(mut old: Fields) -> Fields {
    let services = old.get_mut("services").and_then(Value::as_object_mut);
    services
        .into_iter()
        .flatten()
        .for_each(|(_, service)| sort_request(service));
    old
}

fn sort_request(entry: &mut Value) {
    if let Value::Object(fields) = entry {
        let request = same(
            fields,
            &[
                "image",
                "pull",
                "entrypoint",
                "command",
                "keep_entrypoint",
                "env",
                "ports",
                "mounts",
                "network",
                "tty",
                "user",
                "working_dir",
                "options",
            ],
        );
        fields.insert("request".into(), Value::Object(request));
    }
}

fn role(old: &Fields) -> Value {
    let begins = |field: &str, with: &str| {
        old.get(field)
            .and_then(Value::as_str)
            .is_some_and(|t| t.starts_with(with))
    };
    let some = |field: &str| old.get(field).filter(|value| !value.is_null());
    match (some("pod_id"), some("bottle_id")) {
        (Some(pod), _) if begins("name", "condenser-pod-infra-") => json!({ "infra": { "pod": pod } }),
        (Some(pod), _) => json!({ "member": { "pod": pod } }),
        (None, Some(bottle)) => json!({ "service": { "bottle": bottle } }),
        (None, None) if begins("id", "build-") => json!("build"),
        (None, None) => json!("alone"),
    }
}

/// Renames fields. Missing ones keep their default.
fn take(old: &mut Fields, names: &[(&str, &str)]) -> Fields {
    let taken = names.iter();
    taken
        .filter_map(|(from, to)| Some(((*to).to_owned(), old.remove(*from)?)))
        .collect()
}

fn same(old: &mut Fields, names: &[&str]) -> Fields {
    take(old, &names.iter().map(|name| (*name, *name)).collect::<Vec<_>>())
}
