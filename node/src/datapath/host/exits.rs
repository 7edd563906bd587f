//! The exits by which the kernel sent packets of flows, where these were not the exits of the verdict.
//!
//! Such packets were dropped by the gate's forward chain, which logs some of them here (`NFLOG`). The flow's next packet is judged
//! by the zone that the kernel sent this one to: it passes if the policy allows that zone, and stops if not.
//!
//! All of it is bounded: the gate logs a limited number of packets a second, the socket's buffer is small, and the
//! table forgets the oldest flows. A flow that is forgotten loses one more packet.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use palisade_engine::Time;
use palisade_engine::parse::{self, Flow};

use super::nflog::{Logged, Nflog, Read};
use crate::clock;
use crate::datapath::metrics::DatapathMetrics;
use crate::datapath::worker::Shared;

/// Most flows that are known.
const MAX_FLOWS: usize = 2048;
/// How long one is known after its last packet that left elsewhere. A session remembers its zone itself, and a flow that is denied
/// because of its exit tries again after this time.
const TTL: Duration = Duration::from_secs(60);
/// The same after a change of the kernel's routes, by which the exit may be another one.
const TTL_AFTER_CHANGE: Duration = Duration::from_secs(5);
/// How often the table is searched for exits that are too old.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest time between two changes of the table, which copy it.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Where a flow's last packet would have left.
#[derive(Clone, Copy, Debug)]
struct Exit {
    interface: u32,
    seen: Time,
    /// The number of the kernel's routes then.
    topology: u64,
}

impl Exit {
    fn is_known(&self, now: Time, topology: u64) -> bool {
        let ttl = if self.topology == topology { TTL } else { TTL_AFTER_CHANGE };
        now.since(self.seen) < ttl
    }
}

/// The flows whose exits are known. The flow label is no part of the key: the sender changes it when it sends a segment
/// again.
#[derive(Debug, Default)]
pub(crate) struct ObservedExits {
    count: AtomicUsize,
    flows: ArcSwap<HashMap<Flow, Exit>>,
}

impl ObservedExits {
    /// Whether none is known: so it is nearly always.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// The interface by which the flow leaves.
    pub(crate) fn get(&self, flow: &Flow) -> Option<u32> {
        self.flows.load().get(&key(*flow)).map(|exit| exit.interface)
    }

    /// Forgets exits that are too old, so that the workers need not look at their age.
    fn expire(&self, now: Time, topology: u64) {
        if !self.flows.load().values().all(|exit| exit.is_known(now, topology)) {
            self.learn(now, topology, &[]);
        }
    }

    /// Learns the exits of flows. There is one writer.
    fn learn(&self, now: Time, topology: u64, learned: &[(Flow, u32)]) {
        let mut flows = HashMap::clone(&self.flows.load());
        flows.retain(|_, exit| exit.is_known(now, topology));
        for (flow, interface) in learned {
            flows.insert(key(*flow), Exit { interface: *interface, seen: now, topology });
        }
        if let Some(excess) = flows.len().checked_sub(MAX_FLOWS).filter(|excess| *excess > 0) {
            let mut ages: Vec<Time> = flows.values().map(|exit| exit.seen).collect();
            ages.sort_unstable();
            // Those of the same age go together; what was learned now stays, for there is never more of it.
            let limit = ages.get(excess - 1).copied().unwrap_or(now);
            flows.retain(|_, exit| exit.seen > limit || exit.seen == now);
        }
        self.count.store(flows.len(), Ordering::Relaxed);
        self.flows.store(Arc::new(flows));
    }
}

fn key(mut flow: Flow) -> Flow {
    flow.class.flow_label = 0;
    flow
}

/// The thread that learns exits.
pub(crate) struct ExitObserver {
    pub(crate) log: Nflog,
    pub(crate) topology: Arc<super::routes::Topology>,
    pub(crate) metrics: Arc<DatapathMetrics>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) stop_fd: Arc<EventFd>,
}

