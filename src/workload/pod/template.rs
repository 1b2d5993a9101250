//! Templates: their validation, and the create requests of a pod's containers. Pure.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::PodError;
use crate::image::ImageRef;
use crate::model::{
    ContainerRequest, Pod, PodContainer, PodSpec, PodTemplate, Volume, VolumeMount, VolumeSource, names,
};
use crate::runtime::mounts;
use crate::workload::container;

/// Length of the suffix of a member's name: `-` and 8 characters.
const SUFFIX: usize = 9;
/// Longest host name that the kernel takes.
const MAX_HOST_NAME: usize = 63;

/// Checks whether pods can be created from a template: container names are unique, image references, ports and mounts
/// are well-formed, no host port is published twice, and every mounted volume exists.
pub fn check_template(template: &PodTemplate) -> Result<(), PodError> {
    check(&template.spec).map_err(PodError::InvalidTemplate)
}

/// The host paths that the containers of a template mount, as mount strings.
pub(super) fn host_mounts(spec: &PodSpec) -> Vec<String> {
    let of_volumes = spec.volumes.iter().filter_map(|volume| match &volume.source {
        VolumeSource::HostPath(path) => Some(mount_text(path, "/mnt", false)),
        VolumeSource::EmptyDir => None,
    });
    let of_containers = spec.containers.iter().flat_map(|entry| entry.request.mounts.clone());
    of_volumes.chain(of_containers).collect()
}

fn check(spec: &PodSpec) -> Result<(), String> {
    let mut names = HashSet::new();
    for volume in &spec.volumes {
        let plain = names::is_container_name(&volume.name);
        if !plain || !names.insert(&volume.name) {
            return Err(format!(
                "volume {:?} has no usable name, or not one of its own",
                volume.name
            ));
        }
        if let VolumeSource::HostPath(path) = &volume.source {
            mounts::parse(&mount_text(path, "/mnt", false)).map_err(|e| format!("volume {}: {e}", volume.name))?;
        }
    }
    let mut names = HashSet::new();
    for entry in &spec.containers {
        if entry.name.is_empty() {
            return Err("container name required".into());
        }
        if entry.name.len() > names::MAX_NAME - SUFFIX || !names::is_container_name(&entry.name) {
            return Err(format!("container name {:?} is not usable", entry.name));
        }
        if !names.insert(&entry.name) {
            return Err(format!("container name {} is used twice", entry.name));
        }
        check_entry(spec, entry)?;
    }
    container::parse_ports(&ports(spec)).map_err(|e| e.to_string())?;
    Ok(())
}

fn check_entry(spec: &PodSpec, entry: &PodContainer) -> Result<(), String> {
    let name = &entry.name;
    if entry.request.image.is_empty() {
        return Err(format!("container image required: {name}"));
    }
    let named = |error: &dyn std::fmt::Display| format!("container {name}: {error}");
    ImageRef::parse(&entry.request.image).map_err(|e| named(&e))?;
    for text in &entry.request.mounts {
        mounts::parse(text).map_err(|e| named(&e))?;
    }
    for mount in &entry.volume_mounts {
        if !spec.volumes.iter().any(|volume| volume.name == mount.volume) {
            return Err(named(&format!("volume {:?} does not exist", mount.volume)));
        }
        if mount.path.contains(':') {
            return Err(named(&format!("mount path {:?} contains ':'", mount.path)));
        }
        mounts::parse(&mount_text("/mnt", &mount.path, mount.read_only)).map_err(|e| named(&e))?;
    }
    Ok(())
}

fn mount_text(source: &str, destination: &str, read_only: bool) -> String {
    format!("{source}:{destination}:{}", if read_only { "ro" } else { "rw" })
}

/// The ports that the pod's address publishes: the ports of all entries.
pub(super) fn ports(spec: &PodSpec) -> Vec<String> {
    spec.containers
        .iter()
        .flat_map(|entry| entry.request.ports.clone())
        .collect()
}

/// The network of the pod as written: from the first entry that names one; empty for the default.
pub(super) fn network(spec: &PodSpec) -> String {
    let mut named = spec.containers.iter().map(|entry| &entry.request.network);
    named.find(|network| !network.is_empty()).cloned().unwrap_or_default()
}

/// Host name of all containers of a pod: the requested one, else the pod's name, truncated as by the kubelet.
pub(super) fn host_name(pod: &Pod) -> String {
    let name = pod.template.spec.hostname.as_ref().unwrap_or(&pod.name);
    // Names are ASCII.
    let short = name.get(..MAX_HOST_NAME).unwrap_or(name);
    short.trim_end_matches(['-', '.']).to_owned()
}

