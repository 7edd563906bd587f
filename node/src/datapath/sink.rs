//! A worker's sink: re-injection, answers to rejected packets, the queues to the other members, and the counters.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::hold::HoldCounts;
use palisade_engine::packet_loop::{PacketMeta, PacketOutcome, PacketSink, QueueRoom};
use palisade_engine::parse::{self, Checksum, Kind, Packet, Tcp, complete_sctp};
use palisade_engine::{Hint, HoldKey, Ip, LoggedDecision, Proposal, Reason, Time, Traffic, WorkerSet};

use super::Sinks;
use super::inject::Injector;
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
    injector: Injector,
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
        injector: Injector,
        sinks: Sinks,
        connection_log: ConnectionLog,
        wake: WorkerWake,
        metrics: Arc<WorkerMetrics>,
    ) -> InjectSink {
        InjectSink {
            injector,
            sinks,
            connection_log,
            wake,
            metrics,
            errors: Bucket::new(now),
            resets: Bucket::new(now),
            answer: vec![0; parse::rejection::MAX_LENGTH].into_boxed_slice(),
            scratch: Vec::new(),
        }
    }

    /// Cuts a merged packet of a tunnel, which the kernel does not take back in one piece.
    fn forward_segmented(&mut self, vnet: &VnetHeader, bytes: &[u8]) -> Result<(), Reason> {
        self.metrics.segmented_packets.inc();
        let injector = &mut self.injector;
        let mut sent = Ok(());
        segment::segment(vnet, bytes, &mut |segment| {
            if injector.send(&VnetHeader::default(), segment).is_err() {
                sent = Err(Reason::InjectFailed);
            }
        })?;
        sent
    }
}

impl PacketSink<VnetHeader> for InjectSink {
    #[inline]
    fn forward(&mut self, packet: &Packet, vnet: &VnetHeader, bytes: &[u8]) -> Result<(), Reason> {
        if !vnet.matches(bytes, packet.transport) {
            return self.forward_segmented(vnet, bytes);
        }
        let (mut vnet, mut bytes) = (*vnet, bytes);
        if packet.kind == Kind::Sctp && vnet.checksum() == Checksum::Partial {
            // The kernel would complete it as an Internet checksum: `virtio_net_hdr` knows no other.
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
        if let Some(answer) = self.answer.get(..length)
            && let Err(error) = self.injector.send(&VnetHeader::default(), answer)
        {
            tracing::debug!(%error, "an answer to a rejected packet could not be sent");
        }
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
