//! The packet path: from a parsed packet to its verdict.
//!
//! ```text
//!   packet ─> session? ──yes──> established: zones by policy and route, windows ────────────> Forward, Drop
//!                │ no, or its tuple is contested
//!                ├─> half-open session? ──yes──> half_open: SYN, SYN-ACK, ACK; first, reply ─> Forward, Hold, Drop
//!                │ no
//!                ├─> opens one? ──yes──> source, route, policy ──────────────────────────────> Forward, Reject, Drop
//!                │ no
//!                └─> hold unmatched, and query the other members
//! ```
//!
//! The lookup takes one shard lock. Routes, and the policy for a new session, which may take longer, are asked without it.

mod established;
mod fragment;
mod half_open;
mod handshake_step;
mod related;
mod zones;

use std::time::Duration;

use crate::engine::Engine;
use crate::event::{Event, Hint};
use crate::id::{Generation, RuleId, ZoneId};
use crate::parse::{Kind, Packet, Tcp};
use crate::policy::Action;
use crate::session::{HalfOpen, HandshakeState, SynParams};
use crate::table::Shard;
use crate::table::peer_queries::QueryState;
use crate::table::session::SessionFlag;
use crate::types::{Context, LeaseState};
use crate::verdict::{HoldClass, HoldKey, Reason, Verdict};
pub(crate) use established::CLOSE_OVERDUE;
#[cfg(test)]
pub(crate) use established::judge_syn;
use half_open::{HalfOpenMatch, HandshakePacket};
#[cfg(test)]
pub(crate) use handshake_step::{HandshakeStep, TcpHandshake};
use parking_lot::MutexGuard;
use zones::PacketRoutes;

/// The shortest time between SYNs of different connections that pass on the tuple of a live session.
const MIN_SYN_INTERVAL: Duration = Duration::from_secs(1);

/// How a packet that opens a session was admitted.
struct Admission {
    egress: ZoneId,
    generation: Generation,
    rule: RuleId,
}

/// What is known of a packet: the verdict, if it is one of a session or half-open session.
type Known = Result<Option<Verdict>, RoutesNeeded>;

/// The routes must be asked, without the lock, before this can be decided. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct RoutesNeeded {
    /// Also the route to the packet's source.
    source: bool,
}

