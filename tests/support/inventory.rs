//! All that a daemon can leave behind on a machine, as sets of lines that can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use super::machine::Machine;

/// What the first container makes for all that follow, and what belongs to the lab: no container's.
const COMMON: [&str; 4] = [
    "/raind",
    "/run/raind/droplet",
    "/etc/raind/log/droplet_audit.log",
    "docker-registry",
];

/// Lines by kind. Two inventories of a machine are equal when nothing came and nothing went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory(BTreeMap<&'static str, Vec<String>>);

impl Inventory {
    /// `Err` with the command lines of what is there for a moment only: a tool that `daemon` (its pid in the lab) runs, a
    /// program that is about to be executed. They are no part of what there is, and what they do may be half done.
    pub(super) fn take(machine: &Machine, daemon: Option<i32>) -> Result<Self, String> {
        let command = |argv: &[&str]| machine.run(argv).lines().map(str::to_owned).collect::<Vec<_>>();
        let (passing, processes): (Vec<_>, Vec<_>) = processes(machine)
            .into_iter()
            .partition(|process| process.begins || daemon == Some(process.parent) && process.program != "droplet");
        let lines = |processes: Vec<Process>| processes.into_iter().map(|process| process.line);
        if !passing.is_empty() {
            return Err(lines(passing).collect::<Vec<_>>().join(", "));
        }
        // What was replaced or removed is deleted in the background.
        let staging = machine.path("/etc/raind/image/staging");
        let doomed = std::fs::read_dir(staging).into_iter().flatten().count();
        if daemon.is_some() && doomed > 0 {
            return Err(format!("{doomed} objects of images are being made or deleted"));
        }
        let mut processes: Vec<_> = lines(processes).collect();
        processes.sort();
        Ok(Self(BTreeMap::from([
            ("iptables", rules(&machine.run(&["iptables-save"]))),
            ("ip6tables", rules(&machine.run(&["ip6tables-save"]))),
            // Link-local IPv6 addresses follow the hardware address, which a bridge takes from its ports.
            ("addresses", addresses(&command(&["ip", "-oneline", "address"]))),
            ("links", links(&command(&["ip", "-oneline", "link"]))),
            (
                "routes",
                command(&["ip", "route", "show", "table", "all", "type", "unicast"]),
            ),
            ("mounts", mounts(&machine.read("/proc/1/mountinfo"))),
            ("cgroups", cgroups(machine)),
            ("files", files(machine)),
            ("processes", processes),
        ])))
    }

    /// `Err` with what came (`+`) and what went (`-`).
    pub fn same_as(&self, now: &Self) -> Result<(), String> {
        let mut said = String::new();
        for (kind, before) in &self.0 {
            let now = &now.0[kind];
            let mut rest = now.clone();
            for line in before {
                match rest.iter().position(|other| other == line) {
                    Some(at) => drop(rest.remove(at)),
                    None => writeln!(said, "{kind}: - {line}").unwrap(),
                }
            }
            for line in rest {
                writeln!(said, "{kind}: + {line}").unwrap();
            }
            // Rules mean something by their order too.
            if said.is_empty() && kind.ends_with("tables") && before != now {
                writeln!(said, "{kind}: another order: {now:#?}").unwrap();
            }
        }
        if said.is_empty() { Ok(()) } else { Err(said) }
    }

    /// Without the tables and built-in chains that the packet filter's tools make by looking at them.
    pub(super) fn without_empty_tables(mut self) -> Self {
        for kind in ["iptables", "ip6tables"] {
            let lines = self.0.get_mut(kind).expect("one of the kinds");
            lines.retain(|line| line.starts_with("-A ") || line.starts_with(":RAIND"));
        }
        self
    }

    /// The lines of one kind: `iptables`, `ip6tables`, `addresses`, `links`, `routes`, `mounts`, `cgroups`, `files` or
    /// `processes`.
    pub fn lines(&self, kind: &str) -> &[String] {
        &self.0[kind]
    }
}

/// Without comments and counters.
fn rules(saved: &str) -> Vec<String> {
    let lines = saved.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.split(" [").next().unwrap_or(line).to_owned())
        .collect()
}

