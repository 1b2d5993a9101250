use rstest::rstest;

use super::*;

fn message(spec: &str) -> String {
    parse(spec).unwrap_err().to_string()
}

#[test]
fn a_mount_string_is_source_destination_and_options() {
    let mount = parse("/srv//data/.:/data/../d").unwrap();
    assert_eq!(mount.source, Path::new("/srv/data"));
    assert_eq!(mount.destination, Path::new("/d"));
    assert!(!mount.read_only && !mount.no_exec);
    let mount = parse("/srv:/d:ro,nosuid,nodev,noexec").unwrap();
    assert!(mount.read_only && mount.no_exec);
    assert!(!parse("/srv:/d:ro,rw").unwrap().read_only, "the last one wins");
    assert!(!parse("/srv:/d:noexec,exec").unwrap().no_exec);
    assert!(parse("/srv:/d:").is_ok());
    assert_eq!(
        message("/srv"),
        "invalid mount format: write source:destination[:options], as in /srv/data:/data:ro"
    );
    assert_eq!(message("/srv:/d:ro:x"), "invalid mount type and options: ro:x");
    for option in ["suid", "dev", "shared", "z"] {
        assert_eq!(
            message(&format!("/srv:/d:{option}")),
            format!("invalid mount type and options: {option}")
        );
    }
}

#[rstest]
#[case("data")]
#[case("./data")]
#[case("")]
#[case("/a\0b")]
fn a_source_is_an_absolute_path(#[case] source: &str) {
    assert_eq!(
        message(&format!("{source}:/d")),
        format!("invalid mount source: {source}: it is not an absolute path")
    );
}

#[rstest]
#[case("/")]
#[case("/proc/1")]
#[case("/srv/../etc/raind/cert")]
#[case("//run")]
#[case("/usr/local/bin/x")]
#[case("/srv/../..")]
fn a_source_on_the_list_is_refused_whether_it_exists_or_not(#[case] source: &str) {
    let mount = parse(&format!("{source}:/d")).unwrap();
    let error = mount.open_source(&MountPolicy::of_runtime()).unwrap_err();
    assert!(matches!(error, MountError::Source { .. }), "{error}");
}

#[rstest]
#[case("/")]
#[case("/a/..")]
#[case("/dev/shm")]
#[case("..")]
#[case("data")]
fn destinations_on_the_list_are_refused(#[case] destination: &str) {
    let expected = format!("invalid mount destination: {destination}");
    assert_eq!(message(&format!("/srv:{destination}")), expected);
}

#[test]
fn names_that_only_begin_like_a_denied_one_are_fine() {
    parse("/srv:/sysroot").unwrap();
    parse("/srv:/developer").unwrap();
}

#[test]
fn config_entries_have_the_forms_of_the_original() {
    let mount = parse("/srv:/d").unwrap();
    assert_eq!(mount.to_config(true), ("", vec!["bind"]));
    assert_eq!(mount.to_config(false), ("bind", vec!["rbind", "rprivate"]));
    let chosen = parse("/srv:/d:ro,noexec").unwrap();
    assert_eq!(chosen.to_config(true), ("", vec!["bind", "ro", "noexec"]));
    let options: Vec<_> = chosen.to_config(true).1.into_iter().map(str::to_owned).collect();
    assert_eq!(Mount::from_config("/srv", "/d", "", &options).unwrap(), chosen);
    assert!(Mount::from_config("/srv", "/d", "tmpfs", &[]).is_err());
}

#[test]
fn a_source_is_judged_by_what_it_resolves_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let open = |source: PathBuf, policy: &MountPolicy| {
        let mount = parse(&format!("{}:/d", source.display())).unwrap();
        mount.open_source(policy).map(|s| s.directory)
    };
    let policy = MountPolicy::of_runtime();
    std::fs::create_dir_all(path("data/sub")).unwrap();
    std::fs::write(path("file"), "").unwrap();
    std::os::unix::fs::symlink("/proc", path("link")).unwrap();
    assert!(open(path("data"), &policy).unwrap());
    assert!(!open(path("file"), &policy).unwrap());
    let refused = |source: PathBuf| open(source, &policy).unwrap_err().to_string();
    let link = path("link").display().to_string();
    assert_eq!(refused(path("link")), format!("source:{link} is symlink"));
    assert_eq!(refused(path("link/self")), format!("source:{link}/self is symlink"));
    let said = refused(path("link/sys"));
    assert!(
        said.starts_with(&format!("invalid mount source: {link}/sys: it leads to /proc/sys: ")),
        "{said}"
    );
    let none = path("none").display().to_string();
    assert_eq!(refused(path("none")), format!("stat {none}: no such file or directory"));
    let ours = MountPolicy::of_daemon(&[], &[path("data")]);
    assert!(open(path("data/sub"), &ours).is_err() && open(path("file"), &ours).is_ok());
    // An accepted source that now leads to another directory.
    std::fs::create_dir(path("there")).unwrap();
    std::os::unix::fs::symlink(path("data"), path("way")).unwrap();
    let accepted = ours.with_accepted([path("way/sub"), path("there")]);
    assert!(open(path("way/sub"), &accepted).is_err() && open(path("there"), &accepted).is_ok());
}

#[test]
fn a_socket_of_root_has_to_be_allowed() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("any.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mount = parse(&format!("{}:/d", path.display())).unwrap();
    let refused = mount
        .open_source(&MountPolicy::of_daemon(&[], &[]))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("a socket of root"), "{refused}");
    mount
        .open_source(&MountPolicy::of_daemon(std::slice::from_ref(&path), &[]))
        .unwrap();
    std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
    mount.open_source(&MountPolicy::of_daemon(&[], &[])).unwrap();
}
