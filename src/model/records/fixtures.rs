//! Builders for tests of the whole crate.

use super::*;

pub(crate) fn container(id: &str, name: &str) -> Container {
    let spec = ContainerSpec {
        image: ContainerImage {
            repository: "library/busybox".into(),
            reference: "latest".into(),
            layers: Vec::new(),
        },
        process: ProcessSpec {
            args: vec!["sh".into()],
            cwd: "/".into(),
            ..ProcessSpec::default()
        },
        tty: false,
        options: ContainerOptions::default(),
        mounts: Vec::new(),
        forwards: Vec::new(),
        inherited: Inherited::default(),
    };
    Container::new(id.into(), name.into(), Role::Alone, spec)
}

/// A check of a TCP port that changes its status after one result.
pub(crate) fn tcp_check() -> HealthCheck {
    HealthCheck {
        probe: Probe::Tcp(80),
        interval: 1,
        timeout: 1,
        retries: 1,
        successes: 1,
        start_period: 0,
        start_interval: None,
    }
}

impl Container {
    pub(crate) fn forward(mut self, port: u16) -> Self {
        self.spec.forwards.push(Forward {
            host_address: None,
            host_port: port,
            container_port: port,
            protocol: Protocol::Tcp,
        });
        self
    }

    pub(crate) fn address(mut self, address: &str) -> Self {
        self.status.attachment = Some(Attachment {
            network: "raind0".into(),
            address: address.parse().unwrap(),
        });
        self
    }

    pub(crate) fn infra_of(mut self, pod: &str) -> Self {
        self.role = Role::Infra { pod: pod.into() };
        self
    }

    pub(crate) fn member_of(mut self, pod: &str) -> Self {
        self.role = Role::Member { pod: pod.into() };
        self
    }

    pub(crate) fn in_state(mut self, state: ContainerState) -> Self {
        self.status.state = state;
        self
    }
}

pub(crate) fn network(name: &str, subnet: &str) -> Network {
    let subnet: ipnet::Ipv4Net = subnet.parse().unwrap();
    let [a, b, c, _] = subnet.network().octets();
    Network {
        name: name.into(),
        subnet,
        gateway: [a, b, c, 254].into(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

pub(crate) fn pod(id: &str, name: &str, entries: &[&str]) -> Pod {
    let entry = |entry: &&str| PodContainer {
        name: (*entry).into(),
        request: ContainerRequest {
            image: "busybox".into(),
            ..ContainerRequest::default()
        },
        ..PodContainer::default()
    };
    Pod {
        id: id.into(),
        name: name.into(),
        namespace: "default".into(),
        uid: id.into(),
        owner: None,
        template: PodTemplate {
            id: format!("{id}-template"),
            labels: [("app".to_owned(), name.to_owned())].into(),
            annotations: Default::default(),
            spec: PodSpec {
                containers: entries.iter().map(entry).collect(),
                ..PodSpec::default()
            },
        },
        goal: PodGoal::Created,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        started_at: None,
        stopped_at: None,
        problem: None,
        successor: None,
    }
}

pub(crate) fn service(id: &str, name: &str, ports: &[u16]) -> Service {
    let port = |port: &u16| ServicePort {
        port: *port,
        target_port: *port,
        protocol: Protocol::Tcp,
        written_protocol: "tcp".into(),
    };
    Service {
        id: id.into(),
        name: name.into(),
        namespace: "default".into(),
        selector: [("app".to_owned(), name.to_owned())].into(),
        ports: ports.iter().map(port).collect(),
        affinity_seconds: None,
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

pub(crate) fn replica_set(id: &str, name: &str, replicas: u32) -> ReplicaSet {
    ReplicaSet {
        id: id.into(),
        name: name.into(),
        manifest_name: name.into(),
        namespace: "default".into(),
        replicas,
        selector: [("app".to_owned(), name.to_owned())].into(),
        template: pod(id, name, &["web"]).template,
        update: UpdateStrategy::Replace,
        rollout: Rollout::default(),
        removing: false,
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// A bottle with services of these names and no containers.
pub(crate) fn bottle(id: &str, name: &str, services: &[&str]) -> Bottle {
    let service = |name: &&str| ((*name).to_owned(), BottleService::default());
    Bottle {
        id: id.into(),
        name: name.into(),
        services: services.iter().map(service).collect(),
        start_order: services.iter().map(|name| (*name).to_owned()).collect(),
        containers: std::collections::BTreeMap::new(),
        volumes: Vec::new(),
        new_volumes: Vec::new(),
        network: None,
        operation: None,
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}
