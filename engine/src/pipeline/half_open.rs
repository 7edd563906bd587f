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

use crate::engine::{Context, Engine, Standing};
use crate::event::{Event, HalfOpen, Hint, Opening, Proposal, TcpEnd};
use crate::parse::{Kind, Packet, Tcp};
use crate::policy::Action;
use crate::replica::{Close, CloseCause, Establish};
use crate::table::Shard;
use crate::table::peer_queries::ASK_AGAIN;
use crate::track::generic;
use crate::track::tcp::{SYN_DATA, ahead, reach};
use crate::tuple::Direction;
use crate::verdict::{HoldClass, HoldKey, Reason, Verdict};

/// A proposal that had no outcome for so long may be lost; the next packet makes it again.
const PROPOSE_AGAIN: Duration = Duration::from_secs(1);

/// What the half-open sessions say of a packet.
pub(super) enum Match {
    /// There is none with its tuple.
    Nothing,
    /// There are, but it fits none of them.
    Implausible(Reason),
    /// It is this to the one at this slot.
    Step(Step, u32),
}

/// What a packet is to a half-open session, the surest last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Step {
    /// The server answers the SYN by an ACK, because it still has an earlier connection (RFC 9293 section 3.5.1).
    Challenge,
    /// The client's RST that ends that one: it goes on opening this one.
    Unchallenged,
    /// A SYN-ACK with another ISN than the one that is known.
    SynAckOther,
    /// The server's SYN, which crosses the client's, or a copy of it. Unlike a SYN-ACK it proves nothing.
    Crossing,
    /// It may belong, but the server's end is not known.
    Perhaps,
    /// The first SYN-ACK.
    SynAckFirst,
    /// It belongs to the connection that this will be.
    Early,
    /// What follows the client's acknowledgement of the SYN-ACK.
    Ack,
    /// The client's acknowledgement of exactly this SYN-ACK.
    Exact,
    /// A copy of the SYN.
    SynAgain,
    /// A copy of the SYN-ACK.
    SynAckAgain,
    /// The end of the attempt.
    Reset,
    /// For protocols without handshakes: as the first packet.
    Asks,
    /// For protocols without handshakes: the other way.
    Replies,
}

impl Step {
    /// May a packet that is this belong to another connection with the same tuple?
    pub(super) fn may_be_chance(self) -> bool {
        matches!(self, Step::Perhaps | Step::Early | Step::Ack | Step::Reset | Step::Challenge | Step::Unchallenged)
    }
}

/// What a TCP segment is to a half-open session between these ends. `proposed`: its establishment is under way;
/// `challenge`: see [`HalfOpen`].
pub(crate) fn step(
    client: &TcpEnd,
    server: Option<&TcpEnd>,
    direction: Direction,
    tcp: &Tcp,
    proposed: bool,
    challenge: Option<u32>,
) -> Result<Step, Reason> {
    let first = client.isn.wrapping_add(1);
    let flags = tcp.flags & (Tcp::SYN | Tcp::ACK | Tcp::RST | Tcp::FIN);
    let plausible = |distance: i64, most: i64| (0..=most).contains(&distance);
    let reset = |exact: bool| match (exact, proposed) {
        (true, false) => Ok(Step::Reset),
        // The establishment is under way: its session will judge.
        (_, true) => Ok(Step::Early),
        (false, false) => Err(Reason::TcpRst),
    };
    if matches!(flags, 0 | Tcp::FIN) || flags & (Tcp::FIN | Tcp::RST) == Tcp::FIN | Tcp::RST {
        return Err(Reason::TcpFlags);
    }
    match (direction, server) {
        (Direction::Original, _) if flags == Tcp::SYN => match tcp.seq == client.isn {
            true => Ok(Step::SynAgain),
            false => Err(Reason::TcpWindow),
        },
        (Direction::Reply, _) if flags == Tcp::SYN | Tcp::ACK => {
            if !plausible(ahead(tcp.ack, first), SYN_DATA) {
                return Err(Reason::TcpWindow);
            }
            Ok(match server {
                None => Step::SynAckFirst,
                Some(server) if server.isn == tcp.seq => Step::SynAckAgain,
                Some(_) => Step::SynAckOther,
            })
        }
        // One server's end a handshake, or forged SYNs could try them all.
        (Direction::Reply, _) if flags == Tcp::SYN => match server.is_none_or(|server| server.isn == tcp.seq) {
            true => Ok(Step::Crossing),
            false => Err(Reason::TcpWindow),
        },
        (Direction::Original, _) if flags == Tcp::SYN | Tcp::ACK => match server {
            _ if tcp.seq != client.isn => Err(Reason::TcpWindow),
            None => Ok(Step::Perhaps),
            Some(server) if plausible(ahead(tcp.ack, server.isn.wrapping_add(1)), SYN_DATA) => Ok(Step::Exact),
            Some(_) => Err(Reason::TcpWindow),
        },
        _ if flags & Tcp::SYN != 0 => Err(Reason::TcpFlags),
        (Direction::Original, None) if flags == Tcp::RST && challenge == Some(tcp.seq) => Ok(Step::Unchallenged),
        (Direction::Original, None) if flags & Tcp::RST != 0 => reset(tcp.seq == first),
        (Direction::Original, None) if flags & Tcp::ACK != 0 => {
            if plausible(ahead(tcp.seq, first), SYN_DATA) {
                Ok(Step::Perhaps)
            } else {
                Err(Reason::TcpWindow)
            }
        }
        (Direction::Reply, None) if flags & Tcp::RST != 0 => {
            // RFC 9293 section 3.10.7.3: in SYN-SENT a RST is valid if it acknowledges the SYN.
            reset(tcp.has(Tcp::ACK) && plausible(ahead(tcp.ack, first), SYN_DATA))
        }
        (Direction::Reply, None) if flags & Tcp::ACK != 0 => match plausible(ahead(tcp.ack, first), SYN_DATA) {
            true => Ok(Step::Perhaps),
            // One number a SYN, or blind ones could make the client send RSTs at will.
            false if flags == Tcp::ACK && tcp.payload == 0 && challenge.is_none_or(|ack| ack == tcp.ack) => {
                Ok(Step::Challenge)
            }
            false => Err(Reason::TcpWindow),
        },
        (_, Some(server)) if flags & (Tcp::RST | Tcp::ACK) != 0 => {
            let (sender, receiver) = match direction {
                Direction::Original => (client, server),
                Direction::Reply => (server, client),
            };
            let seq = ahead(tcp.seq, sender.isn.wrapping_add(1));
            let ack = ahead(tcp.ack, receiver.isn.wrapping_add(1));
            let seq_fits = plausible(seq, reach(receiver, sender));
            // Before its handshake is complete the server may send what the client's SYN allows (RFC 7413), which is not scaled.
            // More would let a scaled window's worth of forged acknowledgements into the log.
            let most = if direction == Direction::Original { SYN_DATA } else { reach(sender, receiver) };
            let ack_fits = flags & Tcp::ACK == 0 || plausible(ack, most);
            match (flags & Tcp::RST != 0, seq_fits && ack_fits) {
                (_, false) => Err(if flags & Tcp::RST != 0 { Reason::TcpRst } else { Reason::TcpWindow }),
                (true, true) => reset(seq == 0),
                (false, true) if direction == Direction::Original && ack == 0 => Ok(Step::Exact),
                (false, true) if direction == Direction::Original => Ok(Step::Ack),
                (false, true) => Ok(Step::Early),
            }
        }
        _ => Err(Reason::TcpFlags),
    }
}

