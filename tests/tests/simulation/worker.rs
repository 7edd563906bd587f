//! A member's datapath without its sockets: receive, judge, hold, release, expire, as `node/src/datapath/worker.rs` does
//! it, in the same order and with the real engine, hold buffer and lease. What is not here is what a simulation has no
//! use for: rings, segmentation, rejects' answers, re-injection by a kernel.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use palisade_engine::hold::{HoldBudget, HoldBuffer, HoldLimits};
use palisade_engine::parse::{self, Checksum};
use palisade_engine::{
    Context, Engine, Establish, Event, Generation, Hint, HoldKey, Ip, LeaseState, Proposal, Reason, Routes, Time,
    Verdict, Wake, WorkerSet, ZoneId,
};
use palisade_node::lease::Lease;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::host::Machine;
use crate::network::Nanos;
use crate::traffic::Segment;

/// The bounds of the hold buffer, smaller than the real ones.
pub(crate) const LIMITS: HoldLimits = HoldLimits {
    matched: HoldBudget { packets: 1024, bytes: 1 << 20 },
    unmatched: HoldBudget { packets: 64, bytes: 1 << 16 },
    max_time: Duration::from_millis(250),
};
/// Packets that wait while nobody receives; the ring drops what comes beyond.
const RING: usize = 512;
/// As the real worker.
const IDLE: Duration = Duration::from_millis(500);

/// What a broken member does wrong: each is what one of the invariants guards against.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Break {
    /// What has to wait is dropped.
    NoHolds,
    /// What awaits its commit is forwarded at once.
    ReleaseBeforeCommit,
    /// It holds itself for current.
    AlwaysCurrent,
    /// What is out of the window passes.
    NoWindows,
    /// Every half-open session is proposed.
    LogHalfOpen,
    /// What is held is released when all members have applied it.
    AwaitAll,
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    Forwarded,
    Held,
    Dropped(Reason),
}

/// A packet, as one member dealt with it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Nanos,
    pub(crate) member: usize,
    pub(crate) segment: Segment,
    pub(crate) fate: Fate,
    pub(crate) generation: Generation,
}

/// What is put into the member's ring, and what comes out of it.
#[derive(Default)]
pub(crate) struct Port {
    ring: Mutex<VecDeque<(Time, Segment)>>,
    keys: Mutex<Vec<HoldKey>>,
    bell: Notify,
    pub(crate) seen: Mutex<Vec<Seen>>,
}

impl Port {
    pub(crate) fn receive(&self, at: Time, segment: Segment) {
        let mut ring = self.ring.lock();
        if ring.len() < RING {
            ring.push_back((at, segment));
            self.bell.notify_one();
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
            self.0.bell.notify_one();
        }
    }
}

/// 10.0.1.0/24 is outside, 10.0.2.0/24 inside.
struct Net {
    zones: [ZoneId; 2],
}

impl Net {
    fn of(&self, address: Ip) -> Option<ZoneId> {
        match address {
            Ip::V4([10, 0, 1, _]) => Some(self.zones[0]),
            Ip::V4([10, 0, 2, _]) => Some(self.zones[1]),
            _ => None,
        }
    }
}

