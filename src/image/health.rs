//! The `Healthcheck` of an image configuration (Docker image specification 1.2; `HEALTHCHECK` of build files). Pure.

use serde_json::Value;

use crate::model::{HealthCheck, Probe};

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;
/// Default for 0, in seconds and retries.
const INTERVAL: u32 = 30;
const TIMEOUT: u32 = 30;
const RETRIES: u32 = 3;

/// Reads it. `None` if it is absent, `NONE`, or not understood. `shell` is the image's `Shell`.
pub(super) fn read(check: &Value, shell: &Value) -> Option<HealthCheck> {
    let words = strings(&check["Test"])?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let command = match &words[..] {
        ["CMD", command @ ..] if command.first().is_some_and(|program| !program.is_empty()) => {
            command.iter().map(|word| (*word).to_owned()).collect()
        }
        ["CMD-SHELL", line] => {
            let shell = strings(shell).filter(|shell| !shell.is_empty());
            let mut command = shell.unwrap_or_else(|| ["/bin/sh", "-c"].map(str::to_owned).to_vec());
            command.push((*line).to_owned());
            command
        }
        _ => return None,
    };
    if command.iter().any(|word| word.contains('\0')) {
        return None;
    }
    Some(HealthCheck {
        probe: Probe::Exec(command),
        interval: seconds(&check["Interval"]).unwrap_or(INTERVAL),
        timeout: seconds(&check["Timeout"]).unwrap_or(TIMEOUT),
        retries: retries(&check["Retries"]).unwrap_or(RETRIES),
        successes: 1,
        start_period: seconds(&check["StartPeriod"]).unwrap_or(0),
        start_interval: seconds(&check["StartInterval"]),
    })
}

fn strings(value: &Value) -> Option<Vec<String>> {
    let words = value.as_array()?.iter().map(|word| word.as_str().map(str::to_owned));
    words.collect()
}

/// Nanoseconds as seconds, rounded up; `None` for 0 and invalid values.
fn seconds(value: &Value) -> Option<u32> {
    let nanoseconds = value.as_u64().filter(|nanoseconds| *nanoseconds > 0)?;
    Some(u32::try_from(nanoseconds.div_ceil(SECOND)).unwrap_or(u32::MAX))
}

fn retries(value: &Value) -> Option<u32> {
    let retries = value.as_u64().filter(|retries| *retries > 0)?;
    Some(u32::try_from(retries).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn command(test: Value) -> Option<Vec<String>> {
        match read(&json!({ "Test": test }), &Value::Null)?.probe {
            Probe::Exec(command) => Some(command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn commands_and_lines() {
        assert_eq!(command(json!(["CMD", "curl", "-f"])).unwrap(), ["curl", "-f"]);
        assert_eq!(
            command(json!(["CMD-SHELL", "a || exit 1"])).unwrap(),
            ["/bin/sh", "-c", "a || exit 1"]
        );
        for none in [
            json!(["NONE"]),
            json!([]),
            json!(["CMD"]),
            json!([1]),
            json!("x"),
            json!(["CMD-SHELL", "a\0"]),
        ] {
            assert_eq!(command(none.clone()), None, "{none}");
        }
        assert_eq!(read(&Value::Null, &Value::Null), None);
        let bash = read(&json!({ "Test": ["CMD-SHELL", "x"] }), &json!(["/bin/bash", "-ec"]));
        assert_eq!(
            bash.unwrap().probe,
            Probe::Exec(["/bin/bash", "-ec", "x"].map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn times_are_nanoseconds_and_nothing_is_the_default() {
        let read = |document: Value| read(&document, &Value::Null).unwrap();
        let test = ["CMD", "true"];
        let check = read(
            json!({ "Test": test, "Interval": 5_000_000_000u64, "Timeout": 1_500_000_000u64, "Retries": 9,
            "StartPeriod": 60_000_000_000u64, "StartInterval": 2_000_000_000u64 }),
        );
        assert_eq!((check.interval, check.timeout, check.retries), (5, 2, 9));
        assert_eq!((check.start_period, check.start_interval), (60, Some(2)));
        for document in [
            json!({ "Test": test }),
            json!({ "Test": test, "Interval": 0, "Timeout": -1, "Retries": "x" }),
        ] {
            let check = read(document);
            assert_eq!((check.interval, check.timeout, check.retries), (30, 30, 3));
            assert_eq!((check.start_period, check.start_interval), (0, None));
        }
    }
}
