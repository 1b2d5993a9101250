//! Databases: made at the first start by an entry point that then drops to its user; sockets in `/run`, caches.

use std::io::{BufRead, BufReader, Write};

use serde_json::json;

use crate::shape::{End, Running, Shape, contains, dial};

#[test]
fn mariadb() {
    let shape = Shape {
        name: "mariadb",
        config: json!({
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "Entrypoint": ["docker-entrypoint.sh"],
            "Cmd": ["mariadbd"],
            "Volumes": { "/var/lib/mysql": {} },
            "ExposedPorts": { "3306/tcp": {} },
            "Healthcheck": {
                "Test": ["CMD", "healthcheck.sh"], "StartPeriod": 60_000_000_000_i64, "Interval": 2_000_000_000,
                "Timeout": 20_000_000_000_i64, "Retries": 5,
            },
        }),
        port: "3306",
        request: json!({ "env": ["MARIADB_ROOT_PASSWORD=s3cret word", "MARIADB_DATABASE=shop"] }),
        end: End {
            code: 0,
            said: "Shutdown complete",
        },
    };
    let sql = |running: &Running, query: &str| {
        running.client(&[
            "mariadb",
            "-h@HOST",
            "-P@PORT",
            "-uroot",
            "-ps3cret word",
            "shop",
            "-N",
            "-e",
            query,
        ])
    };
    shape.lives(
        |running| contains(&sql(running, "select word from seed")?, "seeded"),
        |running| {
            // The server is the first process, and runs as its user.
            assert_eq!(running.exec(&["stat", "-c", "%U", "/proc/1"]), "mysql\n");
            assert_eq!(running.exec(&["stat", "-Lc", "%a", "/var/run/mysqld"]), "1777\n");
            let said = running.exec(&["mariadb", "-uroot", "-ps3cret word", "-e", "select 1 + 1"]);
            contains(&said, "2").expect("an answer through the socket in /run");
        },
    );
}

#[test]
fn postgres() {
    let shape = Shape {
        name: "postgres",
        config: json!({
            "Env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/15/bin",
                "LANG=en_US.utf8", "PGDATA=/var/lib/postgresql/data",
            ],
            "Entrypoint": ["docker-entrypoint.sh"],
            "Cmd": ["postgres"],
            "Volumes": { "/var/lib/postgresql/data": {} },
            "ExposedPorts": { "5432/tcp": {} },
            "StopSignal": "SIGINT",
        }),
        port: "5432",
        request: json!({ "env": ["POSTGRES_PASSWORD=s3cret", "POSTGRES_DB=shop"] }),
        end: End {
            code: 0,
            said: "received fast shutdown request",
        },
    };
    let sql = |running: &Running, query: &str| {
        running.client(&["psql", "postgresql://postgres:s3cret@@HOST:@PORT/shop", "-Atc", query])
    };
    shape.lives(
        |running| contains(&sql(running, "select word from seed")?, "seeded"),
        |running| {
            assert_eq!(running.exec(&["stat", "-c", "%U", "/proc/1"]), "postgres\n");
            assert_eq!(sql(running, "show lc_collate").unwrap(), "en_US.utf8\n");
            // Parallel workers share memory through /dev/shm.
            assert_eq!(sql(running, "show dynamic_shared_memory_type").unwrap(), "posix\n");
            contains(&running.exec(&["ls", "/dev/shm"]), "PostgreSQL.").unwrap();
            let query = "set force_parallel_mode = on; select count(*) > 100 from pg_class";
            contains(&sql(running, query).unwrap(), "t").unwrap();
            running.exec(&["psql", "-U", "postgres", "-c", "select 1"]);
        },
    );
}

#[test]
fn redis() {
    let shape = Shape {
        name: "redis",
        config: json!({
            "Entrypoint": ["docker-entrypoint.sh"],
            "Cmd": ["redis-server", "--protected-mode", "no"],
            "WorkingDir": "/data",
            "Volumes": { "/data": {} },
            "ExposedPorts": { "6379/tcp": {} },
            "Healthcheck": {
                "Test": ["CMD-SHELL", "redis-cli ping | grep -q PONG"], "Interval": 1_000_000_000,
                "Timeout": 10_000_000_000_i64,
            },
        }),
        port: "6379",
        request: json!({}),
        end: End {
            code: 0,
            said: "Received SIGTERM scheduling shutdown",
        },
    };
    shape.lives(
        |running| {
            contains(
                &running.client(&["redis-cli", "-h", "@HOST", "-p", "@PORT", "ping"])?,
                "PONG",
            )
        },
        |running| {
            let set = ["redis-cli", "-h", "@HOST", "-p", "@PORT", "set", "word", "kept"];
            contains(&running.client(&set).unwrap(), "OK").unwrap();
            assert_eq!(
                running.exec(&["stat", "-c", "%U", "/proc/1", "/data"]),
                "redis\nredis\n"
            );
        },
    );
}

#[test]
fn memcached() {
    let shape = Shape {
        name: "memcached",
        config: json!({
            "Entrypoint": ["docker-entrypoint.sh"],
            "Cmd": ["memcached", "-v"],
            "User": "memcache",
            "ExposedPorts": { "11211/tcp": {} },
        }),
        port: "11211",
        request: json!({}),
        end: End {
            code: 0,
            said: "Exiting normally",
        },
    };
    shape.lives(
        |running| {
            let mut stream = dial(running)?;
            let said = stream.write_all(b"set word 0 0 4\r\nkept\r\nget word\r\n");
            said.map_err(|e| e.to_string())?;
            let lines = BufReader::new(stream).lines().take(4);
            let lines: Result<Vec<_>, _> = lines.collect();
            contains(
                &lines.map_err(|e| e.to_string())?.join(" "),
                "STORED VALUE word 0 4 kept END",
            )
        },
        |running| assert_eq!(running.exec(&["id", "-u"]), "11211\n"),
    );
}
