//! Ways out of the root: links, dots, absolute names, whiteouts.

use crate::builder::Tar;
use crate::{Case, Expected};

pub fn cases(host: &str) -> Vec<Case> {
    let mut cases = symlinks(host);
    cases.extend(merged_usr());
    cases.extend(dots());
    cases.extend(hard_links(host));
    cases.extend(whiteouts(host));
    cases
}

/// The host's directory as it is found within a root, with its parents, then `more` names beneath it.
fn inside(host: &str, top: &[&str], more: &[&str]) -> Vec<String> {
    let host = host.trim_start_matches('/');
    let parents = host.match_indices('/').map(|(at, _)| format!("{}/", &host[..at]));
    let mut names: Vec<String> = top.iter().map(|name| (*name).to_owned()).collect();
    names.extend(parents);
    names.push(format!("{host}/"));
    names.extend(more.iter().map(|name| format!("{host}/{name}")));
    names.sort();
    names
}

fn symlinks(host: &str) -> Vec<Case> {
    let to = |path: &str| format!("{host}/{path}");
    let up = format!("{}{}", "../".repeat(30), &host[1..]);
    let contained = |name, tar: Tar, top: &[&str], more: &[&str]| {
        Case::new(name, vec![tar.into()], Expected::Contained(inside(host, top, more)))
    };
    let through = |link: &str| Tar::new().symlink("a", link).file("a/secret", "evil");
    let far = (0..40).fold(Tar::new(), |tar, n| {
        tar.symlink(format!("l{n}"), format!("l{}{}", n + 1, "/d".repeat(2000)))
    });
    vec![
        contained("symlink-then-file", through(host), &["a"], &["secret"]),
        contained("symlink-up-then-file", through(&up), &["a"], &["secret"]),
        contained(
            "symlink-chain-then-file",
            through(host).symlink("b", "a/../host/dir").file("b/file", "evil"),
            &["a", "b"],
            &["dir/", "dir/file", "secret"],
        ),
        contained(
            "symlink-then-directory",
            Tar::new().symlink("a", host).owner(1, 1).dir("a/dir/sub", 0o777),
            &["a"],
            &["dir/", "dir/sub/"],
        ),
        contained(
            "symlink-then-symlink",
            Tar::new().symlink("a", host).symlink("a/secret", "/etc/shadow"),
            &["a"],
            &["secret"],
        ),
        Case::contained(
            "symlink-of-a-lower-layer",
            Tar::new().file("a/secret", "evil"),
            &["a/", "a/secret"],
        )
        .over(Tar::new().symlink("a", host)),
        Case::contained(
            "file-over-symlink",
            Tar::new().symlink("a", to("secret")).file_mode("a", 0o777, "evil"),
            &["a"],
        ),
        Case::contained(
            "directory-over-symlink",
            Tar::new()
                .symlink("a", to("dir"))
                .dir("a", 0o777)
                .file("a/file", "evil"),
            &["a/", "a/file"],
        ),
        contained(
            "symlink-over-directory-then-file",
            Tar::new().file("a/old", "").symlink("a", host).file("a/secret", "evil"),
            &["a"],
            &["secret"],
        ),
        Case::contained(
            "magic-links-of-proc",
            Tar::new()
                .symlink("a", "/proc/self/root")
                .symlink("b", "/proc/self/fd/3")
                .file("a/x", "")
                .file("b/x", ""),
            &[
                "a",
                "b",
                "proc/",
                "proc/self/",
                "proc/self/fd/",
                "proc/self/fd/3/",
                "proc/self/fd/3/x",
                "proc/self/root/",
                "proc/self/root/x",
            ],
        ),
        Case::refused(
            "symlink-loop",
            Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", ""),
            "Too many levels",
        ),
        Case::refused(
            "symlink-into-itself",
            Tar::new().symlink("a", "a/b").file("a/x", ""),
            "Too many levels",
        ),
        // Walked by recursion this overflows the stack, which ends the daemon.
        Case::refused(
            "symlinks-through-long-paths",
            far.file("l0/x", ""),
            "nested more than 256 deep",
        ),
        Case::refused(
            "symlink-with-a-long-target",
            Tar::new().symlink("a", "x".repeat(5000)),
            "File name too long",
        ),
        Case::refused("symlink-to-nothing", Tar::new().symlink("a", ""), "a: No such file"),
    ]
}

