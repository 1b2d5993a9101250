//! Programs of a few hundred bytes that the assembler builds inside our own read-only data: there is no file to find at run
//! time, and no libc (`docs/decisions/0008-a-pause-program-in-assembler.md`).
//!
//! [`begin`] opens the file, the assembler code after it is the program, [`end`] closes the file, [`bytes`] returns it.

/// The beginning of an executable file that is called `$name`: ELF header and one program header, for one segment that is
/// readable and executable. The code comes next.
macro_rules! begin {
    ($name:literal) => {
        std::arch::global_asm!(
            concat!(".pushsection .rodata.", $name, ", \"a\""),
            ".balign 16",
            concat!(".hidden ", $name, "_start"),
            concat!(".globl ", $name, "_start"),
            concat!($name, "_start:"),
            // ELF header: 64 bits, little-endian, version 1, executable.
            ".byte 0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0",
            ".short 2, {machine}",
            ".long 1",
            concat!(".quad 0x400000 + (", $name, "_code - ", $name, "_start)"),
            ".quad 64, 0",
            ".long 0",
            ".short 64, 56, 1, 0, 0, 0",
            // Program header: PT_LOAD, R + X, the whole file at 0x400000, page alignment of all page sizes.
            ".long 1, 5",
            ".quad 0, 0x400000, 0x400000",
            concat!(".quad ", $name, "_end - ", $name, "_start, ", $name, "_end - ", $name, "_start"),
            ".quad 0x10000",
            concat!($name, "_code:"),
            machine = const $crate::base::elf::MACHINE,
        );
    };
}

/// The end of the file.
macro_rules! end {
    ($name:literal) => {
        std::arch::global_asm!(
            concat!(".hidden ", $name, "_end"),
            concat!(".globl ", $name, "_end"),
            concat!($name, "_end:"),
            ".popsection",
        );
    };
}

pub(crate) use {begin, end};

/// ELF number of the architecture.
#[cfg(target_arch = "x86_64")]
pub(crate) const MACHINE: u16 = 62;
/// ELF number of the architecture.
#[cfg(target_arch = "aarch64")]
pub(crate) const MACHINE: u16 = 183;

/// The file between two labels.
///
/// # Safety
/// Both labels are in one section without gaps that nobody writes to.
pub(crate) unsafe fn bytes(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}
