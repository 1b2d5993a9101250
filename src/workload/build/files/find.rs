//! Which files a source names: wildcards, and paths that are resolved within the root of the source.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Dir, FileType};
use rustix::io::Errno;

use super::super::context::{clean_within, open};
use super::super::file::{Ignore, Pattern};
use super::super::{BuildError, context};
use crate::image::printable::printable;
use crate::image::tree;

/// Most files that the wildcards of one instruction may name.
const MAX_MATCHES: usize = 100_000;
/// In a source of `COPY --parents`: what stands before it is not kept.
const PIVOT: &str = "/./";
/// In a source of `COPY --parents`: any directories.
const ANY_DEPTH: &str = "**";

/// The sources of an instruction in one place.
#[derive(Debug, Clone)]
pub(in super::super) struct Selection {
    /// Paths with wildcards, as written.
    pub patterns: Vec<String>,
    pub exclude: Ignore,
    /// Whether copies keep the directories of their sources.
    pub parents: bool,
}

/// Something that is copied, with all that is in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pick {
    /// Path in the source: clean, relative; empty for the root.
    pub path: Vec<u8>,
    /// Directories that its copy keeps, likewise.
    pub below: Vec<u8>,
}

impl Pick {
    /// For errors.
    pub(super) fn name(&self) -> String {
        printable(&self.path)
    }
}

impl Selection {
    /// Of one path without wildcards.
    pub(in super::super) fn exactly(path: &str) -> Self {
        let mut escaped = String::new();
        for c in path.chars() {
            if matches!(c, '*' | '?' | '[' | '\\') {
                escaped.push('\\');
            }
            escaped.push(c);
        }
        Self {
            patterns: vec![escaped],
            exclude: Ignore::default(),
            parents: false,
        }
    }

    /// What the patterns match: paths, and whether they are regular files.
    pub(in super::super) fn files(&self, root: &Path, place: &str) -> Result<Vec<(Vec<u8>, bool)>, BuildError> {
        let mut files = Vec::new();
        for pick in self.find(root, place)? {
            let opened = open(root, &pick.path).map_err(|e| tree::error(e, &pick.path))?;
            let stat = rustix::fs::fstat(opened).map_err(|e| tree::error(e, &pick.path))?;
            let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            files.push((pick.path, is_file));
        }
        Ok(files)
    }

    /// The same for only one path of those that it matches.
    pub(in super::super) fn only(&self, path: &[u8]) -> Self {
        Self {
            exclude: self.exclude.clone(),
            parents: self.parents,
            ..Self::exactly(&String::from_utf8_lossy(path))
        }
    }

    /// What the patterns match, in order. A path without wildcards must exist; of wildcards, one of the whole instruction
    /// must match something.
    pub(super) fn find(&self, root: &Path, place: &str) -> Result<Vec<Pick>, BuildError> {
        let mut picks = Vec::new();
        let mut missing = None;
        for pattern in &self.patterns {
            let found = self.matches(root, pattern, place)?;
            if found.is_empty() {
                missing.get_or_insert(pattern);
            }
            picks.extend(found);
            if picks.len() > MAX_MATCHES {
                let message = format!("{pattern}: it matches more than {MAX_MATCHES} files; copy their directory");
                return Err(BuildError::Refused(message));
            }
        }
        match missing {
            Some(pattern) if picks.is_empty() => Err(no_source(pattern, place)),
            _ => Ok(picks),
        }
    }

