#[path = "../../src/workload/build/context.rs"]
mod context;
#[path = "../../src/workload/build/file/mod.rs"]
mod file;

use std::path::Path;

use context::{ContextError, ContextLimits};
use file::{FileError, Ignore, Pattern, parse, parse_trigger};

use crate::Failure;

/// Unpacks a build context of at most 2000 entries.
pub fn fill_context(archive: &[u8], root: &Path) -> Result<(), Failure> {
    let limits = ContextLimits {
        bytes: 1 << 20,
        entries: 2000,
    };
    context::unpack(archive, root, limits).map_err(|e| match e {
        ContextError::Invalid(cause) | ContextError::TooLarge(cause) => Failure::Refused(cause.to_string()),
        ContextError::System(cause) => Failure::System(cause.to_string()),
    })
}

/// Parses a build file and replaces its variables; takes the same bytes for a trigger, for an ignore file and for a
/// pattern.
pub fn read_build_file(bytes: &[u8]) {
    match parse("Dripfile", bytes) {
        Ok(file) => {
            assert!(!file.stages.is_empty());
            let mut resolved = 0;
            for global in &file.global_args {
                one_line(&file.resolve_global(global, &value));
            }
            for (index, stage) in file.stages.iter().enumerate() {
                one_line(&file.resolve_stage(stage, &value));
                assert!(file.stage(&stage.base, index).is_none_or(|earlier| earlier < index));
                for step in &stage.steps {
                    let instruction = step.resolve(&value);
                    one_line(&instruction);
                    // What is printed is as large as what is held.
                    resolved += format!("{instruction:?}").len();
                }
            }
            assert!(resolved <= 64 << 20, "{} bytes became {resolved}", bytes.len());
        }
        Err(error) => one_line::<()>(&Err(error)),
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        one_line(&parse_trigger("trigger", text));
        if let Ok(pattern) = Pattern::parse(text) {
            assert!(!(pattern.matches(b"a/b") && pattern.matches(b"a/b/c")), "{text}: a pattern has one depth");
        }
    }
    if let Ok(ignore) = Ignore::parse(bytes) {
        for path in ["a", "a/b", "src/main.rs", "a/b/c/d/e"] {
            let skips = ignore.skips(path.as_bytes());
            assert!(!skips || ignore.is_ignored(path.as_bytes()));
            let below = format!("{path}/x");
            assert!(!skips || ignore.is_ignored(below.as_bytes()), "{path} is skipped, {below} is not ignored");
        }
    }
}

/// Values of some names.
fn value(name: &str) -> Option<String> {
    match name {
        "A" | "PATH" => Some("/usr/local/bin:/usr/bin".into()),
        "B" | "VERSION" => Some("1.2.3-rc.1".into()),
        "EMPTY" => Some(String::new()),
        "LONG" => Some("x/y".repeat(10_000)),
        _ => None,
    }
}

fn one_line<T>(result: &Result<T, FileError>) {
    if let Err(error) = result {
        let message = error.to_string();
        assert!(!message.contains(char::is_control), "{message:?} has more than one line");
        assert!(message.len() < 2000, "{message}");
    }
}
