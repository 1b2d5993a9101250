//! `npm.json`: policies and their modes, and `npm.json.running`: the policies of the last commit (`docs/spec/policy.md`
//! 3, 4, 7). Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use ulid::Ulid;

use super::bottles;
use super::json::{nullable, version};
use crate::model::{NsMode, Policy, PolicyChain, PolicyProtocol, PolicySettings, PolicyStage};

/// Suffix of a mode that is in force from the next commit on.
const PENDING: &str = "_next_commit";
const REMOVED: &str = "remove_next_commit";
const ADDED: &str = "before_commit";

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Stored {
    #[serde(deserialize_with = "version_1")]
    version: String,
    #[serde(default)]
    defaults: Defaults,
    #[serde(default)]
    policies: Lists,
}

fn version_1<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    version(d, &["v1"])
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Defaults {
    east_west: Direction,
    north_south: Direction,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Direction {
    mode: String,
    logging: bool,
}

impl Default for Direction {
    fn default() -> Self {
        Self {
            mode: NsMode::default().to_string(),
            logging: true,
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Lists {
    #[serde(deserialize_with = "nullable")]
    east_west: Vec<Record>,
    #[serde(deserialize_with = "nullable")]
    north_south_observe: Vec<Record>,
    #[serde(deserialize_with = "nullable")]
    north_south_enforce: Vec<Record>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    id: String,
    status: String,
    reason: String,
    source: End,
    destination: End,
    protocol: String,
    dport: i64,
    comment: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct End {
    container_name: String,
    address: String,
}

impl Stored {
    fn records(&self) -> impl Iterator<Item = (PolicyChain, &Record)> {
        let stored = |chain: PolicyChain| {
            let list = match chain {
                PolicyChain::RaindEw => &self.policies.east_west,
                PolicyChain::RaindNsObs => &self.policies.north_south_observe,
                PolicyChain::RaindNsEnf => &self.policies.north_south_enforce,
            };
            list.iter().map(move |record| (chain, record))
        };
        PolicyChain::ALL.into_iter().flat_map(stored)
    }

    /// The policies and the modes; no modes if the store was never written.
    pub(super) fn rows(
        &self,
        committed: Option<&Self>,
        bottles: &bottles::Stored,
        now: Timestamp,
        warnings: &mut Vec<String>,
    ) -> (Vec<Policy>, Option<PolicySettings>) {
        // Committed and no longer in the list: still in force until the next commit.
        let listed: BTreeSet<&str> = self.records().map(|(_, record)| &*record.id).collect();
        let unlisted = committed.into_iter().flat_map(Self::records);
        let unlisted = unlisted.filter(|(_, record)| !listed.contains(&*record.id) && record.status != ADDED);
        let unlisted = unlisted.map(|(chain, record)| (chain, record, Some(PolicyStage::Removed)));
        let listed = self
            .records()
            .map(|(chain, record)| (chain, record, stage(record, committed)));
        let mut rows = Vec::new();
        for (chain, record, stage) in listed.chain(unlisted) {
            let Some(stage) = stage else { continue };
            match row(chain, record, stage, bottles, now) {
                Ok(row) => rows.push(row),
                Err(why) => warnings.push(format!(
                    "policy {} is left out, no rule can be made of it: {why}",
                    record.id
                )),
            }
        }
        let settings = (!self.version.is_empty()).then(|| self.settings(committed, warnings));
        (rows, settings)
    }

    fn settings(&self, committed: Option<&Self>, warnings: &mut Vec<String>) -> PolicySettings {
        let stored = &*self.defaults.north_south.mode;
        // An unknown mode denies (P-03).
        let mut mode = |word: &str| {
            word.parse().unwrap_or_else(|_| {
                warnings.push(format!("North-South mode {word:?} is not known and taken for enforce"));
                NsMode::Enforce
            })
        };
        let (ns_mode, ns_pending) = match stored.strip_suffix(PENDING) {
            None => (mode(stored), None),
            Some(word) => {
                let pending = mode(word);
                let before = committed.and_then(|c| c.defaults.north_south.mode.parse().ok());
                let before = before.unwrap_or(match pending {
                    NsMode::Observe => NsMode::Enforce,
                    NsMode::Enforce => NsMode::Observe,
                });
                (before, (before != pending).then_some(pending))
            }
        };
        PolicySettings {
            ns_mode,
            ns_pending,
            ew_logging: self.defaults.east_west.logging,
            ns_logging: self.defaults.north_south.logging,
        }
    }
}

/// The stage of a listed policy; `None` for one that was removed before it was ever committed.
fn stage(record: &Record, committed: Option<&Stored>) -> Option<PolicyStage> {
    let in_force = match committed {
        Some(committed) => committed
            .records()
            .any(|(_, c)| c.id == record.id && (c.status != ADDED || is_decided(record))),
        None => record.status != ADDED,
    };
    match (in_force, record.status == REMOVED) {
        (true, true) => Some(PolicyStage::Removed),
        (true, false) => Some(PolicyStage::Committed),
        (false, false) => Some(PolicyStage::Added),
        (false, true) => None,
    }
}

/// Whether a commit has processed it.
fn is_decided(record: &Record) -> bool {
    matches!(&*record.status, "applied" | "unresolved")
}

fn row(
    chain: PolicyChain,
    record: &Record,
    stage: PolicyStage,
    bottles: &bottles::Stored,
    now: Timestamp,
) -> Result<Policy, String> {
    let protocol = match &*record.protocol {
        "" => None,
        "icmp" => Some(PolicyProtocol::Icmp),
        "tcp" => Some(PolicyProtocol::Tcp),
        "udp" => Some(PolicyProtocol::Udp),
        other => return Err(format!("unknown protocol {other:?}")),
    };
    let dport = u16::try_from(record.dport).map_err(|_| format!("port {} is no port", record.dport))?;
    if dport != 0 && !protocol.is_some_and(PolicyProtocol::has_ports) {
        return Err(format!("port {dport} without the protocol tcp or udp"));
    }
    let source = name(&record.source.container_name)?;
    let destination = match chain {
        PolicyChain::RaindEw => name(&record.destination.container_name)?,
        PolicyChain::RaindNsObs | PolicyChain::RaindNsEnf => block(&record.destination.address)?,
    };
    let ulid = Ulid::from_string(&record.id).map_err(|_| "its id is not valid".to_owned())?;
    let at = i64::try_from(ulid.timestamp_ms())
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    Ok(Policy {
        id: record.id.clone(),
        chain,
        source,
        destination,
        protocol,
        dport: (dport != 0).then_some(dport),
        comment: record.comment.clone(),
        owner: bottles.owner_of(&record.id),
        stage,
        created_at: at.unwrap_or(now),
    })
}

fn name(text: &str) -> Result<String, String> {
    match text.is_empty() || text.parse::<IpNet>().is_ok() || text.parse::<Ipv4Addr>().is_ok() {
        true => Err(format!("{text:?} is not the name of a container")),
        false => Ok(text.to_owned()),
    }
}

fn block(text: &str) -> Result<String, String> {
    match text.parse::<Ipv4Addr>().is_ok() || text.parse::<Ipv4Net>().is_ok() {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not an IPv4 address or block")),
    }
}
