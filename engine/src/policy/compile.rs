//! The compiled policy: the decision for a new connection, at a cost almost independent of the number of rules.
//!
//! This is the bit-vector scheme of Lakshman and Stiliadis (SIGCOMM 1998) with aggregated bitmaps. A
//! connection has five fields: ingress zone, egress zone, source, destination, and service (protocol and destination port).
//! In each field the boundaries of all rules divide the value range into intervals, and one set of rules matches all values
//! of an interval. Each [`Dimension`] is a sorted table of these intervals, searched in a few steps, with a set of rules for
//! each. The rules that match the connection are the intersection of five sets; the first of them decides.
//!
//! A set of rules is a bitmap in blocks of 64 rules. Rules with `any` in a field belong to all of its sets and are stored
//! once (`common`). Each set has few others, so only its non-zero blocks are stored, with a *summary* of one bit per block
//! that tells which ones they are. The intersection of the summaries leaves only the blocks in which all five fields have
//! some rule: in practice one or two of the 157 blocks of 10,000 rules. Intervals with equal sets share one.
//!
//! With many rules, cache misses dominate the cost of a lookup, not the number of steps. Where rules name single servers or
//! networks, most intervals match only one rule. Such an interval stores that rule in place of a set. The lookup then
//! reads only the other address and the rule's [`RuleEntry`]: about three cold cache lines in all.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use super::model::{Action, Decision, Default, Policy};
use super::ranges::{self, Addresses, Ranges, service_key};
use crate::addr::Ip;
use crate::id::{RuleId, ZoneId};
use crate::parse::IpOptions;
use crate::timeouts::Timeouts;
use crate::tuple::Tuple;

/// A compiled policy.
#[derive(Debug)]
pub struct Compiled {
    from: Dimension<u16>,
    to: Dimension<u16>,
    source_v4: Dimension<u32>,
    source_v6: Dimension<u128>,
    destination_v4: Dimension<u32>,
    destination_v6: Dimension<u128>,
    service: Dimension<u32>,
    /// Blocks of 64 rules, in groups of 64.
    groups: usize,
    default: Default,
    default_text: String,
    ip_options: IpOptions,
    timeouts: Timeouts,
    /// Each rule's action and its inline match fields, read at the end of a lookup.
    rows: Vec<RuleEntry>,
    /// Each rule's name and text.
    texts: Vec<(String, String)>,
}

impl Policy {
    /// Compiles the policy; `zone` returns the number of each declared zone.
    #[must_use]
    pub fn compile(&self, zone: &mut dyn FnMut(&str) -> ZoneId) -> Compiled {
        let zones: HashMap<&str, u128> = self.zones.iter().map(|name| (name.as_str(), zone(name).0.into())).collect();
        let zones_of = |list: &super::List<String>| {
            list.items().map(|names| {
                let number = |name: &String| zones.get(name.as_str()).map(|&number| (number, number));
                names.iter().filter_map(number).collect::<Ranges>()
            })
        };
        let sets = ranges::sets(&self.sets);
        let services = ranges::services(&self.services);
        let count = self.rules.len();
        let each = |part: &dyn Fn(&super::Rule) -> Option<Ranges>| self.rules.iter().map(part).collect::<Vec<_>>();
        let family = |addresses: Option<Addresses>, v4: bool| {
            addresses.map(|addresses| if v4 { addresses.v4 } else { addresses.v6 })
        };
        Compiled {
            from: Dimension::new(&each(&|rule| zones_of(&rule.from)), false),
            to: Dimension::new(&each(&|rule| zones_of(&rule.to)), false),
            source_v4: Dimension::new(&each(&|rule| family(Addresses::resolve_list(&rule.source, &sets), true)), true),
            source_v6: Dimension::new(&each(&|rule| family(Addresses::resolve_list(&rule.source, &sets), false)), true),
            destination_v4: Dimension::new(
                &each(&|rule| family(Addresses::resolve_list(&rule.destination, &sets), true)),
                true,
            ),
            destination_v6: Dimension::new(
                &each(&|rule| family(Addresses::resolve_list(&rule.destination, &sets), false)),
                true,
            ),
            service: Dimension::new(
                &each(&|rule| rule.services.items().map(|items| ranges::resolve_services(items, &services))),
                false,
            ),
            groups: count.div_ceil(64 * 64),
            default: self.default,
            default_text: self.default.to_string(),
            ip_options: self.ip_options.iter().copied().collect(),
            timeouts: self.timeouts,
            rows: (self.rules.iter())
                .map(|rule| {
                    let services = rule.services.items().map(|items| ranges::resolve_services(items, &services));
                    RuleEntry::new(rule, zones_of(&rule.from), zones_of(&rule.to), services)
                })
                .collect(),
            texts: self.rules.iter().map(|rule| (rule.name.clone(), rule.to_string())).collect(),
        }
    }
}

