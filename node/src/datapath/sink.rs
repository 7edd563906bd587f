//! A worker's sink: re-injection, answers to rejected packets, the queues to the other members, and the counters.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::hold::HoldCounts;
use palisade_engine::packet_loop::{PacketMeta, PacketOutcome, PacketSink, QueueRoom};
use palisade_engine::parse::rejection::Unreachable;
use palisade_engine::parse::{self, Checksum, Kind, Packet, Tcp, complete_sctp};
use palisade_engine::{Hint, HoldKey, Ip, LoggedDecision, Proposal, Reason, Reset, Time, Traffic, WorkerSet, ZoneId};

use super::Sinks;
use super::capture::MAX_FRAME_BYTES;
use super::inject::{Injector, Injectors};
use super::limit::Bucket;
use super::metrics::WorkerMetrics;
use super::segment;
use super::vnet::VnetHeader;
use super::wake::WorkerWake;
use crate::connection_log::ConnectionLog;
use crate::queue;

impl PacketMeta for VnetHeader {
    #[inline]
    fn checksum(&self) -> Checksum {
        VnetHeader::checksum(self)
    }

    #[inline]
    fn segments(&self, length: u32) -> u64 {
        VnetHeader::segments(self, length)
    }
}

/// Where a worker's packets go.
pub(crate) struct InjectSink {
    injectors: Injectors,
    sinks: Sinks,
    connection_log: ConnectionLog,
    wake: WorkerWake,
    metrics: Arc<WorkerMetrics>,
    /// Limits ICMP errors.
    errors: Bucket,
    /// Limits RSTs that answer no SYN.
    resets: Bucket,
    /// An answer to a rejected packet.
    answer: Box<[u8]>,
    /// A packet that must be changed before it is re-injected.
    scratch: Vec<u8>,
}

impl InjectSink {
    pub(crate) fn new(
        now: Time,
        injectors: Injectors,
        sinks: Sinks,
        connection_log: ConnectionLog,
        wake: WorkerWake,
        metrics: Arc<WorkerMetrics>,
    ) -> InjectSink {
        InjectSink {
            injectors,
            sinks,
            connection_log,
            wake,
            metrics,
            errors: Bucket::new(now),
            resets: Bucket::new(now),
            answer: vec![0; parse::rejection::MAX_LENGTH].into_boxed_slice(),
            scratch: Vec::with_capacity(MAX_FRAME_BYTES),
        }
    }

    /// Re-injects through another queue of a device from now on.
    pub(crate) fn set_injector(&mut self, place: Option<usize>, injector: Injector) {
        self.injectors.replace(place, injector);
    }

    /// Sends a RST that answers no packet.
    pub(crate) fn send_reset(&mut self, reset: &Reset) {
        if let Some(length) = reset.write(&mut self.answer) {
            self.send_answer(length);
        }
    }

    /// Sends the first bytes of `answer`.
    fn send_answer(&mut self, length: usize) {
        if let Some(answer) = self.answer.get(..length)
            && let Err(error) = self.injectors.answers().send(&VnetHeader::default(), answer)
        {
            tracing::debug!(%error, "an answer to a packet could not be sent");
        }
    }
}

/// A packet that was merged with complete checksums. The kernel cuts only what leaves them to it, so they are left to it.
fn forward_merged(
    injector: &mut Injector,
    scratch: &mut Vec<u8>,
    metrics: &WorkerMetrics,
    packet: &Packet,
    (vnet, bytes): (&VnetHeader, &[u8]),
) -> Result<(), Reason> {
    let (at, protocol) = (usize::from(packet.transport), packet.tuple.protocol);
    let vnet = vnet.to_complete(at, protocol).ok_or(Reason::InjectFailed)?;
    metrics.segmented_packets.inc();
    scratch.clear();
    scratch.extend_from_slice(bytes);
    segment::leave_checksum(scratch, at, protocol, usize::from(vnet.csum_offset)).ok_or(Reason::InjectFailed)?;
    inject(injector, &vnet, scratch)
}

/// Cuts a merged packet of a tunnel, which the kernel does not take back in one piece.
fn forward_segmented(
    injector: &mut Injector,
    metrics: &WorkerMetrics,
    vnet: &VnetHeader,
    bytes: &[u8],
) -> Result<(), Reason> {
    metrics.segmented_packets.inc();
    let mut sent = Ok(());
    segment::segment(vnet, bytes, &mut |segment| {
        if injector.send(&VnetHeader::default(), segment).is_err() {
            sent = Err(Reason::InjectFailed);
        }
    })?;
    sent
}

#[inline]
fn inject(injector: &mut Injector, vnet: &VnetHeader, bytes: &[u8]) -> Result<(), Reason> {
    injector.send(vnet, bytes).map_err(|error| {
        tracing::trace!(%error, ?vnet, length = bytes.len(), "a packet could not be re-injected");
        Reason::InjectFailed
    })
}

