//! Who votes. The first members do, up to a number; further ones are learners, which store and forward all the same. When
//! a voter has been dead for long enough, a learner takes its place.
//!
//! One change at a time, and each leaves a majority that answers: a learner is promoted first, then the dead voter is demoted.
//! That one stays a member, a learner; when it is back it may take a place that is free. No voter is demoted for being
//! dead unless there is another one for it: a smaller cluster could lose a majority that it will have again.

use std::collections::BTreeSet;
use std::time::Duration;

use palisade_engine::MemberId;

/// How many vote, and how soon a dead one is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Voters {
    /// Most members that vote. More make every commit wait for more of them.
    pub most: usize,
    /// A voter that did not answer for so long is dead, and a learner takes its place.
    pub replace_after: Duration,
}

impl Default for Voters {
    fn default() -> Voters {
        Voters { most: 5, replace_after: Duration::from_secs(600) }
    }
}

/// What the leader sees of the others.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
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
pub(crate) enum Change {
    Promote(MemberId),
    Demote(MemberId),
}

impl Seen {
    /// The next change of the voters, if one is due.
    pub(crate) fn change(&self, most: usize) -> Option<Change> {
        // Not while hardly anybody answers: this leader was elected, or woke up, only a moment ago.
        if !majority_answers(&self.voters, &self.answering) {
            return None;
        }
        if self.voters.len() > most {
            return self.superfluous().map(Change::Demote);
        }
        let dead = self.voters.iter().any(|id| self.dead.contains(id));
        let place = self.voters.len() < most || dead;
        let candidate = self.caught_up.iter().find(|id| self.answering.contains(id) && !self.voters.contains(id));
        candidate.filter(|_| place).map(|id| Change::Promote(*id))
    }

    /// Which of too many voters goes: a dead one, else one that does not answer, else the one that came last; never this
    /// leader, and none that the rest needs for a majority.
    fn superfluous(&self) -> Option<MemberId> {
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
    fn change(voters: &[u64], caught_up: &[u64], answering: &[u64], dead: &[u64], most: usize) -> Option<Change> {
        let (voters, caught_up) = (ids(voters), ids(caught_up));
        let (answering, dead) = (ids(answering), ids(dead));
        Seen { me: MemberId(1), voters, caught_up, answering, dead }.change(most)
    }

    const fn promote(id: u64) -> Option<Change> {
        Some(Change::Promote(MemberId(id)))
    }

    const fn demote(id: u64) -> Option<Change> {
        Some(Change::Demote(MemberId(id)))
    }

    #[test]
    fn places_are_filled_by_those_that_answer_and_have_caught_up() {
        assert_eq!(change(&[1], &[2, 3], &[1, 2, 3], &[], 3), promote(2));
        assert_eq!(change(&[1, 2], &[3], &[1, 2, 3], &[], 3), promote(3));
        assert_eq!(change(&[1, 2], &[3, 4], &[1, 2, 4], &[], 3), promote(4), "3 does not answer");
        assert_eq!(change(&[1, 2], &[], &[1, 2, 3], &[], 3), None, "3 has not caught up");
        assert_eq!(change(&[1, 2, 3], &[4], &[1, 2, 3, 4], &[], 3), None, "no place");
    }

    #[test]
    fn a_dead_voter_is_replaced_first_promoted_then_demoted() {
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
    fn without_a_replacement_nobody_is_demoted() {
        assert_eq!(change(&[1, 2, 3], &[], &[1, 2], &[3], 3), None);
        assert_eq!(change(&[1, 2, 3], &[4], &[1, 2], &[3, 4], 3), None, "the learner is dead, too");
    }

    #[test]
    fn nothing_is_done_that_needs_a_majority_that_is_not_there() {
        assert_eq!(change(&[1, 2, 3], &[4], &[1, 4], &[2, 3], 3), None);
        // A leader that slept holds everybody for dead until somebody has spoken.
        assert_eq!(change(&[1, 2, 3], &[4], &[1], &[2, 3, 4], 3), None);
        assert_eq!(change(&[1, 2, 3, 4], &[], &[1, 2], &[3, 4], 3), None);
    }

    #[test]
    fn a_smaller_number_is_reached_step_by_step() {
        let all = [1, 2, 3, 4, 5];
        assert_eq!(change(&all, &[], &all, &[], 3), demote(5));
        assert_eq!(change(&[1, 2, 3, 4], &[5], &all, &[], 3), demote(4));
        assert_eq!(change(&[1, 2, 3], &[4, 5], &all, &[], 3), None);
        assert_eq!(change(&all, &[], &[1, 2, 4, 5], &[], 3), demote(3), "who does not answer goes first");
        assert_eq!(change(&[1, 2], &[], &[1, 2], &[], 1), demote(2));
    }
}
