//! `spec`: writes a config.json from options (`docs/spec/runtime.md` 4.11). The original daemon runs it before every
//! first `create`. The original, this runtime and strict OCI runtimes can all read the result (15.2).

mod hook_options;
mod shell_words;

use std::path::Path;

use condenser::runtime::dir::valid_id;
use condenser::runtime::{defaults, mounts};
use serde_json::{Value, json};

use super::arguments::{Args, Opt};
use crate::config::{ANNOTATION_HOOK_ARGS, ANNOTATION_IMAGE, ANNOTATION_NET, ANNOTATION_VERSION};
use crate::container::files::replace;
use crate::report::failure::{Failure, Stage};

const STAGE: &str = "spec";
const OPTIONS: &[Opt] = &[
    Opt::Value("rootfs"),
    Opt::Value("mount"),
    Opt::Value("cwd"),
    Opt::Value("env"),
    Opt::Value("command"),
    Opt::Value("ns"),
    Opt::Value("ns-path"),
    Opt::Value("hostname"),
    Opt::Value("host_if_name"),
    Opt::Value("bridge_if_name"),
    Opt::Value("if_name"),
    Opt::Value("if_addr"),
    Opt::Value("if_gateway"),
    Opt::Value("dns"),
    Opt::Value("image_layer"),
    Opt::Value("upper_dir"),
    Opt::Value("work_dir"),
    Opt::Value("output"),
    Opt::Value("hook-prestart"),
    Opt::Value("hook-prestart-env"),
    Opt::Value("hook-create-runtime"),
    Opt::Value("hook-create-runtime-env"),
    Opt::Value("hook-create-container"),
    Opt::Value("hook-create-container-env"),
    Opt::Value("hook-start-container"),
    Opt::Value("hook-start-container-env"),
    Opt::Value("hook-poststart"),
    Opt::Value("hook-poststart-env"),
    Opt::Value("hook-stop-container"),
    Opt::Value("hook-stop-container-env"),
    Opt::Value("hook-poststop"),
    Opt::Value("hook-poststop-env"),
];
/// Runs the verb.
pub fn run(arguments: &[String]) -> Result<(), Failure> {
    let args = Args::parse(OPTIONS, arguments)?;
    if let Some(extra) = args.positional.first() {
        return Err(Failure::usage(format!("unexpected argument: {extra}")));
    }
    let output = Path::new(args.value("output").unwrap_or("."));
    let document = config(&args, output)?;
    let mut text = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, indent);
    serde::Serialize::serialize(&document, &mut serializer).stage(STAGE)?;
    replace(&output.join("config.json"), &text, 0o644).stage(STAGE)
}

fn config(args: &Args, output: &Path) -> Result<Value, Failure> {
    let value = |name, default: &'static str| args.value(name).unwrap_or(default).to_owned();
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": { "path": value("rootfs", "rootfs"), "readonly": false },
        "hostname": value("hostname", ""),
        "mounts": args.values("mount").map(mount).collect::<Result<Vec<_>, _>>().stage(STAGE)?,
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "cwd": value("cwd", "/"),
            "args": shell_words::split(&value("command", "sh")).stage(STAGE)?,
            "env": defaults::environment(args.values("env"), true),
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": defaults::CAPABILITIES,
                "permitted": defaults::CAPABILITIES,
                "effective": defaults::CAPABILITIES,
                "inheritable": [],
                "ambient": [],
            },
        },
        "linux": linux(args, output)?,
        "hooks": hook_options::hooks(args)?,
        "annotations": {
            ANNOTATION_VERSION: "0.1.0",
            ANNOTATION_HOOK_ARGS: "argv0",
            ANNOTATION_NET: json!({
                "hostInterface": value("host_if_name", "eth0"),
                "bridgeInterface": value("bridge_if_name", "raind_br0"),
                "interface": {
                    "name": value("if_name", "eth0"),
                    "ipv4": {
                        "address": value("if_addr", "172.16.0.1/24"),
                        "gateway": value("if_gateway", "172.16.0.254"),
                    },
                    "dns": { "servers": args.values("dns").collect::<Vec<_>>() },
                },
            })
            .to_string(),
            ANNOTATION_IMAGE: json!({
                "rootfsType": "overlay",
                "imageLayer": args.values("image_layer").collect::<Vec<_>>(),
                "upperDir": value("upper_dir", ""),
                "workDir": value("work_dir", ""),
            })
            .to_string(),
        },
    }))
}