impl Engine {
    /// What a packet with the tuple of half-open sessions is to them. `live`: an established session has the tuple too; then
    /// a packet must fit the numbers of both ends, or a forged SYN could divert that session's packets.
    pub(super) fn opening(
        &self,
        shard: &Shard,
        hash: u64,
        packet: &Packet,
        live: bool,
        context: &Context<'_>,
    ) -> Match {
        let mut implausible = None;
        let mut best: Option<(Step, u32)> = None;
        for slot in shard.halves.of(hash, &packet.tuple) {
            let Some(half) = shard.halves.get(slot).filter(|h| !h.aborted) else { continue };
            let (direction, zone) = match half.open.original == packet.tuple {
                true => (Direction::Original, half.open.ingress),
                false => (Direction::Reply, half.open.egress),
            };
            let step = match (&packet.kind, &half.open.protocol) {
                _ if zone != context.ingress => Err(Reason::WrongZone),
                (Kind::Tcp(tcp), Opening::Tcp { client, server }) => {
                    step(client, server.as_ref(), direction, tcp, half.proposed.is_some(), half.open.challenge)
                }
                (Kind::Tcp(_), Opening::Generic { .. }) | (_, Opening::Tcp { .. }) => Err(Reason::NoSession),
                (kind, Opening::Generic { .. }) => match (generic::fits(kind, direction), direction) {
                    (true, Direction::Original) => Ok(Step::Asks),
                    (true, Direction::Reply) => Ok(Step::Replies),
                    (false, _) => Err(Reason::NoSession),
                },
            };
            match step {
                Ok(Step::Perhaps | Step::Crossing | Step::Challenge | Step::Unchallenged) if live => {
                    implausible = Some(Reason::TcpWindow)
                }
                Ok(step) => best = best.max(Some((step, slot))),
                Err(reason) => implausible = Some(reason),
            }
        }
        match best {
            Some((step, slot)) => Match::Step(step, slot),
            None => implausible.map_or(Match::Nothing, Match::Implausible),
        }
    }