/// What is asked for to make the member of an entry. `volumes` is the directory of the pod's own volumes.
pub(super) fn request(pod: &Pod, entry: &PodContainer, volumes: &Path) -> ContainerRequest {
    let spec = &pod.template.spec;
    let sources: BTreeMap<&str, &Volume> = spec.volumes.iter().map(|v| (&v.name[..], v)).collect();
    let mut request = entry.request.clone();
    let mounted = entry.volume_mounts.iter();
    let mounted = mounted.filter_map(|mount| Some(volume_mount(sources.get(&mount.volume[..])?, mount, volumes)));
    request.mounts.extend(mounted);
    // These are the pod's.
    request.ports.clear();
    request.network.clear();
    request.options.restart = spec.restart;
    request
}

fn volume_mount(volume: &Volume, mount: &VolumeMount, volumes: &Path) -> String {
    let source = match &volume.source {
        VolumeSource::HostPath(path) => path.clone(),
        VolumeSource::EmptyDir => volumes.join(&volume.name).display().to_string(),
    };
    mount_text(&source, &mount.path, mount.read_only)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::fixtures::pod;

    fn spec(edit: impl FnOnce(&mut PodSpec)) -> Result<(), String> {
        let mut spec = pod("p", "shop", &["web", "side"]).template.spec;
        spec.volumes.push(Volume {
            name: "data".into(),
            source: VolumeSource::EmptyDir,
        });
        spec.containers[0].volume_mounts.push(VolumeMount {
            volume: "data".into(),
            path: "/data".into(),
            read_only: true,
        });
        edit(&mut spec);
        check(&spec)
    }

    #[test]
    fn a_whole_template_is_fine_and_so_is_an_empty_one() {
        spec(|_| {}).unwrap();
        check(&PodSpec::default()).unwrap();
    }

    #[rstest]
    #[case(|s: &mut PodSpec| s.containers[1].name.clear(), "container name required")]
    #[case(|s: &mut PodSpec| s.containers[1].name = "web".into(), "web is used twice")]
    #[case(|s: &mut PodSpec| s.containers[1].name = "a/b".into(), "a/b")]
    #[case(|s: &mut PodSpec| s.containers[1].name = "a".repeat(120), "is not usable")]
    #[case(|s: &mut PodSpec| s.containers[1].request.image.clear(), "container image required: side")]
    #[case(|s: &mut PodSpec| s.containers[1].request.image = "A/..".into(), "container side: invalid image reference")]
    #[case(|s: &mut PodSpec| s.containers[1].request.ports.push("1:2:tcp:3".into()), "port format failed: 1:2:tcp:3")]
    #[case(|s: &mut PodSpec| s.containers.iter_mut().for_each(|c| c.request.ports.push("80:80".into())), "published twice")]
    #[case(|s: &mut PodSpec| s.containers[1].request.mounts.push("proc:/x".into()), "invalid mount source")]
    #[case(|s: &mut PodSpec| s.containers[0].volume_mounts[0].volume = "nope".into(), "volume \"nope\" does not exist")]
    #[case(|s: &mut PodSpec| s.containers[0].volume_mounts[0].path = "data".into(), "invalid mount destination")]
    #[case(|s: &mut PodSpec| s.containers[0].volume_mounts[0].path = "/a:b".into(), "contains ':'")]
    #[case(|s: &mut PodSpec| s.volumes[0].name = "..".into(), "no usable name")]
    #[case(|s: &mut PodSpec| s.volumes[0].source = VolumeSource::HostPath("raind".into()), "volume data")]
    fn what_cannot_be_carried_out_is_refused(#[case] edit: impl FnOnce(&mut PodSpec), #[case] part: &str) {
        let error = spec(edit).unwrap_err();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn a_member_mounts_volumes_after_its_own_mounts() {
        let mut shop = pod("01kh3v8q2m6r4t0x9e5w7yabcd", "shop", &["web"]);
        let volume = |name: &str, source| Volume {
            name: name.into(),
            source,
        };
        let mount = |volume: &str, read_only| VolumeMount {
            volume: volume.into(),
            path: format!("/{volume}"),
            read_only,
        };
        let spec = &mut shop.template.spec;
        spec.volumes = vec![
            volume("own", VolumeSource::EmptyDir),
            volume("host", VolumeSource::HostPath("/srv".into())),
        ];
        spec.containers[0].request.mounts = vec!["/a:/b".into()];
        spec.containers[0].volume_mounts = vec![mount("own", false), mount("host", true)];
        let request = request(&shop, &shop.template.spec.containers[0], Path::new("/v"));
        assert_eq!(request.mounts, ["/a:/b", "/v/own:/own:rw", "/srv:/host:ro"]);
        assert_eq!(host_name(&shop), "shop");
        let long = |name: String| host_name(&pod("01kh3v8q2m6r4t0x9e5w7yabcd", &name, &[]));
        assert_eq!(long("a".repeat(80)), "a".repeat(63));
        assert_eq!(long(format!("{}-.-b", "a".repeat(60))), "a".repeat(60));
        let mut till = pod("p", "shop", &[]);
        till.template.spec.hostname = Some("till".into());
        assert_eq!(host_name(&till), "till");
    }
}
