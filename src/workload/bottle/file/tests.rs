use rstest::rstest;

use super::*;

const BLOG: &str = r#"
bottle: { name: blog }
volumes: { data: }
services:
  db:
    image: mysql:8
    env: [ "MYSQL_DATABASE=blog", 'VERSION=1.10' ]
    volumes: [ "data:/var/lib/mysql" ]
    restart: on-failure:3
    mem_limit: 512m
    cpus: 0.5
    pids_limit: 100
    healthcheck: { test: mysqladmin ping, interval: 5s, timeout: 1m, retries: 4, start_period: 1000ms }
  web:
    image: nginx
    command: [nginx, -g, "daemon off;"]
    ports: ["8080:80"]
    mount: ["/srv/www:/www:ro"]
    network: raind0
    tty: true
    depends_on:
      db: { condition: service_healthy }
      cache:
  cache: { image: redis, depends_on: [db, db], restart: no }
policies:
- { type: east-west, source: web, destination: db, protocol: tcp, dest_port: 3306, comment: the only way }
"#;

fn parsed(text: &str) -> BottleFile {
    parse(text).unwrap_or_else(|e| panic!("{e}"))
}

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// A file with one service that has these fields.
fn with(fields: &str) -> String {
    format!("bottle: {{name: x}}\nservices:\n  a: {{image: i, {fields}}}\n")
}

#[test]
fn what_a_process_may_use_is_as_in_compose() {
    let fields = "mem_limit: 8m, memswap_limit: 9m, shm_size: 1m, init: true, \
                  ulimits: { nproc: 65535, nofile: { soft: 20, hard: 40 } }";
    let options = &parsed(&with(fields)).services["a"].options;
    assert_eq!(
        (options.memory_swap, options.shm_size, options.init),
        (9 << 20, 1 << 20, true)
    );
    assert_eq!(options.ulimits, ["nproc=65535", "nofile=20:40"]);
    assert_eq!(parsed(&with("memswap_limit: -1")).services["a"].options.memory_swap, -1);
}

#[test]
fn every_field_arrives() {
    let file = parsed(BLOG);
    assert_eq!(file.warnings, []);
    assert_eq!((&*file.name, file.services.len()), ("blog", 3));
    assert_eq!(file.volumes, BTreeSet::from(["data".to_owned()]));
    let web = &file.services["web"].kept;
    assert_eq!(web.request.command, ["nginx", "-g", "daemon off;"]);
    assert_eq!(
        (&*web.request.network, web.request.tty, &*web.request.ports[0]),
        ("raind0", true, "8080:80")
    );
    assert_eq!(web.request.mounts, ["/srv/www:/www:ro"]);
    let waits: Vec<_> = web.depends_on.iter().map(|d| (&*d.service, d.condition)).collect();
    assert_eq!(waits, [("db", Condition::Healthy), ("cache", Condition::Started)]);
    assert_eq!(file.services["cache"].kept.depends_on.len(), 1);
    let db = &file.services["db"];
    assert_eq!(db.kept.request.env, ["MYSQL_DATABASE=blog", "VERSION=1.10"]);
    assert_eq!(db.kept.request.mounts, ["data:/var/lib/mysql"]);
    let options = &db.options;
    assert_eq!(
        (options.memory, options.cpus, options.pids_limit),
        (512 << 20, 0.5, 100)
    );
    assert_eq!(
        (&*options.restart_policy.name, options.restart_policy.max_retries),
        ("on-failure", 3)
    );
    let check = options.health_check.as_ref().unwrap();
    assert_eq!(check.exec, ["/bin/sh", "-c", "mysqladmin ping"]);
    let times = (check.interval, check.timeout, check.retries, check.start_period);
    assert_eq!(times, (Some(5), Some(60), Some(4), Some(1)));
    let policy = &file.policies[0];
    assert_eq!(
        (&*policy.kind, policy.dest_port, &*policy.comment),
        ("east-west", 3306, "the only way")
    );
}

#[rstest]
#[case("", "invalid yaml: bottle.name is required")]
#[case("services:\n  a: {image: busybox}\n", "invalid yaml: bottle.name is required")]
#[case("bottle: {name: x}\n", "invalid yaml: services is required")]
#[case("bottle: {name: x}\nservices: {}\n", "invalid yaml: services is required")]
fn the_contract_words(#[case] text: &str, #[case] message: &str) {
    assert_eq!(refusal(text), message);
}

