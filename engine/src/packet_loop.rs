//! The packet loop of one worker: one implementation for the daemon's threads and for the simulation.
//!
//! ```text
//!  PacketSource                     PacketLoop                               PacketSink
//!   woken keys ──> 1 rejudge ─┐
//!                             │                    ┌─ Forward ──────────────> forward
//!   packets ─────> 2 receive ─┴─> Judge ─ verdict ─┼─ Reject ───────────────> reject
//!                                   │              ├─ Drop ─────────────────> record
//!                                   │              └─ Hold ──> hold buffer ─> record
//!                                   └─ events ─────────────────────────────> send_hint, send_proposal, wake
//!   the time ────> 3 expire ──> hold buffer: what waited for too long ──────> reject, record
//! ```
//!
//! [`PacketLoop::turn`] does the three steps once. The loop has no clock and no I/O: [`PacketSource`] hands in packets, woken
//! keys and the time, [`Environment`] hands in the lease and the routes, [`PacketSink`] takes what leaves. It allocates only
//! the copy of a packet that has to wait.
//!
//! The time is read after a packet was received, and again for each woken packet. So a worker that was stopped in the middle
//! of a batch judges the next packet by the present time, and finds it stale.

use std::sync::Arc;
use std::time::Duration;

use crate::addr::Ip;
use crate::engine::Engine;
use crate::event::{Event, Hint, LoggedDecision, Proposal};
use crate::hold::{HoldBuffer, HoldCounts, HoldLimits};
use crate::id::{Generation, ZoneId};
use crate::parse::rejection::Unreachable;
use crate::parse::{self, Checksum, Packet};
use crate::time::Time;
use crate::traffic::Traffic;
use crate::tuple::Tuple;
use crate::types::{Context, LeaseState, Routes};
use crate::verdict::{HoldClass, HoldKey, Reason, Verdict};
use crate::worker_set::WorkerSet;

/// What judges packets: the engine, or a stand-in for it in a test.
pub trait Judge: Send + Sync + 'static {
    /// See [`Engine::process`].
    fn judge(&self, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict;
    /// See [`Engine::process_expired`].
    fn judge_expired(
        &self,
        packet: &Packet,
        since: Time,
        context: &mut Context<'_>,
        events: &mut Vec<Event>,
    ) -> Option<Verdict> {
        let _ = (packet, since, context, events);
        None
    }
    /// See [`Engine::generation`].
    fn generation(&self) -> Generation;
    /// See [`Engine::zone`].
    fn zone(&self, name: &str) -> ZoneId;
    /// See [`Engine::zones_version`].
    fn zones_version(&self) -> u64 {
        0
    }
}

impl Judge for Engine {
    #[inline]
    fn judge(&self, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict {
        self.process(packet, context, events)
    }

    fn judge_expired(
        &self,
        packet: &Packet,
        since: Time,
        context: &mut Context<'_>,
        events: &mut Vec<Event>,
    ) -> Option<Verdict> {
        self.process_expired(packet, since, context, events)
    }

    #[inline]
    fn generation(&self) -> Generation {
        Engine::generation(self)
    }

    fn zone(&self, name: &str) -> ZoneId {
        Engine::zone(self, name)
    }

    #[inline]
    fn zones_version(&self) -> u64 {
        Engine::zones_version(self)
    }
}

/// What a source knows of a packet beside its bytes, and a sink needs to send it on.
pub trait PacketMeta: Clone {
    /// How much of the transport checksum is to be verified.
    fn checksum(&self) -> Checksum;

    /// The number of packets on the wire: more than one for a packet that segmentation offload has merged. `length` is the
    /// length of the IP packet.
    fn segments(&self, length: u32) -> u64;
}

/// A packet, as received.
#[derive(Clone, Copy, Debug)]
pub struct ReceivedPacket<'a, M> {
    /// The time now, after the packet was received.
    pub now: Time,
    /// When it was captured.
    pub captured: Time,
    /// The port that it came in by: its place in the list given to [`PacketLoop::new`].
    pub port: usize,
    /// What the sink needs to send it on.
    pub meta: M,
    /// Its bytes from the IP header on, perhaps with padding behind the packet.
    pub bytes: &'a [u8],
}

