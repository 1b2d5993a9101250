//! Rules as data: what iptables-save prints and what iptables-restore reads, which is the same format.

use std::collections::BTreeMap;

/// Name of a table -> name of a chain -> its rules, each as written after `-A <chain> `.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tables(BTreeMap<String, BTreeMap<String, Vec<String>>>);

impl Tables {
    /// Reads tables, chains and rules. Comments, counters and policies are passed over.
    pub fn parse(text: &str) -> Self {
        let mut tables = BTreeMap::<String, BTreeMap<String, Vec<String>>>::new();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                current = name.to_owned();
                tables.entry(current.clone()).or_default();
            } else if let Some(chain) = line.strip_prefix(':').and_then(|l| l.split(' ').next()) {
                tables
                    .entry(current.clone())
                    .or_default()
                    .entry(chain.to_owned())
                    .or_default();
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|l| l.split_once(' ')) {
                let chains = tables.entry(current.clone()).or_default();
                chains.entry(chain.to_owned()).or_default().push(rule.to_owned());
            }
        }
        Self(tables)
    }

    /// Names of the tables.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The chains of a table.
    pub fn chains(&self, table: &str) -> impl Iterator<Item = (&str, &[String])> {
        self.0
            .get(table)
            .into_iter()
            .flatten()
            .map(|(name, rules)| (&**name, &**rules))
    }

    /// The rules of a chain; `None` when there is no such chain.
    pub fn rules(&self, table: &str, chain: &str) -> Option<&[String]> {
        self.0.get(table)?.get(chain).map(Vec::as_slice)
    }

    /// Appends a rule, making the chain if needed.
    pub fn push(&mut self, table: &str, chain: &str, rule: String) {
        let chains = self.0.entry(table.to_owned()).or_default();
        chains.entry(chain.to_owned()).or_default().push(rule);
    }
}

/// One option of a rule with its values, as in `! --ctstate RELATED,ESTABLISHED`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Opt<'a> {
    pub name: &'a str,
    pub negated: bool,
    pub values: Vec<&'a str>,
}

/// The options of a rule in an order that does not depend on the version of the tool: sorted, without quotes, and without
/// the `-m tcp` that some versions print and others imply.
pub(super) fn options(rule: &str) -> Vec<Opt<'_>> {
    let mut options: Vec<Opt<'_>> = Vec::new();
    let mut negated = false;
    for word in words(rule) {
        match word {
            Word::Plain("!") => negated = true,
            Word::Plain(name) if name.len() > 1 && name.starts_with('-') => options.push(Opt {
                name,
                negated: std::mem::take(&mut negated),
                values: Vec::new(),
            }),
            Word::Plain(value) | Word::Quoted(value) => {
                if let Some(last) = options.last_mut() {
                    last.values.push(value);
                }
            }
        }
    }
    options.retain(|o| o.name != "-m" || !matches!(o.values[..], ["tcp" | "udp"]));
    options.sort();
    options
}

/// The chain or target that a rule leads to.
pub(super) fn target(rule: &str) -> Option<&str> {
    let mut words = words(rule);
    words.by_ref().find(|w| matches!(w, Word::Plain("-j" | "-g")))?;
    match words.next()? {
        Word::Plain(target) | Word::Quoted(target) => Some(target),
    }
}

enum Word<'a> {
    Plain(&'a str),
    /// What stood between double quotes, escapes as they are. Never an option: a comment may look like one.
    Quoted(&'a str),
}

fn words(rule: &str) -> impl Iterator<Item = Word<'_>> {
    let mut rest = rule;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        if rest.is_empty() {
            return None;
        }
        let Some(quoted) = rest.strip_prefix('"') else {
            let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
            rest = after;
            return Some(Word::Plain(word));
        };
        let mut escaped = false;
        let end = quoted.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let end = end.unwrap_or(quoted.len());
        rest = quoted.get(end + 1..).unwrap_or("");
        Some(Word::Quoted(&quoted[..end]))
    })
}

/// Whether two lists of rules mean the same.
pub(super) fn same(a: &[String], b: &[String]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || options(a) == options(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_text_is_read() {
        let text = "# Generated by iptables-save\n*filter\n:FORWARD ACCEPT [12:3]\n:RAIND-ROOT - [0:0]\n\
                    -A FORWARD -j RAIND-ROOT\nCOMMIT\n# Completed\n*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";
        let tables = Tables::parse(text);
        assert_eq!(tables.names().collect::<Vec<_>>(), ["filter", "nat"]);
        assert_eq!(tables.rules("filter", "FORWARD").unwrap(), ["-j RAIND-ROOT"]);
        assert!(tables.rules("filter", "RAIND-ROOT").unwrap().is_empty());
        assert!(tables.rules("nat", "RAIND-ROOT").is_none());
    }

    #[test]
    fn wording_does_not_matter() {
        let ours =
            r#"-i a -p tcp -m conntrack --ctstate NEW -m tcp --dport 80 -j NFLOG --nflog-prefix "x,y" --nflog-group 1"#;
        let theirs =
            "-p tcp -i a -m tcp --dport 80 -m conntrack --ctstate NEW -j NFLOG --nflog-group 1 --nflog-prefix x,y";
        assert!(same(&[ours.into()], &[theirs.into()]));
        assert!(same(
            &["-p udp -m udp --dport 53 -j DROP".into()],
            &["-p udp --dport 53 -j DROP".into()]
        ));
    }

    #[test]
    fn meaning_matters() {
        let rule = "! -i lo -p tcp -m tcp --dport 7756 -j DROP".to_owned();
        for other in [
            "-i lo -p tcp -m tcp --dport 7756 -j DROP",
            "! -i lo -p tcp -m tcp --dport 7757 -j DROP",
            "! -i lo -p tcp -m tcp --dport 7756 -j ACCEPT",
            "! -i lo -p tcp -m tcp --dport 7756",
        ] {
            assert!(!same(std::slice::from_ref(&rule), &[other.into()]), "{other}");
        }
        assert!(!same(std::slice::from_ref(&rule), &[]));
    }

    #[test]
    fn targets() {
        assert_eq!(target("-i a -j RAIND-EW"), Some("RAIND-EW"));
        assert_eq!(target("-g RAIND-EW"), Some("RAIND-EW"));
        assert_eq!(target("-i a"), None);
        assert_eq!(
            target(r#"-m comment --comment "was \" -j RAIND-EW" -j ACCEPT"#),
            Some("ACCEPT")
        );
    }
}