impl Routes for Net {
    fn zone(&mut self, destination: Ip) -> Option<ZoneId> {
        self.of(destination)
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

struct Held {
    since: Time,
    segment: Segment,
    packet: parse::Packet,
}

pub(crate) struct Worker {
    pub(crate) machine: Arc<Machine>,
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
        let mut desk =
            Desk { worker: self, hold: HoldBuffer::new(LIMITS), events: Vec::new(), late: None, unapplied: Vec::new() };
        loop {
            let now = palisade_node::clock::now();
            let wait = desk.hold.deadline().map_or(IDLE, |end| end.since(now).min(IDLE));
            let wait = if desk.unapplied.is_empty() { wait } else { Duration::from_millis(1) };
            tokio::select! {
                biased;
                () = desk.worker.port.bell.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            desk.round();
        }
    }
}

struct Desk {
    worker: Worker,
    hold: HoldBuffer<Held>,
    events: Vec<Event>,
    late: Option<Hint>,
    /// Keys that a member broken by [`Break::AwaitAll`] does not release yet.
    unapplied: Vec<HoldKey>,
}

impl Desk {
    fn round(&mut self) {
        let mut keys = std::mem::take(&mut *self.worker.port.keys.lock());
        if *self.worker.broken.lock() == Some(Break::AwaitAll) {
            keys.splice(0..0, std::mem::take(&mut self.unapplied));
            if !(self.worker.all_applied)() {
                self.unapplied = std::mem::take(&mut keys);
            }
        }
        let mut released = Vec::new();
        for key in keys {
            self.hold.release(key, &mut |since, held| released.push((since, held)));
        }
        for (since, held) in released {
            self.again(since, held);
        }
        let packets = std::mem::take(&mut *self.worker.port.ring.lock());
        for (at, segment) in packets {
            self.frame(at, segment);
        }
        let mut expired = Vec::new();
        self.hold.expire(palisade_node::clock::now(), &mut |held| expired.push(held.segment));
        for segment in expired {
            self.done(segment, Fate::Dropped(Reason::HoldExpired));
        }
    }

    fn frame(&mut self, at: Time, segment: Segment) {
        let now = palisade_node::clock::now();
        if now.since(at) > LIMITS.max_time {
            return self.done(segment, Fate::Dropped(Reason::Stale));
        }
        match parse::parse(&segment.bytes(), Checksum::Complete) {
            Ok(packet) => self.act(Held { since: now, segment, packet }, now),
            Err(reason) => self.done(segment, Fate::Dropped(reason)),
        }
    }

    fn again(&mut self, since: Time, held: Held) {
        let now = palisade_node::clock::now();
        if now.since(since) > LIMITS.max_time {
            return self.done(held.segment, Fate::Dropped(Reason::HoldExpired));
        }
        self.act(held, now);
    }

    fn act(&mut self, held: Held, now: Time) {
        match self.judge(&held.packet, now) {
            Verdict::Forward => self.done(held.segment, Fate::Forwarded),
            Verdict::Drop(reason) | Verdict::Reject(reason) => self.done(held.segment, Fate::Dropped(reason)),
            Verdict::Hold(..) if *self.worker.broken.lock() == Some(Break::NoHolds) => {
                self.done(held.segment, Fate::Dropped(Reason::HoldExpired));
            }
            Verdict::Hold(key, class) => {
                self.done(held.segment.clone(), Fate::Held);
                let bytes = held.packet.length as usize;
                if let Err((held, reason)) = self.hold.hold(held.since, key, class, bytes, held) {
                    self.done(held.segment, Fate::Dropped(reason));
                }
            }
        }
    }

    fn judge(&mut self, packet: &parse::Packet, now: Time) -> Verdict {
        let Worker { engine, lease, .. } = &self.worker;
        let broken = *self.worker.broken.lock();
        let mut net = Net { zones: [engine.zone("outside"), engine.zone("inside")] };
        let lease = if broken == Some(Break::AlwaysCurrent) { LeaseState::Valid } else { lease.state_at(now) };
        let mut context = Context {
            now,
            worker: 0,
            ingress: net.of(packet.tuple.src).unwrap_or(ZoneId::UNKNOWN),
            antispoof: true,
            lease,
            routes: &mut net,
        };
        let mut verdict = engine.process(packet, &mut context, &mut self.events);
        for event in std::mem::take(&mut self.events) {
            match event {
                Event::Hint(hint) => self.hint(hint),
                Event::Wake { workers, key } => Waker(self.worker.port.clone()).wake(workers, key),
                Event::Propose(proposal) => {
                    if broken == Some(Break::ReleaseBeforeCommit)
                        && let (Proposal::Establish(_), Verdict::Hold(..)) = (&proposal, verdict)
                    {
                        verdict = Verdict::Forward;
                    }
                    drop(self.worker.proposals.try_send(proposal));
                }
            }
        }
        match (broken, verdict) {
            (Some(Break::NoWindows), Verdict::Drop(Reason::TcpWindow | Reason::TcpRst)) => Verdict::Forward,
            _ => verdict,
        }
    }

    fn hint(&mut self, hint: Hint) {
        if let (Some(Break::LogHalfOpen), Hint::HalfOpen(open)) = (*self.worker.broken.lock(), &hint) {
            drop(self.worker.proposals.try_send(Proposal::Establish(Box::new(Establish::from(&**open)))));
        }
        let faults = *self.worker.faults.lock();
        let happens = |of: usize| of > 0 && self.worker.machine.below(1000) < of;
        if happens(faults.lost) {
            return;
        }
        let late = self.late.take();
        if late.is_none() && happens(faults.late) {
            self.late = Some(hint);
            return;
        }
        let copies = if happens(faults.copied) { 2 } else { 1 };
        for hint in std::iter::repeat_n(hint, copies).chain(late) {
            // A full queue loses it, as the real worker's does.
            drop(self.worker.hints.try_send(hint));
        }
    }

    fn done(&self, segment: Segment, fate: Fate) {
        let Worker { machine, port, engine, .. } = &self.worker;
        let generation = engine.generation();
        port.seen.lock().push(Seen { at: machine.elapsed(), member: machine.index, segment, fate, generation });
    }
}