/// The keys that were woken at a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WokenKeys {
    /// None.
    None,
    /// Those that were written to the given list.
    Listed,
    /// All: more keys were woken than the mailbox keeps.
    All,
}

/// Where packets, woken keys and the time come from.
pub trait PacketSource<M> {
    /// The time now.
    fn now(&self) -> Time;

    /// Moves the keys that were woken since the last call to `keys`, which is emptied first.
    fn take_woken(&mut self, keys: &mut Vec<HoldKey>) -> WokenKeys;

    /// Receives a bounded batch and hands each packet to `process`. Returns the number of frames received, which is larger
    /// than that of the packets where frames are none of the firewall's business.
    fn receive(&mut self, process: impl FnMut(ReceivedPacket<'_, M>)) -> u64;
}

/// What a packet is judged by besides the engine's own state.
pub trait Environment {
    /// The state of this member's lease.
    fn lease_state(&self, now: Time) -> LeaseState;

    /// The routes, to be asked about this packet.
    fn routes(&mut self, packet: &Packet) -> &mut dyn Routes;

    /// The zone that the verdict on the packet was about, as the judge told the routes. `None`: it told none.
    fn egress(&mut self) -> Option<ZoneId> {
        None
    }

    /// This router's own address on a port, as the source of an ICMP error about this packet.
    fn router_address(&self, port: usize, packet: &Tuple) -> Option<Ip>;

    /// Why the kernel has no route for this packet. `None`: its sender is not to be told, as by a blackhole route.
    fn unreachable(&mut self, _packet: &Tuple) -> Option<Unreachable> {
        None
    }

    /// Whether the numbers of the ports' zones must be looked up again, although no policy has changed.
    fn zones_outdated(&mut self) -> bool;

    /// Takes the zones of the ports, in their order.
    fn set_zones(&mut self, zones: &[ZoneId]);
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PacketOutcome {
    /// It was re-injected.
    Forwarded,
    /// It was discarded, and its sender is told.
    Rejected(Reason),
    /// It was discarded.
    Dropped(Reason),
    /// It is held. Reported for the first hold only; another outcome follows.
    Held,
}

/// Room in a bounded queue of hints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueRoom {
    /// Free places.
    pub free: usize,
    /// All places.
    pub capacity: usize,
}

impl QueueRoom {
    /// Whether a hint may be queued. Hints of low priority find the queue full when half of it is used.
    #[must_use]
    #[inline]
    pub fn admits(self, low_priority: bool) -> bool {
        if low_priority { self.free > self.capacity / 2 } else { self.free > 0 }
    }
}

/// Where packets and their consequences go. Nothing here may block.
pub trait PacketSink<M> {
    /// Re-injects a packet that is to leave by the zone `egress`.
    ///
    /// # Errors
    /// The reason with which the packet is counted as dropped.
    fn forward(&mut self, packet: &Packet, meta: &M, bytes: &[u8], egress: Option<ZoneId>) -> Result<(), Reason>;

    /// Takes the zones of the ports, in their order.
    fn set_zones(&mut self, _zones: &[ZoneId]) {}

    /// Answers a rejected packet, from `router` if that is an ICMP error.
    fn reject(&mut self, now: Time, packet: &Packet, bytes: &[u8], router: Option<Ip>);

    /// Tells the sender of a packet that there is no route, if it may be told now and there is a reason to give.
    fn unreachable(
        &mut self,
        _now: Time,
        _packet: &Packet,
        _bytes: &[u8],
        _router: Option<Ip>,
        _why: &mut dyn FnMut() -> Option<Unreachable>,
    ) {
    }

    /// The room in the queue of hints.
    fn hint_room(&self) -> QueueRoom;

    /// Queues a hint for the other members. Whether there was room.
    fn send_hint(&mut self, hint: Hint) -> bool;

    /// Queues a proposal for the log. Whether there was room.
    fn send_proposal(&mut self, proposal: Proposal) -> bool;

    /// Puts a decision into the connection log.
    fn log(&mut self, now: Time, decision: &LoggedDecision);

    /// Wakes the packets that workers of this member hold for a key. This worker is woken as any other: through its source.
    fn wake(&mut self, workers: WorkerSet, key: HoldKey);

    /// Counts a packet's outcome.
    fn record(&mut self, outcome: PacketOutcome, meta: &M, traffic: Traffic);

    /// Counts the time that a packet was held which then got another verdict.
    fn record_hold_time(&mut self, time: Duration);

    /// Counts a hint that found the queue full.
    fn record_lost_hint(&mut self);

    /// Counts a proposal that found the queue full.
    fn record_lost_proposal(&mut self);

    /// Takes the number of packets that are held now.
    fn record_held_now(&mut self, held: HoldCounts);
}

/// A port: a data interface, as the loop needs it.
#[derive(Clone, Debug)]
pub struct PacketPort {
    /// The name of its zone.
    pub zone_name: String,
    /// Whether sources of packets that arrive here are checked against the routes.
    pub antispoof: bool,
}

/// A packet in the hold buffer.
struct HeldPacket<M> {
    port: usize,
    meta: M,
    packet: Packet,
    bytes: Box<[u8]>,
}

/// Where the bytes of the packet in process are.
enum PacketBytes<'a, M> {
    /// In the source's memory.
    Received { port: usize, meta: M, bytes: &'a [u8] },
    /// In the hold buffer's copy, made when the packet was first held.
    Held { since: Time, held: HeldPacket<M> },
}

impl<M> PacketBytes<'_, M> {
    #[inline]
    fn parts(&self) -> (usize, &M, &[u8]) {
        match self {
            PacketBytes::Received { port, meta, bytes } => (*port, meta, bytes),
            PacketBytes::Held { held, .. } => (held.port, &held.meta, &held.bytes),
        }
    }
}

/// The packet loop of one worker.
pub struct PacketLoop<J, E, S, M> {
    worker: u8,
    judge: Arc<J>,
    environment: E,
    sink: S,
    ports: Vec<PacketPort>,
    /// The zones of the ports, as of `known`.
    zones: Vec<ZoneId>,
    /// The policy and the zones' version that were seen last.
    known: Option<(Generation, u64)>,
    hold: HoldBuffer<HeldPacket<M>>,
    /// The longest hold.
    max_time: Duration,
    /// The age at which a captured packet is stale.
    stale_after: Duration,
    // Reused from packet to packet.
    events: Vec<Event>,
    keys: Vec<HoldKey>,
    released: Vec<(Time, HeldPacket<M>)>,
    expired: Vec<(Time, HoldClass, HeldPacket<M>)>,
}

impl<J: Judge, E: Environment, S: PacketSink<M>, M: PacketMeta> PacketLoop<J, E, S, M> {
    /// The loop of the worker with this number, below [`WorkerSet::MAX_WORKERS`].
    pub fn new(worker: u8, judge: Arc<J>, environment: E, sink: S, ports: Vec<PacketPort>, limits: HoldLimits) -> Self {
        PacketLoop {
            worker,
            judge,
            environment,
            sink,
            zones: Vec::with_capacity(ports.len()),
            ports,
            known: None,
            hold: HoldBuffer::new(limits),
            max_time: limits.max_time,
            stale_after: limits.max_time,
            events: Vec::with_capacity(16),
            keys: Vec::new(),
            released: Vec::new(),
            expired: Vec::new(),
        }
    }