impl Compiled {
    /// The decision for a session that begins with `tuple`, from one zone to another. The first match wins. For ICMP
    /// echo, `tuple` is that of the request.
    #[must_use]
    pub fn decide(&self, from: ZoneId, to: ZoneId, tuple: &Tuple) -> Decision {
        let mut decision = Decision { action: self.default.action, rule: RuleId(0), log: self.default.log };
        self.matching(from, to, tuple, |index| {
            if let Some(row) = self.rows.get(index) {
                decision = Decision { action: row.action, rule: id(index), log: row.log };
            }
            ControlFlow::Break(())
        });
        decision
    }

    /// Calls `each` for the rules that match, in order, until it returns `Break`.
    fn matching(&self, from: ZoneId, to: ZoneId, tuple: &Tuple, mut each: impl FnMut(usize) -> ControlFlow<()>) {
        let (source, destination) = match (tuple.src, tuple.dst) {
            (Ip::V4(src), Ip::V4(dst)) => {
                (self.source_v4.find(u32::from_be_bytes(src)), self.destination_v4.find(u32::from_be_bytes(dst)))
            }
            (Ip::V6(src), Ip::V6(dst)) => {
                (self.source_v6.find(u128::from_be_bytes(src)), self.destination_v6.find(u128::from_be_bytes(dst)))
            }
            // No packet has both families, so no rule matches.
            _ => return,
        };
        let key = service_key(tuple.protocol, tuple.dst_port);
        if let Some(rule) = source.only.or(destination.only) {
            let Some(row) = self.rows.get(rule) else { return };
            let rest = || match &row.inline_match {
                Some(inline_match) => inline_match.matches(from, to, key),
                None => {
                    [self.service.find(key), self.to.find(to.0), self.from.find(from.0)].iter().all(|s| s.has(rule))
                }
            };
            if source.has(rule) && destination.has(rule) && rest() {
                // No other rule can match, so the result of `each` does not matter.
                let _ = each(rule);
            }
            return;
        }
        let mut sets = [source, destination, self.service.find(key), self.to.find(to.0), self.from.find(from.0)];
        for group in 0..self.groups {
            let mut blocks = sets.iter().fold(u64::MAX, |blocks, set| blocks & set.summary(group));
            while blocks != 0 {
                let bit = blocks.trailing_zeros();
                blocks &= blocks - 1;
                let mut rules = sets.iter().fold(u64::MAX, |rules, set| rules & set.block(group, bit));
                while rules != 0 {
                    let index = (group * 64 + bit as usize) * 64 + rules.trailing_zeros() as usize;
                    rules &= rules - 1;
                    if each(index).is_break() {
                        return;
                    }
                }
            }
            sets.iter_mut().for_each(|set| set.next_group(group));
        }
    }

    /// Adds to `found` the rules before `index` that match a connection, by index from 0.
    pub(super) fn matching_before(
        &self,
        index: usize,
        from: ZoneId,
        to: ZoneId,
        tuple: &Tuple,
        found: &mut Vec<usize>,
    ) {
        self.matching(from, to, tuple, |earlier| {
            if earlier >= index {
                return ControlFlow::Break(());
            }
            found.push(earlier);
            ControlFlow::Continue(())
        });
    }

    /// One of each group of zones that a session may leave to and no rule tells apart.
    pub(crate) fn distinct_egress(&self, zones: impl IntoIterator<Item = ZoneId>) -> Vec<ZoneId> {
        let mut seen = HashSet::new();
        zones.into_iter().filter(|zone| seen.insert(self.to.set(zone.0))).collect()
    }

    /// The IPv4 options that the policy allows.
    #[must_use]
    pub fn ip_options(&self) -> IpOptions {
        self.ip_options
    }

    /// The idle timeouts of sessions.
    #[must_use]
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// The number of rules.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.rows.len()
    }

    /// The action of the default.
    #[must_use]
    pub fn default_action(&self) -> Action {
        self.default.action
    }

    /// Whether the decisions of a rule are logged. Rule 0 is the default.
    #[must_use]
    pub fn is_logged(&self, rule: RuleId) -> bool {
        match self.rows.get(index(rule)) {
            Some(row) => row.log,
            None => rule.0 == 0 && self.default.log,
        }
    }

    /// A rule's canonical text, for `session show` and the log. Rule 0 is the default.
    #[must_use]
    pub fn rule_text(&self, rule: RuleId) -> &str {
        match self.texts.get(index(rule)) {
            Some((_, text)) => text,
            None if rule.0 == 0 => &self.default_text,
            None => "",
        }
    }

    /// A rule's name. Rule 0 is the default.
    #[must_use]
    pub fn rule_name(&self, rule: RuleId) -> &str {
        match self.texts.get(index(rule)) {
            Some((name, _)) => name,
            None if rule.0 == 0 => "default",
            None => "",
        }
    }
}

