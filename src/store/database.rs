//! SQLite persistence: one STRICT table per kind with the columns id, name, namespace and a JSON document.
//!
//! The daemon keeps the file locked. To inspect it, copy it together with its `-wal` (docs/operations.md).

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction, params};

use super::error::StoreError;
use super::{documents, holder};
use crate::base::cause::Cause;
use crate::model::{Kind, Snapshot, Write};

/// Version of the tables and documents, kept in `PRAGMA user_version`.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// Each entry migrates the database from the version of its index to the next one. Never edit a released entry.
const MIGRATIONS: &[Step] = &[Step::Tables("
    CREATE TABLE containers (id TEXT PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL, document TEXT NOT NULL) STRICT;
    CREATE TABLE images     (id TEXT PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL, document TEXT NOT NULL) STRICT;
    CREATE TABLE networks   (id TEXT PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL, document TEXT NOT NULL) STRICT;
"), Step::Tables("
    CREATE TABLE pods        (id TEXT PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL, document TEXT NOT NULL) STRICT;
    CREATE TABLE replicasets (id TEXT PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL, document TEXT NOT NULL) STRICT;
    CREATE TABLE services    (id TEXT PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL, document TEXT NOT NULL) STRICT;
"), Step::Tables("
    CREATE TABLE policies       (id TEXT PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL, document TEXT NOT NULL) STRICT;
    CREATE TABLE policysettings (id TEXT PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL, document TEXT NOT NULL) STRICT;
"), Step::Tables("
    CREATE TABLE bottles (id TEXT PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL, document TEXT NOT NULL) STRICT;
"), Step::Tables("
    CREATE TABLE imports (id TEXT PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL, document TEXT NOT NULL) STRICT;
"), Step::Documents(documents::sort_fields), Step::Tables("
    CREATE TABLE buildcache (id TEXT PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL, document TEXT NOT NULL) STRICT;
")];

enum Step {
    Tables(&'static str),
    Documents(fn(&Transaction<'_>) -> rusqlite::Result<()>),
}

pub(super) struct Database(Connection);

impl Database {
    /// Opens or creates the database, checks it, migrates its schema and reads everything.
    #[expect(clippy::disallowed_methods, reason = "the error names the file already")]
    pub(super) fn open(path: &Path) -> Result<(Self, Snapshot), StoreError> {
        if let Some(dir) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|e| StoreError::Open {
                    path: path.to_owned(),
                    source: e.into(),
                })?;
        }
        // SQLite creates files with the umask; the store is readable by root only.
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| StoreError::Open {
                path: path.to_owned(),
                source: e.into(),
            })?;
        let fail = |e: rusqlite::Error| refusal(path, e);
        let mut connection = Connection::open(path).map_err(fail)?;
        connection.busy_timeout(Duration::from_secs(2)).map_err(fail)?;
        // EXCLUSIVE: a second daemon on the same files must fail at once, not corrupt the state of the first one.
        connection
            .execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
            .map_err(fail)?;
        let check: String = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(fail)?;
        if check != "ok" {
            return Err(StoreError::Open {
                path: path.to_owned(),
                source: Cause::new(format!("the database is damaged: {check}")),
            });
        }
        migrate(&mut connection, path)?;
        let snapshot = load(&connection)?;
        Ok((Self(connection), snapshot))
    }

    /// Writes the changes of several transactions in one commit, in order.
    pub(super) fn commit<'a>(
        &mut self,
        writes: impl Iterator<Item = (&'a (Kind, String), &'a Write)>,
    ) -> Result<(), StoreError> {
        let fail = |e: rusqlite::Error| StoreError::Commit(e.into());
        let txn = self.0.transaction().map_err(fail)?;
        for ((kind, id), write) in writes {
            let table = kind.table_name();
            match &write.row {
                Some(row) => txn
                    .prepare_cached(&format!(
                        "INSERT INTO {table} (id, name, namespace, document) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) \
                         DO UPDATE SET name = ?2, namespace = ?3, document = ?4"
                    ))
                    .and_then(|mut s| s.execute(params![id, row.name, row.namespace, row.document])),
                None => txn
                    .prepare_cached(&format!("DELETE FROM {table} WHERE id = ?1"))
                    .and_then(|mut s| s.execute(params![id])),
            }
            .map_err(fail)?;
        }
        txn.commit().map_err(fail)
    }
}

/// Why the database cannot be opened; names the process that has it locked, if there is one.
fn refusal(path: &Path, error: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    let busy = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked];
    match error.sqlite_error_code() {
        Some(code) if busy.contains(&code) => StoreError::InUse {
            holder: holder::of(&path).unwrap_or_else(|| "another process".to_owned()),
            path,
        },
        _ => StoreError::Open {
            path,
            source: error.into(),
        },
    }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let fail = |e: rusqlite::Error| StoreError::Open {
        path: path.to_owned(),
        source: e.into(),
    };
    let version: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(fail)?;
    if version > SCHEMA_VERSION {
        return Err(StoreError::Open {
            path: path.to_owned(),
            source: Cause::new(format!(
                "the database has schema version {version}, this program knows {SCHEMA_VERSION}; use a newer program"
            )),
        });
    }
    if version == SCHEMA_VERSION {
        return Ok(());
    }
    if version > 0 {
        let backup = path.with_extension(format!("db.v{version}"));
        connection
            .backup("main", &backup, None::<fn(rusqlite::backup::Progress)>)
            .map_err(fail)?;
        tracing::info!(backup = %backup.display(), from = version, to = SCHEMA_VERSION, "migrating the state store");
    }
    let txn = connection.transaction().map_err(fail)?;
    for step in &MIGRATIONS[version as usize..] {
        match step {
            Step::Tables(sql) => txn.execute_batch(sql),
            Step::Documents(rewrite) => rewrite(&txn),
        }
        .map_err(fail)?;
    }
    txn.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(fail)?;
    txn.commit().map_err(fail)
}

fn load(connection: &Connection) -> Result<Snapshot, StoreError> {
    let mut snapshot = Snapshot::default();
    for &kind in Kind::ALL {
        let fail = |e: rusqlite::Error| StoreError::Document { kind, source: e.into() };
        let mut statement = connection
            .prepare(&format!("SELECT document FROM {}", kind.table_name()))
            .map_err(fail)?;
        let mut rows = statement.query([]).map_err(fail)?;
        while let Some(row) = rows.next().map_err(fail)? {
            let document: String = row.get(0).map_err(fail)?;
            snapshot.restore(kind, &document)?;
        }
    }
    Ok(snapshot)
}
