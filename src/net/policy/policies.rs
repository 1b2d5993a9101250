//! The policy service: staging, commit, and queries about packets.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::changes::Promotion;
use super::{Entry, NewPolicy, PolicyError, changes};
use crate::model::policies::settings;
use crate::model::{Directory, End, NsMode, Policy, PolicyChain, PolicyStage, Snapshot, Txn, Unresolved};
use crate::net::enforcement::Firewall;
use crate::net::firewall::{Destination, Explainer, Flow, Packet, Verdict, render};
use crate::ops::task::detached;
use crate::store::Store;

/// The policies of users. Clones share them.
#[derive(Clone)]
pub struct PolicyService {
    store: Store,
    firewall: Firewall,
}

/// The changes that a commit would make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Policies that would be in force or unresolved, with the status that they would have.
    pub added: Vec<Entry>,
    /// Policies that would be removed, with their current status.
    pub removed: Vec<Entry>,
    /// The mode in force and the new one, if it differs.
    pub mode: Option<(NsMode, NsMode)>,
    /// Rules that would be added, as iptables-save prints them.
    pub rules_added: Vec<String>,
    /// Rules that would be removed.
    pub rules_removed: Vec<String>,
}

/// A query about a packet.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// A container, pod or replica set, or its address.
    pub source: String,
    /// The same, or any IPv4 address.
    pub destination: String,
    /// `icmp`, `tcp`, `udp`, or empty for a protocol that no rule mentions.
    pub protocol: String,
    /// Destination port; 0 for one that no rule mentions.
    pub port: i64,
}

/// The verdict on a packet.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The packet. If a name resolves to several interfaces, the first pair that is denied, else the first pair.
    pub packet: Packet,
    /// The verdict.
    pub verdict: Verdict,
}

impl PolicyService {
    /// Manages the policies of this store, with their rules in this firewall.
    pub fn new(store: Store, firewall: Firewall) -> Self {
        Self { store, firewall }
    }

    /// The policies of a chain in order of addition, and the mode that clients see for it.
    pub fn list(&self, chain: PolicyChain) -> (String, Vec<Entry>) {
        let snapshot = self.store.snapshot();
        let mode = changes::shown_mode(&settings(&snapshot), chain);
        (mode, changes::entries(&snapshot, chain))
    }

    /// The policy of that id.
    pub fn get(&self, id: &str) -> Option<Entry> {
        let snapshot = self.store.snapshot();
        let policy = snapshot.policies().get(id)?;
        Some(changes::entry(&Directory::new(&snapshot), policy))
    }

    /// Stages a policy.
    ///
    /// Errors: [`PolicyError::UnknownChain`], [`PolicyError::Invalid`], [`PolicyError::Duplicate`].
    pub async fn add(&self, wish: NewPolicy) -> Result<Arc<Policy>, PolicyError> {
        self.store.transact(move |t| changes::add(t, &wish, None)).await
    }

    /// Stages the removal of a policy; one that was never committed is removed at once. Errors:
    /// [`PolicyError::NotFound`].
    pub async fn remove(&self, id: &str) -> Result<(), PolicyError> {
        let id = id.to_owned();
        self.store.transact(move |t| changes::remove(t, &id)).await
    }

    /// Stages a North-South mode. Staging the mode in force cancels a pending one.
    ///
    /// Errors: [`PolicyError::UnknownMode`], [`PolicyError::ModeAlreadySet`].
    pub async fn set_mode(&self, mode: &str) -> Result<(), PolicyError> {
        let mode = mode.parse()?;
        self.store.transact(move |t| changes::set_mode(t, mode)).await
    }

    /// Discards all staged changes, in one transaction.
    pub async fn revert(&self) -> Result<(), PolicyError> {
        self.store.transact(changes::revert).await
    }

    /// Commits all staged changes. Either all take effect, in the kernel and in the store, or, on an error, none.
    pub async fn commit(&self) -> Result<(), PolicyError> {
        let staged = Promotion::of(&self.store.snapshot());
        self.promote(staged).await
    }

