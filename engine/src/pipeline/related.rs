//! ICMP errors: RELATED to the session that sent the packet they quote (RFC 5508 section 3 has the same for NAT).

use crate::engine::Engine;
use crate::parse::{Embedded, Packet};
use crate::session::HandshakeState;
use crate::table::Shard;
use crate::table::half_open::HalfOpenEntry;
use crate::table::peer_queries::QueryState;
use crate::table::session::Session;
use crate::track::tcp::{max_advertisable_window, seq_diff};
use crate::tuple::Direction;
use crate::types::{Context, LeaseState};
use crate::verdict::{HoldClass, HoldKey, Reason, Verdict};

const UNRELATED: Verdict = Verdict::Drop(Reason::IcmpUnrelated);

impl Engine {
    /// The verdict on an ICMP error. It passes if a session sent the packet that it quotes, and if it comes from the zone that
    /// this packet went to.
    pub(super) fn related(&self, packet: &Packet, quoted: &Embedded, context: &Context<'_>) -> Verdict {
        // An error goes to the sender of the quoted packet, and to nobody else.
        if packet.tuple.dst != quoted.tuple.src {
            return UNRELATED;
        }
        let hash = self.table.hash(&quoted.tuple);
        let mut shard = self.table.shard_for(hash);
        if let Some(slot) = shard.sessions.find(hash, &quoted.tuple)
            && let Some(session) = shard.sessions.get_mut(slot)
            && let Some(direction) = session.direction(&quoted.tuple)
            && may_have_sent(session, direction, quoted, context)
        {
            return if session.zone(direction.flip()) != context.ingress {
                Verdict::Drop(Reason::WrongZone)
            } else if !self.still_allowed(session) {
                Verdict::Drop(Reason::Policy)
            } else {
                Verdict::Forward
            };
        }
        if context.lease != LeaseState::Valid {
            return UNRELATED;
        }
        self.related_to_half_open(&mut shard, hash, quoted, context)
    }

    /// The verdict on an ICMP error that no session's packet caused.
    fn related_to_half_open(&self, shard: &mut Shard, hash: u64, quoted: &Embedded, context: &Context<'_>) -> Verdict {
        let is_related = |entry: &HalfOpenEntry| {
            !entry.aborted
                && entry.open.generation >= self.generation()
                && half_open_may_have_sent(entry, quoted, context)
        };
        let mut entries = shard.half_open.lookup(hash, &quoted.tuple).filter_map(|slot| shard.half_open.get(slot));
        if entries.any(is_related) {
            return Verdict::Forward;
        }
        let is_known = shard.sessions.find(hash, &quoted.tuple).is_some()
            || shard.half_open.lookup(hash, &quoted.tuple).next().is_some();
        if is_known || shard.queries.state(hash, context.now) == QueryState::Unanswered {
            return UNRELATED;
        }
        // The hint of the session may be under way.
        self.table.await_hint(shard, hash, &quoted.tuple, context);
        Verdict::Hold(HoldKey(hash), HoldClass::Unmatched)
    }
}

fn may_have_sent(session: &Session, direction: Direction, quoted: &Embedded, context: &Context<'_>) -> bool {
    match (session.replicated().syn_params(), &session.local.track, quoted.seq) {
        (Some(syns), Some(track), Some(seq)) => track.may_have_sent(&syns, direction, seq, context.now),
        _ => true,
    }
}

fn half_open_may_have_sent(entry: &HalfOpenEntry, quoted: &Embedded, context: &Context<'_>) -> bool {
    let open = &entry.open;
    let (direction, error_zone) = if open.original == quoted.tuple {
        (Direction::Original, open.egress)
    } else {
        (Direction::Reply, open.ingress)
    };
    let plausible = match (&open.protocol, quoted.seq) {
        (HandshakeState::Tcp { client, server }, Some(seq)) => {
            let sender = match direction {
                Direction::Original => Some(client),
                Direction::Reply => server.as_ref(),
            };
            let window = max_advertisable_window(client, server.as_ref().unwrap_or(client));
            sender.is_some_and(|sender| (0..=window).contains(&seq_diff(seq, sender.isn)))
        }
        _ => true,
    };
    plausible && error_zone == context.ingress
}
