//! Code blocks of a page, and the comments for the test before them.

use std::fmt::Display;
use std::path::Path;

use super::ROOT;

/// How a block is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Shell,
    Toml,
    Yaml,
    Json,
}

/// One fenced block.
#[derive(Debug)]
pub struct Block {
    /// `docs/pods.md:9`: where its first line is.
    pub place: String,
    pub language: Language,
    pub notes: Notes,
    pub text: String,
}

/// What the comment before a block says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Why it is not run.
    pub skip: Option<String>,
    /// What has to be there.
    pub needs: Vec<String>,
    /// Why what it prints cannot be compared.
    pub output_varies: Option<String>,
}

/// A command and, where the page says it, what it prints.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub command: String,
    pub output: Option<String>,
}

impl Block {
    /// Fails the test with the block and what is wrong.
    pub fn fail(&self, why: &dyn Display) -> ! {
        panic!(
            "the example at {} does not do what the page says.\n{why}\n---- the block ----\n{}",
            self.place, self.text
        )
    }

    /// The whole block, or the lines that begin with `$ ` with those that follow them.
    pub fn steps(&self) -> Vec<Step> {
        if !self.text.starts_with("$ ") {
            let command = self.text.clone();
            return vec![Step { command, output: None }];
        }
        let mut steps: Vec<Step> = Vec::new();
        for line in self.text.lines() {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step {
                    command: command.to_owned(),
                    output: Some(String::new()),
                }),
                (None, Some(step)) => match &mut step.output {
                    Some(output) if output.is_empty() && step.command.ends_with('\\') => {
                        step.command = format!("{}\n{line}", step.command);
                    }
                    Some(output) => *output += &format!("{line}\n"),
                    None => {}
                },
                (None, None) => {}
            }
        }
        // A command under which nothing stands may print something.
        for step in &mut steps {
            if step.output.as_ref().is_some_and(|output| output.trim().is_empty()) {
                step.output = None;
            }
        }
        steps
    }
}

/// The blocks of a page that are checked. Fails for a language, or a comment, that this test does not know.
pub fn blocks(page: &Path) -> Vec<Block> {
    let text = std::fs::read_to_string(page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
    let name = page.strip_prefix(ROOT).unwrap_or(page).display().to_string();
    parse(&name, &text)
}

fn parse(name: &str, text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut notes = Notes::default();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let place = format!("{name}:{}", number + 2);
        if let Some(comment) = line.strip_prefix("<!-- test:") {
            notes = notes_of(
                &place,
                comment
                    .strip_suffix("-->")
                    .unwrap_or_else(|| panic!("{place}: one line")),
            );
        } else if let Some(word) = line.strip_prefix("```") {
            let body: Vec<_> = lines
                .by_ref()
                .map(|(_, line)| line)
                .take_while(|line| *line != "```")
                .collect();
            let text = body.join("\n") + "\n";
            let language = match word {
                "sh" => Some(Language::Shell),
                "toml" => Some(Language::Toml),
                "yaml" => Some(Language::Yaml),
                "json" => Some(Language::Json),
                "" => text.starts_with("$ ").then_some(Language::Shell),
                other => panic!("{place}: nobody knows how to check {other:?}"),
            };
            let notes = std::mem::take(&mut notes);
            found.extend(language.map(|language| Block {
                place,
                language,
                notes,
                text,
            }));
        } else if !line.trim().is_empty() {
            assert_eq!(notes, Notes::default(), "{place}: the comment is not before a block");
        }
    }
    found
}

fn notes_of(place: &str, comment: &str) -> Notes {
    let mut notes = Notes::default();
    for part in comment.split(';') {
        let part = part.trim();
        let reason = |rest: &str| {
            let reason = rest.strip_prefix(", ").unwrap_or_default().trim();
            assert!(!reason.is_empty(), "{place}: {part:?} needs a reason after a comma");
            Some(reason.to_owned())
        };
        if let Some(rest) = part.strip_prefix("skip") {
            notes.skip = reason(rest);
        } else if let Some(rest) = part.strip_prefix("output varies") {
            notes.output_varies = reason(rest);
        } else if let Some(words) = part.strip_prefix("needs ") {
            notes.needs = words.split_whitespace().map(str::to_owned).collect();
        } else {
            panic!("{place}: {part:?} is not one of skip, needs, output varies");
        }
    }
    notes
}

#[test]
fn comments_belong_to_the_block_after_them() {
    let page = "text\n\n<!-- test: needs web db; output varies, by the hour -->\n```sh\n$ date \\\n  -u\nnow\n$ true\n```\n\
                \n```\n$ who\nme\n```\n```\nplain\n```\n<!-- test: skip, no systemd -->\n\n```sh\nsystemctl\n```\n";
    let found = parse("page.md", page);
    let [date, who, skipped] = &found[..] else {
        panic!("{found:#?}")
    };
    assert_eq!(date.place, "page.md:5");
    assert_eq!(date.notes.needs, ["web", "db"]);
    assert_eq!(date.notes.output_varies.as_deref(), Some("by the hour"));
    let steps = date.steps();
    assert_eq!(
        (steps[0].command.as_str(), steps[0].output.as_deref()),
        ("date \\\n  -u", Some("now\n"))
    );
    assert_eq!((steps[1].command.as_str(), steps[1].output.as_deref()), ("true", None));
    assert_eq!(who.notes, Notes::default());
    assert_eq!(skipped.notes.skip.as_deref(), Some("no systemd"));
}
