//! The packet filter of the host: takes the desired rules as one value and applies them to the kernel.

use super::plan::{JUMPS, JUMPS6, Jump, Scope, above_ours, applied, plan};
use super::state::{DesiredRules, PublishedPort};
use super::tables::Tables;
use super::tool::{Family, Tool, Variant};
use super::{FirewallError, conntrack, legacy, render};
use crate::model::Protocol;

/// The rules of this host, IPv4 and IPv6. One owner at a time.
pub struct PacketFilter {
    variant: Variant,
    v4: Side,
    /// Or why it is unavailable.
    v6: Result<Side, FirewallError>,
    /// The UDP port mappings as of the last cleanup of conntrack entries.
    swept: Option<Vec<PublishedPort>>,
}

impl PacketFilter {
    /// Finds the tools without changing anything. IPv6 may be missing. Errors: [`FirewallError::Missing`].
    pub fn find(variant: Variant) -> Result<Self, FirewallError> {
        Ok(Self {
            variant,
            v4: Side::new(Tool::find(variant, Family::V4)?, JUMPS),
            v6: Tool::find(variant, Family::V6).map(|tool| Side::new(tool, JUMPS6)),
            swept: None,
        })
    }

    /// Applies these rules, whatever an earlier run or the original daemon left in the kernel, and reads them back. If
    /// the host has no working ip6tables, log that once and skip IPv6.
    pub async fn take_over(&mut self, desired: &DesiredRules) -> Result<(), FirewallError> {
        let rules = render(desired);
        let changed = self
            .v4
            .reconcile(&rules.v4, Scope::Takeover(legacy::is_leftover))
            .await?;
        let again = self
            .v4
            .reconcile(&rules.v4, Scope::Takeover(legacy::is_leftover))
            .await?;
        if !again.is_empty() {
            return Err(FirewallError::Unverified(format!("{} differ", again.join(", "))));
        }
        if let Ok(v6) = &mut self.v6
            && let Err(error) = v6.reconcile(&rules.v6, Scope::Takeover(|_, _, _| false)).await
        {
            self.v6 = Err(error);
        }
        if let Err(error) = &self.v6 {
            tracing::error!(%error, "IPv6 between containers of one network is not filtered");
        }
        tracing::info!(?changed, "packet filter rules are in place");
        self.sweep(desired).await;
        Ok(())
    }

    /// Applies these rules on top of those applied last; if they are equal, nothing is run. On an error each table
    /// holds either all of its old or all of its new rules.
    pub async fn apply(&mut self, desired: &DesiredRules) -> Result<(), FirewallError> {
        let rules = render(desired);
        self.v4.bring_to(&rules.v4).await?;
        if let Ok(v6) = &mut self.v6 {
            v6.bring_to(&rules.v6).await?;
        }
        self.sweep(desired).await;
        Ok(())
    }

    /// Compares the kernel with these rules and restores what others changed. `true` if anything was changed.
    pub async fn verify(&mut self, desired: &DesiredRules) -> Result<bool, FirewallError> {
        let rules = render(desired);
        let mut repaired = self.v4.verify(&rules.v4).await?;
        match &mut self.v6 {
            Ok(v6) => repaired.extend(v6.verify(&rules.v6).await?),
            Err(_) => self.try_v6(&rules.v6).await,
        }
        if !repaired.is_empty() {
            tracing::warn!(?repaired, "packet filter rules were changed by others and are put back");
        }
        self.sweep(desired).await;
        Ok(!repaired.is_empty())
    }

    /// Tools that were missing at start may have been installed. If they are still missing, do not log it again.
    async fn try_v6(&mut self, text: &str) {
        let Ok(tool) = Tool::find(self.variant, Family::V6) else {
            return;
        };
        let mut v6 = Side::new(tool, JUMPS6);
        if v6.reconcile(text, Scope::Takeover(|_, _, _| false)).await.is_ok() {
            tracing::info!("IPv6 between containers of one network is filtered now");
            self.v6 = Ok(v6);
        }
    }

    /// Only when the UDP port mappings changed. A failure leaves stale flows, which end when their clients stop
    /// sending.
    async fn sweep(&mut self, desired: &DesiredRules) {
        let mut udp = desired.port_mappings();
        udp.retain(|way| way.protocol == Protocol::Udp);
        if self.swept.as_ref() == Some(&udp) {
            return;
        }
        match conntrack::sweep(desired).await {
            Ok(0) => {}
            Ok(flows) => tracing::debug!(flows, "stale UDP flows deleted"),
            Err(error) => tracing::warn!(%error, "stale UDP flows may be left"),
        }
        self.swept = Some(udp);
    }
}

