//! The settings of an image while it is built: the member `config` of its configuration document (OCI image
//! specification, image configuration, with the additions of Docker: `Shell`, `OnBuild`, `Healthcheck`). Pure.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::file::{Command, HealthCheck, Test};

/// The shell of lines without `SHELL`.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// Where commands are looked for in an image that does not say it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The settings of a stage so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Settings {
    config: Map<String, Value>,
    /// `MAINTAINER`, if the stage or one below has one.
    pub(super) author: Option<String>,
    /// Whether this stage has a `CMD` of its own.
    has_cmd: bool,
}

impl Settings {
    /// Those of a base image; with a `PATH`, as `BuildKit` does. `document` is its configuration document; `null` without
    /// one.
    pub(super) fn of_base(document: &Value) -> Self {
        let config = document.get("config").and_then(Value::as_object);
        let mut settings = Self {
            config: config.cloned().unwrap_or_default(),
            author: document.get("author").and_then(Value::as_str).map(str::to_owned),
            has_cmd: false,
        };
        let mut env = settings.env();
        if !env.iter().any(|entry| entry.starts_with("PATH=")) {
            env.push(PATH.to_owned());
            settings.config.insert("Env".into(), json!(env));
        }
        settings
    }

    /// Those of a stage that begins with this one.
    pub(super) fn of_next_stage(&self) -> Self {
        Self {
            has_cmd: false,
            ..self.clone()
        }
    }

    /// The member `config` of the image. Members that clients expect are always there.
    pub(super) fn into_config(mut self) -> (Map<String, Value>, Option<String>) {
        let working_dir = self.working_dir();
        for list in ["Env", "Entrypoint", "Cmd"] {
            let words = self.words(list);
            self.config.insert(list.into(), json!(words));
        }
        self.config.insert("WorkingDir".into(), json!(working_dir));
        let user = self.user();
        self.config.insert("User".into(), json!(user));
        (self.config, self.author)
    }

    fn words(&self, member: &str) -> Vec<String> {
        let words = self.config.get(member).and_then(Value::as_array);
        let words = words.into_iter().flatten().filter_map(Value::as_str);
        words.map(str::to_owned).collect()
    }

    fn text(&self, member: &str) -> &str {
        self.config.get(member).and_then(Value::as_str).unwrap_or_default()
    }

    /// `KEY=VALUE` entries.
    pub(super) fn env(&self) -> Vec<String> {
        self.words("Env")
    }

    /// Sets a variable, in the position of an earlier one of that name.
    pub(super) fn set_env(&mut self, key: &str, value: &str) {
        let mut env = self.env();
        let entry = format!("{key}={value}");
        let same = |old: &&mut String| old.split_once('=').is_some_and(|(old, _)| old == key);
        match env.iter_mut().find(same) {
            Some(old) => *old = entry,
            None => env.push(entry),
        }
        self.config.insert("Env".into(), json!(env));
    }

    /// Absolute; `/` by default.
    pub(super) fn working_dir(&self) -> String {
        match self.text("WorkingDir") {
            "" => "/".to_owned(),
            path => joined("/", path),
        }
    }

    /// Resolves the path of a `WORKDIR` and sets it.
    pub(super) fn set_working_dir(&mut self, path: &str) -> String {
        let path = joined(&self.working_dir(), path);
        self.config.insert("WorkingDir".into(), json!(path));
        path
    }

    /// `user[:group]`; empty for root.
    pub(super) fn user(&self) -> String {
        self.text("User").to_owned()
    }

    pub(super) fn set_user(&mut self, user: &str) {
        self.config.insert("User".into(), json!(user));
    }

    fn shell(&self) -> Vec<String> {
        match self.words("Shell") {
            words if words.is_empty() => SHELL.map(str::to_owned).to_vec(),
            words => words,
        }
    }

    pub(super) fn set_shell(&mut self, words: &[String]) {
        self.config.insert("Shell".into(), json!(words));
    }

    /// The argument vector of a command.
    pub(super) fn arguments(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(line) => {
                let mut words = self.shell();
                words.push(line.clone());
                words
            }
        }
    }

    pub(super) fn set_cmd(&mut self, command: &Command) {
        self.config.insert("Cmd".into(), json!(self.arguments(command)));
        self.has_cmd = true;
    }

    /// The arguments of the base image are for another program.
    pub(super) fn set_entrypoint(&mut self, command: &Command) {
        self.config.insert("Entrypoint".into(), json!(self.arguments(command)));
        if !self.has_cmd {
            self.config.remove("Cmd");
        }
    }

    pub(super) fn add_label(&mut self, key: &str, value: &str) {
        self.insert_into("Labels", key, json!(value));
    }

    /// `80/tcp`.
    pub(super) fn expose(&mut self, port: &str) {
        self.insert_into("ExposedPorts", port, json!({}));
    }

    pub(super) fn add_volume(&mut self, path: &str) {
        self.insert_into("Volumes", path, json!({}));
    }

    /// Inserts into a member that is an object; some tools write `null` for an empty one.
    fn insert_into(&mut self, member: &str, key: &str, value: Value) {
        let old = self.config.get(member).and_then(Value::as_object);
        let mut members = old.cloned().unwrap_or_default();
        members.insert(key.to_owned(), value);
        self.config.insert(member.to_owned(), Value::Object(members));
    }

    pub(super) fn set_stop_signal(&mut self, signal: &str) {
        self.config.insert("StopSignal".into(), json!(signal));
    }

    pub(super) fn set_health_check(&mut self, check: &HealthCheck) {
        let check = match check {
            HealthCheck::None => json!({ "Test": ["NONE"] }),
            HealthCheck::Test(test) => health_check(test),
        };
        self.config.insert("Healthcheck".into(), check);
    }

    pub(super) fn add_trigger(&mut self, text: &str) {
        let mut triggers = self.words("OnBuild");
        triggers.push(text.to_owned());
        self.config.insert("OnBuild".into(), json!(triggers));
    }

    /// The instructions that a base image has for builds on top of it. They are carried out once.
    pub(super) fn take_triggers(&mut self) -> Vec<String> {
        let triggers = self.words("OnBuild");
        self.config.remove("OnBuild");
        triggers
    }
}

