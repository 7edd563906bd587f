//! When what the other members did is not known: the basis of what a member may accept after a takeover.
//!
//! Members tell each other of their live sessions several times a second (`event::Progress`), each time with the moment up
//! to which that is complete. Where a member falls silent, what it passed since that moment nobody knows: a *span* of time
//! begins, which ends when it speaks again or may pass nothing any more. A connection's numbers may have moved during the
//! spans since they were last seen, and not otherwise; so
//!
//! ```text
//!   bound = min(2^28, rate × time of the spans since the numbers were last confirmed)
//! ```

use std::time::Duration;

use crate::time::Time;

/// No connection's numbers are believed to have moved further unseen. Beyond it, the others are asked.
pub(crate) const MOST: i64 = 1 << 28;

/// Spans that are told apart. More are joined, the oldest first, which makes the bound too large, never too small.
const SPANS: usize = 8;

/// Spans of time, oldest first, none touching the next.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Unsure {
    spans: [Option<(Time, Time)>; SPANS],
}

impl Unsure {
    /// Adds a span.
    pub(crate) fn add(&mut self, from: Time, until: Time) {
        if until <= from {
            return;
        }
        let mut joined = (from, until);
        let mut all: Vec<(Time, Time)> = Vec::with_capacity(SPANS + 1);
        for (begin, end) in self.spans.iter().flatten().copied() {
            if begin <= joined.1 && joined.0 <= end {
                joined = (begin.min(joined.0), end.max(joined.1));
            } else {
                all.push((begin, end));
            }
        }
        all.push(joined);
        all.sort_unstable();
        if all.len() > SPANS {
            let (begin, _) = all.remove(0);
            all[0].0 = begin;
        }
        self.spans = [None; SPANS];
        for (place, span) in self.spans.iter_mut().zip(all) {
            *place = Some(span);
        }
    }

    /// How much of the time since `age` ago is unsure; `None`: since ever.
    pub(crate) fn since(&self, age: Option<Duration>, now: Time) -> Duration {
        let seen = age.map_or(Time::ZERO, |age| now - age);
        self.spans.iter().flatten().map(|(begin, end)| end.since(seen.max(*begin))).sum()
    }

    /// How far numbers that were confirmed `age` ago may have moved unseen, at `rate` bytes a second.
    pub(crate) fn bound(&self, age: Option<Duration>, rate: u64, now: Time) -> i64 {
        let bytes = self.since(age, now).as_millis().saturating_mul(u128::from(rate)) / 1000;
        i64::try_from(bytes).unwrap_or(MOST).min(MOST)
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
    fn only_what_is_unsure_counts() {
        let mut unsure = Unsure::default();
        let now = at(100);
        assert_eq!(unsure.since(None, now), Duration::ZERO);
        unsure.add(at(50), at(52));
        assert_eq!(unsure.since(Some(60 * S), now), 2 * S);
        assert_eq!(unsure.since(Some(49 * S), now), S, "seen in the middle of it");
        assert_eq!(unsure.since(Some(48 * S), now), Duration::ZERO, "seen since");
        assert_eq!(unsure.since(None, now), 2 * S);
        unsure.add(at(52), at(53));
        unsure.add(at(51), at(53));
        unsure.add(at(90), at(90));
        assert_eq!(unsure.spans.iter().flatten().count(), 1);
        unsure.add(at(90), at(91));
        assert_eq!(unsure.since(Some(60 * S), now), 4 * S);
        assert_eq!(unsure.bound(Some(60 * S), 1000, now), 4000);
        assert_eq!(unsure.bound(Some(60 * S), u64::MAX, now), MOST);
    }

    #[test]
    fn many_spans_are_joined_and_none_is_lost() {
        let mut unsure = Unsure::default();
        for n in 0..20 {
            unsure.add(at(10 * n), at(10 * n + 1));
            unsure.add(at(10 * n), at(10 * n + 2));
        }
        assert_eq!(unsure.spans.iter().flatten().count(), SPANS);
        assert!(unsure.since(None, at(1000)) >= 40 * S);
        assert_eq!(unsure.since(Some(Duration::from_secs(1000 - 185)), at(1000)), 2 * S);
    }
}
