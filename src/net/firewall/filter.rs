//! The packet filter of the host: takes the rules that should hold as one value and brings the kernel to them.

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
    /// Or why there is none.
    v6: Result<Side, FirewallError>,
    /// The mapped ports of UDP that the kernel's flows were last compared with.
    swept: Option<Vec<PublishedPort>>,
}

impl PacketFilter {
    /// Finds the tools; nothing is changed. IPv6 may be missing. Errors: [`FirewallError::Missing`].
    pub fn find(variant: Variant) -> Result<Self, FirewallError> {
        Ok(Self {
            variant,
            v4: Side::new(Tool::find(variant, Family::V4)?, JUMPS),
            v6: Tool::find(variant, Family::V6).map(|tool| Side::new(tool, JUMPS6)),
            swept: None,
        })
    }

    /// Brings the kernel to these rules from whatever an earlier run, or the original daemon, left, and reads them back.
    /// A host without working ip6tables is logged once and left at that.
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

    /// Brings the kernel to these rules from those that were applied last; nothing is run when they are the same. On an
    /// error each table holds either its old or its new rules, entirely.
    pub async fn apply(&mut self, desired: &DesiredRules) -> Result<(), FirewallError> {
        let rules = render(desired);
        self.v4.bring_to(&rules.v4).await?;
        if let Ok(v6) = &mut self.v6 {
            v6.bring_to(&rules.v6).await?;
        }
        self.sweep(desired).await;
        Ok(())
    }

    /// Compares the kernel with these rules, and puts back what others changed. `true` when something was.
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

    /// Tools that were missing at start may be there now. That they are not has been told.
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

    /// Only when the mapped ports of UDP changed; a failure leaves stale flows, which end when their clients fall silent.
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

/// Removes all our rules and chains, and those of the original daemon, for good: for an uninstallation. No daemon may be
/// running. The second family is tried even if the first fails.
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

/// The rules of one family: what we believe the kernel holds, and the tool to change it with.
struct Side {
    tool: Tool,
    jumps: &'static [Jump],
    /// The rendered text in force and the same as data; `None` when the kernel has to be asked.
    known: Option<(String, Tables)>,
    /// The rule of others that stood above ours at the last verification.
    above: Option<String>,
    /// Whether it is left there.
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

    /// Applies the difference to what we believe; one run of the tool or none. If that is refused, the belief may be
    /// wrong, and the kernel is asked.
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

    /// Asks the kernel and applies the difference. Returns what differed, as `table/chain`.
    async fn reconcile(&mut self, text: &str, scope: Scope) -> Result<Vec<String>, FirewallError> {
        self.known = None;
        let kernel = Tables::parse(&self.tool.save().await?);
        self.bring_from(&kernel, text, scope).await
    }

    /// The same for the periodic comparison, which minds what others have put above ours.
    async fn verify(&mut self, text: &str) -> Result<Vec<String>, FirewallError> {
        self.known = None;
        let kernel = Tables::parse(&self.tool.save().await?);
        let scope = self.scope_below(above_ours(&kernel, self.jumps));
        self.bring_from(&kernel, text, scope).await
    }

    /// A rule above ours may bypass policy, so ours are moved back to the top (`docs/spec/policy.md` P-20). Is it above
    /// ours again at the next comparison, its program insists, and moving would go on for ever.
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
