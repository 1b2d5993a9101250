//! Parses the build file (`docs/spec/api.md` 7.4). Pure; the error messages are part of the contract.
//!
//! One instruction per line. Blank lines and lines that begin with `#` are skipped, also within a continued one; `\`
//! at the end of a line joins it with the next by a space. `FROM` comes first and once.

use super::context::clean;

/// Maximum size of a build file, in bytes.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// A build file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dripfile {
    /// The base image, as written.
    pub base: String,
    /// The instructions after `FROM`, in order.
    pub steps: Vec<Step>,
}

/// One line after `FROM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// The instruction.
    pub instruction: Instruction,
    /// The joined line, for the image's history.
    pub text: String,
}

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Instruction {
    /// A directory, relative to the previous one.
    Workdir(String),
    /// Variables.
    Env(Vec<(String, String)>),
    /// `COPY` and `ADD`, which are equivalent.
    Copy {
        /// Path in the context: no leading slash, no `.`, no `..`; empty for the context itself.
        source: String,
        /// Path in the image, as written.
        destination: String,
    },
    /// The argument vector of a command that changes the image.
    Run(Vec<String>),
    /// The argument vector for `Cmd`.
    Cmd(Vec<String>),
    /// The argument vector for `Entrypoint`.
    Entrypoint(Vec<String>),
}

/// Why a build file is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DripfileError {
    /// The file is not text.
    #[error("the build file is not UTF-8 text without NUL")]
    NotText,
    /// An unknown instruction.
    #[error("unsupported instruction: {0}")]
    Unsupported(String),
    /// A second `FROM`.
    #[error("multi-stage build is not supported")]
    MultiStage,
    /// No `FROM`, or an instruction before it.
    #[error("missing FROM instruction")]
    NoFrom,
    /// `FROM` without arguments.
    #[error("FROM requires an image")]
    EmptyFrom,
    /// `COPY` with fewer than two words.
    #[error("COPY/ADD requires src and dest")]
    CopyWords,
    /// `COPY` with more than two words.
    #[error("COPY/ADD multiple sources not supported")]
    CopySources,
    /// A source that is absolute or outside the context.
    #[error("invalid path: {0}")]
    InvalidPath(String),
    /// `WORKDIR` without arguments.
    #[error("WORKDIR requires path")]
    Workdir,
    /// `ENV` without arguments, or words without `=` among words with it.
    #[error("ENV requires key=value")]
    EnvEquals,
    /// A name without a value.
    #[error("ENV requires key value")]
    EnvPair,
    /// A quote that is not closed.
    #[error("ENV has a quote that does not end: {0}")]
    OpenQuote(String),
    /// `RUN` without arguments.
    #[error("RUN requires command")]
    Run,
    /// A command without words.
    #[error("command is empty")]
    EmptyCommand,
    /// Text that begins with `[` but is not a JSON list of strings.
    #[error("invalid exec form: {0}")]
    ExecForm(String),
}

/// Parses a build file.
pub(super) fn parse(text: &[u8]) -> Result<Dripfile, DripfileError> {
    let text = std::str::from_utf8(text).map_err(|_| DripfileError::NotText)?;
    if text.contains('\0') {
        return Err(DripfileError::NotText);
    }
    let mut base = None;
    let mut steps = Vec::new();
    for line in joined_lines(text) {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((&line, ""));
        let (word, rest) = (word.to_ascii_uppercase(), rest.trim());
        if word == "FROM" {
            if base.is_some() {
                return Err(DripfileError::MultiStage);
            }
            let image = rest.split_whitespace().next().ok_or(DripfileError::EmptyFrom)?;
            base = Some(image.to_owned());
            continue;
        }
        let instruction = instruction(&word, rest)?;
        if base.is_none() {
            return Err(DripfileError::NoFrom);
        }
        steps.push(Step {
            instruction,
            text: line,
        });
    }
    let base = base.ok_or(DripfileError::NoFrom)?;
    Ok(Dripfile { base, steps })
}

fn joined_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = String::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.strip_suffix('\\') {
            Some(begun) => {
                open.push_str(begun.trim_end());
                open.push(' ');
            }
            None => lines.push(std::mem::take(&mut open) + line),
        }
    }
    if !open.trim().is_empty() {
        lines.push(open.trim_end().to_owned());
    }
    lines
}

