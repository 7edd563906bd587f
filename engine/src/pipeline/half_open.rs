//! Packets of half-open sessions: from the first packet to the establishment's commit.
//!
//! ```text
//!            SYN, policy                SYN-ACK                   ACK, or data
//!   (none) ─────────────> SYN_SENT ──────────────────> SYN_RECV ───────────────> proposed ── applied ──> ESTABLISHED
//!             hint, Forward  │ │          hint, Forward    │ │      Hold             │
//!                            │ └ SYN again: hint, Forward  │ └ SYN-ACK again:        │ Stale: judge again, propose again
//!                            │                             │   hint, Forward         │ Conflict, Full: refused, until the
//!                            └─ RST answers: Abort ────────┴─ RST: Abort             │ next SYN or SYN-ACK
//! ```
//!
//! Each of these packets may be seen by another member; what the others saw comes by hints. Whatever belongs to the
//! connection but can not pass yet is held. All other combinations are implausible and change nothing.
//!
//! Simultaneous open (RFC 9293 section 3.5): the server's own SYN, which crosses the client's, tells its end as a SYN-ACK
//! would, and needs no rule: the policy allowed the connection by its client's SYN. Then the client's SYN-ACK is the packet
//! that shows that both ends know each other, and waits for the commit. Where the policy allows either direction, each SYN
//! may open a half-open session of its own; the first of the two in the log wins, the other is recognised as the same
//! connection ([`same_connection`](crate::table::half_open::same_connection)) and goes.

use std::time::Duration;

use crate::engine::Engine;
use crate::event::{Event, Hint, Proposal};
use crate::parse::{Kind, Packet, Tcp};
use crate::policy::Action;
use crate::session::{Close, CloseCause, Establish, HalfOpen, HandshakeState, SynParams};
use crate::table::Shard;
use crate::table::peer_queries::QUERY_RETRY_INTERVAL;
use crate::track::generic;
use crate::track::tcp::{MAX_SYN_DATA, max_advertisable_window, seq_diff};
use crate::tuple::Direction;
use crate::types::{Context, LeaseState};
use crate::verdict::{HoldClass, HoldKey, Reason, Verdict};

/// A proposal that had no outcome for so long may be lost; the next packet makes it again.
const PROPOSE_AGAIN: Duration = Duration::from_secs(1);

/// What the half-open sessions say of a packet.
pub(super) enum HalfOpenMatch {
    /// There is none with its tuple.
    Nothing,
    /// There are, but it fits none of them.
    Implausible(Reason),
    /// It is this to the one at this slot.
    Step(HandshakeStep, u32),
}

/// What a packet is to a half-open session, the surest last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum HandshakeStep {
    /// The server answers the SYN by an ACK, because it still has an earlier connection (RFC 9293 section 3.5.1).
    ChallengeAck,
    /// The client's RST that ends that one: it goes on opening this one.
    ChallengeRst,
    /// A SYN-ACK with another ISN than the one that is known.
    SynAckNewIsn,
    /// The server's SYN, which crosses the client's, or a copy of it. Unlike a SYN-ACK it proves nothing.
    SimultaneousSyn,
    /// It may belong, but the server's end is not known.
    Ambiguous,
    /// The first SYN-ACK.
    FirstSynAck,
    /// It belongs to the connection that this will be.
    EarlyData,
    /// What follows the client's acknowledgement of the SYN-ACK.
    AckInWindow,
    /// The client's acknowledgement of exactly this SYN-ACK.
    FinalAck,
    /// A copy of the SYN.
    SynRetransmit,
    /// A copy of the SYN-ACK.
    SynAckRetransmit,
    /// The end of the attempt.
    Reset,
    /// For protocols without handshakes: as the first packet.
    ClientPacket,
    /// For protocols without handshakes: the other way.
    ServerPacket,
}

impl HandshakeStep {
    /// May a packet that is this belong to another connection with the same tuple?
    pub(super) fn could_match_other_connection(self) -> bool {
        matches!(
            self,
            HandshakeStep::Ambiguous
                | HandshakeStep::EarlyData
                | HandshakeStep::AckInWindow
                | HandshakeStep::Reset
                | HandshakeStep::ChallengeAck
                | HandshakeStep::ChallengeRst
        )
    }
}

