//! The smallest `iptables-restore --noflush` input that turns the kernel's rules into the desired ones. Pure.

use std::fmt::Write;

use super::tables::{Tables, same, target};

/// Prefix of all our chains; no foreign chain has it.
pub(super) const PREFIX: &str = "RAIND-";

/// A jump from a built-in chain to one of ours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Jump {
    pub table: &'static str,
    pub from: &'static str,
    pub to: &'static str,
    pub place: JumpPosition,
}

/// Position of a jump in the built-in chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JumpPosition {
    /// Before foreign rules, in the order of [`JUMPS`].
    Top,
    /// After the foreign rules that exist already.
    Bottom,
}

/// IPv4 (`docs/spec/network.md` 5.5).
pub(super) const JUMPS: &[Jump] = &[
    jump("filter", "INPUT", "RAIND-INPUT", JumpPosition::Top),
    jump("filter", "FORWARD", "RAIND-HAIRPIN", JumpPosition::Top),
    jump("filter", "FORWARD", "RAIND-ROOT", JumpPosition::Top),
    jump("filter", "FORWARD", "RAIND-FWD", JumpPosition::Top),
    jump("nat", "PREROUTING", "RAIND-PREROUTING", JumpPosition::Bottom),
    jump("nat", "OUTPUT", "RAIND-PORTS", JumpPosition::Bottom),
    jump("nat", "POSTROUTING", "RAIND-POSTROUTING", JumpPosition::Bottom),
];

/// IPv6.
pub(super) const JUMPS6: &[Jump] = &[jump("filter", "FORWARD", "RAIND-ROOT", JumpPosition::Top)];

const fn jump(table: &'static str, from: &'static str, to: &'static str, place: JumpPosition) -> Jump {
    Jump { table, from, to, place }
}

/// Scope of a plan.
#[derive(Clone, Copy)]
pub(super) enum Scope {
    /// At start: moves jumps to their place and removes foreign rules that this function reports as leftovers of ours.
    Takeover(fn(table: &str, chain: &str, rule: &str) -> bool),
    /// Later: ensures that each jump exists once, in order and in its place.
    Upkeep,
    /// The same, but leaves foreign rules above ours: a program that insists would move them back anyway.
    Yield,
    /// From rules that we wrote to others: if most of a chain stays, single rules are removed and inserted.
    Change,
}

/// The input for iptables-restore, and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RestoreInput {
    pub input: String,
    /// `table/chain` of everything that differs.
    pub differing: Vec<String>,
}

/// The plan from `kernel` to `desired`, or `None` if they agree. Foreign chains in `kernel` matter for jumps and
/// leftovers only.
pub(super) fn plan(kernel: &Tables, desired: &Tables, jumps: &[Jump], scope: Scope) -> Option<RestoreInput> {
    let mut plan = RestoreInput {
        input: String::new(),
        differing: Vec::new(),
    };
    let mut tables: Vec<_> = kernel.names().chain(desired.names()).collect();
    tables.sort_unstable();
    tables.dedup();
    for table in tables {
        let difference = TablePlan::new(table, kernel, desired, jumps, scope);
        if !difference.differing.is_empty() {
            let TablePlan {
                declarations,
                removals,
                additions,
                ..
            } = &difference;
            let _ = writeln!(plan.input, "*{table}\n{declarations}{removals}{additions}COMMIT");
            plan.differing
                .extend(difference.differing.into_iter().map(|chain| format!("{table}/{chain}")));
        }
    }
    (!plan.differing.is_empty()).then_some(plan)
}

/// The kernel's content after `desired` was applied, as far as we manage it.
pub(super) fn applied(desired: &Tables, jumps: &[Jump]) -> Tables {
    let mut tables = desired.clone();
    for jump in jumps {
        tables.push(jump.table, jump.from, jump_rule(jump.to));
    }
    tables
}

/// The first foreign rule above a jump of ours that belongs at the top, with its chain (`docs/spec/policy.md` P-20).
pub(super) fn above_ours(kernel: &Tables, jumps: &[Jump]) -> Option<String> {
    let mut tops = jumps.iter().filter(|jump| jump.place == JumpPosition::Top);
    tops.find_map(|jump| {
        let rules = kernel.rules(jump.table, jump.from)?;
        let first = rules.first().filter(|first| !target(first).is_some_and(is_ours))?;
        // If the chain has no jump of ours, it was flushed, and the rule is not above anything.
        let has_ours = rules.iter().any(|rule| target(rule).is_some_and(is_ours));
        has_ours.then(|| format!("{} {first}", jump.from))
    })
}

fn is_ours(chain: &str) -> bool {
    chain.starts_with(PREFIX)
}

fn jump_rule(to: &str) -> String {
    format!("-j {to}")
}

