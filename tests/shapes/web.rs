//! Web servers and proxies: logs that are links, workers of another user, signals of their own, ports below 1024.

use serde_json::json;

use crate::shape::{End, Shape, contains};

#[test]
fn nginx() {
    let shape = Shape {
        name: "nginx",
        config: json!({
            "Entrypoint": ["/docker-entrypoint.sh"],
            "Cmd": ["nginx", "-g", "daemon off; error_log stderr notice;"],
            "ExposedPorts": { "80/tcp": {} },
            "StopSignal": "SIGQUIT",
        }),
        port: "80",
        request: json!({ "env": ["GREETING=hello"] }),
        end: End {
            code: 0,
            said: "signal 3 (SIGQUIT) received, shutting down",
        },
    };
    shape.lives(
        |running| running.http_says("/", "hello from nginx"),
        |running| {
            running.wait_until("the request in the log", || {
                contains(&running.log(), "\"GET / HTTP/1.1\" 200")
            });
            assert!(running.exec(&["cat", "/run/nginx.pid"]).starts_with('1'));
        },
    );
}

#[test]
fn httpd() {
    let shape = Shape {
        name: "httpd",
        config: json!({
            "Cmd": ["apache2-foreground"],
            "WorkingDir": "/var/www/html",
            "ExposedPorts": { "80/tcp": {} },
            "StopSignal": "SIGWINCH",
            "Healthcheck": { "Test": ["CMD", "test", "-s", "/var/run/apache2/apache2.pid"], "Interval": 1_000_000_000 },
        }),
        port: "80",
        request: json!({}),
        end: End {
            code: 0,
            said: "caught SIGWINCH, shutting down gracefully",
        },
    };
    shape.lives(
        |running| running.http_says("/", "hello from apache"),
        |running| {
            running.wait_until("the request in the log", || {
                contains(&running.log(), "\"GET / HTTP/1.1\" 200")
            })
        },
    );
}

#[test]
fn haproxy() {
    let shape = Shape {
        name: "haproxy",
        config: json!({
            "Entrypoint": ["docker-entrypoint.sh"],
            "Cmd": ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"],
            "User": "haproxy",
            "WorkingDir": "/var/lib/haproxy",
            "StopSignal": "SIGUSR1",
        }),
        // As a user that is not root, on a port below 1024.
        port: "80",
        request: json!({}),
        end: End {
            code: 0,
            said: "Proxy web stopped",
        },
    };
    shape.lives(
        |running| running.http_says("/", "hello from haproxy"),
        |running| {
            assert_eq!(running.exec(&["stat", "-c", "%U", "/proc/1"]), "haproxy\n");
            // Its worker answers before the master, the first process, listens to signals.
            running.wait_until("the master", || contains(&running.log(), "Loading success"));
        },
    );
}

#[test]
fn caddy() {
    let shape = Shape {
        name: "caddy",
        config: json!({
            "Env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "XDG_CONFIG_HOME=/config",
                "XDG_DATA_HOME=/data",
            ],
            "Cmd": ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"],
            "WorkingDir": "/srv",
            "ExposedPorts": { "80/tcp": {}, "443/tcp": {}, "443/udp": {}, "2019/tcp": {} },
        }),
        port: "80",
        request: json!({ "capDrop": ["ALL"], "capAdd": ["NET_BIND_SERVICE"] }),
        end: End {
            code: 0,
            said: "shutting down apps, then terminating",
        },
    };
    shape.lives(
        |running| running.http_says("/", "hello from caddy"),
        // The program has a capability as a file attribute, which its layer has brought.
        |running| contains(&running.exec(&["getcap", "/usr/bin/caddy"]), "cap_net_bind_service=ep").unwrap(),
    );
}
