//! Measures containers: every ten seconds all that run, and on request.
//!
//! Keeps state per container: while it runs, its open cgroup and its CPU time at the last two ticks, from which rates
//! are computed; for as long as it exists, its latest sample. A stopped container reports that sample with the
//! current values at zero. A new run starts from scratch. Nothing is ever read back from the log.
//!
//! The cgroup disappears with the run. The out-of-memory counters are then read from the runtime's state, so they are
//! known even for a container that was never measured, and after a restart of this process.
//!
//! A group that is kept open takes up to [`Group::FILES`] descriptors. Half of this process's limit is used for that;
//! the groups of further containers are opened for every reading, which is slower.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::{Resource, getrlimit};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::group::{Group, GroupError, Hierarchies, processors};
use super::log::MetricsLog;
use super::sample::Sample;
use crate::model::{Container, ContainerState, ProcessId};
use crate::runtime::dir::ContainerDir;
use crate::runtime::state::{MemoryEvents, RuntimeState, Status};
use crate::store::Store;

/// How often running containers are measured for the log (`docs/spec/observability.md` 4).
const INTERVAL: Duration = Duration::from_secs(10);
/// Shortest period for a meaningful rate: the kernel accounts running processes once per timer tick.
const SHORTEST: Duration = Duration::from_secs(1);

/// The service. Clones share one memory.
#[derive(Clone)]
pub struct Sampler(Arc<Mutex<Memory>>);

struct Memory {
    /// Directory of the container directories.
    containers: PathBuf,
    hierarchies: Hierarchies,
    processors: u32,
    /// Maximum number of groups kept open.
    open_groups: usize,
    runs: HashMap<String, Run>,
    latest: HashMap<String, Sample>,
    /// Out-of-memory counters of stopped containers, with the time of the end of the run.
    ended: HashMap<String, (Option<Timestamp>, MemoryEvents)>,
}

/// A running container.
struct Run {
    process: ProcessId,
    group: Group,
    ticks: Ticks,
}

/// CPU time at the last two ticks, the later one first. The first reading of a run counts as a tick.
#[derive(Default)]
struct Ticks([Option<Tick>; 2]);

#[derive(Clone, Copy)]
struct Tick {
    at: Instant,
    cpu_usage_usec: u64,
}

impl Sampler {
    /// Reads this machine's cgroup mounts. Blocks for a moment. `containers` is the directory of the container
    /// directories.
    pub fn new(containers: PathBuf) -> Result<Self, GroupError> {
        // Without a limit, use a number that is large enough for anybody.
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
        let memory = Memory {
            containers,
            hierarchies: Hierarchies::mounted()?,
            processors: processors(),
            open_groups: usize::try_from(descriptors).unwrap_or(usize::MAX) / 2 / Group::FILES,
            runs: HashMap::new(),
            latest: HashMap::new(),
            ended: HashMap::new(),
        };
        Ok(Self(Arc::new(Mutex::new(memory))))
    }

    /// Current usage of a container. Zero for a stopped one, except for counters.
    pub async fn measure(&self, container: Arc<Container>) -> Sample {
        self.ask(Sample::default(), move |memory| memory.sample(&container))
            .await
    }

    /// Current usage of these containers, in the same order.
    pub async fn measure_all(&self, containers: Vec<Arc<Container>>) -> Vec<(Arc<Container>, Sample)> {
        let (nothing, list) = (vec![Sample::default(); containers.len()], containers.clone());
        let samples = self.ask(nothing, move |memory| list.iter().map(|c| memory.sample(c)).collect());
        let samples = samples.await;
        containers.into_iter().zip(samples).collect()
    }

