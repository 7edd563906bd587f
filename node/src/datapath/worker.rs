//! A worker: the thread that receives, judges, holds and re-injects. It shares nothing with other workers but the engine.
//!
//! It goes round: its mailbox (keys to wake, sockets to exchange), then a bounded batch from each socket, then what was
//! held for too long. When it finds nothing it sleeps in poll until a frame, a key or a hold's end.
//!
//! It is the only reader of the clock on the packet path, and reads it after each receive: so a worker that was stopped
//! in the middle of a batch judges the next packet by the time that it is then, and finds it stale.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use palisade_engine::hold::{HoldBuffer, HoldCounts, HoldLimits};
use palisade_engine::parse::{self, Checksum, Kind, Packet, complete_sctp};
use palisade_engine::{Context, Engine, Event, Generation, HoldClass, HoldKey, Reason, Time, Verdict, ZoneId};
use parking_lot::Mutex;

use super::Sinks;
use super::capture::{Capture, LARGEST, Received};
use super::host::links::LocalRoutes;
use super::host::routes::RouteZones;
use super::inject::Injector;
use super::limit::Bucket;
use super::metrics::WorkerMetrics;
use super::segment;
use super::vnet::VnetHeader;
use super::wake::{Woken, WorkerWake};
use crate::clock;
use crate::lease::Lease;
use crate::queue::offer_hint;

/// Frames from one socket before the others have their turn.
const BATCH: usize = 64;

/// A worker that has nothing to do still wakes up this often, to show that it lives and to read the drop counters.
const IDLE: Duration = Duration::from_millis(500);

/// Who judges packets: the engine, or in a test something simpler.
pub trait Judge: Send + Sync + 'static {
    /// See [`Engine::process`].
    fn judge(&self, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict;
    /// See [`Engine::generation`].
    fn generation(&self) -> Generation;
    /// See [`Engine::zone`].
    fn zone(&self, name: &str) -> ZoneId;
}

impl Judge for Engine {
    fn judge(&self, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict {
        self.process(packet, context, events)
    }

    fn generation(&self) -> Generation {
        Engine::generation(self)
    }

    fn zone(&self, name: &str) -> ZoneId {
        Engine::zone(self, name)
    }
}

/// A data interface as a worker has it: its place in the configuration is its number.
pub(crate) struct Port {
    pub(crate) zone_name: String,
    pub(crate) antispoof: bool,
    pub(crate) captures: Vec<Capture>,
}

/// What the watcher sends: new sockets for the interface with this number.
pub(crate) type NewCaptures = (usize, Vec<Capture>);

/// What a worker shares with the watcher and with [`super::Datapath`].
pub(crate) struct Shared {
    pub(crate) stop: AtomicBool,
    pub(crate) local: ArcSwap<LocalRoutes>,
    /// New sockets, by worker.
    pub(crate) exchange: Vec<Mutex<Vec<NewCaptures>>>,
}

/// A packet that waits.
struct Held {
    since: Time,
    port: usize,
    vnet: VnetHeader,
    packet: Packet,
    bytes: Box<[u8]>,
}

/// Everything that a worker needs to judge one packet, apart from the sockets that it receives from.
struct Desk<J> {
    number: u8,
    judge: Arc<J>,
    lease: Arc<Lease>,
    routes: RouteZones,
    zones: Vec<ZoneId>,
    antispoof: Vec<bool>,
    injector: Injector,
    hold: HoldBuffer<Held>,
    hold_time: Duration,
    sinks: Sinks,
    wake: WorkerWake,
    events: Vec<Event>,
    answer: Box<[u8]>,
    /// A packet that must be changed before it is re-injected.
    scratch: Vec<u8>,
    errors: Bucket,
    metrics: Arc<WorkerMetrics>,
}

/// One worker.
pub(crate) struct Worker<J> {
    number: usize,
    ports: Vec<Port>,
    desk: Desk<J>,
    generation: Option<Generation>,
    wake: WorkerWake,
    shared: Arc<Shared>,
    keys: Vec<HoldKey>,
    released: Vec<(Time, Held)>,
    large: Box<[u8]>,
    checked: Time,
}

/// What [`Worker::new`] takes.
pub(crate) struct Parts<J> {
    pub(crate) number: u8,
    pub(crate) ports: Vec<Port>,
    pub(crate) judge: Arc<J>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) routes: RouteZones,
    pub(crate) injector: Injector,
    pub(crate) limits: HoldLimits,
    pub(crate) sinks: Sinks,
    pub(crate) metrics: Arc<WorkerMetrics>,
    pub(crate) wake: WorkerWake,
    pub(crate) shared: Arc<Shared>,
}

