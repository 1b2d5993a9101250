//! Handles connections before their first request: limits unfinished handshakes per address and audits refused
//! connections (`docs/spec/observability.md` O-18).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::audit::actor;
use super::identity::PeerIdentity;
use super::time::rfc3339;
use crate::observe::audit::{AuditLog, Outcome, Record, RequestInfo, ResultInfo, Severity, Target};

/// Maximum number of unfinished handshakes per address. Every container can reach the hook listener; none may exhaust
/// the daemon's descriptors.
const PER_ADDRESS: usize = 64;
/// Maximum number of records of refused connections in one [`WINDOW`]; further ones are only counted.
const RECORDS: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);

/// The unfinished handshakes of one server.
#[derive(Default)]
pub struct Handshakes(Mutex<HashMap<IpAddr, usize>>);

/// One unfinished handshake.
pub struct OpenHandshake<'a> {
    all: &'a Handshakes,
    address: IpAddr,
}

impl Handshakes {
    /// `None` if the address has too many already. Loopback has no limit.
    pub fn enter(&self, address: IpAddr) -> Option<OpenHandshake<'_>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= PER_ADDRESS && !address.is_loopback() {
            return None;
        }
        *count += 1;
        Some(OpenHandshake { all: self, address })
    }
}

impl Drop for OpenHandshake<'_> {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Records refused connections, with a rate limit so that clients cannot fill the disk.
pub struct Refusals {
    log: AuditLog,
    window: Mutex<Window>,
}

struct Window {
    begun: Instant,
    records: u32,
    left_out: u32,
}

impl Refusals {
    /// Writes records to `log`.
    pub fn new(log: AuditLog) -> Self {
        let window = Window {
            begun: Instant::now(),
            records: 0,
            left_out: 0,
        };
        Self {
            log,
            window: Mutex::new(window),
        }
    }

    /// Records that a connection of this peer failed before a request.
    pub fn record(&self, peer: SocketAddr, reason: &str) {
        tracing::debug!(%peer, reason, "connection refused");
        let admitted = self
            .window
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(Instant::now());
        if let Some(left_out) = admitted {
            self.log.record(self.refusal(peer, reason, left_out));
        }
    }

    fn refusal(&self, peer: SocketAddr, reason: &str, left_out: u32) -> Record {
        let mut extra = serde_json::Map::new();
        if left_out > 0 {
            extra.insert("left_out".into(), left_out.into());
        }
        Record {
            generated_ts: rfc3339(Some(Timestamp::now())),
            event_id: uuid::Uuid::new_v4().to_string(),
            correlation_id: self.log.next_correlation_id(),
            severity: Severity::Low.raised(),
            actor: actor(&PeerIdentity::new(peer, None)),
            action: "tls.handshake".into(),
            target: Target::default(),
            request: RequestInfo::default(),
            result: ResultInfo {
                status: Outcome::Deny,
                code: 0,
                reason: reason.to_owned(),
                bytes: 0,
                latency_ms: 0,
            },
            runtime: self.log.runtime(),
            extra,
        }
    }
}

impl Window {
    /// If another record may be written at `now`: the number of records skipped before it.
    fn admit(&mut self, now: Instant) -> Option<u32> {
        if now.duration_since(self.begun) >= WINDOW {
            self.begun = now;
            self.records = 0;
        }
        if self.records >= RECORDS {
            self.left_out += 1;
            return None;
        }
        self.records += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_leave_so_many_handshakes_unfinished() {
        let all = Handshakes::default();
        let container = IpAddr::from([10, 166, 0, 2]);
        let mut places: Vec<_> = (0..PER_ADDRESS).map(|_| all.enter(container).unwrap()).collect();
        assert!(all.enter(container).is_none());
        assert!(
            all.enter(IpAddr::from([10, 166, 0, 3])).is_some(),
            "another one is not affected"
        );
        places.pop();
        places.push(all.enter(container).unwrap());
        let own: Vec<_> = (0..=PER_ADDRESS)
            .map(|_| all.enter(IpAddr::from([127, 0, 0, 1])).unwrap())
            .collect();
        drop((places, own));
        assert!(
            all.0.lock().unwrap().is_empty(),
            "nothing is remembered of those that are gone"
        );
    }

    #[test]
    fn a_flood_is_counted_and_not_written() {
        let begun = Instant::now();
        let mut window = Window {
            begun,
            records: 0,
            left_out: 0,
        };
        let admitted = (0..1000).filter(|_| window.admit(begun).is_some()).count();
        assert_eq!(admitted, RECORDS as usize);
        assert_eq!(window.admit(begun + WINDOW), Some(1000 - RECORDS));
        assert_eq!(window.admit(begun + WINDOW), Some(0));
    }
}
