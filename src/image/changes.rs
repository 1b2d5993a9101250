//! Changes of an image's settings in the words of a build file, for `commit` and `import`. Pure.
//!
//! Each change is one instruction of those that make no files. Variables are not replaced.

use serde_json::{Map, Value, json};

/// The instructions that are known here.
const KNOWN: &str = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR";

/// Applies instructions to the `config` of an image configuration (OCI image specification). The error names the
/// instruction.
pub(super) fn apply(config: &mut Map<String, Value>, changes: &[String]) -> Result<(), String> {
    let mut has_cmd = false;
    for change in changes {
        let line = change.trim();
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let name = name.to_ascii_uppercase();
        has_cmd |= name == "CMD";
        one(config, &name, rest.trim(), has_cmd).map_err(|why| format!("{change:?}: {why}"))?;
    }
    Ok(())
}

fn one(config: &mut Map<String, Value>, name: &str, rest: &str, has_cmd: bool) -> Result<(), String> {
    if rest.is_empty() {
        return match KNOWN.split(", ").any(|known| known == name) {
            true => Err(format!("{name} needs a value")),
            false => Err(format!("it is none of {KNOWN}")),
        };
    }
    match name {
        "CMD" => drop(config.insert("Cmd".into(), command(rest))),
        "ENTRYPOINT" => {
            config.insert("Entrypoint".into(), command(rest));
            // The image's own arguments are for its own program.
            if !has_cmd {
                config.remove("Cmd");
            }
        }
        "ENV" => set_variables(config, &pairs(rest)?),
        "LABEL" => {
            let labels = pairs(rest)?.into_iter().map(|(key, value)| (key, value.into()));
            add(config, "Labels", labels);
        }
        "EXPOSE" => {
            let ports = words(rest)?
                .iter()
                .map(|port| exposed(port))
                .collect::<Result<Vec<_>, _>>()?;
            add(config, "ExposedPorts", ports.into_iter().map(|port| (port, json!({}))));
        }
        "VOLUME" => {
            let paths = match array(rest) {
                Some(paths) => paths,
                None => words(rest)?,
            };
            add(config, "Volumes", paths.into_iter().map(|path| (path, json!({}))));
        }
        "USER" => drop(config.insert("User".into(), single(rest)?.into())),
        "STOPSIGNAL" => drop(config.insert("StopSignal".into(), single(rest)?.into())),
        "WORKDIR" => {
            let path = single(rest)?;
            let before = config.get("WorkingDir").and_then(Value::as_str).unwrap_or_default();
            let path = match path.starts_with('/') {
                true => path,
                false => format!("{}/{path}", before.trim_end_matches('/')),
            };
            config.insert("WorkingDir".into(), path.into());
        }
        "ONBUILD" => match config.entry("OnBuild").or_insert_with(|| json!([])) {
            Value::Array(triggers) => triggers.push(rest.into()),
            other => *other = json!([rest]),
        },
        _ => return Err(format!("it is none of {KNOWN}")),
    }
    Ok(())
}

/// Adds members to an object of the configuration.
fn add(config: &mut Map<String, Value>, name: &str, more: impl Iterator<Item = (String, Value)>) {
    let mut members = match config.remove(name) {
        Some(Value::Object(members)) => members,
        _ => Map::new(),
    };
    members.extend(more);
    config.insert(name.to_owned(), members.into());
}

/// `["a", "b"]`
fn array(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// The argument vector of a JSON array, or of a line for the shell.
fn command(text: &str) -> Value {
    match array(text) {
        Some(words) => json!(words),
        None => json!(["/bin/sh", "-c", text]),
    }
}

fn set_variables(config: &mut Map<String, Value>, pairs: &[(String, String)]) {
    let env = config.get("Env").and_then(Value::as_array).into_iter().flatten();
    let mut env: Vec<String> = env.filter_map(Value::as_str).map(str::to_owned).collect();
    for (key, value) in pairs {
        let entry = format!("{key}={value}");
        let is_same = |old: &&mut String| old.split_once('=').is_some_and(|(old, _)| old == key);
        match env.iter_mut().find(is_same) {
            Some(old) => *old = entry,
            None => env.push(entry),
        }
    }
    config.insert("Env".into(), json!(env));
}

/// `80`, `80/udp`, `80-90/tcp`
fn exposed(text: &str) -> Result<String, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let protocol = protocol.to_ascii_lowercase();
    match is_port(first) && is_port(last) && matches!(&protocol[..], "tcp" | "udp" | "sctp") {
        true => Ok(format!("{ports}/{protocol}")),
        false => Err(format!("{text:?} is not a port, as in 80 or 53/udp")),
    }
}

