//! Packets of half-open sessions: from the first packet to the commit of the establishment.
//!
//! TCP. An arrow is a [`HandshakeStep`] of a packet, `─>` followed by the verdict. A hint tells the other members of each
//! step that passes, except ChallengeRst, which changes nothing:
//!
//! ```text
//!   (none)
//!     │ the SYN, allowed by the policy: Forward
//!     v
//!   SYN_SENT ── SynRetransmit ─> Forward         ── ChallengeAck, ChallengeRst ─> Forward
//!     │      ── Ambiguous ─> Hold, and query     ── Reset ─> Forward, removed
//!     │
//!     │ FirstSynAck, SimultaneousSyn ─> Forward; what is held is judged again
//!     v
//!   SYN_RECV ── SynRetransmit, SynAckRetransmit, SimultaneousSyn ─> Forward
//!     │      ── SynAckNewIsn ─> Forward; a half-open session of its own
//!     │      ── EarlyData ─> Hold               ── Reset ─> Forward, aborted
//!     │
//!     │ FinalAck, AckInWindow ─> Hold; proposed
//!     v
//!   proposed ── applied ─> ESTABLISHED; what is held is judged again
//!            ── Stale ─> judged by the new policy, and proposed again
//!            ── Conflict, Full ─> refused: Drop, until a SynRetransmit, FirstSynAck, SynAckRetransmit or SimultaneousSyn
//! ```
//!
//! Other protocols. The second packet of the client, after one of the server, shows that both ends take part:
//!
//! ```text
//!   (none) ── first packet, allowed by the policy ─> UNREPLIED ── ServerPacket ─> REPLIED ── ClientPacket ─> proposed
//! ```
//!
//! Each of these packets may be seen by another member; what the others saw comes by hints. A packet that belongs to the
//! connection but cannot pass yet is held. All other packets are implausible and change nothing.
//!
//! Simultaneous open (RFC 9293 section 3.5): the server's own SYN, which crosses the client's, tells its ISN as a SYN-ACK
//! would, and needs no rule: the policy allowed the connection by its client's SYN. Then the client's SYN-ACK is the packet
//! that shows that both ends know each other, and waits for the commit. Where the policy allows either direction, each SYN
//! may open a half-open session of its own. The first of the two in the log wins; the other is recognised as the same
//! connection ([`same_connection`](crate::table::half_open::same_connection)) and is removed.

use std::time::Duration;

use super::RoutesNeeded;
use super::handshake_step::{HandshakeStep, TcpHandshake};
use super::zones::PacketRoutes;
use crate::engine::Engine;
use crate::event::{Event, Hint, Proposal};
use crate::parse::{Kind, Packet, Tcp};
use crate::policy::Action;
use crate::session::{Close, CloseCause, Establish, HalfOpen, HandshakeState, SynParams};
use crate::table::Shard;
use crate::table::half_open::HalfOpenEntry;
use crate::table::peer_queries::QUERY_RETRY_INTERVAL;
use crate::track::generic;
use crate::tuple::Direction;
use crate::types::{Context, LeaseState};
use crate::verdict::{HoldClass, HoldKey, Reason, Verdict};

/// The time after which a proposal without an outcome may be lost. The next packet makes it again.
const PROPOSAL_RETRY_INTERVAL: Duration = Duration::from_secs(1);

const NO_SESSION: Verdict = Verdict::Drop(Reason::NoSession);

/// What the half-open sessions of a tuple say of a packet.
pub(super) enum HalfOpenMatch {
    /// There is none with its tuple.
    Nothing,
    /// There are some, but the packet fits none of them.
    Implausible(Reason),
    /// The packet is this step of the one in this slot.
    Step(HandshakeStep, u32),
}

