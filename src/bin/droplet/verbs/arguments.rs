//! Parses the command line of a verb (`docs/spec/runtime.md` 4.1). Options come first. Everything after the first
//! positional argument is positional too. A long option has one or two dashes; its value follows as `--name value` or
//! `--name=value`.

use crate::report::failure::Failure;

/// An option that a verb accepts.
#[derive(Debug, Clone, Copy)]
pub enum Opt {
    /// An option without a value. All names are aliases of the first one.
    Flag(&'static [&'static str]),
    /// An option with a value.
    Value(&'static str),
}

/// The parsed command line of one verb.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    options: Vec<(&'static str, String)>,
    /// The arguments after the options.
    pub positional: Vec<String>,
}

impl Args {
    /// Parses the arguments that follow the name of the verb.
    pub fn parse(known: &[Opt], arguments: &[String]) -> Result<Self, Failure> {
        let mut args = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let Some(text) = argument.strip_prefix('-').filter(|text| !text.is_empty()) else {
                args.positional.push(argument.clone());
                break;
            };
            if text == "-" {
                break;
            }
            let text = text.strip_prefix('-').unwrap_or(text);
            let (name, inline) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (text, None),
            };
            args.options.push(option(known, name, inline, &mut arguments)?);
        }
        args.positional.extend(arguments.cloned());
        Ok(args)
    }

    /// Returns whether the flag is set.
    pub fn flag(&self, name: &str) -> bool {
        self.options.iter().any(|(n, value)| *n == name && value != "false")
    }

    /// Returns the last value of an option.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.options
            .iter()
            .rev()
            .find(|(n, _)| *n == name)
            .map(|(_, value)| value.as_str())
    }

    /// Returns all values of an option, in order.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.options
            .iter()
            .filter(move |(n, _)| *n == name)
            .map(|(_, value)| value.as_str())
    }

    /// Returns the container id, which must be the only positional argument.
    pub fn id(&self) -> Result<&str, Failure> {
        match self.positional.as_slice() {
            [id] => Ok(id),
            [] => Err(Failure::usage("a container id is required")),
            [_, extra, ..] => Err(Failure::usage(format!("unexpected argument: {extra}"))),
        }
    }
}

fn option<'a>(
    known: &[Opt],
    name: &str,
    inline: Option<String>,
    arguments: &mut impl Iterator<Item = &'a String>,
) -> Result<(&'static str, String), Failure> {
    for option in known {
        match option {
            Opt::Flag(names) if names.contains(&name) => return Ok((names[0], inline.unwrap_or_default())),
            Opt::Value(known) if *known == name => {
                let value = inline.or_else(|| arguments.next().cloned());
                let value = value.ok_or_else(|| Failure::usage(format!("flag needs an argument: -{name}")))?;
                return Ok((known, value));
            }
            _ => {}
        }
    }
    Err(Failure::usage(format!("flag provided but not defined: -{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Opt] = &[Opt::Flag(&["tty", "t"]), Opt::Value("mount")];

    fn parse(arguments: &[&str]) -> Result<Args, Failure> {
        Args::parse(KNOWN, &arguments.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_end_at_the_first_positional_argument() {
        let args = parse(&["-t", "id", "ls", "-t", "--mount"]).unwrap();
        assert!(args.flag("tty"));
        assert_eq!(args.positional, ["id", "ls", "-t", "--mount"]);
        assert!(!parse(&["id", "-t"]).unwrap().flag("tty"));
        assert_eq!(parse(&["--", "-t"]).unwrap().positional, ["-t"]);
    }

    #[test]
    fn a_value_has_four_spellings_and_an_option_may_repeat() {
        let args = parse(&["--mount", "a:b,c", "-mount=d=e", "--mount=", "-mount", "-x"]).unwrap();
        assert_eq!(args.values("mount").collect::<Vec<_>>(), ["a:b,c", "d=e", "", "-x"]);
        assert_eq!(args.value("mount"), Some("-x"));
    }

    #[test]
    fn an_unknown_option_is_a_usage_error() {
        for arguments in [&["--nope"][..], &["--mount"], &["-tt", "id"]] {
            assert!(parse(arguments).unwrap_err().is_usage(), "{arguments:?}");
        }
        assert!(parse(&[]).unwrap().id().is_err() && parse(&["a", "b"]).unwrap().id().is_err());
    }
}