/// `a=1 b="2 3"`, or `a 1` for one.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let first = text.split(char::is_whitespace).next().unwrap_or_default();
    if !first.contains('=') {
        let (key, value) = text.split_once(char::is_whitespace).ok_or("it needs key=value")?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{word:?} is not key=value")),
    };
    words(text)?.into_iter().map(pair).collect()
}

fn single(text: &str) -> Result<String, String> {
    let mut words = words(text)?;
    match (words.pop(), words.is_empty()) {
        (Some(word), true) => Ok(word),
        _ => Err("it takes one word".into()),
    }
}

/// Words as a shell splits them: blanks separate, except within quotes and after a backslash.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words: Vec<String> = Vec::new();
    let (mut quote, mut is_in_word) = (None, false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if quote.is_none() && letter.is_whitespace() {
            is_in_word = false;
            continue;
        }
        if !is_in_word {
            is_in_word = true;
            words.push(String::new());
        }
        let Some(word) = words.last_mut() else { continue };
        match (letter, quote) {
            ('\\', None | Some('"')) => word.extend(letters.next()),
            ('"' | '\'', None) => quote = Some(letter),
            (letter, Some(open)) if letter == open => quote = None,
            (letter, _) => word.push(letter),
        }
    }
    match quote {
        None => Ok(words),
        Some(quote) => Err(format!("a quote ({quote}) is not closed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(base: Value, changes: &[&str]) -> Result<Value, String> {
        let Value::Object(mut config) = base else {
            panic!("not an object")
        };
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        apply(&mut config, &changes).map(|()| config.into())
    }

    #[test]
    fn all_instructions() {
        let base = json!({ "Env": ["A=1", "B=2"], "Cmd": ["old"], "WorkingDir": "/srv", "Labels": null });
        let changes = [
            "CMD [\"httpd\", \"-f\"]",
            "entrypoint exec \"$@\"",
            "ENV A=3 C=\"x y\" D='it is' E=a\\ b",
            "ENV F several words",
            "EXPOSE 80 53/UDP 8000-8010",
            "LABEL org.x.title=\"A title\" empty=",
            "VOLUME [\"/data\"]",
            "VOLUME /a /b",
            "USER web:web",
            "WORKDIR www",
            "STOPSIGNAL SIGINT",
            "ONBUILD RUN true",
        ];
        let expected = json!({
            "Cmd": ["httpd", "-f"], "Entrypoint": ["/bin/sh", "-c", "exec \"$@\""],
            "Env": ["A=3", "B=2", "C=x y", "D=it is", "E=a b", "F=several words"],
            "ExposedPorts": { "80/tcp": {}, "53/udp": {}, "8000-8010/tcp": {} },
            "Labels": { "org.x.title": "A title", "empty": "" },
            "Volumes": { "/data": {}, "/a": {}, "/b": {} },
            "User": "web:web", "WorkingDir": "/srv/www", "StopSignal": "SIGINT", "OnBuild": ["RUN true"],
        });
        assert_eq!(applied(base, &changes).unwrap(), expected);
    }

    #[test]
    fn another_program_does_not_get_the_arguments_of_the_first() {
        let base = || json!({ "Cmd": ["old"], "Entrypoint": ["old"] });
        assert_eq!(
            applied(base(), &["ENTRYPOINT [\"new\"]"]).unwrap(),
            json!({ "Entrypoint": ["new"] })
        );
        assert_eq!(applied(base(), &["CMD x"]).unwrap()["Entrypoint"], json!(["old"]));
    }

    #[rstest::rstest]
    #[case("RUN true", "\"RUN true\": it is none of CMD")]
    #[case("", "it is none of CMD")]
    #[case("CMD", "CMD needs a value")]
    #[case("ENV A", "it needs key=value")]
    #[case("ENV A=1 B", "\"B\" is not key=value")]
    #[case("LABEL =x", "\"=x\" is not key=value")]
    #[case("EXPOSE http", "\"http\" is not a port")]
    #[case("EXPOSE 0", "\"0\" is not a port")]
    #[case("USER a b", "it takes one word")]
    #[case("LABEL a=\"b", "a quote (\") is not closed")]
    fn what_is_refused(#[case] change: &str, #[case] reason: &str) {
        let error = applied(json!({}), &[change]).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}
