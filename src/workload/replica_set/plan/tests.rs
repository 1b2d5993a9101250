use UpdateStrategy::{Replace, Rolling};
use proptest::prelude::*;
use rstest::rstest;

use super::Fitness::{Down, Ready, Unready};
use super::*;
use crate::model::Share;

/// Pods as one letter each: `r`eady, `u`nready or `d`own, capitals for an old template; ids and ages ascend.
fn pods(word: &str) -> Vec<Replica> {
    let pod = |(at, letter): (usize, char)| Replica {
        id: at.to_string(),
        created_at: Timestamp::from_second(at as i64).unwrap(),
        fitness: match letter.to_ascii_lowercase() {
            'r' => Ready,
            'u' => Unready,
            _ => Down,
        },
        outdated: letter.is_ascii_uppercase(),
    };
    word.chars().enumerate().map(pod).collect()
}

/// Removed ids, adopted ids, number of new pods.
fn seen(update: UpdateStrategy, replicas: usize, word: &str, orphans: &[&str]) -> (String, String, usize) {
    seen_within(Rollout::default(), update, replicas, word, orphans)
}

fn seen_within(
    rollout: Rollout,
    update: UpdateStrategy,
    replicas: usize,
    word: &str,
    orphans: &[&str],
) -> (String, String, usize) {
    let orphans: Vec<String> = orphans.iter().map(|id| (*id).to_owned()).collect();
    let wanted = Wanted {
        replicas,
        update,
        rollout,
    };
    let changes = changes(wanted, &pods(word), &orphans);
    let mut remove = changes.remove;
    remove.sort();
    (remove.join(" "), changes.adopt.join(" "), changes.create)
}

#[rstest]
#[case(3, "", "", 3)]
#[case(3, "rr", "", 1)]
#[case(2, "rr", "", 0)]
#[case(2, "du", "", 0)]
#[case(0, "rr", "0 1", 0)]
#[case(1, "rrr", "1 2", 0)]
#[case(2, "rdur", "1 2", 0)]
#[case(3, "rdur", "1", 0)]
#[case(2, "RRrr", "0 1", 0)]
#[case(3, "RRr", "0 1", 2)]
#[case(0, "Rr", "0 1", 0)]
fn a_plain_set(#[case] replicas: usize, #[case] word: &str, #[case] remove: &str, #[case] create: usize) {
    assert_eq!(
        seen(Replace, replicas, word, &[]),
        (remove.into(), String::new(), create)
    );
}

// A quarter of three: one above, none below.
#[rstest]
#[case(3, "RRR", "", 1)]
#[case(3, "RRRu", "", 0)]
#[case(3, "RRRd", "", 0)]
#[case(3, "RRRr", "2", 1)]
#[case(3, "RRru", "", 0)]
#[case(3, "RRrr", "1", 1)]
#[case(3, "Rrrr", "0", 0)]
// Broken old pods go once as many new ones work, and before working old ones.
#[case(3, "RUD", "", 1)]
#[case(3, "DDD", "", 1)]
#[case(3, "RUDr", "2", 1)]
#[case(3, "DDDr", "2", 1)]
#[case(1, "R", "", 1)]
#[case(1, "Ru", "", 0)]
#[case(1, "Rr", "0", 0)]
#[case(3, "RR", "", 2)]
// Scaled during the rollout.
#[case(2, "RRrr", "0 1", 0)]
#[case(2, "RRRr", "1 2", 1)]
#[case(2, "RRuu", "", 0)]
#[case(1, "RRRu", "1 2", 0)]
#[case(0, "RRrr", "0 1 2 3", 0)]
fn a_set_that_rolls(#[case] replicas: usize, #[case] word: &str, #[case] remove: &str, #[case] create: usize) {
    assert_eq!(
        seen(Rolling, replicas, word, &[]),
        (remove.into(), String::new(), create)
    );
}