/// What a TCP segment is to a half-open session between these ends. `proposed`: its establishment is under way;
/// `challenge`: see [`HalfOpen`].
pub(crate) fn step(
    client: &SynParams,
    server: Option<&SynParams>,
    direction: Direction,
    tcp: &Tcp,
    proposed: bool,
    challenge: Option<u32>,
) -> Result<HandshakeStep, Reason> {
    let first = client.isn.wrapping_add(1);
    let flags = tcp.flags & (Tcp::SYN | Tcp::ACK | Tcp::RST | Tcp::FIN);
    let plausible = |distance: i64, most: i64| (0..=most).contains(&distance);
    let reset = |exact: bool| match (exact, proposed) {
        (true, false) => Ok(HandshakeStep::Reset),
        // The establishment is under way: its session will judge.
        (_, true) => Ok(HandshakeStep::EarlyData),
        (false, false) => Err(Reason::TcpRst),
    };
    if matches!(flags, 0 | Tcp::FIN) || flags & (Tcp::FIN | Tcp::RST) == Tcp::FIN | Tcp::RST {
        return Err(Reason::TcpFlags);
    }
    match (direction, server) {
        (Direction::Original, _) if flags == Tcp::SYN => match tcp.seq == client.isn {
            true => Ok(HandshakeStep::SynRetransmit),
            false => Err(Reason::TcpWindow),
        },
        (Direction::Reply, _) if flags == Tcp::SYN | Tcp::ACK => {
            if !plausible(seq_diff(tcp.ack, first), MAX_SYN_DATA) {
                return Err(Reason::TcpWindow);
            }
            Ok(match server {
                None => HandshakeStep::FirstSynAck,
                Some(server) if server.isn == tcp.seq => HandshakeStep::SynAckRetransmit,
                Some(_) => HandshakeStep::SynAckNewIsn,
            })
        }
        // One server's end a handshake, or forged SYNs could try them all.
        (Direction::Reply, _) if flags == Tcp::SYN => match server.is_none_or(|server| server.isn == tcp.seq) {
            true => Ok(HandshakeStep::SimultaneousSyn),
            false => Err(Reason::TcpWindow),
        },
        (Direction::Original, _) if flags == Tcp::SYN | Tcp::ACK => match server {
            _ if tcp.seq != client.isn => Err(Reason::TcpWindow),
            None => Ok(HandshakeStep::Ambiguous),
            Some(server) if plausible(seq_diff(tcp.ack, server.isn.wrapping_add(1)), MAX_SYN_DATA) => {
                Ok(HandshakeStep::FinalAck)
            }
            Some(_) => Err(Reason::TcpWindow),
        },
        _ if flags & Tcp::SYN != 0 => Err(Reason::TcpFlags),
        (Direction::Original, None) if flags == Tcp::RST && challenge == Some(tcp.seq) => {
            Ok(HandshakeStep::ChallengeRst)
        }
        (Direction::Original, None) if flags & Tcp::RST != 0 => reset(tcp.seq == first),
        (Direction::Original, None) if flags & Tcp::ACK != 0 => {
            if plausible(seq_diff(tcp.seq, first), MAX_SYN_DATA) {
                Ok(HandshakeStep::Ambiguous)
            } else {
                Err(Reason::TcpWindow)
            }
        }
        (Direction::Reply, None) if flags & Tcp::RST != 0 => {
            // RFC 9293 section 3.10.7.3: in SYN-SENT a RST is valid if it acknowledges the SYN.
            reset(tcp.has(Tcp::ACK) && plausible(seq_diff(tcp.ack, first), MAX_SYN_DATA))
        }
        (Direction::Reply, None) if flags & Tcp::ACK != 0 => match plausible(seq_diff(tcp.ack, first), MAX_SYN_DATA) {
            true => Ok(HandshakeStep::Ambiguous),
            // One number a SYN, or blind ones could make the client send RSTs at will.
            false if flags == Tcp::ACK && tcp.payload == 0 && challenge.is_none_or(|ack| ack == tcp.ack) => {
                Ok(HandshakeStep::ChallengeAck)
            }
            false => Err(Reason::TcpWindow),
        },
        (_, Some(server)) if flags & (Tcp::RST | Tcp::ACK) != 0 => {
            let (sender, receiver) = match direction {
                Direction::Original => (client, server),
                Direction::Reply => (server, client),
            };
            let seq = seq_diff(tcp.seq, sender.isn.wrapping_add(1));
            let ack = seq_diff(tcp.ack, receiver.isn.wrapping_add(1));
            let seq_fits = plausible(seq, max_advertisable_window(receiver, sender));
            // Before its handshake is complete the server may send what the client's SYN allows (RFC 7413), which is not scaled.
            // More would let a scaled window's worth of forged acknowledgements into the log.
            let most =
                if direction == Direction::Original { MAX_SYN_DATA } else { max_advertisable_window(sender, receiver) };
            let ack_fits = flags & Tcp::ACK == 0 || plausible(ack, most);
            match (flags & Tcp::RST != 0, seq_fits && ack_fits) {
                (_, false) => Err(if flags & Tcp::RST != 0 { Reason::TcpRst } else { Reason::TcpWindow }),
                (true, true) => reset(seq == 0),
                (false, true) if direction == Direction::Original && ack == 0 => Ok(HandshakeStep::FinalAck),
                (false, true) if direction == Direction::Original => Ok(HandshakeStep::AckInWindow),
                (false, true) => Ok(HandshakeStep::EarlyData),
            }
        }
        _ => Err(Reason::TcpFlags),
    }
}

