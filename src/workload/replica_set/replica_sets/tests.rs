use super::*;
use crate::model::ContainerState;
use crate::model::fixtures::{container, pod, replica_set};

/// Applies changes one after another and returns the resulting snapshot.
fn after(change: impl FnOnce(&mut Txn)) -> Snapshot {
    Snapshot::build(change)
}

fn pods(snapshot: &Snapshot) -> Vec<&Pod> {
    snapshot.pods().iter().map(AsRef::as_ref).collect()
}

fn with_goal(snapshot: &Snapshot, goal: PodGoal) -> usize {
    pods(snapshot).iter().filter(|pod| pod.goal == goal).count()
}

/// A running pod without an owner.
fn stray(id: &str, name: &str) -> Pod {
    Pod {
        goal: PodGoal::Running,
        ..pod(id, name, &["web"])
    }
}

fn wish(set: &ReplicaSet) -> NewSet {
    NewSet {
        manifest_name: set.manifest_name.clone(),
        name: set.name.clone(),
        namespace: set.namespace.clone(),
        replicas: set.replicas,
        selector: set.selector.clone(),
        template: PodTemplate {
            id: "another".into(),
            ..set.template.clone()
        },
        update: set.update,
        rollout: set.rollout,
    }
}

#[test]
fn gaps_are_filled_once_with_pods_of_unique_names() {
    let snapshot = after(|t| {
        t.put(replica_set("s", "shop", 3)).unwrap();
        reconcile_in(t, "s", Timestamp::now()).unwrap();
        reconcile_in(t, "s", Timestamp::now()).unwrap();
    });
    let pods = pods(&snapshot);
    assert_eq!(pods.len(), 3);
    for pod in &pods {
        let suffix = pod.name.strip_prefix("shop-").unwrap();
        assert!(
            suffix.len() == 8 && suffix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()),
            "{suffix}"
        );
        assert_eq!((pod.owner.as_deref(), pod.goal), (Some("s"), PodGoal::Running));
        assert_eq!(pod.template.id, "s-template");
        assert_eq!(pod.namespace, "default");
    }
    assert!(decide(&snapshot, "s", Timestamp::now()).is_none());
}

#[test]
fn pods_that_are_not_there_yet_count_and_those_that_go_do_not() {
    let snapshot = after(|t| {
        t.put(replica_set("s", "shop", 2)).unwrap();
        reconcile_in(t, "s", Timestamp::now()).unwrap();
        let first = t.snapshot().pods().iter().next().unwrap().id.clone();
        t.update::<Pod>(&first, |pod| pod.goal = PodGoal::Removed).unwrap();
        reconcile_in(t, "s", Timestamp::now()).unwrap();
        reconcile_in(t, "s", Timestamp::now()).unwrap();
    });
    assert_eq!(
        (
            with_goal(&snapshot, PodGoal::Running),
            with_goal(&snapshot, PodGoal::Removed)
        ),
        (2, 1)
    );
}

#[test]
fn a_pod_that_a_user_stopped_stays_until_there_are_too_many() {
    let snapshot = after(|t| {
        t.put(replica_set("s", "shop", 2)).unwrap();
        reconcile_in(t, "s", Timestamp::now()).unwrap();
        let first = t.snapshot().pods().iter().next().unwrap().id.clone();
        t.update::<Pod>(&first, |pod| pod.goal = PodGoal::Stopped).unwrap();
        reconcile_in(t, "s", Timestamp::now()).unwrap();
    });
    assert_eq!(with_goal(&snapshot, PodGoal::Stopped), 1);
    assert_eq!(pods(&snapshot).len(), 2);
}

