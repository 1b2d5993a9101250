//! Staging, commit and display of policies. Pure: every change is a step of a transaction.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use ulid::Ulid;

use super::{EAST_WEST_MODE, PolicyError};
use crate::model::{
    Directory, NsMode, Policy, PolicyChain, PolicyProtocol, PolicySettings, PolicyStage, Snapshot, Txn, policies,
};

/// Longest comment, in bytes.
const MAX_COMMENT: usize = 256;
/// Longest name of a source or destination, in bytes.
const MAX_NAME: usize = 253;

/// A requested policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewPolicy {
    /// Name of the chain.
    pub chain: String,
    /// A container, pod or replica set by name or id.
    pub source: String,
    /// East-West: as `source`; North-South: an IPv4 address or block.
    pub destination: String,
    /// `icmp`, `tcp`, `udp` or empty for any.
    pub protocol: String,
    /// Destination port; 0 for any.
    pub dport: i64,
    /// Free text.
    pub comment: String,
}

/// Status of a policy as clients see it (`docs/spec/policy.md` 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Staged.
    BeforeCommit,
    /// In force.
    Applied,
    /// Committed, but one of its names does not resolve.
    Unresolved(String),
    /// In force until the next commit.
    RemoveNextCommit,
}

impl Status {
    /// The contract's word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::BeforeCommit => "before_commit",
            Self::Applied => "applied",
            Self::Unresolved(_) => "unresolved",
            Self::RemoveNextCommit => "remove_next_commit",
        }
    }

    /// The reason; empty if there is none.
    pub fn reason(&self) -> &str {
        match self {
            Self::BeforeCommit | Self::Applied => "",
            Self::Unresolved(reason) => reason,
            Self::RemoveNextCommit => "user operation",
        }
    }
}

/// A policy with its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The record.
    pub policy: Arc<Policy>,
    /// Status as of the snapshot.
    pub status: Status,
}

/// The policies of a chain in order of addition.
pub fn entries(snapshot: &Snapshot, chain: PolicyChain) -> Vec<Entry> {
    let directory = Directory::new(snapshot);
    let of_chain = snapshot.policies().iter().filter(|p| p.chain == chain);
    of_chain.map(|policy| entry(&directory, policy)).collect()
}

pub(super) fn entry(directory: &Directory<'_>, policy: &Arc<Policy>) -> Entry {
    let status = match policy.stage {
        PolicyStage::Added => Status::BeforeCommit,
        PolicyStage::Removed => Status::RemoveNextCommit,
        PolicyStage::Committed => {
            let source = directory.resolve(&policy.source).map(drop);
            let both = source.and_then(|()| match policy.chain {
                PolicyChain::RaindEw => directory.resolve(&policy.destination).map(drop),
                PolicyChain::RaindNsObs | PolicyChain::RaindNsEnf => Ok(()),
            });
            both.map_or_else(|e| Status::Unresolved(e.to_string()), |()| Status::Applied)
        }
    };
    Entry {
        policy: policy.clone(),
        status,
    }
}

/// The mode that clients see for a chain; a pending mode has the suffix `_next_commit` (`docs/spec/api.md` 14.1).
pub fn shown_mode(settings: &PolicySettings, chain: PolicyChain) -> String {
    match (chain, settings.ns_pending) {
        (PolicyChain::RaindEw, _) => EAST_WEST_MODE.to_owned(),
        (_, None) => settings.ns_mode.to_string(),
        (_, Some(pending)) => format!("{pending}_next_commit"),
    }
}

/// Stages a policy. Its names may refer to objects that do not exist yet; everything else is checked (P-07, P-18).
pub(super) fn add(t: &mut Txn, wish: &NewPolicy, owner: Option<&str>) -> Result<Arc<Policy>, PolicyError> {
    let chain: PolicyChain = wish.chain.parse()?;
    let protocol = protocol(&wish.protocol)?;
    let dport = dport(wish.dport, protocol)?;
    if wish.comment.len() > MAX_COMMENT || wish.comment.contains(char::is_control) {
        let said = format!("comment is invalid: at most {MAX_COMMENT} bytes without control characters");
        return Err(PolicyError::Invalid(said));
    }
    check_name("source", &wish.source)?;
    match chain {
        PolicyChain::RaindEw => check_name("dest", &wish.destination)?,
        PolicyChain::RaindNsObs | PolicyChain::RaindNsEnf => {
            let what = &wish.destination;
            if policies::block(what).is_none() {
                return Err(PolicyError::Invalid(format!(
                    "dest {what:?} is invalid: an IPv4 address or block is wanted, as 203.0.113.0/24"
                )));
            }
        }
    }
    let directory = Directory::new(t.snapshot());
    let destination = match chain {
        PolicyChain::RaindEw => directory.canonical(&wish.destination),
        PolicyChain::RaindNsObs | PolicyChain::RaindNsEnf => wish.destination.clone(),
    };
    let policy = Policy {
        id: next_id(t.snapshot(), Ulid::generate()),
        chain,
        source: directory.canonical(&wish.source),
        destination,
        protocol,
        dport,
        comment: wish.comment.clone(),
        owner: owner.map(str::to_owned),
        stage: PolicyStage::Added,
        created_at: Timestamp::now(),
    };
    if let Some(same) = t.snapshot().policies().iter().find(|p| say_the_same(p, &policy)) {
        return Err(PolicyError::Duplicate(same.id.clone()));
    }
    Ok(t.put(policy)?)
}

