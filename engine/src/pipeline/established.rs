//! Packets of established sessions.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::blind_intervals::MAX_UNSEEN_BYTES;
use crate::engine::{Context, Engine, Standing};
use crate::event::{Event, Hint, Proposal, ProvisionalSegment, SynParams};
use crate::parse::{Kind, Packet, Tcp};
use crate::policy::Action;
use crate::replica::{Close, CloseCause};
use crate::table::Shard;
use crate::table::session::{Mark, Session};
use crate::track::generic;
use crate::track::tcp::peer_query::Resolution;
use crate::track::tcp::{MAX_SYN_DATA, SegmentOutcome, WindowCheck, seq_diff};
use crate::tuple::Direction;
use crate::verdict::{HoldClass, HoldKey, Reason, Verdict};

/// How long the member whose turn it is has for the close of a finished session.
pub(crate) const CLOSE_OVERDUE: Duration = Duration::from_secs(2);

impl Engine {
    /// The verdict on a packet with the tuple of a session; `None`: it is not of that session, and may open another.
    pub(super) fn established(
        &self,
        shard: &mut Shard,
        slot: u32,
        packet: &Packet,
        context: &Context<'_>,
        events: &mut Vec<Event>,
    ) -> Option<Verdict> {
        let session = shard.sessions.get(slot)?;
        if !session.marks.has(Mark::Expiring) {
            return self.of_session(shard, slot, packet, context, events);
        }
        // What would pass does not before the cluster knows that the session is in use. It is judged again then, so nothing
        // may have changed by it.
        let (before, id) = (session.clone(), session.id);
        let (told, finished) = (events.len(), shard.finished.len());
        let verdict = self.of_session(shard, slot, packet, context, events);
        if verdict != Some(Verdict::Forward) {
            return verdict;
        }
        shard.sessions.get_mut(slot)?.rewind(before);
        // But what became known of the connection stays so, and others may wait for that.
        let mut number = 0;
        events.retain(|event| {
            number += 1;
            number <= told || matches!(event, Event::Wake { .. })
        });
        shard.finished.truncate(finished);
        if context.standing != Standing::Current {
            return Some(Verdict::Drop(Reason::NotCurrent));
        }
        let hash = self.table.hash(&packet.tuple);
        if shard.queries.await_commit(hash, context.worker, context.now) {
            events.push(Event::Propose(Proposal::Refresh(id)));
        }
        Some(Verdict::Hold(HoldKey(hash), HoldClass::Matched))
    }

