use rstest::rstest;

use super::*;
use crate::model::{HealthCheck, Probe, PullPolicy, RestartPolicy, Rollout, Share, UpdateStrategy, VolumeSource};

fn one(text: &str) -> Document {
    let mut documents = parse(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(documents.len(), 1);
    documents.remove(0)
}

fn pod(text: &str) -> PodManifest {
    match one(text).resource {
        Resource::Pod(pod) => pod,
        other => panic!("{other:?}"),
    }
}

fn set(text: &str) -> SetManifest {
    match one(text).resource {
        Resource::ReplicaSet(set) => set,
        other => panic!("{other:?}"),
    }
}

fn fields(warnings: &[Warning]) -> Vec<&str> {
    warnings.iter().map(|warning| &warning.field[..]).collect()
}

/// A pod with one container that has these additional lines.
fn with(lines: &str) -> String {
    let indented: String = lines.lines().map(|line| format!("\n    {line}")).collect();
    format!("kind: Pod\nmetadata: {{name: p}}\nspec:\n  containers:\n  - name: c\n    image: i{indented}\n")
}

const FULL: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: shop
  labels: {app: shop, version: 1.10}
  annotations: {note: "hello"}
spec:
  hostname: till
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 5
  securityContext: {runAsUser: 1000, runAsGroup: 1000, runAsNonRoot: true}
  volumes:
  - name: data
    hostPath: {path: /srv/data}
  - name: scratch
    emptyDir: {}
  - name: bare
    emptyDir:
  containers:
  - name: web
    image: nginx:1.10
    imagePullPolicy: Always
    command: [/bin/web]
    args: ["-v", 5]
    workingDir: /srv
    tty: true
    env:
    - {name: MODE, value: yes}
    - {name: EMPTY}
    ports:
    - {name: http, containerPort: 80, hostPort: 8080}
    - {containerPort: 53, hostPort: 5353, protocol: UDP}
    - {containerPort: 9000}
    mount: ["/srv/a:/a:ro"]
    tmpfs: ["/run:exec"]
    volumeMounts:
    - {name: data, mountPath: /data, readOnly: true}
    - {name: scratch, mountPath: /scratch}
    resources:
      limits: {memory: 64Mi, cpu: 500m}
    securityContext:
      runAsUser: 2000
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
    livenessProbe:
      exec: {command: [/bin/true]}
      initialDelaySeconds: 3
    readinessProbe:
      httpGet: {path: /healthz, port: http}
      periodSeconds: 2
      timeoutSeconds: 3
      failureThreshold: 4
      successThreshold: 5
  - name: side
    image: busybox
    args: [x]
"#;

#[test]
fn everything_that_is_supported() {
    let document = one(FULL);
    assert_eq!(document.warnings, []);
    let pod = pod(FULL);
    assert_eq!((&pod.name[..], &pod.namespace[..]), ("shop", "default"));
    assert_eq!(pod.labels["version"], "1.10");
    assert_eq!(pod.annotations["note"], "hello");
    assert_eq!(pod.spec.hostname.as_deref(), Some("till"));
    assert_eq!(pod.spec.restart, RestartPolicy::OnFailure { max_retries: 0 });
    let sources: Vec<_> = pod.spec.volumes.iter().map(|v| v.source.clone()).collect();
    let data = VolumeSource::HostPath("/srv/data".into());
    assert_eq!(sources, [data, VolumeSource::EmptyDir, VolumeSource::EmptyDir]);

    let web = &pod.spec.containers[0];
    assert_eq!(
        (&web.name[..], &web.request.image[..], web.request.pull),
        ("web", "nginx:1.10", PullPolicy::Always)
    );
    assert_eq!(
        (&web.request.command[..], web.request.keep_entrypoint),
        (&["/bin/web", "-v", "5"].map(str::to_owned)[..], false)
    );
    assert_eq!(web.request.env, ["MODE=yes", "EMPTY="]);
    assert_eq!(web.request.ports, ["8080:80:tcp", "5353:53:udp"]);
    assert_eq!(web.request.mounts, ["/srv/a:/a:ro"]);
    assert_eq!(web.request.options.tmpfs, ["/run:exec"]);
    assert!(web.volume_mounts[0].read_only && !web.volume_mounts[1].read_only && web.request.tty);
    assert_eq!(
        (&web.request.user[..], &web.request.working_dir[..]),
        ("2000:1000", "/srv")
    );
    assert_eq!(
        (web.request.options.memory_bytes, web.request.options.cpu_millis),
        (Some(64 << 20), Some(500))
    );
    assert_eq!(
        web.request.options.capabilities.as_deref(),
        Some(&["CAP_NET_BIND_SERVICE".to_owned()][..])
    );
    assert!(web.request.options.read_only && web.request.options.end_unhealthy && web.request.options.not_root);
    assert_eq!(web.request.options.stop_seconds, Some(5));
    let check = |probe, interval, timeout, retries, successes, start_period| HealthCheck {
        probe,
        interval,
        timeout,
        retries,
        successes,
        start_period,
        start_interval: None,
    };
    let alive = check(Probe::Exec(vec!["/bin/true".into()]), 10, 1, 3, 1, 3);
    assert_eq!(web.request.options.health_check, Some(alive));
    let path = "/healthz".into();
    let ready = check(Probe::Http { path, port: 80 }, 2, 3, 4, 5, 0);
    assert_eq!(web.request.options.readiness_check, Some(ready));

    let side = &pod.spec.containers[1];
    assert!(side.request.keep_entrypoint && !side.request.options.end_unhealthy);
    assert_eq!(
        (&side.request.user[..], &side.request.command[..]),
        ("1000:1000", &["x".to_owned()][..])
    );
}

#[test]
fn variables_are_put_into_commands_and_later_variables() {
    let pod = pod(&with(
        "env: [{name: A, value: 1}, {name: B, value: $(A)2}]\ncommand: [x, $(B), $(C)]\nargs: [--a=$(A)]",
    ));
    let container = &pod.spec.containers[0];
    assert_eq!(container.request.env, ["A=1", "B=12"]);
    assert_eq!(container.request.command, ["x", "12", "$(C)", "--a=1"]);
}

#[test]
fn two_dollars_are_one_in_all_places() {
    let pod = pod(&with(
        "env: [{name: A, value: a$$b}, {name: B, value: $$(A)}]\ncommand: [sh, -c, 'echo $$(date) $(A) $$$(A)']",
    ));
    let container = &pod.spec.containers[0];
    assert_eq!(container.request.env, ["A=a$b", "B=$(A)"]);
    assert_eq!(container.request.command, ["sh", "-c", "echo $(date) a$b $a$b"]);
}

#[test]
fn images_whose_tag_moves_are_pulled_every_time_unless_the_manifest_says_otherwise() {
    let pull = |image: &str, line: &str| {
        let text = with(line).replace("image: i", &format!("image: {image}"));
        pod(&text).spec.containers[0].request.pull
    };
    assert_eq!(pull("nginx", ""), PullPolicy::Latest);
    assert_eq!(pull("nginx:latest", "imagePullPolicy:"), PullPolicy::Latest);
    assert_eq!(pull("nginx:1.27", ""), PullPolicy::IfNotPresent);
    assert_eq!(pull("nginx", "imagePullPolicy: IfNotPresent"), PullPolicy::IfNotPresent);
    assert_eq!(pull("nginx", "imagePullPolicy: Never"), PullPolicy::Never);
    assert_eq!(pull("nginx:1.27", "imagePullPolicy: Always"), PullPolicy::Always);
}

#[test]
fn a_stream_without_a_resource_is_refused() {
    for text in ["", " \n", "---\n# nothing\n---\n", "\u{feff}"] {
        assert_eq!(parse(text).unwrap_err().problem, Problem::Nothing, "{text:?}");
        // If there is nothing to delete, clients of the original expect success.
        assert_eq!(references(text).unwrap(), [], "{text:?}");
    }
}

#[test]
fn what_has_no_effect_is_named() {
    let text = "
kind: Pod
metadata: {name: p, creationTimestamp: null, generation: 4}
status: {phase: Running}
spec:
  hostNetwork: false
  nodeSelector: {disk: ssd}
  initContainers: []
  containers:
  - name: c
    image: i
    stdin: true
    env: [{value: x}]
    volumeMounts: [{name: v}]
    resources: {requests: {cpu: 1}, limits: {ephemeral-storage: 1Gi}}
    securityContext: {allowPrivilegeEscalation: true}
  volumes: [{hostPath: {path: /srv, type: Directory}}]
";
    let document = one(text);
    let mut named = fields(&document.warnings);
    named.sort_unstable();
    assert_eq!(
        named,
        [
            "metadata.generation",
            "spec.containers[0].env[0]",
            "spec.containers[0].resources.limits.ephemeral-storage",
            "spec.containers[0].resources.requests",
            "spec.containers[0].securityContext.allowPrivilegeEscalation",
            "spec.containers[0].stdin",
            "spec.containers[0].volumeMounts[0]",
            "spec.nodeSelector",
            "spec.volumes[0]",
            "spec.volumes[0].hostPath.type",
            "status",
        ]
    );
    let stdin = document.warnings.iter().find(|w| w.field.ends_with("stdin")).unwrap();
    assert_eq!(stdin.line, 12);
}

#[rstest]
#[case("hostNetwork: true", "hostNetwork")]
#[case("initContainers: [{name: x}]", "initContainers")]
#[case("hostname: -x", "hostname")]
#[case("restartPolicy: Sometimes", "restartPolicy")]
#[case("terminationGracePeriodSeconds: 5000", "terminationGracePeriodSeconds")]
#[case("terminationGracePeriodSeconds: '5'", "terminationGracePeriodSeconds")]
#[case("securityContext: {fsGroup: 5}", "securityContext.fsGroup")]
#[case(
    "securityContext: {seccompProfile: {type: Unconfined}}",
    "securityContext.seccompProfile.type"
)]
#[case("volumes: [{name: v, configMap: {name: x}}]", "volumes[0]")]
#[case("volumes: [{name: v, emptyDir: {medium: Memory}}]", "volumes[0].emptyDir.medium")]
#[case("volumes: [{name: v, emptyDir: {}}, {name: v, emptyDir: {}}]", "volumes[1]")]
#[case("containers: {}", "containers")]
#[case("containers: [{image: x}]", "containers[0].name")]
#[case("containers: [{name: a}]", "containers[0].image")]
#[case("containers: [{name: -a, image: x}]", "containers[0].name")]
#[case("containers: [{name: a, image: x}, {name: a, image: x}]", "containers[1]")]
#[case(
    "containers: [{name: a, image: x, ports: [{containerPort: 1, hostPort: 2}]}, {name: b, image: x, ports: [{containerPort: 3, hostPort: 2}]}]",
    "containers[1]"
)]
fn what_a_pod_cannot_have(#[case] line: &str, #[case] field: &str) {
    let error = parse(&format!("kind: Pod\nmetadata: {{name: p}}\nspec:\n  {line}\n")).unwrap_err();
    assert_eq!((error.document, error.line), (1, 4), "{error}");
    assert_eq!(error.field, format!("spec.{field}"), "{error}");
}

