//! Packets of established sessions.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Known;
use super::zones::PacketRoutes;
use crate::blind_intervals::MAX_UNSEEN_BYTES;
use crate::engine::Engine;
use crate::event::{Event, Hint, Proposal, ProvisionalSegment};
use crate::parse::{Kind, Packet, Tcp};
use crate::session::{Close, CloseCause, SynParams};
use crate::table::Shard;
use crate::table::session::{Session, SessionFlag};
use crate::track::tcp::snapshot_query::Resolution;
use crate::track::tcp::{MAX_SYN_DATA, SegmentOutcome, Track, WindowCheck, seq_diff};
use crate::track::{State, generic};
use crate::tuple::{Direction, PerDirection};
use crate::types::{Context, LeaseState};
use crate::verdict::{HoldClass, HoldKey, Reason, Verdict};

/// How long the member that is to propose a close has for it. After that every member proposes it.
pub(crate) const CLOSE_OVERDUE: Duration = Duration::from_secs(2);

/// A segment without SYN that has the tuple of an established connection.
struct Arrival<'a, 'c> {
    slot: u32,
    packet: &'a Packet,
    tcp: &'a Tcp,
    direction: Direction,
    syns: PerDirection<SynParams>,
    context: &'a Context<'c>,
}

/// How far a connection has ended.
#[derive(PartialEq, Eq)]
struct Ending {
    both_fins_known: bool,
    /// `None`: it has not begun to end.
    state: Option<State>,
}

impl Ending {
    fn new(track: &Track, closed: Option<CloseCause>) -> Ending {
        Ending { both_fins_known: track.both_fins_known(), state: track.is_ending().then(|| track.state(closed)) }
    }
}

/// How a segment was resolved for which the window check was inconclusive.
enum Resolved {
    Outcome(SegmentOutcome),
    Verdict(Verdict),
}

impl Engine {
    /// The verdict on a packet with the tuple of a session. `None`: it is not of that session, and may open another one.
    pub(super) fn established(
        &self,
        shard: &mut Shard,
        slot: u32,
        packet: &Packet,
        context: &Context<'_>,
        routes: Option<&PacketRoutes>,
        events: &mut Vec<Event>,
    ) -> Known {
        let Some(session) = shard.sessions.get_mut(slot) else { return Ok(None) };
        let Some(direction) = session.direction(&packet.tuple) else { return Ok(None) };
        if let Err(reason) = self.judge_zones(session, direction, context, routes)? {
            // A closed session's tuple may be taken over by a connection of other zones.
            let verdict = match reason {
                Reason::PolicyReject => Verdict::Reject(reason),
                _ => Verdict::Drop(reason),
            };
            return Ok(session.is_open().then_some(verdict));
        }
        if session.local.flags.has(SessionFlag::Expiring) {
            return Ok(self.expiring(shard, slot, packet, direction, context, events));
        }
        Ok(self.judge_session_packet(shard, slot, packet, direction, context, events))
    }

    /// The verdict on a packet of a session that this member reported as idle.
    fn expiring(
        &self,
        shard: &mut Shard,
        slot: u32,
        packet: &Packet,
        direction: Direction,
        context: &Context<'_>,
        events: &mut Vec<Event>,
    ) -> Option<Verdict> {
        let session = shard.sessions.get(slot)?;
        // A packet that would pass is held until the cluster knows that the session is in use. It is judged again then, so this
        // time it must change nothing.
        let (before, id) = (session.local.clone(), session.id());
        let (events_before, finished_before) = (events.len(), shard.finished.len());
        let verdict = self.judge_session_packet(shard, slot, packet, direction, context, events);
        if verdict != Some(Verdict::Forward) {
            return verdict;
        }
        shard.sessions.get_mut(slot)?.local.rewind(before);
        // What became known of the connection stays known, and other packets may wait for it.
        let mut number = 0;
        events.retain(|event| {
            number += 1;
            number <= events_before || matches!(event, Event::Wake { .. })
        });
        shard.finished.truncate(finished_before);
        if context.lease != LeaseState::Valid {
            return Some(Verdict::Drop(Reason::LeaseGrace));
        }
        let hash = self.table.hash(&packet.tuple);
        if shard.queries.await_commit(hash, context.worker, context.now) {
            events.push(Event::Propose(Proposal::Refresh(id)));
        }
        Some(Verdict::Hold(HoldKey(hash), HoldClass::Matched))
    }

