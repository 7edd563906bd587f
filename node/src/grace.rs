//! How long another member may still pass sessions after it was last heard of: the grace that it goes by, and a margin.
//!
//! `lease.grace` is a setting. A member that is cut off does not learn of a change: it goes by the grace that was in force when
//! its lease was renewed last. So after a change the larger of the two counts, until every member has said that it has applied the
//! change, or the earlier one has run out everywhere. A member whose lease was renewed after the change has applied it; any
//! other lease was renewed before this member applied the change, so it has run out one earlier grace after that.
//!
//! A member that was removed cannot be asked: after a removal only the time counts.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::replica::SettingsRecord;
use palisade_engine::{ClusterState, Engine, Time};
use parking_lot::Mutex;

use crate::clock;

/// Part of the margin: the time in which a leader does not know yet how long it has led, and what a clock may be stepped by while
/// NTP corrects it at once.
const CLOCK_STEP: Duration = Duration::from_secs(2);

/// The rest of the margin is the grace divided by this: 500 ppm. The rates of two crystals differ by at most 200 ppm, and the
/// kernel lets NTP change the rate of a clock by at most 500 ppm: in an hour 1.8 s, in a day 43 s.
const CLOCK_DRIFT: u32 = 2000;

/// A time, as another machine's clock may measure it.
pub(crate) fn with_margin(time: Duration) -> Duration {
    time + CLOCK_STEP + time / CLOCK_DRIFT
}

/// How long other members may still pass sessions after they were last heard of.
#[derive(Clone)]
pub(crate) struct PeerGrace {
    engine: Arc<Engine>,
    state: Arc<Mutex<State>>,
}

impl PeerGrace {
    /// As this member knows it at its start: what was in force while it was away may still count.
    pub(crate) fn new(engine: Arc<Engine>) -> PeerGrace {
        let cluster = engine.cluster_state();
        let state = State::new(&cluster.settings, removed(&cluster), clock::now());
        PeerGrace { engine, state: Arc::new(Mutex::new(state)) }
    }

    /// The largest grace that a member may go by now, without a margin.
    pub(crate) fn largest(&self) -> Duration {
        let cluster = self.engine.cluster_state();
        self.state.lock().largest(&cluster.settings, removed(&cluster), clock::now())
    }

    /// Notes that all members have applied this revision of the settings, or a later one.
    pub(crate) fn note_applied_by_all(&self, revision: u64) {
        let mut state = self.state.lock();
        state.applied_by_all = state.applied_by_all.max(revision);
    }

    /// How long a member must have been silent until it certainly passes nothing.
    pub(crate) fn expiry(&self) -> Duration {
        with_margin(self.largest())
    }
}

/// How many members were ever removed, or have left.
fn removed(cluster: &ClusterState) -> u64 {
    cluster.next_member.saturating_sub(1).saturating_sub(cluster.members.len() as u64)
}

/// The graces that may still be gone by.
#[derive(Debug)]
struct State {
    revision: u64,
    present: Duration,
    /// The largest one before the present one,
    earlier: Duration,
    /// which counts until then.
    until: Time,
    /// The revision that all members have applied, at least.
    applied_by_all: u64,
    removed: u64,
    /// Until then, members may pass sessions that have been removed.
    removed_until: Time,
}

impl State {
    fn new(settings: &SettingsRecord, removed: u64, now: Time) -> State {
        let (present, earlier) = (settings.values.grace(), settings.largest_grace);
        let until = now + with_margin(earlier);
        let revision = settings.revision;
        State { revision, present, earlier, until, applied_by_all: 0, removed, removed_until: until }
    }

    fn largest(&mut self, settings: &SettingsRecord, removed: u64, now: Time) -> Duration {
        if removed != self.removed {
            self.removed = removed;
            self.removed_until = now + with_margin(self.at(now).max(settings.largest_grace));
        }
        if settings.revision != self.revision {
            let before = self.at(now);
            // Several changes at once: between them there may have been any.
            let one_change = settings.revision == self.revision.saturating_add(1);
            self.earlier = if one_change { before } else { settings.largest_grace.max(before) };
            self.until = now + with_margin(self.earlier);
            (self.revision, self.present) = (settings.revision, settings.values.grace());
        }
        // This member may have begun with the state of a new cluster, and the defaults, before it applied the log.
        self.at(now).min(settings.largest_grace)
    }

    fn at(&self, now: Time) -> Duration {
        let all_know = self.applied_by_all >= self.revision && now >= self.removed_until;
        if all_know || now >= self.until { self.present } else { self.present.max(self.earlier) }
    }
}