/// The plan of one table, in the order that the lines must have.
#[derive(Default)]
struct TablePlan {
    declarations: String,
    removals: String,
    additions: String,
    differing: Vec<String>,
}

impl TablePlan {
    fn new(table: &str, kernel: &Tables, desired: &Tables, jumps: &[Jump], scope: Scope) -> Self {
        let mut plan = Self::default();
        for (chain, rules) in desired.chains(table) {
            match kernel.rules(table, chain) {
                Some(now) if same(now, rules) => {}
                Some(now) if matches!(scope, Scope::Change) => plan.edit(chain, now, rules),
                _ => plan.rewrite(chain, rules),
            }
        }
        let is_stale = |chain: &str| is_ours(chain) && desired.rules(table, chain).is_none();
        let mut others: Vec<_> = kernel
            .chains(table)
            .map(|(chain, _)| chain)
            .filter(|c| !is_ours(c))
            .collect();
        // A table that was never used lists no built-in chains.
        others.extend(jumps.iter().filter(|j| j.table == table).map(|j| j.from));
        others.sort_unstable();
        others.dedup();
        for chain in others {
            let rules = kernel.rules(table, chain).unwrap_or_default();
            let expected: Vec<_> = jumps.iter().filter(|j| (j.table, j.from) == (table, chain)).collect();
            plan.fix_jumps(chain, rules, &expected, scope);
            for rule in rules {
                let is_leftover = match (target(rule), scope) {
                    // Chains with our jumps have already been handled.
                    (Some(to), _) if is_ours(to) => expected.is_empty() && is_stale(to),
                    (_, Scope::Takeover(is_leftover)) => is_leftover(table, chain, rule),
                    (_, Scope::Upkeep | Scope::Yield | Scope::Change) => false,
                };
                if is_leftover {
                    plan.remove(chain, rule);
                }
            }
        }
        for (chain, _) in kernel.chains(table).filter(|(chain, _)| is_stale(chain)) {
            plan.rewrite(chain, &[]);
            let _ = writeln!(plan.additions, "-X {chain}");
        }
        plan.differing.dedup();
        plan
    }

    /// Declaring a chain empties it.
    fn rewrite(&mut self, chain: &str, rules: &[String]) {
        self.differing.push(chain.to_owned());
        let _ = writeln!(self.declarations, ":{chain} - [0:0]");
        for rule in rules {
            let _ = writeln!(self.additions, "-A {chain} {rule}");
        }
    }

    /// Replaces the rules between the common head and tail; the whole chain if that is most of it.
    fn edit(&mut self, chain: &str, now: &[String], rules: &[String]) {
        let head = now.iter().zip(rules).take_while(|(a, b)| a == b).count();
        let ends = now[head..].iter().rev().zip(rules[head..].iter().rev());
        let tail = ends.take_while(|(a, b)| a == b).count();
        let (gone, new) = (&now[head..now.len() - tail], &rules[head..rules.len() - tail]);
        // Of two equal rules the first is removed, wherever it is.
        let is_ambiguous = gone.iter().any(|rule| now[..head].contains(rule));
        if is_ambiguous || gone.len() + new.len() > head + tail {
            return self.rewrite(chain, rules);
        }
        self.differing.push(chain.to_owned());
        // By content, not by number: if the chain is not what we assume, this is refused and the kernel is read.
        for rule in gone {
            let _ = writeln!(self.removals, "-D {chain} {rule}");
        }
        for (n, rule) in new.iter().enumerate() {
            let _ = writeln!(self.additions, "-I {chain} {} {rule}", head + n + 1);
        }
    }

    fn fix_jumps(&mut self, chain: &str, rules: &[String], expected: &[&Jump], scope: Scope) {
        let ours = |rule: &str| target(rule).is_some_and(is_ours);
        let present: Vec<_> = rules.iter().filter(|r| ours(r)).collect();
        let in_order = present
            .iter()
            .map(|r| r.as_str())
            .eq(expected.iter().map(|j| jump_rule(j.to)));
        let at_top = rules.iter().take(expected.len()).all(|r| ours(r));
        let wants_top = matches!(scope, Scope::Takeover(_) | Scope::Upkeep)
            && expected.iter().any(|j| j.place == JumpPosition::Top);
        if expected.is_empty() || (in_order && (at_top || !wants_top)) {
            return;
        }
        for rule in present {
            self.remove(chain, rule);
        }
        self.differing.push(chain.to_owned());
        for (n, jump) in expected.iter().enumerate() {
            let _ = match jump.place {
                JumpPosition::Top => writeln!(self.additions, "-I {chain} {} {}", n + 1, jump_rule(jump.to)),
                JumpPosition::Bottom => writeln!(self.additions, "-A {chain} {}", jump_rule(jump.to)),
            };
        }
    }

