//! Resource limits of a container's processes (`process.rlimits`), init and exec alike.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{self, Config};

/// Why limits cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// The configuration names none that exists.
    #[error("process.rlimits: {0:?} is not a resource limit")]
    Unknown(String),
    /// The kernel refuses the value.
    #[error("process.rlimits: cannot set {resource:?}: {errno}")]
    Set {
        /// Which one.
        resource: Resource,
        /// Reason.
        errno: Errno,
    },
}

/// The limits of a configuration in the words of the kernel.
#[derive(Debug)]
pub struct Limits(Vec<(Resource, Rlimit)>);

impl Limits {
    /// Nothing is set yet.
    pub fn from_config(config: &Config) -> Result<Self, LimitError> {
        let limits = config.process.rlimits.iter().map(limit);
        limits.collect::<Result<_, _>>().map(Self)
    }

    /// Sets them for this process.
    pub fn set(&self) -> Result<(), LimitError> {
        self.each(|_, wanted| wanted)
    }

    /// Raises the hard limits of this process to those that are wanted, where they are higher. Inside of its user namespace
    /// a container can only lower what it inherits.
    pub fn make_room(&self) -> Result<(), LimitError> {
        self.each(|now, wanted| Rlimit {
            current: now.current,
            maximum: higher(now.maximum, wanted.maximum),
        })
    }

    fn each(&self, new: impl Fn(Rlimit, Rlimit) -> Rlimit) -> Result<(), LimitError> {
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

/// `None` is no limit.
fn higher(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    Some(one?.max(other?))
}

fn limit(configured: &config::Rlimit) -> Result<(Resource, Rlimit), LimitError> {
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
    fn limits_are_those_of_the_kernel() {
        let configured = |kind: &str| config::Rlimit {
            kind: kind.to_owned(),
            soft: 7,
            hard: u64::MAX,
        };
        let (resource, value) = limit(&configured("RLIMIT_NOFILE")).unwrap();
        assert_eq!(resource, Resource::Nofile);
        assert_eq!((value.current, value.maximum), (Some(7), None));
        let error = limit(&configured("RLIMIT_FUN")).unwrap_err().to_string();
        assert!(error.contains("RLIMIT_FUN"), "{error}");
    }

    #[test]
    fn room_is_only_made_upwards() {
        assert_eq!(higher(Some(1), Some(2)), Some(2));
        assert_eq!(higher(Some(3), Some(2)), Some(3));
        assert_eq!(higher(Some(3), None), None);
        assert_eq!(higher(None, Some(3)), None);
    }
}
