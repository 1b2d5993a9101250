//! The options of `spec` for hooks (`docs/spec/runtime.md` 6.1).

use serde_json::{Value, json};

use crate::report::failure::Failure;
use crate::verbs::arguments::Args;

/// The option of each list of hooks.
const HOOKS: [(&str, &str); 7] = [
    ("hook-prestart", "prestart"),
    ("hook-create-runtime", "createRuntime"),
    ("hook-create-container", "createContainer"),
    ("hook-start-container", "startContainer"),
    ("hook-poststart", "poststart"),
    ("hook-stop-container", "stopContainer"),
    ("hook-poststop", "poststop"),
];

/// Returns the `hooks` of config.json.
pub fn hooks(args: &Args) -> Result<Value, Failure> {
    let mut lists = serde_json::Map::new();
    for (option, list) in HOOKS {
        let variables = format!("{option}-env");
        let hooks = hook_list(args.values(option), args.values(&variables))
            .map_err(|reason| Failure::usage(format!("--{option}: {reason}")))?;
        if !hooks.is_empty() {
            lists.insert(list.to_owned(), hooks.into());
        }
    }
    Ok(lists.into())
}

/// Parses hooks `path,argument,…` and their variables. The i-th variable belongs to the i-th hook. An empty hook is
/// skipped; an empty variable sets nothing for its hook (6.1).
fn hook_list<'a>(
    hooks: impl Iterator<Item = &'a str>,
    variables: impl Iterator<Item = &'a str>,
) -> Result<Vec<Value>, String> {
    let mut list = Vec::new();
    for hook in hooks.filter(|hook| !hook.is_empty()) {
        // The annotation `io.raind.hooks.args` says that the arguments include argv[0], as in OCI.
        let args: Vec<&str> = hook.split(',').collect();
        match args[0] {
            "" => return Err(format!("{hook:?} has no path")),
            path => list.push(json!({ "path": path, "args": args })),
        }
    }
    for (position, variable) in variables.enumerate() {
        let hook = list
            .get_mut(position)
            .ok_or_else(|| format!("variable {variable:?} belongs to no hook"))?;
        match variable {
            "" => {}
            _ if variable.contains('=') => hook["env"] = json!([variable]),
            _ => return Err(format!("variable {variable:?} has no \"=\"")),
        }
    }
    Ok(list)
}