#[rstest]
#[case(":\n\t- x", "invalid yaml: ")]
#[case("bottle: {name: x}\nbottle: {name: y}\n", "stands twice")]
#[case("bottle: {name: x}\nservices: {a: {image: i}}\n---\na: 1\n", "one document")]
#[case("- a", "must be a mapping")]
#[case("bottle: {name: a b}\nservices: {a: {image: i}}", "\"a b\" is not a name")]
#[case("bottle: {name: x}\nservices: {-a: {image: i}}", "\"-a\" is not a name")]
#[case(
    "bottle: {name: x}\nservices: {a: }",
    "image is required (document 1, line 2, field services.a)"
)]
#[case("bottle: {name: x}\nservices: {a: {command: [b]}}", "image is required")]
#[case(
    "bottle: {name: x}\nservices: {a: {image: i}}\npolicies: [{type: east-west, source: a}]",
    "destination is required"
)]
fn what_is_no_bottle_is_refused(#[case] text: &str, #[case] part: &str) {
    let message = refusal(text);
    assert!(
        message.starts_with("invalid yaml: ") && message.contains(part),
        "{message}"
    );
}

#[rstest]
#[case("command: \"ls 'x\"", "services.a.command")]
#[case("command: {a: b}", "services.a.command")]
#[case("entrypoint: 'a \\'", "a backslash")]
#[case("environment: [=x]", "services.a.environment[0]")]
#[case("environment: {'': x}", "is not the name of a variable")]
#[case("environment: x", "services.a.environment")]
#[case("environment: {A: [x]}", "services.a.environment.A")]
#[case("working_dir: srv", "services.a.working_dir")]
#[case("hostname: -x", "services.a.hostname")]
#[case("cap_add: [NOPE]", "services.a.cap_add")]
#[case("stop_grace_period: 2h", "services.a.stop_grace_period")]
#[case("tty: maybe", "services.a.tty")]
#[case("restart: sometimes", "sometimes")]
#[case("restart: 'on-failure:0'", "on-failure:0")]
#[case("mem_limit: lots", "lots")]
#[case("cpus: many", "services.a.cpus")]
#[case("pids_limit: -1", "services.a.pids_limit")]
#[case("healthcheck: {}", "one of test, exec and tcp")]
#[case("healthcheck: {tcp: 80, exec: [a]}", "one of test, exec and tcp")]
#[case("healthcheck: {tcp: 70000}", "services.a.healthcheck.tcp")]
#[case("healthcheck: {test: [ls]}", "CMD-SHELL")]
#[case("healthcheck: {tcp: 80, interval: soon}", "soon")]
#[case(
    "depends_on: {b: {condition: service_completed_successfully}}",
    "service_completed_successfully"
)]
#[case("volumes: ['data:/data']", "\"data\", which is not listed in volumes")]
#[case("mount: ['data:/data']", "\"data\", which is not listed in volumes")]
fn fields_that_cannot_be_meant_are_refused(#[case] fields: &str, #[case] part: &str) {
    let message = refusal(&with(fields));
    assert!(
        message.starts_with("invalid yaml: ") && message.contains(part),
        "{message}"
    );
}

#[rstest]
#[case("healthcheck: {test: [CMD, true, x]}", Some(vec!["true", "x"]), 0)]
#[case("healthcheck: {test: [CMD-SHELL, a b]}", Some(vec!["/bin/sh", "-c", "a b"]), 0)]
#[case("healthcheck: {exec: [a, b]}", Some(vec!["a", "b"]), 0)]
#[case("healthcheck: {tcp: 80}", Some(vec![]), 80)]
#[case("healthcheck: {test: [NONE]}", None, 0)]
#[case("healthcheck: {disable: true}", None, 0)]
#[case("healthcheck: {disable: true, tcp: 80}", None, 0)]
fn health_checks(#[case] fields: &str, #[case] exec: Option<Vec<&str>>, #[case] tcp: u16) {
    let file = parsed(&with(fields));
    let check = file.services["a"].options.health_check.as_ref();
    let check = check.filter(|check| !check.disable);
    let exec = exec.map(|words| words.into_iter().map(str::to_owned).collect::<Vec<_>>());
    assert_eq!(check.map(|check| check.exec.clone()), exec);
    assert_eq!(check.map_or(0, |check| check.tcp), tcp);
}

