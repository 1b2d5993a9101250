//! The action name of a request in the audit log, and its severity (`docs/spec/api.md` 21,
//! `docs/spec/observability.md` 6.2 and O-16): reads are information, changes medium, removals high.

use axum::http::Method;

use crate::observe::audit::Severity;
use crate::observe::audit::Severity::{Critical, High, Information, Low, Medium};
use crate::runtime::hook::HookEvent;

/// The action of a request and its severity. `event` is the event header of hooks.
pub fn action_of(method: &Method, path: &str, event: Option<&str>) -> (&'static str, Severity) {
    let segments: Vec<_> = path.split('/').skip(1).collect();
    let Some((&"v1", route)) = segments.split_first() else {
        return match (method.as_str(), &segments[..]) {
            ("GET", ["metrics"]) => ("metrics.read", Information),
            _ => UNKNOWN,
        };
    };
    match (method.as_str(), route) {
        ("POST", ["hooks", "droplet"]) => (hook(event), Medium),
        ("POST", ["pki", "sign"]) => ("pki.sign", High),
        (method, ["containers", rest @ ..]) => container(method, rest),
        (method, ["images", rest @ ..]) => image(method, rest),
        (method, ["policies", rest @ ..]) => policy(method, rest),
        (method, ["pods" | "replicasets" | "services" | "resource" | "bottle", ..]) => workload(method, route),
        ("GET", ["system", "df"]) => ("system.df", Information),
        ("POST", ["system", "prune"]) => ("system.prune", High),
        ("POST", ["build", "prune"]) => ("build.prune", High),
        ("GET", ["networks"]) => ("network.list", Information),
        ("POST", ["networks"]) => ("network.create", Medium),
        ("DELETE", ["networks", _, "actions", "delete"]) => ("network.delete", High),
        ("GET", ["firewall", "status"]) => ("firewall.status", Information),
        ("GET", ["events"]) => ("event.watch", Information),
        ("GET", ["logs", "netflow"]) => ("netflow.read", Information),
        _ => UNKNOWN,
    }
}

const UNKNOWN: (&str, Severity) = ("unknown", Low);

fn container(method: &str, rest: &[&str]) -> (&'static str, Severity) {
    match (method, rest) {
        ("GET", []) => ("container.list", Information),
        ("POST", []) => ("container.create", Medium),
        ("POST", ["prune"]) => ("container.prune", High),
        ("GET", ["stats"] | [_, "stats"]) => ("container.stats", Information),
        ("GET", [_]) => ("container.info", Information),
        ("GET", [_, "log"]) => ("container.log", Information),
        ("GET", [_, "logpath"]) => ("container.logpath", Information),
        ("POST", [_, "actions", "start"]) => ("container.start", Medium),
        ("POST", [_, "actions", "stop"]) => ("container.stop", Medium),
        ("POST", [_, "actions", "exec"]) => ("container.exec", High),
        ("DELETE", [_, "actions", "delete"]) => ("container.delete", High),
        ("GET", [_, "export"]) => ("container.export", Information),
        ("POST", [_, "commit"]) => ("container.commit", High),
        ("GET", [_, "attach"]) => ("ws.attach", High),
        ("GET", [_, "exec", "attach"]) => ("ws.exec.attach", High),
        _ => UNKNOWN,
    }
}

fn image(method: &str, rest: &[&str]) -> (&'static str, Severity) {
    match (method, rest) {
        ("GET", []) => ("image.list", Information),
        ("POST", []) => ("image.pull", Medium),
        ("DELETE", []) => ("image.remove", High),
        ("POST", ["build"]) => ("image.build", High),
        ("POST", ["prune"]) => ("image.prune", High),
        ("GET", ["status"]) => ("image.status", Information),
        ("GET", ["fs"]) => ("image.fs", Information),
        ("GET", ["history"]) => ("image.history", Information),
        ("GET", ["inspect"]) => ("image.inspect", Information),
        ("GET", ["save"]) => ("image.save", Information),
        ("POST", ["tag"]) => ("image.tag", Medium),
        ("POST", ["push"]) => ("image.push", Medium),
        ("POST", ["load"]) => ("image.load", High),
        ("POST", ["import"]) => ("image.import", High),
        _ => UNKNOWN,
    }
}

