//! The command line (`docs/spec/runtime.md` 4.1): options first, then positional arguments, everything after the first
//! of which is positional. Long options have one dash or two, values follow as `--name value` or `--name=value`.

use crate::failure::Failure;

/// What `help` prints.
pub const HELP: &str = "\
NAME:
   droplet - low-level container runtime

USAGE:
   droplet <command> [options] [arguments]

COMMANDS:
   create [-t|--tty] [--print-pid] <id>   set a container up; it waits for start
   start <id>                             run the program of a created container
   kill [--grace <s>] <id> [signal]       stop a container, or deliver a signal to it
   delete <id>                            remove what the runtime keeps of a container
   state <id>                             print the state of a container
   run [-t|--tty] [--print-pid] <id>      create and start a container, and wait for its end
   exec [-t|--tty] <id> <argv...>         run another program in a running container
   exec --wait [--timeout <s>] <id> <argv...>
                                          run it to its end; how it ended, as JSON, and its output
   spec [options]                         write a config.json
   list [--format json]                   list containers
   attach <id>                            connect this terminal to that of a container
   help                                   print this

ENVIRONMENT:
   RAIND_ROOT_DIR   container directories, by default /etc/raind/container
";

/// An option that a verb knows.
#[derive(Debug, Clone, Copy)]
pub enum Opt {
    /// Without a value; the names all mean the first one.
    Flag(&'static [&'static str]),
    /// With a value.
    Value(&'static str),
}

/// A parsed command line of one verb.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    options: Vec<(&'static str, String)>,
    /// What is left after the options.
    pub positional: Vec<String>,
}

impl Args {
    /// Parses what follows the name of the verb.
    pub fn parse(known: &[Opt], words: &[String]) -> Result<Self, Failure> {
        let mut args = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(text) = word.strip_prefix('-').filter(|text| !text.is_empty()) else {
                args.positional.push(word.clone());
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
            args.options.push(option(known, name, inline, &mut words)?);
        }
        args.positional.extend(words.cloned());
        Ok(args)
    }

    /// Whether a flag is there.
    pub fn flag(&self, name: &str) -> bool {
        self.options.iter().any(|(n, value)| *n == name && value != "false")
    }

    /// The last value of an option.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.options
            .iter()
            .rev()
            .find(|(n, _)| *n == name)
            .map(|(_, value)| value.as_str())
    }

    /// All values of an option, in order.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.options
            .iter()
            .filter(move |(n, _)| *n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The only positional argument.
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
    words: &mut impl Iterator<Item = &'a String>,
) -> Result<(&'static str, String), Failure> {
    for option in known {
        match option {
            Opt::Flag(names) if names.contains(&name) => return Ok((names[0], inline.unwrap_or_default())),
            Opt::Value(known) if *known == name => {
                let value = inline.or_else(|| words.next().cloned());
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

    fn parse(words: &[&str]) -> Result<Args, Failure> {
        Args::parse(KNOWN, &words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_end_at_the_first_positional() {
        let args = parse(&["-t", "id", "ls", "-t", "--mount"]).unwrap();
        assert!(args.flag("tty"));
        assert_eq!(args.positional, ["id", "ls", "-t", "--mount"]);
        assert!(!parse(&["id", "-t"]).unwrap().flag("tty"));
        assert_eq!(parse(&["--", "-t"]).unwrap().positional, ["-t"]);
    }

    #[test]
    fn values_come_in_all_four_forms_and_repeat() {
        let args = parse(&["--mount", "a:b,c", "-mount=d=e", "--mount=", "-mount", "-x"]).unwrap();
        assert_eq!(args.values("mount").collect::<Vec<_>>(), ["a:b,c", "d=e", "", "-x"]);
        assert_eq!(args.value("mount"), Some("-x"));
    }

    #[test]
    fn what_is_not_known_is_a_usage_error() {
        for words in [&["--nope"][..], &["--mount"], &["-tt", "id"]] {
            assert!(parse(words).unwrap_err().is_usage(), "{words:?}");
        }
        assert!(parse(&[]).unwrap().id().is_err() && parse(&["a", "b"]).unwrap().id().is_err());
    }
}
