//! `COPY` and `ADD`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::cache::Key;
use super::file::{Copy, Heredoc, Ignore, Source};
use super::files::{self, Placement, Selection, Sources};
use super::mode::ModeChange;
use super::settings::joined;
use super::stage::{At, Stage};
use super::{BuildError, context};
use crate::image::printable::printable;
use crate::image::tree::{self, TreeError};
use crate::image::{ArchiveLimits, Layers, Scratch, unpack_archive};
use crate::ops::task::blocking;

/// Mode of files that the build file itself holds.
const HEREDOC_MODE: u32 = 0o644;
/// Mode of a directory that an archive is unpacked to.
const DIRECTORY_MODE: u32 = 0o755;

/// Where the files of one instruction are, and which.
#[derive(Clone)]
struct Origins {
    /// Of a stage or image; `None` for the context.
    layers: Option<Layers>,
    context: Arc<Scratch>,
    place: String,
    /// Sources that are paths.
    paths: Selection,
    /// Files that were written in the build file, or downloaded.
    made: Option<(Arc<Scratch>, Selection)>,
    /// Whether archives among `paths` are unpacked, and among `made`.
    unpack: (bool, bool),
    /// Whether `--chown` says who owns what an archive has, too.
    has_owner: bool,
    cancelled: CancellationToken,
}