#[rstest]
#[case("command: ls", "command")]
#[case("envFrom: [{configMapRef: {name: x}}]", "envFrom")]
#[case("env: [{name: A, valueFrom: {secretKeyRef: {name: x}}}]", "env[0].valueFrom")]
#[case("env: [{name: A=B}]", "env[0]")]
#[case("lifecycle: {preStop: {exec: {command: [x]}}}", "lifecycle")]
#[case("startupProbe: {exec: {command: [x]}}", "startupProbe")]
#[case("imagePullPolicy: Maybe", "imagePullPolicy")]
#[case("workingDir: srv", "workingDir")]
#[case("tty: 5", "tty")]
#[case("ports: [{hostPort: 80}]", "ports[0].containerPort")]
#[case("ports: [{containerPort: 99999}]", "ports[0].containerPort")]
#[case("ports: [{containerPort: 80, protocol: SCTP}]", "ports[0].protocol")]
#[case("ports: [{containerPort: 80, hostPort: 80, hostIP: \"::1\"}]", "ports[0].hostIP")]
#[case("ports: [{containerPort: 80, hostPort: 80, hostIP: localhost}]", "ports[0].hostIP")]
#[case("mount: ['/srv']", "mount[0]")]
#[case("mount: ['proc:/x']", "mount[0]")]
#[case("volumeMounts: [{name: nope, mountPath: /x}]", "volumeMounts[0]")]
#[case("volumeMounts: [{name: v, mountPath: /x, subPath: y}]", "volumeMounts[0].subPath")]
#[case("resources: {limits: {memory: lots}}", "resources.limits.memory")]
#[case("resources: {limits: {memory: 1Ki}}", "resources.limits.memory")]
#[case("resources: {limits: {cpu: 99999}}", "resources.limits.cpu")]
#[case("securityContext: {privileged: true}", "securityContext.privileged")]
#[case("securityContext: {capabilities: {add: [NOPE]}}", "securityContext.capabilities")]
#[case("securityContext: {runAsNonRoot: true, runAsUser: 0}", "securityContext")]
#[case("livenessProbe: {}", "livenessProbe")]
#[case("livenessProbe: {grpc: {port: 5}}", "livenessProbe.grpc")]
#[case("livenessProbe: {exec: {command: [x]}, successThreshold: 2}", "livenessProbe")]
#[case("livenessProbe: {exec: {command: [x]}, tcpSocket: {port: 5}}", "livenessProbe")]
#[case(
    "livenessProbe: {exec: {command: [x]}, periodSeconds: 0}",
    "livenessProbe.periodSeconds"
)]
#[case("readinessProbe: {tcpSocket: {port: http}}", "readinessProbe.tcpSocket.port")]
#[case(
    "readinessProbe: {httpGet: {port: 80, scheme: HTTPS}}",
    "readinessProbe.httpGet.scheme"
)]
#[case("readinessProbe: {httpGet: {port: 80, path: 'a b'}}", "readinessProbe.httpGet.path")]
fn what_a_container_cannot_have(#[case] line: &str, #[case] field: &str) {
    let error = parse(&with(line)).unwrap_err();
    assert_eq!((error.document, error.line), (1, 7), "{error}");
    assert_eq!(error.field, format!("spec.containers[0].{field}"), "{error}");
}

