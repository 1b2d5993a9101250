//! The verbs of the command line. Each has a function `run`, which gets the arguments after the name of the verb.

mod arguments;
pub mod attach;
pub mod create;
pub mod delete;
pub mod exec;
pub mod kill;
pub mod list;
pub mod run;
pub mod spec;
pub mod start;
pub mod state;
