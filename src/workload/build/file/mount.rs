//! `RUN --mount=…`.

use super::ast::{Mount, MountKind, Sharing};
use super::error::{Problem, shown};
use super::nearest;
use super::resolver::Resolver;

/// Keys of the options.
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "mode",
    "uid",
    "gid",
    "size",
    "env",
];

/// The mount that these options mean. When only the syntax is checked, values with variables are left out.
pub(super) fn parse(text: &str, resolver: &mut Resolver<'_>) -> Result<Mount, Problem> {
    let mut mount = Mount {
        text: text.to_owned(),
        kind: MountKind::default(),
        from: None,
        source: None,
        target: None,
        readonly: false,
        id: None,
        sharing: Sharing::default(),
        required: false,
        mode: None,
        uid: None,
        gid: None,
        size: None,
        env: None,
    };
    let mut options = Options::default();
    for field in fields(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(value)),
            None => (field.to_ascii_lowercase(), None),
        };
        let Some(key) = KEYS.iter().find(|known| **known == key).copied() else {
            let hint = nearest::hint(&key, &KEYS, "");
            return Err(Problem::new(format!("--mount has no option {}{hint}", shown(&key))));
        };
        if key == "from" && value.is_some_and(|value| value.contains('$')) {
            let message = "from of --mount has no variables; give the image a stage of its own, FROM $IMAGE AS name";
            return Err(Problem::new(message));
        }
        options.given.push(key);
        let known = value.is_none_or(|value| resolver.knows(value));
        let value = value.map(|value| resolver.word(value)).transpose()?;
        match known {
            true => set(&mut mount, &mut options, key, value)?,
            false => options.open = true,
        }
    }
    let kind = mount.kind;
    let by_default = !matches!(kind, MountKind::Cache | MountKind::Tmpfs);
    mount.readonly = options.readonly.unwrap_or(by_default);
    if !options.open {
        check(&mount, &options.given)?;
        fill(&mut mount);
    }
    Ok(mount)
}

#[derive(Default)]
struct Options {
    given: Vec<&'static str>,
    readonly: Option<bool>,
    /// A value is not known yet.
    open: bool,
}

