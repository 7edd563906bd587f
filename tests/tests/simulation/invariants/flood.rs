//! P5, a flood is not a log entry: what is in the log has been completed by a client, and half-open sessions are bounded.

use std::collections::BTreeSet;

use palisade_engine::replica::Command;

use crate::faults::FaultPlan;
use crate::sim::{Fact, MOST_HALF_OPEN, Sim, commands};
use crate::worker::Break;

use super::Invariant;

#[derive(Default)]
pub(crate) struct Flood;

impl Invariant for Flood {
    fn name(&self) -> &'static str {
        "P5 flood"
    }

    fn hear(&mut self, fact: &Fact<'_>, _: &Sim) -> Result<(), String> {
        match fact {
            Fact::Sample(sample) if sample.half_open > MOST_HALF_OPEN as u64 => {
                Err(format!("more half-open sessions than {MOST_HALF_OPEN}: {sample:?}"))
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, sim: &Sim) -> Vec<String> {
        // A connection whose client was never open has sent no acknowledgement.
        let answered = sim.traffic.connections.iter().filter(|c| c.ends[0].open);
        let answered: BTreeSet<_> = answered.map(|c| c.tuple).collect();
        let mut wrong = Vec::new();
        for member in &sim.members {
            member.host.storage().entries(&mut |entry| {
                for command in commands(entry) {
                    if let Command::Establish(e) = command
                        && !answered.contains(&e.original)
                    {
                        wrong.push(format!("in the log, though no client completed it: {e:?}"));
                    }
                }
            });
        }
        wrong
    }
}

#[test]
fn a_flood_is_not_in_the_log() {
    crate::seeds(10, FaultPlan::Everything).hold();
}

#[test]
fn flood_fails_if_half_open_sessions_are_proposed() {
    crate::broken(FaultPlan::Everything, (None, Break::LogHalfOpen)).violate("P5 flood");
}