    fn of_session(
        &self,
        shard: &mut Shard,
        slot: u32,
        packet: &Packet,
        context: &Context<'_>,
        events: &mut Vec<Event>,
    ) -> Option<Verdict> {
        let session = shard.sessions.get_mut(slot)?;
        let direction = session.direction(&packet.tuple)?;
        if session.zone(direction) != context.ingress {
            // A closed session's tuple may be taken over by a connection from elsewhere.
            return session.closed.is_none().then_some(Verdict::Drop(Reason::WrongZone));
        }
        if !self.still_allowed(session) {
            return session.closed.is_none().then_some(Verdict::Drop(Reason::Policy));
        }
        let Kind::Tcp(tcp) = &packet.kind else {
            if !generic::fits(&packet.kind, direction) {
                return Some(Verdict::Drop(Reason::NoSession));
            }
            session.account(direction, packet.length, context.now);
            shard.sessions.busy(slot);
            return Some(Verdict::Forward);
        };
        let ends = session.syn_params()?;
        let (client, server) = (&ends.0, &ends.1);
        if tcp.has(Tcp::SYN) {
            return syn(client, server, direction, tcp, session.closed);
        }
        let (id, closed) = (session.id, session.closed);
        let track = session.track.as_mut()?;
        let was_ending = track.both_fins_known();
        let before = track.ending().then(|| track.state(closed));
        let unsure = self.may_have_moved_unseen(track, context.now);
        let fresh = track.fresh(direction.flip());
        let mut seen = track.check_segment([client, server], direction, tcp, closed, WindowCheck::Relaxed, context.now);
        let mut lost = false;
        if unsure && seen == SegmentOutcome::Inconclusive {
            let bounds = self.max_unseen_bytes(track.confirmation_ages(context.now), context.now);
            // Beyond the bound nobody is believed, unless there is none any longer: or while a member is silent one forged segment
            // could cut a connection off from its own numbers.
            lost = bounds.contains(&MAX_UNSEEN_BYTES);
            if bounds != [0; 2] {
                seen = track.check_segment(
                    [client, server],
                    direction,
                    tcp,
                    closed,
                    WindowCheck::Widened(bounds),
                    context.now,
                );
                self.takeover_counters
                    .within_bound
                    .fetch_add(u64::from(seen != SegmentOutcome::Inconclusive), Ordering::Relaxed);
            }
        }
        if unsure && seen != SegmentOutcome::Inconclusive {
            // One direction's segment shows its own number only: else forged ones could end the doubt about both.
            track.restore_confirmed_at(direction.flip(), fresh);
        }
        if seen == SegmentOutcome::Inconclusive {
            seen = match self.resolve_inconclusive(shard, slot, (packet, direction, tcp), lost, context, events)? {
                Ok(seen) => seen,
                Err(verdict) => return Some(verdict),
            };
        }
        let session = shard.sessions.get_mut(slot)?;
        let track = session.track.as_mut()?;
        let changed = before != track.ending().then(|| track.state(closed));
        let current = context.standing == Standing::Current;
        match seen {
            SegmentOutcome::Inconclusive => return Some(Verdict::Drop(Reason::TcpWindow)),
            SegmentOutcome::Invalid(reason) => return closed.is_none().then_some(Verdict::Drop(reason)),
            SegmentOutcome::InWindow => {}
            SegmentOutcome::Fin(end) if closed.is_none() => {
                events.push(Event::Hint(Hint::Fin { id, direction, end }));
                if current && track.take_fin_close() {
                    events.push(Event::Propose(Proposal::Close(Close { id, cause: CloseCause::Fin })));
                }
                if !was_ending && track.both_fins_known() {
                    shard.finished.push_back((context.now + CLOSE_OVERDUE, id, slot));
                }
            }
            SegmentOutcome::Fin(_) => {}
            SegmentOutcome::Rst => {
                events.push(Event::Hint(Hint::Rst { id }));
                if current && track.take_rst_close() {
                    events.push(Event::Propose(Proposal::Close(Close { id, cause: CloseCause::Rst })));
                    shard.finished.push_back((context.now + CLOSE_OVERDUE, id, slot));
                }
            }
        }
        session.account(direction, packet.length, context.now);
        shard.sessions.busy(slot);
        if changed {
            // Its time may be over earlier than it was when it was armed.
            shard.sessions.arm(slot, context.now, self.law().timeouts());
        }
        Some(Verdict::Forward)
    }