/// `2: eth0    inet 192.0.2.2/24 ...` to `eth0 inet 192.0.2.2/24`.
fn addresses(lines: &[String]) -> Vec<String> {
    let words = lines.iter().map(|line| {
        line.split_ascii_whitespace()
            .skip(1)
            .take(3)
            .collect::<Vec<_>>()
            .join(" ")
    });
    words.filter(|line| !line.contains(" fe80:")).collect()
}

/// `5: raind0: <...> ... master X ...` to the name and the master. Indices and flags change without a leak.
fn links(lines: &[String]) -> Vec<String> {
    let name = |line: &str| line.split_ascii_whitespace().nth(1).unwrap_or_default().to_owned();
    let master = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "master");
        words
            .nth(1)
            .map(|master| format!(" master {master}"))
            .unwrap_or_default()
    };
    lines.iter().map(|line| name(line) + &master(line)).collect()
}

/// Mount point, type and source of each mount; the ids before them change.
fn mounts(mountinfo: &str) -> Vec<String> {
    let describe = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let target = before.split(' ').nth(4)?;
        let mut after = after.split(' ');
        Some(format!("{target} {} {}", after.next()?, after.next()?))
    };
    mountinfo.lines().filter_map(describe).collect()
}

/// What the daemon keeps on disk. The database and the logs change their content, not their names; SQLite's helper
/// files come and go with connections.
fn files(machine: &Machine) -> Vec<String> {
    let mut found = BTreeSet::new();
    for root in ["/etc/raind", "/run/raind", "/var/log/raind"] {
        found.extend(tree(machine, root, |_| true));
    }
    // Records of layers are written later, in the background.
    found.retain(|path| !path.starts_with("/etc/raind/image/records/"));
    found.retain(|path| !path.ends_with("-wal") && !path.ends_with("-shm") && !COMMON.contains(&path.as_str()));
    found.into_iter().collect()
}

/// Without the parent of all containers' groups.
fn cgroups(machine: &Machine) -> Vec<String> {
    let mut found = tree(machine, "/sys/fs/cgroup", Path::is_dir);
    found.retain(|path| !path.ends_with(COMMON[0]));
    found
}

fn tree(machine: &Machine, root: &str, keep: fn(&Path) -> bool) -> Vec<String> {
    let base = machine.path("");
    let mut found = Vec::new();
    let mut pending = vec![machine.path(root)];
    while let Some(directory) = pending.pop() {
        // What vanishes meanwhile is not there.
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if keep(&path) {
                found.push(format!("/{}", path.strip_prefix(&base).unwrap().display()));
            }
            // The content of an unpacked layer or of a container's root is as the image has it.
            let content = path.ends_with("diff") || path.ends_with("merged");
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !content {
                pending.push(path);
            }
        }
    }
    found.sort();
    found
}

struct Process {
    /// Its command line; `(name) Z` of one that nobody waited for.
    line: String,
    /// The name of its program.
    program: String,
    parent: i32,
    /// Whether it is between two programs: it has no command line and has not ended.
    begins: bool,
}

/// All processes of the lab, without those of the lab itself.
fn processes(machine: &Machine) -> Vec<Process> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(machine.path("/proc")).unwrap().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            found.extend(process(&entry.path()));
        }
    }
    found.retain(|process| !process.line.starts_with(COMMON[3]));
    found
}

/// `None` of one that has ended meanwhile.
fn process(path: &Path) -> Option<Process> {
    let stat = std::fs::read_to_string(path.join("stat")).ok()?;
    let line = std::fs::read(path.join("cmdline")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut rest = rest.split_ascii_whitespace();
    let (state, parent) = (rest.next()?, rest.next()?.parse().ok()?);
    let mut line = String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned();
    let begins = line.is_empty() && state != "Z";
    if line.is_empty() {
        line = format!("({name}) {state}");
    }
    // The runtime's own name may be hidden by the way in which it is executed.
    let program = std::fs::read_link(path.join("exe")).ok();
    let program = program.as_deref().and_then(Path::file_name);
    Some(Process {
        program: program.map_or(name.to_owned(), |program| program.to_string_lossy().into_owned()),
        line,
        parent,
        begins,
    })
}
