//! A worker: the thread that receives, judges, holds and re-injects. It shares nothing with other workers but the engine.
//!
//! The order of the work is the [`PacketLoop`]'s: first what other threads sent (woken keys, new sockets), then a bounded batch
//! from each socket, then what was held for too long. A worker that finds nothing sleeps in poll until a frame arrives, a key
//! is woken or a hold ends.
//!
//! The worker is the only reader of the clock on the packet path.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::time::{ClockId, clock_gettime};
use palisade_engine::hold::HoldLimits;
use palisade_engine::packet_loop::{
    Environment, Judge, PacketLoop, PacketPort, PacketSource, ReceivedPacket, WokenKeys,
};
use palisade_engine::parse::Packet;
use palisade_engine::parse::rejection::Unreachable;
use palisade_engine::{HoldKey, Ip, LeaseState, Reason, Routes, Time, Tuple, ZoneId};
use parking_lot::Mutex;

use super::Sinks;
use super::capture::{Capture, MAX_FRAME_BYTES, Received};
use super::host::links::LocalRoutes;
use super::host::routes::RouteZones;
use super::inject::{Injector, Injectors};
use super::metrics::WorkerMetrics;
use super::nice::Priority;
use super::offload::prepare;
use super::sink::InjectSink;
use super::vnet::VnetHeader;
use super::wake::WorkerWake;
use crate::clock;
use crate::connection_log::ConnectionLog;
use crate::lease::Lease;

/// Frames from one socket before the others have their turn.
const FRAMES_PER_SOCKET: usize = 64;

/// How often a worker reads the drop counters. An overloaded one has to make room for Raft well within an election timeout.
const DROPS_INTERVAL: Duration = Duration::from_millis(100);

/// The longest sleep of a worker that has nothing to do: it shows that it lives, and reads the drop counters.
const MAX_SLEEP: Duration = Duration::from_millis(500);

/// A data interface as a worker has it. Its place in the configuration is its number.
pub(crate) struct Port {
    pub(crate) zone_name: String,
    pub(crate) antispoof: bool,
    pub(crate) captures: Vec<Capture>,
}

/// A worker's queue of a re-injection device that was made anew.
pub(crate) struct NewInjector {
    /// Which of the devices: see [`Injectors::replace`].
    pub(crate) place: Option<usize>,
    pub(crate) injector: Injector,
    /// The index of the device that the routes are asked for.
    pub(crate) incoming: u32,
}

/// What the watcher sends to a worker.
pub(crate) enum NewPart {
    /// New sockets for the interface with this number.
    Captures(usize, Vec<Capture>),
    /// A queue of a re-injection device that was made anew.
    Injector(NewInjector),
}

/// What a worker shares with the watcher and with [`super::Datapath`].
pub(crate) struct Shared {
    pub(crate) stop: AtomicBool,
    pub(crate) local: ArcSwap<LocalRoutes>,
    /// Indices of the interfaces whose frames somebody has: the data interfaces, and those that the gate exempts.
    pub(crate) handled: ArcSwap<Vec<u32>>,
    /// New sockets and queues, by worker.
    pub(crate) exchange: Vec<Mutex<Vec<NewPart>>>,
    /// Sockets that were replaced, for the watcher to close.
    pub(crate) retired: Mutex<Vec<Capture>>,
    /// Rings that take no frames.
    pub(crate) stalled: Stalled,
    /// Wakes the watcher.
    pub(crate) watcher_fd: EventFd,
}

impl Shared {
    /// Ends the watcher's poll.
    pub(crate) fn wake_watcher(&self) {
        let _ = self.watcher_fd.write(1); // EAGAIN: it has yet to wake up
    }
}

/// The interfaces, by their number, with rings that have stalled.
#[derive(Debug)]
pub(crate) struct Stalled(Vec<StalledPort>);

#[derive(Debug, Default)]
struct StalledPort {
    /// The workers whose rings have stalled and are not yet replaced, a bit each.
    workers: AtomicU64,
    /// Whether a worker asks for new sockets.
    requested: AtomicBool,
}

impl Stalled {
    pub(crate) fn new(interfaces: usize) -> Stalled {
        Stalled((0..interfaces).map(|_| StalledPort::default()).collect())
    }

    /// Marks the ring of a worker. Whether this is new: the watcher is to be woken.
    fn mark(&self, port: usize, worker: usize) -> bool {
        let Some(of) = self.0.get(port) else { return false };
        let new = of.workers.fetch_or(1 << (worker % 64), Ordering::AcqRel) >> (worker % 64) & 1 == 0;
        if new {
            of.requested.store(true, Ordering::Release);
        }
        new
    }

    /// The worker has new sockets.
    fn clear(&self, port: usize, worker: usize) {
        if let Some(of) = self.0.get(port) {
            of.workers.fetch_and(!(1 << (worker % 64)), Ordering::AcqRel);
        }
    }

