//! Strays: packets that belong to nothing that this member knows and open nothing.
//!
//! A session may explain one whose hint or establishment is under way to this member. Then it is held, and the other members
//! are queried. If no member knows a session, it is judged without one: what the policy says of it, or that there is no
//! session.

use std::sync::atomic::Ordering;

use super::Denial;
use crate::engine::Engine;
use crate::event::Event;
use crate::id::ZoneId;
use crate::parse::{Kind, Packet, Tcp};
use crate::policy::Action;
use crate::table::peer_queries::QueryState;
use crate::time::Time;
use crate::types::{Context, LeaseState};
use crate::verdict::{HoldClass, HoldKey, Reason, Verdict};

const NO_SESSION: Verdict = Verdict::Drop(Reason::NoSession);

impl Engine {
    /// The verdict on a TCP segment or echo reply that belongs to nothing known.
    pub(super) fn stray(
        &self,
        hash: u64,
        packet: &Packet,
        context: &mut Context<'_>,
        events: &mut Vec<Event>,
    ) -> Verdict {
        let (is_answer, is_rst) = match &packet.kind {
            // The SYN or request may have passed at another member under other routes.
            Kind::Tcp(tcp) => (tcp.has(Tcp::RST) || tcp.has(Tcp::SYN), tcp.has(Tcp::RST)),
            _ => (true, false),
        };
        if is_rst && self.table.shard_for(hash).queries.state(hash, context.now) == QueryState::Unanswered {
            return NO_SESSION;
        }
        if is_answer || self.may_have_session(packet, context) {
            return self.hold_unmatched(hash, packet, context, events);
        }
        match self.refuse_stray(packet, context) {
            // The answer ends the connection: first it has to be known that there is none.
            Verdict::Reject(_) => self.hold_unmatched(hash, packet, context, events),
            verdict => verdict,
        }
    }

    /// Notes that everything that was committed at `time` is applied here.
    pub fn set_applied_as_of(&self, time: Time) {
        self.applied_as_of.fetch_max(time.0, Ordering::AcqRel);
    }

    /// The verdict on a packet that was held since `since` because it matched nothing, and whose hold is over. `None`: a
    /// session is known now, so that the packet came too late.
    ///
    /// This member may be late, as it is allowed to be for as long as its lease is valid. So the packet's sender is answered
    /// only if everything is applied here that was committed when the packet came: an established session was.
    pub(crate) fn judge_expired(
        &self,
        packet: &Packet,
        since: Time,
        context: &mut Context<'_>,
        events: &mut Vec<Event>,
    ) -> Option<Verdict> {
        if context.lease != LeaseState::Valid {
            return None;
        }
        match &packet.kind {
            Kind::Fragment(_) => return None,
            Kind::IcmpError(_) => return Some(Verdict::Drop(Reason::IcmpUnrelated)),
            _ => {}
        }
        let hash = self.table.hash(&packet.tuple);
        let shard = self.table.shard_for(hash);
        let is_known = shard.sessions.find(hash, &packet.tuple).is_some()
            || shard.half_open.lookup(hash, &packet.tuple).next().is_some();
        drop(shard);
        if is_known {
            return None;
        }
        let may_answer = since <= Time(self.applied_as_of.load(Ordering::Acquire));
        let verdict = match &packet.kind {
            Kind::Tcp(_) if may_answer => self.refuse_stray(packet, context),
            Kind::Tcp(_) | Kind::EchoReply => NO_SESSION,
            _ => {
                // If the policy was changed meanwhile and allows it, its sender will try again.
                let denial: Denial = self.admit(packet, context).err()?;
                match denial.verdict {
                    Verdict::Reject(_) if !may_answer => NO_SESSION,
                    _ => self.record_denial(packet, &denial, context, events),
                }
            }
        };
        Some(match &packet.fragment {
            Some(fragment) => self.first_fragment(packet, fragment, verdict, context, events),
            None => verdict,
        })
    }

    /// Whether a packet that leaves to `egress` could be the reply of a session that the policy allows.
    pub(super) fn may_be_reply(&self, packet: &Packet, egress: ZoneId, context: &Context<'_>) -> bool {
        self.active_policy().decide(egress, context.ingress, &packet.tuple.inverse()).action == Action::Accept
    }

    /// Whether the policy allows a session with the packet's tuple, in either direction.
    fn may_have_session(&self, packet: &Packet, context: &mut Context<'_>) -> bool {
        let Some(egress) = egress(packet, context) else { return false };
        self.active_policy().decide(context.ingress, egress, &packet.tuple).action == Action::Accept
            || self.may_be_reply(packet, egress, context)
    }

    /// The verdict on a TCP segment of no session. If the policy rejects, its sender is told that the connection is no more:
    /// both ends of one that was killed, revoked or expired learn it with their next segment.
    fn refuse_stray(&self, packet: &Packet, context: &mut Context<'_>) -> Verdict {
        let tuple = &packet.tuple;
        // No answer to what may come from somebody else.
        let is_spoofed = context.antispoof && context.routes.zone(tuple.src) != Some(context.ingress);
        let Some(egress) = egress(packet, context).filter(|_| !is_spoofed) else { return NO_SESSION };
        let policy = self.active_policy();
        let own = policy.decide(context.ingress, egress, tuple).action;
        let allowed = own == Action::Accept || self.may_be_reply(packet, egress, context);
        // A rule that drops what would open this connection drops this in silence, too.
        let action = if allowed { policy.default_action() } else { own };
        if action == Action::Reject { Verdict::Reject(Reason::NoSession) } else { NO_SESSION }
    }

    /// Holds a packet that matches nothing. The other members are queried, once for each key.
    pub(super) fn hold_unmatched(
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

/// The zone that a packet leaves to, if both its zones are those of data interfaces.
fn egress(packet: &Packet, context: &mut Context<'_>) -> Option<ZoneId> {
    let egress = context.routes.zone(packet.tuple.dst)?;
    (egress != ZoneId::UNKNOWN && context.ingress != ZoneId::UNKNOWN).then_some(egress)
}
