//! User, groups and capabilities of a container's process (`docs/spec/runtime.md` 9.6). A process applies them right
//! before it executes its program, and keeps nothing of the caller.

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::config::{Capabilities, User};

/// The credentials of a process, with ids inside the container.
#[derive(Debug)]
pub struct Credentials {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    bounding: CapabilitySet,
    ambient: CapabilitySet,
    sets: CapabilitySets,
}

/// The step that failed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {0}: {1}")]
pub struct CredentialsError(&'static str, #[source] Errno);

impl Credentials {
    /// Takes the credentials from the configuration. Skips unknown capabilities, which grants less than configured,
    /// never more.
    pub fn new(user: &User, capabilities: &Capabilities) -> Self {
        Self {
            uid: Uid::from_raw(user.uid),
            gid: Gid::from_raw(user.gid),
            groups: user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect(),
            bounding: parse_names(&capabilities.bounding),
            ambient: parse_names(&capabilities.ambient),
            sets: CapabilitySets {
                effective: parse_names(&capabilities.effective),
                permitted: parse_names(&capabilities.permitted),
                inheritable: parse_names(&capabilities.inheritable),
            },
        }
    }

    /// Applies the credentials permanently. This process must be privileged in its user namespace and have one thread.
    pub fn apply(&self) -> Result<(), CredentialsError> {
        let step = |what| move |errno| CredentialsError(what, errno);
        self.restrict_bounding_set()
            .map_err(step("drop capabilities of the bounding set"))?;
        // Otherwise the change of the user would drop the capabilities that are still to be granted.
        set_keep_capabilities(true).map_err(step("keep capabilities"))?;
        set_thread_groups(&self.groups).map_err(step("set the supplementary groups"))?;
        set_thread_res_gid(self.gid, self.gid, self.gid).map_err(step("set the group"))?;
        set_thread_res_uid(self.uid, self.uid, self.uid).map_err(step("set the user"))?;
        set_keep_capabilities(false).map_err(step("keep capabilities"))?;
        set_capabilities(None, self.sets).map_err(step("set the capabilities"))?;
        clear_ambient_capability_set().map_err(step("clear the ambient capabilities"))?;
        for capability in self.ambient.iter() {
            configure_capability_in_ambient_set(capability, true).map_err(step("set an ambient capability"))?;
        }
        Ok(())
    }

    /// Drops all other capabilities from the bounding set, up to the last one that the kernel knows.
    fn restrict_bounding_set(&self) -> Result<(), Errno> {
        for number in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if self.bounding.contains(capability) {
                continue;
            }
            match remove_capability_from_bounding_set(capability) {
                Err(Errno::INVAL) => break,
                other => other?,
            }
        }
        Ok(())
    }
}

/// Parses a list of names that begin with `CAP_`.
fn parse_names(names: &[String]) -> CapabilitySet {
    let known = names
        .iter()
        .filter_map(|name| CapabilitySet::from_name(name.strip_prefix("CAP_")?));
    known.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn unknown_names_grant_nothing() {
        let names = strings(&[
            "CAP_CHOWN",
            "CHOWN",
            "CAP_",
            "CAP_EVERYTHING",
            "cap_kill",
            "CAP_SYS_ADMIN",
        ]);
        assert_eq!(parse_names(&names), CapabilitySet::CHOWN | CapabilitySet::SYS_ADMIN);
    }

    /// Runs in a thread, because the kernel keeps credentials per thread.
    fn status_of(user: User, capabilities: Capabilities) -> String {
        let credentials = Credentials::new(&user, &capabilities);
        std::thread::spawn(move || {
            credentials.apply().unwrap();
            std::fs::read_to_string("/proc/thread-self/status").unwrap()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn all_sets_are_replaced() {
        let two = strings(&["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
        let capabilities = Capabilities {
            bounding: two.clone(),
            effective: strings(&["CAP_CHOWN"]),
            permitted: two.clone(),
            inheritable: two,
            ambient: strings(&["CAP_NET_BIND_SERVICE"]),
        };
        let user = User {
            uid: 33,
            gid: 34,
            additional_gids: vec![7, 8],
            ..User::default()
        };
        let status = status_of(user, capabilities);
        for line in [
            "Uid:\t33\t33\t33\t33",
            "Gid:\t34\t34\t34\t34",
            "Groups:\t7 8 ",
            "CapInh:\t0000000000000401",
            "CapPrm:\t0000000000000401",
            "CapEff:\t0000000000000001",
            "CapBnd:\t0000000000000401",
            "CapAmb:\t0000000000000400",
        ] {
            assert!(status.contains(line), "{line} in {status}");
        }
    }

    #[test]
    fn an_empty_configuration_grants_nothing() {
        let status = status_of(User::default(), Capabilities::default());
        for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(status.contains(&format!("{name}:\t{:016x}\n", 0)), "{name} in {status}");
        }
        assert!(status.contains("Groups:\t \n"), "{status}");
    }
}