impl<J: Judge> Worker<J> {
    pub(crate) fn new(parts: Parts<J>) -> Worker<J> {
        let Parts { number, ports, judge, lease, routes, injector, limits, sinks, metrics, wake, shared } = parts;
        let desk = Desk {
            number,
            judge,
            lease,
            routes,
            zones: Vec::with_capacity(ports.len()),
            antispoof: ports.iter().map(|port| port.antispoof).collect(),
            injector,
            hold: HoldBuffer::new(limits),
            hold_time: limits.max_time,
            sinks,
            wake: wake.clone(),
            events: Vec::with_capacity(16),
            answer: vec![0; parse::rejection::MAX_LENGTH].into_boxed_slice(),
            scratch: Vec::new(),
            errors: Bucket::new(clock::now()),
            metrics,
        };
        Worker {
            number: usize::from(number),
            ports,
            desk,
            generation: None,
            wake,
            shared,
            keys: Vec::new(),
            released: Vec::new(),
            large: vec![0; LARGEST].into_boxed_slice(),
            checked: Time::ZERO,
        }
    }

    /// Works until told to stop.
    pub(crate) fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = clock::now();
            self.desk.metrics.heartbeat.set(now);
            self.mailbox(now);
            self.zones();
            let received = self.receive();
            self.expire(clock::now());
            if received == 0 {
                self.sleep();
            }
        }
        tracing::debug!(worker = self.number, "stopped");
    }

    /// Takes in what other threads sent.
    fn mailbox(&mut self, now: Time) {
        if self.wake.pending(self.number) {
            // First, because it takes the mark back: whoever sends after this rings again.
            let woken = self.wake.take(self.number, &mut self.keys);
            if let Some(exchange) = self.shared.exchange.get(self.number) {
                for (number, captures) in exchange.lock().drain(..) {
                    if let Some(port) = self.ports.get_mut(number) {
                        port.captures = captures;
                    }
                }
            }
            self.release(woken);
        }
        if now.since(self.checked) >= IDLE {
            self.checked = now;
            let missed: u64 = self.ports.iter().flat_map(|p| &p.captures).map(Capture::missed).sum();
            self.desk.metrics.capture_dropped.add(missed);
        }
    }

    fn release(&mut self, woken: Woken) {
        let Worker { desk, released, keys, .. } = self;
        match woken {
            Woken::Nothing => return,
            Woken::Keys => {
                for key in keys.iter() {
                    desk.hold.release(*key, &mut |since, held| released.push((since, held)));
                }
            }
            // Everything's time is over at the end of time: so all come out, oldest first.
            Woken::All => desk.hold.expire(Time(u64::MAX), &mut |held| released.push((held.since, held))),
        }
        for (since, held) in released.drain(..) {
            desk.again(since, held);
        }
        desk.count_held();
    }

    /// Looks up the zones' numbers again if a policy may have changed them.
    fn zones(&mut self) {
        let generation = self.desk.judge.generation();
        let outdated = self.desk.routes.outdated();
        if outdated || self.generation != Some(generation) {
            self.generation = Some(generation);
            self.desk.zones.clear();
            self.desk.zones.extend(self.ports.iter().map(|port| self.desk.judge.zone(&port.zone_name)));
            self.desk.routes.set_zones(&self.desk.zones);
        }
    }

    /// A batch from each socket.
    fn receive(&mut self) -> u64 {
        let local = self.shared.local.load();
        // What the wall clock is ahead of the boot-time clock: the ring's stamps are of the first, all else is of the second.
        let boot = clock::now();
        let ahead = wall().wrapping_sub(boot.0);
        let mut received = 0;
        for (number, port) in self.ports.iter_mut().enumerate() {
            for capture in &mut port.captures {
                for _ in 0..BATCH {
                    let desk = &mut self.desk;
                    let taken = capture.receive(&mut self.large, |frame| desk.frame(number, frame, ahead, &local));
                    if taken.is_none() {
                        break;
                    }
                    received += 1;
                }
            }
        }
        if received != 0 {
            self.desk.metrics.captured_frames.add(received);
            self.desk.metrics.batches.inc();
            self.desk.count_held();
        }
        received
    }

    fn expire(&mut self, now: Time) {
        let Desk { hold, metrics, .. } = &mut self.desk;
        if hold.deadline().is_some_and(|deadline| deadline <= now) {
            hold.expire(now, &mut |held| {
                metrics.verdicts.dropped(
                    Reason::HoldExpired,
                    held.vnet.segments(held.packet.length),
                    u64::from(held.packet.length),
                );
            });
            self.desk.count_held();
        }
    }

    fn sleep(&mut self) {
        let until = self.desk.hold.deadline().map_or(IDLE, |d| d.since(clock::now()).min(IDLE));
        // Rounded up, so that a deadline is over when we wake, instead of almost over again and again.
        let millis = i32::try_from(until.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
        self.desk.metrics.polls.inc();
        let captures = || self.ports.iter().flat_map(|port| &port.captures);
        // A poll's list is small, and this is not the path of a busy worker.
        let mut fds: Vec<PollFd<'_>> = captures().map(|c| PollFd::new(c.as_fd(), PollFlags::POLLIN)).collect();
        fds.extend(self.wake.fd(self.number).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // EINTR is as good as any other reason to look round again.
        let _ = poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX));
        if fds.last().is_some_and(|bell| bell.revents().is_some_and(|e| e.contains(PollFlags::POLLIN))) {
            self.wake.hush(self.number);
        }
        for (capture, fd) in captures().zip(&fds) {
            if fd.revents().is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP)) {
                capture.clear_error();
            }
        }
    }
}

