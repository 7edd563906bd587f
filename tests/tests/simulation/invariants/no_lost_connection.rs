//! P2, no lost connection: a connection whose handshake completed goes on once a majority is there again, whatever minority
//! was lost, the leader included; and no member that knows of it takes a packet of it for somebody else's.

use palisade_engine::Reason;
use palisade_engine::packet_loop::PacketOutcome;

use super::Invariant;
use crate::faults::FaultPlan;
use crate::network::{Nanos, SECOND};
use crate::sim::{Fact, Sim};
use crate::traffic::{Kind, WEB};

/// After a repair: an election, a lease renewal, the longest retransmission timeout.
const RECOVERY_TIME: Nanos = 3 * SECOND;

#[derive(Default)]
pub(crate) struct NoLostConnection;

/// Reasons that a member gives which does not know, or not yet, or may not act: the sender sends again.
fn is_temporary(reason: Reason) -> bool {
    use Reason as R;
    matches!(
        reason,
        R::HoldFull | R::HoldExpired | R::NoSession | R::LeaseGrace | R::LeaseExpired | R::Stale | R::HalfOpenFull
    )
}

impl Invariant for NoLostConnection {
    fn name(&self) -> &'static str {
        "P2 no lost connection"
    }

    fn hear(&mut self, fact: &Fact<'_>, sim: &Sim) -> Result<(), String> {
        let Fact::Packet(seen) = fact else { return Ok(()) };
        let segment = &seen.segment;
        let Some(connection) = segment.connection.and_then(|n| sim.traffic.connections.get(n)) else { return Ok(()) };
        let judged = segment.kind == Kind::Legitimate && connection.port() == WEB && connection.lives();
        match seen.outcome {
            // A late copy of the handshake is no packet of the connection any longer.
            PacketOutcome::Dropped(reason)
                if judged && !is_temporary(reason) && !segment.has(palisade_engine::parse::Tcp::SYN) =>
            {
                Err(format!("a packet of a living connection was dropped, {reason:?}: {seen:?}"))
            }
            PacketOutcome::Rejected(reason) if judged && !segment.has(palisade_engine::parse::Tcp::SYN) => {
                Err(format!("a living connection was reset, {reason:?}: {seen:?}"))
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, sim: &Sim) -> Vec<String> {
        if sim.healed == 0 || sim.now < sim.healed + RECOVERY_TIME {
            return Vec::new();
        }
        let all = sim.traffic.connections.iter().filter(|c| c.port() == WEB);
        let lost = |c: &&crate::traffic::Connection| {
            if c.lives() {
                c.ends.iter().any(|end| end.progress < sim.healed)
            } else {
                // One that opened before may have been forgotten by all who knew of it: half-open sessions are not in the log.
                c.completed.is_none() && c.opened >= sim.healed && c.opened + RECOVERY_TIME < sim.now
            }
        };
        all.filter(lost).map(|c| format!("a connection did not go on: {c:?}")).collect()
    }
}

#[test]
fn no_lost_connection_holds_after_two_losses_in_a_row() {
    crate::seeds(20, FaultPlan::TwoLosses { lying: false }).hold();
}

#[test]
fn no_lost_connection_fails_if_disks_lie() {
    crate::seeds(5, FaultPlan::TwoLosses { lying: true }).violate("P2 no lost connection");
}
