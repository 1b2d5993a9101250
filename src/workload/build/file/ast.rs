//! What a build file says.

use std::time::Duration;

/// A build file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildFile {
    /// Its name, for errors.
    pub name: String,
    /// The character that escapes others and continues lines: `\` unless `# escape=` says a backtick.
    pub escape: char,
    /// `ARG`s before the first `FROM`, in order. Only `FROM` sees them, and stages that repeat their names in an `ARG`
    /// of their own.
    pub global_args: Vec<GlobalArg>,
    /// At least one, in order. The last one is built unless another is asked for.
    pub stages: Vec<Stage>,
}

/// One variable that is declared before the first `FROM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalArg {
    /// Line, from 1.
    pub line: u32,
    /// Name and default; the default is as written (see [`BuildFile::resolve_global`]).
    pub arg: Arg,
}

/// From one `FROM` to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Line of its `FROM`, from 1.
    pub line: u32,
    /// The whole `FROM`, on one line.
    pub text: String,
    /// An image, `scratch`, or the name of an earlier stage; as written until [`BuildFile::resolve_stage`].
    pub base: String,
    /// `--platform`, as written until [`BuildFile::resolve_stage`].
    pub platform: Option<String>,
    /// `AS name`, in lower case: names of stages are compared without case.
    pub name: Option<String>,
    /// What follows, in order.
    pub steps: Vec<Step>,
}

/// One instruction of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Line of its first word, from 1. For a trigger of a base image: 0.
    pub line: u32,
    /// As written, continued lines joined, without heredocs' contents: for the history and for progress.
    pub text: String,
    /// What it says.
    pub instruction: Instruction,
    /// [`BuildFile::name`], for errors.
    pub file: String,
    /// [`BuildFile::escape`].
    pub escape: char,
}

/// An instruction. `FROM` is a [`Stage`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// Copies files of the context, of another stage or image, or written in the file itself; `ADD` also URLs and
    /// archives.
    Copy(Box<Copy>),
    /// Runs a command.
    Run(Box<Run>),
    /// What a container runs, or the arguments of `ENTRYPOINT`. `Exec` of no words resets it.
    Cmd(Command),
    /// What a container runs. Resets the base image's `CMD`.
    Entrypoint(Command),
    /// Variables of the image, at least one.
    Env(Vec<(String, String)>),
    /// Variables of this stage, at least one.
    Arg(Vec<Arg>),
    /// Labels, at least one.
    Label(Vec<(String, String)>),
    /// Ports. As written before [`Step::resolve`]; afterwards each as `80/tcp`, ranges as their ports.
    Expose(Vec<String>),
    /// Paths of volumes, at least one.
    Volume(Vec<String>),
    /// `user`, `user:group`; names or numbers.
    User(String),
    /// A path, relative to the one before; as written, not cleaned.
    Workdir(String),
    /// The words that [`Command::Shell`] is appended to, at least one.
    Shell(Vec<String>),
    /// A name or a number.
    StopSignal(String),
    /// How to see whether a container is well.
    HealthCheck(HealthCheck),
    /// An instruction for builds that use the image as a base, as written; it was checked with
    /// [`parse_trigger`](super::parse_trigger).
    OnBuild(String),
    /// The author.
    Maintainer(String),
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A line for the shell of `SHELL`.
    Shell(String),
    /// Arguments, for no shell. May be empty for `CMD` and `ENTRYPOINT`.
    Exec(Vec<String>),
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What is run.
    pub command: RunCommand,
    /// `--mount`, in order.
    pub mounts: Vec<Mount>,
    /// `--network`.
    pub network: RunNetwork,
    /// `--security`.
    pub security: RunSecurity,
}

/// What a `RUN` runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunCommand {
    /// A command. Heredocs are already where they belong: in the shell's line (`cat <<EOF > x`), or as the line itself
    /// (`RUN <<EOF`).
    Command(Command),
    /// A single heredoc that begins with `#!`: a program, to be executed without the shell of `SHELL`. `BuildKit` makes
    /// it `/dev/pipes/NAME`; the name is whatever the file says, so use another one for a real file.
    Script(Heredoc),
}

/// `--network` of a `RUN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunNetwork {
    /// That of the build.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's.
    Host,
}

/// `--security` of a `RUN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunSecurity {
    /// Confined.
    #[default]
    Sandbox,
    /// With all privileges.
    Insecure,
}

