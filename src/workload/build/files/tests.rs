//! Copies, in a context with files and an image with links that lead out of it.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::super::file::Ignore;
use super::super::settings::joined;
use super::*;
use crate::image::testing::names;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for directory in ["context/dir/sub", "image/real", "image/tmp", "outside"] {
            std::fs::create_dir_all(place.path(directory)).unwrap();
            std::fs::set_permissions(place.path(directory), PermissionsExt::from_mode(0o755)).unwrap();
        }
        std::fs::write(place.path("context/file"), "1").unwrap();
        std::fs::set_permissions(place.path("context/file"), PermissionsExt::from_mode(0o4755)).unwrap();
        std::fs::write(place.path("context/dir/sub/deep"), "2").unwrap();
        std::fs::write(place.path("context/dir/note.md"), "3").unwrap();
        symlink("/nowhere", place.path("context/dir/link")).unwrap();
        symlink("/etc", place.path("context/out")).unwrap();
        symlink("real", place.path("image/link")).unwrap();
        symlink(place.path("outside"), place.path("image/out")).unwrap();
        place
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn copy(&self, sources: &[&str], destination: &str) -> Result<(), String> {
        self.copy_as(&selection(sources), &placement(destination))
    }

    fn copy_as(&self, selection: &Selection, placement: &Placement) -> Result<(), String> {
        let root = self.path("context");
        let sources = Sources {
            root: &root,
            place: "the build context, somewhere",
            selection,
            keeps_owners: false,
            cancelled: &CancellationToken::new(),
        };
        copy(&self.path("image"), &[sources], placement).map_err(|e| e.to_string())
    }

    fn key(&self, selection: &Selection, placement: &Placement) -> String {
        let root = self.path("context");
        let sources = Sources {
            root: &root,
            place: "",
            selection,
            keeps_owners: false,
            cancelled: &CancellationToken::new(),
        };
        let mut key = Key::of("copy");
        hash(&mut key, &[sources], placement).unwrap();
        key.finish()
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap_or_else(|e| e.to_string())
    }
}

fn selection(sources: &[&str]) -> Selection {
    Selection {
        patterns: sources.iter().map(|source| source.to_string()).collect(),
        exclude: Ignore::default(),
        parents: false,
    }
}

fn placement(destination: &str) -> Placement {
    Placement {
        destination: joined("/", destination),
        into: destination.ends_with('/'),
        owner: Some((0, 0)),
        mode: None,
    }
}

#[test]
fn a_file_goes_where_it_is_said() {
    let place = Place::new();
    for (destination, found) in [
        ("/named", "named"),
        ("/tmp", "tmp/file"),
        ("/new/", "new/file"),
        ("/a/b/c", "a/b/c"),
        ("/link", "real/file"),
        ("/link/x", "real/x"),
    ] {
        place.copy(&["file"], destination).unwrap();
        assert_eq!(place.read(&format!("image/{found}")), "1", "{destination}");
    }
    let metadata = std::fs::metadata(place.path("image/named")).unwrap();
    let original = std::fs::metadata(place.path("context/file")).unwrap();
    assert_eq!((metadata.mode(), metadata.mtime()), (original.mode(), original.mtime()));
}

#[test]
fn the_content_of_a_directory_is_merged() {
    let place = Place::new();
    std::fs::create_dir(place.path("image/tmp/sub")).unwrap();
    std::fs::write(place.path("image/tmp/sub/kept"), "0").unwrap();
    std::fs::set_permissions(place.path("context/dir"), PermissionsExt::from_mode(0o750)).unwrap();
    place.copy(&["dir"], "/tmp").unwrap();
    assert_eq!(place.read("image/tmp/sub/deep"), "2");
    assert_eq!(place.read("image/tmp/sub/kept"), "0");
    let mode = |path: &str| std::fs::metadata(place.path(path)).unwrap().mode() & 0o7777;
    assert_eq!(mode("image/tmp"), 0o755, "it was there");
    assert_eq!(
        std::fs::read_link(place.path("image/tmp/link")).unwrap(),
        Path::new("/nowhere")
    );
    place.copy(&["."], "/all").unwrap();
    assert_eq!(place.read("image/all/dir/sub/deep"), "2");
    place.copy(&["/dir/"], "/new").unwrap();
    assert_eq!(mode("image/new"), 0o755, "only the content is copied");
}

#[test]
fn links_of_image_and_context_lead_nowhere_else() {
    let place = Place::new();
    place.copy(&["file"], "/out/file").unwrap();
    assert_eq!(std::fs::read_dir(place.path("outside")).unwrap().count(), 0);
    let error = place.copy(&["out"], "/x").unwrap_err();
    assert_eq!(error, "out: no such file or directory in the build context, somewhere");
    for source in ["out/passwd", "nofile", "../outside", "dir/../../outside"] {
        place.copy(&[source], "/x").unwrap_err();
    }
}