#[test]
fn the_least_useful_pod_goes_first() {
    let owned = |id: &str, seconds| Pod {
        owner: Some("s".into()),
        created_at: Timestamp::from_second(seconds).unwrap(),
        template: replica_set("s", "shop", 0).template,
        ..stray(id, id)
    };
    let part = |id: &str| container(id, id).in_state(ContainerState::Running);
    let snapshot = after(|t| {
        t.put(replica_set("s", "shop", 2)).unwrap();
        for (seconds, id) in ["old", "broken", "young"].into_iter().enumerate() {
            t.put(owned(id, seconds as i64)).unwrap();
            if id != "broken" {
                t.put(part(&format!("{id}-i")).infra_of(id)).unwrap();
                t.put(part(&format!("{id}-m")).member_of(id)).unwrap();
            }
        }
        reconcile_in(t, "s", Timestamp::now()).unwrap();
        t.update::<ReplicaSet>("s", |set| set.replicas = 1).unwrap();
        let gone = |t: &Txn| with_goal(t.snapshot(), PodGoal::Removed);
        assert_eq!((t.get::<Pod>("broken").unwrap().goal, gone(t)), (PodGoal::Removed, 1));
        reconcile_in(t, "s", Timestamp::now()).unwrap();
        assert_eq!((t.get::<Pod>("young").unwrap().goal, gone(t)), (PodGoal::Removed, 2));
    });
    assert_eq!(pods(&snapshot).len(), 3, "rows go when the pods are gone");
}

#[test]
fn pods_that_belong_to_nobody_are_adopted_by_labels_in_the_namespace() {
    let snapshot = after(|t| {
        t.put(stray("match", "shop")).unwrap();
        t.put(stray("labels", "other")).unwrap();
        t.put(Pod {
            namespace: "prod".into(),
            ..stray("namespace", "shop")
        })
        .unwrap();
        t.put(Pod {
            goal: PodGoal::Created,
            name: "unstarted".into(),
            ..stray("unstarted", "shop")
        })
        .unwrap();
        t.put(replica_set("s", "shop", 2)).unwrap();
        reconcile_in(t, "s", Timestamp::now()).unwrap();
    });
    let mine: Vec<_> = owned(&snapshot, "s").collect();
    assert_eq!(mine.len(), 2);
    let adopted = snapshot.pods().get("match").unwrap();
    assert_eq!((adopted.owner.as_deref(), &adopted.name[..]), (Some("s"), "shop"));
    for id in ["labels", "namespace", "unstarted"] {
        assert_eq!(snapshot.pods().get(id).unwrap().owner, None, "{id}");
    }
}

#[test]
fn two_sets_of_the_same_labels_do_not_share_pods() {
    let snapshot = after(|t| {
        let twin = ReplicaSet {
            manifest_name: "twin".into(),
            ..replica_set("b", "shop", 3)
        };
        t.put(replica_set("a", "shop", 3)).unwrap();
        t.put(twin).unwrap();
        for set in ["a", "b", "a", "b"] {
            reconcile_in(t, set, Timestamp::now()).unwrap();
        }
    });
    assert_eq!((owned(&snapshot, "a").count(), owned(&snapshot, "b").count()), (3, 3));
}

#[test]
fn an_adopted_pod_is_replaced_with_the_next_template() {
    let mut t_ids = Vec::new();
    let snapshot = after(|t| {
        t.put(stray("match", "shop")).unwrap();
        t.put(replica_set("s", "shop", 1)).unwrap();
        reconcile_in(t, "s", Timestamp::now()).unwrap();
        let mut next = wish(&t.get::<ReplicaSet>("s").unwrap());
        next.template.spec.containers[0].request.image = "busybox:2".into();
        let applied = apply_in(t, next).unwrap();
        t_ids.push(applied.set.template.id.clone());
        reconcile_in(t, "s", Timestamp::now()).unwrap();
    });
    assert_eq!(t_ids, ["another"]);
    assert_eq!(snapshot.pods().get("match").unwrap().goal, PodGoal::Removed);
    assert_eq!(with_goal(&snapshot, PodGoal::Running), 1);
}

