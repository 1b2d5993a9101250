//! Network policy between containers (East-West) and out of the host (North-South): `contract/policy.md`.
//!
//! Here are the words of it and the defaults in force; the rules themselves are rendered by [`crate::firewall`]. Policies
//! of users come with the API that edits them.

use std::fmt;
use std::str::FromStr;

/// The mode of the East-West direction; there is only this one.
pub const EAST_WEST_MODE: &str = "deny_by_default";

/// How traffic that leaves the host is treated when no policy speaks of it (`contract/policy.md` 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

/// A word that names no North-South mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid mode: {0}")]
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

/// A chain that holds policies. The name of the chain in the kernel is its identifier in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Chain {
    /// `RAIND-EW`: between containers.
    RaindEw,
    /// `RAIND-NS-OBS`: out of the host, mode observe.
    RaindNsObs,
    /// `RAIND-NS-ENF`: out of the host, mode enforce.
    RaindNsEnf,
}

impl Chain {
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

    /// The mode that the API shows for it (`contract/api.md` 14.1).
    pub fn mode(self, defaults: &PolicyDefaults) -> String {
        match self {
            Self::RaindEw => EAST_WEST_MODE.to_owned(),
            Self::RaindNsObs | Self::RaindNsEnf => defaults.ns_mode.to_string(),
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no chain of policies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Chain: {0} is invalid")]
pub struct UnknownChain(pub String);

impl FromStr for Chain {
    type Err = UnknownChain;

    fn from_str(text: &str) -> Result<Self, UnknownChain> {
        Self::ALL
            .into_iter()
            .find(|c| c.name() == text)
            .ok_or_else(|| UnknownChain(text.to_owned()))
    }
}

/// What holds where no policy of a user speaks (`contract/policy.md` 7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyDefaults {
    /// Mode of the North-South direction.
    pub ns_mode: NsMode,
    /// Whether new connections between containers are logged.
    pub ew_logging: bool,
    /// Whether new connections between containers and the outside are logged.
    pub ns_logging: bool,
}

impl Default for PolicyDefaults {
    fn default() -> Self {
        Self {
            ns_mode: NsMode::default(),
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
        for chain in Chain::ALL {
            assert_eq!(chain.to_string().parse(), Ok(chain));
        }
        assert_eq!(
            "raind-ew".parse::<Chain>().unwrap_err().to_string(),
            "Chain: raind-ew is invalid"
        );
        assert_eq!("enforce".parse(), Ok(NsMode::Enforce));
        assert_eq!(
            "Observe".parse::<NsMode>().unwrap_err().to_string(),
            "invalid mode: Observe"
        );
    }

    #[test]
    fn modes_shown() {
        let defaults = PolicyDefaults::default();
        assert_eq!(
            Chain::ALL.map(|c| c.mode(&defaults)),
            ["deny_by_default", "observe", "observe"]
        );
    }
}
