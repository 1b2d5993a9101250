//! Resource limits of a container besides memory, CPUs and pids: swap, shared memory, rlimits.

use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;

use super::ContainerError;
use crate::model::Ulimit;
use crate::runtime::defaults::{MEMORY_LIMIT, OPEN_FILES};

/// Minimum size of `/dev/shm`: a page.
const MIN_SHM: u64 = 4096;
/// Maps names of `ulimits` to those of the kernel (`getrlimit(2)`).
const RESOURCES: [(&str, &str, Resource); 16] = [
    ("as", "RLIMIT_AS", Resource::As),
    ("core", "RLIMIT_CORE", Resource::Core),
    ("cpu", "RLIMIT_CPU", Resource::Cpu),
    ("data", "RLIMIT_DATA", Resource::Data),
    ("fsize", "RLIMIT_FSIZE", Resource::Fsize),
    ("locks", "RLIMIT_LOCKS", Resource::Locks),
    ("memlock", "RLIMIT_MEMLOCK", Resource::Memlock),
    ("msgqueue", "RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("nice", "RLIMIT_NICE", Resource::Nice),
    ("nofile", "RLIMIT_NOFILE", Resource::Nofile),
    ("nproc", "RLIMIT_NPROC", Resource::Nproc),
    ("rss", "RLIMIT_RSS", Resource::Rss),
    ("rtprio", "RLIMIT_RTPRIO", Resource::Rtprio),
    ("rttime", "RLIMIT_RTTIME", Resource::Rttime),
    ("sigpending", "RLIMIT_SIGPENDING", Resource::Sigpending),
    ("stack", "RLIMIT_STACK", Resource::Stack),
];
const OPEN_FILES_LIMIT: &str = "RLIMIT_NOFILE";
const UNLIMITED: u64 = u64::MAX;
/// The kernel's upper bound for open files per process (`proc_sys_fs(5)`).
const NR_OPEN: &str = "/proc/sys/fs/nr_open";

fn invalid(message: impl Into<String>) -> ContainerError {
    ContainerError::InvalidOption(message.into())
}

/// Memory and swap together. 0 means the default, no swap; `memory` 0 also means its default.
pub(super) fn memory_swap(total: i64, memory: u64) -> Result<Option<i64>, ContainerError> {
    let memory = if memory == 0 { MEMORY_LIMIT as u64 } else { memory };
    match total {
        0 => Ok(None),
        -1 => Ok(Some(-1)),
        total if u64::try_from(total).is_ok_and(|total| total >= memory) => Ok(Some(total)),
        _ => Err(invalid(format!(
            "memorySwap {total} is memory and swap together: at least the memory, {memory} bytes, or -1 for no limit"
        ))),
    }
}

/// Size of `/dev/shm`.
pub(super) fn shm(bytes: u64) -> Result<Option<u64>, ContainerError> {
    match bytes {
        0 => Ok(None),
        _ if bytes < MIN_SHM || bytes > i64::MAX as u64 => Err(invalid(format!(
            "shmSize {bytes} is not a number of bytes from {MIN_SHM} on"
        ))),
        _ => Ok(Some(bytes)),
    }
}

/// `name=soft[:hard]`; if a name is repeated, the last one counts.
pub(super) fn ulimits(texts: &[String]) -> Result<Vec<Ulimit>, ContainerError> {
    let mut limits: Vec<Ulimit> = Vec::new();
    for text in texts {
        let limit = ulimit(text)?;
        limits.retain(|other| other.resource != limit.resource);
        limits.push(limit);
    }
    Ok(limits)
}

fn ulimit(text: &str) -> Result<Ulimit, ContainerError> {
    let wrong = |what: &str| invalid(format!("ulimits {text:?}: {what}"));
    let (name, values) = text
        .split_once('=')
        .ok_or_else(|| wrong("must be <name>=<soft>[:<hard>]"))?;
    let known = RESOURCES.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name));
    let Some((_, name_of_kernel, resource)) = known else {
        let names = RESOURCES.map(|(name, ..)| name).join(", ");
        return Err(wrong(&format!("{name:?} is not one of {names}")));
    };
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(UNLIMITED),
        text => text
            .parse()
            .map_err(|_| wrong("values are numbers from 0 on, or -1 for no limit")),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err(wrong(
            "the first value, the soft limit, is above the second, the hard limit",
        ));
    }
    if *resource == Resource::Nofile && hard > most_open_files() {
        let most = most_open_files();
        return Err(wrong(&format!(
            "the host allows no more than {most} open files (fs.nr_open)"
        )));
    }
    if let Some(most) = own_limit(*resource).filter(|most| hard > *most) {
        return Err(wrong(&format!(
            "the daemon may not have more than {most} itself and lacks the capability to raise that (CAP_SYS_RESOURCE)"
        )));
    }
    Ok(Ulimit {
        resource: (*name_of_kernel).to_owned(),
        soft,
        hard,
    })
}