    fn matches(&self, root: &Path, pattern: &str, place: &str) -> Result<Vec<Pick>, BuildError> {
        let (dropped, kept) = match pattern.rfind(PIVOT).filter(|_| self.parents) {
            Some(at) => (&pattern[..at], &pattern[at + PIVOT.len()..]),
            None => ("", pattern),
        };
        let has_wildcards = Pattern::has_wildcards(pattern);
        let Some((dropped, kept)) = parts(dropped).zip(parts(kept)) else {
            return Err(BuildError::Refused(format!(
                "{pattern}: a source must be within {}",
                place.split(',').next().unwrap_or(place)
            )));
        };
        let mut found = vec![Pick {
            path: Vec::new(),
            below: Vec::new(),
        }];
        let from = dropped.len();
        for (n, part) in dropped.iter().chain(&kept).enumerate() {
            found = self.step(root, found, part, n >= from)?;
        }
        if !has_wildcards {
            let path = found.pop().unwrap_or(Pick {
                path: Vec::new(),
                below: Vec::new(),
            });
            return match open(root, &path.path) {
                Ok(_) => Ok(vec![self.placed(path)]),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Err(no_source(pattern, place)),
                Err(e) => Err(tree::error(e, &path.path).into()),
            };
        }
        let is_excluded = |path: &[u8]| self.exclude.is_ignored(path) || self.exclude.is_ignored(tree::split(path).1);
        found.retain(|pick| !is_excluded(&pick.path) && open(root, &pick.path).is_ok());
        found.sort();
        found.dedup();
        Ok(found.into_iter().map(|pick| self.placed(pick)).collect())
    }

    /// With the directories that its copy keeps: without its own name, which the copy gets anyway.
    fn placed(&self, mut pick: Pick) -> Pick {
        let (above, _) = tree::split(&pick.below);
        pick.below = if self.parents { above.to_vec() } else { Vec::new() };
        pick
    }

    /// Goes on by one component.
    fn step(&self, root: &Path, found: Vec<Pick>, part: &str, keep: bool) -> Result<Vec<Pick>, BuildError> {
        let join = |pick: &Pick, name: &[u8]| Pick {
            path: joined(&pick.path, name),
            below: if keep {
                joined(&pick.below, name)
            } else {
                pick.below.clone()
            },
        };
        if !Pattern::has_wildcards(part) {
            return Ok(found.iter().map(|pick| join(pick, part.as_bytes())).collect());
        }
        let any_depth = self.parents && part == ANY_DEPTH;
        let pattern = Pattern::parse(part).map_err(|e| BuildError::Refused(e.to_string()))?;
        let mut next = Vec::new();
        let mut pending = found;
        while let Some(pick) = pending.pop() {
            for (name, is_directory) in names(root, &pick.path)? {
                if any_depth && is_directory {
                    pending.push(join(&pick, &name));
                } else if !any_depth && pattern.matches(&name) {
                    next.push(join(&pick, &name));
                }
                if next.len() + pending.len() > MAX_MATCHES {
                    let message = format!("{part}: it matches more than {MAX_MATCHES} files; copy their directory");
                    return Err(BuildError::Refused(message));
                }
            }
            if any_depth {
                next.push(pick);
            }
        }
        Ok(next)
    }
}

/// The components of a path, an absolute one from the root of the source. `None` if it leaves the source.
fn parts(path: &str) -> Option<Vec<String>> {
    let cleaned = clean_within(path)?;
    let parts = cleaned.split('/').filter(|part| !part.is_empty());
    Some(parts.map(str::to_owned).collect())
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match directory {
        b"" => name.to_vec(),
        directory => [directory, b"/", name].concat(),
    }
}

/// Names in a directory of the source, and whether they are directories; none if it is no directory.
fn names(root: &Path, path: &[u8]) -> Result<Vec<(Vec<u8>, bool)>, BuildError> {
    let fail = |e| BuildError::from(tree::error(e, path));
    let directory: OwnedFd = match context::open(root, path) {
        Ok(opened) => opened,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
        Err(e) => return Err(fail(e)),
    };
    let entries = match Dir::read_from(&directory) {
        Err(Errno::NOTDIR) => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push((name.to_vec(), entry.file_type() == FileType::Directory));
        }
    }
    Ok(names)
}

fn no_source(path: &str, place: &str) -> BuildError {
    BuildError::NoSource {
        path: path.to_owned(),
        place: place.to_owned(),
    }
}
