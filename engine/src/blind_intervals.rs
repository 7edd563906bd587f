//! Intervals in which the traffic of another member is unknown here: the basis of the takeover bound.
//!
//! Members publish the progress of their live sessions several times a second (`event::Progress`), each time with the moment
//! up to which it is complete. If a member falls silent, nobody knows what it forwarded after that moment: a *blind interval*
//! begins. It ends when the member publishes again, or when its lease no longer lets it forward anything. A connection's
//! sequence numbers can have moved unseen only in the blind intervals since they were last confirmed. So
//!
//! ```text
//!   bound = min(2^28, rate × blind time since the numbers were last confirmed)
//! ```

use std::time::Duration;

use crate::time::Time;

/// The largest takeover bound, in bytes. A connection that may have moved this far has no bound: its members are queried.
pub(crate) const MAX_UNSEEN_BYTES: i64 = 1 << 28;

/// Intervals that are kept apart. If there are more, the two oldest are joined: the bound becomes larger, never smaller.
const MAX_INTERVALS: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Interval {
    from: Time,
    until: Time,
}

/// A set of intervals, oldest first. No two of them touch.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct BlindIntervals {
    intervals: [Option<Interval>; MAX_INTERVALS],
}

impl BlindIntervals {
    /// Adds an interval, joined with those that it touches.
    pub(crate) fn insert(&mut self, from: Time, until: Time) {
        if until <= from {
            return;
        }
        let mut joined = Interval { from, until };
        let mut all: Vec<Interval> = Vec::with_capacity(MAX_INTERVALS + 1);
        for interval in self.intervals.iter().flatten().copied() {
            if interval.from <= joined.until && joined.from <= interval.until {
                joined = Interval { from: interval.from.min(joined.from), until: interval.until.max(joined.until) };
            } else {
                all.push(interval);
            }
        }
        all.push(joined);
        all.sort_unstable();
        if all.len() > MAX_INTERVALS {
            let oldest = all.remove(0);
            all[0].from = oldest.from;
        }
        self.intervals = [None; MAX_INTERVALS];
        for (place, interval) in self.intervals.iter_mut().zip(all) {
            *place = Some(interval);
        }
    }

    /// How much of the time since `age` ago is blind. `None`: of all time.
    pub(crate) fn blind_time(&self, age: Option<Duration>, now: Time) -> Duration {
        let since = age.map_or(Time::ZERO, |age| now - age);
        self.intervals.iter().flatten().map(|interval| interval.until.since(since.max(interval.from))).sum()
    }

    /// How far sequence numbers that were confirmed `age` ago may have moved unseen, at `rate` bytes a second.
    pub(crate) fn max_unseen_bytes(&self, age: Option<Duration>, rate: u64, now: Time) -> i64 {
        let bytes = self.blind_time(age, now).as_millis().saturating_mul(u128::from(rate)) / 1000;
        i64::try_from(bytes).unwrap_or(MAX_UNSEEN_BYTES).min(MAX_UNSEEN_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn at(second: u32) -> Time {
        Time::ZERO + second * S
    }

    #[test]
    fn blind_time_counts_from_the_last_confirmation() {
        let mut blind = BlindIntervals::default();
        let now = at(100);
        assert_eq!(blind.blind_time(None, now), Duration::ZERO);
        blind.insert(at(50), at(52));
        assert_eq!(blind.blind_time(Some(60 * S), now), 2 * S);
        assert_eq!(blind.blind_time(Some(49 * S), now), S, "confirmed in the middle of the interval");
        assert_eq!(blind.blind_time(Some(48 * S), now), Duration::ZERO, "confirmed after it");
        assert_eq!(blind.blind_time(None, now), 2 * S);
        blind.insert(at(52), at(53));
        blind.insert(at(51), at(53));
        blind.insert(at(90), at(90));
        assert_eq!(blind.intervals.iter().flatten().count(), 1);
        blind.insert(at(90), at(91));
        assert_eq!(blind.blind_time(Some(60 * S), now), 4 * S);
        assert_eq!(blind.max_unseen_bytes(Some(60 * S), 1000, now), 4000);
        assert_eq!(blind.max_unseen_bytes(Some(60 * S), u64::MAX, now), MAX_UNSEEN_BYTES);
    }

    #[test]
    fn blind_intervals_beyond_the_maximum_are_joined_and_none_is_lost() {
        let mut blind = BlindIntervals::default();
        for n in 0..20 {
            blind.insert(at(10 * n), at(10 * n + 1));
            blind.insert(at(10 * n), at(10 * n + 2));
        }
        assert_eq!(blind.intervals.iter().flatten().count(), MAX_INTERVALS);
        assert!(blind.blind_time(None, at(1000)) >= 40 * S);
        assert_eq!(blind.blind_time(Some(Duration::from_secs(1000 - 185)), at(1000)), 2 * S);
    }
}
