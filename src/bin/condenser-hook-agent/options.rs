//! Parses the command line: `--x v` or `--x=v`, with one or two dashes (`docs/spec/runtime.md` 6.2 and 7.1).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The text that `--help` prints.
pub const USAGE: &str = "Usage of condenser-hook-agent:
  --url URL      where to post
  --event EVENT  requestCert, createRuntime, createContainer, poststart, stopContainer or poststop
  --ca FILE      the server certificate to trust, PEM
  --cert FILE    client certificate, PEM
  --key FILE     its key, PEM
The state of the container is read from standard input.";

/// The options. All are required.
#[derive(Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the usage text explains them")]
pub struct Options {
    pub url: String,
    pub event: String,
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Why a command line cannot be parsed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Help was requested.
    #[error("{USAGE}")]
    Help,
    /// The option does not exist.
    #[error("flag provided but not defined: -{0}\n{USAGE}")]
    Unknown(String),
    /// The last option has no value.
    #[error("flag needs an argument: -{0}\n{USAGE}")]
    NoValue(String),
    /// An option is missing or empty.
    #[error("required flags: --url --event --ca --cert --key")]
    Missing,
}

impl Options {
    /// Parses `argv`, with the program's name first. Some runtimes prepend the program's path to arguments that already
    /// begin
    /// with it, so one repetition of it is skipped. Options end at the first other word.
    pub fn parse(argv: &[OsString]) -> Result<Self, OptionsError> {
        let mut words = argv.iter().map(|word| word.to_string_lossy().into_owned());
        let program = words.next().unwrap_or_default();
        let mut words = words.peekable();
        words.next_if(|first| Path::new(first).file_name() == Path::new(&program).file_name());

        let mut values: [String; 5] = Default::default();
        while let Some(word) = words.next() {
            let Some((name, inline)) = option(&word) else { break };
            let Some(index) = NAMES.iter().position(|known| *known == name) else {
                return Err(match name {
                    "h" | "help" => OptionsError::Help,
                    _ => OptionsError::Unknown(name.to_owned()),
                });
            };
            let value = inline.map(str::to_owned).or_else(|| words.next());
            values[index] = value.ok_or_else(|| OptionsError::NoValue(name.to_owned()))?;
        }
        if values.iter().any(String::is_empty) {
            return Err(OptionsError::Missing);
        }
        let [url, event, ca, cert, key] = values;
        Ok(Self {
            url,
            event,
            ca: ca.into(),
            cert: cert.into(),
            key: key.into(),
        })
    }
}

const NAMES: [&str; 5] = ["url", "event", "ca", "cert", "key"];

/// Splits an option into name and inline value. `--` and `-` are not options.
fn option(word: &str) -> Option<(&str, Option<&str>)> {
    let text = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    match text.split_once('=') {
        _ if text.is_empty() => None,
        Some((name, value)) => Some((name, Some(value))),
        None => Some((text, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn parse(words: &[&str]) -> Result<Options, OptionsError> {
        Options::parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn all() -> Options {
        Options {
            url: "u".into(),
            event: "e".into(),
            ca: "c".into(),
            cert: "x".into(),
            key: "k".into(),
        }
    }

    #[rstest]
    #[case::plain("/bin/agent --url u --event e --ca c --cert x --key k")]
    #[case::inline("/bin/agent --url=u --event=e --ca=c --cert=x --key=k")]
    #[case::one_dash("/bin/agent -url u -event=e -ca c -cert x -key k")]
    #[case::repeated_path("/bin/agent /bin/agent --url u --event e --ca c --cert x --key k")]
    #[case::repeated_name("agent /usr/local/bin/agent --url u --event e --ca c --cert x --key k")]
    #[case::the_last_wins("agent --url first --url u --event e --ca c --cert x --key k")]
    #[case::words_after("agent --url u --event e --ca c --cert x --key k word --nope")]
    fn spellings(#[case] line: &str) {
        assert_eq!(parse(&line.split(' ').collect::<Vec<_>>()), Ok(all()));
    }

    #[rstest]
    #[case::nothing("agent", OptionsError::Missing)]
    #[case::one_missing("agent --url u --event e --ca c --cert x", OptionsError::Missing)]
    #[case::empty("agent --url u --event= --ca c --cert x --key k", OptionsError::Missing)]
    #[case::another_word("agent other --url u --event e --ca c --cert x --key k", OptionsError::Missing)]
    #[case::skipped_once("agent agent agent --url u --event e --ca c --cert x --key k", OptionsError::Missing)]
    #[case::ended("agent -- --url u --event e --ca c --cert x --key k", OptionsError::Missing)]
    #[case::unknown("agent --url u --nope", OptionsError::Unknown("nope".into()))]
    #[case::no_value("agent --url", OptionsError::NoValue("url".into()))]
    #[case::help("agent --help", OptionsError::Help)]
    fn refusals(#[case] line: &str, #[case] error: OptionsError) {
        assert_eq!(parse(&line.split(' ').collect::<Vec<_>>()), Err(error));
    }

    #[test]
    fn a_value_may_look_like_an_option() {
        let options = parse(&[
            "a", "--url", "-x", "--event", "--ca", "--ca", "c=d", "--cert", "", "--cert=x", "--key=k=",
        ]);
        let options = options.unwrap();
        assert_eq!((options.url.as_str(), options.event.as_str()), ("-x", "--ca"));
        assert_eq!((options.ca, options.key), ("c=d".into(), "k=".into()));
    }
}
