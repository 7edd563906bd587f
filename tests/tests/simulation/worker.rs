//! A member's worker without sockets: the engine's [`PacketLoop`], as `node/src/datapath/worker.rs` drives it, with a ring in
//! memory as its source and the simulated network as its sink.
//!
//! The loop, the engine, the hold buffer and the lease are the real ones. Not simulated: segmentation, answers to rejected
//! packets, re-injection by a kernel. Faults are injected at the loop's ends: hints are lost, copied and delayed in the sink,
//! and a broken member ([`Break`]) misjudges in [`BrokenJudge`] or wakes late in the source.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use palisade_engine::hold::{HoldBudget, HoldCounts, HoldLimits};
use palisade_engine::packet_loop::{
    Environment, Judge, PacketLoop, PacketMeta, PacketOutcome, PacketPort, PacketSink, PacketSource, QueueRoom,
    ReceivedPacket, WokenKeys,
};
use palisade_engine::parse::{Checksum, Packet};
use palisade_engine::{
    Context, Engine, Establish, Event, Generation, Hint, HoldKey, Ip, LeaseState, LoggedDecision, Proposal, Reason,
    Routes, Time, Traffic, Tuple, Verdict, Wake, WorkerSet, ZoneId,
};
use palisade_node::lease::Lease;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::host::Host;
use crate::network::Nanos;
use crate::traffic::Segment;

/// The bounds of the hold buffer, smaller than the daemon's.
pub(crate) const LIMITS: HoldLimits = HoldLimits {
    matched: HoldBudget { packets: 1024, bytes: 1 << 20 },
    unmatched: HoldBudget { packets: 64, bytes: 1 << 16 },
    max_time: Duration::from_millis(250),
};
/// Packets that wait while nobody receives; the ring drops what comes beyond.
const RING_SLOTS: usize = 512;
/// As the daemon's worker.
const MAX_SLEEP: Duration = Duration::from_millis(500);

/// What a broken member does wrong: each is what one of the invariants guards against.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Break {
    /// What has to wait is dropped.
    NoHolds,
    /// What awaits its commit is forwarded at once.
    ReleaseBeforeCommit,
    /// It considers its lease valid for ever.
    AlwaysCurrent,
    /// What is out of the window passes.
    NoWindows,
    /// Every half-open session is proposed.
    LogHalfOpen,
    /// What is held is released when all members have applied it.
    AwaitAll,
}

/// A packet, as one member dealt with it.
#[derive(Clone, Debug)]
pub(crate) struct ObservedPacket {
    pub(crate) at: Nanos,
    pub(crate) member: usize,
    pub(crate) segment: Segment,
    pub(crate) outcome: PacketOutcome,
    pub(crate) generation: Generation,
}

/// What is put into the member's ring, and what comes out of it.
#[derive(Default)]
pub(crate) struct Port {
    ring: Mutex<VecDeque<(Time, Segment)>>,
    keys: Mutex<Vec<HoldKey>>,
    notify: Notify,
    pub(crate) observed: Mutex<Vec<ObservedPacket>>,
}

impl Port {
    pub(crate) fn receive(&self, at: Time, segment: Segment) {
        let mut ring = self.ring.lock();
        if ring.len() < RING_SLOTS {
            ring.push_back((at, segment));
            self.notify.notify_one();
        }
    }
}

/// Wakes the worker.
#[derive(Clone)]
pub(crate) struct Waker(pub(crate) Arc<Port>);

impl Wake for Waker {
    fn wake(&mut self, workers: WorkerSet, key: HoldKey) {
        if workers.contains(0) {
            self.0.keys.lock().push(key);
            self.0.notify.notify_one();
        }
    }
}

/// How badly hints are treated on their way out, each of a thousand.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct HintFaults {
    pub(crate) lost: usize,
    pub(crate) copied: usize,
    /// Sent after the next one.
    pub(crate) late: usize,
}

