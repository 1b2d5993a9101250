use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use super::Protocol;

/// A policy of a user: an exception from the default of its chain.
///
/// ```text
/// added --commit--> committed --remove--> removed --commit--> (gone)
///   \--remove, revert--> (gone)   ^---------revert---/
/// ```
///
/// Rules are made from `committed` and `removed`. Whether the containers it names exist is never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// ULID in lower case. Ids increase with every addition, so their order is the order of addition.
    pub id: String,
    /// The chain of its rules.
    pub chain: PolicyChain,
    /// Name of a container, pod or replica set, which may not exist yet.
    pub source: String,
    /// East-West: like `source`. North-South: an IPv4 address or block.
    pub destination: String,
    /// `None` for any.
    pub protocol: Option<PolicyProtocol>,
    /// Destination port; `None` for any. Only with TCP and UDP.
    pub dport: Option<u16>,
    /// Free text.
    pub comment: String,
    /// The bottle that it is added and removed with.
    pub owner: Option<String>,
    /// Its stage.
    pub stage: PolicyStage,
    /// When it was added.
    pub created_at: Timestamp,
}

/// The stage of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyStage {
    /// Not in force yet.
    Added,
    /// In force.
    Committed,
    /// In force until the next commit.
    Removed,
}

impl fmt::Display for PolicyStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Added => "added",
            Self::Committed => "committed",
            Self::Removed => "removed",
        })
    }
}

/// A chain that holds policies. The name of the chain in the kernel is its identifier in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PolicyChain {
    /// Between containers: policies allow.
    #[serde(rename = "RAIND-EW")]
    RaindEw,
    /// Out of the host, mode observe: policies deny.
    #[serde(rename = "RAIND-NS-OBS")]
    RaindNsObs,
    /// Out of the host, mode enforce: policies allow.
    #[serde(rename = "RAIND-NS-ENF")]
    RaindNsEnf,
}

impl PolicyChain {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::RaindEw, Self::RaindNsObs, Self::RaindNsEnf];

    /// Its name in the kernel and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::RaindEw => "RAIND-EW",
            Self::RaindNsObs => "RAIND-NS-OBS",
            Self::RaindNsEnf => "RAIND-NS-ENF",
        }
    }
}

impl fmt::Display for PolicyChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of an unknown policy chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Chain: {0} is invalid; use RAIND-EW, RAIND-NS-OBS or RAIND-NS-ENF")]
pub struct UnknownChain(pub String);

impl FromStr for PolicyChain {
    type Err = UnknownChain;

    fn from_str(text: &str) -> Result<Self, UnknownChain> {
        Self::ALL
            .into_iter()
            .find(|c| c.name() == text)
            .ok_or_else(|| UnknownChain(text.to_owned()))
    }
}

/// The protocols that a policy can match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "well-known names")]
pub enum PolicyProtocol {
    Icmp,
    Tcp,
    Udp,
}

impl PolicyProtocol {
    /// Its name in requests and rules.
    pub fn name(self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Whether it has ports.
    pub fn has_ports(self) -> bool {
        self != Self::Icmp
    }
}

impl From<Protocol> for PolicyProtocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

impl fmt::Display for PolicyProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How to treat traffic that leaves the host when no policy matches (`docs/spec/policy.md` 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NsMode {
    /// Allowed and logged; policies deny.
    #[default]
    Observe,
    /// Denied and logged; policies allow.
    Enforce,
}

impl fmt::Display for NsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        })
    }
}

/// The name of an unknown North-South mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid mode: {0}; use observe or enforce")]
pub struct UnknownMode(pub String);

impl FromStr for NsMode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        match text {
            "observe" => Ok(Self::Observe),
            "enforce" => Ok(Self::Enforce),
            other => Err(UnknownMode(other.to_owned())),
        }
    }
}

/// A stored mode that we do not know denies (`docs/spec/policy.md` P-03).
impl<'de> Deserialize<'de> for NsMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        Ok(word.parse().unwrap_or_else(|error: UnknownMode| {
            tracing::error!(%error, "the stored North-South mode is not understood; it is taken for enforce");
            Self::Enforce
        }))
    }
}

/// The defaults where no user policy matches (`docs/spec/policy.md` 7). There is at most one such record; without it
/// the contract's defaults apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySettings {
    /// North-South mode in force.
    pub ns_mode: NsMode,
    /// The mode from the next commit on, if it differs.
    pub ns_pending: Option<NsMode>,
    /// Whether new connections between containers are logged.
    pub ew_logging: bool,
    /// Whether new connections between containers and the outside are logged.
    pub ns_logging: bool,
}

impl PolicySettings {
    /// Id of the record.
    pub const ID: &str = "defaults";
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self {
            ns_mode: NsMode::default(),
            ns_pending: None,
            ew_logging: true,
            ns_logging: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_api() {
        for chain in PolicyChain::ALL {
            assert_eq!(chain.to_string().parse(), Ok(chain));
            assert_eq!(serde_json::to_string(&chain).unwrap(), format!("{:?}", chain.name()));
        }
        assert_eq!(
            "raind-ew".parse::<PolicyChain>().unwrap_err().to_string(),
            "Chain: raind-ew is invalid; use RAIND-EW, RAIND-NS-OBS or RAIND-NS-ENF"
        );
        assert_eq!("enforce".parse(), Ok(NsMode::Enforce));
        assert_eq!(
            "Observe".parse::<NsMode>().unwrap_err().to_string(),
            "invalid mode: Observe; use observe or enforce"
        );
    }

    #[test]
    fn a_stored_mode_that_is_not_understood_denies() {
        for (stored, mode) in [
            ("observe", NsMode::Observe),
            ("enforce", NsMode::Enforce),
            ("observe_next_commit", NsMode::Enforce),
            ("", NsMode::Enforce),
        ] {
            assert_eq!(serde_json::from_str::<NsMode>(&format!("{stored:?}")).unwrap(), mode);
        }
    }
}