/// Comments are ignored, and a policy that is being removed is no duplicate.
fn say_the_same(a: &Policy, b: &Policy) -> bool {
    let content = |p: &Policy| (p.chain, p.protocol, p.dport);
    a.stage != PolicyStage::Removed
        && content(a) == content(b)
        && (&a.source, &a.destination, &a.owner) == (&b.source, &b.destination, &b.owner)
}

/// An id greater than all existing ones, so that the order of ids is the order of addition.
fn next_id(snapshot: &Snapshot, now: Ulid) -> String {
    let last = snapshot.policies().iter().last();
    let last = last.and_then(|p| Ulid::from_string(&p.id).ok());
    let next = match last {
        Some(last) if last >= now => Ulid(u128::from(last).saturating_add(1)),
        _ => now,
    };
    next.to_string().to_lowercase()
}

pub(super) fn protocol(word: &str) -> Result<Option<PolicyProtocol>, PolicyError> {
    let all = [PolicyProtocol::Icmp, PolicyProtocol::Tcp, PolicyProtocol::Udp];
    if word.is_empty() {
        return Ok(None);
    }
    let found = all.into_iter().find(|p| p.name() == word);
    let found = found
        .ok_or_else(|| PolicyError::Invalid(format!("protocol {word:?} is invalid: icmp, tcp, udp or empty for any")));
    found.map(Some)
}

pub(super) fn dport(port: i64, protocol: Option<PolicyProtocol>) -> Result<Option<u16>, PolicyError> {
    let number = u16::try_from(port)
        .map_err(|_| PolicyError::Invalid(format!("dport {port} is invalid: 1 to 65535, or 0 for any")))?;
    if number != 0 && !protocol.is_some_and(PolicyProtocol::has_ports) {
        return Err(PolicyError::Invalid(format!(
            "dport {port} needs the protocol tcp or udp"
        )));
    }
    Ok((number != 0).then_some(number))
}

fn check_name(field: &str, name: &str) -> Result<(), PolicyError> {
    let is_address = name.parse::<IpAddr>().is_ok() || name.parse::<IpNet>().is_ok();
    let is_word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-/".contains(&b));
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if is_address || !is_word || !begins_well || name.len() > MAX_NAME {
        return Err(PolicyError::Invalid(format!(
            "{field} {name:?} is invalid: the name of a container, pod or replica set is wanted"
        )));
    }
    Ok(())
}

/// Stages a removal; a policy that was never in force is removed at once (P-22). Removing it again succeeds.
pub(super) fn remove(t: &mut Txn, id: &str) -> Result<(), PolicyError> {
    let policy = t
        .get::<Policy>(id)
        .ok_or_else(|| PolicyError::NotFound(id.to_owned()))?;
    if policy.stage == PolicyStage::Added {
        t.remove::<Policy>(id);
    } else {
        t.update::<Policy>(id, |p| p.stage = PolicyStage::Removed)?;
    }
    Ok(())
}

/// Stages a mode. Staging the mode in force cancels a pending one (P-23).
pub(super) fn set_mode(t: &mut Txn, mode: NsMode) -> Result<(), PolicyError> {
    let mut settings = policies::settings(t.snapshot());
    if settings.ns_pending.is_none() && settings.ns_mode == mode {
        return Err(PolicyError::ModeAlreadySet(mode));
    }
    settings.ns_pending = (settings.ns_mode != mode).then_some(mode);
    t.put(settings)?;
    Ok(())
}

/// The changes of one commit. Fixed when the commit begins: changes staged while it runs wait for the next one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Promotion {
    pub added: BTreeSet<String>,
    pub removed: BTreeSet<String>,
    pub mode: Option<NsMode>,
}

impl Promotion {
    /// All staged changes.
    pub fn of(snapshot: &Snapshot) -> Self {
        let in_stage = |stage| {
            let policies = snapshot.policies().iter().filter(move |p| p.stage == stage);
            policies.map(|p| p.id.clone()).collect()
        };
        Self {
            added: in_stage(PolicyStage::Added),
            removed: in_stage(PolicyStage::Removed),
            mode: policies::settings(snapshot).ns_pending,
        }
    }

    /// Puts the changes in force. Policies that were removed meanwhile are skipped.
    pub fn apply(&self, t: &mut Txn) -> Result<(), PolicyError> {
        for id in &self.added {
            t.update::<Policy>(id, |p| p.stage = PolicyStage::Committed)?;
        }
        for id in &self.removed {
            t.remove::<Policy>(id);
        }
        if let Some(mode) = self.mode {
            let mut settings = policies::settings(t.snapshot());
            settings.ns_mode = mode;
            settings.ns_pending = settings.ns_pending.filter(|pending| *pending != mode);
            t.put(settings)?;
        }
        Ok(())
    }
}

/// Discards all staged changes.
pub(super) fn revert(t: &mut Txn) -> Result<(), PolicyError> {
    let staged = Promotion::of(t.snapshot());
    for id in &staged.added {
        t.remove::<Policy>(id);
    }
    for id in &staged.removed {
        t.update::<Policy>(id, |p| p.stage = PolicyStage::Committed)?;
    }
    if staged.mode.is_some() {
        let mut settings = policies::settings(t.snapshot());
        settings.ns_pending = None;
        t.put(settings)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;
