//! Which members vote. The first members do, up to a maximum; further ones are learners, which store and forward like
//! voters. When a voter has been dead for long enough, a learner takes its place.
//!
//! Voters change one at a time, and each change leaves a majority that answers: a learner is promoted first, then the dead
//! voter is demoted. The demoted one stays a member as a learner, and may take a free place when it is back. A dead voter is
//! not demoted without a replacement: a smaller cluster could lose a majority that it will have again.

use std::collections::BTreeSet;

use palisade_engine::MemberId;

/// The members as the leader sees them.
#[derive(Clone, Debug)]
pub(crate) struct VoterView {
    pub(crate) me: MemberId,
    pub(crate) voters: BTreeSet<MemberId>,
    /// Learners that have caught up.
    pub(crate) caught_up: BTreeSet<MemberId>,
    /// Members that answer, this one among them.
    pub(crate) answering: BTreeSet<MemberId>,
    /// Members that have not answered for long enough to be replaced.
    pub(crate) dead: BTreeSet<MemberId>,
}

/// One change of the voters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum VoterChange {
    Promote(MemberId),
    Demote(MemberId),
}

impl VoterView {
    /// The next change of the voters, if one is due.
    pub(crate) fn change(&self, max: usize) -> Option<VoterChange> {
        // A leader that was elected, or woke up, a moment ago has not heard from the others yet.
        if !majority_answers(&self.voters, &self.answering) {
            return None;
        }
        if self.voters.len() > max {
            return self.surplus_voter().map(VoterChange::Demote);
        }
        let dead = self.voters.iter().any(|id| self.dead.contains(id));
        let place = self.voters.len() < max || dead;
        let candidate = self.caught_up.iter().find(|id| self.answering.contains(id) && !self.voters.contains(id));
        candidate.filter(|_| place).map(|id| VoterChange::Promote(*id))
    }

    /// The voter to demote when there are too many: a dead one, else one that does not answer, else the newest; never this
    /// leader, and none that the rest needs for a majority.
    fn surplus_voter(&self) -> Option<MemberId> {
        let rank = |id: &MemberId| (self.dead.contains(id), !self.answering.contains(id), *id);
        let id = self.voters.iter().copied().filter(|id| *id != self.me).max_by_key(rank)?;
        let rest: BTreeSet<MemberId> = self.voters.iter().copied().filter(|voter| *voter != id).collect();
        majority_answers(&rest, &self.answering).then_some(id)
    }
}

fn majority_answers(voters: &BTreeSet<MemberId>, answering: &BTreeSet<MemberId>) -> bool {
    voters.intersection(answering).count() > voters.len() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<MemberId> {
        ids.iter().copied().map(MemberId).collect()
    }

    /// Member 1 leads.
    fn change(voters: &[u64], caught_up: &[u64], answering: &[u64], dead: &[u64], max: usize) -> Option<VoterChange> {
        let (voters, caught_up) = (ids(voters), ids(caught_up));
        let (answering, dead) = (ids(answering), ids(dead));
        VoterView { me: MemberId(1), voters, caught_up, answering, dead }.change(max)
    }

    const fn promote(id: u64) -> Option<VoterChange> {
        Some(VoterChange::Promote(MemberId(id)))
    }

    const fn demote(id: u64) -> Option<VoterChange> {
        Some(VoterChange::Demote(MemberId(id)))
    }

    #[test]
    fn voter_places_go_to_learners_that_answer_and_have_caught_up() {
        assert_eq!(change(&[1], &[2, 3], &[1, 2, 3], &[], 3), promote(2));
        assert_eq!(change(&[1, 2], &[3], &[1, 2, 3], &[], 3), promote(3));
        assert_eq!(change(&[1, 2], &[3, 4], &[1, 2, 4], &[], 3), promote(4), "3 does not answer");
        assert_eq!(change(&[1, 2], &[], &[1, 2, 3], &[], 3), None, "3 has not caught up");
        assert_eq!(change(&[1, 2, 3], &[4], &[1, 2, 3, 4], &[], 3), None, "no place");
    }

    #[test]
    fn voter_that_is_dead_is_demoted_after_a_learner_is_promoted() {
        assert_eq!(change(&[1, 2, 3], &[4], &[1, 2, 4], &[], 3), None, "not dead yet");
        assert_eq!(change(&[1, 2, 3], &[4], &[1, 2, 4], &[3], 3), promote(4));
        assert_eq!(change(&[1, 2, 3, 4], &[], &[1, 2, 4], &[3], 3), demote(3));
        assert_eq!(change(&[1, 2, 4], &[3], &[1, 2, 4], &[3], 3), None);
        assert_eq!(change(&[1, 2, 4], &[3], &[1, 2, 3, 4], &[], 3), None, "it is back: no place for it");
        assert_eq!(change(&[1, 2, 4], &[3], &[1, 3, 4], &[2], 3), promote(3), "until another one dies");
        // A new leader that finds the change half done does not know yet who is dead, but who does not answer.
        assert_eq!(change(&[1, 2, 3, 4], &[], &[1, 2, 4], &[], 3), demote(3));
    }

    #[test]
    fn voter_without_replacement_is_not_demoted() {
        assert_eq!(change(&[1, 2, 3], &[], &[1, 2], &[3], 3), None);
        assert_eq!(change(&[1, 2, 3], &[4], &[1, 2], &[3, 4], 3), None, "the learner is dead, too");
    }

    #[test]
    fn voters_do_not_change_without_a_majority() {
        assert_eq!(change(&[1, 2, 3], &[4], &[1, 4], &[2, 3], 3), None);
        // A leader that slept holds everybody for dead until somebody has spoken.
        assert_eq!(change(&[1, 2, 3], &[4], &[1], &[2, 3, 4], 3), None);
        assert_eq!(change(&[1, 2, 3, 4], &[], &[1, 2], &[3, 4], 3), None);
    }

    #[test]
    fn voters_above_the_maximum_are_demoted_one_by_one() {
        let all = [1, 2, 3, 4, 5];
        assert_eq!(change(&all, &[], &all, &[], 3), demote(5));
        assert_eq!(change(&[1, 2, 3, 4], &[5], &all, &[], 3), demote(4));
        assert_eq!(change(&[1, 2, 3], &[4, 5], &all, &[], 3), None);
        assert_eq!(change(&all, &[], &[1, 2, 4, 5], &[], 3), demote(3), "who does not answer goes first");
        assert_eq!(change(&[1, 2], &[], &[1, 2], &[], 1), demote(2));
    }
}