    fn judge_session_packet(
        &self,
        shard: &mut Shard,
        slot: u32,
        packet: &Packet,
        direction: Direction,
        context: &Context<'_>,
        events: &mut Vec<Event>,
    ) -> Option<Verdict> {
        let session = shard.sessions.get_mut(slot)?;
        let Kind::Tcp(tcp) = &packet.kind else {
            if !generic::fits(&packet.kind, direction) {
                return Some(Verdict::Drop(Reason::NoSession));
            }
            session.local.account(direction, packet.length, context.now);
            shard.sessions.mark_dirty(slot);
            return Some(Verdict::Forward);
        };
        let syns = session.replicated().syn_params()?;
        if tcp.has(Tcp::SYN) {
            return judge_syn(&syns, direction, tcp, session.replicated().closed());
        }
        self.judge_segment(shard, &Arrival { slot, packet, tcp, direction, syns, context }, events)
    }

    fn judge_segment(&self, shard: &mut Shard, arrival: &Arrival<'_, '_>, events: &mut Vec<Event>) -> Option<Verdict> {
        let session = shard.sessions.get_mut(arrival.slot)?;
        let closed = session.replicated().closed();
        let track = session.local.track.as_mut()?;
        let ending_before = Ending::new(track, closed);
        let (mut outcome, lost_with_silent_peers) = self.check_segment(track, arrival, closed);
        if outcome == SegmentOutcome::Inconclusive {
            match self.resolve_inconclusive(shard, arrival, lost_with_silent_peers, events)? {
                Resolved::Outcome(resolved) => outcome = resolved,
                Resolved::Verdict(verdict) => return Some(verdict),
            }
        }
        match outcome {
            SegmentOutcome::Inconclusive => Some(Verdict::Drop(Reason::TcpWindow)),
            SegmentOutcome::Invalid(reason) => closed.is_none().then_some(Verdict::Drop(reason)),
            SegmentOutcome::InWindow | SegmentOutcome::Fin(_) | SegmentOutcome::Rst => {
                self.forward_segment(shard, arrival, outcome, &ending_before, events)
            }
        }
    }

    /// Checks a segment against what this member knows, and, where packets may have passed unseen, against the takeover bound.
    /// Also returns whether the bound is at its maximum, so that silent members may know more than all others.
    fn check_segment(
        &self,
        track: &mut Track,
        arrival: &Arrival<'_, '_>,
        closed: Option<CloseCause>,
    ) -> (SegmentOutcome, bool) {
        let Arrival { tcp, direction, syns, context, .. } = arrival;
        let (opposite, now) = (direction.flip(), context.now);
        let unseen = self.may_have_moved_unseen(track, now);
        let opposite_confirmed_at = track.confirmed_at(opposite);
        let mut outcome = track.check_segment(syns, *direction, tcp, closed, WindowCheck::Relaxed, now);
        if !unseen {
            return (outcome, false);
        }
        let mut lost_with_silent_peers = false;
        if outcome == SegmentOutcome::Inconclusive {
            let bounds = self.max_unseen_bytes(track.confirmation_ages(now), now);
            // Beyond the bound a segment is never accepted on its own. Otherwise, while a member is silent, one forged segment could
            // move the window and lock the real connection out. The exception is a bound that has reached its maximum.
            lost_with_silent_peers = bounds.iter().any(|bound| *bound == MAX_UNSEEN_BYTES);
            if bounds != PerDirection::default() {
                outcome = track.check_segment(syns, *direction, tcp, closed, WindowCheck::Widened(bounds), now);
                let accepted = outcome != SegmentOutcome::Inconclusive;
                self.takeover_counters.within_bound.fetch_add(u64::from(accepted), Ordering::Relaxed);
            }
        }
        if outcome != SegmentOutcome::Inconclusive {
            // A segment confirms the number of its own direction only. Otherwise forged ones could confirm both.
            track.restore_confirmed_at(opposite, opposite_confirmed_at);
        }
        (outcome, lost_with_silent_peers)
    }

