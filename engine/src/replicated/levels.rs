//! The level in force, and what the members can.

use super::invalid::MAX_PROGRAM_BYTES;
use super::{InvalidReason, Outcome, Register};
use crate::id::MemberId;
use crate::level::{Capabilities, Level};

impl Register {
    /// Raises the level in force, if all members can.
    pub(super) fn raise_level(&mut self, level: Level) -> Outcome {
        let in_force = self.cluster.level;
        if level == in_force {
            return Outcome::Accepted;
        }
        if level != in_force.next() {
            return Outcome::Invalid(InvalidReason::LevelNotNext { in_force, asked: level });
        }
        for &member in self.cluster.members.keys() {
            let Some(capabilities) = self.cluster.capabilities.get(&member) else {
                return Outcome::Invalid(InvalidReason::NoCapabilities(member));
            };
            let &Capabilities { lowest, highest, .. } = capabilities;
            if !capabilities.levels().contains(level) {
                return Outcome::Invalid(InvalidReason::LevelBeyondMember { member, lowest, highest });
            }
        }
        self.cluster.level = level;
        Outcome::Accepted
    }

    /// Takes what a member can, in place of what it registered before.
    pub(super) fn set_capabilities(&mut self, member: MemberId, capabilities: &Capabilities) -> Outcome {
        let &Capabilities { lowest, highest, max_sessions: _, ref program } = capabilities;
        if !self.cluster.members.contains_key(&member) {
            return Outcome::Invalid(InvalidReason::NoMember(member));
        }
        if lowest > highest || program.len() > MAX_PROGRAM_BYTES {
            return Outcome::Invalid(InvalidReason::Capabilities);
        }
        let level = self.cluster.level;
        if !capabilities.levels().contains(level) {
            return Outcome::Invalid(InvalidReason::LevelUnknown { member, lowest, highest, level });
        }
        self.cluster.capabilities.insert(member, capabilities.clone());
        Outcome::Accepted
    }
}
