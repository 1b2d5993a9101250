//! Every example of README.md and docs/*.md does what its page says: it is run in a lab, from the top of the page to its
//! end, in one shell, with stand-ins for the images of Docker Hub that the pages use.
//!
//! A code block is run unless a comment before it says why not. Readers of the page do not see the comments; several
//! go into one with `;` between them.
//!
//! | `<!-- test: … -->` | |
//! |---|---|
//! | `skip, REASON` | not run |
//! | `needs WORD …` | there before the block: `web`, `db` (running containers), `demo:1` (the image of the quickstart), `localhost:5000` (a registry), `no-daemon` (it is stopped for the block) |
//! | `output varies, REASON` | run, but what it prints is not compared |
//!
//! By language:
//!
//! - `sh`: every command succeeds, and no answer of the API is a failure. Where lines begin with `$ `, the lines after each
//!   are what is printed: ids, times and digests may be others, and `…` stands for anything.
//! - `toml`: a configuration. `yaml`: a manifest or a bottle, which is applied. `json`: is JSON.
//! - Without a language: not run, unless lines begin with `$ `.
//!
//! `sudo` does nothing here, `api -N …` ends after two seconds, and a GET over plain HTTP is tried again while nobody
//! listens yet.

mod page;
mod shell;
mod stand_in;

use std::path::{Path, PathBuf};
use std::process::Child;

use rstest::rstest;
use serde_json::{Value, json};

use self::page::{Block, Language, blocks};
use self::shell::{Shell, same};
use crate::support::{Lab, REGISTRY, send};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// A registry on the host that its user has started.
const LOCAL: &str = "localhost:5000";

#[rstest]
fn examples_do_what_the_page_says(
    #[files("README.md")]
    #[files("docs/*.md")]
    page: PathBuf,
) {
    let blocks = blocks(&page);
    let to_run: Vec<_> = blocks.iter().filter(|block| block.notes.skip.is_none()).collect();
    if to_run.is_empty() {
        return;
    }
    let mut reader = Reader::new();
    for block in to_run {
        reader.follow(block);
    }
}

/// The Japanese page has the same commands; only what they are explained with differs.
#[test]
fn the_japanese_readme_has_the_same_examples() {
    let commands = |page: &str| -> Vec<String> {
        let blocks = blocks(&Path::new(ROOT).join(page));
        blocks.iter().map(|block| without_comments(&block.text)).collect()
    };
    assert_eq!(commands("README_jp.md"), commands("README.md"));
}

fn without_comments(text: &str) -> String {
    let code = |line: &str| line.split("  #").next().unwrap_or_default().trim_end().to_owned();
    text.lines().map(code).collect::<Vec<_>>().join("\n")
}

/// Somebody who types what a page says.
struct Reader {
    lab: Lab,
    shell: Shell,
    /// What was started for the page. It ends with the lab.
    helpers: Vec<Child>,
}

impl Reader {
    fn new() -> Self {
        let lab = Lab::start();
        // What docs/images-security.md has its reader configure.
        lab.daemon()
            .set("CONDENSER_INSECURE_REGISTRIES", &format!("{REGISTRY},{LOCAL}"));
        lab.daemon().start();
        stand_in::push_images(&lab);
        let mut shell = Shell::start(&lab);
        // The other pages refer to it.
        let readme = blocks(&Path::new(ROOT).join("README.md"));
        let definition = readme.iter().find(|block| block.text.starts_with("api() {"));
        shell.define(&definition.expect("README.md defines api").text);
        Self {
            lab,
            shell,
            helpers: Vec::new(),
        }
    }

    fn follow(&mut self, block: &Block) {
        for need in &block.notes.needs {
            self.provide(need);
        }
        match block.language {
            Language::Shell => self.type_in(block),
            Language::Toml => self.configure(block),
            Language::Yaml => self.apply(block),
            Language::Json => drop(serde_json::from_str::<Value>(&block.text).unwrap_or_else(|e| block.fail(&e))),
        }
        if block.notes.needs.iter().any(|need| need == "no-daemon") {
            self.lab.daemon().start();
        }
    }

    fn provide(&mut self, need: &str) {
        match need {
            "web" => self.container("web", "nginx:alpine", &json!([])),
            "db" => self.container("db", "busybox:1", &json!(["sleep", "1000"])),
            "demo:1" => {
                let build = r#"tar -cf - -C assets/demo Dripfile index.html -C /bin busybox |
                    api --data-binary @- "$API/images/build?tag=demo:1""#;
                self.shell.run(build).expect("the image of the quickstart");
            }
            LOCAL => self.helpers.push(stand_in::local_registry(&self.lab)),
            "no-daemon" => drop(self.lab.daemon().stop()),
            other => panic!("nobody knows how to provide {other:?}"),
        }
    }

    /// A running container of that name, and no earlier one.
    fn container(&self, name: &str, image: &str, command: &Value) {
        let api = self.lab.api();
        let path = format!("/v1/containers/{name}");
        if api.call(send("GET", &path, Vec::new())).status == 200 {
            return;
        }
        let mut request = json!({ "image": image, "name": name });
        if command.as_array().is_some_and(|words| !words.is_empty()) {
            request["command"] = command.clone();
        }
        api.run(request);
    }

    fn type_in(&mut self, block: &Block) {
        for step in block.steps() {
            let said = self.shell.run(&step.command).unwrap_or_else(|said| block.fail(&said));
            match &step.output {
                Some(_) if block.notes.output_varies.is_some() => {}
                Some(wanted) if same(wanted, &said) => {}
                Some(wanted) => block.fail(&format!("$ {}\nwanted:\n{wanted}\ngot:\n{said}", step.command)),
                None if said.contains(r#""status":"fail""#) => block.fail(&said),
                None => {}
            }
        }
    }

    fn configure(&self, block: &Block) {
        self.lab.machine().write("/run/docs/condenser.toml", &block.text);
        let settings =
            condenser::daemon::config::Settings::from_file(&self.lab.machine().path("/run/docs/condenser.toml"));
        let config = settings.and_then(condenser::daemon::config::Config::from_settings);
        config.unwrap_or_else(|e| block.fail(&e));
    }

    fn apply(&self, block: &Block) {
        let bottle = block.text.lines().any(|line| line.starts_with("bottle:"));
        let path = if bottle { "/v1/bottle" } else { "/v1/resource/apply" };
        let reply = self.lab.api().call(send("POST", path, block.text.as_bytes()));
        if reply.status >= 300 {
            block.fail(&reply.text());
        }
    }
}