#[test]
fn bounds_are_what_the_manifest_says() {
    let rolls = |unavailable, surge, word| {
        let rollout = Rollout {
            max_unavailable: unavailable,
            max_surge: surge,
            min_ready_seconds: 0,
        };
        let (remove, _, create) = seen_within(rollout, Rolling, 4, word, &[]);
        (remove, create)
    };
    let (none, one) = (Share::Count(0), Share::Count(1));
    assert_eq!(rolls(one, none, "RRRR"), ("3".into(), 1));
    assert_eq!(rolls(one, none, "RRRu"), ("".into(), 0));
    assert_eq!(rolls(one, none, "RRRd"), ("".into(), 0));
    assert_eq!(rolls(Share::Percent(50), none, "RRRR"), ("2 3".into(), 2));
    assert_eq!(rolls(none, Share::Percent(100), "RRRR"), ("".into(), 4));
    assert_eq!(rolls(Share::Percent(100), none, "RRRR"), ("0 1 2 3".into(), 4));
    // Percentages that round to zero: one may be unavailable.
    assert_eq!(rolls(Share::Percent(10), none, "RRRR"), ("3".into(), 1));
    assert_eq!(Rollout::default().bounds(10), (8, 13));
    assert_eq!(Rollout::default().bounds(1), (1, 2));
    assert_eq!(Rollout::default().bounds(0), (0, 0));
}

#[test]
fn orphans_fill_gaps_and_no_more() {
    assert_eq!(seen(Replace, 3, "r", &["x"]), ("".into(), "x".into(), 1));
    assert_eq!(seen(Replace, 3, "r", &["x", "y", "z"]), ("".into(), "x y".into(), 0));
    assert_eq!(seen(Replace, 1, "r", &["x"]), ("".into(), "".into(), 0));
}

/// A set, its pods and other pods.
#[derive(Debug, Clone)]
struct World {
    wanted: Wanted,
    pods: Vec<Replica>,
    orphans: Vec<String>,
    made: usize,
}

/// An event in the simulated world.
#[derive(Debug, Clone)]
enum Event {
    Scale(usize),
    NewTemplate,
    Strategy(UpdateStrategy),
    Becomes(prop::sample::Index, Fitness),
    Vanishes(prop::sample::Index),
    Orphan,
    Plan,
}

impl World {
    fn happens(&mut self, event: Event) {
        match event {
            Event::Scale(replicas) => self.wanted.replicas = replicas,
            Event::NewTemplate => self.pods.iter_mut().for_each(|pod| pod.outdated = true),
            Event::Strategy(update) => self.wanted.update = update,
            Event::Becomes(at, fitness) if !self.pods.is_empty() => {
                let at = at.index(self.pods.len());
                self.pods[at].fitness = fitness;
            }
            Event::Vanishes(at) if !self.pods.is_empty() => drop(self.pods.remove(at.index(self.pods.len()))),
            Event::Orphan => {
                self.made += 1;
                self.orphans.push(self.made.to_string());
            }
            Event::Plan => drop(self.plan_and_act()),
            _ => {}
        }
    }

    fn plan_and_act(&mut self) -> Changes {
        let changes = changes(self.wanted, &self.pods, &self.orphans);
        self.check(&changes);
        self.pods.retain(|pod| !changes.remove.contains(&pod.id));
        self.orphans.retain(|id| !changes.adopt.contains(id));
        let new = (0..changes.create).map(|n| (self.made + 1 + n).to_string());
        for id in new.chain(changes.adopt.iter().cloned()).collect::<Vec<_>>() {
            self.pods.push(Replica {
                created_at: Timestamp::from_second(id.parse().unwrap()).unwrap(),
                id,
                fitness: Down,
                outdated: false,
            });
        }
        self.made += changes.create;
        changes
    }