#[rstest]
#[case("{}", "")]
#[case("{runAsUser: 7}", "7")]
#[case("{runAsUser: 7, runAsGroup: 5}", "7:5")]
#[case("{runAsGroup: 5}", ":5")]
fn who_a_container_runs_as(#[case] context: &str, #[case] user: &str) {
    let text = with(&format!("securityContext: {context}"));
    assert_eq!(pod(&text).spec.containers[0].request.user, user);
}

#[rstest]
#[case(
    "metadata: {name: x}",
    "kind is required; use one of Pod, Deployment, ReplicaSet, Service and List (document 1, line 1)"
)]
#[case(
    "kind: Job\nmetadata: {name: x}",
    "unsupported kind: Job; use one of Pod, Deployment, ReplicaSet, Service and List (document 1, line 1)"
)]
#[case(
    "---\nkind: Service\nmetadata: {}",
    "name and namespace are required; write them in metadata, the namespace may be missing (document 1, line 2)"
)]
#[case(
    "kind: Pod\nmetadata: {name: a}\nspec: {restartPolicy: Never}",
    "a pod needs at least one container (document 1, line 1, field spec.containers)"
)]
#[case(
    "kind: Service\nmetadata: {name: a}\nspec: {selector: {a: b}}",
    "a service needs at least one port (document 1, line 1, field spec.ports)"
)]
#[case("kind: Pod\nmetadata: {}", "pod name is required (document 1, line 1)")]
#[case(
    "kind: ReplicaSet\nmetadata: {}\nspec: {}",
    "replicaset template name is required (document 1, line 1)"
)]
#[case(
    "kind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n---\nkind: Job",
    "unsupported kind: Job; use one of Pod, Deployment, ReplicaSet, Service and List (document 2, line 5)"
)]
#[case("- a", "a document must be a mapping (document 1, line 1)")]
#[case("a: [", "")]
#[case(
    "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i}]}\n---\nkind: Pod\nmetadata: {name: a, \
     namespace: default}\nspec: {containers: [{name: c, image: i}]}",
    "Pod default/a is in the stream twice; see document 1, line 1 (document 2, line 5)"
)]
#[case(
    "kind: Pod\nmetadata: {name: a/b}",
    "\"a/b\" is not up to 128 letters, digits, '_', '.' and '-' that begin with a letter or digit (document 1, line 2, \
     field metadata.name)"
)]
fn messages(#[case] text: &str, #[case] message: &str) {
    let error = parse(text).unwrap_err().to_string();
    assert!(
        error == message || (message.is_empty() && error.contains("(document 1, line ")),
        "{error}"
    );
}

