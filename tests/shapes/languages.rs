//! Language runtimes, with programs of their users: sized by the limits of their container, as users of all kinds.

use serde_json::{Value, json};

use crate::shape::{End, Running, Shape, contains};

#[test]
fn tomcat() {
    let shape = Shape {
        name: "tomcat",
        config: json!({
            "Env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "CATALINA_HOME=/usr/share/tomcat10", "CATALINA_BASE=/usr/local/tomcat",
                "JAVA_HOME=/usr/lib/jvm/java-17-openjdk-amd64", "JAVA_OPTS=-XX:MaxRAMPercentage=50",
            ],
            "Cmd": ["/usr/share/tomcat10/bin/catalina.sh", "run"],
            "WorkingDir": "/usr/local/tomcat",
            "ExposedPorts": { "8080/tcp": {} },
        }),
        port: "8080",
        request: json!({ "memory": 400 << 20 }),
        end: End {
            // As every JVM that SIGTERM ends.
            code: 143,
            said: "Pausing ProtocolHandler",
        },
    };
    shape.lives(
        |running| running.http_says("/", "hello from tomcat"),
        |running| {
            let java = "/usr/lib/jvm/java-17-openjdk-amd64/bin/java";
            let said = running.exec(&[java, "-XX:MaxRAMPercentage=50", "-XX:+PrintFlagsFinal", "-version"]);
            let heap = said.lines().find(|line| line.contains(" MaxHeapSize ")).unwrap();
            let heap: u64 = heap.split_ascii_whitespace().nth(3).unwrap().parse().unwrap();
            assert!(
                heap <= 200 << 20,
                "half of the container's memory, not of the machine's: {heap}"
            );
        },
    );
}

#[test]
fn node() {
    let shape = Shape {
        name: "node",
        config: json!({
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NODE_ENV=production"],
            "Entrypoint": ["docker-entrypoint.sh"],
            "Cmd": ["server.js"],
            "User": "node",
            "WorkingDir": "/home/node/app",
            "ExposedPorts": { "3000/tcp": {} },
            "Healthcheck": {
                "Test": ["CMD", "node", "-e", "fetch('http://127.0.0.1:3000').then(r => process.exit(r.ok ? 0 : 1))"],
                "Interval": 2_000_000_000_i64, "StartPeriod": 30_000_000_000_i64,
            },
        }),
        port: "3000",
        request: json!({ "memory": 256 << 20 }),
        end: End {
            code: 0,
            said: "SIGTERM: no more requests",
        },
    };
    shape.lives(
        |running| running.http_says("/", "hello from node"),
        |running| {
            let said: Value = serde_json::from_str(&running.http("/").unwrap()).unwrap();
            assert_eq!((&said["uid"], &said["home"]), (&json!(1000), &json!("/home/node")));
            let heap = said["heap"].as_u64().unwrap();
            // V8 takes a bit over 256 MiB at least; by the machine's memory it would be gigabytes.
            assert!(heap < 320 << 20, "the container's memory, not the machine's: {heap}");
        },
    );
}

/// As OpenShift runs images: as a user that no one knows, of group 0.
#[test]
fn python() {
    let shape = Shape {
        name: "python",
        config: json!({
            "Env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/opt/app-root/src",
                "PYTHONUNBUFFERED=1",
            ],
            "Entrypoint": ["container-entrypoint"],
            "Cmd": ["gunicorn", "--bind=0.0.0.0:8080", "--worker-tmp-dir=/dev/shm", "--workers=2", "app"],
            "User": "1000680000",
            "WorkingDir": "/opt/app-root/src",
            "ExposedPorts": { "8080/tcp": {} },
        }),
        port: "8080",
        request: json!({}),
        end: End {
            code: 0,
            said: "Handling signal: term",
        },
    };
    shape.lives(
        |running| running.http_says("/", "hello from python, default 1000680000:0 1000680000"),
        |running| contains(&running.exec(&["id"]), "uid=1000680000(default) gid=0(root)").unwrap(),
    );
}

#[test]
fn php() {
    let shape = Shape {
        name: "php",
        config: json!({
            "Entrypoint": ["docker-php-entrypoint"],
            "Cmd": ["php-fpm8.2"],
            "WorkingDir": "/var/www/html",
            "ExposedPorts": { "9000/tcp": {} },
            "StopSignal": "SIGQUIT",
        }),
        port: "9000",
        request: json!({ "env": ["GREETING=bonjour"] }),
        end: End {
            code: 0,
            said: "Finishing ...",
        },
    };
    let ask = |running: &Running| {
        running.client(&[
            "env",
            "REQUEST_METHOD=GET",
            "SCRIPT_FILENAME=/var/www/html/index.php",
            "SCRIPT_NAME=/index.php",
            "cgi-fcgi",
            "-bind",
            "-connect",
            "@HOST:@PORT",
        ])
    };
    shape.lives(
        |running| contains(&ask(running)?, "hello from php, bonjour, www-data"),
        |running| running.wait_until("the request in the log", || contains(&running.log(), "GET /index.php")),
    );
}

#[test]
fn ruby() {
    let shape = Shape {
        name: "ruby",
        config: json!({
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "Cmd": ["puma", "--config", "puma.rb", "config.ru"],
            "User": "app:app",
            "WorkingDir": "/home/app",
            "ExposedPorts": { "9292/tcp": {} },
        }),
        port: "9292",
        request: json!({}),
        end: End {
            code: 0,
            said: "Goodbye!",
        },
    };
    shape.lives(
        |running| running.http_says("/", "hello from ruby, 2000 /home/app"),
        |running| assert_eq!(running.exec(&["stat", "-c", "%F %U", "/tmp/puma.sock"]), "socket app\n"),
    );
}