    /// The consequences of a segment that belongs to its connection.
    fn forward_segment(
        &self,
        shard: &mut Shard,
        arrival: &Arrival<'_, '_>,
        outcome: SegmentOutcome,
        ending_before: &Ending,
        events: &mut Vec<Event>,
    ) -> Option<Verdict> {
        let Arrival { slot, direction, context, .. } = *arrival;
        let may_propose = context.lease == LeaseState::Valid;
        let session = shard.sessions.get_mut(slot)?;
        let (id, closed) = (session.id(), session.replicated().closed());
        let track = session.local.track.as_mut()?;
        let ending = Ending::new(track, closed);
        match outcome {
            SegmentOutcome::Fin(end) if closed.is_none() => {
                events.push(Event::Hint(Hint::Fin { id, direction, end }));
                if may_propose && track.take_fin_close() {
                    events.push(Event::Propose(Proposal::Close(Close { id, cause: CloseCause::Fin })));
                }
                if ending.both_fins_known && !ending_before.both_fins_known {
                    shard.finished.push_back((context.now + CLOSE_OVERDUE, id, slot));
                }
            }
            SegmentOutcome::Rst => {
                events.push(Event::Hint(Hint::Rst { id }));
                if may_propose && track.take_rst_close() {
                    events.push(Event::Propose(Proposal::Close(Close { id, cause: CloseCause::Rst })));
                    shard.finished.push_back((context.now + CLOSE_OVERDUE, id, slot));
                }
            }
            SegmentOutcome::Fin(_)
            | SegmentOutcome::InWindow
            | SegmentOutcome::Invalid(_)
            | SegmentOutcome::Inconclusive => {}
        }
        session.local.account(direction, arrival.packet.length, context.now);
        shard.sessions.mark_dirty(slot);
        if ending.state != ending_before.state {
            // The session may expire earlier than it was armed for.
            shard.sessions.arm(slot, context.now, self.active_policy().timeouts());
        }
        Some(Verdict::Forward)
    }

    /// Resolves a segment of an open connection for which the window check was inconclusive.
    fn resolve_inconclusive(
        &self,
        shard: &mut Shard,
        arrival: &Arrival<'_, '_>,
        lost_with_silent_peers: bool,
        events: &mut Vec<Event>,
    ) -> Option<Resolved> {
        let Arrival { packet, tcp, direction, ref syns, context, .. } = *arrival;
        let track = shard.sessions.get_mut(arrival.slot)?.local.track.as_mut()?;
        match track.resolve(tcp, self.reachable_peers(), lost_with_silent_peers, context.now) {
            Resolution::QueryPeers => events.push(Event::Hint(Hint::Query(packet.tuple))),
            Resolution::AwaitReplies => {}
            Resolution::Strict => {
                let outcome = track.check_segment(syns, direction, tcp, None, WindowCheck::Strict, context.now);
                return Some(Resolved::Outcome(outcome));
            }
            Resolution::Provisional => {
                if let Some(resolved) = self.resolve_unknown(shard, arrival, events) {
                    return Some(resolved);
                }
            }
        }
        let hash = self.table.hash(&packet.tuple);
        shard.queries.await_reply(hash, context.worker, context.now);
        // Not from the budget of packets that match: a flood of forgeries must not displace those.
        Some(Resolved::Verdict(Verdict::Hold(HoldKey(hash), HoldClass::Unmatched)))
    }

