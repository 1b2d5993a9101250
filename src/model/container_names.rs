//! New names and ids of containers (`docs/spec/api.md` 4.1, 4.2). Pure.

use jiff::Timestamp;
use rand::RngExt;

use crate::model::{Claim, Snapshot};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A container id that nothing in `snapshot` uses: 12 characters, the first four of the time, 40 random bits.
pub fn fresh_id(snapshot: &Snapshot, now: Timestamp) -> String {
    loop {
        let ulid = ulid::Ulid::from_parts(now.as_millisecond().max(0) as u64, 0)
            .to_string()
            .to_lowercase();
        let mut id = ulid[..4].to_owned();
        id.extend(random_characters(8));
        if !is_used(snapshot, &id) {
            return id;
        }
    }
}

/// A random name that no container has: `<adjective>-<noun>-<4 digits>`.
pub fn fresh_name(snapshot: &Snapshot) -> String {
    let mut random = rand::rng();
    loop {
        let adjective = ADJECTIVES[random.random_range(0..ADJECTIVES.len())];
        let noun = NOUNS[random.random_range(0..NOUNS.len())];
        let name = format!("{adjective}-{noun}-{:04}", random.random_range(0..10_000));
        if !is_used(snapshot, &name) {
            return name;
        }
    }
}

fn is_used(snapshot: &Snapshot, word: &str) -> bool {
    snapshot.holder(&Claim::ContainerName(word.to_owned())).is_some()
}

fn random_characters(count: usize) -> impl Iterator<Item = char> {
    let mut random = rand::rng();
    (0..count).map(move |_| ALPHABET[random.random_range(0..ALPHABET.len())] as char)
}

const ADJECTIVES: &[&str] = &[
    "amber", "brisk", "calm", "clear", "copper", "crisp", "dewy", "dry", "early", "fair", "fine", "foggy", "fresh",
    "gentle", "golden", "grey", "hazy", "humid", "icy", "keen", "late", "light", "lively", "lucid", "mellow", "mild",
    "misty", "narrow", "pale", "plain", "polar", "quick", "quiet", "rainy", "rapid", "ripe", "round", "sheer",
    "silent", "silver", "slow", "snowy", "soft", "solid", "steady", "still", "sunny", "swift", "tidal", "upper",
    "vivid", "warm", "wide", "windy", "young",
];
const NOUNS: &[&str] = &[
    "arc", "basin", "beam", "bridge", "brook", "canal", "cliff", "cloud", "coast", "coil", "comet", "coral", "creek",
    "delta", "dome", "drift", "droplet", "dune", "fjord", "flume", "frost", "gale", "glade", "grove", "harbor",
    "island", "lagoon", "lake", "ledge", "marsh", "mesa", "orbit", "pass", "peak", "pine", "plain", "prism", "rain",
    "reef", "ridge", "river", "sluice", "spring", "steam", "stone", "stream", "summit", "tangent", "tide", "vale",
    "valve", "vapor", "wave", "wharf",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::{is_container_id, is_container_name};

    #[test]
    fn ids_are_twelve_characters_of_the_alphabet_and_differ() {
        let snapshot = Snapshot::default();
        let ids: std::collections::BTreeSet<_> = (0..1000).map(|_| fresh_id(&snapshot, Timestamp::now())).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| is_container_id(id)));
    }

    #[test]
    fn random_names_are_valid() {
        assert!(is_container_name(&fresh_name(&Snapshot::default())));
    }
}