#[test]
fn directories_are_made_with_their_parents_and_owner() {
    let place = Place::new();
    make_directory(&place.path("image"), "/", (7, 8)).unwrap();
    make_directory(&place.path("image"), "/link/deep/er", (7, 8)).unwrap();
    let owner = |path: &str| {
        let metadata = std::fs::metadata(place.path(path)).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    assert_eq!(owner("image/real"), (0, 0, 0o755));
    assert_eq!(owner("image/real/deep"), (7, 8, 0o755));
    assert_eq!(owner("image/real/deep/er"), (7, 8, 0o755));
    for n in 0..40 {
        let target = format!("/l{}{}", n + 1, "/d".repeat(2000));
        symlink(target, place.path(&format!("image/l{n}"))).unwrap();
    }
    let error = place.copy(&["file"], "/l0/x").unwrap_err();
    assert!(error.contains("nested more than 256 deep"), "{error}");
    place.copy(&["file"], "/named").unwrap();
    make_directory(&place.path("image"), "/named/x", (0, 0)).unwrap_err();
}

#[test]
fn wildcards_and_several_sources() {
    let place = Place::new();
    place.copy(&["dir/*.md", "fi?e", "no*"], "/many/").unwrap();
    assert_eq!(names(&place.path("image/many")), ["file", "note.md"]);
    let error = place.copy(&["no*"], "/x").unwrap_err();
    assert!(error.starts_with("no*: no such file"), "{error}");
    let error = place.copy(&["file", "dir/note.md"], "/x").unwrap_err();
    assert!(error.contains("end the destination with /"), "{error}");
    place.copy(&["file", "dir/note.md"], "/tmp").unwrap();
    std::fs::write(place.path("context/a[b"), "x").unwrap();
    place.copy_as(&Selection::exactly("a[b"), &placement("/x")).unwrap();
    let error = place.copy(&["a["], "/x").unwrap_err();
    assert!(error.contains("not a valid pattern"), "{error}");
}

#[test]
fn what_is_excluded_and_what_keeps_its_directories() {
    let place = Place::new();
    let mut chosen = selection(&["dir"]);
    chosen.exclude = Ignore::new(["sub", "*.md"]).unwrap();
    place.copy_as(&chosen, &placement("/few")).unwrap();
    assert_eq!(names(&place.path("image/few")), ["link"]);
    let mut chosen = selection(&["dir/sub/deep", "dir/./note.md"]);
    chosen.parents = true;
    place.copy_as(&chosen, &placement("/kept/")).unwrap();
    let kept = ["dir/", "dir/sub/", "dir/sub/deep", "note.md"];
    assert_eq!(names(&place.path("image/kept")), kept);
    let mut chosen = selection(&["**/de?p"]);
    chosen.parents = true;
    place.copy_as(&chosen, &placement("/deep/")).unwrap();
    assert_eq!(names(&place.path("image/deep")), ["dir/", "dir/sub/", "dir/sub/deep"]);
}

#[test]
fn owners_modes_and_further_names() {
    let place = Place::new();
    std::fs::hard_link(place.path("context/dir/note.md"), place.path("context/dir/sub/again")).unwrap();
    std::os::unix::fs::chown(place.path("context/dir/note.md"), Some(5), Some(6)).unwrap();
    let owned = Placement {
        owner: Some((7, 8)),
        mode: super::super::mode::ModeChange::parse("u=rwX,go=rX"),
        ..placement("/owned/deep")
    };
    place.copy_as(&selection(&["dir"]), &owned).unwrap();
    let metadata = |path: &str| std::fs::symlink_metadata(place.path(path)).unwrap();
    for path in [
        "owned",
        "owned/deep",
        "owned/deep/sub",
        "owned/deep/link",
        "owned/deep/note.md",
    ] {
        let metadata = metadata(&format!("image/{path}"));
        assert_eq!((metadata.uid(), metadata.gid()), (7, 8), "{path}");
    }
    let (one, other) = (
        metadata("image/owned/deep/note.md"),
        metadata("image/owned/deep/sub/again"),
    );
    assert_eq!((one.ino(), one.nlink()), (other.ino(), 2));
    let kept = Placement {
        owner: None,
        ..placement("/theirs")
    };
    place.copy_as(&selection(&["dir/note.md"]), &kept).unwrap();
    assert_eq!(metadata("image/theirs").uid(), 5);
}

#[test]
fn a_file_takes_no_directorys_place() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("image/at/file/full")).unwrap();
    let error = place.copy(&["file"], "/at/").unwrap_err();
    assert!(error.starts_with("/at/file: a directory is there"), "{error}");
    place.copy(&["file"], "/plain").unwrap();
    let error = place.copy(&["dir"], "/plain").unwrap_err();
    assert!(error.contains("no directory"), "{error}");
}

#[test]
fn a_key_is_of_names_modes_owners_and_contents_but_not_of_times() {
    let place = Place::new();
    let all = selection(&["."]);
    let key = || place.key(&all, &placement("/x"));
    let first = key();
    let file = std::fs::File::options()
        .write(true)
        .open(place.path("context/file"))
        .unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(key(), first);
    std::fs::write(place.path("context/file"), "2").unwrap();
    let second = key();
    assert_ne!(second, first);
    std::fs::set_permissions(place.path("context/file"), PermissionsExt::from_mode(0o600)).unwrap();
    let third = key();
    assert_ne!(third, second);
    std::fs::rename(place.path("context/file"), place.path("context/other")).unwrap();
    assert_ne!(key(), third);
    let owned = Placement {
        owner: Some((1, 1)),
        ..placement("/x")
    };
    assert_ne!(place.key(&all, &owned), key());
    assert_ne!(place.key(&all, &placement("/y")), key());
}