    /// Resolves a segment of a connection whose numbers no live member knows: it corroborates a provisional segment of the
    /// opposite direction, or passes provisionally itself. `None`: neither.
    fn resolve_unknown(
        &self,
        shard: &mut Shard,
        arrival: &Arrival<'_, '_>,
        events: &mut Vec<Event>,
    ) -> Option<Resolved> {
        let Arrival { slot, packet, tcp, direction, ref syns, context } = *arrival;
        let session = shard.sessions.get_mut(slot)?;
        let id = session.id();
        let track = session.local.track.as_mut()?;
        for (of, opposite) in shard.provisional.for_session(id, context.now) {
            if of == direction {
                continue;
            }
            let outcome = track.corroborate(syns, direction, tcp, &opposite, context.now);
            if outcome == SegmentOutcome::Inconclusive {
                continue;
            }
            // Other packets of the connection may wait for this, here and at other members.
            let snapshot = track.snapshot(context.now, true);
            events.push(Event::Hint(Hint::Progress { id, snapshot, provisional: Vec::new() }));
            let hash = self.table.hash(&packet.tuple);
            let workers = shard.queries.take(hash);
            if !workers.is_empty() {
                events.push(Event::Wake { workers, key: HoldKey(hash) });
            }
            return Some(Resolved::Outcome(outcome));
        }
        if tcp.has(Tcp::RST) {
            return Some(Resolved::Verdict(Verdict::Drop(Reason::TcpRst)));
        }
        if !track.allow_provisional(direction) {
            return None;
        }
        let segment = ProvisionalSegment { seq_end: tcp.end(), ack: tcp.ack, age_ms: 0 };
        shard.provisional.record(id, direction, segment, context.now);
        self.takeover_counters.provisional.fetch_add(1, Ordering::Relaxed);
        session.local.account(direction, packet.length, context.now);
        shard.sessions.mark_dirty(slot);
        Some(Resolved::Verdict(Verdict::Forward))
    }

    /// How many other members that are not silent may know packets of a session.
    pub(crate) fn reachable_peers(&self) -> u32 {
        self.forwarding_peers.load(Ordering::Relaxed).saturating_sub(self.silent_peers.load(Ordering::Relaxed))
    }
}

impl Session {
    /// Whether a packet belongs to this connection by what this member knows. Changes nothing.
    pub(super) fn is_in_window(&self, packet: &Packet, context: &Context<'_>) -> bool {
        let (Kind::Tcp(tcp), Some(direction), Some(syns), Some(mut track)) =
            (&packet.kind, self.direction(&packet.tuple), self.replicated().syn_params(), self.local.track)
        else {
            return false;
        };
        let outcome =
            track.check_segment(&syns, direction, tcp, self.replicated().closed(), WindowCheck::Relaxed, context.now);
        let from_there =
            self.zone(direction) == context.ingress || self.comes_from(direction, context.ingress, context.antispoof);
        from_there && outcome.belongs()
    }
}

/// The verdict on a segment with SYN that has the tuple of an established connection. `None`: it may open another one.
pub(crate) fn judge_syn(
    syns: &PerDirection<SynParams>,
    direction: Direction,
    tcp: &Tcp,
    closed: Option<CloseCause>,
) -> Option<Verdict> {
    if tcp.has(Tcp::FIN) || tcp.has(Tcp::RST) {
        return Some(Verdict::Drop(Reason::TcpFlags));
    }
    // A late copy of the handshake is harmless: its receiver answers with a challenge ACK (RFC 5961 section 4). Any other SYN
    // changes nothing here. It may open a new connection, if policy allows it; only a complete handshake shows that the old
    // connection is dead. Either end may have sent a SYN or a SYN-ACK: a simultaneous open (RFC 9293 section 3.5).
    let (sender, receiver) = (&syns[direction], &syns[direction.flip()]);
    // The acknowledgement may cover the SYN's data (RFC 7413).
    let acked_data = seq_diff(tcp.ack, receiver.isn.wrapping_add(1));
    let is_copy = tcp.seq == sender.isn && (!tcp.has(Tcp::ACK) || (0..=MAX_SYN_DATA).contains(&acked_data));
    (is_copy && closed.is_none()).then_some(Verdict::Forward)
}
