//! P4, strict everywhere: whoever does not know a connection's sequence numbers gets nothing through, at no member and at
//! no time; in quiet times not even with numbers that are wrong by a megabyte.

use crate::faults::Story;
use crate::sim::{Fact, Sim};
use crate::traffic::Kind;
use crate::worker::{Break, Fate};

use super::Invariant;

#[derive(Default)]
pub(crate) struct Strict;

impl Invariant for Strict {
    fn name(&self) -> &'static str {
        "P4 strict"
    }

    fn hear(&mut self, fact: &Fact<'_>, sim: &Sim) -> Result<(), String> {
        match fact {
            Fact::Seen(seen) if seen.fate == Fate::Forwarded => match seen.segment.kind {
                Kind::Blind => Err(format!("a forged packet passed: {seen:?}")),
                // What was lost before may still leave members unsure of where connections are.
                Kind::Near if sim.calm_since == Some(sim.began) => Err(format!("a forged packet passed: {seen:?}")),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

#[test]
fn forged_packets_do_not_pass() {
    crate::seeds(20, Story::Calm).hold();
}

#[test]
fn strict_fails_without_window_checks() {
    crate::broken(Story::Calm, (Some(1), Break::NoWindows)).violate("P4 strict");
}
