//! Resource limits of a container's processes (`process.rlimits`), for init and exec.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{self, Config};

/// Why the limits cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// The configuration names a limit that does not exist.
    #[error("process.rlimits: {0:?} is not a resource limit")]
    Unknown(String),
    /// The kernel refuses the value.
    #[error("process.rlimits: cannot set {resource:?}: {errno}")]
    Set {
        /// The limit.
        resource: Resource,
        /// Reason.
        errno: Errno,
    },
}

/// The configured limits.
#[derive(Debug)]
pub struct Limits(Vec<(Resource, Rlimit)>);

impl Limits {
    /// Parses the limits of a configuration. Does not set them.
    pub fn from_config(config: &Config) -> Result<Self, LimitError> {
        let limits = config.process.rlimits.iter().map(parse_limit);
        limits.collect::<Result<_, _>>().map(Self)
    }

    /// Sets the limits of this process.
    pub fn set(&self) -> Result<(), LimitError> {
        self.apply(|_, wanted| wanted)
    }

    /// Raises the hard limits of this process to the configured ones if those are higher. In its user namespace, a
    /// container can only lower the limits that it inherits.
    pub fn raise_hard_limits(&self) -> Result<(), LimitError> {
        self.apply(|now, wanted| Rlimit {
            current: now.current,
            maximum: higher(now.maximum, wanted.maximum),
        })
    }

    fn apply(&self, new: impl Fn(Rlimit, Rlimit) -> Rlimit) -> Result<(), LimitError> {
        for (resource, wanted) in &self.0 {
            let now = getrlimit(*resource);
            let new = new(now, *wanted);
            if new == now {
                continue;
            }
            setrlimit(*resource, new).map_err(|errno| LimitError::Set {
                resource: *resource,
                errno,
            })?;
        }
        Ok(())
    }
}

/// `None` means no limit.
fn higher(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    Some(one?.max(other?))
}

fn parse_limit(configured: &config::Rlimit) -> Result<(Resource, Rlimit), LimitError> {
    let resource = match configured.kind.as_str() {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        unknown => return Err(LimitError::Unknown(unknown.to_owned())),
    };
    let finite = |value| Some(value).filter(|value| *value != u64::MAX);
    let limit = Rlimit {
        current: finite(configured.soft),
        maximum: finite(configured.hard),
    };
    Ok((resource, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_found_by_its_name() {
        let configured = |kind: &str| config::Rlimit {
            kind: kind.to_owned(),
            soft: 7,
            hard: u64::MAX,
        };
        let (resource, value) = parse_limit(&configured("RLIMIT_NOFILE")).unwrap();
        assert_eq!(resource, Resource::Nofile);
        assert_eq!((value.current, value.maximum), (Some(7), None));
        let error = parse_limit(&configured("RLIMIT_FUN")).unwrap_err().to_string();
        assert!(error.contains("RLIMIT_FUN"), "{error}");
    }

    #[test]
    fn a_hard_limit_is_only_raised() {
        assert_eq!(higher(Some(1), Some(2)), Some(2));
        assert_eq!(higher(Some(3), Some(2)), Some(3));
        assert_eq!(higher(Some(3), None), None);
        assert_eq!(higher(None, Some(3)), None);
    }
}