fn set(mount: &mut Mount, options: &mut Options, key: &'static str, value: Option<String>) -> Result<(), Problem> {
    let Some(value) = value else {
        match key {
            "readonly" | "ro" => options.readonly = Some(true),
            "readwrite" | "rw" => options.readonly = Some(false),
            "required" => mount.required = true,
            _ => return Err(Problem::new(format!("{key} of --mount needs a value: {key}=…"))),
        }
        return Ok(());
    };
    let invalid = || Problem::new(format!("{key} of --mount cannot be {}", shown(&value)));
    let number = |base| u32::from_str_radix(&value, base).map_err(|_| invalid());
    match key {
        "type" => mount.kind = kind(&value)?,
        "from" => mount.from = Some(value).filter(|from| !from.is_empty()),
        "source" | "src" => mount.source = Some(value).filter(|source| !source.is_empty()),
        "target" | "dst" | "destination" => mount.target = Some(value).filter(|target| !target.is_empty()),
        "readonly" | "ro" => options.readonly = Some(truth(&value).ok_or_else(invalid)?),
        "readwrite" | "rw" => options.readonly = Some(!truth(&value).ok_or_else(invalid)?),
        "required" => mount.required = truth(&value).ok_or_else(invalid)?,
        "id" => mount.id = Some(value).filter(|id| !id.is_empty()),
        "sharing" => {
            mount.sharing = match &value.to_ascii_lowercase()[..] {
                "shared" => Sharing::Shared,
                "private" => Sharing::Private,
                "locked" => Sharing::Locked,
                _ => return Err(Problem::new(invalid().0 + "; it is shared, private or locked")),
            }
        }
        "mode" => mount.mode = Some(number(8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(invalid)?),
        "uid" => mount.uid = Some(number(10)?),
        "gid" => mount.gid = Some(number(10)?),
        "size" => mount.size = Some(size(&value).ok_or_else(invalid)?),
        // Only `env` is left.
        _ => mount.env = Some(value),
    }
    Ok(())
}

fn kind(value: &str) -> Result<MountKind, Problem> {
    let kinds = [
        ("bind", MountKind::Bind),
        ("cache", MountKind::Cache),
        ("tmpfs", MountKind::Tmpfs),
        ("secret", MountKind::Secret),
        ("ssh", MountKind::Ssh),
    ];
    let found = kinds.iter().find(|(name, _)| name.eq_ignore_ascii_case(value));
    found.map(|(_, kind)| *kind).ok_or_else(|| {
        let hint = nearest::hint(value, &kinds.map(|(name, _)| name), "");
        let message = format!("--mount has no type {}{hint}", shown(value));
        Problem::new(message)
    })
}

/// Which options go together.
fn check(mount: &Mount, given: &[&str]) -> Result<(), Problem> {
    use MountKind as K;
    let kind = format!("{:?}", mount.kind).to_ascii_lowercase();
    let only: [(&str, &[K]); 7] = [
        ("mode", &[K::Cache, K::Secret, K::Ssh]),
        ("uid", &[K::Cache, K::Secret, K::Ssh]),
        ("gid", &[K::Cache, K::Secret, K::Ssh]),
        ("sharing", &[K::Cache]),
        ("size", &[K::Tmpfs]),
        ("required", &[K::Secret, K::Ssh]),
        ("env", &[K::Secret]),
    ];
    for (key, kinds) in only {
        if given.contains(&key) && !kinds.contains(&mount.kind) {
            return Err(Problem::new(format!("--mount=type={kind} has no option {key}")));
        }
    }
    match mount.kind {
        K::Bind | K::Cache | K::Tmpfs if mount.target.is_none() => {
            Err(Problem::new(format!("--mount=type={kind} needs target=PATH")))
        }
        K::Secret if mount.from.is_some() => Err(Problem::new("--mount=type=secret has no option from")),
        K::Secret if mount.source.is_some() && mount.id.is_some() => {
            let message = "source and id of --mount=type=secret are the same thing; give one of them";
            Err(Problem::new(message))
        }
        K::Secret if mount.source.is_none() && mount.id.is_none() && mount.target.is_none() => {
            Err(Problem::new("--mount=type=secret needs id=NAME or target=PATH"))
        }
        _ => Ok(()),
    }
}

/// Defaults of `id` and `target`.
fn fill(mount: &mut Mount) {
    let last = |path: &str| {
        path.rsplit('/')
            .find(|part| !part.is_empty())
            .unwrap_or_default()
            .to_owned()
    };
    match (mount.kind, &mount.target) {
        (MountKind::Cache, Some(target)) if mount.id.is_none() => mount.id = Some(clean(target)),
        (MountKind::Secret, target) => {
            let id = mount.source.take().or(mount.id.take());
            let id = id.unwrap_or_else(|| last(target.as_deref().unwrap_or_default()));
            if mount.target.is_none() && mount.env.is_none() {
                mount.target = Some(format!("/run/secrets/{}", last(&id)));
            }
            mount.id = Some(id);
        }
        (MountKind::Ssh, _) if mount.id.is_none() => mount.id = Some("default".into()),
        _ => {}
    }
}

/// A path without `.`, `..` within it and double slashes.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `64m`, `1.5GiB`, `4096`: units are powers of 1024.
fn size(value: &str) -> Option<u64> {
    let value = value.to_ascii_lowercase();
    let digits = value
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let unit = unit.trim_start();
    let unit = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(unit);
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == unit)?;
    let bytes = number.parse::<f64>().ok()? * 1024f64.powi(i32::try_from(power).ok()?);
    // Larger than any file system; a cast would cut it off.
    (bytes < 1e18).then_some(bytes as u64)
}