fn instruction(word: &str, rest: &str) -> Result<Instruction, DripfileError> {
    match word {
        "WORKDIR" if rest.is_empty() => Err(DripfileError::Workdir),
        "WORKDIR" => Ok(Instruction::Workdir(rest.to_owned())),
        "ENV" => env(rest).map(Instruction::Env),
        "COPY" | "ADD" => copy(rest),
        "RUN" if rest.is_empty() => Err(DripfileError::Run),
        "RUN" => command(rest).map(Instruction::Run),
        "CMD" => command(rest).map(Instruction::Cmd),
        "ENTRYPOINT" => command(rest).map(Instruction::Entrypoint),
        other => Err(DripfileError::Unsupported(other.to_owned())),
    }
}

fn copy(rest: &str) -> Result<Instruction, DripfileError> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    match words[..] {
        [source, destination] => Ok(Instruction::Copy {
            source: within(source).ok_or_else(|| DripfileError::InvalidPath(source.to_owned()))?,
            destination: destination.to_owned(),
        }),
        [] | [_] => Err(DripfileError::CopyWords),
        _ => Err(DripfileError::CopySources),
    }
}

/// A JSON list of words, or a line for the shell.
fn command(rest: &str) -> Result<Vec<String>, DripfileError> {
    let words: Vec<String> = match rest.starts_with('[') {
        true => serde_json::from_str(rest).map_err(|e| DripfileError::ExecForm(e.to_string()))?,
        false if rest.is_empty() => Vec::new(),
        false => vec!["/bin/sh".into(), "-c".into(), rest.into()],
    };
    match words.first().is_none_or(String::is_empty) {
        true => Err(DripfileError::EmptyCommand),
        // JSON can contain NUL, which no argument can.
        false if words.iter().any(|word| word.contains('\0')) => Err(DripfileError::NotText),
        false => Ok(words),
    }
}

/// `k=v …`, or `k v …` when the first word has no `=`.
fn env(rest: &str) -> Result<Vec<(String, String)>, DripfileError> {
    let words = words(rest)?;
    let first = words.first().ok_or(DripfileError::EnvEquals)?;
    if first.contains('=') {
        let pairs = words.iter().map(|word| {
            let pair = word.split_once('=').filter(|(key, _)| !key.is_empty());
            pair.map(|(key, value)| (key.to_owned(), value.to_owned()))
        });
        return pairs.collect::<Option<_>>().ok_or(DripfileError::EnvEquals);
    }
    let pairs = words.chunks(2).map(|pair| match pair {
        [key, value] if !key.is_empty() && !key.contains('=') => Some((key.clone(), value.clone())),
        _ => None,
    });
    pairs.collect::<Option<_>>().ok_or(DripfileError::EnvPair)
}

/// Words separated by blanks; `'…'` and `"…"` keep blanks, `\` keeps the next character except within `'…'`.
fn words(text: &str) -> Result<Vec<String>, DripfileError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(characters.next()),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    match quote {
        None => Ok(words),
        Some(_) => Err(DripfileError::OpenQuote(text.to_owned())),
    }
}

/// A path of the context without `.` and `..`. `None` if it is absolute or leaves the context.
pub(super) fn within(path: &str) -> Option<String> {
    clean(path.as_bytes()).and_then(|path| String::from_utf8(path).ok())
}

