//! P4, strict everywhere: whoever does not know a connection's sequence numbers gets no RST through, at no member and at no
//! time, and nothing else but for the few segments that are taken at their word while nobody alive knows the numbers; in quiet
//! times not even with numbers that are wrong by a megabyte.

use std::collections::{BTreeMap, VecDeque};

use palisade_engine::parse::Tcp;

use crate::faults::FaultPlan;
use crate::network::{Nanos, SECOND};
use crate::sim::{Fact, Sim};
use crate::traffic::{Kind, Segment};
use crate::worker::{Break, PacketOutcome};

use super::Invariant;

/// What passes at its word, a second, connection and member, while nobody alive knows the numbers (docs/security.md,
/// "Nobody knows"): four of each direction.
const AT_ITS_WORD: usize = 8;

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
        let Fact::Seen(seen) = fact else { return Ok(()) };
        let Segment { kind, connection, .. } = seen.segment;
        if seen.fate != PacketOutcome::Forwarded || !matches!(kind, Kind::Blind | Kind::Near) {
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
        if last.len() > AT_ITS_WORD {
            return Err(format!("more than {AT_ITS_WORD} forged packets passed in a second: {seen:?}"));
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