impl Engine {
    /// Matches a packet with the half-open sessions of its tuple. `live`: an established session has the tuple, too.
    pub(super) fn match_half_open(
        &self,
        shard: &mut Shard,
        hash: u64,
        packet: &Packet,
        live: bool,
        context: &Context<'_>,
        routes: Option<&PacketRoutes>,
    ) -> Result<HalfOpenMatch, RoutesNeeded> {
        let mut implausible = None;
        let mut best: Option<(HandshakeStep, u32)> = None;
        for slot in shard.half_open.lookup(hash, &packet.tuple) {
            let Some(half) = shard.half_open.get_mut(slot).filter(|h| !h.aborted) else { continue };
            let direction = direction(half, packet);
            let judged = match classify(half, packet, direction) {
                Ok(step) if live && !step.identifies_connection() => Err(Reason::TcpWindow),
                // Last, because the kernel may have to be asked.
                Ok(step) => self.judge_half_open_zones(half, direction, context, routes)?.map(|()| step),
                Err(reason) => Err(reason),
            };
            match judged {
                Ok(step) => best = best.max(Some((step, slot))),
                Err(reason) => implausible = Some(reason),
            }
        }
        Ok(match best {
            Some((step, slot)) => HalfOpenMatch::Step(step, slot),
            None => implausible.map_or(HalfOpenMatch::Nothing, HalfOpenMatch::Implausible),
        })
    }

    /// Whether the active policy still allows this half-open session. Evaluated once per policy.
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

/// The direction of a packet with the tuple of a half-open session.
fn direction(half: &HalfOpenEntry, packet: &Packet) -> Direction {
    if half.open.original == packet.tuple { Direction::Original } else { Direction::Reply }
}

/// The step that a packet is of one half-open session, whatever its zones.
fn classify(half: &HalfOpenEntry, packet: &Packet, direction: Direction) -> Result<HandshakeStep, Reason> {
    match (&packet.kind, &half.open.protocol) {
        (Kind::Tcp(tcp), HandshakeState::Tcp { client, server }) => {
            let (proposed, challenge) = (half.proposed.is_some(), half.open.challenge);
            TcpHandshake { client, server: server.as_ref(), proposed, challenge }.classify(direction, tcp)
        }
        (Kind::Tcp(_), HandshakeState::Generic { .. }) | (_, HandshakeState::Tcp { .. }) => Err(Reason::NoSession),
        (kind, HandshakeState::Generic { .. }) => match (generic::fits(kind, direction), direction) {
            (true, Direction::Original) => Ok(HandshakeStep::ClientPacket),
            (true, Direction::Reply) => Ok(HandshakeStep::ServerPacket),
            (false, _) => Err(Reason::NoSession),
        },
    }
}

/// A packet of the half-open session in `slot`, and what it changes.
pub(super) struct HandshakePacket<'a, 'c> {
    pub(super) engine: &'a Engine,
    pub(super) shard: &'a mut Shard,
    pub(super) hash: u64,
    pub(super) slot: u32,
    pub(super) packet: &'a Packet,
    pub(super) context: &'a Context<'c>,
    pub(super) events: &'a mut Vec<Event>,
}

impl HandshakePacket<'_, '_> {
    /// Takes the step that the packet is, and returns the verdict on it.
    pub(super) fn advance(mut self, step: HandshakeStep) -> Verdict {
        if self.context.lease != LeaseState::Valid {
            return Verdict::Drop(Reason::LeaseGrace);
        }
        if !self.engine.half_open_still_allowed(self.shard, self.slot) {
            if let Some(half) = self.engine.table.remove_half_open(self.shard, self.slot) {
                self.events.push(Event::Hint(Hint::Abort(half.open.id)));
            }
            return Verdict::Drop(Reason::Policy);
        }
        self.set_egress();
        match step {
            HandshakeStep::SynRetransmit => {
                if let Some(half) = self.shard.half_open.get_mut(self.slot) {
                    half.open.challenge = None;
                }
                self.on_syn()
            }
            HandshakeStep::FirstSynAck | HandshakeStep::SimultaneousSyn => {
                self.learn_server();
                self.on_syn()
            }
            HandshakeStep::SynAckRetransmit => self.on_syn(),
            HandshakeStep::SynAckNewIsn => self.on_new_isn(),
            HandshakeStep::Reset => self.on_reset(),
            HandshakeStep::ChallengeAck => self.on_challenge_ack(),
            HandshakeStep::ChallengeRst => Verdict::Forward,
            HandshakeStep::Ambiguous => self.on_ambiguous(),
            HandshakeStep::EarlyData => self.hold().unwrap_or_else(Verdict::Drop),
            HandshakeStep::AckInWindow | HandshakeStep::FinalAck => self.on_ack(),
            HandshakeStep::ClientPacket => self.on_client_packet(),
            HandshakeStep::ServerPacket => self.on_server_packet(),
        }
    }