/// Legitimate: distributions that have merged `/bin` into `/usr/bin`.
fn merged_usr() -> Vec<Case> {
    let base = || {
        Tar::new()
            .dir("usr/", 0o755)
            .dir("usr/bin/", 0o755)
            .symlink("bin", "usr/bin")
    };
    vec![
        Case::contained(
            "merged-usr-in-one-layer",
            base()
                .file("bin/x", "")
                .hard_link("usr/bin/y", "bin/x")
                .dir("bin/d", 0o755),
            &["bin", "usr/", "usr/bin/", "usr/bin/d/", "usr/bin/x", "usr/bin/y"],
        ),
        Case::contained(
            "merged-usr-of-a-lower-layer",
            Tar::new().file("usr/bin/x", ""),
            &["usr/", "usr/bin/", "usr/bin/x"],
        )
        .over(base()),
        Case::contained(
            "merged-usr-named-by-its-link",
            Tar::new().file("bin/x", ""),
            &["usr/", "usr/bin/", "usr/bin/x"],
        )
        .over(base()),
        // Names lead through links of the layers below, within the image.
        Case::contained(
            "link-below-up-the-tree",
            Tar::new().file("up/passwd", ""),
            &["etc/", "etc/passwd"],
        )
        .over(
            Tar::new()
                .symlink("up", "../../../../../../../../etc")
                .dir("etc", 0o755),
        ),
        Case::contained(
            "link-below-to-proc",
            Tar::new().file("p/etc/passwd", ""),
            &["p/", "p/etc/", "p/etc/passwd"],
        )
        .over(Tar::new().symlink("p", "/proc/self/root")),
        Case::contained("links-below-in-a-circle", Tar::new().file("a/x", ""), &["a/", "a/x"])
            .over(Tar::new().symlink("a", "b").symlink("b", "a")),
    ]
}

fn dots() -> Vec<Case> {
    let escapes = "path escapes root";
    vec![
        Case::refused("dots-first", Tar::new().file("../../escape", ""), escapes),
        Case::refused("dots-later", Tar::new().file("a/../../escape", ""), escapes),
        Case::refused("dots-after-a-slash", Tar::new().file("/../escape", ""), escapes),
        Case::refused("dots-only", Tar::new().dir("..", 0o777), escapes),
        Case::contained(
            "dots-that-stay",
            Tar::new().file("a/b/../c", "").file("./d/./e", ""),
            &["a/", "a/c", "d/", "d/e"],
        ),
        Case::contained(
            "absolute-names",
            Tar::new().file("/etc/passwd", "evil").file("//tmp//x", ""),
            &["etc/", "etc/passwd", "tmp/", "tmp/x"],
        ),
        Case::refused(
            "root-as-a-file",
            Tar::new().file(".", ""),
            "the root can only be a directory",
        ),
        Case::refused(
            "root-as-a-symlink",
            Tar::new().symlink("/", "/etc"),
            "the root can only be a directory",
        ),
        Case::contained("empty-name-of-a-directory", Tar::new().dir("", 0o777), &[]),
    ]
}