    async fn ask<T: Send + 'static>(&self, fallback: T, question: impl FnOnce(&mut Memory) -> T + Send + 'static) -> T {
        let sampler = self.clone();
        let asking = tokio::task::spawn_blocking(move || question(&mut sampler.memory()));
        asking.await.unwrap_or_else(|error| {
            tracing::error!(%error, "containers could not be measured");
            fallback
        })
    }

    /// Measures and logs every ten seconds until stopped. If the log cannot be written, measuring continues.
    pub async fn run(self, store: Store, log: MetricsLog, stop: CancellationToken) {
        let log = Arc::new(Mutex::new(log));
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = interval.tick() => {}
            }
            let (sampler, log, snapshot) = (self.clone(), log.clone(), store.snapshot());
            let round = tokio::task::spawn_blocking(move || {
                let containers: Vec<_> = snapshot.containers().iter().cloned().collect();
                let samples = sampler.memory().tick(&containers);
                log.lock().unwrap_or_else(PoisonError::into_inner).write(&samples);
            });
            if let Err(error) = round.await {
                tracing::error!(%error, "a round of measuring containers failed");
            }
        }
    }

    /// Locked while cgroup files are read, which takes microseconds, and never while writing.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// One round over all containers: samples of the running ones.
    fn tick(&mut self, all: &[Arc<Container>]) -> Vec<(Arc<Container>, Sample)> {
        let ids: HashSet<&str> = all.iter().map(|c| c.id.as_str()).collect();
        self.runs.retain(|id, _| ids.contains(id.as_str()));
        self.latest.retain(|id, _| ids.contains(id.as_str()));
        self.ended.retain(|id, _| ids.contains(id.as_str()));
        all.iter()
            .filter_map(|container| Some((container.clone(), self.read(container, true)?)))
            .collect()
    }

    fn sample(&mut self, container: &Container) -> Sample {
        if let Some(sample) = self.read(container, false) {
            return sample;
        }
        let latest = self.latest.get(&container.id).cloned().map(Sample::at_rest);
        let mut sample = latest.unwrap_or_default();
        if container.status.state == ContainerState::Stopped {
            let events = self.events_of(container);
            let usage = &mut sample.usage;
            usage.memory_oom = usage.memory_oom.max(events.oom);
            usage.memory_oom_kill = usage.memory_oom_kill.max(events.oom_kill);
        }
        sample
    }

    /// The out-of-memory counters that the runtime recorded for the last run, read once per run.
    fn events_of(&mut self, container: &Container) -> MemoryEvents {
        let id = &container.id;
        if let Some((at, events)) = self.ended.get(id)
            && *at == container.status.stopped_at
        {
            return *events;
        }
        let path = ContainerDir::new(&self.containers, id).state();
        let state = RuntimeState::read(&path).unwrap_or_else(|error| {
            tracing::warn!(container.id = %id, %error, "cannot read the out-of-memory counters of a stopped container");
            None
        });
        // A monitor may still be writing it.
        let Some(state) = state.filter(|state| state.status == Status::Stopped) else {
            return MemoryEvents::default();
        };
        let events = state.memory_events.unwrap_or_default();
        self.ended.insert(id.clone(), (container.status.stopped_at, events));
        events
    }

    /// Measures a container. `None` if it does not run or has just stopped.
    fn read(&mut self, container: &Container, is_tick: bool) -> Option<Sample> {
        let id = container.id.as_str();
        let process = container
            .status
            .process
            .as_ref()
            .filter(|_| container.status.state == ContainerState::Running);
        let Some(process) = process else {
            self.runs.remove(id);
            return None;
        };
        let processors = self.processors;
        let sample = self.run(id, process).and_then(|run| run.read(processors, is_tick));
        match sample {
            Ok(sample) => {
                self.latest.insert(id.to_owned(), sample.clone());
                return Some(sample);
            }
            Err(error @ GroupError::Read { .. }) => {
                tracing::warn!(container.id = id, %error, "a container cannot be measured");
            }
            Err(error) => tracing::debug!(container.id = id, %error, "a container has ended"),
        }
        None
    }

    fn run(&mut self, id: &str, process: &ProcessId) -> Result<&mut Run, GroupError> {
        let keep_open = self.runs.len() < self.open_groups;
        match self.runs.entry(id.to_owned()) {
            Entry::Occupied(run) if run.get().process == *process => Ok(run.into_mut()),
            other => {
                let run = Run {
                    process: process.clone(),
                    group: self.hierarchies.find(process.pid, id, keep_open)?,
                    ticks: Ticks::default(),
                };
                Ok(other.insert_entry(run).into_mut())
            }
        }
    }
}

impl Run {
    fn read(&mut self, processors: u32, is_tick: bool) -> Result<Sample, GroupError> {
        let at = Instant::now();
        let mut usage = self.group.read()?;
        let tick = Tick {
            at,
            cpu_usage_usec: usage.cpu_usage_usec,
        };
        usage.cpu_percent = self.ticks.cores_used(tick, is_tick) / usage.cores(processors) * 100.0;
        Ok(Sample {
            taken_at: Some(Timestamp::now()),
            cgroup_path: self.group.path().to_string_lossy().into_owned(),
            usage,
        })
    }
}

