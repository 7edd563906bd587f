//! What compiling a policy takes, counted before it is done, and the bounds.
//!
//! The counts follow from the policy alone, so every machine accepts and refuses the same policies; only memory can differ
//! ([`crate::CompileRefusal::Memory`]). They are counted without what they count: an address range is a number, not an entry
//! of a list, until the number is known to be small enough; a set of rules is a hash.

use std::collections::{HashMap, HashSet};

use super::model::{Address, List, Named, Policy, Rule, Service};
use super::ranges::{self, Addresses, Ranges};

/// Maximum number of words of 64 bits in which a compiled policy keeps its sets of rules (128 MiB).
pub const MAX_SET_WORDS: u64 = 1 << 24;

/// Maximum number of words that compiling a policy goes through. It bounds the time.
pub const MAX_STEPS: u64 = 1 << 28;

/// Memory for an address range while it is compiled, at most, in bytes: IPv6, its two ends, its two intervals.
const RANGE_BYTES: u64 = 384;
/// The same for a word of the sets: the set itself while its vector grows, and the copy by which equal ones are found.
const WORD_BYTES: u64 = 40;
/// The same for a rule without its ranges.
const RULE_BYTES: u64 = 2048;

/// What compiling a policy takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CompileCost {
    /// Rules.
    pub rules: u64,
    /// Ranges of addresses, services and zones of all rules and sets, sets expanded.
    pub ranges: u64,
    /// Words of the sets of rules: exact above some millions, else an upper bound.
    pub set_words: u64,
    /// Words that compiling goes through, likewise.
    pub steps: u64,
    /// The rule that costs most of what is beyond a bound, from 0, and how much.
    pub most: Option<(usize, u64)>,
}

impl CompileCost {
    /// The memory that compiling takes, at most, besides the text and what it parses to.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let words = self.set_words.min(MAX_SET_WORDS);
        (1 << 20) + self.rules * RULE_BYTES + self.ranges * RANGE_BYTES + words * WORD_BYTES
    }
}

/// The number of ranges of each set or service, with those in it expanded.
#[derive(Default)]
pub(super) struct Expansion<'p>(HashMap<&'p str, u64>);

impl<'p> Expansion<'p> {
    /// Counts another set, and keeps its number.
    pub(super) fn add<T: Member>(&mut self, named: &'p Named<T>) -> u64 {
        let count = self.count(&named.members);
        self.0.insert(&named.name, count);
        count
    }

    /// The ranges of a list.
    pub(super) fn count<T: Member>(&self, list: &[T]) -> u64 {
        let one = |member: &T| member.set().map_or(1, |name| self.0.get(name).copied().unwrap_or(0));
        list.iter().map(one).fold(0, u64::saturating_add)
    }

    /// The ranges of a part of a rule.
    pub(super) fn count_list<T: Member>(&self, list: &List<T>) -> u64 {
        list.items().map_or(0, |items| self.count(items))
    }
}

/// A member of a set, or of a service: a range, or the name of another one.
pub(super) trait Member {
    fn set(&self) -> Option<&str>;
}

impl Member for Address {
    fn set(&self) -> Option<&str> {
        match self {
            Address::Set(name) => Some(name),
            Address::Prefix(_) => None,
        }
    }
}

impl Member for Service {
    fn set(&self) -> Option<&str> {
        match self {
            Service::Named(name) => Some(name),
            Service::Protocol(_) | Service::Ports(..) => None,
        }
    }
}

impl Policy {
    /// What compiling it takes. Quick unless that is much.
    #[must_use]
    pub fn cost(&self) -> CompileCost {
        let (mut sets, mut services) = (Expansion::default(), Expansion::default());
        let named: u64 = self.sets.iter().map(|set| sets.add(set)).sum();
        let named = named + self.services.iter().map(|service| services.add(service)).sum::<u64>();
        let zones = |list: &List<String>| list.items().map_or(0, |zones| zones.len() as u64);
        let [mut addresses, mut others] = [0; 2];
        for rule in &self.rules {
            addresses += sets.count_list(&rule.source) + sets.count_list(&rule.destination);
            others += services.count_list(&rule.services) + zones(&rule.from) + zones(&rule.to);
        }
        let rules = self.rules.len() as u64;
        let mut cost = CompileCost { rules, ranges: named + addresses + others, ..CompileCost::default() };
        // At most: every boundary has a set of its own, with a word for each group and each block of rules.
        let words = rules.div_ceil(64) + rules.div_ceil(64 * 64);
        let at_most = (2 * (addresses + others) + 7).saturating_mul(words);
        (cost.set_words, cost.steps) = (at_most, at_most);
        if at_most > MAX_SET_WORDS {
            self.count_sets(&mut cost);
        }
        cost
    }

