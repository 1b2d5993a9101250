//! What a verb reports: errors, output, the audit log, and whether a program could be started.

pub mod audit;
pub mod clock;
pub mod failure;
pub mod outcome_pipe;
pub mod output;
