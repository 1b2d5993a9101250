//! The small init that runs a container's program on request (`init: true`).
//!
//! As the first process of the container it waits for signals, all of which it keeps blocked. On SIGCHLD it reaps
//! every child that has exited, including adopted orphans. It forwards any other signal to the program, whose pid is
//! its argument. When the program exits, it exits with the same status (128 + n after signal n), and the kernel then
//! kills the remaining processes of the container.
//!
//! It has no heap, no libc and no open file, and occupies one page. The runtime starts it with all signals blocked,
//! so that none is lost before its first instruction.

use std::arch::global_asm;

crate::base::elf::begin!("condenser_reaper");

#[cfg(target_arch = "x86_64")]
global_asm!(
    // ebx = the pid, from argv[1]
    "mov rsi, [rsp + 16]",
    "xor ebx, ebx",
    "2:",
    "movzx eax, byte ptr [rsi]",
    "test eax, eax",
    "jz 3f",
    "imul ebx, ebx, 10",
    "lea ebx, [rbx + rax - 48]",
    "inc rsi",
    "jmp 2b",
    "3:",
    "sub rsp, 16",
    // rt_sigtimedwait(all, 0, 0, 8), repeated when interrupted
    "4:",
    "mov eax, 128",
    "lea rdi, [rip + condenser_reaper_all]",
    "xor esi, esi",
    "xor edx, edx",
    "mov r10d, 8",
    "syscall",
    "test eax, eax",
    "js 4b",
    "cmp eax, 17",
    "je 5f",
    // kill(pid, signal)
    "mov esi, eax",
    "mov edi, ebx",
    "mov eax, 62",
    "syscall",
    "jmp 4b",
    // wait4(-1, status, WNOHANG, 0), until there is no child left to reap
    "5:",
    "mov eax, 61",
    "mov rdi, -1",
    "mov rsi, rsp",
    "mov edx, 1",
    "xor r10d, r10d",
    "syscall",
    "test eax, eax",
    "jle 4b",
    "cmp eax, ebx",
    "jne 5b",
    // exit_group(128 + signal), or the exit status
    "mov edi, [rsp]",
    "mov eax, edi",
    "and eax, 127",
    "jz 6f",
    "lea edi, [rax + 128]",
    "jmp 7f",
    "6:",
    "shr edi, 8",
    "and edi, 255",
    "7:",
    "mov eax, 231",
    "syscall",
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    // w19 = the pid, from argv[1]
    "ldr x1, [sp, #16]",
    "mov w19, #0",
    "mov w20, #10",
    "2:",
    "ldrb w0, [x1], #1",
    "cbz w0, 3f",
    "mul w19, w19, w20",
    "sub w0, w0, #48",
    "add w19, w19, w0",
    "b 2b",
    "3:",
    "sub sp, sp, #16",
    // rt_sigtimedwait(all, 0, 0, 8), repeated when interrupted
    "4:",
    "adr x0, condenser_reaper_all",
    "mov x1, #0",
    "mov x2, #0",
    "mov x3, #8",
    "mov x8, #137",
    "svc #0",
    "tbnz x0, #63, 4b",
    "cmp w0, #17",
    "b.eq 5f",
    // kill(pid, signal)
    "mov w1, w0",
    "mov w0, w19",
    "mov x8, #129",
    "svc #0",
    "b 4b",
    // wait4(-1, status, WNOHANG, 0), until there is no child left to reap
    "5:",
    "mov x0, #-1",
    "mov x1, sp",
    "mov x2, #1",
    "mov x3, #0",
    "mov x8, #260",
    "svc #0",
    "cmp w0, #0",
    "b.le 4b",
    "cmp w0, w19",
    "b.ne 5b",
    // exit_group(128 + signal), or the exit status
    "ldr w0, [sp]",
    "ands w1, w0, #127",
    "b.eq 6f",
    "add w0, w1, #128",
    "b 7f",
    "6:",
    "ubfx w0, w0, #8, #8",
    "7:",
    "mov x8, #94",
    "svc #0",
);

global_asm!(
    ".balign 8",
    // Every signal.
    "condenser_reaper_all:",
    ".quad 0xffffffffffffffff",
);

crate::base::elf::end!("condenser_reaper");

unsafe extern "C" {
    static condenser_reaper_start: u8;
    static condenser_reaper_end: u8;
}

/// The executable file.
pub fn program() -> &'static [u8] {
    // SAFETY: the labels delimit the file above.
    unsafe { crate::base::elf::bytes(&raw const condenser_reaper_start, &raw const condenser_reaper_end) }
}
