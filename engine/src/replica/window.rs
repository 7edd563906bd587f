//! What makes every command count once, however often its batch is proposed: the outcomes of each proposer's numbers, and
//! the ids of the sessions removed lately.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::digest::{Kind, element};
use crate::id::{MemberId, SessionId};
use crate::replica::Outcome;

/// Most outcomes kept of one proposer; numbers further above its floor are refused. (A proposer has a few thousand
/// commands under way at most.)
pub(super) const WIDTH: u64 = 1 << 16;

/// Removed sessions whose ids are remembered. A late copy of an establishment is older than that many removals only if
/// it was under way for seconds at the highest rates.
pub(super) const REMEMBERED: usize = 1 << 16;

/// One proposer's outcomes, from its floor up.
#[derive(Clone, Default)]
pub(super) struct Window {
    pub(super) floor: u64,
    pub(super) outcomes: VecDeque<Option<Outcome>>,
}

/// What is known of a command's number.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Number {
    New,
    Known(Outcome),
    Forgotten,
    TooFar,
}

/// All proposers' outcomes.
#[derive(Clone, Default)]
pub(super) struct Windows {
    pub(super) windows: BTreeMap<MemberId, Window>,
    digest: u64,
}

impl Windows {
    /// The proposer has seen everything below `floor`.
    pub(super) fn raise(&mut self, proposer: MemberId, floor: u64) {
        let fresh = !self.windows.contains_key(&proposer);
        let window = self.windows.entry(proposer).or_default();
        if fresh {
            self.digest = self.digest.wrapping_add(element(Kind::Floor, &(proposer, window.floor)));
        }
        if floor <= window.floor {
            return;
        }
        let gone = usize::try_from(floor - window.floor).unwrap_or(usize::MAX).min(window.outcomes.len());
        for (number, outcome) in (window.floor..).zip(window.outcomes.drain(..gone)) {
            if let Some(outcome) = outcome {
                self.digest = self.digest.wrapping_sub(element(Kind::Outcome, &(proposer, number, outcome)));
            }
        }
        self.digest = self
            .digest
            .wrapping_sub(element(Kind::Floor, &(proposer, window.floor)))
            .wrapping_add(element(Kind::Floor, &(proposer, floor)));
        window.floor = floor;
    }

    pub(super) fn look(&self, proposer: MemberId, number: u64) -> Number {
        let Some(window) = self.windows.get(&proposer) else { return Number::TooFar };
        let Some(at) = number.checked_sub(window.floor) else { return Number::Forgotten };
        if at >= WIDTH {
            return Number::TooFar;
        }
        match usize::try_from(at).ok().and_then(|at| window.outcomes.get(at)) {
            Some(Some(outcome)) => Number::Known(outcome.clone()),
            _ => Number::New,
        }
    }

    /// Records the outcome of a number that was new.
    pub(super) fn record(&mut self, proposer: MemberId, number: u64, outcome: &Outcome) {
        let Some(window) = self.windows.get_mut(&proposer) else { return };
        let Some(at) = number.checked_sub(window.floor).filter(|at| *at < WIDTH) else { return };
        let at = at as usize;
        if window.outcomes.len() <= at {
            window.outcomes.resize(at + 1, None);
        }
        if window.outcomes[at].is_none() {
            window.outcomes[at] = Some(outcome.clone());
            self.digest = self.digest.wrapping_add(element(Kind::Outcome, &(proposer, number, outcome)));
        }
    }

    /// A member that left proposes nothing any more.
    pub(super) fn forget(&mut self, proposer: MemberId) {
        let Some(window) = self.windows.get(&proposer) else { return };
        let end = window.floor.saturating_add(window.outcomes.len() as u64);
        self.raise(proposer, end);
        if let Some(window) = self.windows.remove(&proposer) {
            self.digest = self.digest.wrapping_sub(element(Kind::Floor, &(proposer, window.floor)));
        }
    }