    /// Whether new sockets are asked for.
    pub(crate) fn requested(&self, port: usize) -> bool {
        self.0.get(port).is_some_and(|of| of.requested.load(Ordering::Acquire))
    }

    /// The same, and they are asked for no longer.
    pub(crate) fn take_request(&self, port: usize) -> bool {
        self.0.get(port).is_some_and(|of| of.requested.swap(false, Ordering::AcqRel))
    }

    /// The numbers of the interfaces with a ring that has stalled.
    pub(crate) fn ports(&self) -> impl Iterator<Item = usize> {
        let of = self.0.iter().enumerate();
        of.filter(|(_, of)| of.workers.load(Ordering::Acquire) != 0).map(|(port, _)| port)
    }
}

/// One worker.
pub(crate) struct Worker<J> {
    packet_loop: PacketLoop<J, HostEnvironment, InjectSink, VnetHeader>,
    source: CaptureSource,
}

/// What [`Worker::new`] takes.
pub(crate) struct WorkerConfig<J> {
    pub(crate) number: u8,
    pub(crate) ports: Vec<Port>,
    pub(crate) judge: Arc<J>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) routes: RouteZones,
    pub(crate) injectors: Injectors,
    pub(crate) limits: HoldLimits,
    pub(crate) stale_after: Duration,
    pub(crate) sinks: Sinks,
    pub(crate) connection_log: ConnectionLog,
    pub(crate) metrics: Arc<WorkerMetrics>,
    pub(crate) wake: WorkerWake,
    pub(crate) shared: Arc<Shared>,
}

impl<J: Judge> Worker<J> {
    pub(crate) fn new(config: WorkerConfig<J>) -> Worker<J> {
        let WorkerConfig {
            number,
            ports,
            judge,
            lease,
            routes,
            injectors,
            limits,
            stale_after,
            sinks,
            connection_log,
            metrics,
            wake,
            shared,
        } = config;
        let sink = InjectSink::new(clock::now(), injectors, sinks, connection_log, wake.clone(), metrics.clone());
        let port = |port: &Port| PacketPort { zone_name: port.zone_name.clone(), antispoof: port.antispoof };
        let packet_ports = ports.iter().map(port).collect();
        let environment = HostEnvironment { lease, routes };
        Worker {
            packet_loop: PacketLoop::new(number, judge, environment, sink, packet_ports, limits)
                .with_stale_after(stale_after),
            source: CaptureSource {
                worker: usize::from(number),
                captures: ports.into_iter().map(|port| port.captures).collect(),
                large: vec![0; MAX_FRAME_BYTES].into_boxed_slice(),
                completed: vec![0; MAX_FRAME_BYTES].into_boxed_slice(),
                wake,
                shared,
                metrics,
                drops_read: Time::ZERO,
                new_injectors: Vec::new(),
            },
        }
    }

    /// Works until told to stop.
    pub(crate) fn run(mut self) {
        let mut priority = Priority::of_worker();
        self.source.captures.iter().flatten().for_each(start_capture);
        while !self.source.shared.stop.load(Ordering::Relaxed) {
            let now = clock::now();
            self.source.metrics.heartbeat.set(now);
            if let Some(lost) = self.source.read_drops(now) {
                priority.observe(now, lost);
            }
            for new in self.source.new_injectors.drain(..) {
                let (environment, sink) = self.packet_loop.parts_mut();
                environment.routes.set_incoming(new.incoming);
                sink.set_injector(new.place, new.injector);
            }
            if self.packet_loop.turn(&mut self.source) == 0 {
                self.source.sleep(self.packet_loop.deadline());
            }
        }
        tracing::debug!(worker = self.source.worker, "stopped");
    }
}

/// A worker's lease and routes.
struct HostEnvironment {
    lease: Arc<Lease>,
    routes: RouteZones,
}

impl Environment for HostEnvironment {
    #[inline]
    fn lease_state(&self, now: Time) -> LeaseState {
        self.lease.state_at(now)
    }

    #[inline]
    fn routes(&mut self, packet: &Packet) -> &mut dyn Routes {
        self.routes.set_packet(packet);
        &mut self.routes
    }

    #[inline]
    fn egress(&mut self) -> Option<ZoneId> {
        self.routes.egress()
    }

    fn router_address(&self, port: usize, packet: &Tuple) -> Option<Ip> {
        self.routes.router(port, packet)
    }

    fn unreachable(&mut self, _: &Tuple) -> Option<Unreachable> {
        // It is the packet that the routes were last asked about.
        self.routes.unreachable()
    }

    #[inline]
    fn zones_outdated(&mut self) -> bool {
        self.routes.outdated()
    }

    fn set_zones(&mut self, zones: &[ZoneId]) {
        self.routes.set_zones(zones);
    }
}

