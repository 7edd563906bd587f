//! Hints: what peers report about sessions that open and close.
//!
//! A hint is trusted as far as its sender, but it never admits more than the packets of a handshake: an establishment needs
//! the log. Hints may be lost, duplicated and reordered. Merging is monotonic, so the order does not matter: the server's SYN
//! parameters, once known, stay, and so does a reply that was seen.

use std::time::Duration;

use crate::engine::Engine;
use crate::event::{EndpointSnapshot, Event, Hint, Proposal, ProvisionalSegment, TcpSnapshot};
use crate::id::{MemberId, SessionId};
use crate::pipeline::CLOSE_OVERDUE;
use crate::session::{Close, CloseCause, HalfOpen, HandshakeState};
use crate::table::Shard;
use crate::table::fragments::FirstFragment;
use crate::table::half_open::{HalfOpenEntry, same_connection, same_ends};
use crate::table::session::Session;
use crate::time::Time;
use crate::tuple::{Direction, PerDirection, Protocol, Tuple};
use crate::types::Wake;
use crate::verdict::HoldKey;
use crate::worker_set::WorkerSet;

/// The time since its last packet and its last confirmation within which a session's snapshot counts as first-hand.
const FIRST_HAND_MAX_AGE: Duration = Duration::from_secs(2);

/// Maximum number of provisional segments in one hint.
const MAX_PROVISIONAL: usize = 16;

impl Engine {
    pub(crate) fn take_hint(
        &self,
        now: Time,
        from: MemberId,
        hint: &Hint,
        events: &mut Vec<Event>,
        wake: &mut dyn Wake,
    ) {
        match hint {
            Hint::HalfOpen(open) => self.hint_half_open(now, open, wake),
            Hint::Abort(id) => self.hint_abort(*id, wake),
            Hint::Fin { id, direction, end } => self.hint_fin(now, *id, *direction, *end, events),
            Hint::Rst { id } => {
                if let Some((mut shard, slot)) = self.table.locate(*id)
                    && let Some(track) = shard.sessions.get_mut(slot).and_then(|s| s.local.track.as_mut())
                    && track.record_peer_rst()
                {
                    shard.finished.push_back((now + CLOSE_OVERDUE, *id, slot));
                    shard.sessions.arm(slot, now, self.active_policy().timeouts());
                }
            }
            Hint::Query(tuple) => self.reply_to_query(now, tuple, events),
            Hint::Progress { id, snapshot, provisional } => {
                self.hint_progress(now, from, *id, snapshot, provisional, wake)
            }
            Hint::FirstFragment { datagram, end, egress } => {
                let first = FirstFragment { end: *end, egress: *egress };
                self.hint_first_fragment(now, datagram, first, wake);
            }
            Hint::FragmentQuery(datagram) => self.reply_to_fragment_query(now, datagram, events),
            Hint::Reset(original) => {
                self.answer_ended(now, original, true);
            }
            Hint::Ended { original, edges } => self.merge_edges(original, edges),
        }
    }

    fn hint_half_open(&self, now: Time, open: &HalfOpen, wake: &mut dyn Wake) {
        let tcp = matches!(open.protocol, HandshakeState::Tcp { .. });
        if open.reply != open.original.inverse() || tcp != (open.original.protocol == Protocol::TCP) {
            return;
        }
        let hash = self.table.hash(&open.original);
        let workers = {
            let mut shard = self.table.shard_for(hash);
            self.merge(&mut shard, hash, open, now)
        };
        if !workers.is_empty() {
            wake.wake(workers, HoldKey(hash));
        }
    }

    /// Merges a half-open session into the table. Returns the workers that may have waited for it.
    fn merge(&self, shard: &mut Shard, hash: u64, open: &HalfOpen, now: Time) -> WorkerSet {
        let session = shard.sessions.find(hash, &open.original).and_then(|slot| shard.sessions.get(slot));
        let told = (&open.original, &open.protocol);
        let same_as = |s: &Session| s.is_open() && same_connection((s.original(), &s.handshake_state()), told);
        if session.is_some_and(|s| s.id() == open.id || same_as(s)) {
            return WorkerSet::EMPTY;
        }
        let same = |half: &HalfOpenEntry| {
            // The ids may differ: two members may have seen copies of one SYN before either hint arrived. And one id may have
            // two entries: two members may have seen SYN-ACKs with different ISNs.
            half.open.original == open.original
                && same_ends(&half.open.protocol, &open.protocol)
                && (half.open.id == open.id || !half.aborted)
                // In a protocol without handshakes, both ends may have sent first, at different members.
                || half.open.original == open.reply
                    && matches!(half.open.protocol, HandshakeState::Generic { .. })
                    && matches!(open.protocol, HandshakeState::Generic { .. })
        };
        let known =
            shard.half_open.lookup(hash, &open.original).find(|&slot| shard.half_open.get(slot).is_some_and(same));
        let Some(slot) = known else {
            self.table.insert_half_open(shard, hash, *open, now);
            return shard.queries.take(hash);
        };
        let Some(half) = shard.half_open.get_mut(slot) else { return WorkerSet::EMPTY };
        let opposite = half.open.original != open.original;
        let protocol = match (half.open.protocol, open.protocol) {
            (HandshakeState::Tcp { client, server: ours }, HandshakeState::Tcp { server: theirs, .. }) => {
                HandshakeState::Tcp { client, server: ours.or(theirs) }
            }
            (HandshakeState::Generic { replied: ours }, HandshakeState::Generic { replied: theirs }) => {
                HandshakeState::Generic { replied: ours || theirs || opposite }
            }
            (ours, _) => ours,
        };
        let newer = open.generation > half.open.generation;
        let id = half.open.id.min(open.id);
        if opposite && open.id < half.open.id {
            // The lower id wins, and its direction with it.
            half.open = HalfOpen { id: half.open.id, ..*open };
            half.proposed = None;
            half.passed = PerDirection::default();
        } else if !opposite {
            if newer {
                half.open.generation = open.generation;
                half.open.rule = open.rule;
            }
            // The member that forwards the client's packets learns where they leave.
            if half.open.id == open.id && !half.open.protocol.is_answered() {
                half.open.egress = open.egress;
            }
        }
        half.open.protocol = protocol;
        half.open.challenge = open.challenge.or(half.open.challenge);
        let workers = std::mem::take(&mut half.waiters);
        if half.open.id != id {
            self.table.rename_half_open(shard, slot, id);
        }
        shard.half_open.touch(slot, now);
        workers | shard.queries.take(hash)
    }