fn most_open_files() -> u64 {
    let text = fs_err::read_to_string(NR_OPEN).unwrap_or_default();
    text.trim().parse().unwrap_or(OPEN_FILES)
}

/// The hard limit that this process cannot exceed; `None` if it may raise its limits, or has none.
fn own_limit(resource: Resource) -> Option<u64> {
    let most = getrlimit(resource).maximum?;
    let sets = rustix::thread::capabilities(None).ok()?;
    (!sets.effective.contains(CapabilitySet::SYS_RESOURCE)).then_some(most)
}

/// The defaults: as many open files as the daemon may have, within reason. A low soft limit meant for users' shells
/// (1024) is not inherited.
pub(super) fn default_ulimits() -> Vec<Ulimit> {
    let open_files = getrlimit(Resource::Nofile).maximum.unwrap_or(UNLIMITED).min(OPEN_FILES);
    vec![Ulimit {
        resource: OPEN_FILES_LIMIT.to_owned(),
        soft: open_files,
        hard: open_files,
    }]
}

/// The defaults, overridden by the client's choices.
pub(super) fn effective(defaults: &[Ulimit], chosen: &[Ulimit]) -> Vec<Ulimit> {
    let is_chosen = |limit: &&Ulimit| chosen.iter().any(|other| other.resource == limit.resource);
    let left = defaults.iter().filter(|limit| !is_chosen(limit));
    left.chain(chosen).cloned().collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn limit(resource: &str, soft: u64, hard: u64) -> Ulimit {
        Ulimit {
            resource: resource.into(),
            soft,
            hard,
        }
    }

    #[test]
    fn limits_are_written_as_for_docker_run() {
        let texts = ["nofile=1024:2048", "core=0", "MEMLOCK=4096", "nproc=5", "nproc=6:7"];
        let read = ulimits(&texts.map(str::to_owned)).unwrap();
        assert_eq!(
            read,
            [
                limit("RLIMIT_NOFILE", 1024, 2048),
                limit("RLIMIT_CORE", 0, 0),
                limit("RLIMIT_MEMLOCK", 4096, 4096),
                limit("RLIMIT_NPROC", 6, 7),
            ]
        );
        let all = effective(&default_ulimits(), &read);
        assert_eq!(all, read, "the client's take the place of the defaults");
    }

    #[rstest]
    #[case("nofile", "must be")]
    #[case("files=3", "not one of as, core")]
    #[case("nofile=x", "numbers")]
    #[case("nofile=-2", "numbers")]
    #[case("nofile=3:2", "above")]
    #[case("nofile=1:-1", "fs.nr_open")]
    #[case("nofile=1:2:3", "numbers")]
    fn what_cannot_be_a_limit_is_refused(#[case] text: &str, #[case] part: &str) {
        let error = ulimits(&[text.to_owned()]).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains(text), "{error}");
    }

    #[test]
    fn what_the_daemon_cannot_give_is_refused_and_nothing_else() {
        let asked = ulimits(&["nproc=unlimited".to_owned()]);
        match own_limit(Resource::Nproc) {
            Some(_) => assert!(asked.unwrap_err().to_string().contains("CAP_SYS_RESOURCE")),
            None => assert_eq!(asked.unwrap(), [limit("RLIMIT_NPROC", UNLIMITED, UNLIMITED)]),
        }
    }

    #[test]
    fn open_files_are_neither_few_nor_a_billion() {
        let [limit] = &default_ulimits()[..] else { panic!() };
        assert_eq!(limit.soft, limit.hard);
        assert!(limit.soft <= OPEN_FILES, "{limit:?}");
    }

    #[test]
    fn swap_is_what_is_above_the_memory() {
        assert_eq!(memory_swap(0, 0).unwrap(), None);
        assert_eq!(memory_swap(-1, 0).unwrap(), Some(-1));
        assert_eq!(memory_swap(1 << 30, 0).unwrap(), Some(1 << 30));
        assert_eq!(memory_swap(8 << 20, 8 << 20).unwrap(), Some(8 << 20));
        for (total, memory) in [(1 << 20, 8 << 20), (8 << 20, 0), (-2, 0)] {
            let error = memory_swap(total, memory).unwrap_err().to_string();
            assert!(error.contains(&format!("memorySwap {total}")), "{error}");
        }
    }

    #[test]
    fn shared_memory_has_a_size() {
        assert_eq!((shm(0).unwrap(), shm(1 << 20).unwrap()), (None, Some(1 << 20)));
        assert!(shm(1).is_err() && shm(u64::MAX).is_err());
    }
}
