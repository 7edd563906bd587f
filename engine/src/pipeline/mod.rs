//! A packet's way to its verdict.
//!
//! ```text
//!   packet ─> session? ──yes──> established: zone, policy generation, windows ─────────────> Forward, Drop
//!                │ no, or its tuple is contested
//!                ├─> half-open session? ──yes──> opening: SYN, SYN-ACK, ACK; first, reply ─> Forward, Hold, Drop
//!                │ no
//!                ├─> opens one? ──yes──> source, route, policy ───────────────────────────> Forward, Reject, Drop
//!                │ no
//!                └─> hold unmatched, and ask the other members
//! ```
//!
//! One shard lock is taken for what is known. Routes and policy, which may take longer, are asked without it.

mod established;
mod fragment;
mod half_open;
mod related;

use std::time::Duration;

use crate::engine::Engine;
use crate::event::{Event, Hint};
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
use half_open::HalfOpenMatch;
#[cfg(test)]
pub(crate) use half_open::{HandshakeStep, step};

/// Least time between SYNs of different connections that pass on the tuple of a live session.
const SYN_APART: Duration = Duration::from_secs(1);

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
        let known = self.known(&mut self.table.shard_for(hash), hash, packet, context, events);
        known.unwrap_or_else(|| match context.lease {
            LeaseState::Valid => self.unknown(hash, packet, context, events),
            LeaseState::Grace | LeaseState::Expired => Verdict::Drop(Reason::LeaseGrace),
        })
    }

    /// The verdict on a packet of a session or half-open session.
    fn known(
        &self,
        shard: &mut Shard,
        hash: u64,
        packet: &Packet,
        context: &Context<'_>,
        events: &mut Vec<Event>,
    ) -> Option<Verdict> {
        let session = shard.sessions.find(hash, &packet.tuple);
        let entry = session.and_then(|slot| shard.sessions.get(slot));
        let contested = entry.is_none_or(|s| s.flags.has(SessionFlag::Contested));
        let live = entry.is_some_and(|s| s.closed.is_none());
        let mut opening = HalfOpenMatch::Nothing;
        if contested {
            opening = self.match_half_open(shard, hash, packet, live, context);
            // Many packets fit a half-open session by chance; what fits the connection itself is the connection's.
            if let HalfOpenMatch::Step(step, slot) = opening
                && !(step.could_match_other_connection() && entry_fits(shard, session, packet, context))
            {
                return Some(self.step(shard, hash, slot, step, packet, context, events));
            }
        }
        let Some(slot) = session else {
            return match (opening, &packet.kind) {
                // The hint of the SYN that it answers may be under way, whatever else is known of the tuple.
                (_, Kind::Tcp(tcp)) if tcp.has(Tcp::SYN) => None,
                (HalfOpenMatch::Implausible(reason), _) => Some(Verdict::Drop(reason)),
                _ => None,
            };
        };
        if matches!(opening, HalfOpenMatch::Nothing)
            && let Some(session) = shard.sessions.get_mut(slot)
        {
            session.flags.set(SessionFlag::Contested, false);
        }
        self.established(shard, slot, packet, context, events)
    }

    /// The verdict on a packet that no session knows.
    fn unknown(&self, hash: u64, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict {
        match &packet.kind {
            Kind::Tcp(tcp) => match tcp.flags & (Tcp::SYN | Tcp::ACK | Tcp::FIN | Tcp::RST) {
                Tcp::SYN => {
                    let client =
                        SynParams { isn: tcp.seq, window: tcp.window, wscale: tcp.wscale, sack: tcp.sack_permitted };
                    self.open(hash, packet, HandshakeState::Tcp { client, server: None }, context, events)
                }
                // It may refuse a connection whose hint is under way.
                flags if flags & Tcp::RST != 0 => {
                    let asked = self.table.shard_for(hash).queries.state(hash, context.now);
                    match asked {
                        QueryState::Unanswered => Verdict::Drop(Reason::NoSession),
                        QueryState::NotSent | QueryState::Outstanding => self.wait(hash, packet, context, events),
                    }
                }
                flags if flags & Tcp::ACK == 0 || flags & (Tcp::SYN | Tcp::FIN) == Tcp::SYN | Tcp::FIN => {
                    Verdict::Drop(Reason::TcpFlags)
                }
                _ => self.wait(hash, packet, context, events),
            },
            Kind::EchoReply => self.wait(hash, packet, context, events),
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
        let tuple = packet.tuple;
        if context.antispoof && context.routes.zone(tuple.src) != Some(context.ingress) {
            return Verdict::Drop(Reason::Antispoof);
        }
        let Some(egress) = context.routes.zone(tuple.dst) else {
            return Verdict::Drop(Reason::NoRoute);
        };
        let policy = self.active_policy();
        let decision = policy.decide(context.ingress, egress, &tuple);
        let denied = match decision.action {
            Action::Accept => None,
            Action::Drop => Some(Verdict::Drop(Reason::Policy)),
            Action::Reject => Some(Verdict::Reject(Reason::PolicyReject)),
        };
        if let Some(denied) = denied {
            return match packet.kind {
                Kind::Tcp(_) | Kind::EchoRequest => denied,
                // It may be the reply of a session whose hint is under way. Once nobody claimed it, the policy's word
                // counts.
                _ if self.table.shard_for(hash).queries.state(hash, context.now) == QueryState::Unanswered => denied,
                _ => self.wait(hash, packet, context, events),
            };
        }

        let mut shard = self.table.shard_for(hash);
        // Another worker, or a hint, may have been faster.
        if let Some(verdict) = self.known(&mut shard, hash, packet, context, events) {
            return verdict;
        }
        if self.table.half_open_by_source.count(tuple.src) >= self.config.max_half_open_per_source {
            return Verdict::Drop(Reason::HalfOpenFull);
        }
        let occupant = shard.sessions.find(hash, &tuple).and_then(|slot| shard.sessions.get(slot));
        if occupant.is_some_and(|s| s.closed.is_none()) {
            // Its answer is a challenge ACK, and one a second is enough (RFC 5961 section 7).
            let lately = |slot| shard.half_open.get(slot).is_some_and(|h| context.now.since(h.last) < SYN_APART);
            if shard.half_open.lookup(hash, &tuple).any(lately) {
                return Verdict::Drop(Reason::TcpWindow);
            }
        }
        let supersedes = occupant.map(|s| s.id);
        let open = HalfOpen {
            id: self.next_id(),
            original: tuple,
            reply: tuple.inverse(),
            ingress: context.ingress,
            egress,
            generation: policy.generation,
            rule: decision.rule,
            supersedes,
            challenge: None,
            protocol,
        };
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

    /// Holds a packet that matches nothing, and has the other members asked, once a key.
    fn wait(&self, hash: u64, packet: &Packet, context: &Context<'_>, events: &mut Vec<Event>) -> Verdict {
        let mut shard = self.table.shard_for(hash);
        // What it waits for may have come since it was looked for.
        if let Some(verdict) = self.known(&mut shard, hash, packet, context, events) {
            return verdict;
        }
        self.table.await_hint(&mut shard, hash, &packet.tuple, context);
        Verdict::Hold(HoldKey(hash), HoldClass::Unmatched)
    }
}

/// Is this a segment of the session at `slot`, by what this member knows of it?
fn entry_fits(shard: &Shard, slot: Option<u32>, packet: &Packet, context: &Context<'_>) -> bool {
    slot.and_then(|slot| shard.sessions.get(slot)).is_some_and(|session| session.is_in_window(packet, context))
}

#[cfg(test)]
mod tests;