fn linux(args: &Args, output: &Path) -> Result<Value, Failure> {
    let identity = json!([{ "containerID": 0, "hostID": 0, "size": defaults::ID_COUNT }]);
    let namespaces = namespaces(args)?;
    let mut linux = json!({
        "resources": {
            "memory": { "limit": defaults::MEMORY_LIMIT },
            "cpu": { "quota": defaults::CPU_QUOTA, "period": defaults::CPU_PERIOD },
            "pids": { "limit": defaults::PIDS_LIMIT },
        },
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": [defaults::seccomp_architecture()],
            "syscalls": [{ "names": defaults::DENIED_SYSCALLS, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
        },
        "apparmorProfile": defaults::APPARMOR_PROFILE,
        "maskedPaths": defaults::MASKED_PATHS,
        "readonlyPaths": defaults::READONLY_PATHS,
    });
    if namespaces.iter().any(|namespace| namespace["type"] == "user") {
        linux["uidMappings"] = identity.clone();
        linux["gidMappings"] = identity;
    }
    linux["namespaces"] = namespaces.into();
    // Only the name of the directory tells the container id. Without it, the runtime chooses the same path.
    if let Some(id) = output.canonicalize().ok().as_deref().and_then(container_id) {
        linux["cgroupsPath"] = format!("/raind/{id}").into();
    }
    Ok(linux)
}

fn container_id(directory: &Path) -> Option<&str> {
    directory.file_name()?.to_str().filter(|name| valid_id(name))
}

/// Returns the namespaces in the order of the options, `--ns` first. There is one entry per type, and a path wins.
fn namespaces(args: &Args) -> Result<Vec<Value>, Failure> {
    let mut entries: Vec<(&str, Option<&str>)> = Vec::new();
    let new = args.values("ns").map(|kind| Ok((kind, None)));
    let joined = args.values("ns-path").map(|text| match text.split_once('=') {
        Some((kind, path)) if !kind.is_empty() && !path.is_empty() => Ok((kind, Some(path))),
        _ => Err(Failure::usage(format!("--ns-path {text}: must be TYPE=PATH"))),
    });
    for entry in new.chain(joined) {
        let (kind, path) = entry?;
        match entries.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, known)) => *known = path.or(*known),
            None => entries.push((kind, path)),
        }
    }
    let render = |(kind, path)| match path {
        Some(path) => json!({ "type": kind, "path": path }),
        None => json!({ "type": kind }),
    };
    Ok(entries.into_iter().map(render).collect())
}