    /// The changes that [`PolicyService::commit`] would make.
    pub fn dry_run(&self) -> Result<Difference, PolicyError> {
        let before = self.store.snapshot();
        let staged = Promotion::of(&before);
        let (after, ()) = before.preview(|t| staged.apply(t))?;
        let (rules_added, rules_removed) = self.rule_difference(&before, &after);
        let now = settings(&before).ns_mode;
        Ok(Difference {
            added: entries_of(&after, &staged.added),
            removed: entries_of(&before, &staged.removed),
            mode: staged.mode.map(|mode| (now, mode)),
            rules_added,
            rules_removed,
        })
    }

    /// Adds the policies of a bottle and commits them, and nothing else: all or, on an error, none. Replaces policies
    /// that an earlier attempt of the same bottle staged.
    pub async fn add_and_commit(&self, wishes: Vec<NewPolicy>, owner: &str) -> Result<Vec<Arc<Policy>>, PolicyError> {
        let bottle = owner.to_owned();
        let stage = move |t: &mut Txn| {
            for id in ids(t.snapshot(), |p| is_of(p, &bottle) && p.stage == PolicyStage::Added) {
                t.remove::<Policy>(&id);
            }
            let added = wishes.iter().map(|wish| changes::add(t, wish, Some(&bottle)));
            added.collect::<Result<Vec<_>, PolicyError>>()
        };
        let added: Vec<Arc<Policy>> = self.store.transact(stage).await?;
        let ids: BTreeSet<String> = added.iter().map(|p| p.id.clone()).collect();
        let promotion = Promotion {
            added: ids.clone(),
            ..Promotion::default()
        };
        if let Err(error) = self.promote(promotion).await {
            let undo = self.store.transact(move |t| {
                ids.iter().for_each(|id| drop(t.remove::<Policy>(id)));
                Ok::<_, PolicyError>(())
            });
            if let Err(undo) = undo.await {
                tracing::error!(bottle = owner, error = %undo, "policies that are not in force are left");
            }
            return Err(error);
        }
        let snapshot = self.store.snapshot();
        let committed = added.iter().filter_map(|p| snapshot.policies().get(&p.id));
        Ok(committed.cloned().collect())
    }

    /// Removes the policies of a bottle, committed or not, and their rules, and nothing else. Succeeds if there are
    /// none.
    pub async fn remove_of(&self, owner: &str) -> Result<(), PolicyError> {
        let removed: BTreeSet<_> = ids(&self.store.snapshot(), |p| is_of(p, owner)).into_iter().collect();
        if removed.is_empty() {
            return Ok(());
        }
        let promotion = Promotion {
            removed,
            ..Promotion::default()
        };
        self.promote(promotion).await
    }

    /// The verdict on the first packet of a connection.
    ///
    /// Errors: [`PolicyError::Invalid`] for an invalid query, [`PolicyError::Unresolved`] for names that do not resolve
    /// at the moment.
    pub fn explain(&self, question: &Question) -> Result<Explanation, PolicyError> {
        let snapshot = self.store.snapshot();
        let directory = Directory::new(&snapshot);
        let protocol = changes::protocol(&question.protocol)?;
        let port = changes::dport(question.port, protocol)?;
        let state = self.firewall.desired_of(&snapshot);
        let explainer = Explainer::new(&state);
        let sources = sources(&directory, &question.source)?;
        let destinations = destinations(&directory, &question.destination)?;
        let mut first = None;
        for source in sources {
            for destination in &destinations {
                let packet = Packet {
                    source: source.clone(),
                    destination: destination.clone(),
                    protocol,
                    port,
                };
                let verdict = explainer.verdict(&packet);
                let explanation = Explanation { packet, verdict };
                if !explanation.verdict.allowed {
                    return Ok(explanation);
                }
                first.get_or_insert(explanation);
            }
        }
        first.ok_or_else(|| Unresolved::NotFound(question.source.clone()).into())
    }