#[cfg(test)]
mod tests {
    use palisade_engine::replica::{SettingKey, Settings};

    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn settings(revision: u64, grace: u64, largest: u64) -> SettingsRecord {
        let values = Settings::default().with(SettingKey::LeaseGrace, grace * 1000);
        SettingsRecord { revision, values, largest_grace: secs(largest), history: Vec::new() }
    }

    fn at(n: u64) -> Time {
        Time(n * 1_000_000_000)
    }

    #[test]
    fn margin_grows_with_the_grace() {
        assert_eq!(with_margin(secs(1)), Duration::from_micros(3_000_500));
        assert_eq!(with_margin(secs(300)), Duration::from_millis(302_150));
        assert_eq!(with_margin(secs(86_400)), Duration::from_millis(86_445_200));
        // Two clocks that differ by 500 ppm, after a day: the margin is larger than what they differ by.
        assert!(with_margin(secs(86_400)) > secs(86_400).mul_f64(1.0005));
    }

    #[test]
    fn lowered_grace_counts_as_the_earlier_one_until_that_has_run_out() {
        let mut state = State::new(&settings(3, 300, 300), 0, at(0));
        let end = with_margin(secs(300));
        assert_eq!(state.largest(&settings(3, 300, 300), 0, at(10_000)), secs(300));
        // A member that was cut off at 9,999 may pass sessions until 10,299 by its own clock.
        assert_eq!(state.largest(&settings(4, 10, 300), 0, at(10_000)), secs(300));
        let last = Time((at(10_000) + end).0 - 1);
        assert_eq!(state.largest(&settings(4, 10, 300), 0, last), secs(300));
        assert_eq!(state.largest(&settings(4, 10, 300), 0, at(10_000) + end), secs(10));
    }

    #[test]
    fn raised_grace_counts_at_once() {
        let mut state = State::new(&settings(0, 10, 10), 0, at(0));
        assert_eq!(state.largest(&settings(1, 3600, 3600), 0, at(100)), secs(3600));
        assert_eq!(state.largest(&settings(2, 20, 3600), 0, at(101)), secs(3600));
        assert_eq!(state.largest(&settings(3, 30, 3600), 0, at(200)), secs(3600), "another change does not shorten it");
        assert_eq!(state.largest(&settings(3, 30, 3600), 0, at(4200)), secs(30));
    }

    #[test]
    fn graces_that_this_member_did_not_see_count() {
        // It starts, and does not know since when the present one is in force.
        let mut state = State::new(&settings(7, 10, 600), 0, at(0));
        assert_eq!(state.largest(&settings(7, 10, 600), 0, at(500)), secs(600));
        assert_eq!(state.largest(&settings(7, 10, 600), 0, at(700)), secs(10));
        // Two changes at once, as from a snapshot: 600 s may have been in force between them.
        assert_eq!(state.largest(&settings(9, 20, 600), 0, at(1000)), secs(600));
        assert_eq!(state.largest(&settings(9, 20, 600), 0, at(1700)), secs(20));
    }

    #[test]
    fn grace_that_was_never_in_force_does_not_count() {
        let mut state = State::new(&settings(0, 300, 300), 0, at(0));
        assert_eq!(state.largest(&settings(1, 4, 4), 0, at(1)), secs(4), "the log begins with 4 s");
    }

    #[test]
    fn lowered_grace_counts_once_all_members_have_applied_it() {
        let mut state = State::new(&settings(3, 300, 300), 1, at(0));
        assert_eq!(state.largest(&settings(4, 10, 300), 1, at(10_000)), secs(300));
        state.applied_by_all = 3;
        assert_eq!(state.largest(&settings(4, 10, 300), 1, at(10_001)), secs(300), "one has not");
        state.applied_by_all = 4;
        assert_eq!(state.largest(&settings(4, 10, 300), 1, at(10_002)), secs(10));
        // The next change begins anew.
        assert_eq!(state.largest(&settings(5, 5, 300), 1, at(10_003)), secs(10));
        // One was removed that may not know of it.
        state.applied_by_all = 5;
        assert_eq!(state.largest(&settings(5, 5, 300), 2, at(10_004)), secs(10));
        assert_eq!(state.largest(&settings(5, 5, 300), 2, at(10_014)), secs(10), "only the time counts now");
        assert_eq!(state.largest(&settings(5, 5, 300), 2, at(10_016)), secs(5), "its grace was 10 s");
    }
}
