//! Which variables hold where: `ARG` before `FROM`, of a stage, and the predefined ones; `ENV`. Pure.

use std::collections::BTreeMap;

use super::file::{Arg, BuildFile, FileError};
use crate::image::Platform;

/// Build arguments that need no `ARG`. They are in the environment of commands, but in no history and no key of the cache
/// unless an `ARG` names them.
const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Values that a request gives for `ARG`s.
pub(super) type BuildArgs = BTreeMap<String, String>;

/// What all stages of a build share.
#[derive(Debug, Clone, Default)]
pub(super) struct Globals {
    given: BuildArgs,
    /// `TARGETPLATFORM` and its like.
    platforms: BTreeMap<&'static str, String>,
    /// `ARG`s before the first `FROM` that have a value.
    args: BTreeMap<String, String>,
}

impl Globals {
    /// Resolves the `ARG`s before the first `FROM`.
    pub(super) fn of(file: &BuildFile, given: &BuildArgs, target: &Platform) -> Result<Self, FileError> {
        let mut globals = Self {
            given: given.clone(),
            platforms: platforms(target),
            args: BTreeMap::new(),
        };
        for global in &file.global_args {
            let name = &global.arg.name;
            // A default that is not used need not be right.
            let value = match given.get(name) {
                Some(given) => Some(given.clone()),
                None => file.resolve_global(global, &|name| globals.in_from(name))?,
            };
            let automatic = || globals.platforms.get(&name[..]).cloned();
            if let Some(value) = value.or_else(automatic) {
                globals.args.insert(name.clone(), value);
            }
        }
        Ok(globals)
    }

    /// Whether the request has a value for an `ARG`.
    pub(super) fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// The value of a variable of a `FROM`.
    pub(super) fn in_from(&self, name: &str) -> Option<String> {
        self.args.get(name).or_else(|| self.platforms.get(name)).cloned()
    }

    /// Predefined arguments that the request gives.
    fn predefined(&self) -> impl Iterator<Item = (&String, &String)> {
        self.given.iter().filter(|(name, _)| PREDEFINED.contains(&&name[..]))
    }
}

fn platforms(target: &Platform) -> BTreeMap<&'static str, String> {
    let host = Platform::host();
    BTreeMap::from([
        ("TARGETPLATFORM", target.to_string()),
        ("TARGETOS", target.os.clone()),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", target.variant.clone()),
        ("BUILDPLATFORM", host.to_string()),
        ("BUILDOS", host.os.clone()),
        ("BUILDARCH", host.architecture.clone()),
        ("BUILDVARIANT", host.variant.clone()),
    ])
}

/// The `ARG`s of a stage, as far as it has been built.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    /// In the order of their declaration; the value of one that has none is not set.
    args: Vec<(String, Option<String>)>,
}

impl Scope {
    /// An `ARG` of the stage. A value of the request counts first, then its own default, then a global one.
    pub(super) fn declare(&mut self, globals: &Globals, arg: &Arg) {
        let given = globals.given.get(&arg.name);
        let global = || globals.in_from(&arg.name);
        let value = given.cloned().or_else(|| arg.default.clone()).or_else(global);
        match self.args.iter_mut().find(|(name, _)| *name == arg.name) {
            Some((_, old)) => *old = value.or_else(|| old.take()),
            None => self.args.push((arg.name.clone(), value)),
        }
    }

    /// The value of a variable: an `ENV` before an `ARG` of the same name.
    pub(super) fn value(&self, globals: &Globals, env: &[String], name: &str) -> Option<String> {
        let of_env = env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='));
        let own = || self.args.iter().find(|(own, _)| own == name)?.1.clone();
        let predefined = || {
            globals
                .predefined()
                .find(|(given, _)| *given == name)
                .map(|(_, value)| value.clone())
        };
        of_env.map(str::to_owned).or_else(own).or_else(predefined)
    }

    /// What a command's environment has besides `env`: the declared arguments, then the predefined ones. The second list
    /// counts for no key.
    pub(super) fn environment(&self, globals: &Globals, env: &[String]) -> (Vec<String>, Vec<String>) {
        let is_in = |entries: &[String], name: &str| {
            let mut entries = entries.iter();
            entries.any(|entry| entry.split_once('=').is_some_and(|(own, _)| own == name))
        };
        let declared = self.args.iter().filter(|(name, _)| !is_in(env, name));
        let declared: Vec<String> = declared
            .filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)))
            .collect();
        let rest = globals.predefined();
        let rest = rest.filter(|(name, _)| !is_in(env, name) && !is_in(&declared, name));
        let rest = rest.map(|(name, value)| format!("{name}={value}")).collect();
        (declared, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globals(given: &[(&str, &str)], args: &[(&str, &str)]) -> Globals {
        let owned = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect()
        };
        Globals {
            given: owned(given),
            platforms: platforms(&Platform::host()),
            args: owned(args),
        }
    }

    fn arg(name: &str, default: Option<&str>) -> Arg {
        Arg {
            name: name.into(),
            default: default.map(str::to_owned),
        }
    }

    #[test]
    fn who_gives_an_argument_its_value() {
        let globals = globals(
            &[("A", "given"), ("HTTP_PROXY", "p")],
            &[("A", "global"), ("B", "global")],
        );
        let mut scope = Scope::default();
        let value = |scope: &Scope, name: &str| scope.value(&globals, &["E=env".to_owned()], name);
        assert_eq!(value(&scope, "B"), None, "a stage sees only what it declares");
        for declared in [
            arg("A", Some("own")),
            arg("B", None),
            arg("C", Some("own")),
            arg("D", None),
            arg("E", Some("arg")),
            arg("TARGETOS", None),
        ] {
            scope.declare(&globals, &declared);
        }
        assert_eq!(value(&scope, "A").unwrap(), "given");
        assert_eq!(value(&scope, "B").unwrap(), "global");
        assert_eq!(value(&scope, "C").unwrap(), "own");
        assert_eq!(value(&scope, "D"), None);
        assert_eq!(value(&scope, "E").unwrap(), "env");
        assert_eq!(value(&scope, "TARGETOS").unwrap(), "linux");
        assert_eq!(value(&scope, "HTTP_PROXY").unwrap(), "p");
        let (declared, rest) = scope.environment(&globals, &["E=env".to_owned()]);
        assert_eq!(declared, ["A=given", "B=global", "C=own", "TARGETOS=linux"]);
        assert_eq!(rest, ["HTTP_PROXY=p"]);
        scope.declare(&globals, &arg("HTTP_PROXY", None));
        let (declared, rest) = scope.environment(&globals, &[]);
        assert!(declared.contains(&"HTTP_PROXY=p".to_owned()) && rest.is_empty());
    }
}