    fn remove(&mut self, chain: &str, rule: &str) {
        self.differing.push(chain.to_owned());
        let _ = writeln!(self.removals, "-D {chain} {rule}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: &[Jump] = &[
        jump("filter", "FORWARD", "RAIND-HAIRPIN", JumpPosition::Top),
        jump("filter", "FORWARD", "RAIND-ROOT", JumpPosition::Top),
        jump("nat", "OUTPUT", "RAIND-OUTPUT", JumpPosition::Bottom),
    ];

    fn desired() -> Tables {
        Tables::parse(
            "*filter\n:RAIND-HAIRPIN - [0:0]\n:RAIND-ROOT - [0:0]\n-A RAIND-ROOT -j DROP\nCOMMIT\n\
             *nat\n:RAIND-OUTPUT - [0:0]\nCOMMIT\n",
        )
    }

    fn saved(forward: &[&str], rest: &str) -> Tables {
        let forward: String = forward.iter().map(|r| format!("-A FORWARD {r}\n")).collect();
        Tables::parse(&format!(
            "*filter\n:FORWARD ACCEPT [0:0]\n:RAIND-HAIRPIN - [0:0]\n:RAIND-ROOT - [0:0]\n{forward}\
             -A RAIND-ROOT -j DROP\n{rest}COMMIT\n\
             *nat\n:OUTPUT ACCEPT [0:0]\n:RAIND-OUTPUT - [0:0]\n-A OUTPUT -j RAIND-OUTPUT\nCOMMIT\n"
        ))
    }

    const JUMPS_IN_ORDER: [&str; 2] = ["-j RAIND-HAIRPIN", "-j RAIND-ROOT"];
    const NO_LEFTOVERS: Scope = Scope::Takeover(|_, _, _| false);

    fn input(kernel: &Tables, scope: Scope) -> Option<String> {
        plan(kernel, &desired(), FEW, scope).map(|p| p.input)
    }

    #[test]
    fn an_empty_kernel_gets_everything() {
        insta::assert_snapshot!(input(&Tables::default(), Scope::Upkeep).unwrap(), @r"
        *filter
        :RAIND-HAIRPIN - [0:0]
        :RAIND-ROOT - [0:0]
        -A RAIND-ROOT -j DROP
        -I FORWARD 1 -j RAIND-HAIRPIN
        -I FORWARD 2 -j RAIND-ROOT
        COMMIT
        *nat
        :RAIND-OUTPUT - [0:0]
        -A OUTPUT -j RAIND-OUTPUT
        COMMIT
        ");
    }

    #[test]
    fn nothing_is_done_when_nothing_differs() {
        assert_eq!(input(&saved(&JUMPS_IN_ORDER, ""), NO_LEFTOVERS), None);
        assert_eq!(input(&applied(&desired(), FEW), NO_LEFTOVERS), None);
    }

    #[test]
    fn only_the_chain_that_differs_is_written() {
        let kernel = saved(&JUMPS_IN_ORDER, "-A RAIND-ROOT -j ACCEPT\n");
        let plan = plan(&kernel, &desired(), FEW, Scope::Upkeep).unwrap();
        assert_eq!(
            plan.input,
            "*filter\n:RAIND-ROOT - [0:0]\n-A RAIND-ROOT -j DROP\nCOMMIT\n"
        );
        assert_eq!(plan.differing, ["filter/RAIND-ROOT"]);
    }

    #[test]
    fn of_a_chain_that_mostly_stays_only_the_difference_is_written() {
        let chain = |rules: &str| {
            let rules: String = rules.chars().map(|r| format!("-A RAIND-ROOT -s {r}\n")).collect();
            Tables::parse(&format!("*filter\n:RAIND-ROOT - [0:0]\n{rules}COMMIT\n"))
        };
        for (from, to, expected) in [
            ("12345", "123x45", "-I RAIND-ROOT 4 -s x\n"),
            ("12345", "12345xy", "-I RAIND-ROOT 6 -s x\n-I RAIND-ROOT 7 -s y\n"),
            ("12345", "x12345", "-I RAIND-ROOT 1 -s x\n"),
            ("12345", "1245", "-D RAIND-ROOT -s 3\n"),
            ("12345", "12x45", "-D RAIND-ROOT -s 3\n-I RAIND-ROOT 3 -s x\n"),
            (
                "12345",
                "1x",
                ":RAIND-ROOT - [0:0]\n-A RAIND-ROOT -s 1\n-A RAIND-ROOT -s x\n",
            ),
            ("1", "", ":RAIND-ROOT - [0:0]\n"),
            (
                "1213",
                "123",
                ":RAIND-ROOT - [0:0]\n-A RAIND-ROOT -s 1\n-A RAIND-ROOT -s 2\n-A RAIND-ROOT -s 3\n",
            ),
        ] {
            let input = |scope| plan(&chain(from), &chain(to), &[], scope).unwrap().input;
            assert_eq!(
                input(Scope::Change),
                format!("*filter\n{expected}COMMIT\n"),
                "{from} -> {to}"
            );
            assert!(
                input(Scope::Upkeep).contains(":RAIND-ROOT"),
                "read from the kernel: the whole chain"
            );
        }
    }

    #[test]
    fn jumps_are_there_once_and_in_order() {
        for wrong in [
            &["-j RAIND-ROOT", "-j RAIND-HAIRPIN"][..],
            &["-j RAIND-HAIRPIN"],
            &["-j RAIND-HAIRPIN", "-j RAIND-ROOT", "-j RAIND-ROOT"],
            &["-j RAIND-HAIRPIN", "-i eth0 -j RAIND-ROOT"],
        ] {
            let removed: String = wrong.iter().map(|r| format!("-D FORWARD {r}\n")).collect();
            let expected =
                format!("*filter\n{removed}-I FORWARD 1 -j RAIND-HAIRPIN\n-I FORWARD 2 -j RAIND-ROOT\nCOMMIT\n");
            assert_eq!(input(&saved(wrong, ""), Scope::Upkeep).unwrap(), expected);
        }
    }

    #[test]
    fn jumps_are_moved_above_the_rules_of_others_unless_we_yield() {
        let kernel = saved(&["-j DOCKER-USER", "-j RAIND-HAIRPIN", "-j RAIND-ROOT"], "");
        for scope in [NO_LEFTOVERS, Scope::Upkeep] {
            let moved = input(&kernel, scope).unwrap();
            assert!(
                moved.contains("-I FORWARD 1 -j RAIND-HAIRPIN") && !moved.contains("DOCKER-USER"),
                "{moved}"
            );
        }
        assert_eq!(input(&kernel, Scope::Yield), None);
    }

    #[test]
    fn the_rule_above_ours_is_named() {
        let above = |forward: &[&str]| above_ours(&saved(forward, ""), FEW);
        assert_eq!(
            above(&["-j DOCKER-USER", "-j RAIND-ROOT"]).unwrap(),
            "FORWARD -j DOCKER-USER"
        );
        assert_eq!(
            above(&["-s 1.2.3.4/32", "-j RAIND-ROOT"]).unwrap(),
            "FORWARD -s 1.2.3.4/32",
            "without a target"
        );
        assert_eq!(above(&JUMPS_IN_ORDER), None);
        assert_eq!(
            above(&["-j DOCKER-USER"]),
            None,
            "our jumps are gone, which is another thing"
        );
    }

    #[test]
    fn a_chain_that_is_no_longer_wanted_goes_with_its_jumps() {
        let kernel = saved(
            &JUMPS_IN_ORDER,
            ":RAIND-SVC-a-80 - [0:0]\n-A INPUT -j RAIND-SVC-a-80\n-A INPUT -j ACCEPT\n",
        );
        assert_eq!(
            input(&kernel, Scope::Upkeep).unwrap(),
            "*filter\n:RAIND-SVC-a-80 - [0:0]\n-D INPUT -j RAIND-SVC-a-80\n-X RAIND-SVC-a-80\nCOMMIT\n"
        );
    }

    #[test]
    fn only_a_takeover_removes_leftovers() {
        let kernel = saved(
            &[
                "-j RAIND-HAIRPIN",
                "-j RAIND-ROOT",
                "-d 1.2.3.4/32 -j ACCEPT",
                "-j ACCEPT",
            ],
            "",
        );
        assert_eq!(input(&kernel, Scope::Upkeep), None);
        let takeover =
            Scope::Takeover(|table, chain, rule| (table, chain) == ("filter", "FORWARD") && rule.contains("1.2.3.4"));
        assert_eq!(
            input(&kernel, takeover).unwrap(),
            "*filter\n-D FORWARD -d 1.2.3.4/32 -j ACCEPT\nCOMMIT\n"
        );
    }

    #[test]
    fn wanting_nothing_removes_all_of_ours_and_nothing_else() {
        let kernel = saved(&["-j RAIND-HAIRPIN", "-j RAIND-ROOT", "-j DOCKER-USER"], "");
        insta::assert_snapshot!(plan(&kernel, &Tables::default(), &[], Scope::Upkeep).unwrap().input, @r"
        *filter
        :RAIND-HAIRPIN - [0:0]
        :RAIND-ROOT - [0:0]
        -D FORWARD -j RAIND-HAIRPIN
        -D FORWARD -j RAIND-ROOT
        -X RAIND-HAIRPIN
        -X RAIND-ROOT
        COMMIT
        *nat
        :RAIND-OUTPUT - [0:0]
        -D OUTPUT -j RAIND-OUTPUT
        -X RAIND-OUTPUT
        COMMIT
        ");
    }
}