/// The index of a rule; out of range for the default.
fn index(rule: RuleId) -> usize {
    rule.0.wrapping_sub(1) as usize
}

/// The id of the rule at an index.
pub(super) fn id(index: usize) -> RuleId {
    // There are at most 65,535.
    RuleId(u32::try_from(index + 1).unwrap_or(u32::MAX))
}

/// A rule as read at the end of a lookup.
#[derive(Debug)]
struct RuleEntry {
    action: Action,
    log: bool,
    /// Its zones and service, if they fit inline.
    inline_match: Option<InlineMatch>,
}

/// The zones and service of a rule, in half a cache line.
#[derive(Debug)]
struct InlineMatch {
    from: ZoneMask,
    to: ZoneMask,
    /// The first and last service key.
    service: (u32, u32),
}

/// A list of zones with numbers below 64 as a bit mask, or any zone.
#[derive(Clone, Copy, Debug)]
enum ZoneMask {
    Any,
    Mask(u64),
}

impl ZoneMask {
    fn new(ranges: Option<Ranges>) -> Option<ZoneMask> {
        let Some(ranges) = ranges else { return Some(ZoneMask::Any) };
        let mut mask = 0;
        for (zone, _) in ranges {
            mask |= 1_u64.checked_shl(u32::try_from(zone).ok()?)?;
        }
        Some(ZoneMask::Mask(mask))
    }

    fn has(self, zone: ZoneId) -> bool {
        match self {
            ZoneMask::Any => true,
            ZoneMask::Mask(mask) => mask.checked_shr(zone.0.into()).is_some_and(|bits| bits & 1 != 0),
        }
    }
}

impl RuleEntry {
    fn new(rule: &super::Rule, from: Option<Ranges>, to: Option<Ranges>, services: Option<Ranges>) -> RuleEntry {
        let service = match services.as_deref() {
            None => Some((0, u32::MAX)),
            Some(&[(first, last)]) => u32::try_from(first).ok().zip(u32::try_from(last).ok()),
            Some(_) => None,
        };
        let inline_match =
            || Some(InlineMatch { from: ZoneMask::new(from)?, to: ZoneMask::new(to)?, service: service? });
        RuleEntry { action: rule.action, log: rule.log, inline_match: inline_match() }
    }
}

impl InlineMatch {
    fn matches(&self, from: ZoneId, to: ZoneId, service: u32) -> bool {
        let (first, last) = self.service;
        (first..=last).contains(&service) && self.from.has(from) && self.to.has(to)
    }
}

/// Intervals compared in one step of a search: for IPv4 one cache line.
const FANOUT: usize = 16;

/// Intervals compared in the last step: for IPv4 one cache line, including their sets.
const LEAF_SIZE: usize = 8;

/// Flag in [`Leaf::sets`]: the value is a single rule, not the offset of a set.
const SINGLE_RULE: u32 = 1 << 31;

/// A group of adjacent intervals.
#[derive(Debug)]
#[repr(align(64))]
struct Leaf<K> {
    /// The first number of each interval. Unused places hold the greatest number.
    starts: [K; LEAF_SIZE],
    /// For each interval the offset of its set in `data`, or its single rule. Unused places repeat the last one.
    sets: [u32; LEAF_SIZE],
}

/// One field: for each number the set of rules that match it.
#[derive(Debug)]
struct Dimension<K> {
    /// The search tree: level 0 holds the first number of each leaf, each next level every sixteenth of the one below, up
    /// to a level of at most sixteen. A search reads one cache line per level and has no branch to mispredict.
    levels: Vec<Vec<K>>,
    leaves: Vec<Leaf<K>>,
    /// The sets: for each its summary (one word per group of blocks), then its non-zero blocks.
    data: Vec<u64>,
    /// Rules that match every number.
    common: Bitmap,
    /// Whether intervals with a single rule store that rule in place of a set.
    singles: bool,
}

/// The intervals of a dimension under construction: the first number and the set of each.
#[derive(Default)]
struct Intervals<K> {
    all: Vec<(K, u32)>,
    known: HashMap<Vec<u64>, u32>,
}

