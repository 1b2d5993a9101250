//! Kernel parameters that container networking requires. Each is read first, written only if it differs, and read
//! back. The names of written parameters are returned: while the daemon runs, each is somebody else's change that was
//! undone. `/proc/sys/net` shows the network namespace of the process that opens it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use super::{BridgeFiltering, NetworkError};
use crate::base::cause::Cause;

/// Timeout of `modprobe`.
const MODPROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The sysctl tree.
#[derive(Debug, Clone)]
pub(super) struct Sysctl {
    root: PathBuf,
}

impl Sysctl {
    /// The tree of this machine.
    pub fn new() -> Self {
        Self {
            root: "/proc/sys".into(),
        }
    }

    /// Enables IP forwarding (`docs/spec/network.md` N-02).
    pub async fn enable_forwarding(&self) -> Result<Vec<String>, NetworkError> {
        self.switch_on("net/ipv4/ip_forward").await
    }

    /// Sets the parameters of one of our bridges. `route_localnet` allows replies to a client on 127.0.0.1 (N-15).
    /// IPv6 is disabled on the bridge, so that a container cannot make itself the host's router by router
    /// advertisements; kernels without IPv6 do not have that parameter.
    pub async fn prepare_bridge(&self, bridge: &str) -> Result<Vec<String>, NetworkError> {
        let mut written = self
            .switch_on(&format!("net/ipv4/conf/{bridge}/route_localnet"))
            .await?;
        let ipv6 = format!("net/ipv6/conf/{bridge}/disable_ipv6");
        if self.root.join(&ipv6).exists() {
            written.extend(self.switch_on(&ipv6).await?);
        }
        Ok(written)
    }

    /// Makes bridged frames pass the packet filter; loads `br_netfilter` if necessary (N-02).
    pub async fn filter_bridged_traffic(&self) -> (BridgeFiltering, Vec<String>) {
        let directory = self.root.join("net/bridge");
        let mut loading = None;
        if !directory.exists() {
            loading = load_module("br_netfilter").await.err();
        }
        // modprobe fails if the module is built in: check for the parameter, not for modprobe's exit status.
        if !directory.exists() {
            let detail = loading.map(|e| format!(" ({e})")).unwrap_or_default();
            let reason = format!(
                "the kernel has no bridge netfilter: {} does not exist{detail}; load the module br_netfilter",
                directory.display()
            );
            return (BridgeFiltering::Unavailable(reason), Vec::new());
        }
        let mut written = Vec::new();
        for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            match self.switch_on(&format!("net/bridge/{name}")).await {
                Ok(names) => written.extend(names),
                Err(error) => return (BridgeFiltering::Unavailable(error.to_string()), written),
            }
        }
        (BridgeFiltering::Enabled, written)
    }

    /// The name, if it was written.
    async fn switch_on(&self, name: &str) -> Result<Vec<String>, NetworkError> {
        let path = self.root.join(name);
        let failed = |source| NetworkError::Sysctl {
            path: path.clone(),
            source,
        };
        let file = path.clone();
        let written = tokio::task::spawn_blocking(move || write_one(&file).map_err(Cause::from))
            .await
            .unwrap_or_else(|e| Err(e.into()))
            .map_err(failed)?;
        Ok(written.then(|| name.replace('/', ".")).into_iter().collect())
    }
}

/// Whether it was written.
#[expect(clippy::disallowed_methods, reason = "the error names the file already")]
fn write_one(path: &Path) -> std::io::Result<bool> {
    if read(path)? == "1" {
        return Ok(false);
    }
    std::fs::write(path, "1")?;
    match read(path)? {
        now if now == "1" => Ok(true),
        now => Err(std::io::Error::other(format!("it reads {now:?} afterwards"))),
    }
}

#[expect(clippy::disallowed_methods, reason = "the error names the file already")]
fn read(path: &Path) -> std::io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

#[expect(clippy::disallowed_methods, reason = "ended when it takes too long")]
async fn load_module(name: &str) -> Result<(), String> {
    let run = Command::new("modprobe").arg(name).kill_on_drop(true).output();
    match tokio::time::timeout(MODPROBE_TIMEOUT, run).await {
        Err(_) => Err(format!("modprobe did not end within {} s", MODPROBE_TIMEOUT.as_secs())),
        Ok(Err(e)) => Err(format!("modprobe: {e}")),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(entries: &[(&str, &str)]) -> (tempfile::TempDir, Sysctl) {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in entries {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{value}\n")).unwrap();
        }
        let sysctl = Sysctl {
            root: dir.path().into(),
        };
        (dir, sysctl)
    }

    #[tokio::test]
    async fn forwarding_is_switched_on() {
        let (dir, sysctl) = tree(&[("net/ipv4/ip_forward", "0")]);
        assert_eq!(sysctl.enable_forwarding().await.unwrap(), ["net.ipv4.ip_forward"]);
        assert_eq!(read(&dir.path().join("net/ipv4/ip_forward")).unwrap(), "1");
        assert_eq!(sysctl.enable_forwarding().await.unwrap(), [""; 0], "nothing to do");
    }

    #[tokio::test]
    async fn a_missing_parameter_is_named() {
        let (_dir, sysctl) = tree(&[]);
        let error = sysctl.enable_forwarding().await.unwrap_err().to_string();
        assert!(error.contains("net/ipv4/ip_forward"), "{error}");
    }

    #[tokio::test]
    async fn bridge_filtering_is_switched_on_for_both_families() {
        let both = [
            "net/bridge/bridge-nf-call-iptables",
            "net/bridge/bridge-nf-call-ip6tables",
        ];
        let (dir, sysctl) = tree(&both.map(|name| (name, "0")));
        let (filtering, written) = sysctl.filter_bridged_traffic().await;
        assert_eq!((filtering, written.len()), (BridgeFiltering::Enabled, 2));
        for name in both {
            assert_eq!(read(&dir.path().join(name)).unwrap(), "1");
        }
    }

    #[tokio::test]
    async fn without_the_module_the_reason_is_told() {
        let (_dir, sysctl) = tree(&[("net/ipv4/ip_forward", "1")]);
        let (BridgeFiltering::Unavailable(reason), _) = sysctl.filter_bridged_traffic().await else {
            panic!("there is no such directory");
        };
        assert!(reason.contains("br_netfilter"), "{reason}");
    }
}