/// The wall clock in nanoseconds since 1970, as the ring stamps frames.
fn wall() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |t| {
        let nanos = u64::try_from(t.tv_nsec()).unwrap_or(0);
        u64::try_from(t.tv_sec()).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos)
    })
}

impl<J: Judge> Desk<J> {
    /// One frame, as received.
    fn frame(&mut self, port: usize, frame: Received<'_>, ahead: u64, local: &LocalRoutes) {
        let now = clock::now();
        let (at, vnet, bytes) = match frame {
            Received::Packet { at, vnet, packet } => (at, vnet, packet),
            Received::NotForUs { length } => {
                return self.metrics.verdicts.dropped(Reason::NotForUs, 1, u64::from(length));
            }
            Received::Truncated { length } => {
                self.metrics.capture_oversized_dropped.inc();
                return self.metrics.verdicts.dropped(Reason::Truncated, 1, u64::from(length));
            }
            Received::Nothing => return,
        };
        if local.contains(bytes) {
            return self.metrics.local_packets.inc();
        }
        let length = bytes.len() as u64;
        let age = now.since(Time(at.wrapping_sub(ahead)));
        if age > self.hold_time {
            return self.metrics.verdicts.dropped(Reason::Stale, 1, length);
        }
        let packet = match parse::parse(bytes, vnet.checksum()) {
            Ok(packet) => packet,
            Err(reason) => return self.metrics.verdicts.dropped(reason, 1, length),
        };
        // Without Ethernet's padding.
        let bytes = usize::try_from(packet.length).ok().and_then(|n| bytes.get(..n)).unwrap_or(bytes);
        let verdict = self.judge(port, &packet, now);
        self.act(verdict, Source::Wire { port, bytes }, vnet, &packet, now);
    }

    /// A held packet whose key was woken.
    fn again(&mut self, since: Time, held: Held) {
        let now = clock::now();
        if now.since(since) > self.hold_time {
            // The worker was stopped meanwhile.
            let length = held.packet.length;
            return self.metrics.verdicts.dropped(Reason::HoldExpired, held.vnet.segments(length), u64::from(length));
        }
        let verdict = self.judge(held.port, &held.packet, now);
        if !matches!(verdict, Verdict::Hold(..)) {
            self.metrics.hold.observe(now.since(since));
        }
        let (vnet, packet) = (held.vnet, held.packet);
        self.act(verdict, Source::Held(held), vnet, &packet, now);
    }

    fn judge(&mut self, port: usize, packet: &Packet, now: Time) -> Verdict {
        self.routes.set_packet(packet.tuple.src, packet.tuple.dst);
        let mut context = Context {
            now,
            worker: self.number,
            ingress: self.zones.get(port).copied().unwrap_or(ZoneId::UNKNOWN),
            antispoof: self.antispoof.get(port).copied().unwrap_or(true),
            lease: self.lease.state_at(now),
            routes: &mut self.routes,
        };
        let verdict = self.judge.judge(packet, &mut context, &mut self.events);
        // Before the packet: so what follows it elsewhere finds the hint there.
        for event in self.events.drain(..) {
            match event {
                Event::Hint(hint) => {
                    if !offer_hint(&self.sinks.hints, hint) {
                        self.metrics.queue_dropped.hint.inc();
                    }
                }
                // Through the mailbox, as everybody else's: this worker finds its own key when it looks there next.
                Event::Wake { workers, key } => self.wake.send(workers, key),
                Event::Propose(proposal) => {
                    if self.sinks.proposals.try_send(proposal).is_err() {
                        self.metrics.queue_dropped.proposal.inc();
                    }
                }
            }
        }
        verdict
    }