/// The fields of one line of CSV.
fn fields(text: &str) -> Result<Vec<String>, Problem> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let mut field = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let Some((part, after)) = quoted.split_once('"') else {
                    return Err(Problem::new(format!(
                        "--mount has a quote that does not end: {}",
                        shown(text)
                    )));
                };
                field.push_str(part);
                quoted = after;
                match quoted.strip_prefix('"') {
                    Some(after) => quoted = after,
                    None => break,
                }
                field.push('"');
            }
            rest = quoted;
        }
        let (part, after) = match rest.split_once(',') {
            Some((part, after)) => (part, Some(after)),
            None => (rest, None),
        };
        field.push_str(part);
        fields.push(field);
        match after {
            Some(after) => rest = after,
            None => return Ok(fields),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::lexer::Lookup;
    use super::*;

    fn mount(text: &str) -> Result<Mount, String> {
        let values = |name: &str| (name == "X").then(|| "7".to_owned());
        parse(text, &mut Resolver::new('\\', Lookup::Values(&values))).map_err(|problem| problem.0)
    }

    #[test]
    fn defaults_of_each_type() {
        let bind = mount("target=/a,from=Build,source=x/y").unwrap();
        assert_eq!((bind.kind, bind.readonly), (MountKind::Bind, true));
        assert_eq!(
            (bind.from.as_deref(), bind.source.as_deref()),
            (Some("Build"), Some("x/y"))
        );
        let cache = mount("type=cache,dst=/a//b/../c/,sharing=locked,mode=0700,uid=$X,gid=8").unwrap();
        assert_eq!((cache.id.as_deref(), cache.readonly), (Some("/a/c"), false));
        assert_eq!((cache.mode, cache.uid, cache.gid), (Some(0o700), Some(7), Some(8)));
        assert_eq!(cache.sharing, Sharing::Locked);
        let tmpfs = mount("type=tmpfs,target=/t,size=1.5k").unwrap();
        assert_eq!((tmpfs.size, tmpfs.readonly), (Some(1536), false));
        let secret = mount("type=secret,id=a/token,required").unwrap();
        assert_eq!(
            (secret.id.as_deref(), secret.target.as_deref()),
            (Some("a/token"), Some("/run/secrets/token"))
        );
        assert!(secret.required && secret.readonly);
        let secret = mount("type=secret,target=/x/y").unwrap();
        assert_eq!(
            (secret.id.as_deref(), secret.target.as_deref()),
            (Some("y"), Some("/x/y"))
        );
        let secret = mount("type=secret,src=s,env=TOKEN").unwrap();
        assert_eq!(
            (secret.id.as_deref(), secret.target, secret.env.as_deref()),
            (Some("s"), None, Some("TOKEN"))
        );
        assert_eq!(mount("type=ssh").unwrap().id.as_deref(), Some("default"));
        assert!(!mount("type=bind,target=/a,rw").unwrap().readonly);
        assert!(mount("type=cache,target=/a,ro=true").unwrap().readonly);
        assert_eq!(
            mount("target=/a,\"source=b,c\"").unwrap().source.as_deref(),
            Some("b,c")
        );
    }

    #[rstest]
    #[case("type=cach,target=/a", "--mount has no type cach; did you mean cache?")]
    #[case("targt=/a", "--mount has no option targt; did you mean target?")]
    #[case("type=cache", "--mount=type=cache needs target=PATH")]
    #[case("type=bind,target=/a,uid=1", "--mount=type=bind has no option uid")]
    #[case("type=cache,target=/a,size=1", "--mount=type=cache has no option size")]
    #[case(
        "type=cache,target=/a,sharing=x",
        "sharing of --mount cannot be x; it is shared, private or locked"
    )]
    #[case("type=cache,target=/a,mode=9", "mode of --mount cannot be 9")]
    #[case("type=cache,target=/a,uid=-1", "uid of --mount cannot be -1")]
    #[case("type=cache,target", "target of --mount needs a value: target=…")]
    #[case("type=secret", "--mount=type=secret needs id=NAME or target=PATH")]
    #[case(
        "type=secret,id=a,source=b",
        "source and id of --mount=type=secret are the same thing"
    )]
    #[case("type=secret,id=a,from=b", "--mount=type=secret has no option from")]
    #[case("from=$X,target=/a", "from of --mount has no variables")]
    #[case("type=tmpfs,target=/a,size=1z", "size of --mount cannot be 1z")]
    #[case("type=tmpfs,target=/a,size=9999999p", "size of --mount cannot be 9999999p")]
    #[case("target=/a,ro=maybe", "ro of --mount cannot be maybe")]
    #[case("\"target=/a", "--mount has a quote that does not end")]
    fn what_is_no_mount(#[case] text: &str, #[case] problem: &str) {
        let found = mount(text).unwrap_err();
        assert!(found.starts_with(problem), "{found}");
    }

    #[test]
    fn variables_are_checked_when_they_are_known() {
        let mut resolver = Resolver::new('\\', Lookup::Syntax);
        let mount = parse("type=$KIND,target=$X,uid=$Y,from=Base", &mut resolver).unwrap();
        assert_eq!((mount.from.as_deref(), mount.uid), (Some("Base"), None));
        assert!(parse("target=${X", &mut resolver).is_err());
    }
}
