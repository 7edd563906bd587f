//! The lease: how far this member may act on what it has applied.
//!
//! [`crate::raft::lease`] renews it with the leader; workers and the administration read it. Whether it is valid follows from
//! a time, not from a message: a worker that wakes up after a stall sees by its own clock that its lease has run out.
//!
//! ```text
//!            renew                    1 s without renewal, or suspect
//!  Expired ─────────────> Valid ────────────────────────────────────────> Grace
//!     ^                     ^                                              │ │
//!     │                     └───────────────── renew, while sound ─────────┘ │
//!     ├────────────────────────────────── the grace period is over ──────────┘
//!     ├── replace, from every state; until the member has resumed
//!     └── remove, from every state; for ever
//! ```
//!
//! The state is a function of the age of the last renewal and of the integrity of what is applied here:
//!
//! | | up to 1 s old | within the grace period | older, or never renewed |
//! |---|---|---|---|
//! | sound | Valid | Grace | Expired |
//! | suspect: known to differ from the majority | Grace | Grace | Expired |
//! | replaced, and not yet resumed by the log | Expired | Expired | Expired |
//! | removed from the cluster | Expired | Expired | Expired |
//!
//! While the member is suspect, a renewal has no effect. [`state`] is the only place where these meet.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use palisade_engine::{Grace, LeaseState, Time};

/// How long a lease is valid, from the moment at which the leader was asked; longer than an election takes.
pub const LEASE_DURATION: Duration = Duration::from_secs(1);

/// This member's lease.
#[derive(Debug)]
pub struct Lease {
    /// The time of the last renewal; zero before the first one.
    renewed: AtomicU64,
    suspect: AtomicBool,
    /// How often this member's state was replaced because it was wrong.
    replaced: AtomicU64,
    /// The number of replacements after which the member last resumed.
    resumed: AtomicU64,
    removed: AtomicBool,
    /// How long established sessions pass after the last renewal, until the engine's is there.
    initial_grace: Grace,
    /// The setting, as applied here.
    grace: OnceLock<Grace>,
}

impl Default for Lease {
    /// A lease that was never renewed.
    fn default() -> Lease {
        Lease::with(Grace::default())
    }
}

/// Whether what this member has applied can be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Integrity {
    Sound,
    /// Known to differ from the majority, and not yet repaired.
    Suspect,
    /// Replaced by a repair; the log does not have yet that the member resumes.
    Replaced,
    /// The cluster has removed this member: nothing that it knows counts any longer.
    Removed,
}

/// The state of a lease that was renewed `age` ago, or never.
fn state(age: Option<Duration>, integrity: Integrity, grace: Duration) -> LeaseState {
    match (age, integrity) {
        (None, _) | (_, Integrity::Replaced | Integrity::Removed) => LeaseState::Expired,
        (Some(age), Integrity::Sound) if age <= LEASE_DURATION => LeaseState::Valid,
        (Some(age), _) if age <= grace => LeaseState::Grace,
        (Some(_), _) => LeaseState::Expired,
    }
}

impl Lease {
    /// A lease that was never renewed. Established sessions pass for `grace` after the last renewal.
    #[must_use]
    pub fn new(grace: Duration) -> Lease {
        Lease::with(Grace::new(grace))
    }

    fn with(initial_grace: Grace) -> Lease {
        Lease {
            renewed: AtomicU64::new(0),
            suspect: AtomicBool::new(false),
            replaced: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            removed: AtomicBool::new(false),
            initial_grace,
            grace: OnceLock::new(),
        }
    }

    /// Goes by this grace from now on: the setting, as applied here.
    pub(crate) fn follow(&self, grace: Grace) {
        // A member has one engine.
        drop(self.grace.set(grace));
    }