    /// Counts the sets of rules of all fields, up to a bound.
    fn count_sets(&self, cost: &mut CompileCost) {
        let (sets, services) = (ranges::sets(&self.sets), ranges::services(&self.services));
        let zones: HashMap<&str, u128> = (0..).zip(&self.zones).map(|(n, name)| (name.as_str(), n)).collect();
        let zones_of = |list: &List<String>| {
            let number = |name: &String| zones.get(name.as_str()).map(|&number| (number, number));
            list.items().map(|names| names.iter().filter_map(number).collect::<Ranges>())
        };
        let family = |list: &List<Address>, v4: bool| {
            Addresses::resolve_list(list, &sets).map(|all| if v4 { all.v4 } else { all.v6 })
        };
        let service = |rule: &Rule| rule.services.items().map(|items| ranges::resolve_services(items, &services));
        let mut sweep = Sweep::new(self.rules.len());
        let fields: [(&dyn Fn(&Rule) -> Option<Ranges>, bool); 7] = [
            (&|rule| family(&rule.source, true), true),
            (&|rule| family(&rule.source, false), true),
            (&|rule| family(&rule.destination, true), true),
            (&|rule| family(&rule.destination, false), true),
            (&service, false),
            (&|rule| zones_of(&rule.from), false),
            (&|rule| zones_of(&rule.to), false),
        ];
        for (ranges_of, singles) in fields {
            if !sweep.field(&self.rules, ranges_of, singles) {
                break;
            }
        }
        (cost.set_words, cost.steps) = (sweep.words, sweep.steps);
        let most = (0..).zip(&sweep.by_rule).max_by_key(|(rule, share)| (**share, std::cmp::Reverse(*rule)));
        cost.most = most.map(|(rule, share)| (rule, *share));
    }
}

/// The count of the sets of rules, field by field: the sweep of the compiler, without the sets.
struct Sweep {
    groups: u64,
    words: u64,
    steps: u64,
    /// For each rule, the intervals that it is in.
    by_rule: Vec<u64>,
}

/// The set of rules at one number.
struct Here {
    hash: u64,
    rules: u64,
    /// Rules in each block of 64, and the blocks with any.
    in_block: Vec<u8>,
    blocks: u64,
}

impl Here {
    fn set(&mut self, rule: usize, to: bool) {
        self.hash ^= mixed(rule as u64);
        let count = &mut self.in_block[rule / 64];
        if to {
            self.rules += 1;
            self.blocks += u64::from(*count == 0);
            *count += 1;
        } else {
            self.rules -= 1;
            *count -= 1;
            self.blocks -= u64::from(*count == 0);
        }
    }
}

impl Sweep {
    fn new(rules: usize) -> Sweep {
        Sweep { groups: rules.div_ceil(64 * 64) as u64, words: 0, steps: 0, by_rule: vec![0; rules] }
    }

    /// Counts a field. False if a bound is exceeded.
    fn field(&mut self, rules: &[Rule], ranges_of: &dyn Fn(&Rule) -> Option<Ranges>, singles: bool) -> bool {
        // The numbers at which rules begin or stop to match. At one number, ends sort before beginnings.
        let mut changes: Vec<(u128, bool, u32)> = Vec::new();
        let mut all_have_ranges = true;
        for (number, rule) in (0..).zip(rules) {
            match ranges_of(rule) {
                None => all_have_ranges = false,
                Some(ranges) => {
                    changes.extend(ranges.iter().map(|range| (range.0, true, number)));
                    let after = ranges.iter().filter_map(|range| Some((range.1.checked_add(1)?, false, number)));
                    changes.extend(after);
                }
            }
        }
        changes.sort_unstable();
        let singles = singles && all_have_ranges;
        let mut here = Here { hash: 0, rules: 0, in_block: vec![0; rules.len().div_ceil(64)], blocks: 0 };
        let (mut seen, mut interval) = (HashSet::new(), 1);
        // The interval at which each rule that is in the set began.
        let mut since: Vec<u64> = vec![0; rules.len()];
        for at in changes.chunk_by(|a, b| a.0 == b.0) {
            for &(_, begins, rule) in at {
                let rule = rule as usize;
                here.set(rule, begins);
                if begins {
                    since[rule] = interval;
                } else {
                    self.by_rule[rule] += interval - since[rule];
                    since[rule] = 0;
                }
            }
            interval += 1;
            self.steps += self.groups + here.blocks;
            if !(singles && here.rules == 1) && seen.insert(here.hash) {
                self.words += self.groups + here.blocks;
            }
            if self.words > MAX_SET_WORDS || self.steps > MAX_STEPS {
                break;
            }
        }
        // Those in which the rest still is.
        for (rule, since) in since.into_iter().enumerate().filter(|(_, since)| *since > 0) {
            self.by_rule[rule] += interval - since;
        }
        self.words <= MAX_SET_WORDS && self.steps <= MAX_STEPS
    }
}

/// SplitMix64: a number for each rule; those of the rules of a set, combined by exclusive or, stand for the set.
fn mixed(rule: u64) -> u64 {
    let mut h = (rule + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h = (h ^ h >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ h >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ h >> 31
}
