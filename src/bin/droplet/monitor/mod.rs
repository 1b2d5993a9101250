//! The processes that stay with a container or an exec until it ends: they forward output, reap the process and record
//! its exit.

pub mod console;
pub mod exec;
mod handle;
mod log_file;
mod protocol;
mod reaper;
pub mod run_end;
mod supervise;

pub use handle::MonitorHandle;
