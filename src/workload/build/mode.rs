//! `--chmod`: octal digits, or symbols as in chmod(1). Pure.

/// A change of the mode of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ModeChange {
    /// This mode, whatever it was.
    Exact(u32),
    /// Changes in order.
    Symbolic(Vec<Clause>),
}

/// One operator of a symbolic change, such as `go-w`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clause {
    /// Of owner, group and others, as bits 0o100, 0o010, 0o001.
    who: u32,
    operator: char,
    /// `r`, `w`, `x`, `X`, `s`, `t`, or one of `u`, `g`, `o`.
    permissions: String,
}

impl ModeChange {
    /// Parses the value of the flag. `None` if it is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).ok()?;
            return (mode <= 0o7777).then_some(Self::Exact(mode));
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            clauses.extend(clauses_of(part)?);
        }
        Some(Self::Symbolic(clauses))
    }

    /// The new mode of something that has the mode `mode`.
    pub(super) fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        match self {
            Self::Exact(mode) => *mode,
            Self::Symbolic(clauses) => clauses
                .iter()
                .fold(mode, |mode, clause| clause.apply(mode, is_directory)),
        }
    }
}

/// `u=rw` or `u+r-w`: one or more operators for the same.
fn clauses_of(part: &str) -> Option<Vec<Clause>> {
    let is_operator = |c: char| matches!(c, '+' | '-' | '=');
    let begin = part.find(is_operator)?;
    let mut who = 0;
    for c in part[..begin].chars() {
        who |= match c {
            'u' => 0o100,
            'g' => 0o010,
            'o' => 0o001,
            'a' => 0o111,
            _ => return None,
        };
    }
    if who == 0 {
        who = 0o111;
    }
    let mut clauses = Vec::new();
    let mut rest = &part[begin..];
    while let Some(operator) = rest.chars().next() {
        let permissions = &rest[1..];
        let end = permissions.find(is_operator).unwrap_or(permissions.len());
        let permissions = &permissions[..end];
        let is_copy = matches!(permissions, "u" | "g" | "o");
        if !is_copy && !permissions.chars().all(|c| "rwxXst".contains(c)) {
            return None;
        }
        clauses.push(Clause {
            who,
            operator,
            permissions: permissions.to_owned(),
        });
        rest = &rest[1 + end..];
    }
    Some(clauses)
}

impl Clause {
    fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        let (mut bits, mut special) = (0, 0);
        for c in self.permissions.chars() {
            match c {
                'r' => bits |= 0o4,
                'w' => bits |= 0o2,
                'x' => bits |= 0o1,
                'X' if is_directory || mode & 0o111 != 0 => bits |= 0o1,
                'u' => bits |= mode >> 6 & 0o7,
                'g' => bits |= mode >> 3 & 0o7,
                'o' => bits |= mode & 0o7,
                's' if self.who & 0o100 != 0 => special |= 0o4000,
                't' => special |= 0o1000,
                _ => {}
            }
            if c == 's' && self.who & 0o010 != 0 {
                special |= 0o2000;
            }
        }
        let wanted = (bits * self.who) | special;
        match self.operator {
            '+' => mode | wanted,
            '-' => mode & !wanted,
            _ => (mode & !(0o7 * self.who)) | wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("755", 0o644, false, 0o755)]
    #[case("0600", 0o4777, true, 0o600)]
    #[case("4755", 0, false, 0o4755)]
    #[case("u=rwX,go=rX", 0o600, false, 0o644)]
    #[case("u=rwX,go=rX", 0o600, true, 0o755)]
    #[case("u=rwX,go=rX", 0o700, false, 0o755)]
    #[case("+x", 0o644, false, 0o755)]
    #[case("a-w", 0o666, false, 0o444)]
    #[case("go=", 0o777, false, 0o700)]
    #[case("u+s,g+s,+t", 0o755, false, 0o7755)]
    #[case("g=u,o=g", 0o640, false, 0o666)]
    #[case("u+x-w", 0o600, false, 0o500)]
    fn modes(#[case] text: &str, #[case] mode: u32, #[case] is_directory: bool, #[case] wanted: u32) {
        let changed = ModeChange::parse(text).unwrap().apply(mode, is_directory);
        assert_eq!(changed, wanted, "{changed:o}");
    }

    #[rstest]
    #[case("")]
    #[case("888")]
    #[case("77777")]
    #[case("rwx")]
    #[case("u=q")]
    #[case("z+x")]
    #[case("u+x,")]
    #[case("u+é")]
    #[case("7+x")]
    fn no_modes(#[case] text: &str) {
        assert_eq!(ModeChange::parse(text), None);
    }
}
