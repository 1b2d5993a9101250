use super::*;
use crate::model::fixtures::pod;

fn wish(uid: Option<&str>) -> NewPod {
    NewPod {
        name: "shop".into(),
        namespace: "default".into(),
        uid: uid.map(str::to_owned),
        owner: None,
        template: pod("new", "new", &["web"]).template,
        goal: PodGoal::Running,
    }
}

fn running(id: &str) -> Pod {
    Pod {
        goal: PodGoal::Running,
        ..pod(id, "shop", &["web"])
    }
}

/// The only pod: the holder of the name.
fn only(t: &Txn) -> Arc<Pod> {
    let mut pods = t.snapshot().pods().iter();
    let pod = pods.next().cloned().expect("no pod");
    assert!(pods.next().is_none(), "more than one pod");
    pod
}

fn replace(t: &mut Txn, uid: Option<&str>, instead_of: Option<&str>) -> (String, String) {
    match reserve(t, wish(uid), instead_of, &KeyedLocks::default()) {
        Ok(Reserved::After { old, next }) => (old, next.expect("nothing comes in its place").0),
        Ok(Reserved::Pod(pod, _)) => panic!("{pod:?}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn whatever_line_a_crash_hits_one_of_both_has_the_name() {
    Snapshot::build(|t| {
        t.put(running("old")).unwrap();
        let (old, next) = replace(t, None, Some("old"));
        let going = only(t);
        assert_eq!(
            (old.as_str(), going.id.as_str(), going.goal),
            ("old", "old", PodGoal::Removed)
        );
        assert_eq!(going.standing().map(|pod| &pod.id), Some(&next));

        let now = Timestamp::now();
        hand_over(t, "old", now).unwrap();
        let new = only(t);
        assert_eq!((&new.id, &new.name[..], new.goal), (&next, "shop", PodGoal::Running));
        assert_eq!((new.created_at, new.started_at), (now, Some(now)));
        assert_eq!(new.template, wish(None).template);
        hand_over(t, &next, now).unwrap();
        assert!(t.snapshot().pods().is_empty());
    });
}

#[test]
fn a_new_pod_is_locked_before_it_can_be_seen() {
    Snapshot::build(|t| {
        let locks = KeyedLocks::default();
        let Ok(Reserved::Pod(pod, lock)) = reserve(t, wish(None), None, &locks) else {
            panic!("the name is free");
        };
        assert!(locks.try_lock(&pod.id).is_none());
        assert_eq!((pod.goal, pod.started_at), (PodGoal::Running, Some(pod.created_at)));
        drop(lock);
        let Ok(Reserved::After {
            next: Some((id, _lock)),
            ..
        }) = reserve(t, wish(None), Some(&pod.id), &locks)
        else {
            panic!("it is to be replaced");
        };
        assert!(locks.try_lock(&id).is_none());
    });
}

#[test]
fn a_uid_says_whether_a_pod_is_the_one_or_in_the_way() {
    Snapshot::build(|t| {
        let locks = KeyedLocks::default();
        t.put(running("old")).unwrap();
        let same = reserve(t, wish(Some("old")), None, &locks);
        assert!(matches!(same, Ok(Reserved::Pod(pod, None)) if pod.goal == PodGoal::Running));
        for instead_of in [None, Some("another")] {
            let taken = reserve(t, wish(None), instead_of, &locks);
            assert!(matches!(taken, Err(PodError::NameTaken { .. })));
        }
        assert_eq!(only(t).goal, PodGoal::Running);

        let (_, next) = replace(t, Some("other"), None);
        // The successor counts, not the pod being removed.
        let promised = reserve(t, wish(Some("other")), None, &locks);
        assert!(matches!(promised, Ok(Reserved::After { next: None, .. })));
        assert!(matches!(
            reserve(t, wish(None), Some("old"), &locks),
            Err(PodError::NameTaken { .. })
        ));
        assert_eq!(only(t).standing().unwrap().id, next);
    });
}

/// A failed request restores the previous pod, no matter how far its replacement has come.
#[test]
fn a_replacement_can_be_replaced_before_it_is_there_and_after() {
    Snapshot::build(|t| {
        let locks = KeyedLocks::default();
        t.put(running("old")).unwrap();
        replace(t, None, Some("old"));
        let (going, back) = replace(t, Some("old"), None);
        assert_eq!(going, "old");
        assert_eq!(
            only(t).standing().map(|pod| (&pod.id, &pod.uid[..])),
            Some((&back, "old"))
        );

        hand_over(t, "old", Timestamp::now()).unwrap();
        let (_, next) = replace(t, None, Some(&back));
        hand_over(t, &back, Timestamp::now()).unwrap();
        let (going, _) = replace(t, Some("old"), None);
        assert_eq!(going, next);

        // A pod that is being removed without a successor gives its name to nobody yet.
        t.update::<Pod>(&next, |pod| pod.successor = None).unwrap();
        let wait = reserve(t, wish(None), None, &locks);
        assert!(matches!(wait, Ok(Reserved::After { next: None, .. })));
    });
}

#[test]
fn rows_of_earlier_versions_have_no_successor() {
    let old = running("old");
    let mut row = serde_json::to_value(&old).unwrap();
    assert!(row.as_object_mut().unwrap().remove("successor").is_none());
    assert_eq!(serde_json::from_value::<Pod>(row).unwrap(), old);
    let going = Pod {
        successor: Some(Box::new(running("new"))),
        ..old
    };
    let row = serde_json::to_string(&going).unwrap();
    assert_eq!(serde_json::from_str::<Pod>(&row).unwrap(), going);
}
