//! P7, slow members don't matter: while one follower stands still or waits for its disk, connections through the others
//! are held for no longer than a commit between these takes, and lose nothing.

use std::collections::{BTreeMap, BTreeSet};

use palisade_engine::packet_loop::PacketOutcome;

use crate::faults::FaultPlan;
use crate::network::{MS, Nanos};
use crate::sim::{Fact, Sim};
use crate::traffic::{Kind, WEB};
use crate::worker::Break;

use super::Invariant;

/// To the leader, to the other one and back, to the proposer: at most 6 ms each and a flush of 3 ms on both disks, and
/// twice that because another batch may be under way.
const HELD: Nanos = 70 * MS;

#[derive(Default)]
pub(crate) struct SlowMember {
    held: BTreeMap<usize, Nanos>,
    touched: BTreeSet<usize>,
    slow_since: Option<Nanos>,
}

impl Invariant for SlowMember {
    fn name(&self) -> &'static str {
        "P7 slow member"
    }

    fn hear(&mut self, fact: &Fact<'_>, sim: &Sim) -> Result<(), String> {
        let Some(slow) = sim.slow else {
            self.slow_since = None;
            return Ok(());
        };
        let since = *self.slow_since.get_or_insert(sim.now);
        let Fact::Packet(seen) = fact else { return Ok(()) };
        let Some(number) = seen.segment.connection else { return Ok(()) };
        let connection = &sim.traffic.connections[number];
        if seen.member == slow {
            self.touched.insert(number);
        }
        if seen.segment.kind != Kind::Legitimate
            || connection.port() != WEB
            || connection.opened < since
            || self.touched.contains(&number)
        {
            return Ok(());
        }
        match seen.outcome {
            PacketOutcome::Held => {
                self.held.entry(number).or_insert(seen.at);
                Ok(())
            }
            PacketOutcome::Dropped(reason) | PacketOutcome::Rejected(reason) => {
                Err(format!("dropped beside a slow member, {reason:?}: {seen:?}"))
            }
            PacketOutcome::Forwarded => match self.held.remove(&number) {
                Some(from) if seen.at > from + HELD => {
                    Err(format!("held for {} ms beside a slow member: {seen:?}", (seen.at - from) / MS))
                }
                _ => Ok(()),
            },
        }
    }
}

#[test]
fn a_slow_follower_slows_nobody() {
    crate::seeds(20, FaultPlan::SlowFollower).hold();
}

#[test]
fn slow_member_fails_if_all_members_are_waited_for() {
    crate::seeds_broken(4, FaultPlan::SlowFollower, (None, Break::AwaitAll)).violate("P7 slow member");
}