impl ExitObserver {
    /// Works until the datapath stops.
    pub(crate) fn run(mut self) {
        let mut learned = Vec::with_capacity(Nflog::MAX_PACKETS);
        while !self.shared.stop.load(Ordering::Relaxed) {
            // Before what was logged is read: if the routes change meanwhile, it may be older than they.
            let topology = self.topology.generation.load(Ordering::Acquire);
            self.read(&mut learned);
            if !learned.is_empty() {
                self.topology.exits.learn(clock::now(), topology, &learned);
                learned.clear();
                std::thread::sleep(MIN_INTERVAL);
                continue;
            }
            let mut fds = [
                PollFd::new(self.log.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.stop_fd.as_fd(), PollFlags::POLLIN),
            ];
            let exits = &self.topology.exits;
            let interval = if exits.is_empty() { TTL } else { EXPIRY_INTERVAL };
            let _ = poll(&mut fds, PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX));
            exits.expire(clock::now(), topology);
        }
    }

    /// Reads what was logged since the last time, up to a bound.
    fn read(&mut self, learned: &mut Vec<(Flow, u32)>) {
        let watcher = &self.metrics.watcher;
        let read = self.log.read(|Logged { outgoing, packet }| {
            watcher.egress_mismatches.inc();
            // A packet that cannot be read teaches nothing.
            learned.extend(parse::flow(packet).map(|flow| (flow, outgoing)));
        });
        match read {
            Ok(Read { lost }) => watcher.egress_mismatches_lost.add(lost),
            Err(error) => {
                tracing::warn!(%error, "the gate's log of packets cannot be read");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use palisade_engine::parse::RoutingClass;
    use palisade_engine::{Ip, Protocol, Tuple};

    use super::*;

    fn flow(n: u16, label: u32) -> Flow {
        let (src, dst) = (Ip::V4([10, 0, 1, 2]), Ip::V4([10, 0, 2, 2]));
        let tuple = Tuple { src, dst, src_port: n, dst_port: 443, protocol: Protocol::TCP };
        Flow { tuple, class: RoutingClass { dscp: 0, flow_label: label } }
    }

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    #[test]
    fn observed_exit_is_that_of_the_last_packet_whatever_its_flow_label() {
        let exits = ObservedExits::default();
        assert!(exits.is_empty() && exits.get(&flow(1, 0)).is_none());
        exits.learn(at(1), 1, &[(flow(1, 5), 3), (flow(2, 0), 4)]);
        assert!(!exits.is_empty());
        assert_eq!((exits.get(&flow(1, 9)), exits.get(&flow(2, 0)), exits.get(&flow(3, 0))), (Some(3), Some(4), None));
        exits.learn(at(2), 1, &[(flow(1, 7), 4)]);
        assert_eq!(exits.get(&flow(1, 5)), Some(4));
        let mut marked = flow(1, 5);
        marked.class.dscp = 0x10;
        assert_eq!(exits.get(&marked), None, "another class may leave elsewhere");
    }

    #[test]
    fn observed_exits_are_bounded_and_forgotten() {
        let exits = ObservedExits::default();
        let all: Vec<(Flow, u32)> = (0..u16::try_from(MAX_FLOWS).unwrap()).map(|n| (flow(n, 0), 3)).collect();
        for (n, some) in all.chunks(64).enumerate() {
            exits.learn(at(n as u64), 1, some);
        }
        assert_eq!(exits.get(&flow(0, 0)), Some(3));
        exits.learn(at(50), 1, &[(flow(60_000, 0), 4)]);
        assert!(exits.flows.load().len() <= MAX_FLOWS);
        assert_eq!((exits.get(&flow(0, 0)), exits.get(&flow(60_000, 0))), (None, Some(4)), "the oldest goes");
        exits.expire(at(50) + TTL, 1);
        assert!(exits.is_empty());
    }

    #[test]
    fn observed_exit_is_doubted_after_a_change_of_routes() {
        let exits = ObservedExits::default();
        exits.learn(at(1), 1, &[(flow(1, 0), 3)]);
        exits.expire(at(1) + TTL_AFTER_CHANGE, 1);
        assert_eq!(exits.get(&flow(1, 0)), Some(3));
        exits.expire(at(2), 2);
        assert_eq!(exits.get(&flow(1, 0)), Some(3), "routes change all the time");
        exits.expire(at(1) + TTL_AFTER_CHANGE, 2);
        assert!(exits.is_empty());
    }
}