/// A worker's sockets and its mailbox.
struct CaptureSource {
    worker: usize,
    /// By port.
    captures: Vec<Vec<Capture>>,
    large: Box<[u8]>,
    /// The packet in process, if its checksum had to be completed.
    completed: Box<[u8]>,
    wake: WorkerWake,
    shared: Arc<Shared>,
    metrics: Arc<WorkerMetrics>,
    /// When the kernel's drop counters were read last.
    drops_read: Time,
    /// For the sink, from the next turn on.
    new_injectors: Vec<NewInjector>,
}

impl PacketSource<VnetHeader> for CaptureSource {
    #[inline]
    fn now(&self) -> Time {
        clock::now()
    }

    #[inline]
    fn take_woken(&mut self, keys: &mut Vec<HoldKey>) -> WokenKeys {
        if !self.wake.pending(self.worker) {
            return WokenKeys::None;
        }
        // First, because it clears the mark: who sends after this notifies again.
        let woken = self.wake.take(self.worker, keys);
        self.exchange_captures();
        woken
    }

    /// A batch from each socket.
    #[inline]
    fn receive(&mut self, mut process: impl FnMut(ReceivedPacket<'_, VnetHeader>)) -> u64 {
        let CaptureSource { captures, large, completed, shared, metrics, .. } = self;
        let (local, handled) = (shared.local.load(), shared.handled.load());
        // What the wall clock is ahead of the boot-time clock. The ring's stamps are of the first, all else is of the second.
        let boot = clock::now();
        let wall_ahead = wall_clock_nanos().wrapping_sub(boot.0);
        let mut received = 0;
        for (port, captures) in captures.iter_mut().enumerate() {
            for capture in captures {
                for _ in 0..FRAMES_PER_SOCKET {
                    let taken = capture.receive(large, |frame| {
                        // After the receive, so that a packet that waited while the worker was stopped is found stale.
                        let now = clock::now();
                        let Some((at, meta, bytes)) = count_frame(frame, &local, &handled, completed, metrics) else {
                            return;
                        };
                        let captured = Time(at.wrapping_sub(wall_ahead));
                        process(ReceivedPacket { now, captured, port, meta, bytes });
                    });
                    if taken.is_none() {
                        break;
                    }
                    received += 1;
                }
            }
        }
        if received != 0 {
            metrics.captured_frames.add(received);
            metrics.batches.inc();
        }
        received
    }
}

/// The time, virtio header and bytes of a frame that the packet loop is to process. All other frames are counted here.
#[inline]
fn count_frame<'a>(
    frame: Received<'a>,
    local: &LocalRoutes,
    handled: &[u32],
    room: &'a mut [u8],
    metrics: &WorkerMetrics,
) -> Option<(u64, VnetHeader, &'a [u8])> {
    match frame {
        Received::Packet { packet, .. } if local.contains(packet) => metrics.local_packets.inc(),
        Received::Packet { at, vnet, packet } => match prepare(vnet, packet, room) {
            Ok(ready) if !ready.completed => return Some((at, ready.vnet, ready.packet)),
            Ok(ready) => {
                metrics.completed_checksums.inc();
                // It may have another destination now.
                if !local.contains(ready.packet) {
                    return Some((at, ready.vnet, ready.packet));
                }
                metrics.local_packets.inc();
            }
            Err(reason) => metrics.verdicts.dropped(reason, 1, packet.len() as u64),
        },
        // The gate drops what no socket of a data interface has and the kernel may not route.
        Received::Stacked { index, length, packet } if !handled.contains(&index) && !local.contains(packet) => {
            metrics.verdicts.dropped(Reason::NotForUs, 1, u64::from(length));
        }
        Received::Group { packet, .. } if local.contains(packet) || is_of_the_link(packet) => {
            metrics.local_packets.inc()
        }
        Received::Group { length, .. } | Received::NotForUs { length } => {
            metrics.verdicts.dropped(Reason::NotForUs, 1, u64::from(length));
        }
        Received::Truncated { length } => {
            metrics.capture_oversized_dropped.inc();
            metrics.verdicts.dropped(Reason::Truncated, 1, u64::from(length));
        }
        Received::Stacked { .. } | Received::Nothing => {}
    }
    None
}

/// Whether a broadcast or multicast stays on its link by its nature, so that no router forwards it: neighbour discovery, DHCP,
/// OSPF, VRRP, IGMP. That is the machine's own traffic, and no drop.
fn is_of_the_link(packet: &[u8]) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        // 224.0.0.0/24 (RFC 5771 section 4) and the limited broadcast.
        Some(4) => packet.get(16..20).is_some_and(|to| to.starts_with(&[224, 0, 0]) || to == [255; 4]),
        // The scopes of the interface and of the link (RFC 4291 section 2.7).
        Some(6) => packet.get(24..26).is_some_and(|to| matches!(to, [0xff, flags] if matches!(flags & 0x0f, 1 | 2))),
        _ => false,
    }
}

