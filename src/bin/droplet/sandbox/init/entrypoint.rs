//! What init does itself: it changes to the working directory, and after the start signal it applies AppArmor and the
//! seccomp filters and executes the program.
//!
//! libcontainer has set up everything else. Init reporters the result of `execve` twice: to the monitor through a pipe,
//! and to `start` through a FIFO.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use condenser::runtime::refusal::REFUSED;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};

use crate::report::failure::without_errno;
use crate::report::outcome_pipe::OutcomeReporter;
use crate::sandbox::apparmor::Confinement;
use crate::sandbox::process::program::{ExecError, NOT_EXECUTABLE, Program};
use crate::sandbox::process::signals;
use crate::sandbox::process::supervisor::Supervisor;
use crate::sandbox::seccomp::Filters;

/// The entry point of init. It is prepared before the fork.
#[derive(Debug, Clone)]
pub struct Entrypoint(Rc<EntrypointParts>);

#[derive(Debug)]
struct EntrypointParts {
    program: Program,
    cwd: PathBuf,
    restrictions: Restrictions,
    supervisor: Option<Supervisor>,
    /// Whether libcontainer has changed to the working directory.
    in_working_directory: bool,
    reporters: [OutcomeReporter; 2],
}

/// Restrictions of the program.
#[derive(Debug)]
pub struct Restrictions {
    /// Seccomp filters.
    pub filters: Rc<Filters>,
    /// The AppArmor profile, if one is to be applied.
    pub apparmor: Option<Confinement>,
}

impl Entrypoint {
    /// Makes an entry point. Success is reported before `execve`, and corrected if `execve` fails.
    /// `in_working_directory` means that libcontainer changes to `cwd` as root, so the user needs no access to it.
    pub fn new(
        program: Program,
        cwd: &Path,
        in_working_directory: bool,
        restrictions: Restrictions,
        supervisor: Option<Supervisor>,
        reporters: [OutcomeReporter; 2],
    ) -> Self {
        // An empty path means the root, where init is.
        let cwd = if cwd.as_os_str().is_empty() {
            Path::new("/")
        } else {
            cwd
        }
        .to_owned();
        Self(Rc::new(EntrypointParts {
            program,
            cwd,
            restrictions,
            supervisor,
            in_working_directory,
            reporters,
        }))
    }

    fn report_refusal(&self, status: i32, message: &str) {
        for reporter in &self.0.reporters {
            reporter.refusal(status, message);
        }
    }

    fn execute(&self) -> ExecError {
        signals::reset();
        if let Err(message) = self.restrict() {
            return ExecError {
                status: NOT_EXECUTABLE,
                message,
            };
        }
        match &self.0.supervisor {
            Some(supervisor) => supervisor.execute(&self.0.program),
            None => self.0.program.execute(),
        }
    }

    fn restrict(&self) -> Result<(), String> {
        let Restrictions { filters, apparmor } = &self.0.restrictions;
        if let Some(confinement) = apparmor
            && !confinement.apply_on_exec()?
        {
            let _ = writeln!(
                std::io::stderr(),
                "droplet: the AppArmor profile was unloaded; the program runs without it"
            );
        }
        filters.install().map_err(|error| format!("seccomp: {error}"))
    }
}

impl Executor for Entrypoint {
    /// Executes the program, or ends with the exit status of shells.
    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        self.0.reporters.iter().for_each(OutcomeReporter::success);
        let error = self.execute();
        self.report_refusal(error.status, &error.message);
        let _ = writeln!(std::io::stderr(), "droplet: {error}");
        // SAFETY: ends this process at once. Unwinding into libcontainer would write to descriptors that it has closed.
        unsafe { libc::_exit(error.status) }
    }

    /// Changes to the working directory, and makes it if necessary (R6). Does not check the program yet.
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        let _ = rustix::thread::set_name(c"droplet:init");
        let cwd = &self.0.cwd;
        let change_directory = || match self.0.in_working_directory {
            true => Ok(()),
            false => {
                let mut builder = std::fs::DirBuilder::new();
                builder.recursive(true).mode(0o755).create(cwd)?;
                std::env::set_current_dir(cwd)
            }
        };
        change_directory()
            // This fails if the directory is outside of the root, reached through a host descriptor (CVE-2024-21626).
            .and_then(|()| std::env::current_dir())
            .map_err(|e| {
                let reason = format!("working directory {}: {}", cwd.display(), without_errno(&e));
                // Report it here: libcontainer would add the name of its own step.
                self.report_refusal(REFUSED, &reason);
                ExecutorValidationError::ArgValidationError(reason)
            })?;
        Ok(())
    }

    /// Does nothing: the program gets its environment from `execve`, and this process needs none.
    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}
