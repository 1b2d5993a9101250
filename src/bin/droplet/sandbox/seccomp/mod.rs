//! The seccomp filters of a container's processes, for init and exec (`docs/spec/runtime.md` 9.7, 16.6 S3 and S4).
//!
//! The filters allow every system call except the names in `linux.seccomp` and a built-in list of calls that reach the
//! host or undo the isolation. All numbers of the x32 interface are denied, because they would bypass both lists.
//! 32-bit programs on x86-64 have their own filter ([`i386`]). A process of any other architecture is killed at its
//! first call. The annotation `io.raind.seccomp.extra` = `off` disables the built-in list.
//!
//! The filters are compiled before any fork; [`Filters::install`] then makes only system calls. It sets
//! no-new-privileges first. Without that, only a privileged process may install a filter; with it, no later program can
//! escape the filter.

mod i386;
mod syscalls;

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter, sock_filter,
};

use crate::config::Config;

/// Annotation that disables the built-in list.
const ANNOTATION_BUILT_IN: &str = "io.raind.seccomp.extra";
/// The only action that is supported. The daemon writes no other.
const ACTION_ERRNO: &str = "SCMP_ACT_ERRNO";

/// The built-in list: denied with `EPERM` in addition to the configuration.
const BUILT_IN: &[&str] = &[
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

/// `clone` is denied with any of these flags. (Only `clone3` and `unshare` can make a time namespace.)
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// A filter could not be compiled.
#[derive(Debug, thiserror::Error)]
#[error("seccomp filter: {0}")]
pub struct FilterError(#[from] BackendError);

/// Compiled filters, to be installed in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Filters(Vec<BpfProgram>);

/// The denied calls and their errors.
#[derive(Debug, Default)]
struct Denied {
    /// Calls denied with any arguments: number and errno.
    always: BTreeMap<i64, u16>,
    /// The same calls by name.
    named: BTreeMap<String, u16>,
    /// Whether `clone` with one of [`NAMESPACES`] and all x32 calls are denied.
    built_in: bool,
}

impl Denied {
    fn from_config(config: &Config) -> Self {
        let mut denied = Self {
            built_in: config.annotations.get(ANNOTATION_BUILT_IN).is_none_or(|v| v != "off"),
            ..Self::default()
        };
        if denied.built_in {
            denied.add(BUILT_IN, errno(libc::EPERM));
            // A filter cannot read the flags of `clone3` behind its pointer. With ENOSYS, C libraries fall back to
            // `clone`.
            denied.add(&["clone3"], errno(libc::ENOSYS));
        }
        for rule in config.linux.seccomp.iter().flat_map(|seccomp| &seccomp.syscalls) {
            if rule.action == ACTION_ERRNO {
                denied.add(&rule.names, rule.errno_ret.unwrap_or(errno(libc::EPERM)));
            }
        }
        denied
    }

    /// Skips names that do not exist on this architecture.
    fn add<S: AsRef<str>>(&mut self, names: &[S], errno: u16) {
        for name in names.iter().map(AsRef::as_ref) {
            if let Some(number) = syscalls::number(name) {
                self.always.insert(number, errno);
                self.named.insert(name.to_owned(), errno);
            }
        }
    }

    /// Returns the filter for 32-bit programs, on architectures that have them.
    fn i386_filter(&self) -> Option<BpfProgram> {
        let flags = NAMESPACES.iter().fold(0, |all, flag| all | flag.cast_unsigned());
        let here = cfg!(target_arch = "x86_64") && !self.named.is_empty();
        here.then(|| i386::filter(&self.named, self.built_in.then_some(flags)))?
    }

    /// Returns the rules by errno, because a filter of `seccompiler` has one result for all its rules.
    fn rules(&self) -> Result<BTreeMap<u16, BTreeMap<i64, Vec<SeccompRule>>>, BackendError> {
        let mut rules: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (&number, &errno) in &self.always {
            // No conditions: deny with any arguments.
            rules.entry(errno).or_default().insert(number, Vec::new());
        }
        if self.built_in && !self.always.contains_key(&libc::SYS_clone) {
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
    /// Compiles the filters for a configuration.
    pub fn from_config(config: &Config) -> Result<Self, FilterError> {
        let denied = Denied::from_config(config);
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
        if let Some(first) = programs.first_mut().filter(|_| denied.built_in) {
            let program: BpfProgram = std::mem::take(first);
            *first = x32_guard().into_iter().chain(program).collect();
        }
        if let Some(i386_filter) = denied.i386_filter() {
            for program in &mut programs {
                program.splice(..0, i386::allow());
            }
            programs.push(i386_filter);
        }
        Ok(Self(programs))
    }

    /// Installs the filters for this process permanently. Does not allocate on success, so it is safe after `fork`.
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

/// Matches `clone` with this flag in its first argument.
fn has_flag(flag: libc::c_int) -> Result<SeccompRule, BackendError> {
    let flag = u64::from(flag.cast_unsigned());
    SeccompRule::new(vec![SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(flag),
        flag,
    )?])
}

/// Goes before a filter: denies every system call number with the x32 bit. Only x86-64 has such numbers.
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

/// Converts an error number, which is small and positive.
const fn errno(number: libc::c_int) -> u16 {
    number as u16
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    use condenser::runtime::defaults::DENIED_SYSCALLS;

    fn config(rules: serde_json::Value, built_in: &str) -> Config {
        let text = json!({
            "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}},
            "annotations": {ANNOTATION_BUILT_IN: built_in},
        });
        Config::parse(text.to_string().as_bytes(), std::path::Path::new("config.json")).unwrap()
    }

    fn default_config(built_in: &str) -> Config {
        config(
            json!([{"names": DENIED_SYSCALLS, "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]),
            built_in,
        )
    }

    /// Runs `calls` in a thread with the filters of `config`. A filter applies to one thread.
    fn with_filters<T: Send>(config: &Config, calls: impl FnOnce() -> T + Send) -> T {
        let filters = Filters::from_config(config).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                filters.install().unwrap();
                calls()
            });
            thread.join().unwrap()
        })
    }

    /// Makes a call with this first argument and zeros. Returns the errno, or 0 on success.
    fn call(number: i64, first: u64) -> i32 {
        // SAFETY: with null pointers and zero lengths these calls fail or do nothing, with or without a filter.
        match unsafe { libc::syscall(number, first, 0, 0, 0, 0, 0) } {
            -1 => io::Error::last_os_error().raw_os_error().unwrap(),
            _ => 0,
        }
    }

    #[test]
    fn configured_and_built_in_calls_are_denied() {
        let results = with_filters(&default_config("on"), || {
            let names = DENIED_SYSCALLS.iter().chain(BUILT_IN);
            names
                .map(|name| (*name, call(syscalls::number(name).unwrap(), 0)))
                .collect::<Vec<_>>()
        });
        for (name, errno) in results {
            assert_eq!(errno, libc::EPERM, "{name}");
        }
    }

    #[test]
    fn namespaces_cannot_be_made_but_threads_and_processes_can() {
        with_filters(&default_config("on"), || {
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
    fn x32_numbers_are_denied() {
        with_filters(&default_config("on"), || {
            let x32 = |number| call(0x4000_0000 | number, 0);
            assert_eq!(
                (x32(libc::SYS_getpid), x32(libc::SYS_mount)),
                (libc::EPERM, libc::EPERM)
            );
            assert_eq!(call(libc::SYS_getpid, 0), 0);
        });
    }

    /// Makes a 32-bit call with this first argument and zeros. Returns the kernel's result.
    #[cfg(target_arch = "x86_64")]
    fn call_32(number: u32, first: u32) -> i32 {
        let returned: u32;
        // SAFETY: as in `call`; the register that the compiler reserves is restored.
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

    /// Makes a 32-bit call in a child with these filters. Returns how the child ended.
    #[cfg(target_arch = "x86_64")]
    fn run_32_bit_program(config: &Config) -> rustix::process::WaitStatus {
        let filters = Filters::from_config(config).unwrap();
        // SAFETY: the child makes only system calls.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let installed = filters.install().is_ok();
            let getpid = call_32(20, 0);
            // SAFETY: ends the child if the filter allowed the call.
            unsafe { libc::_exit(if installed && getpid > 0 { 1 } else { 2 }) };
        }
        let pid = rustix::process::Pid::from_raw(child).unwrap();
        let waited = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        waited.unwrap().unwrap().1
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_32_bit_program_runs_with_the_same_calls_denied() {
        for built_in in ["on", "off"] {
            assert_eq!(
                run_32_bit_program(&default_config(built_in)).exit_status(),
                Some(1),
                "{built_in}"
            );
        }
        with_filters(&default_config("on"), || {
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
            assert_eq!(call(libc::SYS_mount, 0), libc::EPERM, "native mount");
        });
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_32_bit_program_is_killed_if_a_name_is_unknown() {
        let unknown = config(json!([{"names": ["getcpu"], "action": "SCMP_ACT_ERRNO"}]), "on");
        let end = run_32_bit_program(&unknown);
        assert_eq!(end.terminating_signal(), Some(libc::SIGSYS), "{end:?}");
    }

    #[test]
    fn the_filters_set_no_new_privileges() {
        assert!(with_filters(&default_config("on"), || rustix::thread::no_new_privs().unwrap()));
    }

    #[test]
    fn without_the_built_in_list_only_configured_calls_are_denied() {
        with_filters(&default_config("off"), || {
            assert_eq!(call(libc::SYS_mount, 0), libc::EPERM);
            assert_eq!(call(libc::SYS_umount2, 0), libc::EFAULT);
            assert_eq!(call(libc::SYS_clone3, 0), libc::EINVAL);
        });
    }

    #[test]
    fn the_configuration_sets_the_errno() {
        let rules = json!([
            {"names": ["bpf", "clone3", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
            {"names": ["kcmp"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["swapon"], "action": "SCMP_ACT_LOG"},
        ]);
        with_filters(&config(rules, "on"), || {
            assert_eq!(call(libc::SYS_bpf, 0), libc::EOPNOTSUPP);
            assert_eq!(
                call(libc::SYS_clone3, 0),
                libc::EOPNOTSUPP,
                "the configuration overrides the built-in list"
            );
            assert_eq!(call(libc::SYS_kcmp, 0), libc::EPERM);
            assert_eq!(call(libc::SYS_swapon, 0), libc::EFAULT, "other actions are ignored");
        });
    }

    #[test]
    fn without_denied_calls_there_is_no_filter() {
        let nothing = config(json!([]), "off");
        assert_eq!(Filters::from_config(&nothing).unwrap(), Filters::default());
    }
}