fn hard_links(host: &str) -> Vec<Case> {
    let missing = "which is not in this layer";
    let secret = format!("{host}/secret");
    vec![
        Case::refused("hard-link-to-the-host", Tar::new().hard_link("a", &secret), missing),
        Case::refused(
            "hard-link-up",
            Tar::new().hard_link("a", format!("../../host{host}")),
            "path escapes root",
        ),
        Case::refused(
            "hard-link-through-a-symlink",
            Tar::new().symlink("a", host).hard_link("b", "a/secret"),
            missing,
        ),
        Case::contained(
            "hard-link-to-a-symlink",
            Tar::new()
                .symlink("a", &secret)
                .hard_link("b", "a")
                .file_mode("b", 0o777, "evil"),
            &["a", "b"],
        ),
        Case::refused(
            "hard-link-to-a-directory",
            Tar::new().dir("d", 0o755).hard_link("a", "d"),
            "hard link to the directory d",
        ),
        Case::refused(
            "hard-link-to-a-whiteout",
            Tar::new().file(".wh.w", "").hard_link("a", "w"),
            missing,
        ),
        Case::refused(
            "hard-link-to-a-marker",
            Tar::new().file(".wh.w", "").hard_link("a", ".wh.w"),
            missing,
        ),
        Case::refused("hard-link-to-the-root", Tar::new().hard_link("a", "/"), missing),
        Case::refused("hard-link-to-nothing", Tar::new().hard_link("a", "b"), missing),
        Case::refused("hard-link-to-itself", Tar::new().hard_link("a", "a"), missing),
        Case::refused(
            "hard-link-into-what-it-replaces",
            Tar::new().file("a/b", "").hard_link("a", "a/b"),
            "a: No such file",
        ),
        Case::refused("hard-link-to-a-lower-layer", Tar::new().hard_link("a", "b"), missing)
            .over(Tar::new().file("b", "")),
    ]
}

fn whiteouts(host: &str) -> Vec<Case> {
    let nothing = "a whiteout of nothing";
    let opaque = |directory: &str| Tar::new().file(format!("{directory}.wh..wh..opq"), "");
    vec![
        Case::refused("whiteout-of-the-parent", Tar::new().file("a/.wh...", ""), nothing),
        Case::refused("whiteout-of-the-directory", Tar::new().file("a/.wh..", ""), nothing),
        Case::refused("whiteout-of-no-name", Tar::new().file(".wh.", ""), nothing),
        Case::refused("whiteout-up", Tar::new().file("../.wh.x", ""), "path escapes root"),
        Case::refused("opaque-marker-up", opaque("../"), "path escapes root"),
        Case::new(
            "whiteout-through-a-symlink",
            vec![
                Tar::new()
                    .symlink("a", host)
                    .file("a/.wh.secret", "")
                    .file("a/dir/.wh..wh..opq", "")
                    .into(),
            ],
            Expected::Contained(inside(host, &["a"], &["dir/", "secret"])),
        ),
        Case::contained(
            "whiteout-of-a-symlink",
            Tar::new().symlink("a", host).file(".wh.a", ""),
            &["a"],
        ),
        Case::contained("opaque-root", opaque("/").file("x", ""), &["x"]).over(Tar::new().file("old", "")),
        Case::contained(
            "whiteout-with-data",
            Tar::new().file(".wh.a", "data").file("b", ""),
            &["a", "b"],
        ),
        Case::contained(
            "files-of-aufs",
            Tar::new()
                .file(".wh..wh.plnk/7.9", "kept")
                .file(".wh..wh.plnk/7.8", "dropped")
                .file(".wh..wh.plnk/sub/x", "dropped")
                .symlink(".wh..wh.plnk/link", "/etc/passwd")
                .hard_link("a", ".wh..wh.plnk/7.9")
                .hard_link("d/b", "/.wh..wh.plnk/7.9"),
            &["a", "d/", "d/b"],
        ),
        Case::refused(
            "link-to-a-link-of-aufs",
            Tar::new()
                .symlink(".wh..wh.plnk/1", "/etc/passwd")
                .hard_link("a", ".wh..wh.plnk/1"),
            "which is not in this layer",
        ),
        Case::contained(
            "into-the-files-of-aufs",
            Tar::new()
                .file(".wh..wh.plnk/1", "1")
                .symlink("s", ".wh..wh.plnk")
                .file("s/2", "2")
                .symlink("s/3", "/etc"),
            &["s"],
        ),
        Case::contained(
            "markers-of-aufs",
            Tar::new().file(".wh..wh.plnk/1", "").hard_link(".wh..wh.orph", "x"),
            &[],
        ),
    ]
}