fn policy(method: &str, rest: &[&str]) -> (&'static str, Severity) {
    match (method, rest) {
        ("GET", ["explain"]) => ("policy.explain", Information),
        ("GET", [_]) => ("policy.list", Information),
        ("POST", []) => ("policy.add", Medium),
        ("POST", ["commit"]) => ("policy.commit", Critical),
        ("POST", ["revert"]) => ("policy.revert", Medium),
        ("POST", ["ns", "mode"]) => ("policy.mode.change", Critical),
        ("DELETE", [_]) => ("policy.delete", Medium),
        _ => UNKNOWN,
    }
}

fn workload(method: &str, route: &[&str]) -> (&'static str, Severity) {
    match (method, route) {
        ("GET", ["pods"]) => ("pod.list", Information),
        ("GET", ["pods", _]) => ("pod.info", Information),
        ("POST", ["pods"]) => ("pod.create", Medium),
        ("POST", ["pods", _, "actions", "start"]) => ("pod.start", Medium),
        ("POST", ["pods", _, "actions", "stop"]) => ("pod.stop", Medium),
        ("DELETE", ["pods", _]) => ("pod.delete", High),
        ("GET", ["replicasets"]) => ("replicaset.list", Information),
        ("GET", ["replicasets", _]) => ("replicaset.info", Information),
        ("POST", ["replicasets", _, "actions", "scale"]) => ("replicaset.scale", Medium),
        ("DELETE", ["replicasets", _]) => ("replicaset.delete", High),
        ("GET", ["services"]) => ("service.list", Information),
        ("GET", ["services", _]) => ("service.info", Information),
        ("POST", ["services"]) => ("service.create", Medium),
        ("DELETE", ["services", _]) => ("service.delete", High),
        ("POST", ["resource", "apply"]) => ("resource.apply", Medium),
        ("POST", ["resource", "delete"]) => ("resource.delete", High),
        ("GET", ["bottle"]) => ("bottle.list", Information),
        ("GET", ["bottle", _]) => ("bottle.info", Information),
        ("POST", ["bottle"]) => ("bottle.create", Medium),
        ("POST", ["bottle", _, "actions", "start"]) => ("bottle.start", Medium),
        ("POST", ["bottle", _, "actions", "stop"]) => ("bottle.stop", Medium),
        ("POST", ["bottle", _, "actions", "delete"]) => ("bottle.delete", High),
        _ => UNKNOWN,
    }
}

