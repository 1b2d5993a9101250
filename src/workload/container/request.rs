//! What runs: a request over the configuration of its image (`docs/spec/api.md` 4.6 and 4.8). Pure.

use super::ContainerError;
use crate::model::ImageRunConfig;
use crate::runtime::defaults;

/// The argument vector that runs. A requested command replaces entrypoint and cmd of the image; a requested entrypoint
/// stands before the requested command, and then nothing of the image counts. An entrypoint of one empty word is none,
/// in an image (`ENTRYPOINT [""]`) as in a request (`docker run --entrypoint ""`), where the image's cmd then counts.
pub fn effective_command(
    entrypoint: &[String],
    requested: &[String],
    image: &ImageRunConfig,
) -> Result<Vec<String>, ContainerError> {
    let is_none = |words: &[String]| matches!(words, [word] if word.is_empty());
    let or_none = |words| if is_none(words) { &[][..] } else { words };
    let command: Vec<String> = match requested {
        [] if entrypoint.is_empty() => or_none(&image.entrypoint).iter().chain(&image.cmd).cloned().collect(),
        [] if is_none(entrypoint) => image.cmd.clone(),
        _ => or_none(entrypoint).iter().chain(requested).cloned().collect(),
    };
    if command.first().is_none_or(String::is_empty) {
        return Err(ContainerError::NoCommand);
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(ContainerError::InvalidOption("command contains a NUL character".into()));
    }
    Ok(command)
}

/// The environment: the image's, then the request's, then missing presets ([`defaults::environment`]). Entries without
/// `=` are ignored and returned in the second list for the log.
pub fn environment(image: &[String], requested: &[String], terminal: bool) -> (Vec<String>, Vec<String>) {
    let entries = || image.iter().chain(requested);
    let ignored = entries()
        .filter(|entry| entry.find('=').is_none_or(|at| at == 0))
        .cloned()
        .collect();
    (defaults::environment(entries().map(String::as_str), terminal), ignored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| w.to_string()).collect()
    }

    #[test]
    fn the_request_replaces_entrypoint_and_cmd() {
        let image = ImageRunConfig {
            entrypoint: strings(&["e"]),
            cmd: strings(&["c"]),
            ..Default::default()
        };
        assert_eq!(effective_command(&[], &[], &image).unwrap(), ["e", "c"]);
        assert_eq!(
            effective_command(&[], &strings(&["r", "a b\n\""]), &image).unwrap(),
            ["r", "a b\n\""]
        );
        let own = effective_command(&strings(&["o"]), &strings(&["r"]), &image).unwrap();
        assert_eq!(own, ["o", "r"]);
        assert_eq!(effective_command(&strings(&["o"]), &[], &image).unwrap(), ["o"]);
        let reset = strings(&[""]);
        assert_eq!(effective_command(&reset, &[], &image).unwrap(), ["c"]);
        assert_eq!(effective_command(&reset, &strings(&["r"]), &image).unwrap(), ["r"]);
        let without = ImageRunConfig {
            entrypoint: reset,
            cmd: strings(&["c"]),
            ..Default::default()
        };
        assert_eq!(effective_command(&[], &[], &without).unwrap(), ["c"]);
        // A member of a pod with args but no command.
        assert_eq!(
            effective_command(&without.entrypoint, &strings(&["r"]), &without).unwrap(),
            ["r"]
        );
        effective_command(&[], &[], &ImageRunConfig::default()).unwrap_err();
        effective_command(&[], &strings(&[""]), &image).unwrap_err();
        effective_command(&[], &strings(&["a\0b"]), &image).unwrap_err();
    }

    #[test]
    fn later_variables_win_and_presets_fill_blanks() {
        let (env, ignored) = environment(
            &strings(&["A=1", "PATH= ", "junk"]),
            &strings(&["B=2", "A=3=4", "=x", "TERM=dumb"]),
            false,
        );
        let path = format!("PATH={}", defaults::ENVIRONMENT[0].1);
        assert_eq!(env, ["A=3=4", &path, "B=2", "TERM=dumb", "LANG=C.UTF-8"]);
        assert_eq!(ignored, ["junk", "=x"]);
    }
}