    /// Sets the age from which a captured packet is dropped as stale; without it, that is the longest hold.
    #[must_use]
    pub fn with_stale_after(mut self, age: Duration) -> Self {
        self.stale_after = age;
        self
    }

    /// When [`PacketLoop::turn`] must run at the latest, so that no packet is held for too long.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.hold.deadline()
    }

    /// The sink.
    pub fn sink(&self) -> &S {
        &self.sink
    }

    /// The environment and the sink, for a change of what they work with.
    pub fn parts_mut(&mut self) -> (&mut E, &mut S) {
        (&mut self.environment, &mut self.sink)
    }

    /// Judges what was woken, receives a batch, and expires what waited for too long. Returns the number of frames received.
    #[inline]
    pub fn turn(&mut self, source: &mut impl PacketSource<M>) -> u64 {
        self.rejudge_woken(source);
        self.refresh_zones();
        let received = source.receive(|packet| self.receive(packet));
        if received != 0 {
            self.sink.record_held_now(self.hold.counts());
        }
        self.expire(source.now());
        received
    }

    fn rejudge_woken(&mut self, source: &mut impl PacketSource<M>) {
        let mut released = std::mem::take(&mut self.released);
        match source.take_woken(&mut self.keys) {
            WokenKeys::None => {
                self.released = released;
                return;
            }
            WokenKeys::Listed => {
                for key in &self.keys {
                    self.hold.release(*key, &mut |since, held| released.push((since, held)));
                }
            }
            WokenKeys::All => self.hold.release_all(&mut |since, held| released.push((since, held))),
        }
        for (since, held) in released.drain(..) {
            self.rejudge(source.now(), since, held);
        }
        self.released = released;
        self.sink.record_held_now(self.hold.counts());
    }

