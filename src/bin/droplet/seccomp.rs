//! The system call filters of a container's processes, init and exec alike (`docs/spec/runtime.md` 9.7, 16.6 S3 and
//! S4).
//!
//! Everything is allowed but what is listed: the names in `linux.seccomp`, and a built-in list of calls that reach for
//! the host or undo what the runtime set up. Numbers of the x32 interface would pass by both lists and are refused as a
//! whole; 32-bit programs of x86-64 have a program of their own ([`crate::seccomp_i386`]), and a process of any other
//! architecture is killed at its first call. The annotation `io.raind.seccomp.extra` =
//! `off` leaves only the names of the configuration.
//!
//! Compiled before any fork; [`Filters::install`] then only makes system calls. It sets no-new-privileges first, without
//! which the kernel takes a filter only from a privileged process, and with which no later program can shed it.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter, sock_filter,
};

use crate::config::Config;
use crate::{seccomp_i386, syscalls};

/// Annotation that switches the built-in list off.
const ANNOTATION_EXTRA: &str = "io.raind.seccomp.extra";
/// The one action whose rules are honoured; the daemon writes no other.
const ACTION_ERRNO: &str = "SCMP_ACT_ERRNO";

/// Refused with `EPERM` in addition to what the configuration lists.
const EXTRA: &[&str] = &[
    "umount2",
    "pivot_root",
    "fsopen",
    "fsmount",
    "fsconfig",
    "fspick",
    "move_mount",
    "open_tree",
    "open_tree_attr",
    "mount_setattr",
    "kexec_file_load",
    "add_key",
    "request_key",
    "keyctl",
];

/// `clone` may not make any of these. (A time namespace can only be made by `clone3` and `unshare`.)
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// A filter could not be made.
#[derive(Debug, thiserror::Error)]
#[error("seccomp filter: {0}")]
pub struct FilterError(#[from] BackendError);

/// Filters, ready to be installed in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Filters(Vec<BpfProgram>);

/// Which calls fail, and how.
#[derive(Debug, Default)]
struct Denied {
    /// Whatever the arguments are: number and errno.
    always: BTreeMap<i64, u16>,
    /// The same by name.
    named: BTreeMap<String, u16>,
    /// `clone` with one of [`NAMESPACES`], and everything of x32.
    extra: bool,
}

impl Denied {
    fn by(config: &Config) -> Self {
        let mut denied = Self {
            extra: config.annotations.get(ANNOTATION_EXTRA).is_none_or(|v| v != "off"),
            ..Self::default()
        };
        if denied.extra {
            denied.add(EXTRA, errno(libc::EPERM));
            // Its flags are behind a pointer, out of the filter's sight. C libraries fall back to `clone`.
            denied.add(&["clone3"], errno(libc::ENOSYS));
        }
        for rule in config.linux.seccomp.iter().flat_map(|seccomp| &seccomp.syscalls) {
            if rule.action == ACTION_ERRNO {
                denied.add(&rule.names, rule.errno_ret.unwrap_or(errno(libc::EPERM)));
            }
        }
        denied
    }

    /// A name that this kernel's architecture does not have cannot be called either.
    fn add<S: AsRef<str>>(&mut self, names: &[S], errno: u16) {
        for name in names.iter().map(AsRef::as_ref) {
            if let Some(number) = syscalls::number(name) {
                self.always.insert(number, errno);
                self.named.insert(name.to_owned(), errno);
            }
        }
    }

    /// The program for 32-bit programs, where there are any.
    fn of_32_bits(&self) -> Option<BpfProgram> {
        let flags = NAMESPACES.iter().fold(0, |all, flag| all | flag.cast_unsigned());
        let here = cfg!(target_arch = "x86_64") && !self.named.is_empty();
        here.then(|| seccomp_i386::program(&self.named, self.extra.then_some(flags)))?
    }

    /// The rules by errno, as `seccompiler` makes one program of one answer.
    fn rules(&self) -> Result<BTreeMap<u16, BTreeMap<i64, Vec<SeccompRule>>>, BackendError> {
        let mut rules: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (&number, &errno) in &self.always {
            // Without conditions: any arguments.
            rules.entry(errno).or_default().insert(number, Vec::new());
        }
        if self.extra && !self.always.contains_key(&libc::SYS_clone) {
            let conditions = NAMESPACES.map(has_flag).into_iter().collect::<Result<_, _>>()?;
            rules
                .entry(errno(libc::EPERM))
                .or_default()
                .insert(libc::SYS_clone, conditions);
        }
        Ok(rules)
    }
}

impl Filters {
    /// Compiles what `config` asks for, and the built-in list unless it says no.
    pub fn from_config(config: &Config) -> Result<Self, FilterError> {
        let denied = Denied::by(config);
        let mut programs = Vec::new();
        for (errno, rules) in denied.rules()? {
            let filter = SeccompFilter::new(
                rules,
                SeccompAction::Allow,
                SeccompAction::Errno(errno.into()),
                std::env::consts::ARCH.try_into()?,
            )?;
            programs.push(filter.try_into()?);
        }
        if let Some(first) = programs.first_mut().filter(|_| denied.extra) {
            let program: BpfProgram = std::mem::take(first);
            *first = x32_guard().into_iter().chain(program).collect();
        }
        if let Some(of_32_bits) = denied.of_32_bits() {
            for program in &mut programs {
                program.splice(..0, seccomp_i386::pass());
            }
            programs.push(of_32_bits);
        }
        Ok(Self(programs))
    }

    /// Installs the filters for this process, for good. Safe between `fork` and `execve`: no allocation on success.
    pub fn install(&self) -> io::Result<()> {
        for program in &self.0 {
            apply_filter(program).map_err(|e| match e {
                seccompiler::Error::Prctl(e) | seccompiler::Error::Seccomp(e) => e,
                other => io::Error::other(other),
            })?;
        }
        Ok(())
    }
}

/// `clone` whose first argument has this flag.
fn has_flag(flag: libc::c_int) -> Result<SeccompRule, BackendError> {
    let flag = u64::from(flag.cast_unsigned());
    SeccompRule::new(vec![SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(flag),
        flag,
    )?])
}

