//! From the request's body to a build file and the files that its steps may use.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::context::{self, ChannelReader, ContextLimits, clean};
use super::file::{self, BuildFile, Ignore, limits};
use super::{BUILD_FILES, BuildError, BuildService, Upload};
use crate::image::Scratch;
use crate::ops::task::blocking;

/// How many chunks of a context are buffered between network and unpacking.
const PIECES: usize = 16;
/// Idle timeout of a client that sends a context.
const IDLE: Duration = Duration::from_secs(60);
/// The file of ignored paths; one that is named like the build file with this suffix counts before it.
const IGNORE: &str = ".dockerignore";

impl BuildService {
    /// Receives the context, reads the build file, and removes what is ignored. `named`: the build file, unless it is the
    /// default. Returns whether something may have been ignored, too.
    pub(super) async fn receive(
        &self,
        upload: &mut Upload,
        named: Option<String>,
    ) -> Result<(Scratch, BuildFile, bool), BuildError> {
        let scratch = self.unpack(upload).await?;
        blocking(move || {
            let root = scratch.path();
            let (name, text) = build_file(root, named)?;
            let file = file::parse(&name, &text)?;
            let ignore = ignored(root, &name)?;
            context::leave_out(root, &ignore)?;
            Ok((scratch, file, !ignore.is_empty()))
        })
        .await
    }

    async fn unpack(&self, upload: &mut Upload) -> Result<Scratch, BuildError> {
        let scratch = self.0.images.scratch().await?;
        let limits = ContextLimits {
            bytes: self.0.settings.max_context_bytes,
            entries: self.0.settings.max_context_entries,
        };
        let (sender, receiver) = mpsc::channel(PIECES);
        let unpacking = tokio::task::spawn_blocking(move || {
            context::unpack(ChannelReader::new(receiver), scratch.path(), limits).map(|()| scratch)
        });
        loop {
            let piece = match tokio::time::timeout(IDLE, upload.next()).await {
                Ok(None) => break,
                Ok(Some(piece)) => piece,
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no data for {} s", IDLE.as_secs()),
                )),
            };
            let broken = piece.is_err();
            // The unpacker has ended: it has seen the end of the archive, or refuses the rest.
            if sender.send(piece).await.is_err() || broken {
                break;
            }
        }
        drop(sender);
        let unpacked = unpacking.await.map_err(BuildError::unfinished("unpacking ended"))?;
        Ok(unpacked?)
    }
}

/// The path of the build file in the context; `None` for the default.
pub(super) fn build_file_name(given: &str) -> Result<Option<String>, BuildError> {
    if given.is_empty() {
        return Ok(None);
    }
    let cleaned = clean(given.as_bytes()).and_then(|path| String::from_utf8(path).ok());
    let cleaned = cleaned.filter(|path| !path.is_empty());
    cleaned.map(Some).ok_or(BuildError::DripfilePath)
}

/// For errors: where sources of the context are.
pub(super) fn place(is_ignoring: bool) -> String {
    let place = "the build context; the path is relative to its root";
    match is_ignoring {
        true => format!("{place}, and {IGNORE} may leave it out"),
        false => place.to_owned(),
    }
}

fn build_file(root: &Path, named: Option<String>) -> Result<(String, Vec<u8>), BuildError> {
    let names = match &named {
        Some(name) => vec![&name[..]],
        None => BUILD_FILES.to_vec(),
    };
    for name in &names {
        if let Some(text) = read(root, name)? {
            return Ok(((*name).to_owned(), text));
        }
    }
    Err(BuildError::NoDripfile(names[0].to_owned()))
}

fn ignored(root: &Path, build_file: &str) -> Result<Ignore, BuildError> {
    for path in [format!("{build_file}{IGNORE}"), IGNORE.to_owned()] {
        if let Some(text) = read(root, &path)? {
            return Ignore::parse(&text).map_err(|e| BuildError::Ignore {
                path,
                problem: e.to_string(),
            });
        }
    }
    Ok(Ignore::default())
}

/// A file of the context; `None` if it is none.
fn read(root: &Path, path: &str) -> Result<Option<Vec<u8>>, BuildError> {
    let failed = |source: io::Error| BuildError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match context::open(root, path) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(e) => return Err(failed(e.into())),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Ok(None);
    }
    let mut text = Vec::new();
    file.take(limits::FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > limits::FILE_BYTES {
        let (path, limit) = (path.to_owned(), limits::FILE_BYTES);
        return Err(BuildError::LongDripfile { path, limit });
    }
    Ok(Some(text))
}

/// Reads the rest of a client's upload, at most `left` bytes: most clients read the answer only after they have sent
/// everything.
pub(super) async fn discard(mut upload: Upload, mut left: u64) {
    while let Ok(Some(Ok(piece))) = tokio::time::timeout(IDLE, upload.next()).await {
        match left.checked_sub(piece.len() as u64) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_file_is_a_file_of_the_context() {
        let context = tempfile::tempdir().unwrap();
        let read = |named: Option<&str>| {
            let found = build_file(context.path(), named.map(str::to_owned));
            found.map(|(name, _)| name).map_err(|e| e.to_string())
        };
        let error = read(None).unwrap_err();
        assert!(error.starts_with("Dripfile: no such build file"), "{error}");
        std::os::unix::fs::symlink("/etc/passwd", context.path().join("link")).unwrap();
        let error = read(Some("link")).unwrap_err();
        assert!(error.starts_with("link: no such build file"), "{error}");
        std::fs::create_dir(context.path().join("Dripfile")).unwrap();
        std::fs::write(context.path().join("Dockerfile"), "FROM scratch").unwrap();
        assert_eq!(read(None).unwrap(), "Dockerfile");
        std::fs::remove_dir(context.path().join("Dripfile")).unwrap();
        std::fs::write(context.path().join("Dripfile"), "FROM scratch").unwrap();
        assert_eq!(read(None).unwrap(), "Dripfile");
        std::fs::write(context.path().join("long"), vec![b'#'; (1 << 20) + 1]).unwrap();
        assert!(read(Some("long")).unwrap_err().contains("longer than"));
        for path in ["../x", "/x", "."] {
            assert!(build_file_name(path).is_err(), "{path}");
        }
        assert_eq!(build_file_name("a/./b").unwrap().unwrap(), "a/b");
    }

    #[test]
    fn the_ignore_file_of_the_build_file_counts_first() {
        let context = tempfile::tempdir().unwrap();
        let is_ignored = |path: &str| ignored(context.path(), "Dripfile").unwrap().is_ignored(path.as_bytes());
        assert!(!is_ignored("a"));
        std::fs::write(context.path().join(".dockerignore"), "a\n").unwrap();
        assert!(is_ignored("a"));
        std::fs::write(context.path().join("Dripfile.dockerignore"), "b\n").unwrap();
        assert!(is_ignored("b") && !is_ignored("a"));
    }
}