    /// Runs to completion, even if the caller is dropped: a commit must also end the connections that it denies.
    async fn promote(&self, promotion: Promotion) -> Result<(), PolicyError> {
        let service = self.clone();
        detached(async move { service.promote_now(promotion).await }).await
    }

    /// Apply to the kernel first: if the store held rules that the kernel refuses, the next start would fail on them.
    async fn promote_now(&self, promotion: Promotion) -> Result<(), PolicyError> {
        let tried = promotion.clone();
        // A transaction that fails here fails again below, where the error is returned.
        let candidate = move |now: &Snapshot| match now.preview(|t| tried.apply(t)) {
            Ok((next, ())) => next,
            Err(_) => now.clone(),
        };
        let trial = self.firewall.try_out(candidate).await?;
        let result = self.store.transact(move |t| promotion.apply(t)).await;
        drop(trial);
        result?;
        self.sever_denied().await;
        Ok(())
    }

    /// Ends existing connections of containers that the policies now deny (P-17).
    async fn sever_denied(&self) {
        let snapshot = self.store.snapshot();
        let state = self.firewall.desired_of(&snapshot);
        let directory = Directory::new(&snapshot);
        let explainer = Explainer::new(&state);
        self.firewall
            .sever(|flow| is_denied(&directory, &explainer, flow))
            .await;
    }

    fn rule_difference(&self, before: &Snapshot, after: &Snapshot) -> (Vec<String>, Vec<String>) {
        let rules = |snapshot| {
            let rules = render(&self.firewall.desired_of(snapshot)).v4;
            let lines = rules.lines().filter(|l| l.starts_with("-A "));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let (before, after) = (rules(before), rules(after));
        let only_in = |these: &[String], others: &[String]| {
            let others: BTreeSet<_> = others.iter().collect();
            these.iter().filter(|l| !others.contains(l)).cloned().collect()
        };
        (only_in(&after, &before), only_in(&before, &after))
    }
}

/// Whether the policies now deny this connection of a container.
fn is_denied(directory: &Directory<'_>, explainer: &Explainer<'_>, flow: &Flow) -> bool {
    let Some(source) = directory.at(*flow.source.ip()) else {
        return false;
    };
    let packet = Packet {
        source,
        destination: destination(directory, *flow.destination.ip()),
        protocol: flow.protocol,
        port: Some(flow.destination.port()).filter(|port| *port != 0),
    };
    !explainer.verdict(&packet).allowed
}

fn is_of(policy: &Policy, owner: &str) -> bool {
    policy.owner.as_deref() == Some(owner)
}

fn ids(snapshot: &Snapshot, wanted: impl Fn(&Policy) -> bool) -> Vec<String> {
    let policies = snapshot.policies().iter().filter(|p| wanted(p));
    policies.map(|p| p.id.clone()).collect()
}

fn entries_of(snapshot: &Snapshot, ids: &BTreeSet<String>) -> Vec<Entry> {
    let directory = Directory::new(snapshot);
    let policies = ids.iter().filter_map(|id| snapshot.policies().get(id));
    policies.map(|policy| changes::entry(&directory, policy)).collect()
}

fn sources(directory: &Directory<'_>, text: &str) -> Result<Vec<End>, PolicyError> {
    match text.parse::<Ipv4Addr>() {
        Ok(address) => directory
            .at(address)
            .map(|end| vec![end])
            .ok_or_else(|| Unresolved::NotFound(text.to_owned()).into()),
        Err(_) => Ok(directory.resolve(text)?),
    }
}

fn destination(directory: &Directory<'_>, address: Ipv4Addr) -> Destination {
    let end = directory.at(address).map(Destination::End);
    end.unwrap_or(Destination::Address(address))
}

fn destinations(directory: &Directory<'_>, text: &str) -> Result<Vec<Destination>, PolicyError> {
    match text.parse::<Ipv4Addr>() {
        Ok(address) => Ok(vec![destination(directory, address)]),
        Err(_) => Ok(directory.resolve(text)?.into_iter().map(Destination::End).collect()),
    }
}