/// Uninstallation: removes all our rules and chains, and those of the original daemon, for good. No daemon may be
/// running. IPv6 is tried even if IPv4 fails.
pub async fn remove_all(variant: Variant) -> Result<(), FirewallError> {
    let v4 = match Tool::find(variant, Family::V4) {
        Ok(tool) => Side::new(tool, &[])
            .reconcile("", Scope::Takeover(legacy::is_leftover))
            .await
            .map(drop),
        Err(error) => Err(error),
    };
    if let Ok(tool) = Tool::find(variant, Family::V6) {
        let v6 = Side::new(tool, &[]).reconcile("", Scope::Upkeep).await;
        if let Err(error) = v6 {
            tracing::warn!(%error, "IPv6 rules are left");
        }
    }
    v4
}

/// The rules of one family: the assumed content of the kernel, and the tool to change it with.
struct Side {
    tool: Tool,
    jumps: &'static [Jump],
    /// The rendered text in force and its parsed form; `None` if the kernel must be read first.
    known: Option<(String, Tables)>,
    /// The foreign rule that was above ours at the last verification.
    above: Option<String>,
    /// Whether we leave it there.
    yields: bool,
}

impl Side {
    fn new(tool: Tool, jumps: &'static [Jump]) -> Self {
        Self {
            tool,
            jumps,
            known: None,
            above: None,
            yields: false,
        }
    }

    /// Applies the difference to the assumed content; one run of the tool or none. If the tool refuses it, the
    /// assumption may be wrong, so read the kernel and try again.
    async fn bring_to(&mut self, text: &str) -> Result<(), FirewallError> {
        if let Some((known, tables)) = &self.known {
            if known == text {
                return Ok(());
            }
            let desired = Tables::parse(text);
            let outcome = match plan(tables, &desired, self.jumps, Scope::Change) {
                Some(plan) => self.tool.restore(&plan.input).await,
                None => Ok(()),
            };
            match outcome {
                Ok(()) => {
                    self.known = Some((text.to_owned(), applied(&desired, self.jumps)));
                    return Ok(());
                }
                Err(error) => tracing::warn!(%error, "packet filter rules were refused; comparing with the kernel"),
            }
        }
        self.reconcile(text, Scope::Upkeep).await.map(drop)
    }

    /// Reads the kernel and applies the difference. Returns what differed, as `table/chain`.
    async fn reconcile(&mut self, text: &str, scope: Scope) -> Result<Vec<String>, FirewallError> {
        self.known = None;
        let kernel = Tables::parse(&self.tool.save().await?);
        self.bring_from(&kernel, text, scope).await
    }

    /// The same for the periodic verification, which also handles foreign rules above ours.
    async fn verify(&mut self, text: &str) -> Result<Vec<String>, FirewallError> {
        self.known = None;
        let kernel = Tables::parse(&self.tool.save().await?);
        let scope = self.scope_below(above_ours(&kernel, self.jumps));
        self.bring_from(&kernel, text, scope).await
    }

    /// A rule above ours may bypass policy, so we move ours back to the top (`docs/spec/policy.md` P-20). If it is
    /// above ours again at the next verification, its program insists, and moving ours again would go on forever.
    fn scope_below(&mut self, above: Option<String>) -> Scope {
        let before = std::mem::replace(&mut self.above, above);
        match &self.above {
            None => {
                self.yields = false;
                Scope::Upkeep
            }
            Some(rule) if before.as_ref() == Some(rule) => {
                if !std::mem::replace(&mut self.yields, true) {
                    tracing::warn!(
                        rule,
                        "another program puts a rule above ours again and again; it may bypass policy"
                    );
                }
                Scope::Yield
            }
            Some(rule) => {
                self.yields = false;
                tracing::warn!(
                    rule,
                    "another program has put a rule above ours; ours are moved to the top"
                );
                Scope::Upkeep
            }
        }
    }

    async fn bring_from(&mut self, kernel: &Tables, text: &str, scope: Scope) -> Result<Vec<String>, FirewallError> {
        let desired = Tables::parse(text);
        let plan = plan(kernel, &desired, self.jumps, scope);
        if let Some(plan) = &plan {
            self.tool.restore(&plan.input).await?;
        }
        self.known = Some((text.to_owned(), applied(&desired, self.jumps)));
        Ok(plan.map(|p| p.differing).unwrap_or_default())
    }
}