#[test]
fn messages_of_volumes_begin_as_the_contract_says() {
    let error = parse(&with("volumeMounts: [{name: q, mountPath: /q}]")).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("container \"c\": volume \"q\" not found (document 1, line 7, "),
        "{error}"
    );
}

const SET: &str = "kind: ReplicaSet\nmetadata: {name: rs}\nspec:\n  template:\n    metadata: {labels: {app: a}}\n    \
                   spec: {containers: [{name: c, image: i}]}\n";

#[test]
fn a_set_and_its_defaults() {
    let plain = set(SET);
    assert_eq!(
        (&plain.name[..], &plain.manifest_name[..], &plain.namespace[..]),
        ("rs", "rs", "default")
    );
    assert_eq!((plain.replicas, plain.update), (1, UpdateStrategy::Replace));
    assert_eq!(plain.selector, plain.template.labels);
    assert_eq!(plain.template.spec.restart, RestartPolicy::Always);
    assert_eq!(set(&format!("{SET}  replicas: 0\n")).replicas, 0);
}

#[test]
fn names_and_namespaces_of_a_set() {
    let named = |own: &str, template: &str| {
        let text = SET
            .replace("{name: rs}", own)
            .replace("{labels:", &format!("{{{template} labels:"));
        let set = set(&text);
        assert_eq!(
            (&set.template.name, &set.template.namespace),
            (&set.name, &set.namespace)
        );
        let reference = references(&text).unwrap().remove(0);
        assert_eq!(
            (&reference.name, &reference.namespace),
            (&set.manifest_name, &set.namespace)
        );
        (set.manifest_name, set.name, set.namespace)
    };
    let three = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    assert_eq!(
        named("{name: own, namespace: prod}", "name: shown, namespace: test,"),
        three("own", "shown", "test")
    );
    assert_eq!(named("{name: own, namespace: prod}", ""), three("own", "own", "prod"));
    assert_eq!(named("{}", "name: shown,"), three("shown", "shown", "default"));
}

