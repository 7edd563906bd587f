//! Readiness: how much of the traffic routers should give this member, in grades.
//!
//! | grade | what the member passes | causes |
//! |---|---|---|
//! | `full` | everything that the policy allows | none of those below |
//! | `fallback` | what it knows, at least: prefer others, use it if there is none | the lease is in its grace, what is applied is being repaired, something of the datapath is degraded (a tracked link is down), draining |
//! | `withdraw` | nothing, or soon nothing | no cluster, a lease that was never valid or has expired, no datapath or one that has failed, the end of a drain before the daemon stops or leaves |
//!
//! If all members lose the leader, or one LAN that they share, all are `fallback` and keep the traffic that they can carry; with
//! "ready or not" all would be withdrawn at once.
//!
//! ```text
//!  down: after `hold_down`; at once for a drain, and where nothing passes until somebody acts
//!
//!  full ────────> fallback ────────> withdraw
//!    ▲                │                  │
//!    └────────────────┴──── at once ─────┘
//! ```
//!
//! What may be over soon waits, because an election that takes long, or a link that flaps, would change the attributes of BGP
//! routes at all members together.

pub(crate) use follow::follow;

mod follow;

use std::time::Duration;

use palisade_engine::Time;

/// How much of the traffic routers should give this member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Grade {
    /// None: nothing passes.
    Withdraw,
    /// None while another member is `Full`: what is known here passes.
    Fallback,
    /// Its share.
    Full,
}

impl Grade {
    /// All grades, from the best.
    pub(crate) const ALL: [Grade; 3] = [Grade::Full, Grade::Fallback, Grade::Withdraw];

    /// The metric of the kernel routes that announce it; `None`: there are none.
    pub(crate) fn route_metric(self) -> Option<u32> {
        match self {
            Grade::Full => Some(100),
            Grade::Fallback => Some(1000),
            Grade::Withdraw => None,
        }
    }

    /// Its name, everywhere.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Grade::Full => "full",
            Grade::Fallback => "fallback",
            Grade::Withdraw => "withdraw",
        }
    }
}

/// Why a member is not `Full`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cause {
    /// The best grade that it allows.
    pub(crate) grade: Grade,
    /// Whether it is announced at once.
    pub(crate) at_once: bool,
    /// What is the matter, in words.
    pub(crate) reason: String,
}

impl Cause {
    /// Nothing passes.
    pub(crate) fn withdraw(reason: impl Into<String>) -> Cause {
        Cause { grade: Grade::Withdraw, at_once: true, reason: reason.into() }
    }

    /// What comes here is lost; it may be over soon.
    pub(crate) fn failed(reason: impl Into<String>) -> Cause {
        Cause { grade: Grade::Withdraw, at_once: false, reason: reason.into() }
    }

    /// What is known passes; it may be over soon.
    pub(crate) fn fallback(reason: impl Into<String>) -> Cause {
        Cause { grade: Grade::Fallback, at_once: false, reason: reason.into() }
    }

    /// What is known passes; somebody wants other members to be preferred now.
    pub(crate) fn turned_away(reason: impl Into<String>) -> Cause {
        Cause { grade: Grade::Fallback, at_once: true, reason: reason.into() }
    }
}

/// The readiness as it is announced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Readiness {
    /// The grade.
    pub(crate) grade: Grade,
    /// Everything that keeps the member from being `Full`, or will if it lasts.
    pub(crate) reasons: Vec<String>,
}

/// The announced grade over time.
#[derive(Debug)]
pub(crate) struct Announcer {
    hold_down: Duration,
    announced: Grade,
    /// Since when the causes demand a lower grade than the announced one.
    lower_since: Option<Time>,
}

impl Announcer {
    /// Nothing was announced yet: nothing passes.
    pub(crate) fn new(hold_down: Duration) -> Announcer {
        Announcer { hold_down, announced: Grade::Withdraw, lower_since: None }
    }

    /// What to announce at `now`.
    pub(crate) fn announce(&mut self, causes: Vec<Cause>, now: Time) -> Readiness {
        let demanded = |at_once: bool| {
            causes.iter().filter(|c| c.at_once || !at_once).map(|c| c.grade).min().unwrap_or(Grade::Full)
        };
        self.announced = self.announced.min(demanded(true));
        let all = demanded(false);
        if all >= self.announced || now.since(*self.lower_since.get_or_insert(now)) >= self.hold_down {
            (self.announced, self.lower_since) = (all, None);
        }
        Readiness { grade: self.announced, reasons: causes.into_iter().map(|cause| cause.reason).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Grade::{Fallback, Full, Withdraw};

    const HOLD_DOWN: Duration = Duration::from_secs(3);

    fn at(ms: u64) -> Time {
        Time(1_000_000_000 + ms * 1_000_000)
    }

    /// Milliseconds, and the causes then.
    type Step<'a> = (u64, &'a [fn(&'static str) -> Cause]);

    fn grades(steps: &[Step<'_>]) -> Vec<Grade> {
        let mut announcer = Announcer::new(HOLD_DOWN);
        let step = |(ms, causes): &Step<'_>| {
            announcer.announce(causes.iter().map(|cause| cause("why")).collect(), at(*ms)).grade
        };
        steps.iter().map(step).collect()
    }

    #[test]
    fn readiness_rises_at_once_and_falls_to_fallback_after_the_hold_down() {
        let grades = grades(&[
            (0, &[Cause::withdraw]),
            (1, &[]),
            (2, &[Cause::fallback]),
            (3001, &[Cause::fallback]),
            (3002, &[Cause::fallback]),
            (3003, &[]),
        ]);
        assert_eq!(grades, [Withdraw, Full, Full, Full, Fallback, Full]);
    }

    #[test]
    fn readiness_that_recovers_within_the_hold_down_never_fell() {
        let grades = grades(&[
            (0, &[]),
            (1, &[Cause::fallback]),
            (2900, &[]),
            (3000, &[Cause::fallback]),
            (5999, &[Cause::fallback]),
        ]);
        assert_eq!(grades, [Full; 5]);
    }

    #[test]
    fn readiness_withdraws_what_failed_after_the_hold_down_whatever_was_announced_meanwhile() {
        let grades = grades(&[
            (0, &[]),
            (1, &[Cause::failed]),
            (2000, &[Cause::failed, Cause::turned_away]),
            (3000, &[Cause::failed, Cause::turned_away]),
            (3001, &[Cause::failed]),
        ]);
        assert_eq!(grades, [Full, Full, Fallback, Fallback, Withdraw]);
    }

    #[test]
    fn readiness_falls_at_once_where_nothing_passes_and_where_somebody_drains() {
        let grades = grades(&[
            (0, &[]),
            (1, &[Cause::turned_away]),
            (2, &[Cause::turned_away, Cause::withdraw]),
            (3, &[Cause::fallback]),
            (4, &[]),
            (5, &[Cause::withdraw, Cause::fallback]),
        ]);
        assert_eq!(grades, [Full, Fallback, Withdraw, Fallback, Full, Withdraw]);
    }

    /// What is going on is said before the grade falls.
    #[test]
    fn readiness_names_its_reasons_within_the_hold_down() {
        let mut announcer = Announcer::new(HOLD_DOWN);
        announcer.announce(Vec::new(), at(0));
        let now = announcer.announce(vec![Cause::fallback("the lease is in its grace period")], at(1));
        assert_eq!(now, Readiness { grade: Full, reasons: vec!["the lease is in its grace period".to_owned()] });
    }
}
