//! From one line to an instruction.

use super::ast::{Arg, Command, Instruction, Run, RunCommand, RunNetwork, RunSecurity, Step};
use super::error::{FileError, Problem, shown};
use super::flags::{self, Flags, Takes};
use super::lexer::Lookup;
use super::limits::FILE_BYTES;
use super::lines::{Line, Lines};
use super::resolver::Resolver;
use super::words::{by_blanks, quoted, split_name};
use super::{copy, exec_form, health, heredoc, mount, nearest};

const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

const RUN_FLAGS: [(&str, Takes); 3] = [
    ("mount", Takes::Values),
    ("network", Takes::Value),
    ("security", Takes::Value),
];

/// A line that is an instruction.
pub(super) struct Words<'a> {
    pub name: &'static str,
    flags: Vec<String>,
    rest: &'a str,
    line: &'a Line,
    escape: char,
}

/// What a `FROM` says.
pub(super) struct From {
    pub base: String,
    pub platform: Option<String>,
    pub name: Option<String>,
}

impl<'a> Words<'a> {
    pub(super) fn new(line: &'a Line, escape: char) -> Result<Self, Problem> {
        let (word, rest) = split_name(&line.text);
        let Some(name) = NAMES.iter().find(|name| name.eq_ignore_ascii_case(word)) else {
            let word = shown(&word.to_uppercase());
            let hint = nearest::hint(&word, &NAMES, "");
            return Err(Problem::new(format!("unsupported instruction: {word}{hint}")));
        };
        let (flags, rest) = flags::take(rest, escape);
        Ok(Self {
            name,
            flags,
            rest: rest.trim(),
            line,
            escape,
        })
    }

    /// The flags, or what is wrong with them.
    fn flags(&self) -> Result<Flags, Problem> {
        let known: &[_] = match self.name {
            "FROM" => &[("platform", Takes::Value)],
            "RUN" => &RUN_FLAGS,
            "COPY" => &copy::COPY_FLAGS,
            "ADD" => &copy::ADD_FLAGS,
            "HEALTHCHECK" => &health::FLAGS,
            _ => &[],
        };
        Flags::new(&self.flags, known)
    }

    /// A `FROM`.
    pub(super) fn from(&self) -> Result<From, Problem> {
        let flags = self.flags()?;
        let words = by_blanks(self.rest);
        let (base, name) = match &words[..] {
            [] => return Err(Problem::new("FROM requires an image")),
            [base] => (base, None),
            [base, word, name] if word.eq_ignore_ascii_case("as") => (base, Some(stage_name(name)?)),
            _ => {
                return Err(Problem::new(
                    "FROM requires an image, or an image AS a name, and nothing else",
                ));
            }
        };
        let platform = flags.one("platform").filter(|platform| !platform.is_empty());
        Resolver::new(self.escape, Lookup::Syntax).stage(base, platform.as_deref())?;
        Ok(From {
            base: base.clone(),
            platform,
            name,
        })
    }

    /// Any other instruction, checked as far as it can be without values of variables.
    pub(super) fn instruction(&self) -> Result<Instruction, Problem> {
        let instruction = self.parsed()?;
        Resolver::new(self.escape, Lookup::Syntax).instruction(&instruction)?;
        Ok(instruction)
    }

