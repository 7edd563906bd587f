//! P6, one policy: members that have applied the same index have the same state and the same policy, and no member
//! forwards by another policy than the one that it has applied.

use std::collections::BTreeMap;

use palisade_engine::Generation;

use crate::faults::Story;
use crate::sim::{Fact, Sim, allows_alternate};
use crate::traffic::{ALTERNATE, Kind};
use crate::worker::Fate;

use super::Invariant;

#[derive(Default)]
pub(crate) struct OnePolicy {
    states: BTreeMap<u64, (u64, Generation)>,
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
            Fact::Seen(seen) if seen.fate == Fate::Forwarded => {
                let of_alternate = seen.segment.tuple.dst_port == ALTERNATE && !allows_alternate(seen.generation);
                if of_alternate || seen.segment.kind == Kind::Forbidden {
                    return Err(format!("not allowed by {:?}, and passed: {seen:?}", seen.generation));
                }
                Ok(())
            }
            Fact::Seen(_) | Fact::Fault => Ok(()),
        }
    }
}

#[test]
fn policies_change_at_one_index() {
    crate::seeds(10, Story::PolicyBehindTheBack).hold();
}

#[test]
fn one_policy_fails_if_a_disk_changes_it() {
    crate::seeds(3, Story::Rotten).violate("P6 one policy");
}