impl Engine {
    /// What a packet with the tuple of half-open sessions is to them. `live`: an established session has the tuple too; then
    /// a packet must fit the numbers of both ends, or a forged SYN could divert that session's packets.
    pub(super) fn match_half_open(
        &self,
        shard: &Shard,
        hash: u64,
        packet: &Packet,
        live: bool,
        context: &Context<'_>,
    ) -> HalfOpenMatch {
        let mut implausible = None;
        let mut best: Option<(HandshakeStep, u32)> = None;
        for slot in shard.half_open.lookup(hash, &packet.tuple) {
            let Some(half) = shard.half_open.get(slot).filter(|h| !h.aborted) else { continue };
            let (direction, zone) = match half.open.original == packet.tuple {
                true => (Direction::Original, half.open.ingress),
                false => (Direction::Reply, half.open.egress),
            };
            let step = match (&packet.kind, &half.open.protocol) {
                _ if zone != context.ingress => Err(Reason::WrongZone),
                (Kind::Tcp(tcp), HandshakeState::Tcp { client, server }) => {
                    step(client, server.as_ref(), direction, tcp, half.proposed.is_some(), half.open.challenge)
                }
                (Kind::Tcp(_), HandshakeState::Generic { .. }) | (_, HandshakeState::Tcp { .. }) => {
                    Err(Reason::NoSession)
                }
                (kind, HandshakeState::Generic { .. }) => match (generic::fits(kind, direction), direction) {
                    (true, Direction::Original) => Ok(HandshakeStep::ClientPacket),
                    (true, Direction::Reply) => Ok(HandshakeStep::ServerPacket),
                    (false, _) => Err(Reason::NoSession),
                },
            };
            match step {
                Ok(
                    HandshakeStep::Ambiguous
                    | HandshakeStep::SimultaneousSyn
                    | HandshakeStep::ChallengeAck
                    | HandshakeStep::ChallengeRst,
                ) if live => implausible = Some(Reason::TcpWindow),
                Ok(step) => best = best.max(Some((step, slot))),
                Err(reason) => implausible = Some(reason),
            }
        }
        match best {
            Some((step, slot)) => HalfOpenMatch::Step(step, slot),
            None => implausible.map_or(HalfOpenMatch::Nothing, HalfOpenMatch::Implausible),
        }
    }