/// An uncompressed set of rules, with its summary.
#[derive(Clone, Debug)]
struct Bitmap {
    blocks: Vec<u64>,
    summary: Vec<u64>,
}

impl Bitmap {
    /// An empty set with capacity for `rules` rules.
    fn new(rules: usize) -> Bitmap {
        let groups = rules.div_ceil(64 * 64);
        Bitmap { blocks: vec![0; groups * 64], summary: vec![0; groups] }
    }

    fn set(&mut self, rule: usize, to: bool) {
        let (block, bit) = (rule / 64, rule % 64);
        let blocks = &mut self.blocks[block];
        *blocks = *blocks & !(1 << bit) | u64::from(to) << bit;
        let summary = &mut self.summary[block / 64];
        *summary = *summary & !(1 << (block % 64)) | u64::from(*blocks != 0) << (block % 64);
    }

    /// The single rule of the set, if it has exactly one.
    fn only(&self) -> Option<usize> {
        let mut groups = self.summary.iter().enumerate().filter(|(_, summary)| **summary != 0);
        let (group, summary) = groups.next().filter(|(_, summary)| summary.is_power_of_two())?;
        let block = group * 64 + summary.trailing_zeros() as usize;
        let rules = self.blocks.get(block).filter(|rules| rules.is_power_of_two())?;
        groups.next().is_none().then_some(block * 64 + rules.trailing_zeros() as usize)
    }

    /// Whether the set is empty.
    fn is_empty(&self) -> bool {
        self.summary.iter().all(|summary| *summary == 0)
    }

    fn has(&self, rule: usize) -> bool {
        self.blocks.get(rule / 64).is_some_and(|block| block >> (rule % 64) & 1 != 0)
    }

    /// The summary followed by the non-zero blocks.
    fn packed(&self) -> Vec<u64> {
        let mut packed = self.summary.clone();
        for (group, &summary) in self.summary.iter().enumerate() {
            let mut bits = summary;
            while bits != 0 {
                packed.extend(self.blocks.get(group * 64 + bits.trailing_zeros() as usize));
                bits &= bits - 1;
            }
        }
        packed
    }
}

impl<K: Copy + Ord + TryFrom<u128>> Dimension<K> {
    /// Builds the dimension from each rule's ranges, which do not overlap; `None` is all numbers. With `singles`, an
    /// interval may store its single rule in place of a set.
    fn new(rules: &[Option<Ranges>], singles: bool) -> Dimension<K> {
        let mut common = Bitmap::new(rules.len());
        // The numbers at which rules begin or stop to match.
        let mut changes: Vec<(K, bool, usize)> = Vec::new();
        for (rule, ranges) in rules.iter().enumerate() {
            match ranges {
                None => common.set(rule, true),
                Some(ranges) => {
                    for &(first, last) in ranges {
                        changes.extend(K::try_from(first).ok().map(|first| (first, true, rule)));
                        // A range up to the greatest number has no end.
                        let after = last.checked_add(1).and_then(|after| K::try_from(after).ok());
                        changes.extend(after.map(|after| (after, false, rule)));
                    }
                }
            }
        }
        // At one number, ends sort before beginnings: a rule may have adjacent ranges.
        changes.sort_unstable();
        let singles = singles && common.is_empty();
        let mut intervals = Intervals { all: Vec::new(), known: HashMap::new() };
        let mut dimension = Dimension { levels: Vec::new(), leaves: Vec::new(), data: Vec::new(), common, singles };
        let mut now = Bitmap::new(rules.len());
        dimension.interval(K::try_from(0).ok(), &now, &mut intervals);
        let mut rest = changes.as_slice();
        while let Some(&(start, ..)) = rest.first() {
            let here = rest.iter().take_while(|change| change.0 == start).count();
            let (changes, after) = rest.split_at(here);
            for &(_, begins, rule) in changes {
                now.set(rule, begins);
            }
            dimension.interval(Some(start), &now, &mut intervals);
            rest = after;
        }
        // No number is greater; for an equal one, the padding leads to the same set.
        let greatest = K::try_from(u128::MAX >> (128 - 8 * size_of::<K>())).ok();
        dimension.leaves.extend(intervals.all.chunks(LEAF_SIZE).filter_map(|some| {
            let &(last, set) = some.last()?;
            let mut leaf = Leaf { starts: [greatest.unwrap_or(last); LEAF_SIZE], sets: [set; LEAF_SIZE] };
            for ((start, set), from) in leaf.starts.iter_mut().zip(&mut leaf.sets).zip(some) {
                (*start, *set) = *from;
            }
            Some(leaf)
        }));
        let mut starts: Vec<K> = intervals.all.iter().step_by(LEAF_SIZE).map(|(start, _)| *start).collect();
        while starts.len() > 1 {
            let above = starts.iter().copied().step_by(FANOUT).collect();
            dimension.levels.push(std::mem::replace(&mut starts, above));
        }
        dimension
    }

