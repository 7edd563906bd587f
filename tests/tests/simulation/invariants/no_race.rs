//! P1, no race: while all is well, a handshake completes without a retransmission and without a drop, whichever members its
//! packets pass, and however the hints between them are delayed.

use palisade_engine::packet_loop::PacketOutcome;

use crate::faults::FaultPlan;
use crate::network::{MS, Nanos};
use crate::sim::{Fact, Sim};
use crate::traffic::Kind;
use crate::worker::Break;

use super::Invariant;

/// A handshake that has taken no longer may still be under way: three packets, a hint and a commit over slow links.
const UNDER_WAY: Nanos = 300 * MS;

#[derive(Default)]
pub(crate) struct NoRace;

impl NoRace {
    /// All connections that opened while all was well, until now.
    fn check(sim: &Sim, since: Nanos) -> Vec<String> {
        let allowed = |port| port == crate::traffic::WEB;
        let opened = |at: Nanos| at >= since && at + UNDER_WAY <= sim.now;
        let all = sim.traffic.connections.iter().filter(|c| opened(c.opened) && allowed(c.port()));
        let again =
            |c: &&crate::traffic::Connection| c.completed.is_none_or(|at| at > c.opened + UNDER_WAY) || c.again > 0;
        all.filter(again).map(|c| format!("a handshake did not complete at once: {c:?}")).collect()
    }
}

impl Invariant for NoRace {
    fn name(&self) -> &'static str {
        "P1 no race"
    }

    fn hear(&mut self, fact: &Fact<'_>, sim: &Sim) -> Result<(), String> {
        match (fact, sim.calm_since) {
            (Fact::Packet(seen), Some(since)) if seen.segment.kind == Kind::Legitimate => {
                let connection = seen.segment.connection.and_then(|n| sim.traffic.connections.get(n));
                let opening = connection.is_some_and(|c| c.opened >= since && c.completed.is_none());
                match seen.outcome {
                    PacketOutcome::Dropped(reason) | PacketOutcome::Rejected(reason)
                        if opening && seen.segment.tuple.dst_port == crate::traffic::WEB =>
                    {
                        Err(format!("dropped in a handshake, {reason:?}: {seen:?}"))
                    }
                    _ => Ok(()),
                }
            }
            (Fact::Fault, Some(since)) => match Self::check(sim, since).pop() {
                Some(what) => Err(what),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn end(&mut self, sim: &Sim) -> Vec<String> {
        sim.calm_since.map_or(Vec::new(), |since| Self::check(sim, since))
    }
}

#[test]
fn no_race_holds_while_all_is_well() {
    crate::seeds(20, FaultPlan::Calm).hold();
}

#[test]
fn no_race_fails_if_nothing_is_held() {
    crate::broken(FaultPlan::Calm, (None, Break::NoHolds)).violate("P1 no race");
}
