use super::*;
use crate::model::fixtures::container;

fn wish(chain: PolicyChain, destination: &str) -> NewPolicy {
    NewPolicy {
        chain: chain.name().into(),
        source: "web".into(),
        destination: destination.into(),
        protocol: "tcp".into(),
        dport: 80,
        comment: String::new(),
    }
}

fn east_west() -> NewPolicy {
    wish(PolicyChain::RaindEw, "db")
}

fn build(change: impl FnOnce(&mut Txn)) -> Snapshot {
    Snapshot::build(change)
}

fn changed(snapshot: &Snapshot, change: impl FnOnce(&mut Txn) -> Result<(), PolicyError>) -> Snapshot {
    snapshot.preview(change).unwrap().0
}

fn words(snapshot: &Snapshot, chain: PolicyChain) -> Vec<(String, &'static str, String)> {
    let shown = |e: Entry| {
        let reason = e.status.reason().to_owned();
        (e.policy.destination.clone(), e.status.word(), reason)
    };
    entries(snapshot, chain).into_iter().map(shown).collect()
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let ns = |destination: &str| wish(PolicyChain::RaindNsObs, destination);
    let with = |change: fn(&mut NewPolicy)| {
        let mut wish = east_west();
        change(&mut wish);
        wish
    };
    for (bad, said) in [
        (
            with(|w| w.chain = "NOPE".into()),
            "Chain: NOPE is invalid; use RAIND-EW, RAIND-NS-OBS or RAIND-NS-ENF",
        ),
        (with(|w| w.source = String::new()), "source \"\" is invalid"),
        (
            with(|w| w.source = "10.166.0.1".into()),
            "source \"10.166.0.1\" is invalid",
        ),
        (with(|w| w.source = "-j".into()), "source \"-j\" is invalid"),
        (with(|w| w.source = "a b".into()), "source \"a b\" is invalid"),
        (with(|w| w.destination = String::new()), "dest \"\" is invalid"),
        (
            with(|w| w.destination = "10.166.0.0/24".into()),
            "dest \"10.166.0.0/24\" is invalid",
        ),
        (
            with(|w| w.destination = "fe80::1".into()),
            "dest \"fe80::1\" is invalid",
        ),
        (with(|w| w.protocol = "sctp".into()), "protocol \"sctp\" is invalid"),
        (with(|w| w.protocol = "TCP".into()), "protocol \"TCP\" is invalid"),
        (
            with(|w| w.protocol = String::new()),
            "dport 80 needs the protocol tcp or udp",
        ),
        (
            with(|w| w.protocol = "icmp".into()),
            "dport 80 needs the protocol tcp or udp",
        ),
        (with(|w| w.dport = 65_536), "dport 65536 is invalid"),
        (with(|w| w.dport = -1), "dport -1 is invalid"),
        (with(|w| w.comment = "x".repeat(257)), "comment is invalid"),
        (with(|w| w.comment = "a\nb".into()), "comment is invalid"),
        (ns("db"), "dest \"db\" is invalid"),
        (ns("2001:db8::/32"), "dest \"2001:db8::/32\" is invalid"),
        (ns("203.0.113.0/33"), "dest \"203.0.113.0/33\" is invalid"),
        (ns(""), "dest \"\" is invalid"),
    ] {
        let refused = Snapshot::default().preview(|t| add(t, &bad, None)).unwrap_err();
        assert!(refused.to_string().starts_with(said), "{bad:?}: {refused}");
    }
    for good in [east_west(), ns("203.0.113.7"), ns("203.0.113.7/24"), ns("0.0.0.0/0")] {
        build(|t| drop(add(t, &good, None).unwrap()));
    }
}

#[test]
fn ids_of_containers_become_names_and_order_is_that_of_addition() {
    let snapshot = build(|t| {
        t.put(container("aaaaaaaaaaaa", "web")).unwrap();
        for n in 0..50 {
            let mut wish = wish(PolicyChain::RaindEw, &format!("db{n}"));
            wish.source = "aaaaaaaaaaaa".into();
            add(t, &wish, None).unwrap();
        }
    });
    let all = entries(&snapshot, PolicyChain::RaindEw);
    let order: Vec<_> = all.iter().map(|e| e.policy.destination.clone()).collect();
    assert_eq!(order, (0..50).map(|n| format!("db{n}")).collect::<Vec<_>>());
    assert!(all.iter().all(|e| e.policy.source == "web" && e.policy.id.len() == 26));
}