impl Engine {
    /// See [`Engine::process`].
    pub(crate) fn judge(&self, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict {
        if context.lease == LeaseState::Expired {
            return Verdict::Drop(Reason::LeaseExpired);
        }
        let verdict = if packet.options.is_empty() || self.active_policy().allows_options(packet.options) {
            self.judge_transport(packet, context, events)
        } else {
            Verdict::Drop(Reason::IpOption)
        };
        match &packet.fragment {
            Some(fragment) => self.first_fragment(packet, fragment, verdict, context, events),
            None => verdict,
        }
    }

    /// The verdict on a packet by what follows its IP header.
    fn judge_transport(&self, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict {
        match &packet.kind {
            Kind::Fragment(fragment) => return self.fragment(packet, fragment, context),
            Kind::IcmpError(embedded) => return self.related(packet, embedded, context),
            _ => {}
        }
        let hash = self.table.hash(&packet.tuple);
        let known = self.known(hash, packet, context, events).1;
        known.unwrap_or_else(|| match context.lease {
            LeaseState::Valid => self.unknown(hash, packet, context, events),
            LeaseState::Grace | LeaseState::Expired => Verdict::Drop(Reason::LeaseGrace),
        })
    }

    /// The verdict on a packet of a session or half-open session, and the lock of its shard.
    fn known(
        &self,
        hash: u64,
        packet: &Packet,
        context: &mut Context<'_>,
        events: &mut Vec<Event>,
    ) -> (MutexGuard<'_, Shard>, Option<Verdict>) {
        let mut routes = None;
        loop {
            let mut shard = self.table.shard_for(hash);
            match self.known_with(&mut shard, hash, packet, context, routes.as_ref(), events) {
                Ok(known) => return (shard, known),
                Err(needed) => {
                    drop(shard);
                    routes = Some(PacketRoutes::ask(packet, needed, context));
                }
            }
        }
    }

    /// The verdict on a packet of a session or half-open session, given its routes if they have been asked.
    fn known_with(
        &self,
        shard: &mut Shard,
        hash: u64,
        packet: &Packet,
        context: &Context<'_>,
        routes: Option<&PacketRoutes>,
        events: &mut Vec<Event>,
    ) -> Known {
        let session = shard.sessions.find(hash, &packet.tuple);
        let entry = session.and_then(|slot| shard.sessions.get(slot));
        let contested = entry.is_none_or(|s| s.local.flags.has(SessionFlag::Contested));
        let live = entry.is_some_and(|s| s.is_open());
        let mut half_open = HalfOpenMatch::Nothing;
        if contested {
            half_open = self.match_half_open(shard, hash, packet, live, context, routes)?;
            // Many packets fit a half-open session by chance; what fits the connection itself is the connection's.
            if let HalfOpenMatch::Step(step, slot) = half_open
                && !(step.could_match_other_connection() && entry_fits(shard, session, packet, context))
            {
                let packet = HandshakePacket { engine: self, shard, hash, slot, packet, context, events };
                return Ok(Some(packet.advance(step)));
            }
        }
        let Some(slot) = session else {
            return Ok(match (half_open, &packet.kind) {
                // The hint of the SYN that it answers may be under way, whatever else is known of the tuple.
                (_, Kind::Tcp(tcp)) if tcp.has(Tcp::SYN) => None,
                (HalfOpenMatch::Implausible(reason), _) => Some(Verdict::Drop(reason)),
                _ => None,
            });
        };
        if matches!(half_open, HalfOpenMatch::Nothing)
            && let Some(session) = shard.sessions.get_mut(slot)
        {
            session.local.flags.set(SessionFlag::Contested, false);
        }
        self.established(shard, slot, packet, context, routes, events)
    }

    /// The verdict on a packet that no session knows.
    fn unknown(&self, hash: u64, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict {
        match &packet.kind {
            Kind::Tcp(tcp) => match tcp.flags & (Tcp::SYN | Tcp::ACK | Tcp::FIN | Tcp::RST) {
                Tcp::SYN => {
                    let protocol = HandshakeState::Tcp { client: SynParams::from(tcp), server: None };
                    self.open(hash, packet, protocol, context, events)
                }
                // It may refuse a connection whose hint is under way.
                flags if flags & Tcp::RST != 0 => {
                    let query = self.table.shard_for(hash).queries.state(hash, context.now);
                    match query {
                        QueryState::Unanswered => Verdict::Drop(Reason::NoSession),
                        QueryState::NotSent | QueryState::Outstanding => {
                            self.hold_unmatched(hash, packet, context, events)
                        }
                    }
                }
                flags if flags & Tcp::ACK == 0 || flags & (Tcp::SYN | Tcp::FIN) == Tcp::SYN | Tcp::FIN => {
                    Verdict::Drop(Reason::TcpFlags)
                }
                _ => self.hold_unmatched(hash, packet, context, events),
            },
            Kind::EchoReply => self.hold_unmatched(hash, packet, context, events),
            _ => self.open(hash, packet, HandshakeState::Generic { replied: false }, context, events),
        }
    }

    /// Opens a session, if source, route and policy allow.
    fn open(
        &self,
        hash: u64,
        packet: &Packet,
        protocol: HandshakeState,
        context: &mut Context<'_>,
        events: &mut Vec<Event>,
    ) -> Verdict {
        let admission = match self.admit(packet, context) {
            Ok(admission) => admission,
            Err(denied) => return self.deny(hash, packet, denied, context, events),
        };
        let tuple = packet.tuple;
        // Another worker, or a hint, may have been faster.
        let (mut shard, known) = self.known(hash, packet, context, events);
        if let Some(verdict) = known {
            return verdict;
        }
        if self.table.half_open_by_source.count(tuple.src) >= self.config.max_half_open_per_source {
            return Verdict::Drop(Reason::HalfOpenFull);
        }
        let occupant = shard.sessions.find(hash, &tuple).and_then(|slot| shard.sessions.get(slot));
        if occupant.is_some_and(|s| s.is_open()) {
            // Its answer is a challenge ACK, and one a second is enough (RFC 5961 section 7).
            let is_recent =
                |slot| shard.half_open.get(slot).is_some_and(|h| context.now.since(h.last) < MIN_SYN_INTERVAL);
            if shard.half_open.lookup(hash, &tuple).any(is_recent) {
                return Verdict::Drop(Reason::TcpWindow);
            }
        }
        let open = HalfOpen {
            id: self.next_id(),
            original: tuple,
            reply: tuple.inverse(),
            ingress: context.ingress,
            egress: admission.egress,
            generation: admission.generation,
            rule: admission.rule,
            supersedes: occupant.map(|s| s.id()),
            challenge: None,
            protocol,
        };
        context.routes.set_egress(admission.egress);
        self.table.insert_half_open(&mut shard, hash, open, context.now);
        let workers = shard.queries.take(hash);
        drop(shard);
        if !workers.is_empty() {
            // Its answer overtook it.
            events.push(Event::Wake { workers, key: HoldKey(hash) });
        }
        events.push(Event::Hint(Hint::HalfOpen(Box::new(open))));
        Verdict::Forward
    }

    /// What source, route and policy say of a packet that would open a session; or the verdict that denies it.
    fn admit(&self, packet: &Packet, context: &mut Context<'_>) -> Result<Admission, Verdict> {
        let tuple = packet.tuple;
        if context.ingress == ZoneId::UNKNOWN {
            return Err(Verdict::Drop(Reason::NoDataInterface));
        }
        if context.antispoof && context.routes.zone(tuple.src) != Some(context.ingress) {
            return Err(Verdict::Drop(Reason::Antispoof));
        }
        let egress = match context.routes.zone(tuple.dst) {
            None => return Err(Verdict::Drop(Reason::NoRoute)),
            Some(ZoneId::UNKNOWN) => return Err(Verdict::Drop(Reason::NoDataInterface)),
            Some(egress) => egress,
        };
        let policy = self.active_policy();
        let decision = policy.decide(context.ingress, egress, &tuple);
        match decision.action {
            Action::Accept => Ok(Admission { egress, generation: policy.generation, rule: decision.rule }),
            Action::Drop => Err(Verdict::Drop(Reason::Policy)),
            Action::Reject => Err(Verdict::Reject(Reason::PolicyReject)),
        }
    }

    /// The verdict on a packet that may not open a session.
    fn deny(
        &self,
        hash: u64,
        packet: &Packet,
        denied: Verdict,
        context: &mut Context<'_>,
        events: &mut Vec<Event>,
    ) -> Verdict {
        let by_policy = matches!(denied, Verdict::Drop(Reason::Policy) | Verdict::Reject(_));
        if !by_policy || matches!(packet.kind, Kind::Tcp(_) | Kind::EchoRequest) {
            return denied;
        }
        // It may be the reply of a session whose hint is under way. If no member claims it, the policy decides.
        let query = self.table.shard_for(hash).queries.state(hash, context.now);
        match query {
            QueryState::Unanswered => denied,
            QueryState::NotSent | QueryState::Outstanding => self.hold_unmatched(hash, packet, context, events),
        }
    }

    /// Holds a packet that matches nothing. The other members are queried, once for each key.
    fn hold_unmatched(
        &self,
        hash: u64,
        packet: &Packet,
        context: &mut Context<'_>,
        events: &mut Vec<Event>,
    ) -> Verdict {
        // What it waits for may have come since it was looked for.
        let (mut shard, known) = self.known(hash, packet, context, events);
        if let Some(verdict) = known {
            return verdict;
        }
        self.table.await_hint(&mut shard, hash, &packet.tuple, context);
        Verdict::Hold(HoldKey(hash), HoldClass::Unmatched)
    }
}

/// Whether a packet is a segment of the session in `slot`, according to what this member knows of it.
fn entry_fits(shard: &Shard, slot: Option<u32>, packet: &Packet, context: &Context<'_>) -> bool {
    slot.and_then(|slot| shard.sessions.get(slot)).is_some_and(|session| session.is_in_window(packet, context))
}

#[cfg(test)]
mod tests;
