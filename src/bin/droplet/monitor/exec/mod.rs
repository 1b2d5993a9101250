//! The processes that stay with an exec until it ends.

pub mod attached;
pub mod detached;
mod output_tail;
mod session;

use condenser::runtime::state::Status;

use crate::container::Container;
use crate::container::lock::Lock;
use crate::report::audit::{AuditLog, Event, Record};
use crate::report::failure::{Failure, Stage};
use crate::sandbox::exec::target::Target;
use crate::sandbox::exec::{Command, ExecPlan};

/// What the caller asked for.
#[derive(Debug, Clone, Copy)]
pub struct ExecRequest<'a> {
    /// The container.
    pub container: &'a Container,
    /// Gets a record of the launch and of the exit.
    pub audit: &'a AuditLog,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Whether the caller waits for the process.
    pub wait: bool,
    /// Program and arguments.
    pub command: &'a [String],
}

impl ExecRequest<'_> {
    /// Collects everything that the process needs. While the lock is held, no create, start or delete can run.
    fn prepare(self) -> Result<(Lock, ExecPlan), Failure> {
        let container = self.container;
        let lock = container.lock_shared().stage("get_status")?;
        let state = container.state().stage("get_status")?;
        let not_running = || Failure::new("check_status", format!("container: {} not running.", container.id));
        if state.status != Status::Running {
            return Err(not_running());
        }
        let init = state.process().ok_or_else(not_running)?;
        let target = Target::open(&init).stage("get_pid")?.ok_or_else(not_running)?;
        let config = container.config().stage(self.stage())?;
        let command = Command {
            arguments: self.command,
            tty: self.tty,
            ends_with_parent: self.wait,
        };
        let plan = ExecPlan::new(&container.id, &config, target, command).stage(self.stage())?;
        Ok((lock, plan))
    }

    /// Returns the audit stage for this way to start a process.
    fn stage(self) -> &'static str {
        if self.tty { "exec_shim" } else { "exec_nsenter" }
    }

    /// Writes the audit record of the launch.
    fn record_launch(self, failure: Option<&Failure>) {
        self.audit.write(&self.record(Event::Exec).result(failure));
    }

    fn record(self, event: Event) -> Record {
        Record::new(event, &self.container.id)
            .container(self.container)
            .exec_command(self.command.to_vec())
    }
}