#[test]
fn a_template_that_is_taken_back_is_the_version_that_pods_still_have() {
    let snapshot = after(|t| {
        let first = replica_set("s", "shop", 1);
        let now = Timestamp::now();
        t.put(ReplicaSet {
            update: UpdateStrategy::Rolling,
            ..first.clone()
        })
        .unwrap();
        reconcile_in(t, "s", now).unwrap();
        let mut next = NewSet {
            update: UpdateStrategy::Rolling,
            ..wish(&first)
        };
        let back = NewSet {
            template: PodTemplate {
                id: "third".into(),
                ..next.template.clone()
            },
            ..next.clone()
        };
        next.template.spec.containers[0].request.image = "busybox:2".into();
        assert_eq!(apply_in(t, next).unwrap().set.template.id, "another");
        reconcile_in(t, "s", now).unwrap();
        assert_eq!(with_goal(t.snapshot(), PodGoal::Running), 2);
        assert_eq!(apply_in(t, back).unwrap().set.template.id, "s-template");
        reconcile_in(t, "s", now).unwrap();
    });
    let set = snapshot.replicasets().get("s").unwrap();
    assert_eq!((&set.template.id[..], set.replicas), ("s-template", 1));
    let kept = pods(&snapshot)
        .into_iter()
        .filter(|pod| pod.template.id == set.template.id);
    assert_eq!(
        kept.filter(|pod| pod.goal == PodGoal::Running).count(),
        1,
        "the first pod"
    );
}

#[test]
fn an_adopted_pod_is_no_version_of_a_template() {
    after(|t| {
        let mut own = stray("match", "shop");
        own.template.spec.containers[0].request.image = "own:1".into();
        t.put(own.clone()).unwrap();
        t.put(replica_set("s", "shop", 1)).unwrap();
        reconcile_in(t, "s", Timestamp::now()).unwrap();
        let mut next = wish(&t.get::<ReplicaSet>("s").unwrap());
        next.template.spec = own.template.spec.clone();
        assert_eq!(apply_in(t, next).unwrap().set.template.id, "another");
    });
}

#[test]
fn applying_the_same_again_changes_nothing() {
    after(|t| {
        let set = replica_set("s", "shop", 2);
        let first = apply_in(t, wish(&set)).unwrap();
        assert!(first.before.is_none());
        let again = apply_in(
            t,
            NewSet {
                template: PodTemplate {
                    id: "third".into(),
                    ..set.template.clone()
                },
                ..wish(&set)
            },
        );
        let again = again.unwrap();
        assert_eq!((&again.set, again.before.as_ref()), (&first.set, Some(&first.set)));
        let more = apply_in(
            t,
            NewSet {
                replicas: 5,
                ..wish(&set)
            },
        )
        .unwrap();
        assert_eq!((&more.set.id, more.set.replicas), (&first.set.id, 5));
        assert_eq!(
            more.set.template.id, first.set.template.id,
            "pods stay when only their number changes"
        );
    });
}

#[test]
fn a_set_goes_when_its_last_pod_is_gone() {
    let snapshot = after(|t| {
        t.put(replica_set("s", "shop", 2)).unwrap();
        reconcile_in(t, "s", Timestamp::now()).unwrap();
        t.update::<ReplicaSet>("s", |set| set.removing = true).unwrap();
        reconcile_in(t, "s", Timestamp::now()).unwrap();
        assert_eq!(with_goal(t.snapshot(), PodGoal::Removed), 2);
        assert!(apply_in(t, wish(&replica_set("s", "shop", 2))).is_err());
        reconcile_in(t, "s", Timestamp::now()).unwrap();
        let ids: Vec<_> = t.snapshot().pods().iter().map(|pod| pod.id.clone()).collect();
        for id in ids {
            assert!(t.get::<ReplicaSet>("s").is_some());
            t.remove::<Pod>(&id).unwrap();
            reconcile_in(t, "s", Timestamp::now()).unwrap();
        }
    });
    assert!(snapshot.replicasets().is_empty());
}

#[test]
fn names_mean_what_identifies_a_set_first() {
    let snapshot = after(|t| {
        let named = |id: &str, own: &str, shown: &str| ReplicaSet {
            manifest_name: own.into(),
            ..replica_set(id, shown, 0)
        };
        t.put(named("a", "one", "shop")).unwrap();
        t.put(named("b", "two", "shop")).unwrap();
        t.put(named("c", "three", "blog")).unwrap();
        t.put(named("d", "blog", "x")).unwrap();
    });
    let found = |name: &str| named(&snapshot, name, "default").map(|set| set.id.clone());
    assert_eq!(found("one").as_deref(), Some("a"));
    assert_eq!(found("shop"), None, "it could mean two");
    assert_eq!(found("blog").as_deref(), Some("d"));
    assert_eq!(found("x").as_deref(), Some("d"));
    assert_eq!(named(&snapshot, "one", "prod").map(|set| set.id.clone()), None);
}