impl Stage<'_> {
    pub(super) async fn copy(&mut self, at: At<'_>, copy: Copy) -> Result<(), BuildError> {
        let placement = self.placement(&copy).await?;
        let origins = self.origins(&copy).await?;
        let mut key = self.key("copy");
        key.all([copy.parents, origins.unpack.0, origins.unpack.1, origins.has_owner].map(|flag| [u8::from(flag)]));
        let key = origins.clone().hash(key, placement.clone()).await?;
        let layers = self.draft.layers().clone();
        let images = self.build.service.0.images.clone();
        let make = async move {
            let scratch = match origins.unpack {
                (false, false) => None,
                _ => Some(images.scratch().await?),
            };
            let limits = images.archive_limits();
            let others: Vec<Layers> = origins.layers.iter().cloned().collect();
            let work = move |root: &Path, others: &[&Path]| {
                let origin = others.first().copied();
                let sources = origins.expanded(origin, scratch.as_ref(), limits)?;
                let sources: Vec<Sources<'_>> = sources.iter().map(|source| source.borrowed(&origins)).collect();
                files::copy(root, &sources, &placement)
            };
            layers.change(others, work).await
        };
        self.change(at, key, make).await
    }

    async fn placement(&self, copy: &Copy) -> Result<Placement, BuildError> {
        let destination = &copy.destination;
        let is_directory = destination.ends_with('/') || matches!(&destination[..], "." | "..");
        let mode = match copy.chmod.as_deref() {
            None | Some("") => None,
            Some(text) => Some(ModeChange::parse(text).ok_or_else(|| {
                BuildError::Refused(format!(
                    "--chmod={text}: write octal digits, as in 755, or symbols, as in u=rwX,go=rX"
                ))
            })?),
        };
        Ok(Placement {
            destination: joined(&self.settings.working_dir(), destination),
            into: is_directory || destination.ends_with("/.") || copy.parents,
            owner: match copy.chown.as_deref() {
                None | Some("") => copy.from.is_none().then_some((0, 0)),
                Some(text) => Some(self.owner(text).await?),
            },
            mode,
        })
    }

    /// `user`, `user:group`, `:group`. A number without a group is the group, too.
    async fn owner(&self, text: &str) -> Result<(u32, u32), BuildError> {
        if let Ok(number) = text.parse() {
            return Ok((number, number));
        }
        let ids = self.draft.layers().diff_ids();
        let user = self.build.service.0.images.resolve_user(&ids, text).await?;
        Ok((user.uid, user.gid))
    }

    async fn origins(&self, copy: &Copy) -> Result<Origins, BuildError> {
        let build = self.build;
        let (layers, place) = match copy.from.as_deref() {
            None => (None, build.place.clone()),
            Some(from) => {
                let (layers, place) = self.layers_of(from).await?;
                (Some(layers), place)
            }
        };
        let exclude = Ignore::new(copy.exclude.iter().map(String::as_str));
        let exclude = exclude.map_err(|e| BuildError::Refused(format!("--exclude: {e}")))?;
        let is_url = |path: &str| copy.is_add && (path.starts_with("http://") || path.starts_with("https://"));
        let (mut patterns, mut urls, mut texts) = (Vec::new(), Vec::new(), Vec::new());
        for source in &copy.sources {
            match source {
                Source::Path(path) if is_url(path) => urls.push(path.clone()),
                Source::Path(path) if copy.is_add => {
                    refuse_git(path)?;
                    patterns.push(path.clone());
                }
                Source::Path(path) => patterns.push(path.clone()),
                Source::Heredoc(heredoc) => texts.push(heredoc.clone()),
            }
        }
        if copy.checksum.is_some() && (urls.len() != 1 || copy.sources.len() != 1) {
            let message = "--checksum needs exactly one source, and that a URL".to_owned();
            return Err(BuildError::Refused(message));
        }
        let made = self.made(copy, &urls, texts).await?;
        Ok(Origins {
            layers,
            context: build.context.clone(),
            place,
            paths: Selection {
                patterns,
                exclude,
                parents: copy.parents,
            },
            made,
            unpack: (
                copy.is_add && copy.unpack.unwrap_or(true),
                copy.is_add && copy.unpack.unwrap_or(false) && !urls.is_empty(),
            ),
            has_owner: copy.chown.as_deref().is_some_and(|text| !text.is_empty()),
            cancelled: build.cancelled.clone(),
        })
    }

    /// Layers of a stage or an image, and what errors call them.
    pub(super) async fn layers_of(&self, from: &str) -> Result<(Layers, String), BuildError> {
        let build = self.build;
        match build.plan.file.stage(from, self.index) {
            Some(index) => {
                let built = build.stage(index).await?;
                Ok((built.draft.layers().clone(), format!("the stage {from}")))
            }
            None => {
                let draft = Box::pin(build.image(from)).await?;
                Ok((draft.layers().clone(), format!("the image {from}")))
            }
        }
    }

    /// Files that are in no context: downloads, and texts of the build file.
    async fn made(
        &self,
        copy: &Copy,
        urls: &[String],
        texts: Vec<Heredoc>,
    ) -> Result<Option<(Arc<Scratch>, Selection)>, BuildError> {
        if urls.is_empty() && texts.is_empty() {
            return Ok(None);
        }
        let scratch = self.build.service.0.images.scratch().await?;
        let mut names = Vec::new();
        for (n, url) in urls.iter().enumerate() {
            // Each in a directory of its own: two may have the same name.
            let place = scratch.path().join(n.to_string());
            let name = self.download(url, copy, place).await?;
            names.push(format!("{n}/{name}"));
        }
        let first = urls.len();
        let scratch = blocking(move || {
            for (n, text) in texts.iter().enumerate() {
                let name = text.name.rsplit('/').next().unwrap_or(&text.name);
                if matches!(name, "" | "." | "..") || name.contains('\0') {
                    return Err(BuildError::Refused(format!(
                        "<<{}: a file cannot have that name",
                        text.name
                    )));
                }
                let place = scratch.path().join((first + n).to_string());
                fs_err::create_dir(&place)?;
                write_text(&place.join(name), &text.content)?;
                names.push(format!("{}/{name}", first + n));
            }
            Ok((scratch, names))
        });
        let (scratch, names) = scratch.await?;
        let patterns = names
            .iter()
            .flat_map(|name| Selection::exactly(name).patterns)
            .collect();
        let selection = Selection {
            patterns,
            ..Selection::exactly("")
        };
        Ok(Some((Arc::new(scratch), selection)))
    }

    /// Downloads a file into a new directory. Returns its name.
    async fn download(&self, url: &str, copy: &Copy, place: PathBuf) -> Result<String, BuildError> {
        let service = &self.build.service.0;
        let failed = |problem: String| BuildError::Download {
            url: url.to_owned(),
            problem,
        };
        let into = copy.destination.ends_with('/') || copy.destination == ".";
        let name = match url_name(url) {
            Some(name) => name,
            None if into => {
                return Err(failed(
                    "its path ends without a name; write the name of the file into the destination".to_owned(),
                ));
            }
            None => "download".to_owned(),
        };
        fs_err::create_dir(&place)?;
        let fetched = service
            .images
            .fetch(url, place.join(&name), service.settings.max_build_bytes);
        let fetched = tokio::select! {
            fetched = tokio::time::timeout(service.settings.step_time, fetched) => fetched,
            () = self.build.cancelled.cancelled() => return Err(BuildError::Cancelled),
        };
        let seconds = service.settings.step_time.as_secs();
        let digest = fetched
            .map_err(|_| failed(format!("it took longer than {seconds} s (build_step_seconds)")))?
            .map_err(failed)?;
        match copy.checksum.as_deref() {
            Some(wanted) if wanted != digest => Err(failed(format!("its checksum is {digest}, not {wanted}"))),
            _ => Ok(name),
        }
    }
}