/// Goes before a program: refuses every system call number with the x32 bit, on the one architecture that has it.
fn x32_guard() -> Vec<sock_filter> {
    const X32_BIT: u32 = 0x4000_0000;
    /// Offset of the number in `struct seccomp_data`.
    const NUMBER: u32 = 0;
    if !cfg!(target_arch = "x86_64") {
        return Vec::new();
    }
    let instruction = |code: u32, jf, k| sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    vec![
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, NUMBER),
        instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 1, X32_BIT),
        instruction(libc::BPF_RET | libc::BPF_K, 0, refuse),
    ]
}

/// Error numbers are small and positive.
const fn errno(number: libc::c_int) -> u16 {
    number as u16
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    use condenser::runtime::defaults::DENIED_SYSCALLS as DEFAULT_LIST;

    fn config(rules: serde_json::Value, extra: &str) -> Config {
        let text = json!({
            "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}},
            "annotations": {ANNOTATION_EXTRA: extra},
        });
        Config::parse(text.to_string().as_bytes(), std::path::Path::new("config.json")).unwrap()
    }

    fn default_config(extra: &str) -> Config {
        config(
            json!([{"names": DEFAULT_LIST, "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]),
            extra,
        )
    }

    /// Runs `calls` in a thread under the filters of `config`: a filter is a property of one thread.
    fn under<T: Send>(config: &Config, calls: impl FnOnce() -> T + Send) -> T {
        let filters = Filters::from_config(config).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                filters.install().unwrap();
                calls()
            });
            thread.join().unwrap()
        })
    }

    /// Errno of a call with this first argument, all others 0; 0 when it succeeds.
    fn call(number: i64, first: u64) -> i32 {
        // SAFETY: with null pointers and zero lengths these calls fail or do nothing, filter or not.
        match unsafe { libc::syscall(number, first, 0, 0, 0, 0, 0) } {
            -1 => io::Error::last_os_error().raw_os_error().unwrap(),
            _ => 0,
        }
    }

    #[test]
    fn listed_and_built_in_calls_are_refused() {
        let answers = under(&default_config("on"), || {
            let names = DEFAULT_LIST.iter().chain(EXTRA);
            names
                .map(|name| (*name, call(syscalls::number(name).unwrap(), 0)))
                .collect::<Vec<_>>()
        });
        for (name, errno) in answers {
            assert_eq!(errno, libc::EPERM, "{name}");
        }
    }

    #[test]
    fn no_namespace_can_be_made_but_threads_and_processes_can() {
        under(&default_config("on"), || {
            assert_eq!(call(libc::SYS_clone3, 0), libc::ENOSYS);
            for flag in NAMESPACES {
                assert_eq!(
                    call(libc::SYS_clone, flag.cast_unsigned().into()),
                    libc::EPERM,
                    "{flag:#x}"
                );
            }
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            assert!(std::process::Command::new("/bin/true").status().unwrap().success());
        });
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_x32_numbers_are_no_way_around() {
        under(&default_config("on"), || {
            let x32 = |number| call(0x4000_0000 | number, 0);
            assert_eq!(
                (x32(libc::SYS_getpid), x32(libc::SYS_mount)),
                (libc::EPERM, libc::EPERM)
            );
            assert_eq!(call(libc::SYS_getpid, 0), 0);
        });
    }

    /// A call of the 32-bit interface, all other arguments 0: what the kernel returns.
    #[cfg(target_arch = "x86_64")]
    fn call_32(number: u32, first: u32) -> i32 {
        let returned: u32;
        // SAFETY: as `call`; the register that the compiler keeps for itself is put back.
        unsafe {
            std::arch::asm!(
                "xchg rbx, {first}", "int 0x80", "xchg rbx, {first}",
                first = inout(reg) u64::from(first) => _, inout("eax") number => returned,
                inout("ecx") 0 => _, inout("edx") 0 => _, inout("esi") 0 => _, inout("edi") 0 => _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        returned.cast_signed()
    }

    /// How a child ends that makes a call of the 32-bit interface under these filters.
    #[cfg(target_arch = "x86_64")]
    fn end_of_32_bit_program(config: &Config) -> rustix::process::WaitStatus {
        let filters = Filters::from_config(config).unwrap();
        // SAFETY: the child makes only system calls.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let installed = filters.install().is_ok();
            let getpid = call_32(20, 0);
            // SAFETY: ends the child, should the filter have let it pass.
            unsafe { libc::_exit(if installed && getpid > 0 { 1 } else { 2 }) };
        }
        let pid = rustix::process::Pid::from_raw(child).unwrap();
        let waited = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        waited.unwrap().unwrap().1
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_32_bit_program_runs_and_is_refused_the_same() {
        for extra in ["on", "off"] {
            assert_eq!(
                end_of_32_bit_program(&default_config(extra)).exit_status(),
                Some(1),
                "{extra}"
            );
        }
        under(&default_config("on"), || {
            for (name, number) in [
                ("mount", 21),
                ("umount2", 52),
                ("umount", 22),
                ("setns", 346),
                ("vm86", 166),
            ] {
                assert_eq!(call_32(number, 0), -libc::EPERM, "{name}");
            }
            for flag in NAMESPACES {
                assert_eq!(call_32(120, flag.cast_unsigned()), -libc::EPERM, "clone {flag:#x}");
            }
            assert_eq!(call_32(435, 0), -libc::ENOSYS, "clone3");
            assert_eq!(call(libc::SYS_mount, 0), libc::EPERM, "and the other interface");
        });
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_call_that_cannot_be_refused_by_name_kills() {
        let unknown = config(json!([{"names": ["getcpu"], "action": "SCMP_ACT_ERRNO"}]), "on");
        let end = end_of_32_bit_program(&unknown);
        assert_eq!(end.terminating_signal(), Some(libc::SIGSYS), "{end:?}");
    }

    #[test]
    fn no_program_can_get_rid_of_it() {
        assert!(under(&default_config("on"), || rustix::thread::no_new_privs().unwrap()));
    }

    #[test]
    fn without_the_built_in_list_only_the_configuration_counts() {
        under(&default_config("off"), || {
            assert_eq!(call(libc::SYS_mount, 0), libc::EPERM);
            assert_eq!(call(libc::SYS_umount2, 0), libc::EFAULT);
            assert_eq!(call(libc::SYS_clone3, 0), libc::EINVAL);
        });
    }

    #[test]
    fn the_configuration_chooses_the_error() {
        let rules = json!([
            {"names": ["bpf", "clone3", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
            {"names": ["kcmp"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["swapon"], "action": "SCMP_ACT_LOG"},
        ]);
        under(&config(rules, "on"), || {
            assert_eq!(call(libc::SYS_bpf, 0), libc::EOPNOTSUPP);
            assert_eq!(
                call(libc::SYS_clone3, 0),
                libc::EOPNOTSUPP,
                "it goes before the built-in list"
            );
            assert_eq!(call(libc::SYS_kcmp, 0), libc::EPERM);
            assert_eq!(call(libc::SYS_swapon, 0), libc::EFAULT, "other actions do not count");
        });
    }

    #[test]
    fn nothing_to_refuse_means_no_filter() {
        let nothing = config(json!([]), "off");
        assert_eq!(Filters::from_config(&nothing).unwrap(), Filters::default());
    }
}