#[test]
fn what_compose_files_say_about_a_process() {
    let file = parsed(&with(
        "command: 'sh -c \"echo $HOME\"', entrypoint: /init --now, user: '1000:1000', working_dir: /srv, hostname: box, \
         cap_add: [NET_ADMIN], cap_drop: [ALL], stop_signal: INT, stop_grace_period: 1m30s, labels: [a=b, c], \
         environment: [A=1, B=x=y, C=]",
    ));
    assert_eq!(file.warnings, []);
    let service = &file.services["a"];
    assert_eq!(service.kept.request.command, ["sh", "-c", "echo $HOME"]);
    assert_eq!(service.kept.request.env, ["A=1", "B=x=y", "C="]);
    let options = &service.options;
    assert_eq!(options.entrypoint, ["/init", "--now"]);
    assert_eq!(
        (&*options.user, &*options.working_dir, &*options.hostname),
        ("1000:1000", "/srv", "box")
    );
    assert_eq!(
        (&options.cap_add[..], &options.cap_drop[..]),
        (&["NET_ADMIN".to_owned()][..], &["ALL".to_owned()][..])
    );
    assert_eq!((&*options.stop_signal, options.stop_timeout), ("INT", Some(90)));
    let labels = [("a", "b"), ("c", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(options.labels, labels.into());
}

#[test]
fn environment_is_a_list_or_a_mapping() {
    let file = parsed(&with(
        "env: [FIRST=1], environment: {A: 1.10, B: yes, C: null, D: '', E: 'x y', F: ~}",
    ));
    assert_eq!(
        file.services["a"].kept.request.env,
        ["FIRST=1", "A=1.10", "B=yes", "D=", "E=x y"]
    );
    let fields: Vec<_> = file.warnings.iter().map(|warning| &*warning.field).collect();
    assert_eq!(fields, ["services.a.environment.C", "services.a.environment.F"]);
    let file = parsed(&with("environment: [A=1, PASSED_ON]"));
    assert_eq!(file.services["a"].kept.request.env, ["A=1"]);
    assert_eq!(file.warnings[0].field, "services.a.environment[1]");
}

#[test]
fn times_are_those_of_compose_and_what_is_finer_than_a_second_is_said() {
    let file = parsed(&with(
        "restart: unless-stopped, healthcheck: {test: 'true', interval: 1.5s, timeout: 1m30s, start_period: 1m, \
         start_interval: 2s, retries: 2}",
    ));
    let options = &file.services["a"].options;
    assert_eq!(options.restart_policy.name, "unless-stopped");
    let check = options.health_check.as_ref().unwrap();
    let times = (check.interval, check.timeout, check.start_period, check.start_interval);
    assert_eq!(times, (Some(2), Some(90), Some(60), Some(2)));
    let warned: Vec<_> = file.warnings.iter().map(|w| (&*w.field, &*w.message)).collect();
    assert_eq!(warned, [("services.a.healthcheck.interval", "is rounded up to 2s")]);
}

#[test]
fn file_systems_in_memory_are_one_or_several() {
    let options = |fields: &str| parsed(&with(fields)).services["a"].options.clone();
    assert_eq!(options("tmpfs: /run").tmpfs, ["/run"]);
    let both = options("{tmpfs: ['/run:size=64m', /tmp], read_only: true}".trim_matches(['{', '}']));
    assert_eq!((both.tmpfs.len(), both.read_only), (2, true));
    assert!(refusal(&with("tmpfs: run")).contains("not an absolute path"));
}

#[test]
fn unknown_fields_are_ignored_and_named() {
    let file = parsed(
        "version: 3\nbottle: {name: x, note: n}\nservices: {a: {image: i, build: .}}\nvolumes: {v: {driver: d}}",
    );
    let fields: Vec<_> = file.warnings.iter().map(|warning| &*warning.field).collect();
    assert_eq!(
        fields,
        ["services.a.build", "bottle.note", "volumes.v.driver", "version"]
    );
}