    /// Looks the zones of the ports up again if they may have changed.
    fn refresh_zones(&mut self) {
        let now = (self.judge.generation(), self.judge.zones_version());
        let outdated = self.environment.zones_outdated();
        if outdated || self.known != Some(now) {
            self.known = Some(now);
            self.zones.clear();
            self.zones.extend(self.ports.iter().map(|port| self.judge.zone(&port.zone_name)));
            self.environment.set_zones(&self.zones);
            self.sink.set_zones(&self.zones);
        }
    }

    #[inline]
    fn receive(&mut self, received: ReceivedPacket<'_, M>) {
        let ReceivedPacket { now, captured, port, meta, bytes } = received;
        let raw = Traffic { packets: 1, bytes: bytes.len() as u64 };
        if now.since(captured) > self.stale_after {
            return self.sink.record(PacketOutcome::Dropped(Reason::Stale), &meta, raw);
        }
        let packet = match parse::parse(bytes, meta.checksum()) {
            Ok(packet) => packet,
            Err(reason) => return self.sink.record(PacketOutcome::Dropped(reason), &meta, raw),
        };
        // Without the padding.
        let bytes = bytes.get(..packet.length as usize).unwrap_or(bytes);
        let verdict = self.judge(port, &packet, now);
        self.apply_verdict(verdict, PacketBytes::Received { port, meta, bytes }, &packet, now);
    }

    fn rejudge(&mut self, now: Time, since: Time, held: HeldPacket<M>) {
        if now.since(since) > self.max_time {
            // The worker was stopped meanwhile.
            return record_expired(&mut self.sink, &held);
        }
        let packet = held.packet;
        let verdict = self.judge(held.port, &packet, now);
        if !matches!(verdict, Verdict::Hold(..)) {
            self.sink.record_hold_time(now.since(since));
        }
        self.apply_verdict(verdict, PacketBytes::Held { since, held }, &packet, now);
    }

    fn expire(&mut self, now: Time) {
        if self.hold.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        let mut expired = std::mem::take(&mut self.expired);
        self.hold.expire(now, &mut |since, class, held| expired.push((since, class, held)));
        for (since, class, held) in expired.drain(..) {
            let verdict = if class == HoldClass::Unmatched { self.judge_expired(&held, since, now) } else { None };
            match verdict {
                Some(verdict @ (Verdict::Drop(_) | Verdict::Reject(_))) => {
                    let packet = held.packet;
                    self.apply_verdict(verdict, PacketBytes::Held { since, held }, &packet, now);
                }
                Some(Verdict::Forward | Verdict::Hold(..)) | None => record_expired(&mut self.sink, &held),
            }
        }
        self.expired = expired;
        self.sink.record_held_now(self.hold.counts());
    }

    /// The verdict on a packet that nothing has explained since it came.
    fn judge_expired(&mut self, held: &HeldPacket<M>, since: Time, now: Time) -> Option<Verdict> {
        let mut context =
            context(self.worker, &self.zones, &self.ports, &mut self.environment, held.port, &held.packet, now);
        let verdict = self.judge.judge_expired(&held.packet, since, &mut context, &mut self.events);
        self.dispatch_events(now);
        verdict
    }