impl CaptureSource {
    /// Takes the sockets and queues that the watcher opened again.
    fn exchange_captures(&mut self) {
        let Some(exchange) = self.shared.exchange.get(self.worker) else { return };
        let parts = std::mem::take(&mut *exchange.lock());
        for part in parts {
            let (port, captures) = match part {
                NewPart::Captures(port, captures) => (port, captures),
                NewPart::Injector(injector) => {
                    self.new_injectors.push(injector);
                    continue;
                }
            };
            let Some(current) = self.captures.get_mut(port) else { continue };
            // Never both at once: each frame would be judged twice.
            for old in current.iter() {
                if let Err(error) = old.stop() {
                    tracing::warn!(%error, "a capture socket cannot be stopped");
                }
            }
            captures.iter().for_each(start_capture);
            self.shared.retired.lock().extend(std::mem::replace(current, captures));
            self.shared.stalled.clear(port, self.worker);
            self.shared.wake_watcher();
        }
    }

    /// Counts the frames that the kernel had no room for, now and then, and looks for rings that take none any more. Returns their
    /// number, if it was read.
    fn read_drops(&mut self, now: Time) -> Option<u64> {
        if now.since(self.drops_read) < DROPS_INTERVAL {
            return None;
        }
        self.drops_read = now;
        let mut lost = 0;
        for (port, captures) in self.captures.iter_mut().enumerate() {
            for capture in captures {
                let missed = capture.missed();
                self.metrics.capture_dropped.add(missed.frames);
                lost += missed.frames;
                if missed.stalled && self.shared.stalled.mark(port, self.worker) {
                    self.shared.wake_watcher();
                }
            }
        }
        Some(lost)
    }

    /// Sleeps until a frame arrives, a key is woken, or `deadline`.
    fn sleep(&self, deadline: Option<Time>) {
        let until = deadline.map_or(MAX_SLEEP, |deadline| deadline.since(clock::now()).min(MAX_SLEEP));
        // Rounded up, so that a deadline is over when we wake, instead of almost over again and again.
        let millis = i32::try_from(until.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
        self.metrics.polls.inc();
        let captures = || self.captures.iter().flatten();
        // A poll's list is small, and this is not the path of a busy worker.
        let mut fds: Vec<PollFd<'_>> = captures().map(|c| PollFd::new(c.as_fd(), PollFlags::POLLIN)).collect();
        fds.extend(self.wake.notify_fd(self.worker).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // EINTR is as good as any other reason for a turn.
        let _ = poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX));
        if fds.last().is_some_and(|fd| fd.revents().is_some_and(|e| e.contains(PollFlags::POLLIN))) {
            self.wake.clear(self.worker);
        }
        for (capture, fd) in captures().zip(&fds) {
            if fd.revents().is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP)) {
                capture.clear_error();
            }
        }
    }
}

fn start_capture(capture: &Capture) {
    if let Err(error) = capture.start() {
        tracing::error!(%error, "a capture socket cannot be started");
    }
}

/// The wall clock in nanoseconds since 1970, as the ring stamps frames.
fn wall_clock_nanos() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |t| {
        let nanos = u64::try_from(t.tv_nsec()).unwrap_or(0);
        u64::try_from(t.tv_sec()).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_for_a_device_above_a_data_interface_are_counted_unless_somebody_has_them() {
        let metrics = WorkerMetrics::default();
        let packet = [0x45; 20];
        for index in [3, 4, 5] {
            let frame = Received::Stacked { index, length: 60, packet: &packet };
            assert!(count_frame(frame, &LocalRoutes::default(), &[3, 4], &mut [], &metrics).is_none());
        }
        let mut all = crate::datapath::DatapathMetrics::new(0, []);
        all.workers.push(Arc::new(metrics));
        assert_eq!(all.dropped(Reason::NotForUs), 1);
    }

    #[test]
    fn stalled_ring_is_reported_once_and_stays_a_condition_until_it_is_replaced() {
        let stalled = Stalled::new(2);
        assert!(stalled.mark(1, 63) && !stalled.mark(1, 63) && stalled.mark(1, 0));
        assert!(stalled.requested(1) && !stalled.requested(0) && stalled.take_request(1) && !stalled.take_request(1));
        stalled.clear(1, 63);
        assert_eq!(stalled.ports().collect::<Vec<_>>(), [1], "the other worker's has not been replaced");
        assert!(!stalled.mark(1, 0), "it is being replaced");
        stalled.clear(1, 0);
        assert_eq!(stalled.ports().count(), 0);
        assert!(stalled.mark(1, 0), "it has stalled again");
    }
}
