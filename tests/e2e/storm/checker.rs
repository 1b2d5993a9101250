//! Whether the API and the kernel say the same of all containers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Lab, get, wait_for};

/// What a killed daemon had begun goes on without it for a moment: a stop until its grace period is over, a create until
/// it has undone itself, an operation that could not be finished until it is taken up again.
const LIMIT: Duration = Duration::from_secs(20);

/// Waits until nothing differs; fails with what does.
pub fn assert_agreement(lab: &Lab) {
    wait_for("an API that agrees with the kernel", LIMIT, || {
        let differences = differences(lab);
        match differences.is_empty() {
            true => Ok(()),
            false => Err(differences.join("\n")),
        }
    });
}

/// One sentence for each thing on which the API and the kernel differ.
pub fn differences(lab: &Lab) -> Vec<String> {
    let rows = lab.api().ok(get("/v1/containers"));
    let rows: BTreeMap<&str, &Value> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["containerId"].as_str().unwrap(), row))
        .collect();
    let members = members(lab);
    let mut said = Vec::new();
    for (id, row) in &rows {
        if let Some(difference) = row_differs(lab, id, row, members.get(*id)) {
            said.push(format!("{difference}: {row}; its processes: {:?}", members.get(*id)));
        }
    }
    let addresses: Vec<_> = rows.values().filter_map(|row| row["address"].as_str()).collect();
    if addresses.iter().collect::<BTreeSet<_>>().len() != addresses.len() {
        said.push(format!("an address is given twice: {addresses:?}"));
    }
    for (kind, found) in traces(lab, &members) {
        let strays = found.into_iter().filter(|id| !rows.contains_key(&**id));
        said.extend(strays.map(|id| {
            let processes = members.get(&id).map(|pids| described(lab, pids));
            format!(
                "{kind} of {id}, which the API does not know {}",
                processes.unwrap_or_default()
            )
        }));
    }
    said
}

/// Why what the API says of one container is not the case.
fn row_differs(lab: &Lab, id: &str, row: &Value, members: Option<&BTreeSet<i64>>) -> Option<String> {
    let state = row["state"].as_str().unwrap();
    let lives = |pid| members.is_some_and(|members| members.contains(&pid));
    match (state, row["pid"].as_i64().unwrap_or(0)) {
        ("running" | "created", pid) if !lives(pid) => Some(format!("{state} without its process")),
        ("running" | "created", pid) => {
            let recorded = lab.machine().read(&format!("/etc/raind/container/{id}/state.json"));
            let recorded: Value = serde_json::from_str(&recorded).unwrap_or_default();
            let started = start_time(lab, pid);
            let is_so =
                recorded["status"] == state && recorded["pid"] == pid && recorded["pidStartTime"].as_u64() == started;
            (!is_so).then(|| format!("process {pid} began at {started:?}, but {recorded} is recorded"))
        }
        ("stopped", 0) if members.is_none() => None,
        ("stopped", pid) => Some(format!("stopped, with pid {pid}")),
        _ => Some(format!("{state}, and nobody is at work on it")),
    }
}

/// Field 22 of `/proc/<pid>/stat`.
fn start_time(lab: &Lab, pid: i64) -> Option<u64> {
    let stat = std::fs::read_to_string(lab.machine().path(&format!("/proc/{pid}/stat"))).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// State, name, parent and command line of processes.
fn described(lab: &Lab, pids: &BTreeSet<i64>) -> String {
    let described = pids.iter().map(|pid| {
        let read = |file: &str| {
            let bytes = std::fs::read(lab.machine().path(&format!("/proc/{pid}/{file}")));
            String::from_utf8_lossy(&bytes.unwrap_or_default()).replace('\0', " ")
        };
        let stat = read("stat");
        let stat: Vec<_> = stat.split_ascii_whitespace().take(4).collect();
        format!("{} {} at {}", stat.join(" "), read("cmdline"), read("wchan"))
    });
    described.collect::<Vec<_>>().join("; ")
}

/// The live processes in the cgroup of each container.
fn members(lab: &Lab) -> BTreeMap<String, BTreeSet<i64>> {
    let mut found: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
    for pid in names(lab, "/proc").iter().filter_map(|name| name.parse::<i64>().ok()) {
        let read = |file: &str| {
            let path = lab.machine().path(&format!("/proc/{pid}/{file}"));
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let is_zombie = read("stat")
            .rsplit_once(')')
            .is_none_or(|(_, rest)| rest.starts_with(" Z"));
        let groups = read("cgroup");
        let group = groups.lines().find_map(|line| line.split_once("/raind/"));
        if let (Some((_, id)), false) = (group, is_zombie) {
            found.entry(id.to_owned()).or_default().insert(pid);
        }
    }
    found
}

/// Ids of containers by what the kernel and the file system have of them.
fn traces(lab: &Lab, members: &BTreeMap<String, BTreeSet<i64>>) -> Vec<(&'static str, Vec<String>)> {
    let links = lab.machine().run(&["ip", "-oneline", "link"]);
    let veths = links
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("rd_"));
    let veths = veths.map(|word| word.split(['@', ':']).next().unwrap_or(word).to_owned());
    let volatile = names(lab, "/run/raind/droplet");
    let volatile = volatile
        .iter()
        .map(|name| name.strip_suffix(".lock").unwrap_or(name).to_owned());
    vec![
        ("processes", members.keys().cloned().collect()),
        ("an interface", veths.collect()),
        ("a directory", names(lab, "/etc/raind/container")),
        ("volatile files", volatile.collect()),
    ]
}

fn names(lab: &Lab, directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(lab.machine().path(directory));
    let names = entries.into_iter().flatten().flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