    /// Checks the invariants of every plan.
    fn check(&self, changes: &Changes) {
        let (replicas, before) = (self.wanted.replicas, self.pods.len());
        let (least, most) = self.wanted.rollout.bounds(replicas);
        let (gone, rest): (Vec<_>, Vec<_>) = self.pods.iter().partition(|pod| changes.remove.contains(&pod.id));
        assert_eq!(
            gone.len(),
            changes.remove.len(),
            "every pod once, and only those that are there"
        );
        let after = rest.len() + changes.adopt.len() + changes.create;
        let fresh_gone = gone.iter().filter(|pod| !pod.outdated).count();
        match self.wanted.update {
            Replace => assert!(after == replicas && rest.len() <= replicas),
            Rolling => assert!(after >= replicas.min(most) && after <= most.max(rest.len())),
        }
        assert!(
            fresh_gone == 0 || changes.create + changes.adopt.len() == 0,
            "a pod makes room for one like it"
        );
        assert!(
            fresh_gone <= before.saturating_sub(replicas),
            "more pods go than are too many"
        );
        if self.wanted.update == Rolling {
            let ready = |pods: &[&Replica]| pods.iter().filter(|pod| pod.fitness == Ready).count();
            let had = ready(&self.pods.iter().collect::<Vec<_>>());
            assert!(ready(&rest) >= had.min(least), "fewer are available than must be");
        }
        for (gone, kept) in gone.iter().flat_map(|gone| rest.iter().map(move |kept| (gone, kept))) {
            assert!(
                gone.outdated || kept.outdated || gone.fitness <= kept.fitness,
                "the fitter one goes"
            );
        }
    }
}

fn strategy() -> impl Strategy<Value = UpdateStrategy> {
    prop_oneof![Just(Replace), Just(Rolling)]
}

fn share() -> impl Strategy<Value = Share> {
    prop_oneof![(0u32..4).prop_map(Share::Count), (0u32..=100).prop_map(Share::Percent)]
}

fn fitness() -> impl Strategy<Value = Fitness> {
    prop_oneof![Just(Down), Just(Unready), Just(Ready)]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0usize..12).prop_map(Event::Scale),
        Just(Event::NewTemplate),
        strategy().prop_map(Event::Strategy),
        (any::<prop::sample::Index>(), fitness()).prop_map(|(at, fitness)| Event::Becomes(at, fitness)),
        any::<prop::sample::Index>().prop_map(Event::Vanishes),
        Just(Event::Orphan),
        Just(Event::Plan),
        Just(Event::Plan),
    ]
}

proptest! {
    /// After any events: once the world is quiet and pods come up, the set reaches its desired state and keeps it.
    #[test]
    fn it_arrives_and_stays(
        replicas in 0usize..12,
        update in strategy(),
        unavailable in share(),
        surge in share(),
        events in prop::collection::vec(event(), 0..60),
    ) {
        let rollout = Rollout { max_unavailable: unavailable, max_surge: surge, min_ready_seconds: 0 };
        let wanted = Wanted { replicas, update, rollout };
        let mut world = World { wanted, pods: Vec::new(), orphans: Vec::new(), made: 0 };
        for event in events {
            world.happens(event);
        }
        // Each round replaces at least one pod of an old template.
        let rounds = world.pods.len() + world.wanted.replicas + 2;
        for _ in 0..rounds {
            world.plan_and_act();
            world.pods.iter_mut().for_each(|pod| pod.fitness = Ready);
        }
        prop_assert_eq!(world.pods.len(), world.wanted.replicas);
        prop_assert!(world.pods.iter().all(|pod| !pod.outdated));
        let ids = |world: &World| world.pods.iter().map(|pod| pod.id.clone()).collect::<std::collections::BTreeSet<_>>();
        prop_assert_eq!(ids(&world).len(), world.pods.len(), "an id is there twice");
        // The pod controller handles failing pods: the set neither creates nor removes any for them.
        for fitness in [Ready, Unready, Down, Ready] {
            world.pods.iter_mut().for_each(|pod| pod.fitness = fitness);
            prop_assert!(world.plan_and_act().is_empty());
        }
    }

    /// After a plan has been executed, the next one is empty unless something else happens.
    #[test]
    fn it_does_not_swing(
        replicas in 0usize..12,
        update in strategy(),
        unavailable in share(),
        surge in share(),
        events in prop::collection::vec(event(), 0..60),
    ) {
        let rollout = Rollout { max_unavailable: unavailable, max_surge: surge, min_ready_seconds: 0 };
        let wanted = Wanted { replicas, update, rollout };
        let mut world = World { wanted, pods: Vec::new(), orphans: Vec::new(), made: 0 };
        for event in events {
            world.happens(event);
        }
        world.plan_and_act();
        prop_assert!(world.plan_and_act().is_empty(), "{:?}", world);
    }
}