/// Times in nanoseconds, as Docker has them.
fn health_check(test: &Test) -> Value {
    let words: Vec<String> = match &test.command {
        Command::Shell(line) => vec!["CMD-SHELL".into(), line.clone()],
        Command::Exec(words) => std::iter::once("CMD".to_owned()).chain(words.iter().cloned()).collect(),
    };
    let mut check = json!({ "Test": words });
    let times = [
        ("Interval", test.interval),
        ("Timeout", test.timeout),
        ("StartPeriod", test.start_period),
        ("StartInterval", test.start_interval),
    ];
    for (member, time) in times {
        if let Some(time) = time.filter(|time| *time > Duration::ZERO) {
            check[member] = json!(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
    }
    if let Some(retries) = test.retries.filter(|retries| *retries > 0) {
        check["Retries"] = json!(retries);
    }
    check
}

/// Resolves `path` against `directory`, both in an image: absolute, without `.` and `..`.
pub(super) fn joined(directory: &str, path: &str) -> String {
    let full = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{directory}/{path}"),
    };
    let mut parts = Vec::new();
    for part in full.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Command {
        Command::Exec(words.iter().map(|word| word.to_string()).collect())
    }

    #[test]
    fn a_variable_keeps_its_place() {
        let base = json!({ "config": { "Env": ["PATH=/p", "A=1", "B=2"] } });
        let mut settings = Settings::of_base(&base);
        settings.set_env("A", "x=y");
        settings.set_env("C", "");
        assert_eq!(settings.env(), ["PATH=/p", "A=x=y", "B=2", "C="]);
    }

    #[test]
    fn there_is_always_a_path() {
        for base in [Value::Null, json!({ "config": { "Env": ["PATHS=/p"] } })] {
            assert!(Settings::of_base(&base).env().contains(&PATH.to_owned()), "{base}");
        }
    }

    #[test]
    fn an_entrypoint_resets_the_cmd_of_the_base_only() {
        let base = json!({ "config": { "Cmd": ["base"], "Labels": null } });
        let mut settings = Settings::of_base(&base);
        settings.set_entrypoint(&words(&["e"]));
        assert_eq!(settings.clone().into_config().0["Cmd"], json!([]));
        let mut settings = Settings::of_base(&base);
        settings.set_cmd(&Command::Shell("own".into()));
        settings.set_entrypoint(&words(&["e"]));
        assert_eq!(settings.clone().into_config().0["Cmd"], json!(["/bin/sh", "-c", "own"]));
        let mut next = settings.of_next_stage();
        next.set_entrypoint(&words(&[]));
        assert_eq!(next.into_config().0["Cmd"], json!([]));
        settings.add_label("l", "1");
        settings.set_shell(&["/bin/ash".into(), "-ec".into()]);
        settings.set_cmd(&Command::Shell("own".into()));
        let config = settings.into_config().0;
        assert_eq!(config["Labels"], json!({ "l": "1" }));
        assert_eq!(config["Cmd"], json!(["/bin/ash", "-ec", "own"]));
        assert_eq!(config["WorkingDir"], "/");
    }

    #[test]
    fn a_check_has_its_times_in_nanoseconds() {
        let test = Test {
            command: Command::Shell("true".into()),
            interval: Some(Duration::from_millis(1500)),
            timeout: None,
            start_period: Some(Duration::ZERO),
            start_interval: None,
            retries: Some(3),
        };
        let mut settings = Settings::default();
        settings.set_health_check(&HealthCheck::Test(test));
        let wanted = json!({ "Test": ["CMD-SHELL", "true"], "Interval": 1_500_000_000_u64, "Retries": 3 });
        assert_eq!(settings.clone().into_config().0["Healthcheck"], wanted);
        settings.set_health_check(&HealthCheck::None);
        assert_eq!(settings.into_config().0["Healthcheck"], json!({ "Test": ["NONE"] }));
    }

    #[test]
    fn triggers_are_carried_out_once() {
        let base = json!({ "config": { "OnBuild": ["RUN a"] } });
        let mut settings = Settings::of_base(&base);
        settings.add_trigger("COPY . /x");
        assert_eq!(settings.take_triggers(), ["RUN a", "COPY . /x"]);
        assert!(settings.take_triggers().is_empty());
    }

    #[test]
    fn paths_of_an_image() {
        for (directory, path, wanted) in [
            ("/", "app", "/app"),
            ("/app", ".", "/app"),
            ("/app", "../x//y/", "/x/y"),
            ("/app", "/etc/./z", "/etc/z"),
            ("/", "../../..", "/"),
        ] {
            assert_eq!(joined(directory, path), wanted);
        }
    }
}