    /// Sets the zone that the packet leaves to. If the kernel was seen to send the client's packets elsewhere than it had said, and
    /// the server has not answered yet, its answers will come from there.
    fn set_egress(&mut self) {
        let Some(half) = self.shard.half_open.get_mut(self.slot) else { return };
        let direction = direction(half, self.packet);
        let egress = half.egress[direction];
        self.context.routes.set_egress(egress);
        let follows = direction == Direction::Original
            && egress != half.open.egress
            && !half.open.protocol.is_answered()
            && self.context.routes.observed_egress().is_some();
        if follows {
            half.open.egress = egress;
            half.open.rule = self.engine.active_policy().decide(half.open.ingress, egress, &half.open.original).rule;
            self.hint();
        }
    }

    fn half(&mut self) -> Option<&mut HalfOpenEntry> {
        self.shard.half_open.get_mut(self.slot)
    }

    /// Tells the other members of the half-open session.
    fn hint(&mut self) {
        if let Some(half) = self.shard.half_open.get(self.slot) {
            self.events.push(Event::Hint(Hint::HalfOpen(Box::new(half.open))));
        }
    }

    /// The server's parameters, from its SYN-ACK or SYN. What came before it can be judged now.
    fn learn_server(&mut self) {
        let server_syn = syn_params(self.packet);
        let Some(half) = self.shard.half_open.get_mut(self.slot) else { return };
        if let HandshakeState::Tcp { server: server @ None, .. } = &mut half.open.protocol {
            *server = server_syn;
            let workers = std::mem::take(&mut half.waiters);
            if !workers.is_empty() {
                self.events.push(Event::Wake { workers, key: HoldKey(self.hash) });
            }
        }
    }

    /// A SYN or SYN-ACK, which also clears a refusal of the log: the endpoints try again.
    fn on_syn(&mut self) -> Verdict {
        let Some(half) = self.half() else { return NO_SESSION };
        if half.refused.take().is_some() {
            half.proposed = None;
        }
        self.hint();
        self.shard.half_open.touch(self.slot, self.context.now);
        Verdict::Forward
    }

    fn on_new_isn(&mut self) -> Verdict {
        let Some(half) = self.shard.half_open.get(self.slot) else { return NO_SESSION };
        if half.proposed.is_some() {
            // The client has chosen.
            return Verdict::Drop(Reason::TcpWindow);
        }
        let mut open = HalfOpen { id: self.engine.next_id(), ..half.open };
        if let HandshakeState::Tcp { server, .. } = &mut open.protocol {
            *server = syn_params(self.packet);
        }
        self.events.push(Event::Hint(Hint::HalfOpen(Box::new(open))));
        self.engine.table.insert_half_open(self.shard, self.hash, open, self.context.now);
        Verdict::Forward
    }

    fn on_reset(&mut self) -> Verdict {
        let Some(half) = self.half() else { return NO_SESSION };
        let id = half.open.id;
        // With the server's ISN known, the establishment may be under way at another member.
        let keep = matches!(half.open.protocol, HandshakeState::Tcp { server: Some(_), .. });
        half.aborted = true;
        if !keep {
            self.engine.table.remove_half_open(self.shard, self.slot);
        }
        self.events.push(Event::Hint(Hint::Abort(id)));
        Verdict::Forward
    }

