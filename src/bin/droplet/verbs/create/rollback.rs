//! Rolls a failed `create` back.

use condenser::runtime::state::RuntimeState;

use crate::container::files::remove_if_exists;
use crate::monitor::MonitorHandle;
use crate::report::output;
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::network::{self, NetworkPlan};
use crate::sandbox::plan::Plan;

/// What a failed `create` has to roll back.
pub struct Rollback<'a> {
    plan: &'a Plan,
    previous: Option<RuntimeState>,
    /// The monitor, once it was forked.
    pub monitor: Option<MonitorHandle>,
    /// Whether the network was set up.
    pub connected: bool,
}

impl<'a> Rollback<'a> {
    /// `previous` is the state to restore. Without one, the container did not exist.
    pub fn new(plan: &'a Plan, previous: Option<RuntimeState>) -> Self {
        Self {
            plan,
            previous,
            monitor: None,
            connected: false,
        }
    }

    /// Continues after an error; it can only be printed to stderr.
    pub fn run(self) {
        let container = &self.plan.container;
        let print_error = |what: &str, result: std::io::Result<()>| {
            if let Err(error) = result {
                output::print_error(format_args!("roll-back of {}: {what}: {error}", container.id));
            }
        };
        if let Some(monitor) = self.monitor {
            monitor.cancel();
        }
        // The monitor has killed everything, unless it died.
        match Cgroup::new(&self.plan.config, &container.id) {
            Ok(cgroup) => {
                cgroup.kill_all();
                print_error("cgroup", cgroup.remove());
            }
            Err(error) => print_error("cgroup", Err(std::io::Error::other(error))),
        }
        if let (NetworkPlan::Veth(veth), true) = (&self.plan.network, self.connected) {
            let disconnected = network::disconnect(&veth.name).map_err(std::io::Error::other);
            print_error("network", disconnected);
        }
        print_error("files", container.remove_run_files());
        let restored = match &self.previous {
            Some(state) => container.write_state(state),
            None => remove_if_exists(&container.dir.state()),
        };
        print_error("state.json", restored);
    }
}