    fn act(&mut self, verdict: Verdict, source: Source<'_>, vnet: VnetHeader, packet: &Packet, now: Time) {
        let (packets, length) = (vnet.segments(packet.length), u64::from(packet.length));
        match verdict {
            Verdict::Forward => match self.inject(&vnet, source.bytes(), packet) {
                Ok(()) => self.metrics.verdicts.forwarded(packets, length),
                Err(reason) => self.metrics.verdicts.dropped(reason, packets, length),
            },
            Verdict::Drop(reason) => self.metrics.verdicts.dropped(reason, packets, length),
            Verdict::Reject(reason) => {
                self.metrics.verdicts.rejected(reason, packets, length);
                self.answer(&source, packet, now);
            }
            Verdict::Hold(key, class) => self.keep(key, class, source, vnet, packet, now),
        }
    }

    /// Answers a rejected packet. An ICMP error comes from our own address on the interface that the packet came in by
    /// (RFC 1812 section 4.3.2.4), if it has one; and no more are sent than is proper. A RST is no longer than what asked
    /// for it, and without it the other side would only ask again.
    fn answer(&mut self, source: &Source<'_>, packet: &Packet, now: Time) {
        let router = self.routes.router(source.port(), &packet.tuple);
        let Some(length) = parse::rejection::build(source.bytes(), packet, router, &mut self.answer) else { return };
        if !matches!(packet.kind, Kind::Tcp(_)) && !self.errors.take(now) {
            return self.metrics.icmp_errors_suppressed.inc();
        }
        if let Some(answer) = self.answer.get(..length)
            && let Err(error) = self.injector.send(&VnetHeader::default(), answer)
        {
            tracing::debug!(%error, "an answer to a rejected packet could not be sent");
        }
    }

    fn keep(
        &mut self,
        key: HoldKey,
        class: HoldClass,
        source: Source<'_>,
        vnet: VnetHeader,
        packet: &Packet,
        now: Time,
    ) {
        let length = u64::from(packet.length);
        let held = match source {
            Source::Held(held) => held,
            Source::Wire { port, bytes } => {
                self.metrics.held_packets.add(vnet.segments(packet.length));
                Held { since: now, port, vnet, packet: *packet, bytes: bytes.into() }
            }
        };
        if let Err((held, reason)) = self.hold.hold(held.since, key, class, held.bytes.len(), held) {
            self.metrics.verdicts.dropped(reason, held.vnet.segments(packet.length), length);
        }
    }

    fn inject(&mut self, vnet: &VnetHeader, bytes: &[u8], packet: &Packet) -> Result<(), Reason> {
        if !vnet.matches(bytes, packet.transport) {
            self.metrics.segmented_packets.inc();
            let injector = &mut self.injector;
            let mut sent = Ok(());
            segment::segment(vnet, bytes, &mut |segment| {
                if injector.send(&VnetHeader::default(), segment).is_err() {
                    sent = Err(Reason::InjectFailed);
                }
            })?;
            return sent;
        }
        let (mut vnet, mut bytes) = (*vnet, bytes);
        if packet.kind == Kind::Sctp && vnet.checksum() == Checksum::Partial {
            // The kernel would complete what it takes for the Internet's checksum: `virtio_net_hdr` knows no other.
            self.scratch.clear();
            self.scratch.extend_from_slice(bytes);
            complete_sctp(self.scratch.get_mut(usize::from(packet.transport)..).unwrap_or_default());
            (vnet, bytes) = (VnetHeader::default(), &self.scratch);
        }
        self.injector.send(&vnet, bytes).map_err(|error| {
            tracing::trace!(%error, ?vnet, length = bytes.len(), "a packet could not be re-injected");
            Reason::InjectFailed
        })
    }

    fn count_held(&self) {
        let HoldCounts { matched, unmatched } = self.hold.counts();
        self.metrics.holds.matched.set(matched as u64);
        self.metrics.holds.unmatched.set(unmatched as u64);
    }
}

/// Where a packet's bytes are.
enum Source<'a> {
    /// In the ring.
    Wire { port: usize, bytes: &'a [u8] },
    /// In the hold buffer's own copy.
    Held(Held),
}

impl Source<'_> {
    fn port(&self) -> usize {
        match self {
            Source::Wire { port, .. } => *port,
            Source::Held(held) => held.port,
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Source::Wire { bytes, .. } => bytes,
            Source::Held(held) => &held.bytes,
        }
    }
}
