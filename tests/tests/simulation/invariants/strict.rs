//! P4, strict everywhere: an attacker who does not know a connection's sequence numbers gets no RST through, at any member and at
//! any time, and no other segment except the few that pass provisionally while no live member knows the numbers. In quiet
//! times not even numbers that are wrong by a megabyte pass.

use std::collections::{BTreeMap, VecDeque};

use palisade_engine::packet_loop::PacketOutcome;
use palisade_engine::parse::Tcp;

use crate::faults::FaultPlan;
use crate::network::{Nanos, SECOND};
use crate::sim::{Fact, Sim};
use crate::traffic::{Kind, Segment};
use crate::worker::Break;

use super::Invariant;

/// The segments that pass provisionally per second, connection and member while no live member knows the numbers
/// (docs/security.md, "Provisional segments"): four of each direction.
const MAX_PROVISIONAL: usize = 8;

#[derive(Default)]
pub(crate) struct Strict {
    /// When blind packets passed.
    passed: BTreeMap<(Option<usize>, usize), VecDeque<Nanos>>,
}

impl Invariant for Strict {
    fn name(&self) -> &'static str {
        "P4 strict"
    }

    fn hear(&mut self, fact: &Fact<'_>, sim: &Sim) -> Result<(), String> {
        let Fact::Packet(seen) = fact else { return Ok(()) };
        let Segment { kind, connection, .. } = seen.segment;
        if seen.outcome != PacketOutcome::Forwarded || !matches!(kind, Kind::Blind | Kind::Near) {
            return Ok(());
        }
        // After that a member may know a connection from the log only.
        let all_knew = sim.calm_since == Some(sim.began);
        if all_knew || seen.segment.has(Tcp::RST) {
            return Err(format!("a forged packet passed: {seen:?}"));
        }
        let last = self.passed.entry((connection, seen.member)).or_default();
        last.push_back(seen.at);
        last.retain(|at| *at + SECOND > seen.at);
        if last.len() > MAX_PROVISIONAL {
            return Err(format!("more than {MAX_PROVISIONAL} forged packets passed in a second: {seen:?}"));
        }
        Ok(())
    }
}

#[test]
fn forged_packets_do_not_pass() {
    crate::seeds(20, FaultPlan::Calm).hold();
}

#[test]
fn strict_fails_without_window_checks() {
    crate::broken(FaultPlan::Calm, (Some(1), Break::NoWindows)).violate("P4 strict");
}