    #[inline]
    fn judge(&mut self, port: usize, packet: &Packet, now: Time) -> Verdict {
        let mut context = context(self.worker, &self.zones, &self.ports, &mut self.environment, port, packet, now);
        let verdict = self.judge.judge(packet, &mut context, &mut self.events);
        // Before the packet: what follows it at another member finds the hint there.
        self.dispatch_events(now);
        verdict
    }

    #[inline]
    fn dispatch_events(&mut self, now: Time) {
        for event in self.events.drain(..) {
            match event {
                Event::Hint(hint) => {
                    let admitted = self.sink.hint_room().admits(hint.is_low_priority());
                    if !(admitted && self.sink.send_hint(hint)) {
                        self.sink.record_lost_hint();
                    }
                }
                Event::Wake { workers, key } => self.sink.wake(workers, key),
                Event::Propose(proposal) => {
                    if !self.sink.send_proposal(proposal) {
                        self.sink.record_lost_proposal();
                    }
                }
                Event::Log(decision) => self.sink.log(now, &decision),
            }
        }
    }

    #[inline]
    fn apply_verdict(&mut self, verdict: Verdict, source: PacketBytes<'_, M>, packet: &Packet, now: Time) {
        let (port, meta, bytes) = source.parts();
        let traffic = traffic(meta, packet);
        match verdict {
            Verdict::Forward => {
                let egress = self.environment.egress();
                let outcome = match self.sink.forward(packet, meta, bytes, egress) {
                    Ok(()) => PacketOutcome::Forwarded,
                    Err(reason) => PacketOutcome::Dropped(reason),
                };
                self.sink.record(outcome, meta, traffic);
            }
            Verdict::Drop(reason) => {
                self.sink.record(PacketOutcome::Dropped(reason), meta, traffic);
                if reason == Reason::NoRoute {
                    let environment = &mut self.environment;
                    let router = environment.router_address(port, &packet.tuple);
                    let why = &mut || environment.unreachable(&packet.tuple);
                    self.sink.unreachable(now, packet, bytes, router, why);
                }
            }
            Verdict::Reject(reason) => {
                self.sink.record(PacketOutcome::Rejected(reason), meta, traffic);
                let router = self.environment.router_address(port, &packet.tuple);
                self.sink.reject(now, packet, bytes, router);
            }
            Verdict::Hold(key, class) => self.hold(key, class, source, packet, now),
        }
    }

    fn hold(&mut self, key: HoldKey, class: HoldClass, source: PacketBytes<'_, M>, packet: &Packet, now: Time) {
        let (since, held) = match source {
            PacketBytes::Held { since, held } => (since, held),
            PacketBytes::Received { port, meta, bytes } => {
                self.sink.record(PacketOutcome::Held, &meta, traffic(&meta, packet));
                (now, HeldPacket { port, meta, packet: *packet, bytes: bytes.into() })
            }
        };
        if let Err((held, reason)) = self.hold.hold(since, key, class, held.bytes.len(), held) {
            self.sink.record(PacketOutcome::Dropped(reason), &held.meta, traffic(&held.meta, packet));
        }
    }
}

/// What a packet that arrived at `port` is judged by.
#[inline]
fn context<'a>(
    worker: u8,
    zones: &[ZoneId],
    ports: &[PacketPort],
    environment: &'a mut impl Environment,
    port: usize,
    packet: &Packet,
    now: Time,
) -> Context<'a> {
    Context {
        now,
        worker,
        ingress: zones.get(port).copied().unwrap_or(ZoneId::UNKNOWN),
        antispoof: ports.get(port).is_none_or(|port| port.antispoof),
        lease: environment.lease_state(now),
        routes: environment.routes(packet),
    }
}

#[inline]
fn traffic<M: PacketMeta>(meta: &M, packet: &Packet) -> Traffic {
    Traffic { packets: meta.segments(packet.length), bytes: u64::from(packet.length) }
}

fn record_expired<M: PacketMeta>(sink: &mut impl PacketSink<M>, held: &HeldPacket<M>) {
    sink.record(PacketOutcome::Dropped(Reason::HoldExpired), &held.meta, traffic(&held.meta, &held.packet));
}

#[cfg(test)]
mod tests;
