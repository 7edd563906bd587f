//! The rate limit of each rule's events, shared by all threads that log.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use palisade_engine::{RuleId, Time};

/// Rules of one policy, the default included.
const MAX_RULES: usize = 1 << 16;

/// At most `rate` events in each second and for each rule number. Threads that count at once may exceed it by one each.
pub(super) struct RuleLimits {
    rate: u32,
    /// By rule number.
    rules: Box<[RuleLimit]>,
    /// Whether some event was left out since [`RuleLimits::take_left_out`] was called last.
    some_left_out: AtomicBool,
}

impl std::fmt::Debug for RuleLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuleLimits").field("rate", &self.rate).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct RuleLimit {
    /// The second in the upper half, the events in it in the lower one.
    window: AtomicU64,
    left_out: AtomicU64,
}

impl RuleLimits {
    pub(super) fn new(rate: u32) -> RuleLimits {
        let rules = (0..MAX_RULES).map(|_| RuleLimit::default()).collect();
        RuleLimits { rate, rules, some_left_out: AtomicBool::new(false) }
    }

    /// Whether an event of this rule may be logged now.
    pub(super) fn take(&self, rule: RuleId, now: Time) -> bool {
        let Some(limit) = self.rules.get(rule.0 as usize % MAX_RULES) else { return false };
        let second = now.0 / 1_000_000_000;
        let window = limit.window.load(Ordering::Relaxed);
        if window >> 32 != second & u64::from(u32::MAX) {
            limit.window.store(second << 32 | 1, Ordering::Relaxed);
            return true;
        }
        if window & u64::from(u32::MAX) < u64::from(self.rate) {
            limit.window.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        limit.left_out.fetch_add(1, Ordering::Relaxed);
        self.some_left_out.store(true, Ordering::Relaxed);
        false
    }

    /// Takes the number of events of this rule that were left out since it was last asked for.
    pub(super) fn left_out(&self, rule: RuleId) -> u64 {
        self.rules.get(rule.0 as usize % MAX_RULES).map_or(0, |limit| limit.left_out.swap(0, Ordering::Relaxed))
    }

    /// Takes the rules with events that were left out, and how many.
    pub(super) fn take_left_out(&self, each: &mut dyn FnMut(RuleId, u64)) {
        if !self.some_left_out.swap(false, Ordering::Relaxed) {
            return;
        }
        for (rule, limit) in (0..).map(RuleId).zip(&self.rules) {
            if limit.left_out.load(Ordering::Relaxed) > 0 {
                each(rule, limit.left_out.swap(0, Ordering::Relaxed));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rule_limit_counts_each_rule_and_second_apart() {
        let limits = RuleLimits::new(3);
        let now = Time(5_000_000_000);
        let taken = |rule, now| (0..10).filter(|_| limits.take(RuleId(rule), now)).count();
        assert_eq!((taken(0, now), taken(7, now), taken(65_535, now)), (3, 3, 3));
        assert_eq!(taken(7, now + Duration::from_millis(999)), 0);
        assert_eq!(taken(7, now + Duration::from_secs(1)), 3);
        let mut left_out = Vec::new();
        limits.take_left_out(&mut |rule, count| left_out.push((rule.0, count)));
        assert_eq!(left_out, [(0, 7), (7, 24), (65_535, 7)]);
        limits.take_left_out(&mut |_, _| panic!("they were taken"));
        assert_eq!(taken(7, now + Duration::from_secs(1)), 0);
        assert_eq!((limits.left_out(RuleId(7)), limits.left_out(RuleId(7))), (10, 0));
    }
}
