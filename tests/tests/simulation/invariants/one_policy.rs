//! P6, one policy: members that have applied the same index have the same state and the same policy, and no member
//! forwards by another policy than the one that it has applied. (What follows a SYN that passed another member by a newer policy, copies
//! of it too, may pass: that policy is in force, though it has not got here yet.)

use std::collections::{BTreeMap, BTreeSet};

use palisade_engine::Generation;
use palisade_engine::packet_loop::PacketOutcome;

use crate::faults::FaultPlan;
use crate::sim::{Fact, Sim, allows_alternate};
use crate::traffic::{ALTERNATE, Kind};
use crate::worker::ObservedPacket;

use super::Invariant;

#[derive(Default)]
pub(crate) struct OnePolicy {
    states: BTreeMap<u64, (u64, Generation)>,
    /// Connections whose SYN passed, and the policy that allowed it.
    opened: BTreeSet<(usize, Generation)>,
}

impl OnePolicy {
    fn forwarded(&mut self, seen: &ObservedPacket) -> Result<(), String> {
        let (segment, applied) = (&seen.segment, seen.generation);
        let mut allowed = segment.tuple.dst_port != ALTERNATE || allows_alternate(applied);
        if let Some(connection) = segment.connection {
            let mut newer = self.opened.range((connection, Generation(applied.0 + 1))..(connection + 1, Generation(0)));
            allowed |= newer.any(|(_, generation)| allows_alternate(*generation));
            if segment.is_syn() {
                self.opened.insert((connection, applied));
            }
        }
        if allowed && segment.kind != Kind::Forbidden {
            return Ok(());
        }
        Err(format!("not allowed by {applied:?}, and passed: {seen:?}"))
    }
}

impl Invariant for OnePolicy {
    fn name(&self) -> &'static str {
        "P6 one policy"
    }

    fn hear(&mut self, fact: &Fact<'_>, _: &Sim) -> Result<(), String> {
        match fact {
            Fact::Sample(sample) => {
                let state = (sample.digest, sample.generation);
                let known = *self.states.entry(sample.applied).or_insert(state);
                if known == state { Ok(()) } else { Err(format!("not {known:?} at the same index: {sample:?}")) }
            }
            Fact::Packet(seen) if seen.outcome == PacketOutcome::Forwarded => self.forwarded(seen),
            Fact::Packet(_) | Fact::Fault => Ok(()),
        }
    }
}

#[test]
fn policies_change_at_one_index() {
    crate::seeds(10, FaultPlan::PolicyBehindTheBack).hold();
}

#[test]
fn one_policy_fails_if_a_disk_changes_it() {
    crate::seeds(3, FaultPlan::Rotten).violate("P6 one policy");
}
