//! Other users of the host gain nothing: a walk over all that is ours, as `nobody`.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::support::{ImageSpec, Lab, get, post, send};
use crate::until_term;

const NOBODY: [&str; 7] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all",
    "/bin/sh",
    "-c",
];
/// What can be seen to be there, and no more: the directories at the top, and the way to the runtime's volatile ones.
const SEEN: [&str; 4] = ["/etc/raind", "/var/log/raind", "/run/raind", "/run/raind/droplet"];

/// What a shell script says that runs as a user without any rights.
fn as_nobody(lab: &Lab, script: &str) -> String {
    let argv: Vec<&str> = NOBODY.into_iter().chain([script]).collect();
    let output = lab.machine().output(&argv);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything below our directories that somebody without rights can read, write, execute, list or even see.
fn reached(lab: &Lab) -> Vec<String> {
    let find =
        "find /etc/raind /var/log/raind /run/raind -xdev | sort > /run/ours; chmod 644 /run/ours; wc -l < /run/ours";
    let all: usize = lab.machine().run(&["sh", "-c", find]).trim().parse().unwrap();
    assert!(all > 100, "only {all} files to look at");
    let walk = r#"while read -r path; do
        [ -r "$path" ] && echo "reads $path"
        [ -w "$path" ] && echo "writes $path"
        [ -x "$path" ] && [ -f "$path" ] && echo "executes $path"
        [ -d "$path" ] && ls "$path" > /dev/null 2>&1 && echo "lists $path"
        [ -e "$path" ] && echo "sees $path"
    done < /run/ours; true"#;
    as_nobody(lab, walk).lines().map(str::to_owned).collect()
}

fn assert_closed(lab: &Lab, ids: &[String]) {
    let mut allowed: Vec<String> = SEEN.map(|path| format!("sees {path}")).into();
    let volatile = ids.iter().flat_map(|id| [id.clone(), format!("{id}.lock")]);
    allowed.extend(volatile.map(|name| format!("sees /run/raind/droplet/{name}")));
    let more: Vec<_> = reached(lab).into_iter().filter(|way| !allowed.contains(way)).collect();
    assert!(more.is_empty(), "nobody {more:#?}");
}

/// A lab with something of everything, and its containers.
fn furnished() -> (Lab, Vec<String>) {
    let lab = Lab::running();
    let image = lab.pull(&ImageSpec::busybox(), "library/busybox:1");
    let run = |user: &str, tty: bool| {
        lab.api().run(json!({
            "image": image, "command": until_term(0), "user": user, "tty": tty, "env": ["DB_PASSWORD=hunter2"],
        }))
    };
    let mut ids = vec![run("", false), run("65534", false), run("", true)];
    lab.api().exec(
        &ids[0],
        "cp /bin/busybox /root/w; chmod 4755 /root/w; chmod 755 /root; echo secret > /tmp/file; ls -l /root/w",
    );
    let file = format!(
        "bottle: {{name: shelf}}\nvolumes: {{data: {{}}}}\nservices: {{one: {{image: '{image}', command: [sleep, '1000'], \
         volumes: ['data:/data']}}}}"
    );
    assert_eq!(lab.api().call(send("POST", "/v1/bottle", file)).status, 201);
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: seed}}\nspec: {{volumes: [{{name: v, emptyDir: {{}}}}], containers: \
         [{{name: c, image: '{image}', command: [sleep, '1000'], volumeMounts: [{{name: v, mountPath: /v}}]}}]}}"
    );
    assert_eq!(lab.api().call(send("POST", "/v1/resource/apply", pod)).status, 201);
    let all = lab.api().ok(get("/v1/containers"));
    ids.extend(
        all.as_array()
            .unwrap()
            .iter()
            .map(|c| c["containerId"].as_str().unwrap().to_owned()),
    );
    (lab, ids)
}

#[test]
fn nobody_reaches_anything_of_ours() {
    let (lab, ids) = furnished();
    assert_closed(&lab, &ids);
    let container = format!("/etc/raind/container/{}", ids[0]);
    // Root sees both.
    assert!(
        lab.machine()
            .read(&format!("{container}/config.json"))
            .contains("hunter2")
    );
    lab.machine().run(&["test", "-u", &format!("{container}/diff/root/w")]);
    let tries = format!("{container}/diff/root/w id -u; cat {container}/config.json; echo tried");
    assert_eq!(as_nobody(&lab, &tries), "tried\n");
    // The way through a process of the same user: the container's processes have a user namespace of their own.
    let pid = lab.api().container(&ids[1])["pid"].as_i64().unwrap();
    let tries = format!("ls /proc/{pid}/root/; cat /proc/{pid}/environ; ls /proc/{pid}/cwd/; echo tried");
    assert_eq!(as_nobody(&lab, &tries), "tried\n");
}

#[test]
fn what_an_earlier_version_left_open_is_closed_at_the_start() {
    let (lab, ids) = furnished();
    lab.daemon().stop();
    let open = "chmod 755 /etc/raind /etc/raind/* /var/log/raind /run/raind /etc/raind/container/*; \
                chmod 644 /etc/raind/container/*/config.json /etc/raind/container/*/state.json; chmod 700 /etc/raind/cert";
    lab.machine().run(&["sh", "-c", open]);
    let container = format!("/etc/raind/container/{}", ids[0]);
    let tries = format!("{container}/diff/root/w id -u; cat {container}/config.json");
    let said = as_nobody(&lab, &format!("{tries}; true"));
    assert!(
        said.starts_with("0\n") || said.contains("hunter2"),
        "the test proves nothing: {said}"
    );
    lab.daemon().start();
    assert_closed(&lab, &ids);
    let path = lab.machine().path(&format!("{container}/config.json"));
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(lab.api().exec(&ids[0], "cat /tmp/file"), "secret\n");
    lab.api().stop(&ids[0]);
    lab.api().start(&ids[0]);
    lab.api().ok(post(
        &format!("/v1/containers/{}/actions/exec", ids[1]),
        json!({ "command": ["true"], "wait": true }),
    ));
}