#[rstest]
#[case("replicas: -1", "spec.replicas")]
#[case("replicas: many", "spec.replicas")]
#[case("selector: {matchLabels: {app: b}}", "spec.selector")]
#[case(
    "selector: {matchExpressions: [{key: a, operator: Exists}]}",
    "spec.selector.matchExpressions"
)]
fn what_a_set_cannot_have(#[case] line: &str, #[case] field: &str) {
    let error = parse(&format!("{SET}  {line}\n")).unwrap_err();
    assert_eq!((error.line, &error.field[..]), (7, field), "{error}");
}

#[test]
fn the_pods_of_a_set_are_kept_alive() {
    let error = parse(&SET.replace("{containers", "{restartPolicy: Never, containers")).unwrap_err();
    assert_eq!(error.field, "spec.template.spec.restartPolicy");
    let error = parse("kind: ReplicaSet\nmetadata: {name: x}\nspec: {}").unwrap_err();
    assert_eq!(error.field, "spec.template.spec.containers");
}

#[test]
fn a_deployment_is_a_set_that_rolls() {
    let deployment = SET.replace("ReplicaSet", "Deployment");
    assert_eq!(set(&deployment).update, UpdateStrategy::Rolling);
    let text = format!(
        "{deployment}  strategy: {{type: RollingUpdate, rollingUpdate: {{maxSurge: 1, maxUnavailable: 40%}}}}\n  \
         minReadySeconds: 5\n  progressDeadlineSeconds: 60\n"
    );
    assert_eq!(fields(&one(&text).warnings), ["spec.progressDeadlineSeconds"]);
    let bounds = Rollout {
        max_unavailable: Share::Percent(40),
        max_surge: Share::Count(1),
        min_ready_seconds: 5,
    };
    assert_eq!(
        (set(&text).update, set(&text).rollout),
        (UpdateStrategy::Rolling, bounds)
    );
    assert_eq!(set(&deployment).rollout, Rollout::default());
    let publishes = deployment.replace("image: i", "image: i, ports: [{containerPort: 80, hostPort: 80}]");
    let bounds = set(&publishes).rollout;
    assert_eq!(
        (bounds.max_unavailable, bounds.max_surge),
        (Share::Count(1), Share::Count(0))
    );
    for (line, field) in [
        (
            "strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0%}}",
            "spec.strategy.rollingUpdate",
        ),
        (
            "strategy: {rollingUpdate: {maxSurge: -1}}",
            "spec.strategy.rollingUpdate.maxSurge",
        ),
        (
            "strategy: {rollingUpdate: {maxSurge: 120%}}",
            "spec.strategy.rollingUpdate.maxSurge",
        ),
        (
            "strategy: {rollingUpdate: {maxUnavailable: some}}",
            "spec.strategy.rollingUpdate.maxUnavailable",
        ),
        (
            "strategy: {type: Recreate, rollingUpdate: {maxSurge: 1}}",
            "spec.strategy.rollingUpdate",
        ),
        ("strategy: {type: Maybe}", "spec.strategy.type"),
        ("minReadySeconds: -1", "spec.minReadySeconds"),
    ] {
        let error = parse(&format!("{deployment}  {line}\n")).unwrap_err();
        assert_eq!((error.line, &error.field[..]), (7, field), "{error}");
    }
    assert_eq!(
        set(&format!("{deployment}  strategy: {{type: Recreate}}\n")).update,
        UpdateStrategy::Replace
    );
    parse(&format!("{deployment}  paused: true\n")).unwrap_err();
}