    /// From a snapshot's windows.
    pub(super) fn rebuild(windows: BTreeMap<MemberId, Window>) -> Windows {
        let mut digest = 0_u64;
        for (proposer, window) in &windows {
            digest = digest.wrapping_add(element(Kind::Floor, &(proposer, window.floor)));
            for (number, outcome) in (window.floor..).zip(&window.outcomes) {
                if let Some(outcome) = outcome {
                    digest = digest.wrapping_add(element(Kind::Outcome, &(proposer, number, outcome)));
                }
            }
        }
        Windows { windows, digest }
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }
}

/// Ids of removed sessions, oldest first.
#[derive(Clone, Default)]
pub(super) struct Removed {
    order: VecDeque<SessionId>,
    ids: HashMap<SessionId, u32>,
    /// Removals before the first one in `order`.
    before: u64,
    digest: u64,
}

impl Removed {
    pub(super) fn insert(&mut self, id: SessionId) {
        if self.order.len() >= REMEMBERED
            && let Some(old) = self.order.pop_front()
        {
            self.digest = self.digest.wrapping_sub(element(Kind::Removed, &(self.before, old)));
            self.before += 1;
            if let Some(count) = self.ids.get_mut(&old) {
                *count -= 1;
                if *count == 0 {
                    self.ids.remove(&old);
                }
            }
        }
        let number = self.before + self.order.len() as u64;
        self.digest = self.digest.wrapping_add(element(Kind::Removed, &(number, id)));
        self.order.push_back(id);
        *self.ids.entry(id).or_default() += 1;
    }

    pub(super) fn contains(&self, id: SessionId) -> bool {
        self.ids.contains_key(&id)
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn before(&self) -> u64 {
        self.before
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = SessionId> {
        self.order.iter().copied()
    }

    /// As it was when `before` ids had been forgotten.
    pub(super) fn rebuild(before: u64, ids: Vec<SessionId>) -> Removed {
        let mut removed = Removed { before, ..Removed::default() };
        ids.into_iter().for_each(|id| removed.insert(id));
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: MemberId = MemberId(3);

    #[test]
    fn outcomes_are_kept_from_the_floor_up() {
        let mut w = Windows::default();
        w.raise(M, 10);
        assert_eq!(w.look(M, 9), Number::Forgotten);
        assert_eq!(w.look(M, 10), Number::New);
        assert_eq!(w.look(M, 10 + WIDTH), Number::TooFar);
        w.record(M, 12, &Outcome::Full);
        w.record(M, 10, &Outcome::Accepted);
        assert_eq!(w.look(M, 10), Number::Known(Outcome::Accepted));
        assert_eq!(w.look(M, 11), Number::New);
        assert_eq!(w.look(M, 12), Number::Known(Outcome::Full));
        w.raise(M, 12);
        w.raise(M, 5);
        assert_eq!(w.look(M, 10), Number::Forgotten);
        assert_eq!(w.look(M, 12), Number::Known(Outcome::Full));
        w.raise(M, u64::MAX);
        assert_eq!(w.look(M, 12), Number::Forgotten);
        w.forget(M);
        assert_eq!(w.digest(), 0);
    }

    #[test]
    fn the_digest_follows_the_content_not_the_order() {
        let (mut a, mut b) = (Windows::default(), Windows::default());
        for w in [&mut a, &mut b] {
            w.raise(M, 0);
        }
        a.record(M, 0, &Outcome::Accepted);
        a.record(M, 1, &Outcome::Full);
        b.record(M, 1, &Outcome::Full);
        assert_ne!(a.digest(), b.digest());
        b.record(M, 0, &Outcome::Accepted);
        assert_eq!(a.digest(), b.digest());
    }

    #[test]
    fn removed_ids_are_bounded_and_rebuilt_equal() {
        let mut removed = Removed::default();
        let id = |n| SessionId { member: M, counter: n };
        for n in 0..REMEMBERED as u64 + 5 {
            removed.insert(id(n));
        }
        assert!(!removed.contains(id(4)));
        assert!(removed.contains(id(5)));
        let again = Removed::rebuild(removed.before(), removed.iter().collect());
        assert_eq!(again.digest(), removed.digest());
        assert!(again.contains(id(5)) && !again.contains(id(4)));
    }
}
