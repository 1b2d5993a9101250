//! Replaces the variables of instructions.

use super::ast::{BuildFile, Copy, GlobalArg, Heredoc, Instruction, Run, Source, Stage, Step};
use super::copy;
use super::error::{FileError, Problem, shown};
use super::expose;
use super::lexer::{Lexer, Lookup, Quotes, Vars};
use super::mount;
use super::resolver::Resolver;
use super::signal;

impl BuildFile {
    /// The default of a global `ARG` with its variables replaced: the values of those before it.
    pub fn resolve_global(&self, global: &GlobalArg, vars: &Vars<'_>) -> Result<Option<String>, FileError> {
        let mut resolver = Resolver::new(self.escape, Lookup::Values(vars));
        let value = global.arg.default.as_deref().map(|default| resolver.word(default));
        value
            .transpose()
            .map_err(|problem| problem.at(&self.name, global.line, "ARG"))
    }

    /// Base (not empty) and platform of a stage with their variables replaced: the global `ARG`s and those that are
    /// predefined.
    pub fn resolve_stage(&self, stage: &Stage, vars: &Vars<'_>) -> Result<(String, Option<String>), FileError> {
        let resolver = Resolver::new(self.escape, Lookup::Values(vars));
        let resolved = resolver.stage(&stage.base, stage.platform.as_deref());
        resolved.map_err(|problem| problem.at(&self.name, stage.line, "FROM"))
    }
}

impl Step {
    /// The instruction with its variables replaced by those that hold before it (`ENV` over `ARG`). What has no
    /// variables is as it was: the commands of `RUN`, `CMD`, `ENTRYPOINT`, `HEALTHCHECK` and `SHELL`, `ONBUILD`,
    /// `MAINTAINER`, and names of `ARG`s.
    ///
    /// The default of an `ARG` need not be right if another value is given: take out the `ARG`s that have one first, or
    /// use [`Step::resolve_default`].
    pub fn resolve(&self, vars: &Vars<'_>) -> Result<Instruction, FileError> {
        let mut resolver = Resolver::new(self.escape, Lookup::Values(vars));
        resolver
            .instruction(&self.instruction)
            .map_err(|problem| self.fails(problem))
    }

    /// The default of one variable of an `ARG`.
    pub fn resolve_default(&self, default: &str, vars: &Vars<'_>) -> Result<String, FileError> {
        let mut resolver = Resolver::new(self.escape, Lookup::Values(vars));
        resolver.word(default).map_err(|problem| self.fails(problem))
    }

    /// The error that this instruction fails with this sentence: for what only its execution shows.
    pub fn fails(&self, problem: Problem) -> FileError {
        problem.at(&self.file, self.line, self.instruction.name())
    }
}

impl Resolver<'_> {
    /// The instruction with its variables replaced.
    pub(super) fn instruction(&mut self, instruction: &Instruction) -> Result<Instruction, Problem> {
        use Instruction as I;
        Ok(match instruction {
            I::Copy(copy) => I::Copy(Box::new(self.copy(copy)?)),
            I::Run(run) => I::Run(Box::new(self.run(run)?)),
            I::Env(pairs) => I::Env(self.pairs(pairs, "ENV requires key=value")?),
            I::Label(pairs) => I::Label(self.pairs(pairs, "LABEL requires key=value")?),
            I::Arg(args) => {
                let mut args = args.clone();
                // Which defaults are used is known only when there are values.
                if !matches!(self.lexer.lookup, Lookup::Syntax) {
                    for arg in &mut args {
                        arg.default = self.some(arg.default.as_ref())?;
                    }
                }
                I::Arg(args)
            }
            I::Expose(words) => I::Expose(expose::ports(words, self)?),
            I::Volume(paths) => {
                let resolved = self.all(paths)?;
                if paths
                    .iter()
                    .zip(&resolved)
                    .any(|(path, to)| to.is_empty() && self.knows(path))
                {
                    return Err(Problem::new("VOLUME requires a path, and one is empty"));
                }
                I::Volume(resolved)
            }
            I::User(user) => I::User(self.word(user)?),
            I::Workdir(path) => I::Workdir(self.word(path)?),
            I::StopSignal(written) => {
                let signal = self.word(written)?;
                if self.knows(written) {
                    signal::check(&signal)?;
                }
                I::StopSignal(signal)
            }
            I::Cmd(_) | I::Entrypoint(_) | I::Shell(_) | I::HealthCheck(_) | I::OnBuild(_) | I::Maintainer(_) => {
                instruction.clone()
            }
        })
    }

    fn pairs(&mut self, pairs: &[(String, String)], nameless: &str) -> Result<Vec<(String, String)>, Problem> {
        let pairs = pairs.iter().map(|(key, value)| {
            let resolved = self.word(key)?;
            if self.knows(key) && (resolved.is_empty() || resolved.contains('=')) {
                let message = format!("{nameless}, and {} is no key", shown(key));
                return Err(Problem::new(message));
            }
            Ok((resolved, self.word(value)?))
        });
        pairs.collect()
    }

    fn run(&mut self, run: &Run) -> Result<Run, Problem> {
        let mounts = run.mounts.iter().map(|mount| mount::parse(&mount.text, self));
        Ok(Run {
            mounts: mounts.collect::<Result<_, _>>()?,
            ..run.clone()
        })
    }

    fn copy(&mut self, copy: &Copy) -> Result<Copy, Problem> {
        let sources = copy.sources.iter().map(|source| match source {
            Source::Path(path) => {
                let resolved = self.word(path)?;
                if self.knows(path) {
                    copy::check_source(&resolved, copy)?;
                }
                Ok(Source::Path(resolved))
            }
            Source::Heredoc(heredoc) => Ok(Source::Heredoc(self.heredoc(heredoc)?)),
        });
        let resolved = Copy {
            sources: sources.collect::<Result<_, Problem>>()?,
            destination: self.word(&copy.destination)?,
            chown: self.some(copy.chown.as_ref())?,
            chmod: self.some(copy.chmod.as_ref())?,
            checksum: self.some(copy.checksum.as_ref())?,
            ..copy.clone()
        };
        if let (Some(written), Some(mode)) = (&copy.chmod, &resolved.chmod)
            && self.knows(written)
        {
            copy::check_mode(mode)?;
        }
        if let (Some(written), Some(checksum)) = (&copy.checksum, &resolved.checksum)
            && self.knows(written)
        {
            copy::check_checksum(checksum)?;
        }
        Ok(resolved)
    }

    /// Quotes are part of the text, and the escape character is `\` whatever the directive says.
    fn heredoc(&mut self, heredoc: &Heredoc) -> Result<Heredoc, Problem> {
        if !heredoc.expand {
            return Ok(heredoc.clone());
        }
        let lexer = Lexer {
            escape: '\\',
            quotes: Quotes::Ordinary,
            ..self.lexer
        };
        let content = lexer.word(&heredoc.content, &mut self.budget);
        let name = shown(&heredoc.name);
        Ok(Heredoc {
            content: content.map_err(|problem| Problem::new(format!("{problem}, in the heredoc {name}")))?,
            ..heredoc.clone()
        })
    }
}