/// `--mount` of a `RUN`. `from` is final; all else is after [`Step::resolve`], since it may have variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The flag's value, as written.
    pub text: String,
    /// `type`; `bind` by default.
    pub kind: MountKind,
    /// `from`: a stage ([`BuildFile::stage`]) or an image, instead of the context (bind) or of nothing (cache).
    pub from: Option<String>,
    /// `source`, `src`: a path in `from` or the context.
    pub source: Option<String>,
    /// `target`, `dst`, `destination`: a path in the container, relative to `WORKDIR`. Always there for `bind`, `cache`
    /// and `tmpfs`, and for `secret` unless it has `env` (default: `/run/secrets/` and the base name of its id).
    pub target: Option<String>,
    /// `readonly`, `ro`, `rw`, `readwrite`. By default `bind` is read-only, and nothing else is.
    pub readonly: bool,
    /// `id` of a cache (default: its target), secret (default: its `source`, or the base name of its target) or ssh agent
    /// (default: `default`). Always there for these.
    pub id: Option<String>,
    /// `sharing` of a cache.
    pub sharing: Sharing,
    /// `required` of a secret or ssh agent: fails where it is not given.
    pub required: bool,
    /// `mode`; by default 0755 of a cache, 0400 of a secret, 0600 of an agent's socket.
    pub mode: Option<u32>,
    /// `uid`, 0 by default.
    pub uid: Option<u32>,
    /// `gid`, 0 by default.
    pub gid: Option<u32>,
    /// `size` of a tmpfs, in bytes.
    pub size: Option<u64>,
    /// `env` of a secret: the variable that holds it. With it, there is a file only if `target` is given.
    pub env: Option<String>,
}

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MountKind {
    /// Files of the context, of a stage or an image. Writes are thrown away.
    #[default]
    Bind,
    /// A directory that stays between builds.
    Cache,
    /// An empty directory in memory.
    Tmpfs,
    /// A file that is in no layer.
    Secret,
    /// The socket of an ssh agent.
    Ssh,
}

/// How builds share a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sharing {
    /// All use it at once.
    #[default]
    Shared,
    /// Each has its own while others use it.
    Private,
    /// One after the other.
    Locked,
}

/// `COPY` and `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// `ADD`: sources may be URLs, and local archives are unpacked.
    pub is_add: bool,
    /// At least one, in order.
    pub sources: Vec<Source>,
    /// A path, relative to `WORKDIR`; as written, so that a final `/` tells a directory.
    pub destination: String,
    /// `--from`: a stage ([`BuildFile::stage`]) or an image. `None` of `ADD`.
    pub from: Option<String>,
    /// `--chown`: `user`, `user:group`, `:group`; names or numbers.
    pub chown: Option<String>,
    /// `--chmod`: octal digits (or symbols such as `u=rwX,go=rX`).
    pub chmod: Option<String>,
    /// `--link`.
    pub link: bool,
    /// `--parents`: sources keep their directories, from a `/./` in them on.
    pub parents: bool,
    /// `--exclude`, in order; for [`Ignore::new`](super::Ignore::new).
    pub exclude: Vec<String>,
    /// `--checksum` of `ADD`: `sha256:…`.
    pub checksum: Option<String>,
    /// `--keep-git-dir` of `ADD`.
    pub keep_git_dir: bool,
    /// `--unpack` of `ADD`: whether archives are unpacked. By default local ones are and those of URLs are not.
    pub unpack: Option<bool>,
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A path with wildcards ([`Pattern`](super::Pattern)), or for `ADD` a URL. Absolute ones begin at the root of the
    /// context, stage or image.
    Path(String),
    /// A file that is written in the build file itself.
    Heredoc(Heredoc),
}

/// A text within the build file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The word after `<<`, without quotes: the name of the file that `COPY` creates. It may have any characters but
    /// blanks.
    pub name: String,
    /// The text, with the final line feed, without tabs that `<<-` removes.
    pub content: String,
    /// Whether variables are replaced by [`Step::resolve`] (`COPY`, `ADD`): the name is not quoted.
    pub expand: bool,
}

/// One variable of an `ARG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// Name.
    pub name: String,
    /// Value if none is given for the build.
    pub default: Option<String>,
}

/// `HEALTHCHECK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// `NONE`: the base image's one is dropped.
    None,
    /// `CMD`.
    Test(Test),
}

/// A check. `None` is the default of whoever runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// The command, not empty.
    pub command: Command,
    /// `--interval`.
    pub interval: Option<Duration>,
    /// `--timeout`.
    pub timeout: Option<Duration>,
    /// `--start-period`.
    pub start_period: Option<Duration>,
    /// `--start-interval`.
    pub start_interval: Option<Duration>,
    /// `--retries`.
    pub retries: Option<u32>,
}

impl BuildFile {
    /// The stage that `name` means in the stage `before` (its index), or in a request if `before` is the number of
    /// stages: a name without regard to case, or else a number from 0. The last one of a name counts. `None`: no stage,
    /// so it is an image.
    pub fn stage(&self, name: &str, before: usize) -> Option<usize> {
        let stages = &self.stages[..before.min(self.stages.len())];
        let named = stages
            .iter()
            .rposition(|stage| stage.name.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(name)));
        named.or_else(|| name.parse().ok().filter(|index| *index < stages.len()))
    }
}

impl Instruction {
    /// The word it begins with.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Copy(copy) if copy.is_add => "ADD",
            Self::Copy(_) => "COPY",
            Self::Run(_) => "RUN",
            Self::Cmd(_) => "CMD",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Env(_) => "ENV",
            Self::Arg(_) => "ARG",
            Self::Label(_) => "LABEL",
            Self::Expose(_) => "EXPOSE",
            Self::Volume(_) => "VOLUME",
            Self::User(_) => "USER",
            Self::Workdir(_) => "WORKDIR",
            Self::Shell(_) => "SHELL",
            Self::StopSignal(_) => "STOPSIGNAL",
            Self::HealthCheck(_) => "HEALTHCHECK",
            Self::OnBuild(_) => "ONBUILD",
            Self::Maintainer(_) => "MAINTAINER",
        }
    }
}
