//! A user's mistake is never the server's: 4xx, with a sentence about it and nothing of the insides.

use serde_json::{Value, json};

use crate::support::{Api, ImageSpec, Lab, Layer, Reply, post, send};
use crate::until_term;

/// Words that mean something to who wrote the runtime only.
const INSIDES: [&str; 8] = [
    "exit status",
    "libcontainer",
    "droplet",
    "hook",
    "os error",
    "EINVAL",
    "/proc/self/fd",
    "/run/raind",
];

/// Asserts that an answer blames the user for that cause, in words for users.
#[track_caller]
fn blamed(reply: &Reply, code: &str, part: &str) {
    let said = reply.text();
    assert!((400..500).contains(&reply.status), "{}: {said}", reply.status);
    assert_eq!(reply.code(), code, "{said}");
    let message = reply.message();
    assert!(message.contains(part), "wanted {part:?}, got {message}");
    for word in INSIDES {
        assert!(!message.contains(word), "{word:?} in {message}");
    }
}

fn lab() -> (Lab, String) {
    let lab = Lab::running();
    let odd = Layer::new()
        .dir("closed", 0o700)
        .dir("closed/in", 0o755)
        .dir("data", 0o755)
        .file("data/file", 0o644, "x")
        .file("bin/plain", 0o644, "x")
        .file("bin/orphan", 0o755, "#!/no/such/interpreter\n")
        .file("bin/garbage", 0o755, "\u{1}\u{2}");
    let image = lab.pull(&ImageSpec::busybox().layer(odd), "lab/odd:1");
    lab.machine().write("/mnt/file", "a file\n");
    lab.machine().write("/mnt/dir/inside", "x");
    (lab, image)
}

#[test]
fn at_a_create() {
    let (lab, image) = lab();
    let before = lab.inventory();
    let refused = |code: &str, part: &str, mut request: Value| {
        request["image"] = image.clone().into();
        blamed(&lab.api().call(post("/v1/containers", request)), code, part);
        lab.assert_unchanged(&before);
    };
    let mount = |texts: &[&str]| json!({ "mount": texts });
    let refuse = |part: &str, request: Value| refused("runtime_refused", part, request);
    refuse("a file onto /data, which is a directory", mount(&["/mnt/file:/data"]));
    refuse(
        "a directory onto /data/file, which is not a directory",
        mount(&["/mnt/dir:/data/file"]),
    );
    refuse("/data/file is not a directory", mount(&["/mnt/dir:/data/file/below"]));
    refuse(
        "/data/file is not a directory",
        mount(&["/mnt/file:/data/file/below/deep"]),
    );
    refuse("a directory onto /etc/hosts", mount(&["/mnt/dir:/etc/hosts"]));
    refuse(
        "/a/inside is not a directory",
        mount(&["/mnt/dir:/a/inside/x", "/mnt/dir:/a"]),
    );
    refuse("read-only", mount(&["/mnt/dir:/a:ro", "/mnt/dir:/a/new"]));
    refuse("working directory /data/file", json!({ "workingDir": "/data/file" }));
    refuse(
        "working directory /data/file/x",
        json!({ "workingDir": "/data/file/x" }),
    );
    refused(
        "invalid_option",
        "not an absolute path",
        json!({ "workingDir": "data" }),
    );
    refused("unknown_user", "no user \"nobody\"", json!({ "user": "nobody" }));
    refused("unknown_user", "no group \"staff\"", json!({ "user": "0:staff" }));
    let refuse = |part: &str, request: Value| refused("invalid_body", part, request);
    refuse("env[1] contains a NUL", json!({ "env": ["A=1", "B=\u{0}"] }));
    refuse("command[0] contains a NUL", json!({ "command": ["a\u{0}"] }));
    refuse("labels.a contains a NUL", json!({ "labels": { "a": "\u{0}" } }));
    refuse("mount[0] contains a NUL", json!({ "mount": ["/mnt\u{0}:/x"] }));
    refuse("workingDir contains a NUL", json!({ "workingDir": "/\u{0}" }));
    refuse("user contains a NUL", json!({ "user": "\u{0}" }));
    refuse(
        "command: invalid type: string \"sh\", expected a list",
        json!({ "command": "sh" }),
    );
    refuse(
        "memory: invalid type: string \"1g\", expected a whole number",
        json!({ "memory": "1g" }),
    );
    refuse(
        "env: invalid type: map, expected a list",
        json!({ "env": { "A": "1" } }),
    );
    refuse("healthCheck.tcp: invalid", json!({ "healthCheck": { "tcp": 70000 } }));
}

