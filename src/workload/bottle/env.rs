//! Replaces names of dependencies in environment entries with their addresses (`docs/spec/api.md` 12.3). Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// An entry as the container gets it: if the value is the name of a dependency, or the name followed by a colon, the
/// address replaces the name. Names inside longer text are left alone.
pub fn rewrite(entry: &str, addresses: &BTreeMap<&str, Ipv4Addr>) -> String {
    let replaced = entry.split_once('=').and_then(|(key, value)| {
        // No name contains a colon, so at most one name matches.
        let (name, rest) = value.split_at(value.find(':').unwrap_or(value.len()));
        Some(format!("{key}={}{rest}", addresses.get(name)?))
    });
    replaced.unwrap_or_else(|| entry.to_owned())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("DB=db:5432", "DB=10.166.1.1:5432")]
    #[case("DB=db", "DB=10.166.1.1")]
    #[case("DB=db:", "DB=10.166.1.1:")]
    #[case("DB=db2:1", "DB=10.166.1.2:1")]
    #[case("URL=http://db:80", "URL=http://db:80")]
    #[case("A=db=db", "A=db=db")]
    #[case("A=db,db", "A=db,db")]
    #[case("A=db:db:db", "A=10.166.1.1:db:db")]
    #[case("A=other:1", "A=other:1")]
    #[case("A=", "A=")]
    #[case("db", "db")]
    fn one_name_at_the_beginning_of_a_value(#[case] entry: &str, #[case] expected: &str) {
        let addresses = BTreeMap::from([("db", [10, 166, 1, 1].into()), ("db2", [10, 166, 1, 2].into())]);
        assert_eq!(rewrite(entry, &addresses), expected);
    }
}
