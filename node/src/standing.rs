//! Being current: how far this member may act on what it has applied.
//!
//! The replication extends it; workers and the administration read it. One atomic word, so that a worker that wakes up
//! after a stall sees at once, by its own clock, that its time is over.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use palisade_engine::{Standing, Time};

/// A proof of being current holds for this long from the moment it was asked for; longer than an election takes.
pub const CURRENT_FOR: Duration = Duration::from_secs(1);

/// When a member was last proven current.
#[derive(Debug)]
pub struct StandingCell {
    proven: AtomicU64,
    suspect: AtomicBool,
    /// How often this member's state has been replaced because it was wrong, and what that was when it last resumed.
    replaced: AtomicU64,
    resumed: AtomicU64,
    grace: Duration,
}

impl StandingCell {
    /// Never current so far. Established sessions pass for `grace` after the last proof.
    #[must_use]
    pub fn new(grace: Duration) -> StandingCell {
        StandingCell {
            proven: AtomicU64::new(0),
            suspect: AtomicBool::new(false),
            replaced: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            grace,
        }
    }

    /// For how long established sessions pass after the last proof.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// What was asked of the leader at `asked` has now been applied. Older proofs do nothing, nor does any while what this
    /// member has applied is known to be wrong.
    pub fn prove(&self, asked: Time) {
        if !self.is_suspect() {
            self.proven.fetch_max(asked.0, Ordering::AcqRel);
        }
    }

    /// Says whether this member's state is known to be wrong. While it is, the member is not current.
    pub(crate) fn suspect(&self, suspect: bool) {
        self.suspect.store(suspect, Ordering::Release);
    }

    /// This member's state is about to be replaced: nothing passes any longer, until it has resumed.
    pub(crate) fn replace(&self) {
        self.replaced.fetch_add(1, Ordering::AcqRel);
    }

    /// How often this member's state has been replaced.
    pub(crate) fn replacements(&self) -> u64 {
        self.replaced.load(Ordering::Acquire)
    }

    /// The member has resumed by the log, after so many replacements.
    pub(crate) fn resume(&self, replacements: u64) {
        self.resumed.store(replacements, Ordering::Release);
    }

    /// Is this member's state known to be wrong?
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }

    /// Where the member stands at `now`.
    #[must_use]
    pub fn at(&self, now: Time) -> Standing {
        let proven = Time(self.proven.load(Ordering::Acquire));
        if proven == Time::ZERO || self.replacements() != self.resumed.load(Ordering::Acquire) {
            return Standing::Expired;
        }
        match now.since(proven) {
            age if age <= CURRENT_FOR && !self.is_suspect() => Standing::Current,
            age if age <= self.grace => Standing::CutOff,
            _ => Standing::Expired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_to_be_wrong_is_not_current_and_what_was_replaced_passes_nothing_before_it_resumes() {
        let cell = StandingCell::new(Duration::from_secs(10));
        let at = |secs: u64| Time(1_000_000_000 * secs);
        assert_eq!(cell.at(at(1)), Standing::Expired);
        cell.prove(at(1));
        assert_eq!(cell.at(at(1)), Standing::Current);
        cell.suspect(true);
        cell.prove(at(2));
        assert_eq!(
            (cell.at(at(1)), cell.at(at(2)), cell.at(at(12))),
            (Standing::CutOff, Standing::CutOff, Standing::Expired)
        );
        cell.replace();
        assert_eq!(cell.at(at(2)), Standing::Expired);
        cell.suspect(false);
        cell.prove(at(3));
        assert_eq!(cell.at(at(3)), Standing::Expired);
        cell.resume(0);
        assert_eq!(cell.at(at(3)), Standing::Expired, "it was replaced since");
        cell.resume(cell.replacements());
        assert_eq!(cell.at(at(3)), Standing::Current);
    }
}