#[test]
fn a_service() {
    let text = "kind: Service\nmetadata: {name: s}\nspec:\n  selector: {app: a}\n  sessionAffinity: ClientIP\n  type: NodePort\n  \
                ports:\n  - {name: http, port: 8080, targetPort: 80, protocol: TCP}\n  - {port: 8080, protocol: udp}\n";
    let (manifest, warnings) = service(text).unwrap();
    assert_eq!((&manifest.name[..], &manifest.namespace[..]), ("s", "default"));
    assert_eq!(manifest.affinity_seconds, Some(10800));
    let ports = manifest
        .ports
        .iter()
        .map(|p| (p.port, p.target_port, p.protocol.to_string(), &p.written_protocol[..]));
    let ports: Vec<_> = ports.collect();
    assert_eq!(
        ports,
        [(8080, 80, "tcp".into(), "TCP"), (8080, 8080, "udp".into(), "udp")]
    );
    assert_eq!(fields(&warnings), ["spec.type"]);
    assert_eq!(one(text).resource, Resource::Service(manifest));
}

#[rstest]
#[case("ports: [{targetPort: 5}]", "spec.ports[0].port")]
#[case("ports: [{port: 0}]", "spec.ports[0].port")]
#[case("ports: [{port: 80, targetPort: http}]", "spec.ports[0].targetPort")]
#[case("ports: [{port: 80, protocol: SCTP}]", "spec.ports[0].protocol")]
#[case("ports: [{port: 80}, {port: 80, protocol: TCP}]", "spec.ports[1]")]
#[case("type: ExternalName", "spec.type")]
#[case("sessionAffinity: Cookie", "spec.sessionAffinity")]
#[case("selector: [a]", "spec.selector")]
fn what_a_service_cannot_have(#[case] line: &str, #[case] field: &str) {
    let error = parse(&format!("kind: Service\nmetadata: {{name: s}}\nspec:\n  {line}\n")).unwrap_err();
    assert_eq!((error.line, &error.field[..]), (4, field), "{error}");
}

#[test]
fn a_service_without_a_selector_is_told_that_it_has_no_endpoints() {
    let (manifest, warnings) = service("kind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}]}").unwrap();
    assert!(manifest.selector.is_empty());
    assert_eq!(fields(&warnings), ["spec.selector"]);
    assert!(warnings[0].message.contains("no endpoints"), "{}", warnings[0].message);
}

