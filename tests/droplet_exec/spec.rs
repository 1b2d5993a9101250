//! `droplet spec`, as the original daemon uses it.

use std::fs;

use crate::support::sandbox::sandbox;

#[test]
fn what_it_writes_runs() {
    sandbox(|s| {
        let id = s.id.as_str();
        // The directories; the file is written over.
        s.bundle_with("");
        fs::create_dir(s.path("data")).unwrap();
        let bundle = s.bundle(id);
        let path = |name: &str| bundle.join(name).display().to_string();
        let (merged, diff, work, output) = (path("merged"), path("diff"), path("work"), bundle.display().to_string());
        let (image, veth) = (s.image().display().to_string(), s.veth(id));
        let mount = format!("{}:/data", s.path("data").display());
        let command = r#"sh -c 'echo "$GREETING from $(hostname) in $(pwd)"; touch /data/here; exit 7'"#;
        let mut words = vec![
            "spec",
            "--output",
            &output,
            "--rootfs",
            &merged,
            "--upper_dir",
            &diff,
            "--work_dir",
            &work,
        ];
        words.extend([
            "--image_layer",
            &image,
            "--command",
            command,
            "--env",
            "GREETING=hello",
            "--hostname=host",
        ]);
        words.extend([
            "--cwd",
            "/home",
            "--mount",
            &mount,
            "--if_name",
            &veth,
            "--bridge_if_name",
            "raind0",
        ]);
        words.extend([
            "--if_addr",
            "10.166.0.7/24",
            "--if_gateway",
            "10.166.0.254",
            "--dns",
            "8.8.8.8",
        ]);
        for namespace in ["mount", "network", "uts", "pid", "ipc", "user", "cgroup"] {
            words.extend(["--ns", namespace]);
        }
        s.ok(&words);
        s.up();
        assert_eq!(s.ended(id)["exit_code"], 7);
        assert_eq!(s.log("init.log"), "hello from host in /home\n");
        assert!(s.path("data/here").exists());
        s.ok(&["delete", id]);
        s.gone(id);
    });
}