#[test]
fn the_same_policy_is_there_once() {
    let snapshot = build(|t| drop(add(t, &east_west(), None).unwrap()));
    let again = |snapshot: &Snapshot, owner| snapshot.preview(|t| add(t, &east_west(), owner)).map(drop);
    assert!(matches!(again(&snapshot, None), Err(PolicyError::Duplicate(_))));
    // A bottle brings its own policies, and a policy that is being removed is no duplicate.
    again(&snapshot, Some("bottle")).unwrap();
    let committed = changed(&snapshot, |t| Promotion::of(t.snapshot()).apply(t));
    let id = committed.policies().iter().next().unwrap().id.clone();
    assert!(again(&committed, None).is_err());
    again(&changed(&committed, |t| remove(t, &id)), None).unwrap();
}

#[test]
fn a_life_of_a_policy() {
    let staged = build(|t| {
        t.put(container("aaaaaaaaaaaa", "web").address("10.166.0.1")).unwrap();
        t.put(container("bbbbbbbbbbbb", "db").address("10.166.0.2")).unwrap();
        for destination in ["db", "later"] {
            add(t, &wish(PolicyChain::RaindEw, destination), None).unwrap();
        }
    });
    let is = |snapshot: &Snapshot, wanted: &[(&str, &'static str, &str)]| {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(d, w, r)| ((*d).to_owned(), *w, (*r).to_owned()))
            .collect();
        assert_eq!(words(snapshot, PolicyChain::RaindEw), wanted);
    };
    is(&staged, &[("db", "before_commit", ""), ("later", "before_commit", "")]);
    let committed = changed(&staged, |t| Promotion::of(t.snapshot()).apply(t));
    let unresolved = ("later", "unresolved", "container: later not found");
    is(&committed, &[("db", "applied", ""), unresolved]);
    let ids: Vec<_> = committed.policies().iter().map(|p| p.id.clone()).collect();
    let marked = changed(&committed, |t| remove(t, &ids[0]).and_then(|()| remove(t, &ids[0])));
    is(&marked, &[("db", "remove_next_commit", "user operation"), unresolved]);
    is(&changed(&marked, revert), &[("db", "applied", ""), unresolved]);
    let gone = changed(&marked, |t| Promotion::of(t.snapshot()).apply(t));
    is(&gone, &[unresolved]);
    // A policy that was never in force is removed at once.
    let never = changed(&staged, |t| remove(t, &ids[1]));
    is(&never, &[("db", "before_commit", "")]);
    is(&changed(&staged, revert), &[]);
    assert!(matches!(
        gone.preview(|t| remove(t, &ids[0])),
        Err(PolicyError::NotFound(_))
    ));
}

#[test]
fn a_commit_takes_what_was_staged_when_it_began() {
    let staged = build(|t| drop(add(t, &east_west(), None).unwrap()));
    let commit = Promotion::of(&staged);
    let later = changed(&staged, |t| {
        add(t, &wish(PolicyChain::RaindNsObs, "203.0.113.7"), None)?;
        set_mode(t, NsMode::Enforce)
    });
    let after = changed(&later, |t| commit.apply(t));
    let stages: Vec<_> = after.policies().iter().map(|p| p.stage).collect();
    assert_eq!(stages, [PolicyStage::Committed, PolicyStage::Added]);
    assert_eq!(
        shown_mode(&policies::settings(&after), PolicyChain::RaindNsObs),
        "enforce_next_commit"
    );
}

#[test]
fn modes_are_staged_too() {
    let start = Snapshot::default();
    let mode = |snapshot: &Snapshot| shown_mode(&policies::settings(snapshot), PolicyChain::RaindNsEnf);
    assert_eq!(mode(&start), "observe");
    assert_eq!(
        shown_mode(&policies::settings(&start), PolicyChain::RaindEw),
        "deny_by_default"
    );
    assert!(matches!(
        start.preview(|t| set_mode(t, NsMode::Observe)),
        Err(PolicyError::ModeAlreadySet(NsMode::Observe))
    ));
    let pending = changed(&start, |t| set_mode(t, NsMode::Enforce));
    assert_eq!(
        (mode(&pending), policies::settings(&pending).ns_mode),
        ("enforce_next_commit".into(), NsMode::Observe)
    );
    assert_eq!(
        mode(&changed(&pending, |t| set_mode(t, NsMode::Enforce))),
        "enforce_next_commit"
    );
    assert_eq!(mode(&changed(&pending, |t| set_mode(t, NsMode::Observe))), "observe");
    assert_eq!(mode(&changed(&pending, revert)), "observe");
    let enforced = changed(&pending, |t| Promotion::of(t.snapshot()).apply(t));
    assert_eq!(
        (mode(&enforced), policies::settings(&enforced).ns_mode),
        ("enforce".into(), NsMode::Enforce)
    );
}

#[test]
fn blocks_lose_their_host_bits() {
    let block = |text| policies::block(text).map(|b| b.to_string());
    assert_eq!(block("203.0.113.7").as_deref(), Some("203.0.113.7/32"));
    assert_eq!(block("203.0.113.7/24").as_deref(), Some("203.0.113.0/24"));
    assert_eq!(block("example.org"), None);
}