#[test]
fn at_a_start() {
    let (lab, image) = lab();
    let start = |part: &str, request: Value| {
        let mut request = request;
        request["image"] = image.clone().into();
        let id = lab.api().create(request);
        blamed(
            &lab.api()
                .call(post(&format!("/v1/containers/{id}/actions/start"), json!({}))),
            "runtime_refused",
            part,
        );
        lab.api().delete(&id);
    };
    start("nope: not found in PATH", json!({ "command": ["nope"] }));
    start(
        "/no/such: no such file or directory",
        json!({ "command": ["/no/such"] }),
    );
    start("plain: permission denied", json!({ "command": ["plain"] }));
    start("/data: is a directory", json!({ "command": ["/data"] }));
    start(
        "its interpreter or loader does not exist",
        json!({ "command": ["orphan"] }),
    );
    start("garbage: ", json!({ "command": ["garbage"] }));
    start("two lines: not found", json!({ "command": ["two\nlines"] }));
    let long = "x".repeat(200_000);
    start("rgument list too long", json!({ "command": ["true", long] }));
    // What was there at the create is gone at the next start.
    lab.machine().write("/mnt/later/x", "x");
    let request = json!({ "image": image, "command": until_term(0), "mount": ["/mnt/later:/later"] });
    let id = lab.api().run(request);
    lab.api().stop(&id);
    lab.machine().run(&["sh", "-c", "rm -r /mnt/later; touch /mnt/later"]);
    let again = || {
        lab.api()
            .call(post(&format!("/v1/containers/{id}/actions/start"), json!({})))
    };
    blamed(&again(), "runtime_refused", "a file onto /later, which is a directory");
    lab.machine().run(&["rm", "/mnt/later"]);
    blamed(&again(), "invalid_mount", "stat /mnt/later: no such file or directory");
}

#[test]
fn at_an_exec() {
    let (lab, image) = lab();
    let work = lab
        .api()
        .run(json!({ "image": image, "command": until_term(0), "workingDir": "/work" }));
    let exec = |api: &Api, body: Value| api.call(post(&format!("/v1/containers/{work}/actions/exec"), body));
    let api = lab.api();
    for tty in [false, true] {
        let refused = |code: &str, part: &str, command: Value| {
            blamed(&exec(&api, json!({ "command": command, "tty": tty })), code, part);
        };
        let refuse = |part: &str, command: Value| refused("runtime_refused", part, command);
        refuse("/no/such: no such file or directory", json!(["/no/such"]));
        refuse("nope: not found in PATH", json!(["nope"]));
        refuse("plain: permission denied", json!(["plain"]));
        refuse("/data: is a directory", json!(["/data"]));
        refuse("interpreter", json!(["orphan"]));
        refuse("too long", json!(["true", "x".repeat(200_000)]));
        refused("invalid_body", "command[1] contains a NUL", json!(["true", "\u{0}"]));
    }
    let waited = exec(&api, json!({ "command": ["true", "x".repeat(200_000)], "wait": true }));
    blamed(&waited, "runtime_refused", "too long");
    api.exec(&work, "cd /; rmdir /work");
    blamed(
        &exec(&api, json!({ "command": ["true"] })),
        "runtime_refused",
        "working directory /work: ",
    );
    blamed(
        &exec(&api, json!({ "command": ["true"], "wait": true })),
        "runtime_refused",
        "working directory /work: ",
    );
}

#[test]
fn in_a_build() {
    let (lab, image) = lab();
    let build = |file: &str| {
        let script = format!(
            "mkdir -p /run/c; cat > /run/c/Dripfile <<'END'\n{file}\nEND\ntar -cf /run/c.tar -C /run/c Dripfile"
        );
        lab.machine().run(&["sh", "-c", &script]);
        let context = std::fs::read(lab.machine().path("/run/c.tar")).unwrap();
        lab.api().call(send("POST", "/v1/images/build?tag=made:1", context))
    };
    blamed(
        &build(&format!("FROM {image}\nRUN [\"/no/such\"]")),
        "build_command_failed",
        "/no/such: no such file or directory",
    );
    blamed(
        &build(&format!("FROM {image}\nRUN nope")),
        "build_command_failed",
        "nope: not found",
    );
    blamed(
        &build(&format!("FROM {image}\nWORKDIR /data/file\nRUN true")),
        "build_step_refused",
        "data/file",
    );
    blamed(
        &build(&format!("FROM {image}\nRUN [\"plain\"]")),
        "build_command_failed",
        "plain: permission denied",
    );
}

#[test]
fn in_a_file() {
    let (lab, image) = lab();
    let pod = |value: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: seed}}\nspec: {{containers: [{{name: c, image: '{image}', {value}}}]}}"
        );
        lab.api().call(send("POST", "/v1/resource/apply", text))
    };
    blamed(
        &pod(r#"env: [{name: A, value: "a\0b"}]"#),
        "invalid_manifest",
        "must not contain a NUL character",
    );
    blamed(&pod(r#"command: ["a\0"]"#), "invalid_manifest", "command");
    let bottle = |value: &str| {
        let text = format!("bottle: {{name: shelf}}\nservices: {{one: {{image: '{image}', {value}}}}}");
        lab.api().call(send("POST", "/v1/bottle", text))
    };
    blamed(
        &bottle(r#"command: [sh, "a\0"]"#),
        "invalid_bottle",
        "must not contain a NUL character",
    );
    blamed(
        &bottle("command: [sleep, '9'], mount: ['/mnt/file:/data']"),
        "runtime_refused",
        "a file onto /data, which is a directory",
    );
}
