//! What a build file may have at most.

/// Bytes of a build file, and of an ignore file.
pub const FILE_BYTES: u64 = 1 << 20;
/// Stages.
pub const STAGES: usize = 256;
/// Instructions of all stages.
pub const STEPS: usize = 4096;
/// Bytes that one instruction may have when its variables are replaced.
pub const RESOLVED_BYTES: usize = 1 << 20;
/// Patterns of an ignore file, or of the `--exclude`s of an instruction.
pub const PATTERNS: usize = 10_000;