    fn parsed(&self) -> Result<Instruction, Problem> {
        let flags = self.flags()?;
        let rest = self.rest;
        let required = |what: &str| match rest {
            "" => Err(Problem::new(format!("{} requires {what}", self.name))),
            rest => Ok(rest.to_owned()),
        };
        Ok(match self.name {
            "COPY" | "ADD" => {
                let is_add = self.name == "ADD";
                Instruction::Copy(Box::new(copy::parse(is_add, &flags, rest, &self.line.heredocs)?))
            }
            "RUN" => Instruction::Run(Box::new(self.run(&flags)?)),
            "CMD" => Instruction::Cmd(self.command()?),
            "ENTRYPOINT" => Instruction::Entrypoint(self.command()?),
            "ENV" => Instruction::Env(self.pairs()?),
            "LABEL" => Instruction::Label(self.pairs()?),
            "ARG" => Instruction::Arg(self.args()?),
            "EXPOSE" => Instruction::Expose(by_blanks(&required("a port")?)),
            "VOLUME" => {
                let listed = exec_form::list(&required("a path")?)?;
                let paths: Vec<String> = listed.unwrap_or_else(|| by_blanks(rest));
                let paths: Vec<String> = paths.iter().map(|path| path.trim().to_owned()).collect();
                if paths.is_empty() || paths.contains(&String::new()) {
                    return Err(Problem::new("VOLUME requires a path"));
                }
                Instruction::Volume(paths)
            }
            "USER" => Instruction::User(required("a user")?),
            "WORKDIR" => Instruction::Workdir(required("path")?),
            "SHELL" => {
                let words = exec_form::list(&required("a JSON list of words")?)?.filter(|words| !words.is_empty());
                let message = "SHELL requires a JSON list of words, as [\"/bin/bash\", \"-c\"]";
                Instruction::Shell(words.ok_or_else(|| Problem::new(message))?)
            }
            "STOPSIGNAL" => Instruction::StopSignal(required("a signal")?),
            "HEALTHCHECK" => Instruction::HealthCheck(health::parse(&flags, rest)?),
            "ONBUILD" => Instruction::OnBuild(self.trigger(&required("an instruction")?)?),
            // Only `MAINTAINER` is left: `FROM` is no instruction of a stage.
            _ => Instruction::Maintainer(required("a name")?),
        })
    }

    fn run(&self, flags: &Flags) -> Result<Run, Problem> {
        if self.rest.is_empty() {
            return Err(Problem::new("RUN requires command"));
        }
        let network = match flags.one("network").as_deref() {
            None | Some("default") => RunNetwork::Default,
            Some("none") => RunNetwork::None,
            Some("host") => RunNetwork::Host,
            Some(other) => {
                let message = format!("--network is default, none or host, not {}", shown(other));
                return Err(Problem::new(message));
            }
        };
        let security = match flags.one("security").as_deref() {
            None | Some("sandbox") => RunSecurity::Sandbox,
            Some("insecure") => RunSecurity::Insecure,
            Some(other) => {
                let message = format!("--security is sandbox or insecure, not {}", shown(other));
                return Err(Problem::new(message));
            }
        };
        let mounts = flags.many("mount").into_iter();
        let mounts = mounts.map(|text| mount::parse(&text, &mut Resolver::new(self.escape, Lookup::Syntax)));
        Ok(Run {
            command: self.run_command()?,
            mounts: mounts.collect::<Result<_, _>>()?,
            network,
            security,
        })
    }

    /// A single heredoc is the command itself. Others are put where a shell looks for them.
    fn run_command(&self) -> Result<RunCommand, Problem> {
        let heredocs = &self.line.heredocs;
        if let ([(mark, content)], Some(_)) = (&heredocs[..], heredoc::mark(self.rest)) {
            let heredoc = mark.with(content);
            return Ok(match heredoc.content.starts_with("#!") {
                true => RunCommand::Script(heredoc),
                false => RunCommand::Command(Command::Shell(heredoc.content)),
            });
        }
        if heredocs.is_empty() {
            let command = self.command()?;
            let none = matches!(&command, Command::Exec(words) if words.first().is_none_or(String::is_empty));
            return match none {
                true => Err(Problem::new("command is empty")),
                false => Ok(RunCommand::Command(command)),
            };
        }
        let mut line = self.rest.to_owned();
        for (mark, content) in heredocs {
            line = line + "\n" + content + &mark.name;
        }
        Ok(RunCommand::Command(Command::Shell(line)))
    }

    fn command(&self) -> Result<Command, Problem> {
        match exec_form::list(self.rest)? {
            Some(words) => Ok(Command::Exec(words)),
            None if self.rest.is_empty() => Err(Problem::new("command is empty")),
            None => Ok(Command::Shell(self.rest.to_owned())),
        }
    }

