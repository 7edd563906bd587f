//! ICMP errors: RELATED to the session that sent the packet they are about (RFC 5508 section 3 has the same for NAT).

use crate::engine::{Context, Engine, Standing};
use crate::event::HandshakeState;
use crate::parse::{Embedded, Packet};
use crate::table::peer_queries::QueryState;
use crate::track::tcp::{max_advertisable_window, seq_diff};
use crate::tuple::Direction;
use crate::verdict::{HoldClass, HoldKey, Reason, Verdict};

impl Engine {
    /// The verdict on an ICMP error: it passes if a session sent what it is about, and it comes from where that went.
    pub(super) fn related(&self, packet: &Packet, embedded: &Embedded, context: &Context<'_>) -> Verdict {
        const UNRELATED: Verdict = Verdict::Drop(Reason::IcmpUnrelated);
        // Errors go to whoever sent the packet, and to nobody else.
        if packet.tuple.dst != embedded.tuple.src {
            return UNRELATED;
        }
        let hash = self.table.hash(&embedded.tuple);
        let mut shard = self.table.of(hash);
        if let Some(slot) = shard.sessions.find(hash, &embedded.tuple)
            && let Some(session) = shard.sessions.get_mut(slot)
            && let Some(direction) = session.direction(&embedded.tuple)
        {
            let plausible = match (session.syn_params(), session.track, embedded.seq) {
                (Some((client, server)), Some(track), Some(seq)) => {
                    track.sent([&client, &server], direction, seq, context.now)
                }
                _ => true,
            };
            if plausible {
                return match session.zone(direction.flip()) {
                    zone if zone != context.ingress => Verdict::Drop(Reason::WrongZone),
                    _ if !self.still_allowed(session) => Verdict::Drop(Reason::Policy),
                    _ => Verdict::Forward,
                };
            }
        }
        if context.standing != Standing::Current {
            return UNRELATED;
        }
        let sent_it = |slot: u32| {
            let open = &shard.half_open.get(slot).filter(|h| !h.aborted)?.open;
            let (direction, from) = match open.original == embedded.tuple {
                true => (Direction::Original, open.egress),
                false => (Direction::Reply, open.ingress),
            };
            let plausible = match (&open.protocol, embedded.seq) {
                (HandshakeState::Tcp { client, server }, Some(seq)) => {
                    let sender = match direction {
                        Direction::Original => Some(client),
                        Direction::Reply => server.as_ref(),
                    };
                    sender.is_some_and(|sender| {
                        (0..=max_advertisable_window(client, server.as_ref().unwrap_or(client)))
                            .contains(&seq_diff(seq, sender.isn))
                    })
                }
                _ => true,
            };
            (plausible && from == context.ingress && open.generation >= self.generation()).then_some(())
        };
        if shard.half_open.of(hash, &embedded.tuple).find_map(sent_it).is_some() {
            return Verdict::Forward;
        }
        let known = shard.sessions.find(hash, &embedded.tuple).is_some()
            || shard.half_open.of(hash, &embedded.tuple).next().is_some();
        if known || shard.queries.state(hash, context.now) == QueryState::Unanswered {
            return UNRELATED;
        }
        // The hint of what it is about may be under way.
        self.table.await_hint(&mut shard, hash, &embedded.tuple, context);
        Verdict::Hold(HoldKey(hash), HoldClass::Unmatched)
    }
}
