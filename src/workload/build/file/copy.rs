//! `COPY` and `ADD`.

use super::ast::{Copy, Source};
use super::error::{Problem, shown};
use super::exec_form;
use super::flags::{Flags, Takes};
use super::heredoc::{self, Mark};
use super::ignore::Ignore;
use super::words::by_blanks;

/// Flags of `COPY`.
pub(super) const COPY_FLAGS: [(&str, Takes); 6] = [
    ("from", Takes::Value),
    ("chown", Takes::Value),
    ("chmod", Takes::Value),
    ("link", Takes::Switch),
    ("parents", Takes::Switch),
    ("exclude", Takes::Values),
];

/// Flags of `ADD`.
pub(super) const ADD_FLAGS: [(&str, Takes); 7] = [
    ("chown", Takes::Value),
    ("chmod", Takes::Value),
    ("link", Takes::Switch),
    ("exclude", Takes::Values),
    ("checksum", Takes::Value),
    ("keep-git-dir", Takes::Switch),
    ("unpack", Takes::Switch),
];

/// Parses what follows the flags.
pub(super) fn parse(is_add: bool, flags: &Flags, rest: &str, heredocs: &[(Mark, String)]) -> Result<Copy, Problem> {
    let mut words = match exec_form::list(rest)? {
        Some(words) => words,
        None => by_blanks(rest),
    };
    let destination = words.pop().filter(|_| !words.is_empty());
    let destination = destination.ok_or_else(|| Problem::new("COPY/ADD requires src and dest"))?;
    if heredoc::mark(&destination).is_some() {
        return Err(Problem::new("COPY/ADD requires src and dest, and a heredoc is no dest"));
    }
    let sources = words.into_iter().map(|word| {
        let Some(mark) = heredoc::mark(&word) else {
            return Ok(Source::Path(word));
        };
        // The last one of a name.
        let found = heredocs.iter().rfind(|(own, _)| own.name == mark.name);
        let content = found.map(|(_, content)| &content[..]);
        let content = content.ok_or_else(|| Problem::new(format!("a heredoc without its text: {}", shown(&word))))?;
        Ok(Source::Heredoc(mark.with(content)))
    });
    let from = flags.one("from").filter(|from| !from.is_empty());
    if from.as_ref().is_some_and(|from| from.contains('$')) {
        let message = "--from has no variables; give the image a stage of its own, FROM $IMAGE AS name";
        return Err(Problem::new(message));
    }
    let exclude = flags.many("exclude");
    Ignore::new(exclude.iter().map(String::as_str)).map_err(|error| Problem::new(format!("--exclude: {error}")))?;
    let given = |name| flags.one(name).filter(|value| !value.is_empty());
    Ok(Copy {
        is_add,
        sources: sources.collect::<Result<_, Problem>>()?,
        destination,
        from,
        chown: given("chown"),
        chmod: given("chmod"),
        link: flags.switch("link") == Some(true),
        parents: flags.switch("parents") == Some(true),
        exclude,
        checksum: given("checksum"),
        keep_git_dir: flags.switch("keep-git-dir") == Some(true),
        unpack: flags.switch("unpack"),
    })
}

/// Whether an `ADD` downloads it.
pub(super) fn is_remote(source: &str) -> bool {
    let schemes = ["http://", "https://", "git://", "ssh://", "git@"];
    schemes.iter().any(|scheme| source.starts_with(scheme))
}

/// A source of the context must not leave it.
pub(super) fn check_source(source: &str, copy: &Copy) -> Result<(), Problem> {
    if copy.from.is_some() || copy.is_add && is_remote(source) {
        return Ok(());
    }
    let mut depth = 0usize;
    for part in source.split('/') {
        match part {
            "" | "." => {}
            ".." if depth == 0 => {
                let message = format!("invalid path: {}; it leaves the build context", shown(source));
                return Err(Problem::new(message));
            }
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    Ok(())
}

/// Octal digits, or symbols as of `chmod`.
pub(super) fn check_mode(mode: &str) -> Result<(), Problem> {
    let octal = matches!(mode.len(), 1..=5) && u32::from_str_radix(mode, 8).is_ok_and(|mode| mode <= 0o7777);
    let symbols = mode.split(',').all(|clause| {
        let operator = clause.find(['+', '-', '=']);
        operator.is_some_and(|at| {
            let (who, rest) = clause.split_at(at);
            let mut what = rest.chars();
            who.chars().all(|c| "ugoa".contains(c)) && what.all(|c| "+-=rwxXstugo".contains(c))
        })
    });
    match octal && !mode.starts_with('+') || symbols {
        true => Ok(()),
        false => {
            let message = format!("--chmod is a mode such as 755 or u=rwX,go=rX, not {}", shown(mode));
            Err(Problem::new(message))
        }
    }
}

/// `sha256:` and 64 hexadecimal digits, or a longer digest.
pub(super) fn check_checksum(checksum: &str) -> Result<(), Problem> {
    let length = |kind: &str| match kind {
        "sha256" => Some(64),
        "sha384" => Some(96),
        "sha512" => Some(128),
        _ => None,
    };
    let valid = checksum.split_once(':').is_some_and(|(kind, digits)| {
        length(kind) == Some(digits.len()) && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    match valid {
        true => Ok(()),
        false => {
            let message = format!(
                "--checksum is sha256: and 64 hexadecimal digits, not {}",
                shown(checksum)
            );
            Err(Problem::new(message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for mode in [
            "755",
            "0644",
            "7777",
            "00755",
            "u=rwX,go=rX",
            "a+x",
            "+x",
            "u-s,o=",
            "g=u",
        ] {
            assert_eq!(check_mode(mode), Ok(()), "{mode}");
        }
        for mode in ["", "888", "17777", "+755", "rwx", "u=q", "755,u+x", "z+x", "-1"] {
            assert!(check_mode(mode).is_err(), "{mode}");
        }
    }
}
