//! The same refusals for 32-bit programs on x86-64, which have other system call numbers: Docker and Podman run them too.
//!
//! `seccompiler` knows one interface a program, and kills who uses another. So its programs let this interface pass, and one
//! program made here answers for it. A name that the table does not have cannot be refused here; then there is no such
//! program, and 32-bit programs are killed at their first call.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// `AUDIT_ARCH_I386` (`linux/audit.h`).
const ARCH: u32 = 0x4000_0003;
/// Offsets in `struct seccomp_data`; of the first argument the lower half.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const CLONE: u32 = 120;
/// `vm86` and its predecessor, which only this interface has: a mode of the processor that no container needs.
const VM86: [u32; 2] = [113, 166];

/// Numbers of the calls that we and a config.json of ours refuse (`asm/unistd_32.h`).
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
    // Not of this interface.
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
    // And the old `umount`.
    ("umount2", &[52, 22]),
    ("unshare", &[310]),
    ("userfaultfd", &[374]),
];

/// Goes before a program for the machine's own interface: lets calls of this one pass.
pub fn pass() -> [sock_filter; 3] {
    [
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, ARCH, 0, 1),
        answer(libc::SECCOMP_RET_ALLOW),
    ]
}

/// Refuses calls by name with their errno, and `clone` with one of these flags. `None` when a name is not known here.
pub fn program(denied: &BTreeMap<String, u16>, clone_flags: Option<u32>) -> Option<BpfProgram> {
    let mut program = vec![
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, ARCH, 1, 0),
        answer(libc::SECCOMP_RET_ALLOW),
        load(NUMBER),
    ];
    let mut refuse = |number: u32, errno: u16| {
        program.extend([
            jump(libc::BPF_JEQ, number, 0, 1),
            answer(libc::SECCOMP_RET_ERRNO | u32::from(errno)),
        ]);
    };
    for (name, errno) in denied {
        let (_, numbers) = NUMBERS.iter().find(|(known, _)| known == name)?;
        numbers.iter().for_each(|number| refuse(*number, *errno));
    }
    if let Some(flags) = clone_flags {
        VM86.into_iter().for_each(|number| refuse(number, libc::EPERM as u16));
        program.extend([
            jump(libc::BPF_JEQ, CLONE, 0, 3),
            load(FIRST_ARGUMENT),
            jump(libc::BPF_JSET, flags, 0, 1),
            answer(libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned()),
        ]);
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    Some(program)
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn jump(condition: u32, value: u32, if_so: u8, if_not: u8) -> sock_filter {
    instruction(libc::BPF_JMP | condition | libc::BPF_K, if_so, if_not, value)
}

fn answer(value: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, value)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syscalls;

    #[test]
    fn what_the_table_names_exists_on_this_machine_too() {
        for (name, _) in NUMBERS {
            assert!(syscalls::number(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_name_that_is_not_known_makes_no_program() {
        let denied = |name: &str| BTreeMap::from([(name.to_owned(), 1)]);
        assert!(program(&denied("mount"), None).is_some());
        assert!(program(&denied("getcpu"), None).is_none());
    }
}
