//! What somebody meant.

/// Longest word for which it is tried.
const LONGEST: usize = 32;

/// `; did you mean X?` with the known word that `word` is most like, or nothing.
pub(super) fn hint(word: &str, known: &[&str], prefix: &str) -> String {
    match nearest(word, known) {
        Some(found) => format!("; did you mean {prefix}{found}?"),
        None => String::new(),
    }
}

fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    if word.is_empty() || word.len() > LONGEST {
        return None;
    }
    let distances = known
        .iter()
        .map(|known| (distance(&word, &known.to_ascii_lowercase()), *known));
    let (least, found) = distances.min_by_key(|(distance, _)| *distance)?;
    (least <= word.len().max(found.len()).div_ceil(3)).then_some(found)
}

/// How many characters must be inserted, removed, replaced or swapped with the next.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("FORM", Some("FROM"))]
    #[case("EXPOS", Some("EXPOSE"))]
    #[case("entry_point", Some("ENTRYPOINT"))]
    #[case("COPPY", Some("COPY"))]
    #[case("APT-GET", None)]
    #[case("", None)]
    #[case("ÄÖÜ", None)]
    fn what_is_like_a_known_word(#[case] word: &str, #[case] found: Option<&str>) {
        assert_eq!(nearest(word, &["FROM", "EXPOSE", "ENTRYPOINT", "COPY"]), found);
    }
}