pub(crate) struct Worker {
    pub(crate) host: Arc<Host>,
    pub(crate) port: Arc<Port>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) hints: mpsc::Sender<Hint>,
    pub(crate) proposals: mpsc::Sender<Proposal>,
    pub(crate) faults: Arc<Mutex<HintFaults>>,
    pub(crate) broken: Arc<Mutex<Option<Break>>>,
    /// Has every member applied as much as this one?
    pub(crate) all_applied: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Worker {
    pub(crate) async fn run(self) {
        let Worker { host, port, engine, lease, hints, proposals, faults, broken, all_applied } = self;
        let judge = Arc::new(BrokenJudge { engine, broken: broken.clone() });
        let environment = SimulatedEnvironment { lease, zones: [ZoneId::UNKNOWN; 2] };
        let sink =
            SimulatedSink { host, port: port.clone(), judge: judge.clone(), hints, proposals, faults, late: None };
        let packet_port = |zone: &str| PacketPort { zone_name: zone.to_owned(), antispoof: true };
        let ports = ["outside", "inside"].map(packet_port).into();
        let mut packet_loop = PacketLoop::new(0, judge, environment, sink, ports, LIMITS);
        let mut source = RingSource { port, broken, all_applied, withheld: Vec::new() };
        loop {
            let now = source.now();
            let wait = packet_loop.deadline().map_or(MAX_SLEEP, |end| end.since(now).min(MAX_SLEEP));
            let wait = if source.withheld.is_empty() { wait } else { Duration::from_millis(1) };
            tokio::select! {
                biased;
                () = source.port.notify.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            packet_loop.turn(&mut source);
        }
    }
}

/// The engine, unless this member is broken.
struct BrokenJudge {
    engine: Arc<Engine>,
    broken: Arc<Mutex<Option<Break>>>,
}

impl Judge for BrokenJudge {
    fn judge(&self, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict {
        let broken = *self.broken.lock();
        if broken == Some(Break::AlwaysCurrent) {
            context.lease = LeaseState::Valid;
        }
        let verdict = self.engine.process(packet, context, events);
        let proposes = events.iter().any(|event| matches!(event, Event::Propose(Proposal::Establish(_))));
        match (broken, verdict) {
            (Some(Break::ReleaseBeforeCommit), Verdict::Hold(..)) if proposes => Verdict::Forward,
            (Some(Break::NoHolds), Verdict::Hold(..)) => Verdict::Drop(Reason::HoldExpired),
            (Some(Break::NoWindows), Verdict::Drop(Reason::TcpWindow | Reason::TcpRst)) => Verdict::Forward,
            (Some(Break::LogHalfOpen), _) => {
                let opened: Vec<Event> = events.iter().filter_map(establish_half_open).collect();
                events.extend(opened);
                verdict
            }
            _ => verdict,
        }
    }

    fn judge_expired(
        &self,
        packet: &Packet,
        since: Time,
        context: &mut Context<'_>,
        events: &mut Vec<Event>,
    ) -> Option<Verdict> {
        self.engine.process_expired(packet, since, context, events)
    }

    fn generation(&self) -> Generation {
        self.engine.generation()
    }

    fn zone(&self, name: &str) -> ZoneId {
        self.engine.zone(name)
    }

    fn zones_version(&self) -> u64 {
        self.engine.zones_version()
    }
}

/// The proposal of a member broken by [`Break::LogHalfOpen`].
fn establish_half_open(event: &Event) -> Option<Event> {
    let Event::Hint(Hint::HalfOpen(open)) = event else { return None };
    Some(Event::Propose(Proposal::Establish(Box::new(Establish::from(&**open)))))
}

/// The lease, and routes with 10.0.1.0/24 outside and 10.0.2.0/24 inside.
struct SimulatedEnvironment {
    lease: Arc<Lease>,
    zones: [ZoneId; 2],
}

impl Routes for SimulatedEnvironment {
    fn zone(&mut self, destination: Ip) -> Option<ZoneId> {
        match destination {
            Ip::V4([10, 0, 1, _]) => Some(self.zones[0]),
            Ip::V4([10, 0, 2, _]) => Some(self.zones[1]),
            _ => None,
        }
    }
}

impl Environment for SimulatedEnvironment {
    fn lease_state(&self, now: Time) -> LeaseState {
        self.lease.state_at(now)
    }

    fn routes(&mut self, _: &Packet) -> &mut dyn Routes {
        self
    }

    fn router_address(&self, _: usize, _: &Tuple) -> Option<Ip> {
        None
    }

    fn zones_outdated(&mut self) -> bool {
        false
    }

    fn set_zones(&mut self, zones: &[ZoneId]) {
        self.zones.copy_from_slice(zones);
    }
}

impl PacketMeta for Segment {
    fn checksum(&self) -> Checksum {
        Checksum::Complete
    }

    fn segments(&self, _: u32) -> u64 {
        1
    }
}

/// The member's ring and mailbox.
struct RingSource {
    port: Arc<Port>,
    broken: Arc<Mutex<Option<Break>>>,
    all_applied: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Keys that a member broken by [`Break::AwaitAll`] does not release yet.
    withheld: Vec<HoldKey>,
}

impl PacketSource<Segment> for RingSource {
    fn now(&self) -> Time {
        palisade_node::clock::now()
    }

    fn take_woken(&mut self, keys: &mut Vec<HoldKey>) -> WokenKeys {
        *keys = std::mem::take(&mut *self.port.keys.lock());
        if *self.broken.lock() == Some(Break::AwaitAll) {
            keys.splice(0..0, std::mem::take(&mut self.withheld));
            if !(self.all_applied)() {
                self.withheld = std::mem::take(keys);
            }
        }
        if keys.is_empty() { WokenKeys::None } else { WokenKeys::Listed }
    }

    fn receive(&mut self, mut process: impl FnMut(ReceivedPacket<'_, Segment>)) -> u64 {
        let packets = std::mem::take(&mut *self.port.ring.lock());
        let received = packets.len() as u64;
        for (captured, segment) in packets {
            let (port, bytes) = (segment.from, segment.bytes());
            process(ReceivedPacket { now: self.now(), captured, port, meta: segment, bytes: &bytes });
        }
        received
    }
}

/// Reports what became of each packet, and sends on hints and proposals.
struct SimulatedSink {
    host: Arc<Host>,
    port: Arc<Port>,
    judge: Arc<BrokenJudge>,
    hints: mpsc::Sender<Hint>,
    proposals: mpsc::Sender<Proposal>,
    faults: Arc<Mutex<HintFaults>>,
    /// A hint that is sent after the next one.
    late: Option<Hint>,
}

impl PacketSink<Segment> for SimulatedSink {
    fn forward(&mut self, _: &Packet, _: &Segment, _: &[u8], _: Option<ZoneId>) -> Result<(), Reason> {
        Ok(())
    }

    fn reject(&mut self, _: Time, _: &Packet, _: &[u8], _: Option<Ip>) {}

    fn hint_room(&self) -> QueueRoom {
        QueueRoom { free: self.hints.capacity(), capacity: self.hints.max_capacity() }
    }

    fn send_hint(&mut self, hint: Hint) -> bool {
        let faults = *self.faults.lock();
        let happens = |of_thousand: usize| of_thousand > 0 && self.host.below(1000) < of_thousand;
        if happens(faults.lost) {
            return true;
        }
        let late = self.late.take();
        if late.is_none() && happens(faults.late) {
            self.late = Some(hint);
            return true;
        }
        let copies = if happens(faults.copied) { 2 } else { 1 };
        let mut sent = true;
        for hint in std::iter::repeat_n(hint, copies).chain(late) {
            sent &= self.hints.try_send(hint).is_ok();
        }
        sent
    }

    fn send_proposal(&mut self, proposal: Proposal) -> bool {
        self.proposals.try_send(proposal).is_ok()
    }

    fn log(&mut self, _: Time, _: &LoggedDecision) {}

    fn wake(&mut self, workers: WorkerSet, key: HoldKey) {
        Waker(self.port.clone()).wake(workers, key);
    }

    fn record(&mut self, outcome: PacketOutcome, segment: &Segment, _: Traffic) {
        self.port.observed.lock().push(ObservedPacket {
            at: self.host.elapsed(),
            member: self.host.index,
            segment: segment.clone(),
            outcome,
            generation: self.judge.generation(),
        });
    }

    fn record_hold_time(&mut self, _: Duration) {}

    fn record_lost_hint(&mut self) {}

    fn record_lost_proposal(&mut self) {}

    fn record_held_now(&mut self, _: HoldCounts) {}
}
