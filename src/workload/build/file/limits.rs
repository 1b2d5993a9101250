//! What a build file may have at most, so that none takes the daemon's memory or time.

/// Bytes of a build file.
pub const FILE_BYTES: u64 = 1 << 20;
/// Bytes of an ignore file.
pub const IGNORE_BYTES: u64 = 256 << 10;
/// Stages.
pub const STAGES: usize = 256;
/// Instructions of all stages, and `ARG`s before them.
pub const STEPS: usize = 4096;
/// Bytes that the values of variables may add to one instruction.
pub const RESOLVED_BYTES: usize = 1 << 20;
/// Bytes of one variable, label or path after its variables are replaced: the kernel has the same limit for an argument.
pub const WORD_BYTES: usize = 128 << 10;
/// Steps that the patterns of one instruction (`${x#a*b}`) may take.
pub const PATTERN_WORK: usize = 1 << 21;
/// How deep `${a:-${b:-…}}` may be nested.
pub const DEPTH: usize = 32;
/// Patterns of an ignore file, or of the `--exclude`s of an instruction.
pub const PATTERNS: usize = 4096;