impl PacketSink<VnetHeader> for InjectSink {
    #[inline]
    fn forward(
        &mut self,
        packet: &Packet,
        vnet: &VnetHeader,
        bytes: &[u8],
        egress: Option<ZoneId>,
    ) -> Result<(), Reason> {
        let InjectSink { injectors, scratch, metrics, .. } = self;
        // Without a device there is no interface of this zone.
        let Some(injector) = injectors.for_zone(egress.unwrap_or(ZoneId::UNKNOWN)) else {
            return Err(Reason::EgressMismatch);
        };
        let (transport, protocol) = (usize::from(packet.transport), packet.tuple.protocol);
        if !vnet.needs_checksum() && !vnet.is_gso() {
            return inject(injector, vnet, bytes);
        }
        if vnet.is_gso() {
            let own = vnet.merges(packet.tuple.src.is_v4(), protocol);
            return match (own, vnet.needs_checksum()) {
                (true, true) if vnet.completes(transport, protocol) => inject(injector, vnet, bytes),
                (true, false) => forward_merged(injector, scratch, metrics, packet, (vnet, bytes)),
                _ => forward_segmented(injector, metrics, vnet, bytes),
            };
        }
        // `offload` has completed any other checksum.
        if !vnet.completes(transport, protocol) {
            return Err(Reason::InjectFailed);
        }
        if packet.kind == Kind::Sctp {
            // The kernel would complete it as an Internet checksum: `virtio_net_hdr` knows no other.
            scratch.clear();
            scratch.extend_from_slice(bytes);
            complete_sctp(scratch.get_mut(transport..).unwrap_or_default());
            return inject(injector, &VnetHeader::default(), scratch);
        }
        inject(injector, vnet, bytes)
    }

    /// An ICMP error comes from our own address on the interface that the packet came in by (RFC 1812 section 4.3.2.4), if it
    /// has one, and its rate is limited. So is that of RSTs to segments of no session. A RST that answers a SYN is not limited:
    /// it is no longer than the SYN, and without it the other side would only try again.
    fn reject(&mut self, now: Time, packet: &Packet, bytes: &[u8], router: Option<Ip>) {
        let Some(length) = parse::rejection::build(bytes, packet, router, &mut self.answer) else { return };
        match &packet.kind {
            Kind::Tcp(tcp) if tcp.flags & (Tcp::SYN | Tcp::ACK) == Tcp::SYN => {}
            Kind::Tcp(_) if self.resets.take(now) => {}
            Kind::Tcp(_) => return self.metrics.resets_suppressed.inc(),
            _ if self.errors.take(now) => {}
            _ => return self.metrics.icmp_errors_suppressed.inc(),
        }
        self.send_answer(length);
    }

    /// As the kernel does for what it would route itself: an ICMP error, its rate limited with the others'.
    fn unreachable(
        &mut self,
        now: Time,
        packet: &Packet,
        bytes: &[u8],
        router: Option<Ip>,
        why: &mut dyn FnMut() -> Option<Unreachable>,
    ) {
        if !self.errors.take(now) {
            return self.metrics.icmp_errors_suppressed.inc();
        }
        let Some(why) = why() else { return };
        if let Some(length) = parse::rejection::unreachable(bytes, packet, why, router, &mut self.answer) {
            self.send_answer(length);
        }
    }

    fn set_zones(&mut self, zones: &[ZoneId]) {
        self.injectors.set_zones(zones);
    }

    fn hint_room(&self) -> QueueRoom {
        queue::room(&self.sinks.hints)
    }

    fn send_hint(&mut self, hint: Hint) -> bool {
        self.sinks.hints.try_send(hint).is_ok()
    }

    fn send_proposal(&mut self, proposal: Proposal) -> bool {
        self.sinks.proposals.try_send(proposal).is_ok()
    }

    fn log(&mut self, now: Time, decision: &LoggedDecision) {
        self.connection_log.decided(now, decision);
    }

    fn wake(&mut self, workers: WorkerSet, key: HoldKey) {
        self.wake.send(workers, key);
    }

    #[inline]
    fn record(&mut self, outcome: PacketOutcome, _: &VnetHeader, traffic: Traffic) {
        let Traffic { packets, bytes } = traffic;
        match outcome {
            PacketOutcome::Forwarded => self.metrics.verdicts.forwarded(packets, bytes),
            PacketOutcome::Rejected(reason) => self.metrics.verdicts.rejected(reason, packets, bytes),
            PacketOutcome::Dropped(reason) => self.metrics.verdicts.dropped(reason, packets, bytes),
            PacketOutcome::Held => self.metrics.held_packets.add(packets),
        }
    }

    fn record_hold_time(&mut self, time: Duration) {
        self.metrics.hold.observe(time);
    }

    fn record_lost_hint(&mut self) {
        self.metrics.queue_dropped.hint.inc();
    }

    fn record_lost_proposal(&mut self) {
        self.metrics.queue_dropped.proposal.inc();
    }

    fn record_held_now(&mut self, held: HoldCounts) {
        self.metrics.holds.matched.set(held.matched as u64);
        self.metrics.holds.unmatched.set(held.unmatched as u64);
    }
}
