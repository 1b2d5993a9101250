//! Counts the daemon's operations, their durations and failures, and the bytes received from registries.
//!
//! [`Activity::observe`] around the future of an operation counts it. A new kind of operation is a new [`Verb`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Figures>);

#[derive(Debug)]
struct Figures {
    registry: Registry,
    operations: Family<Ended, Counter>,
    durations: Family<Operation, Histogram>,
    pulled: Counter,
}

/// The kind of operation, with its name in the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the operation of its name")]
pub enum Verb {
    ContainerCreate,
    ContainerStart,
    ContainerStop,
    ContainerDelete,
    ContainerExec,
    ContainerCommit,
    ImagePull,
    ImagePush,
    ImageLoad,
    ImageBuild,
    ImageBuildStep,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    operation: &'static str,
    outcome: &'static str,
}

/// Upper bounds of the duration buckets, in seconds: from a stop to the pull of a large image.
const BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

impl Verb {
    const ALL: [Self; 11] = [
        Self::ContainerCreate,
        Self::ContainerStart,
        Self::ContainerStop,
        Self::ContainerDelete,
        Self::ContainerExec,
        Self::ContainerCommit,
        Self::ImagePull,
        Self::ImagePush,
        Self::ImageLoad,
        Self::ImageBuild,
        Self::ImageBuildStep,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::ContainerCreate => "container.create",
            Self::ContainerStart => "container.start",
            Self::ContainerStop => "container.stop",
            Self::ContainerDelete => "container.delete",
            Self::ContainerExec => "container.exec",
            Self::ContainerCommit => "container.commit",
            Self::ImagePull => "image.pull",
            Self::ImagePush => "image.push",
            Self::ImageLoad => "image.load",
            Self::ImageBuild => "image.build",
            Self::ImageBuildStep => "image.build.step",
        }
    }
}

impl Default for Activity {
    /// All counters at zero. Every operation exists from the start, so that its first failure is an increase.
    fn default() -> Self {
        let operations = Family::<Ended, Counter>::default();
        let durations =
            Family::<Operation, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS.iter().copied()));
        let pulled = Counter::default();
        for verb in Verb::ALL {
            let operation = verb.name();
            for outcome in ["success", "failure"] {
                drop(operations.get_or_create(&Ended { operation, outcome }));
            }
            drop(durations.get_or_create(&Operation { operation }));
        }
        let mut registry = Registry::with_prefix("condenser");
        registry.register(
            "operations",
            "Operations that have ended, by outcome",
            operations.clone(),
        );
        registry.register(
            "operation_duration_seconds",
            "Time from the request to the end of an operation",
            durations.clone(),
        );
        registry.register(
            "image_pull_bytes",
            "Bytes of layers received from registries",
            pulled.clone(),
        );
        Self(Arc::new(Figures {
            registry,
            operations,
            durations,
            pulled,
        }))
    }
}

impl Activity {
    /// Runs an operation and counts it. If it is dropped before its end, it is not counted.
    pub async fn observe<T, E>(&self, verb: Verb, operation: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let begun = Instant::now();
        let result = operation.await;
        self.ended(verb, begun.elapsed(), result.is_ok());
        result
    }

    /// Counts bytes received from a registry.
    pub fn pulled(&self, bytes: u64) {
        self.0.pulled.inc_by(bytes);
    }

    fn ended(&self, verb: Verb, duration: Duration, success: bool) {
        let operation = verb.name();
        let outcome = if success { "success" } else { "failure" };
        self.0.operations.get_or_create(&Ended { operation, outcome }).inc();
        self.0
            .durations
            .get_or_create(&Operation { operation })
            .observe(duration.as_secs_f64());
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.0.registry
    }
}
