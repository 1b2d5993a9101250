//! What a prune may remove, and what it has removed. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// Conditions that all have to hold for an object that nothing uses to be removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneFilter {
    /// Only what is older than this.
    pub before: Option<Timestamp>,
    /// Only what has all of these labels.
    pub labels: Vec<LabelRule>,
    /// Only what has none of these labels.
    pub without_labels: Vec<LabelRule>,
}

/// A label, or a label with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelRule {
    /// Name of the label.
    pub key: String,
    /// Its value; `None` for any.
    pub value: Option<String>,
}

impl LabelRule {
    /// `key` or `key=value`; `None` without a key.
    pub fn parse(text: &str) -> Option<Self> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text, None),
        };
        (!key.is_empty()).then(|| Self {
            key: key.to_owned(),
            value,
        })
    }

    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let found = labels.get(&self.key);
        found.is_some_and(|found| self.value.as_ref().is_none_or(|value| value == found))
    }
}

impl PruneFilter {
    /// Whether an object of that age with these labels may be removed.
    pub fn admits(&self, created_at: Timestamp, labels: &BTreeMap<String, String>) -> bool {
        self.before.is_none_or(|before| created_at < before)
            && self.labels.iter().all(|rule| rule.matches(labels))
            && !self.without_labels.iter().any(|rule| rule.matches(labels))
    }
}

/// What a prune of one kind of object has removed or, in a dry run, would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The objects.
    pub removed: Vec<PrunedObject>,
    /// What could not be removed, and why.
    pub failed: Vec<(String, String)>,
    /// Bytes on disk. Less than the sum of the objects' sizes where they share something with others.
    pub bytes_freed: u64,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrunedObject {
    /// Id.
    pub id: String,
    /// Name; may be empty.
    pub name: String,
    /// Bytes on disk that only this object used.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<LabelRule> {
        texts.iter().map(|text| LabelRule::parse(text).unwrap()).collect()
    }

    #[test]
    fn a_rule_is_a_key_or_a_pair() {
        assert_eq!(LabelRule::parse(""), None);
        assert_eq!(LabelRule::parse("=x"), None);
        assert_eq!(rules(&["a=b=c"])[0].value.as_deref(), Some("b=c"));
        assert_eq!(rules(&["a="])[0].value.as_deref(), Some(""));
        assert_eq!(rules(&["a"])[0].value, None);
    }

    #[test]
    fn every_condition_has_to_hold() {
        let labels = BTreeMap::from([
            ("env".to_owned(), "test".to_owned()),
            ("keep".to_owned(), String::new()),
        ]);
        let at = Timestamp::UNIX_EPOCH;
        let admits = |with: &[&str], without: &[&str]| {
            let filter = PruneFilter {
                before: None,
                labels: rules(with),
                without_labels: rules(without),
            };
            filter.admits(at, &labels)
        };
        assert!(admits(&[], &[]) && admits(&["env"], &[]) && admits(&["env=test", "keep="], &[]));
        assert!(!admits(&["env=prod"], &[]) && !admits(&["env", "other"], &[]));
        assert!(!admits(&[], &["keep"]) && !admits(&["env"], &["other", "keep"]) && admits(&[], &["keep=1"]));
        let older = |before| {
            let filter = PruneFilter {
                before: Some(before),
                ..PruneFilter::default()
            };
            filter.admits(at, &labels)
        };
        assert!(older(Timestamp::from_second(1).unwrap()) && !older(at));
    }
}
