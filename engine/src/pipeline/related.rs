//! ICMP errors: RELATED to the session that sent the packet they quote (RFC 5508 section 3 has the same for NAT).

use super::RoutesNeeded;
use super::zones::{PacketRoutes, in_silence};
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
    /// The verdict on an ICMP error. It passes if a session sent the packet that it quotes, and if it comes from a zone that
    /// answers to this packet may come from.
    pub(super) fn related(&self, packet: &Packet, quoted: &Embedded, context: &mut Context<'_>) -> Verdict {
        // An error goes to the sender of the quoted packet, and to nobody else.
        if packet.tuple.dst != quoted.tuple.src {
            return UNRELATED;
        }
        let mut routes = None;
        loop {
            match self.related_with(quoted, context, routes.as_ref()) {
                Ok(verdict) => return verdict,
                Err(needed) => routes = Some(PacketRoutes::ask(packet, needed, context)),
            }
        }
    }

    /// The verdict on an ICMP error, given its routes if they have been asked.
    fn related_with(
        &self,
        quoted: &Embedded,
        context: &Context<'_>,
        routes: Option<&PacketRoutes>,
    ) -> Result<Verdict, RoutesNeeded> {
        let hash = self.table.hash(&quoted.tuple);
        let mut shard = self.table.shard_for(hash);
        if let Some(slot) = shard.sessions.find(hash, &quoted.tuple)
            && let Some(session) = shard.sessions.get_mut(slot)
            && let Some(direction) = session.direction(&quoted.tuple)
            && may_have_sent(session, direction, quoted, context)
        {
            let judged = self.judge_zones(session, direction.flip(), context, routes)?;
            return Ok(judged.map_or_else(|reason| Verdict::Drop(in_silence(reason)), |()| Verdict::Forward));
        }
        if context.lease != LeaseState::Valid {
            return Ok(UNRELATED);
        }
        self.related_to_half_open(&mut shard, hash, quoted, context, routes)
    }

    /// The verdict on an ICMP error that no session's packet caused.
    fn related_to_half_open(
        &self,
        shard: &mut Shard,
        hash: u64,
        quoted: &Embedded,
        context: &Context<'_>,
        routes: Option<&PacketRoutes>,
    ) -> Result<Verdict, RoutesNeeded> {
        let generation = self.generation();
        for slot in shard.half_open.lookup(hash, &quoted.tuple) {
            let Some(entry) = shard.half_open.get_mut(slot) else { continue };
            let direction = if entry.open.original == quoted.tuple { Direction::Original } else { Direction::Reply };
            if !entry.aborted
                && entry.open.generation >= generation
                && half_open_may_have_sent(entry, direction, quoted)
                && self.judge_half_open_zones(entry, direction.flip(), context, routes)?.is_ok()
            {
                context.routes.set_egress(entry.egress[direction.flip()]);
                return Ok(Verdict::Forward);
            }
        }
        let is_known = shard.sessions.find(hash, &quoted.tuple).is_some()
            || shard.half_open.lookup(hash, &quoted.tuple).next().is_some();
        if is_known || shard.queries.state(hash, context.now) == QueryState::Unanswered {
            return Ok(UNRELATED);
        }
        // The hint of the session may be under way.
        self.table.await_hint(shard, hash, &quoted.tuple, context);
        Ok(Verdict::Hold(HoldKey(hash), HoldClass::Unmatched))
    }
}

fn may_have_sent(session: &Session, direction: Direction, quoted: &Embedded, context: &Context<'_>) -> bool {
    match (session.replicated().syn_params(), &session.local.track, quoted.seq) {
        (Some(syns), Some(track), Some(seq)) => track.may_have_sent(&syns, direction, seq, context.now),
        _ => true,
    }
}

fn half_open_may_have_sent(entry: &HalfOpenEntry, direction: Direction, quoted: &Embedded) -> bool {
    match (&entry.open.protocol, quoted.seq) {
        (HandshakeState::Tcp { client, server }, Some(seq)) => {
            let sender = match direction {
                Direction::Original => Some(client),
                Direction::Reply => server.as_ref(),
            };
            let window = max_advertisable_window(client, server.as_ref().unwrap_or(client));
            sender.is_some_and(|sender| (0..=window).contains(&seq_diff(seq, sender.isn)))
        }
        _ => true,
    }
}