    /// What a segment means that is not near what is known here of its connection, which is not closed; or the verdict on it.
    /// `lost`: members that are silent may have known more.
    fn resolve_inconclusive(
        &self,
        shard: &mut Shard,
        slot: u32,
        (packet, direction, tcp): (&Packet, Direction, &Tcp),
        lost: bool,
        context: &Context<'_>,
        events: &mut Vec<Event>,
    ) -> Option<Result<SegmentOutcome, Verdict>> {
        let session = shard.sessions.get_mut(slot)?;
        let id = session.id;
        let (client, server) = session.syn_params()?;
        let track = session.track.as_mut()?;
        let hash = self.table.hash(&packet.tuple);
        match track.resolve(tcp, self.reachable_peers(), lost, context.now) {
            resolution @ (Resolution::QueryPeers | Resolution::AwaitReplies) => {
                if resolution == Resolution::QueryPeers {
                    events.push(Event::Hint(Hint::Query(packet.tuple)));
                }
            }
            Resolution::Strict => {
                return Some(Ok(track.check_segment(
                    [&client, &server],
                    direction,
                    tcp,
                    None,
                    WindowCheck::Strict,
                    context.now,
                )));
            }
            Resolution::Provisional => {
                let of_the_other = shard.provisional.for_session(id, context.now).filter(|(of, _)| *of != direction);
                let mut meanings = of_the_other
                    .map(|(_, word)| track.corroborate([&client, &server], direction, tcp, &word, context.now));
                let believed = meanings.find(|seen| *seen != SegmentOutcome::Inconclusive);
                drop(meanings);
                if let Some(seen) = believed {
                    // Other packets of it may wait for this, here and elsewhere.
                    let snapshot = track.snapshot(context.now, true);
                    events.push(Event::Hint(Hint::Progress { id, snapshot, provisional: Vec::new() }));
                    let workers = shard.queries.take(hash);
                    if workers != 0 {
                        events.push(Event::Wake { workers, key: HoldKey(hash) });
                    }
                    return Some(Ok(seen));
                }
                if tcp.has(Tcp::RST) {
                    return Some(Err(Verdict::Drop(Reason::TcpRst)));
                }
                if track.allow_provisional(direction) {
                    shard.provisional.record(
                        id,
                        direction,
                        ProvisionalSegment { seq_end: tcp.end(), ack: tcp.ack, age_ms: 0 },
                        context.now,
                    );
                    self.takeover_counters.provisional.fetch_add(1, Ordering::Relaxed);
                    session.account(direction, packet.length, context.now);
                    shard.sessions.busy(slot);
                    return Some(Err(Verdict::Forward));
                }
            }
        }
        shard.queries.await_reply(hash, context.worker, context.now);
        // Not of the budget of what matches: a flood of forgeries must not displace that.
        Some(Err(Verdict::Hold(HoldKey(hash), HoldClass::Unmatched)))
    }

    /// How many other members may have seen packets of a session, and are not silent.
    pub(crate) fn reachable_peers(&self) -> u32 {
        self.forwarding_peers.load(Ordering::Relaxed).saturating_sub(self.silent_peers.load(Ordering::Relaxed))
    }

    /// Does the policy in force still allow this session? Asked anew once per session and policy.
    pub(super) fn still_allowed(&self, session: &mut Session) -> bool {
        let generation = self.generation();
        if session.was_judged_by(generation) {
            return true;
        }
        let law = self.law();
        let allowed = law.decide(session.ingress, session.egress, &session.original).action == Action::Accept;
        if allowed {
            session.allowed_by(law.generation);
        }
        allowed
    }
}

impl Session {
    /// Is this a segment of it, by what this member knows? Changes nothing.
    pub(super) fn is_near(&self, packet: &Packet, context: &Context<'_>) -> bool {
        let (Kind::Tcp(tcp), Some(direction), Some((client, server)), Some(mut track)) =
            (&packet.kind, self.direction(&packet.tuple), self.syn_params(), self.track)
        else {
            return false;
        };
        let seen =
            track.check_segment([&client, &server], direction, tcp, self.closed, WindowCheck::Relaxed, context.now);
        self.zone(direction) == context.ingress
            && matches!(seen, SegmentOutcome::InWindow | SegmentOutcome::Fin(_) | SegmentOutcome::Rst)
    }
}

/// The verdict on a segment with SYN that has the tuple of an established connection; `None`: it may open another.
pub(crate) fn syn(
    client: &SynParams,
    server: &SynParams,
    direction: Direction,
    tcp: &Tcp,
    closed: Option<CloseCause>,
) -> Option<Verdict> {
    if tcp.has(Tcp::FIN) || tcp.has(Tcp::RST) {
        return Some(Verdict::Drop(Reason::TcpFlags));
    }
    // A late copy of the handshake is harmless: its receiver answers with a challenge ACK (RFC 5961 section 4). Any other SYN
    // changes nothing here. It may open a new connection, if the policy lets it; only its complete handshake shows that
    // this one is dead.
    // Either end may have sent either of the two: they may have opened at once (RFC 9293 section 3.5).
    let (sender, receiver) = match direction {
        Direction::Original => (client, server),
        Direction::Reply => (server, client),
    };
    // The acknowledgement may cover the SYN's data (RFC 7413).
    let acked = seq_diff(tcp.ack, receiver.isn.wrapping_add(1));
    let copy = tcp.seq == sender.isn && (!tcp.has(Tcp::ACK) || (0..=MAX_SYN_DATA).contains(&acked));
    (copy && closed.is_none()).then_some(Verdict::Forward)
}