    /// The verdict on a packet that is this to a half-open session.
    #[expect(clippy::too_many_arguments, reason = "what `opening` found, and what `process` has")]
    pub(super) fn step(
        &self,
        shard: &mut Shard,
        hash: u64,
        slot: u32,
        step: Step,
        packet: &Packet,
        context: &Context<'_>,
        events: &mut Vec<Event>,
    ) -> Verdict {
        if context.standing != Standing::Current {
            return Verdict::Drop(Reason::NotCurrent);
        }
        if !self.half_still_allowed(shard, slot) {
            if let Some(half) = self.table.remove_half(shard, slot) {
                events.push(Event::Hint(Hint::Abort(half.open.id)));
            }
            return Verdict::Drop(Reason::Policy);
        }
        const GONE: Verdict = Verdict::Drop(Reason::NoSession);
        let now = context.now;
        let hold = Verdict::Hold(HoldKey(hash), HoldClass::Matched);
        let Some(half) = shard.halves.get_mut(slot) else { return GONE };
        let again = half.proposed.is_none_or(|at| now.since(at) >= PROPOSE_AGAIN);
        match step {
            Step::SynAgain | Step::SynAckAgain | Step::SynAckFirst | Step::Crossing => {
                if half.refused.take().is_some() {
                    half.proposed = None;
                }
                if let (Opening::Tcp { server: server @ None, .. }, Kind::Tcp(tcp)) =
                    (&mut half.open.protocol, &packet.kind)
                    && matches!(step, Step::SynAckFirst | Step::Crossing)
                {
                    *server = Some(end(tcp));
                    // What came before it can be judged now.
                    let workers = std::mem::take(&mut half.waiters);
                    if workers != 0 {
                        events.push(Event::Wake { workers, key: HoldKey(hash) });
                    }
                }
                if step == Step::SynAgain {
                    half.open.challenge = None;
                }
                events.push(Event::Hint(Hint::HalfOpen(Box::new(half.open))));
                shard.halves.touch(slot, now);
                Verdict::Forward
            }
            Step::SynAckOther => {
                if half.proposed.is_some() {
                    // The client has chosen.
                    return Verdict::Drop(Reason::TcpWindow);
                }
                let mut open = HalfOpen { id: self.next_id(), ..half.open };
                if let (Opening::Tcp { server, .. }, Kind::Tcp(tcp)) = (&mut open.protocol, &packet.kind) {
                    *server = Some(end(tcp));
                }
                events.push(Event::Hint(Hint::HalfOpen(Box::new(open))));
                self.table.insert_half(shard, hash, open, now);
                Verdict::Forward
            }
            Step::Reset => {
                let id = half.open.id;
                // With the server's end known, its establishment may be under way at another member.
                let keep = matches!(half.open.protocol, Opening::Tcp { server: Some(_), .. });
                half.aborted = true;
                if !keep {
                    self.table.remove_half(shard, slot);
                }
                events.push(Event::Hint(Hint::Abort(id)));
                Verdict::Forward
            }
            Step::Challenge => {
                if let Kind::Tcp(tcp) = &packet.kind {
                    half.open.challenge = Some(tcp.ack);
                }
                events.push(Event::Hint(Hint::HalfOpen(Box::new(half.open))));
                Verdict::Forward
            }
            Step::Unchallenged => Verdict::Forward,
            Step::Perhaps | Step::Early => {
                if let Some(reason) = half.refused {
                    return Verdict::Drop(reason);
                }
                half.waiters |= 1 << (context.worker & 63);
                if step == Step::Perhaps && half.asked.is_none_or(|at| now.since(at) >= ASK_AGAIN) {
                    half.asked = Some(now);
                    events.push(Event::Hint(Hint::Ask(packet.tuple)));
                }
                hold
            }
            Step::Ack | Step::Exact => {
                if let Some(reason) = half.refused {
                    return Verdict::Drop(reason);
                }
                half.waiters |= 1 << (context.worker & 63);
                if again {
                    self.propose(shard, hash, slot, context, events);
                }
                hold
            }
            Step::Asks => {
                match half.refused {
                    Some(reason) if !again => return Verdict::Drop(reason),
                    _ => half.refused = None,
                }
                let assured = matches!(half.open.protocol, Opening::Generic { replied: true });
                shard.halves.touch(slot, now);
                if assured && again {
                    self.propose(shard, hash, slot, context, events);
                }
                Verdict::Forward
            }
            Step::Replies => {
                if half.open.protocol == (Opening::Generic { replied: false }) {
                    half.open.protocol = Opening::Generic { replied: true };
                    events.push(Event::Hint(Hint::HalfOpen(Box::new(half.open))));
                }
                shard.halves.touch(slot, now);
                Verdict::Forward
            }
        }
    }

    /// Proposes a half-open session's establishment.
    fn propose(&self, shard: &mut Shard, hash: u64, slot: u32, context: &Context<'_>, events: &mut Vec<Event>) {
        let Some(half) = shard.halves.get_mut(slot) else { return };
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
    fn half_still_allowed(&self, shard: &mut Shard, slot: u32) -> bool {
        let generation = self.generation();
        let Some(half) = shard.halves.get_mut(slot) else { return false };
        if half.open.generation >= generation {
            return true;
        }
        let law = self.law();
        let decision = law.decide(half.open.ingress, half.open.egress, &half.open.original);
        half.open.generation = law.generation;
        half.open.rule = decision.rule;
        half.proposed = None;
        decision.action == Action::Accept
    }
}

fn end(tcp: &Tcp) -> TcpEnd {
    TcpEnd { isn: tcp.seq, window: tcp.window, wscale: tcp.wscale, sack: tcp.sack_permitted }
}