impl Ticks {
    /// Number of CPUs in use since the latest tick that is old enough; 0 without one, and if the counter went
    /// backwards.
    fn cores_used(&mut self, now: Tick, is_tick: bool) -> f64 {
        let old_enough = |tick: &&Tick| now.at.duration_since(tick.at) >= SHORTEST;
        let base = self.0.iter().flatten().find(old_enough).copied();
        if is_tick || self.0[0].is_none() {
            self.0 = [Some(now), self.0[0]];
        }
        base.map_or(0.0, |base| {
            let used = now.cpu_usage_usec.saturating_sub(base.cpu_usage_usec);
            used as f64 / now.at.duration_since(base.at).as_micros() as f64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::container;
    use crate::observe::metrics::Usage;

    fn tick(start: Instant, ms: u64, cpu_usage_usec: u64) -> Tick {
        Tick {
            at: start + Duration::from_millis(ms),
            cpu_usage_usec,
        }
    }

    #[test]
    fn a_rate_is_taken_since_the_latest_tick_that_is_old_enough() {
        let (mut ticks, start) = (Ticks::default(), Instant::now());
        let mut rate = |ms, usec, is_tick| ticks.cores_used(tick(start, ms, usec), is_tick);
        assert_eq!(rate(0, 5_000_000, false), 0.0, "the first has nothing to compare with");
        assert_eq!(rate(999, 6_000_000, false), 0.0, "too soon");
        assert_eq!(rate(2_000, 6_000_000, false), 0.5);
        assert_eq!(rate(4_000, 13_000_000, true), 2.0);
        assert_eq!(rate(4_500, 14_000_000, false), 2.0, "since the one before");
        assert_eq!(rate(6_000, 14_000_000, false), 0.5, "since the tick at 4 s");
        assert_eq!(rate(14_000, 9_000_000, true), 0.0, "backwards");
        assert_eq!(rate(24_000, 19_000_000, true), 1.0);
    }

    fn sampler() -> Sampler {
        Sampler::new("/nonexistent".into()).unwrap()
    }

    #[tokio::test]
    async fn what_ran_out_of_memory_is_known_after_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let id = "01m85d6ag2dj";
        let recorded = |kills: u64| {
            let state = serde_json::json!({ "ociVersion": "1.3.0", "id": id, "status": "stopped",
                "memoryEvents": { "oom": kills + 1, "oomKill": kills } });
            std::fs::create_dir_all(dir.path().join(id)).unwrap();
            std::fs::write(ContainerDir::new(dir.path(), id).state(), state.to_string()).unwrap();
        };
        let sampler = Sampler::new(dir.path().to_owned()).unwrap();
        for kills in [1, 2] {
            recorded(kills);
            let mut row = container(id, "web").in_state(ContainerState::Stopped);
            row.status.stopped_at = Some(Timestamp::UNIX_EPOCH + Duration::from_secs(kills));
            let usage = sampler.measure(Arc::new(row)).await.usage;
            assert_eq!((usage.memory_oom, usage.memory_oom_kill), (kills + 1, kills));
        }
    }

    #[tokio::test]
    async fn a_container_that_was_never_measured_has_nothing() {
        let sampler = sampler();
        let row = Arc::new(container("01m85d6ag2dj", "web").in_state(ContainerState::Stopped));
        assert_eq!(sampler.measure(row.clone()).await, Sample::default());
        let mut running = container("01m85d6ag2dk", "other").in_state(ContainerState::Running);
        // A process in no cgroup of that name.
        running.status.process = ProcessId::of(std::process::id() as i32);
        let all = sampler.measure_all(vec![row.clone(), Arc::new(running)]).await;
        assert_eq!(
            all.iter().map(|(c, _)| c.name.as_str()).collect::<Vec<_>>(),
            ["web", "other"]
        );
        assert!(all.iter().all(|(_, sample)| *sample == Sample::default()));
        assert!(sampler.memory().tick(&[row]).is_empty());
    }

    #[tokio::test]
    async fn what_is_gone_is_forgotten_and_what_stopped_is_at_rest() {
        let sampler = sampler();
        let used = Sample {
            taken_at: Some(Timestamp::UNIX_EPOCH),
            usage: Usage {
                cpu_usage_usec: 7,
                cpu_percent: 50.0,
                ..Usage::default()
            },
            ..Sample::default()
        };
        for id in ["01m85d6ag2dj", "01m85d6ag2dk"] {
            sampler.memory().latest.insert(id.into(), used.clone());
        }
        let row = Arc::new(container("01m85d6ag2dj", "web").in_state(ContainerState::Stopped));
        sampler.memory().tick(std::slice::from_ref(&row));
        let known: Vec<_> = sampler.memory().latest.keys().cloned().collect();
        assert_eq!(known, ["01m85d6ag2dj"]);
        let shown = sampler.measure(row).await;
        assert_eq!((shown.usage.cpu_usage_usec, shown.usage.cpu_percent), (7, 0.0));
    }
}
