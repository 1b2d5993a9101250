use super::*;

fn record(action: &str) -> Record {
    Record {
        generated_ts: "2026-02-07T14:06:14.5+09:00".into(),
        event_id: "6d40155e-8efc-49aa-8ddd-18f3e3a2bc46".into(),
        correlation_id: String::new(),
        severity: Severity::Medium,
        actor: Actor::default(),
        action: action.into(),
        target: Target::default(),
        request: RequestInfo::default(),
        result: ResultInfo {
            status: Outcome::of(200),
            code: 200,
            reason: String::new(),
            bytes: 0,
            latency_ms: 0,
        },
        runtime: RuntimeInfo {
            component: "condenser",
            node: "vm".into(),
        },
        extra: serde_json::Map::new(),
    }
}

#[test]
fn an_empty_record_has_only_what_is_always_there() {
    let line = serde_json::to_string(&record("container.list")).unwrap();
    let always = r#"{"generated_ts":"2026-02-07T14:06:14.5+09:00","event_id":"6d40155e-8efc-49aa-8ddd-18f3e3a2bc46","#;
    let rest = r#""severity":"medium","actor":{},"action":"container.list","target":{},"#;
    let end = r#""request":{"method":"","path":""},"result":{"status":"allow","code":200},"#;
    let runtime = r#""runtime":{"component":"condenser","node":"vm"}}"#;
    assert_eq!(line, [always, rest, end, runtime].concat());
}

#[test]
fn names_are_those_of_the_contract_misspelt_ones_included() {
    let mut full = record("pki.sign");
    full.actor.certificate_fingerprint = "ab".into();
    full.result.latency_ms = 3;
    full.target.san_uri = vec!["spiffe://raind/container/a".into()];
    let json = serde_json::to_value(&full).unwrap();
    assert_eq!(json["actor"]["certt_fingerprint"], "ab");
    assert_eq!(json["result"]["latence_ms"], 3);
    assert_eq!(
        json["target"],
        serde_json::json!({"san_uri": ["spiffe://raind/container/a"]})
    );
}

#[test]
fn a_status_stands_for_an_outcome() {
    for (code, outcome) in [
        (101, Outcome::Allow),
        (200, Outcome::Allow),
        (399, Outcome::Allow),
        (401, Outcome::Deny),
        (403, Outcome::Deny),
        (404, Outcome::Error),
        (500, Outcome::Error),
        (100, Outcome::Error),
    ] {
        assert_eq!(Outcome::of(code), outcome, "{code}");
    }
    assert_eq!(Severity::Information.raised(), Severity::Low);
    assert_eq!(Severity::Critical.raised(), Severity::Critical);
}

#[tokio::test]
async fn everything_recorded_is_there_after_a_flush() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(&dir.path().join("log"), "vm").unwrap();
    for n in 0..1000 {
        log.record(record(&n.to_string()));
    }
    log.flush().await;
    let text = std::fs::read_to_string(dir.path().join("log").join(FILE)).unwrap();
    let actions = text.lines().map(|line| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        record["action"].as_str().unwrap().parse::<u32>().unwrap()
    });
    assert!(actions.eq(0..1000));
}

#[tokio::test]
async fn a_directory_that_vanished_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("log");
    let log = AuditLog::open(&logs, "vm").unwrap();
    std::fs::remove_dir_all(&logs).unwrap();
    log.reopen();
    log.record(record("a"));
    log.flush().await;
    assert_eq!(std::fs::read_to_string(logs.join(FILE)).unwrap().lines().count(), 1);
}

#[test]
fn correlation_ids_count() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "vm").unwrap();
    let (first, second) = (log.next_correlation_id(), log.next_correlation_id());
    assert!(first.starts_with("vm/") && first.ends_with("-000001"), "{first}");
    assert_eq!(first.len(), "vm/".len() + 10 + "-000001".len());
    assert_eq!(first.replace("-000001", "-000002"), second);
}
