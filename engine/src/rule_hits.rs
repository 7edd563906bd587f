//! Hit counters of the rules of the active policy: how often each rule decided on a connection, and when last.
//!
//! A rule that keeps its name keeps its counter when another policy is activated.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::active_policy::ActivePolicy;
use crate::id::RuleId;
use crate::time::Time;

/// The counter of one rule. All workers count with it.
#[derive(Debug, Default)]
struct HitCounter {
    hits: AtomicU64,
    /// [`Time`] of the last hit; 0: none.
    last: AtomicU64,
}

/// The counters of one policy's rules, by [`RuleId`].
#[derive(Default)]
pub(crate) struct HitCounters(Vec<Arc<HitCounter>>);

/// How often a rule decided on a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleHits {
    /// The rule; 0 is the default.
    pub rule: RuleId,
    /// Its name.
    pub name: String,
    /// Connections that it decided on: those that it opened, and each denied first packet.
    pub hits: u64,
    /// When it last did.
    pub last: Option<Time>,
}

impl HitCounters {
    /// Counters for the rules of `policy`, those that `old` has by the same name included.
    pub(crate) fn carried_over(policy: &ActivePolicy, old: &ActivePolicy) -> HitCounters {
        let names = |policy: &ActivePolicy| -> Vec<String> {
            let Some(rules) = &policy.rules else { return vec!["default".to_owned()] };
            let count = u32::try_from(rules.rule_count()).unwrap_or(u32::MAX);
            (0..=count).map(|rule| rules.rule_name(RuleId(rule)).to_owned()).collect()
        };
        // The default has a place of its own: a rule may have its name.
        let known: HashMap<(bool, String), &Arc<HitCounter>> =
            names(old).into_iter().zip(&old.hits.0).enumerate().map(|(n, (name, c))| ((n == 0, name), c)).collect();
        let counter = |(n, name)| known.get(&(n == 0, name)).map(|&counter| Arc::clone(counter)).unwrap_or_default();
        HitCounters(names(policy).into_iter().enumerate().map(counter).collect())
    }

    /// Counts a decision of a rule.
    pub(crate) fn count(&self, rule: RuleId, now: Time) {
        let Some(counter) = self.0.get(rule.0 as usize) else { return };
        counter.hits.fetch_add(1, Ordering::Relaxed);
        counter.last.store(now.0, Ordering::Relaxed);
    }

    /// The counters of at most `max` rules, the default's first.
    pub(crate) fn read(&self, policy: &ActivePolicy, max: usize) -> Vec<RuleHits> {
        let read = |(rule, counter): (u32, &Arc<HitCounter>)| {
            let last = counter.last.load(Ordering::Relaxed);
            RuleHits {
                rule: RuleId(rule),
                name: policy.rules.as_ref().map_or("default", |rules| rules.rule_name(RuleId(rule))).to_owned(),
                hits: counter.hits.load(Ordering::Relaxed),
                last: (last != 0).then_some(Time(last)),
            }
        };
        (0..).zip(&self.0).take(max).map(read).collect()
    }

    /// The decisions of all rules from `first` on.
    pub(crate) fn total_from(&self, first: usize) -> u64 {
        self.0.iter().skip(first).map(|counter| counter.hits.load(Ordering::Relaxed)).sum()
    }
}
