//! Message brokers and a name server.

use serde_json::json;

use crate::shape::{End, Shape, contains};

#[test]
fn rabbitmq() {
    let shape = Shape {
        name: "rabbitmq",
        config: json!({
            "Env": [
                "PATH=/usr/lib/rabbitmq/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/var/lib/rabbitmq", "RABBITMQ_LOGS=-", "LANG=C.UTF-8",
            ],
            "Entrypoint": ["docker-entrypoint.sh"],
            "Cmd": ["rabbitmq-server"],
            "Volumes": { "/var/lib/rabbitmq": {} },
            "ExposedPorts": { "4369/tcp": {}, "5672/tcp": {}, "25672/tcp": {} },
        }),
        port: "5672",
        // Its name in the cluster, and with it the directory of its data, is the host name.
        request: json!({ "hostname": "rabbit1", "env": ["RABBITMQ_DEFAULT_USER=shop", "RABBITMQ_DEFAULT_PASS=s3cret"] }),
        end: End {
            code: 0,
            said: "SIGTERM received - shutting down",
        },
    };
    let url = "--url=amqp://shop:s3cret@@HOST:@PORT";
    shape.lives(
        |running| {
            running.client(&["amqp-declare-queue", url, "-q", "orders", "-d"])?;
            running.client(&["amqp-publish", url, "-r", "orders", "-p", "-b", "one order"])?;
            contains(&running.client(&["amqp-get", url, "-q", "orders"])?, "one order")
        },
        |running| assert_eq!(running.exec(&["stat", "-c", "%U", "/proc/1"]), "rabbitmq\n"),
    );
}

#[test]
fn mosquitto() {
    let shape = Shape {
        name: "mosquitto",
        config: json!({
            "Entrypoint": ["/docker-entrypoint.sh"],
            "Cmd": ["/usr/sbin/mosquitto", "-c", "/mosquitto/config/mosquitto.conf"],
            "Volumes": { "/mosquitto/data": {}, "/mosquitto/log": {} },
        }),
        port: "1883",
        request: json!({}),
        end: End {
            code: 0,
            said: "terminating",
        },
    };
    shape.lives(
        |running| {
            running.client(&[
                "mosquitto_pub",
                "-h",
                "@HOST",
                "-p",
                "@PORT",
                "-r",
                "-t",
                "word",
                "-m",
                "kept",
            ])?;
            let subscribe = [
                "mosquitto_sub",
                "-h",
                "@HOST",
                "-p",
                "@PORT",
                "-W",
                "10",
                "-C",
                "1",
                "-t",
                "word",
            ];
            contains(&running.client(&subscribe)?, "kept")
        },
        |running| assert_eq!(running.exec(&["stat", "-c", "%U", "/proc/1"]), "mosquitto\n"),
    );
}

#[test]
fn bind() {
    let shape = Shape {
        name: "bind",
        config: json!({
            "Entrypoint": ["docker-entrypoint.sh"],
            "Cmd": ["-g", "-c", "/etc/bind/named.conf"],
            "Volumes": { "/var/cache/bind": {} },
            "ExposedPorts": { "53/udp": {}, "53/tcp": {} },
        }),
        port: "53:udp",
        request: json!({}),
        end: End {
            code: 0,
            said: "shutting down",
        },
    };
    shape.lives(
        |running| {
            let ask = [
                "dig",
                "@@HOST",
                "-p",
                "@PORT",
                "+notcp",
                "+time=1",
                "+tries=1",
                "+short",
                "www.shapes.test",
            ];
            contains(&running.client(&ask)?, "198.51.100.80")
        },
        |running| assert_eq!(running.exec(&["stat", "-c", "%U", "/proc/1"]), "bind\n"),
    );
}