impl Origins {
    async fn hash(self, mut key: Key, placement: Placement) -> Result<String, BuildError> {
        let (layers, context) = (self.layers.clone(), self.context.clone());
        let work = move |root: &Path| {
            let sources = self.owned(Some(root));
            let sources: Vec<Sources<'_>> = sources.iter().map(|source| source.borrowed(&self)).collect();
            files::hash(&mut key, &sources, &placement)?;
            Ok(key.finish())
        };
        match layers {
            Some(layers) => layers.read(work).await,
            None => blocking(move || work(context.path())).await,
        }
    }

    /// All sources, archives as they are. `root`: that of the stage or image, if there is one.
    fn owned(&self, root: Option<&Path>) -> Vec<OwnedSource> {
        let root = root.unwrap_or(self.context.path());
        let mut sources = Vec::new();
        if !self.paths.patterns.is_empty() {
            sources.push(OwnedSource {
                root: root.to_owned(),
                place: self.place.clone(),
                selection: self.paths.clone(),
                unpack: self.unpack.0,
                keeps_owners: false,
            });
        }
        if let Some((made, selection)) = &self.made {
            sources.push(OwnedSource {
                root: made.path().to_owned(),
                place: "the build file".to_owned(),
                selection: selection.clone(),
                unpack: self.unpack.1,
                keeps_owners: false,
            });
        }
        sources
    }

    /// All sources, archives unpacked into `scratch`.
    fn expanded(
        &self,
        root: Option<&Path>,
        scratch: Option<&Scratch>,
        limits: ArchiveLimits,
    ) -> Result<Vec<OwnedSource>, BuildError> {
        let mut expanded = Vec::new();
        for source in self.owned(root) {
            let Some(scratch) = scratch.filter(|_| source.unpack) else {
                expanded.push(source);
                continue;
            };
            // Each file on its own: one of them may be an archive.
            for (path, is_file) in source.selection.files(&source.root, &source.place)? {
                let directory = scratch.path().join(expanded.len().to_string());
                let is_archive = is_file && {
                    let file = File::from(context::open(&source.root, &path).map_err(|e| tree::error(e, &path))?);
                    fs_err::create_dir(&directory)?;
                    fs_err::set_permissions(&directory, PermissionsExt::from_mode(DIRECTORY_MODE))?;
                    unpack_archive(file, &directory, limits).map_err(|problem| match problem {
                        TreeError::Refused(why) => BuildError::Refused(format!("{}: {why}", printable(&path))),
                        problem => problem.into(),
                    })?
                };
                let (root, selection) = match is_archive {
                    true => (directory, Selection::exactly("")),
                    false => (source.root.clone(), source.selection.only(&path)),
                };
                expanded.push(OwnedSource {
                    root,
                    place: source.place.clone(),
                    selection,
                    unpack: false,
                    keeps_owners: is_archive && !self.has_owner,
                });
            }
        }
        Ok(expanded)
    }
}

/// [`Sources`] that own what they say.
struct OwnedSource {
    root: PathBuf,
    place: String,
    selection: Selection,
    unpack: bool,
    keeps_owners: bool,
}

impl OwnedSource {
    fn borrowed<'a>(&'a self, origins: &'a Origins) -> Sources<'a> {
        Sources {
            root: &self.root,
            place: &self.place,
            selection: &self.selection,
            keeps_owners: self.keeps_owners,
            cancelled: &origins.cancelled,
        }
    }
}

/// Repositories are not cloned.
fn refuse_git(path: &str) -> Result<(), BuildError> {
    let is_git = path.starts_with("git@") || path.starts_with("git://") || path.starts_with("ssh://");
    match is_git {
        true => Err(BuildError::Refused(format!(
            "{path}: git repositories are not supported; clone it into the context, or in a RUN"
        ))),
        false => Ok(()),
    }
}

/// The last part of a URL's path.
fn url_name(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    let name = url.path_segments()?.next_back()?.to_owned();
    let is_name = !matches!(&name[..], "" | "." | "..") && !name.contains(['\0', '/']) && name.len() < 256;
    is_name.then_some(name)
}

/// A file with the time zero, so that the same text always makes the same layer.
fn write_text(path: &Path, text: &str) -> Result<(), BuildError> {
    let mut file = fs_err::File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    fs_err::set_permissions(path, PermissionsExt::from_mode(HEREDOC_MODE))?;
    Ok(file.into_parts().0.set_modified(std::time::UNIX_EPOCH)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_download() {
        for (url, name) in [
            ("http://a/b/c.txt?x=/y", Some("c.txt")),
            ("https://a/b/", None),
            ("https://a", None),
            ("https://a/..", None),
            ("nothing", None),
        ] {
            assert_eq!(url_name(url).as_deref(), name, "{url}");
        }
    }
}