    /// The verdict on a packet that is this to a half-open session.
    #[expect(clippy::too_many_arguments, reason = "what `opening` found, and what `process` has")]
    pub(super) fn step(
        &self,
        shard: &mut Shard,
        hash: u64,
        slot: u32,
        step: HandshakeStep,
        packet: &Packet,
        context: &Context<'_>,
        events: &mut Vec<Event>,
    ) -> Verdict {
        if context.lease != LeaseState::Valid {
            return Verdict::Drop(Reason::LeaseGrace);
        }
        if !self.half_open_still_allowed(shard, slot) {
            if let Some(half) = self.table.remove_half_open(shard, slot) {
                events.push(Event::Hint(Hint::Abort(half.open.id)));
            }
            return Verdict::Drop(Reason::Policy);
        }
        const GONE: Verdict = Verdict::Drop(Reason::NoSession);
        let now = context.now;
        let hold = Verdict::Hold(HoldKey(hash), HoldClass::Matched);
        let Some(half) = shard.half_open.get_mut(slot) else { return GONE };
        let again = half.proposed.is_none_or(|at| now.since(at) >= PROPOSE_AGAIN);
        match step {
            HandshakeStep::SynRetransmit
            | HandshakeStep::SynAckRetransmit
            | HandshakeStep::FirstSynAck
            | HandshakeStep::SimultaneousSyn => {
                if half.refused.take().is_some() {
                    half.proposed = None;
                }
                if let (HandshakeState::Tcp { server: server @ None, .. }, Kind::Tcp(tcp)) =
                    (&mut half.open.protocol, &packet.kind)
                    && matches!(step, HandshakeStep::FirstSynAck | HandshakeStep::SimultaneousSyn)
                {
                    *server = Some(end(tcp));
                    // What came before it can be judged now.
                    let workers = std::mem::take(&mut half.waiters);
                    if !workers.is_empty() {
                        events.push(Event::Wake { workers, key: HoldKey(hash) });
                    }
                }
                if step == HandshakeStep::SynRetransmit {
                    half.open.challenge = None;
                }
                events.push(Event::Hint(Hint::HalfOpen(Box::new(half.open))));
                shard.half_open.touch(slot, now);
                Verdict::Forward
            }
            HandshakeStep::SynAckNewIsn => {
                if half.proposed.is_some() {
                    // The client has chosen.
                    return Verdict::Drop(Reason::TcpWindow);
                }
                let mut open = HalfOpen { id: self.next_id(), ..half.open };
                if let (HandshakeState::Tcp { server, .. }, Kind::Tcp(tcp)) = (&mut open.protocol, &packet.kind) {
                    *server = Some(end(tcp));
                }
                events.push(Event::Hint(Hint::HalfOpen(Box::new(open))));
                self.table.insert_half_open(shard, hash, open, now);
                Verdict::Forward
            }
            HandshakeStep::Reset => {
                let id = half.open.id;
                // With the server's end known, its establishment may be under way at another member.
                let keep = matches!(half.open.protocol, HandshakeState::Tcp { server: Some(_), .. });
                half.aborted = true;
                if !keep {
                    self.table.remove_half_open(shard, slot);
                }
                events.push(Event::Hint(Hint::Abort(id)));
                Verdict::Forward
            }
            HandshakeStep::ChallengeAck => {
                if let Kind::Tcp(tcp) = &packet.kind {
                    half.open.challenge = Some(tcp.ack);
                }
                events.push(Event::Hint(Hint::HalfOpen(Box::new(half.open))));
                Verdict::Forward
            }
            HandshakeStep::ChallengeRst => Verdict::Forward,
            HandshakeStep::Ambiguous | HandshakeStep::EarlyData => {
                if let Some(reason) = half.refused {
                    return Verdict::Drop(reason);
                }
                half.waiters.insert(context.worker);
                if step == HandshakeStep::Ambiguous
                    && half.queried.is_none_or(|at| now.since(at) >= QUERY_RETRY_INTERVAL)
                {
                    half.queried = Some(now);
                    events.push(Event::Hint(Hint::Query(packet.tuple)));
                }
                hold
            }
            HandshakeStep::AckInWindow | HandshakeStep::FinalAck => {
                if let Some(reason) = half.refused {
                    return Verdict::Drop(reason);
                }
                half.waiters.insert(context.worker);
                if again {
                    self.propose(shard, hash, slot, context, events);
                }
                hold
            }
            HandshakeStep::ClientPacket => {
                match half.refused {
                    Some(reason) if !again => return Verdict::Drop(reason),
                    _ => half.refused = None,
                }
                let assured = matches!(half.open.protocol, HandshakeState::Generic { replied: true });
                shard.half_open.touch(slot, now);
                if assured && again {
                    self.propose(shard, hash, slot, context, events);
                }
                Verdict::Forward
            }
            HandshakeStep::ServerPacket => {
                if half.open.protocol == (HandshakeState::Generic { replied: false }) {
                    half.open.protocol = HandshakeState::Generic { replied: true };
                    events.push(Event::Hint(Hint::HalfOpen(Box::new(half.open))));
                }
                shard.half_open.touch(slot, now);
                Verdict::Forward
            }
        }
    }

    /// Proposes a half-open session's establishment.
    fn propose(&self, shard: &mut Shard, hash: u64, slot: u32, context: &Context<'_>, events: &mut Vec<Event>) {
        let Some(half) = shard.half_open.get_mut(slot) else { return };
        half.proposed = Some(context.now);
        let open = half.open;
        let occupant = shard.sessions.find(hash, &open.original).and_then(|slot| shard.sessions.get(slot));
        if let Some(old) = occupant.filter(|s| s.closed.is_none()) {
            // Both ends have agreed on a new connection with this tuple, so the old one is dead.
            let close = Close { id: old.id, cause: CloseCause::Rst };
            events.push(Event::Propose(Proposal::Close(close)));
        }
        let supersedes = occupant.map(|s| s.id).or(open.supersedes);
        let establish = Establish { supersedes, ..Establish::from(&open) };
        events.push(Event::Propose(Proposal::Establish(Box::new(establish))));
    }

    /// Does the policy in force still allow this half-open session? Asked anew once per policy.
    fn half_open_still_allowed(&self, shard: &mut Shard, slot: u32) -> bool {
        let generation = self.generation();
        let Some(half) = shard.half_open.get_mut(slot) else { return false };
        if half.open.generation >= generation {
            return true;
        }
        let policy = self.active_policy();
        let decision = policy.decide(half.open.ingress, half.open.egress, &half.open.original);
        half.open.generation = policy.generation;
        half.open.rule = decision.rule;
        half.proposed = None;
        decision.action == Action::Accept
    }
}

fn end(tcp: &Tcp) -> SynParams {
    SynParams { isn: tcp.seq, window: tcp.window, wscale: tcp.wscale, sack: tcp.sack_permitted }
}