fn hook(event: Option<&str>) -> &'static str {
    match event.and_then(|word| word.parse().ok()) {
        Some(HookEvent::CreateRuntime) => "hook.createRuntime",
        Some(HookEvent::CreateContainer) => "hook.createContainer",
        Some(HookEvent::Poststart) => "hook.poststart",
        Some(HookEvent::StopContainer) => "hook.stopContainer",
        Some(HookEvent::Poststop) => "hook.poststop",
        None => "hook.apply",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every route of `docs/spec/api.md` 1, with the action and severity of section 21, and the routes added later.
    const ROUTES: &str = "
        GET /v1/containers container.list information
        POST /v1/containers container.create medium
        GET /v1/containers/stats container.stats information
        GET /v1/containers/web container.info information
        GET /v1/containers/web/log container.log information
        GET /v1/containers/web/logpath container.logpath information
        GET /v1/containers/web/stats container.stats information
        POST /v1/containers/web/actions/start container.start medium
        POST /v1/containers/web/actions/stop container.stop medium
        POST /v1/containers/web/actions/exec container.exec high
        DELETE /v1/containers/web/actions/delete container.delete high
        GET /v1/containers/web/attach ws.attach high
        GET /v1/containers/web/exec/attach ws.exec.attach high
        GET /v1/images image.list information
        POST /v1/images image.pull medium
        DELETE /v1/images image.remove high
        POST /v1/images/build image.build high
        GET /v1/images/status image.status information
        GET /v1/images/fs image.fs information
        GET /v1/images/history image.history information
        GET /v1/images/inspect image.inspect information
        GET /v1/images/save image.save information
        POST /v1/images/tag image.tag medium
        POST /v1/images/push image.push medium
        POST /v1/images/load image.load high
        POST /v1/images/import image.import high
        GET /v1/containers/web/export container.export information
        POST /v1/containers/web/commit container.commit high
        POST /v1/images/prune image.prune high
        POST /v1/containers/prune container.prune high
        POST /v1/build/prune build.prune high
        POST /v1/system/prune system.prune high
        GET /v1/system/df system.df information
        GET /v1/pods pod.list information
        POST /v1/pods pod.create medium
        GET /v1/pods/p pod.info information
        DELETE /v1/pods/p pod.delete high
        POST /v1/pods/p/actions/start pod.start medium
        POST /v1/pods/p/actions/stop pod.stop medium
        GET /v1/replicasets replicaset.list information
        GET /v1/replicasets/r replicaset.info information
        DELETE /v1/replicasets/r replicaset.delete high
        POST /v1/replicasets/r/actions/scale replicaset.scale medium
        GET /v1/services service.list information
        POST /v1/services service.create medium
        GET /v1/services/s service.info information
        DELETE /v1/services/s service.delete high
        POST /v1/resource/apply resource.apply medium
        POST /v1/resource/delete resource.delete high
        POST /v1/bottle bottle.create medium
        GET /v1/bottle bottle.list information
        GET /v1/bottle/b bottle.info information
        POST /v1/bottle/b/actions/start bottle.start medium
        POST /v1/bottle/b/actions/stop bottle.stop medium
        POST /v1/bottle/b/actions/delete bottle.delete high
        GET /v1/networks network.list information
        POST /v1/networks network.create medium
        DELETE /v1/networks/br/actions/delete network.delete high
        GET /v1/policies/RAIND-EW policy.list information
        GET /v1/policies/explain policy.explain information
        GET /v1/firewall/status firewall.status information
        POST /v1/policies policy.add medium
        POST /v1/policies/commit policy.commit critical
        POST /v1/policies/revert policy.revert medium
        POST /v1/policies/ns/mode policy.mode.change critical
        DELETE /v1/policies/p policy.delete medium
        GET /v1/events event.watch information
        GET /v1/logs/netflow netflow.read information
        POST /v1/pki/sign pki.sign high
        POST /v1/hooks/droplet hook.apply medium
        GET /metrics metrics.read information
        GET / unknown low
        GET /v1 unknown low
        GET /v1/nope unknown low
        HEAD /v1/containers unknown low
        POST /v1/bottle/b/actions/nope unknown low
        GET /v2/containers unknown low
        GET /v1/containers/web/log/ unknown low
    ";

    #[test]
    fn every_route_has_its_action() {
        for line in ROUTES.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let [method, path, action, severity] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let (found, how) = action_of(&method.parse().unwrap(), path, None);
            let how = serde_json::to_value(how).unwrap();
            assert_eq!((found, how.as_str().unwrap()), (action, severity), "{method} {path}");
        }
    }

    #[test]
    fn hooks_are_named_after_their_event() {
        let action = |event| action_of(&Method::POST, "/v1/hooks/droplet", event).0;
        for event in [
            "createRuntime",
            "createContainer",
            "poststart",
            "stopContainer",
            "poststop",
        ] {
            assert_eq!(action(Some(event)), format!("hook.{event}"));
        }
        assert_eq!(action(Some("startContainer")), "hook.apply");
    }
}
