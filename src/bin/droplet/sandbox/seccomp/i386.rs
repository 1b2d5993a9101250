//! The seccomp filter for 32-bit programs on x86-64. They have other system call numbers.
//!
//! A filter of `seccompiler` supports one architecture and kills processes of another. So those filters let 32-bit
//! calls pass, and the filter made here checks them. If a denied name is missing in the table, there is no such filter,
//! and a 32-bit program is killed at its first call.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// `AUDIT_ARCH_I386` (`linux/audit.h`).
const ARCH: u32 = 0x4000_0003;
/// Offsets in `struct seccomp_data`; for the first argument, of its lower half.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const CLONE: u32 = 120;
/// `vm86` and its predecessor exist only on this architecture. No container needs this processor mode.
const VM86: [u32; 2] = [113, 166];

/// Numbers of the calls that this runtime and our config.json deny (`asm/unistd_32.h`).
const NUMBERS: &[(&str, &[u32])] = &[
    ("add_key", &[286]),
    ("bpf", &[357]),
    ("clone3", &[435]),
    ("delete_module", &[129]),
    ("finit_module", &[350]),
    ("fsconfig", &[431]),
    ("fsmount", &[432]),
    ("fsopen", &[430]),
    ("fspick", &[433]),
    ("init_module", &[128]),
    ("kcmp", &[349]),
    // Does not exist on this architecture.
    ("kexec_file_load", &[]),
    ("kexec_load", &[283]),
    ("keyctl", &[288]),
    ("mount", &[21]),
    ("mount_setattr", &[442]),
    ("move_mount", &[429]),
    ("name_to_handle_at", &[341]),
    ("open_by_handle_at", &[342]),
    ("open_tree", &[428]),
    ("open_tree_attr", &[467]),
    ("perf_event_open", &[336]),
    ("pivot_root", &[217]),
    ("process_vm_readv", &[347]),
    ("process_vm_writev", &[348]),
    ("ptrace", &[26]),
    ("reboot", &[88]),
    ("request_key", &[287]),
    ("setns", &[346]),
    ("swapoff", &[115]),
    ("swapon", &[87]),
    // Includes the old `umount`.
    ("umount2", &[52, 22]),
    ("unshare", &[310]),
    ("userfaultfd", &[374]),
];

/// Goes before a filter of the native architecture: allows 32-bit calls.
pub fn allow() -> [sock_filter; 3] {
    [
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, ARCH, 0, 1),
        return_value(libc::SECCOMP_RET_ALLOW),
    ]
}

/// Makes a filter that denies calls by name with their errno, and `clone` with any of the flags. Returns `None` if the
/// table lacks a name.
pub fn filter(denied: &BTreeMap<String, u16>, clone_flags: Option<u32>) -> Option<BpfProgram> {
    let mut filter = vec![
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, ARCH, 1, 0),
        return_value(libc::SECCOMP_RET_ALLOW),
        load(NUMBER),
    ];
    let mut deny = |number: u32, errno: u16| {
        filter.extend([
            jump(libc::BPF_JEQ, number, 0, 1),
            return_value(libc::SECCOMP_RET_ERRNO | u32::from(errno)),
        ]);
    };
    for (name, errno) in denied {
        let (_, numbers) = NUMBERS.iter().find(|(known, _)| known == name)?;
        numbers.iter().for_each(|number| deny(*number, *errno));
    }
    if let Some(flags) = clone_flags {
        VM86.into_iter().for_each(|number| deny(number, libc::EPERM as u16));
        filter.extend([
            jump(libc::BPF_JEQ, CLONE, 0, 3),
            load(FIRST_ARGUMENT),
            jump(libc::BPF_JSET, flags, 0, 1),
            return_value(libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned()),
        ]);
    }
    filter.push(return_value(libc::SECCOMP_RET_ALLOW));
    Some(filter)
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn jump(condition: u32, value: u32, if_true: u8, if_false: u8) -> sock_filter {
    instruction(libc::BPF_JMP | condition | libc::BPF_K, if_true, if_false, value)
}

fn return_value(value: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, value)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::super::syscalls;
    use super::*;

    #[test]
    fn every_name_of_the_table_exists_on_this_machine() {
        for (name, _) in NUMBERS {
            assert!(syscalls::number(name).is_some(), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_makes_no_filter() {
        let denied = |name: &str| BTreeMap::from([(name.to_owned(), 1)]);
        assert!(filter(&denied("mount"), None).is_some());
        assert!(filter(&denied("getcpu"), None).is_none());
    }
}
