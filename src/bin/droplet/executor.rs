//! What init does itself, before and after the start signal: working directory, AppArmor, system call filters, `execve`.
//!
//! libcontainer has set up everything else by then. How the `execve` went is reported twice: to the monitor over a pipe,
//! and to whoever runs `start` over a FIFO.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use condenser::runtime::refusal::REFUSED;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};

use crate::apparmor::Confinement;
use crate::failure::plain;
use crate::program::{ExecError, NOT_EXECUTABLE, Program};
use crate::report::Speaker;
use crate::seccomp::Filters;
use crate::signals;
use crate::supervisor::Supervisor;

/// Set up before the fork, carried out in init.
#[derive(Debug, Clone)]
pub struct Entrypoint(Rc<Parts>);

#[derive(Debug)]
struct Parts {
    program: Program,
    cwd: PathBuf,
    restrictions: Restrictions,
    supervisor: Option<Supervisor>,
    /// Whether init is there already.
    entered: bool,
    reports: [Speaker; 2],
}

/// What the program may not do.
#[derive(Debug)]
pub struct Restrictions {
    /// System calls.
    pub filters: Rc<Filters>,
    /// The AppArmor profile, if there is one to apply.
    pub apparmor: Option<Confinement>,
}

impl Entrypoint {
    /// Success is reported before the `execve`, taken back if it fails ([`crate::report`]). `entered`: init has gone to
    /// `cwd` when this is carried out, as root, so that its user need not be able to.
    pub fn new(
        program: Program,
        cwd: &Path,
        entered: bool,
        restrictions: Restrictions,
        supervisor: Option<Supervisor>,
        reports: [Speaker; 2],
    ) -> Self {
        // An empty one stays where init is: at the root.
        let cwd = if cwd.as_os_str().is_empty() {
            Path::new("/")
        } else {
            cwd
        }
        .to_owned();
        Self(Rc::new(Parts {
            program,
            cwd,
            restrictions,
            supervisor,
            entered,
            reports,
        }))
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
            && !confinement.on_exec()?
        {
            let _ = writeln!(
                std::io::stderr(),
                "droplet: the AppArmor profile was unloaded; running without"
            );
        }
        filters.install().map_err(|error| format!("seccomp: {error}"))
    }
}

impl Executor for Entrypoint {
    /// Becomes the program, or ends with the status that shells use.
    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        self.0.reports.iter().for_each(Speaker::done);
        let error = self.execute();
        self.0
            .reports
            .iter()
            .for_each(|report| report.refused(error.status, &error.message));
        let _ = writeln!(std::io::stderr(), "droplet: {error}");
        // SAFETY: ends this process at once. Unwinding into libcontainer would write to descriptors it has closed.
        unsafe { libc::_exit(error.status) }
    }

    /// Goes to the working directory, which is made if it does not exist (R6). A missing program is not an error yet.
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        let _ = rustix::thread::set_name(c"droplet:init");
        let cwd = &self.0.cwd;
        let go = || match self.0.entered {
            true => Ok(()),
            false => {
                let mut builder = std::fs::DirBuilder::new();
                builder.recursive(true).mode(0o755).create(cwd)?;
                std::env::set_current_dir(cwd)
            }
        };
        go()
            // Fails when this is outside of the root, by way of a descriptor of the host's (CVE-2024-21626).
            .and_then(|()| std::env::current_dir())
            .map_err(|e| {
                let reason = format!("working directory {}: {}", cwd.display(), plain(&e));
                // libcontainer would wrap it in what it did at the time.
                self.0
                    .reports
                    .iter()
                    .for_each(|report| report.refused(REFUSED, &reason));
                ExecutorValidationError::ArgValidationError(reason)
            })?;
        Ok(())
    }

    /// The program gets its environment from `execve`; this process needs none.
    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}