/// Resolves `path` against `directory`, both in an image: absolute, without `.` and `..`.
pub(super) fn joined(directory: &str, path: &str) -> String {
    let full = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{directory}/{path}"),
    };
    let mut parts = Vec::new();
    for part in full.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| word.to_string()).collect()
    }

    /// The instructions after `FROM scratch`.
    fn steps(text: &str) -> Result<Vec<Instruction>, String> {
        let file = parse(format!("FROM scratch\n{text}").as_bytes()).map_err(|e| e.to_string())?;
        Ok(file.steps.into_iter().map(|step| step.instruction).collect())
    }

    #[test]
    fn a_whole_file() {
        let text = "\n# a comment\n  from busybox:latest AS ignored\r\nENV A=1 B=two\nworkdir /app\nCOPY ./x/../hello.txt .\n\
                    ADD dir/ /srv/\nRUN echo  'a  b' \\\n# within\n\n   && true\nRUN [\"/bin/true\", \"a b\"]\n\
                    ENTRYPOINT exec httpd\nCMD [\"-f\"]";
        let file = parse(text.as_bytes()).unwrap();
        assert_eq!(file.base, "busybox:latest");
        let copy = |source: &str, destination: &str| Instruction::Copy {
            source: source.into(),
            destination: destination.into(),
        };
        let shell = |line: &str| strings(&["/bin/sh", "-c", line]);
        let wanted = [
            Instruction::Env(vec![("A".into(), "1".into()), ("B".into(), "two".into())]),
            Instruction::Workdir("/app".into()),
            copy("hello.txt", "."),
            copy("dir", "/srv/"),
            Instruction::Run(shell("echo  'a  b' && true")),
            Instruction::Run(strings(&["/bin/true", "a b"])),
            Instruction::Entrypoint(shell("exec httpd")),
            Instruction::Cmd(strings(&["-f"])),
        ];
        let found: Vec<_> = file.steps.iter().map(|step| step.instruction.clone()).collect();
        assert_eq!(found, wanted);
        assert_eq!(file.steps[4].text, "RUN echo  'a  b' && true");
    }

    #[rstest]
    #[case("", "missing FROM instruction")]
    #[case("# only a comment", "missing FROM instruction")]
    #[case("ENV A=1\n", "missing FROM instruction")]
    #[case("COPY a b\nFROM x", "missing FROM instruction")]
    #[case("FROM", "FROM requires an image")]
    #[case("FROM \\\n", "FROM requires an image")]
    #[case("FROM busybox\nFROM busybox\n", "multi-stage build is not supported")]
    #[case("FROM busybox\nEXPOSE 80\n", "unsupported instruction: EXPOSE")]
    #[case("arg X\nFROM busybox\n", "unsupported instruction: ARG")]
    #[case("FROM x\nCOPY a", "COPY/ADD requires src and dest")]
    #[case("FROM x\nADD", "COPY/ADD requires src and dest")]
    #[case("FROM x\nCOPY a b c", "COPY/ADD multiple sources not supported")]
    #[case("FROM x\nCOPY ../../etc/passwd /p", "invalid path: ../../etc/passwd")]
    #[case("FROM x\nCOPY a/../../b /p", "invalid path: a/../../b")]
    #[case("FROM x\nADD /etc/passwd /p", "invalid path: /etc/passwd")]
    #[case("FROM x\nWORKDIR", "WORKDIR requires path")]
    #[case("FROM x\nENV", "ENV requires key=value")]
    #[case("FROM x\nENV A=1 B", "ENV requires key=value")]
    #[case("FROM x\nENV =1", "ENV requires key=value")]
    #[case("FROM x\nENV A", "ENV requires key value")]
    #[case("FROM x\nENV A 1 B", "ENV requires key value")]
    #[case("FROM x\nENV A=\"b", "ENV has a quote that does not end: A=\"b")]
    #[case("FROM x\nRUN", "RUN requires command")]
    #[case("FROM x\nRUN []", "command is empty")]
    #[case("FROM x\nCMD", "command is empty")]
    #[case("FROM x\nENTRYPOINT [\"\"]", "command is empty")]
    fn what_is_refused(#[case] text: &str, #[case] message: &str) {
        assert_eq!(parse(text.as_bytes()).unwrap_err().to_string(), message);
    }

    #[test]
    fn what_is_no_list_of_strings_is_no_exec_form() {
        for line in ["RUN [", "CMD [1]", "RUN [ -f x ] && true"] {
            let error = steps(line).unwrap_err();
            assert!(error.starts_with("invalid exec form: "), "{error}");
        }
    }

    #[test]
    fn bytes_that_are_no_text() {
        for bytes in [&b"FROM \xff"[..], b"FROM a\0b", b"FROM a\nRUN [\"\\u0000\"]"] {
            assert_eq!(parse(bytes), Err(DripfileError::NotText));
        }
    }

    #[rstest]
    #[case("ENV X \\\n 1", &[("X", "1")])]
    #[case("ENV A b C d", &[("A", "b"), ("C", "d")])]
    #[case("ENV A= B==x", &[("A", ""), ("B", "=x")])]
    #[case(r#"ENV A="b c" D='e "f"' G=h\ i"#, &[("A", "b c"), ("D", "e \"f\""), ("G", "h i")])]
    #[case(r#"ENV A "b \" c""#, &[("A", "b \" c")])]
    fn variables(#[case] line: &str, #[case] wanted: &[(&str, &str)]) {
        let wanted = wanted.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        assert_eq!(steps(line), Ok(vec![Instruction::Env(wanted)]));
    }

    #[test]
    fn paths_of_an_image() {
        for (directory, path, wanted) in [
            ("/", "app", "/app"),
            ("/app", ".", "/app"),
            ("/app", "../x//y/", "/x/y"),
            ("/app", "/etc/./z", "/etc/z"),
            ("/", "../../..", "/"),
        ] {
            assert_eq!(joined(directory, path), wanted);
        }
    }
}