    /// Adds an interval that the rules in `now` match.
    fn interval(&mut self, start: Option<K>, now: &Bitmap, intervals: &mut Intervals<K>) {
        let Some(start) = start else { return };
        let only = now.only().filter(|_| self.singles);
        let set = match only {
            // There are at most 65,535.
            Some(rule) => SINGLE_RULE | rule as u32,
            None => *intervals.known.entry(now.packed()).or_insert_with_key(|packed| {
                let place = self.data.len();
                self.data.extend(packed);
                // Far below 2^31, because the number of ranges is limited.
                place as u32
            }),
        };
        intervals.all.pop_if(|last| last.0 == start);
        if intervals.all.last().is_none_or(|last| last.1 != set) {
            intervals.all.push((start, set));
        }
    }

    /// The offset in `data` of the set of the rules that match a number, or its single rule. Equal sets have one place.
    fn set(&self, number: K) -> Option<u32> {
        let mut place = 0;
        for level in self.levels.iter().rev() {
            let first = place * FANOUT;
            let some = level.get(first..level.len().min(first + FANOUT)).unwrap_or_default();
            // The first one is never greater than the number: the level above selected it, or it is 0.
            place = first + last_not_greater(some, number);
        }
        let leaf = self.leaves.get(place)?;
        leaf.sets.get(last_not_greater(&leaf.starts, number)).copied()
    }

    /// The set of the rules that match a number.
    fn find(&self, number: K) -> RuleSet<'_> {
        let none = RuleSet { only: None, common: &self.common, summary: &[], blocks: &[] };
        let Some(set) = self.set(number) else { return none };
        if set & SINGLE_RULE != 0 {
            return RuleSet { only: Some((set & !SINGLE_RULE) as usize), ..none };
        }
        let data = self.data.get(set as usize..).unwrap_or_default();
        let (summary, blocks) = data.split_at_checked(self.common.summary.len()).unwrap_or_default();
        RuleSet { summary, blocks, ..none }
    }
}

/// The index of the last start that is not greater than the number.
fn last_not_greater<K: Copy + Ord>(some: &[K], number: K) -> usize {
    let count: usize = some.iter().map(|start| usize::from(*start <= number)).sum();
    count.saturating_sub(1)
}

/// The rules that match one field of a connection.
struct RuleSet<'a> {
    /// The single rule; the other fields are empty then.
    only: Option<usize>,
    common: &'a Bitmap,
    summary: &'a [u64],
    /// The non-zero blocks, from the current group on.
    blocks: &'a [u64],
}

impl RuleSet<'_> {
    fn has(&self, rule: usize) -> bool {
        if self.only == Some(rule) || self.common.has(rule) {
            return true;
        }
        let (block, bit) = (rule / 64, rule % 64);
        // Called before the first `next_group`, so the blocks of earlier groups are still there.
        let earlier: u32 = self.summary.iter().take(block / 64).map(|summary| summary.count_ones()).sum();
        let own = self.own(block / 64);
        let before = earlier + (own & !(u64::MAX << (block % 64))).count_ones();
        own >> (block % 64) & 1 != 0 && self.blocks.get(before as usize).is_some_and(|rules| rules >> bit & 1 != 0)
    }

    /// The non-zero blocks of a group, as a bit mask.
    fn summary(&self, group: usize) -> u64 {
        self.own(group) | self.common.summary.get(group).copied().unwrap_or_default()
    }

    fn own(&self, group: usize) -> u64 {
        self.summary.get(group).copied().unwrap_or_default()
    }

    /// A block of the current group.
    fn block(&self, group: usize, bit: u32) -> u64 {
        let common = self.common.blocks.get(group * 64 + bit as usize).copied().unwrap_or_default();
        let own = self.own(group);
        if own >> bit & 1 == 0 {
            return common;
        }
        let before = (own & !(u64::MAX << bit)).count_ones() as usize;
        common | self.blocks.get(before).copied().unwrap_or_default()
    }

    /// Moves on to the next group.
    fn next_group(&mut self, group: usize) {
        self.blocks = self.blocks.get(self.own(group).count_ones() as usize..).unwrap_or_default();
    }
}