    /// How long established sessions pass after the last renewal.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace.get().unwrap_or(&self.initial_grace).get()
    }

    /// Renews the lease: everything is applied that was committed when the leader was asked, at `asked`. An older renewal has
    /// no effect, nor has any while this member is suspect.
    pub fn renew(&self, asked: Time) {
        if !self.is_suspect() {
            self.renewed.fetch_max(asked.0, Ordering::AcqRel);
        }
    }

    /// Sets whether this member's state is known to be wrong.
    pub(crate) fn suspect(&self, suspect: bool) {
        self.suspect.store(suspect, Ordering::Release);
    }

    /// Notes that this member's state is about to be replaced: nothing passes until the member has resumed.
    pub(crate) fn replace(&self) {
        self.replaced.fetch_add(1, Ordering::AcqRel);
    }

    /// How often this member's state was replaced.
    pub(crate) fn replacements(&self) -> u64 {
        self.replaced.load(Ordering::Acquire)
    }

    /// Notes that the log has taken that the member resumes, after this number of replacements.
    pub(crate) fn resume(&self, replacements: u64) {
        self.resumed.store(replacements, Ordering::Release);
    }

    /// Notes that the cluster has removed this member: nothing passes from now on.
    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::Release);
    }

    /// Whether the cluster has removed this member.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Whether this member's state is known to be wrong.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }

    fn integrity(&self) -> Integrity {
        if self.is_removed() {
            Integrity::Removed
        } else if self.replacements() != self.resumed.load(Ordering::Acquire) {
            Integrity::Replaced
        } else if self.is_suspect() {
            Integrity::Suspect
        } else {
            Integrity::Sound
        }
    }

    /// The state at `now`.
    #[must_use]
    pub fn state_at(&self, now: Time) -> LeaseState {
        let renewed = Some(Time(self.renewed.load(Ordering::Acquire))).filter(|renewed| *renewed != Time::ZERO);
        state(renewed.map(|renewed| now.since(renewed)), self.integrity(), self.grace())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Age {
        Never,
        /// Up to a second old.
        Fresh,
        /// Within the grace period.
        Stale,
        /// Beyond it.
        Over,
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Renew,
        Suspect,
        Clear,
        Replace,
        Resume,
        /// The log took that the member resumes, but its state was replaced since.
        ResumeTooEarly,
        WaitSecond,
        WaitGrace,
    }

    use Age::*;
    use LeaseState::{Expired, Grace, Valid};

    /// Every state: the age, whether it is suspect, whether it was replaced; and the lease's state there.
    const STATES: [(Age, bool, bool, LeaseState); 16] = [
        (Never, false, false, Expired),
        (Never, false, true, Expired),
        (Never, true, false, Expired),
        (Never, true, true, Expired),
        (Fresh, false, false, Valid),
        (Fresh, false, true, Expired),
        (Fresh, true, false, Grace),
        (Fresh, true, true, Expired),
        (Stale, false, false, Grace),
        (Stale, false, true, Expired),
        (Stale, true, false, Grace),
        (Stale, true, true, Expired),
        (Over, false, false, Expired),
        (Over, false, true, Expired),
        (Over, true, false, Expired),
        (Over, true, true, Expired),
    ];

    const EVENTS: [Event; 8] = [
        Event::Renew,
        Event::Suspect,
        Event::Clear,
        Event::Replace,
        Event::Resume,
        Event::ResumeTooEarly,
        Event::WaitSecond,
        Event::WaitGrace,
    ];

    /// A lease in this state, and the time.
    fn lease_in(age: Age, suspect: bool, replaced: bool) -> (Lease, Time) {
        let (lease, begin) = (Lease::new(GRACE), Time(1_000_000_000));
        if age != Never {
            lease.renew(begin);
        }
        lease.suspect(suspect);
        if replaced {
            lease.replace();
        }
        let passed = match age {
            Never | Fresh => Duration::ZERO,
            Stale => LEASE_DURATION + Duration::from_nanos(1),
            Over => GRACE + Duration::from_nanos(1),
        };
        (lease, begin + passed)
    }

    /// The state after an event.
    fn after(event: Event, (age, suspect, replaced): (Age, bool, bool)) -> (Age, bool, bool) {
        match (event, age) {
            (Event::Renew, _) if suspect => (age, suspect, replaced),
            (Event::Renew, _) => (Fresh, suspect, replaced),
            (Event::Suspect, _) => (age, true, replaced),
            (Event::Clear, _) => (age, false, replaced),
            (Event::Replace, _) => (age, suspect, true),
            (Event::Resume, _) => (age, suspect, false),
            (Event::ResumeTooEarly, _) => (age, suspect, true),
            (Event::WaitSecond, Fresh) => (Stale, suspect, replaced),
            (Event::WaitGrace, Fresh | Stale) => (Over, suspect, replaced),
            (Event::WaitSecond | Event::WaitGrace, age) => (age, suspect, replaced),
        }
    }

    fn expected(is: (Age, bool, bool)) -> LeaseState {
        STATES.iter().find(|(age, suspect, replaced, _)| (*age, *suspect, *replaced) == is).unwrap().3
    }

    #[test]
    fn lease_state_is_as_tabulated_in_every_state_and_after_every_event() {
        for (age, suspect, replaced, state) in STATES {
            let (lease, now) = lease_in(age, suspect, replaced);
            assert_eq!(lease.state_at(now), state, "{age:?} suspect={suspect} replaced={replaced}");
            for event in EVENTS {
                let (lease, mut now) = lease_in(age, suspect, replaced);
                match event {
                    Event::Renew => lease.renew(now),
                    Event::Suspect => lease.suspect(true),
                    Event::Clear => lease.suspect(false),
                    Event::Replace => lease.replace(),
                    Event::Resume => lease.resume(lease.replacements()),
                    Event::ResumeTooEarly => {
                        let before = lease.replacements();
                        lease.replace();
                        lease.resume(before);
                    }
                    Event::WaitSecond => now = now + LEASE_DURATION + Duration::from_nanos(1),
                    Event::WaitGrace => now = now + GRACE + Duration::from_nanos(1),
                }
                let then = expected(after(event, (age, suspect, replaced)));
                assert_eq!(lease.state_at(now), then, "{event:?} in {age:?} suspect={suspect} replaced={replaced}");
            }
        }
    }

    #[test]
    fn lease_of_a_removed_member_is_expired_for_ever() {
        for (age, suspect, replaced, _) in STATES {
            let (lease, now) = lease_in(age, suspect, replaced);
            lease.remove();
            assert_eq!(lease.state_at(now), Expired, "{age:?} suspect={suspect} replaced={replaced}");
            for event in [Lease::renew as fn(&Lease, Time), |lease, _| lease.suspect(false), |lease, _| lease.resume(1)]
            {
                event(&lease, now);
                assert_eq!(lease.state_at(now), Expired);
            }
        }
    }

    #[test]
    fn lease_is_suspect_then_replaced_then_resumed_before_it_is_valid_again() {
        let lease = Lease::new(GRACE);
        let at = |secs: u64| Time(1_000_000_000 * secs);
        assert_eq!(lease.state_at(at(1)), Expired);
        lease.renew(at(1));
        assert_eq!(lease.state_at(at(1)), Valid);
        lease.suspect(true);
        lease.renew(at(2));
        assert_eq!([1, 2, 12].map(|secs| lease.state_at(at(secs))), [Grace, Grace, Expired]);
        lease.replace();
        assert_eq!(lease.state_at(at(2)), Expired);
        lease.suspect(false);
        lease.renew(at(3));
        assert_eq!(lease.state_at(at(3)), Expired);
        lease.resume(0);
        assert_eq!(lease.state_at(at(3)), Expired, "it was replaced since");
        lease.resume(lease.replacements());
        assert_eq!(lease.state_at(at(3)), Valid);
    }
}
