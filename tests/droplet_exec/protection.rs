//! What a container tries against the runtime that enters it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{find, parent};
use crate::support::sandbox::{Sandbox, sandbox, shell};

/// A copy of the runtime, so that an attack that succeeds does no harm here.
fn own_droplet(s: &Sandbox) -> PathBuf {
    let path = s.path("droplet");
    fs::copy(env!("CARGO_BIN_EXE_droplet"), &path).unwrap();
    path
}

fn droplet(s: &Sandbox, program: &Path, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .env("RAIND_ROOT_DIR", s.root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A file that programs get from whoever starts them.
fn inheritable(file: fs::File) -> fs::File {
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    file
}

/// Puts what the runtime is linked against into the image: its binary can then run in the container.
fn add_libraries(s: &Sandbox, program: &Path) {
    let libraries = shell(&format!("ldd {} | grep -o '/[^ ]*'", program.display()));
    for library in libraries.lines() {
        let to = s.image().join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
}

#[test]
fn the_binary_cannot_be_overwritten_through_proc() {
    // CVE-2019-5736. The program is a script with the runtime itself as interpreter; a FIFO that the dynamic loader reads
    // keeps the runtime in the container until its executable has been opened. When it has ended, it is opened again
    // through that descriptor, to be written.
    sandbox(|s| {
        let program = own_droplet(s);
        add_libraries(s, &program);
        let attack = "mkfifo /etc/ld.so.preload; chmod 755 /bin/lure; echo ready; \
            while :; do for p in /proc/[0-9]*; do case $(tr '\\0' ' ' < $p/cmdline) in /proc/self/exe*) break 2; esac; done; done; \
            exec 3< $p/exe; echo opened $(readlink /proc/self/fd/3); echo > /etc/ld.so.preload; \
            while [ -e $p ]; do :; done; \
            echo overwritten > /proc/self/fd/3; echo status $?; exec sleep 1000";
        fs::write(s.image().join("bin/lure"), "#!/proc/self/exe\n").unwrap();
        for applet in ["mkfifo", "chmod"] {
            std::os::unix::fs::symlink("busybox", s.image().join("bin").join(applet)).unwrap();
        }
        s.write(&s.id, &s.config(&s.id, attack));
        droplet(s, &program, &["create", &s.id]);
        droplet(s, &program, &["start", &s.id]);
        s.log_with("init.log", "ready");
        droplet(s, &program, &["exec", &s.id, "lure"]);
        let log = s.log_with("init.log", "status");
        assert!(
            log.contains("opened /droplet"),
            "the attack did not get hold of the runtime: {log}"
        );
        assert!(
            log.contains("Read-only file system") && log.contains("status 1"),
            "{log}"
        );
        assert!(fs::read(&program).unwrap() == fs::read(env!("CARGO_BIN_EXE_droplet")).unwrap());
    });
}

#[test]
fn nobody_can_look_into_it_before_the_program_runs() {
    sandbox(|s| {
        // Every executable that can be seen, as long as the container lives.
        let watch = "while [ ! -e /tmp/stop ]; do for link in /proc/[0-9]*/exe /proc/[0-9]*/cwd /proc/[0-9]*/root \
            /proc/[0-9]*/fd/*; do readlink $link; done; done 2>/dev/null | awk '!seen[$0]++'; echo the end; \
            exec sleep 1000";
        std::os::unix::fs::symlink("busybox", s.image().join("bin/awk")).unwrap();
        s.bundle_with(watch);
        s.up();
        for _ in 0..100 {
            s.ok(&["exec", &s.id, "true"]);
        }
        s.ok(&["exec", &s.id, "touch", "/tmp/stop"]);
        let log = s.log_with("init.log", "the end");
        assert!(log.contains("/bin/busybox\n"), "{log}");
        for foreign in ["droplet", "socket:", s.path("").to_str().unwrap()] {
            assert!(!log.contains(foreign), "{foreign} in {log}");
        }
    });
}

#[test]
fn monitors_run_from_a_file_that_cannot_be_written() {
    sandbox(|s| {
        s.bundle_with("exec sleep 1000");
        s.up();
        s.ok(&["exec", &s.id, "sleep", "777"]);
        let of_exec = parent(find("sleep 777"));
        for monitor in [s.monitor(&s.id), of_exec] {
            let error = fs::OpenOptions::new()
                .write(true)
                .open(format!("/proc/{monitor}/exe"))
                .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        }
    });
}

#[test]
fn a_working_directory_cannot_lead_to_the_host() {
    // CVE-2024-21626: the working directory is a link to a descriptor that the runtime has open, or was given.
    sandbox(|s| {
        let mut config = s.config(&s.id, "exec sleep 1000");
        config["process"]["cwd"] = "/work/dir".into();
        s.write(&s.id, &config);
        s.up();
        let _root_of_the_host = inheritable(fs::File::open("/").unwrap());
        for fd in 0..24 {
            let lead = format!("rm -rf /work/dir; ln -s /proc/self/fd/{fd} /work/dir");
            shell(&format!("nsenter -t {} -a /bin/busybox sh -c '{lead}'", s.pid(&s.id)));
            let output = s.droplet(&["exec", &s.id, "true"]);
            assert_eq!(output.status.code(), Some(125), "descriptor {fd}");
        }
        assert_eq!(s.log("exec.log"), "");
    });
}

#[test]
fn descriptors_of_the_caller_go_nowhere() {
    sandbox(|s| {
        s.bundle_with("exec sleep 1000");
        s.up();
        let _secret = inheritable(fs::File::create(s.path("secret")).unwrap());
        s.ok(&["exec", &s.id, "sleep", "776"]);
        let process = find("sleep 776");
        for pid in [process, parent(process)] {
            let open = shell(&format!("ls -l /proc/{pid}/fd"));
            assert!(!open.contains("secret"), "{open}");
        }
    });
}