    fn on_challenge_ack(&mut self) -> Verdict {
        if let Kind::Tcp(Tcp { ack, .. }) = self.packet.kind
            && let Some(half) = self.half()
        {
            half.open.challenge = Some(ack);
        }
        self.hint();
        Verdict::Forward
    }

    /// Holds the packet, and queries the other members: one of them may know the server's ISN.
    fn on_ambiguous(&mut self) -> Verdict {
        let (now, tuple) = (self.context.now, self.packet.tuple);
        let held = self.hold();
        if held.is_ok()
            && let Some(half) = self.half()
            && half.queried.is_none_or(|at| now.since(at) >= QUERY_RETRY_INTERVAL)
        {
            half.queried = Some(now);
            self.events.push(Event::Hint(Hint::Query(tuple)));
        }
        held.unwrap_or_else(Verdict::Drop)
    }

    /// The acknowledgement that completes the handshake, or a packet behind it.
    fn on_ack(&mut self) -> Verdict {
        let held = self.hold();
        if held.is_ok() && self.may_propose() {
            self.propose();
        }
        held.unwrap_or_else(Verdict::Drop)
    }

    fn on_client_packet(&mut self) -> Verdict {
        let may_propose = self.may_propose();
        let Some(half) = self.half() else { return NO_SESSION };
        match half.refused {
            Some(reason) if !may_propose => return Verdict::Drop(reason),
            _ => half.refused = None,
        }
        let replied = half.open.protocol == HandshakeState::Generic { replied: true };
        self.shard.half_open.touch(self.slot, self.context.now);
        if replied && may_propose {
            self.propose();
        }
        Verdict::Forward
    }

    fn on_server_packet(&mut self) -> Verdict {
        let Some(half) = self.half() else { return NO_SESSION };
        if half.open.protocol == (HandshakeState::Generic { replied: false }) {
            half.open.protocol = HandshakeState::Generic { replied: true };
            self.hint();
        }
        self.shard.half_open.touch(self.slot, self.context.now);
        Verdict::Forward
    }

    /// The verdict with which the packet waits, or the reason for which the log has refused the session.
    fn hold(&mut self) -> Result<Verdict, Reason> {
        let worker = self.context.worker;
        let Some(half) = self.half() else { return Err(Reason::NoSession) };
        if let Some(reason) = half.refused {
            return Err(reason);
        }
        half.waiters.insert(worker);
        Ok(Verdict::Hold(HoldKey(self.hash), HoldClass::Matched))
    }

    /// Whether the establishment was not proposed here, or so long ago that the proposal may be lost.
    fn may_propose(&mut self) -> bool {
        let now = self.context.now;
        self.half().is_some_and(|half| half.proposed.is_none_or(|at| now.since(at) >= PROPOSAL_RETRY_INTERVAL))
    }

    /// Proposes the establishment.
    fn propose(&mut self) {
        let (shard, events) = (&mut *self.shard, &mut *self.events);
        let Some(half) = shard.half_open.get_mut(self.slot) else { return };
        half.proposed = Some(self.context.now);
        let open = half.open;
        let occupant = shard.sessions.find(self.hash, &open.original).and_then(|slot| shard.sessions.get(slot));
        if let Some(old) = occupant.filter(|s| s.is_open()) {
            // Both ends have agreed on a new connection with this tuple, so the old one is dead.
            let close = Close { id: old.id(), cause: CloseCause::Rst };
            events.push(Event::Propose(Proposal::Close(close)));
        }
        let supersedes = occupant.map(|s| s.id()).or(open.supersedes);
        let establish = Establish { supersedes, ..Establish::from(&open) };
        #[cfg(feature = "next-level")]
        let establish = Establish { tag: self.engine.next_level_tag(&establish), ..establish };
        events.push(Event::Propose(Proposal::Establish(Box::new(establish))));
    }
}

/// The parameters of a TCP segment with SYN.
fn syn_params(packet: &Packet) -> Option<SynParams> {
    match &packet.kind {
        Kind::Tcp(tcp) => Some(SynParams::from(tcp)),
        _ => None,
    }
}