    /// `k=v …`, or `k` and the rest of the line if the first word has no `=`.
    fn pairs(&self) -> Result<Vec<(String, String)>, Problem> {
        let name = self.name;
        let words = quoted(self.rest, self.escape);
        let wrong = |word: &str| Problem::new(format!("{name} requires key=value, not {}", shown(word)));
        let Some(first) = words.first() else {
            return Err(Problem::new(format!("{name} requires key=value")));
        };
        if !first.contains('=') {
            let (key, value) = split_name(self.rest);
            return match value {
                "" => Err(Problem::new(format!(
                    "{name} requires key value, and {} is alone",
                    shown(key)
                ))),
                value => Ok(vec![(key.to_owned(), value.to_owned())]),
            };
        }
        let pairs = words.iter().map(|word| {
            let pair = word.split_once('=').filter(|(key, _)| !key.is_empty());
            let pair = pair.map(|(key, value)| (key.to_owned(), value.to_owned()));
            pair.ok_or_else(|| wrong(word))
        });
        pairs.collect()
    }

    fn args(&self) -> Result<Vec<Arg>, Problem> {
        let words = quoted(self.rest, self.escape);
        if words.is_empty() {
            return Err(Problem::new("ARG requires a name"));
        }
        let args = words.iter().map(|word| {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name, Some(default.to_owned())),
                None => (&word[..], None),
            };
            match name.is_empty() {
                true => Err(Problem::new(format!("ARG requires a name before {}", shown(word)))),
                false => Ok(Arg {
                    name: name.to_owned(),
                    default,
                }),
            }
        });
        args.collect()
    }

    /// A trigger has its heredocs with it: it is parsed again wherever it is used.
    fn trigger(&self, rest: &str) -> Result<String, Problem> {
        let mut trigger = rest.to_owned();
        for (mark, content) in &self.line.heredocs {
            trigger = trigger + "\n" + content + &mark.name;
        }
        match parse_trigger("", &trigger) {
            Ok(_) => Ok(trigger),
            Err(error) => Err(error.problem),
        }
    }
}

/// A letter, then letters, digits, `-`, `_` and `.`; in lower case.
fn stage_name(name: &str) -> Result<String, Problem> {
    let lower = name.to_lowercase();
    let first = lower.starts_with(|c: char| c.is_ascii_lowercase());
    let all = lower
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'));
    match first && all {
        true => Ok(lower),
        false => {
            let name = shown(name);
            let message = format!("invalid name of a stage: {name}; it is a letter, then letters, digits, -, _ and .");
            Err(Problem::new(message))
        }
    }
}

/// Parses an `ONBUILD` of a base image, such as `COPY . /app`: one instruction, and not `FROM`, `MAINTAINER` or
/// `ONBUILD`. `name` is what errors call it, as `ONBUILD of IMAGE`.
pub fn parse_trigger(name: &str, text: &str) -> Result<Step, FileError> {
    let whole = |problem: Problem| problem.at(name, 0, "");
    if text.len() as u64 > FILE_BYTES || text.contains('\0') {
        return Err(whole(Problem::not_text()));
    }
    let mut lines = Lines::new(text);
    let line = lines.next().map_err(|(_, problem)| whole(problem))?;
    let line = line.ok_or_else(|| whole(Problem::new("ONBUILD requires an instruction")))?;
    if lines.next().map_err(|(_, problem)| whole(problem))?.is_some() {
        return Err(whole(Problem::new("ONBUILD has one instruction, and here are more")));
    }
    let words = Words::new(&line, lines.escape()).map_err(whole)?;
    if let "FROM" | "MAINTAINER" | "ONBUILD" = words.name {
        let message = format!("{} cannot be an instruction of ONBUILD", words.name);
        return Err(whole(Problem::new(message)));
    }
    let instruction = words.instruction().map_err(|problem| problem.at(name, 0, words.name))?;
    Ok(Step {
        line: 0,
        instruction,
        file: name.to_owned(),
        escape: lines.escape(),
        text: line.text.clone(),
    })
}