fn mount(text: &str) -> Result<Value, mounts::MountError> {
    let mount = mounts::parse(text)?;
    let source = mount.open_source(&mounts::MountPolicy::of_runtime())?;
    let (kind, options) = mount.to_config(source.directory);
    Ok(json!({
        "destination": mount.destination,
        "type": kind,
        "source": mount.source,
        "options": options,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(arguments: &[&str]) -> Args {
        Args::parse(OPTIONS, &arguments.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn written(arguments: &[&str]) -> Value {
        config(&parse(arguments), Path::new("/nowhere")).unwrap()
    }

    fn refused(arguments: &[&str]) -> String {
        config(&parse(arguments), Path::new("/nowhere"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let document = written(&[]);
        insta::assert_json_snapshot!(document);
        let spec = serde_json::from_value::<libcontainer::oci_spec::runtime::Spec>(document.clone());
        assert!(spec.is_ok(), "{spec:?}");
        let config = Config::parse(document.to_string().as_bytes(), Path::new("config.json")).unwrap();
        assert_eq!(config.net().unwrap().unwrap().bridge_interface, "raind_br0");
        assert!(config.hook_argv0());
    }

    #[test]
    fn the_options_of_the_original_daemon_are_accepted() {
        let document = written(&[
            "--rootfs",
            "/c/merged",
            "--cwd=/srv",
            "--env",
            "A=1",
            "--env",
            "TERM=",
            "--command",
            "sh -c 'echo hi'",
            "--hostname",
            "web",
            "--if_name",
            "rd_web",
            "--image_layer",
            "/l1",
            "--image_layer",
            "/l2",
            "--dns",
            "8.8.8.8",
            "--hook-create-runtime",
            "/agent,--event,x",
            "--hook-create-runtime",
            "",
            "--hook-create-runtime",
            "/second",
            "--hook-create-runtime-env",
            "",
            "--hook-create-runtime-env",
            "B=2",
        ]);
        assert_eq!(document["root"]["path"], "/c/merged");
        assert_eq!(document["process"]["args"], json!(["sh", "-c", "echo hi"]));
        assert_eq!(document["process"]["cwd"], "/srv");
        assert_eq!(document["process"]["env"][1], "TERM=xterm-256color");
        assert_eq!(
            document["hooks"]["createRuntime"],
            json!([
                { "path": "/agent", "args": ["/agent", "--event", "x"] },
                { "path": "/second", "args": ["/second"], "env": ["B=2"] },
            ])
        );
        let image: Value = serde_json::from_str(document["annotations"][ANNOTATION_IMAGE].as_str().unwrap()).unwrap();
        assert_eq!(image["imageLayer"], json!(["/l1", "/l2"]));
    }

    #[test]
    fn a_namespace_with_a_path_wins_over_a_new_one() {
        let document = written(&[
            "--ns-path",
            "network=/proc/7/ns/net",
            "--ns",
            "mount",
            "--ns",
            "network",
            "--ns-path",
            "user=/proc/7/ns/user",
        ]);
        assert_eq!(
            document["linux"]["namespaces"],
            json!([
                { "type": "mount" },
                { "type": "network", "path": "/proc/7/ns/net" },
                { "type": "user", "path": "/proc/7/ns/user" },
            ])
        );
        assert_eq!(document["linux"]["uidMappings"][0]["size"], 65_535);
        assert!(refused(&["--ns-path", "network"]).contains("TYPE=PATH"));
    }

    #[test]
    fn a_mount_has_the_forms_that_the_original_accepts() {
        let dir = tempfile::tempdir().unwrap();
        let source = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(source("file"), "").unwrap();
        std::fs::create_dir(source("dir")).unwrap();
        let mounts = [format!("{}:/a", source("dir")), format!("{}:/b:ro", source("file"))];
        let document = written(&["--mount", &mounts[0], "--mount", &mounts[1]]);
        assert_eq!(
            document["mounts"],
            json!([
                { "destination": "/a", "type": "", "source": source("dir"), "options": ["bind"] },
                { "destination": "/b", "type": "bind", "source": source("file"), "options": ["rbind", "rprivate", "ro"] },
            ])
        );
        assert_eq!(
            refused(&["--mount", "/a"]),
            "invalid mount format: write source:destination[:options], as in /srv/data:/data:ro"
        );
        assert!(refused(&["--mount", "/no/such/place:/a"]).contains("no such file or directory"));
    }

    #[test]
    fn an_option_without_a_meaning_is_refused() {
        assert_eq!(
            refused(&["--command", "sh -c 'a"]),
            "EOF found when expecting closing quote"
        );
        assert!(refused(&["--hook-poststop", ",x"]).contains("has no path"));
        assert!(refused(&["--hook-poststop-env", "A=1"]).contains("belongs to no hook"));
        assert!(refused(&["--hook-poststop", "/a", "--hook-poststop-env", "A"]).contains("has no \"=\""));
        assert!(run(&["extra".to_owned()]).unwrap_err().is_usage());
    }

    #[test]
    fn the_file_is_written_into_the_directory_of_the_container() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("01abcdefghjk");
        let arguments = ["--output".to_owned(), directory.display().to_string()];
        assert!(run(&arguments).is_err(), "the directory must exist");
        std::fs::create_dir(&directory).unwrap();
        run(&arguments).unwrap();
        let text = std::fs::read_to_string(directory.join("config.json")).unwrap();
        assert!(text.starts_with("{\n    \""));
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["linux"]["cgroupsPath"], "/raind/01abcdefghjk");
    }
}