#[test]
fn only_the_first_document_is_a_service() {
    let refused = |text| service(text).unwrap_err().to_string();
    assert_eq!(
        refused(""),
        "service manifest not found; send a document with kind: Service"
    );
    assert_eq!(
        refused("kind: Pod"),
        "unsupported kind: Pod; only Service is taken here (document 1, line 1)"
    );
    assert!(refused("a: 1").starts_with("kind is required; use one of Pod"));
    let text = "---\n---\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 1}]}\n---\nkind: Job\n";
    assert_eq!(service(text).unwrap().0.name, "s");
}

#[test]
fn lists_are_their_items() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- {kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: i}]}}\n\
                - kind: List\n  items:\n  - kind: Pod\n    metadata: {name: b, color: red}\n    \
                spec: {containers: [{name: c, image: i}]}\n---\nkind: Service\nmetadata: {name: s}\n\
                spec: {selector: {a: b}, ports: [{port: 80}]}\n";
    let documents = parse(text).unwrap();
    let seen: Vec<_> = documents
        .iter()
        .map(|d| (d.number, d.line, d.resource.key().2))
        .collect();
    assert_eq!(seen, [(1, 4, "a"), (1, 7, "b"), (2, 11, "s")]);
    assert_eq!(fields(&documents[1].warnings), ["items[1].items[0].metadata.color"]);
    let names: Vec<_> = references(text).unwrap().into_iter().map(|r| r.name).collect();
    assert_eq!(names, ["a", "b", "s"]);
}

#[test]
fn to_delete_something_its_name_suffices() {
    let text = "kind: Pod\nmetadata: {name: a}\nspec: {volumes: [{name: v, nfs: {}}]}\n---\nkind: Deployment\nmetadata: {name: d}\n";
    let references = references(text).unwrap();
    let seen: Vec<_> = references
        .iter()
        .map(|r| (r.kind, &r.name[..], &r.namespace[..]))
        .collect();
    assert_eq!(
        seen,
        [
            (ResourceKind::Pod, "a", "default"),
            (ResourceKind::ReplicaSet, "d", "default")
        ]
    );
    assert_eq!(
        super::references("kind: Service").unwrap_err().to_string(),
        "name and namespace are required; write them in metadata, the namespace may be missing (document 1, line 1)"
    );
}

/// A container with that environment, as flow mappings.
fn with_env(env: &[String]) -> String {
    format!(
        "kind: Pod\nmetadata: {{name: a}}\nspec:\n  containers:\n  - name: a\n    image: a\n    env: [{}]\n",
        env.join(", ")
    )
}

#[test]
fn references_do_not_unfold_to_large_texts() {
    let mut env = vec!["{name: a0, value: xxxxxxxxxx}".to_owned()];
    for n in 1..40 {
        let before = format!("$(a{})", n - 1);
        env.push(format!("{{name: a{n}, value: '{before}{before}'}}"));
    }
    assert!(parse(&with_env(&env[..12])).is_ok());
    let error = parse(&with_env(&env)).unwrap_err();
    assert!(error.to_string().contains("references to variables"), "{error}");
    assert!(error.field.starts_with("spec.containers[0].env["), "{error}");
    // The limit applies to the stream: spread over many documents it would be as bad.
    let named = |name: &str| with_env(&env[..18]).replacen("name: a}", &format!("name: {name}}}"), 1);
    assert!(parse(&named("one")).is_ok());
    let error = parse(&[named("one"), named("two")].join("---\n")).unwrap_err();
    assert!(
        error.document == 2 && error.to_string().contains("references to variables"),
        "{error}"
    );
}

#[test]
fn many_ports_are_read_in_the_time_of_many_ports() {
    let mut text = "kind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n".to_owned();
    for n in 1..=4000 {
        text += &format!("  - {{name: c{n}, image: a, ports: [{{containerPort: 1, hostPort: {n}}}]}}\n");
    }
    let begun = std::time::Instant::now();
    parse(&text).unwrap();
    // This took minutes when every container compared its ports with those of all others before it.
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    text += "  - {name: last, image: a, ports: [{containerPort: 2, hostPort: 7}]}\n";
    let error = parse(&text).unwrap_err();
    assert!(
        error.to_string().contains("host port 7/tcp is published twice"),
        "{error}"
    );
}