    fn hint_abort(&self, id: SessionId, wake: &mut dyn Wake) {
        let Some((mut shard, slot)) = self.table.locate_half_open(id) else { return };
        let Some(half) = shard.half_open.get_mut(slot) else { return };
        let (workers, hash) = (std::mem::take(&mut half.waiters), half.hash());
        half.aborted = true;
        if half.proposed.is_none() {
            self.table.remove_half_open(&mut shard, slot);
        }
        drop(shard);
        if !workers.is_empty() {
            wake.wake(workers, HoldKey(hash));
        }
    }

    fn hint_fin(&self, now: Time, id: SessionId, direction: Direction, end: u32, events: &mut Vec<Event>) {
        let Some((mut shard, slot)) = self.table.locate(id) else { return };
        let Some(session) = shard.sessions.get_mut(slot) else { return };
        let is_open = session.is_open();
        let Some(track) = session.local.track.as_mut() else { return };
        let was = track.both_fins_known();
        track.record_peer_fin(direction, end);
        if !is_open {
            return;
        }
        if track.take_fin_close() {
            events.push(Event::Propose(Proposal::Close(Close { id, cause: CloseCause::Fin })));
        }
        if !was && track.both_fins_known() {
            shard.finished.push_back((now + CLOSE_OVERDUE, id, slot));
        }
        shard.sessions.arm(slot, now, self.active_policy().timeouts());
    }

    fn hint_progress(
        &self,
        now: Time,
        from: MemberId,
        id: SessionId,
        snapshot: &TcpSnapshot,
        provisional: &[(Direction, ProvisionalSegment)],
        wake: &mut dyn Wake,
    ) {
        let peers = self.reachable_peers();
        let Some(place) = self.cluster_state().members.keys().position(|id| *id == from) else { return };
        let Some((mut shard, slot)) = self.table.locate(id) else { return };
        let Some(session) = shard.sessions.get_mut(slot) else { return };
        let original = *session.original();
        let Some(track) = session.local.track.as_mut() else { return };
        let answered = track.record_reply(place, snapshot, peers, now);
        if track.is_ending() {
            shard.sessions.arm(slot, now, self.active_policy().timeouts());
        }
        for (direction, segment) in provisional.iter().take(MAX_PROVISIONAL) {
            shard.provisional.record(id, *direction, *segment, now);
        }
        if !answered {
            return;
        }
        let hash = self.table.hash(&original);
        let workers = shard.queries.take(hash);
        drop(shard);
        if !workers.is_empty() {
            wake.wake(workers, HoldKey(hash));
        }
    }

    /// Replies to a query with this member's state of a tuple.
    fn reply_to_query(&self, now: Time, tuple: &Tuple, events: &mut Vec<Event>) {
        let hash = self.table.hash(tuple);
        let shard = self.table.shard_for(hash);
        if let Some(slot) = shard.sessions.find(hash, tuple)
            && let Some(session) = shard.sessions.get(slot)
            && let Some(track) = &session.local.track
        {
            // What this member knows is not authoritative if a silent member, or this one before a restart, may have forwarded
            // packets that are unknown here. Packets that passed provisionally do not count.
            let authoritative = !self.may_have_moved_unseen(track, now);
            let saw_packets = session.local.has_passed()
                && session.local.idle(now) < FIRST_HAND_MAX_AGE
                && track.is_confirmed_within(FIRST_HAND_MAX_AGE, now);
            let mut snapshot = track.snapshot(now, authoritative && saw_packets);
            if !authoritative {
                snapshot.endpoints = snapshot.endpoints.map(|end| EndpointSnapshot { age_ms: None, ..end });
            }
            let provisional = shard.provisional.for_session(session.id(), now).take(MAX_PROVISIONAL).collect();
            events.push(Event::Hint(Hint::Progress { id: session.id(), snapshot, provisional }));
        }
        for slot in shard.half_open.lookup(hash, tuple) {
            if let Some(half) = shard.half_open.get(slot).filter(|h| !h.aborted) {
                events.push(Event::Hint(Hint::HalfOpen(Box::new(half.open))));
            }
        }
    }
}
