//! The decision for a new connection, at a cost that hardly depends on the number of rules.
//!
//! A connection has five coordinates: the zone that it comes from, the zone that it goes to, source, destination, and
//! service (protocol and destination port). In each coordinate the boundaries of all rules cut the numbers into
//! intervals; all numbers of an interval are matched by the same rules. So each [`Dimension`] is a sorted table of
//! intervals, found by a search of a few steps, and with each interval a set of rules; the rules that match the connection are
//! the intersection of five sets, and the first of them decides.
//!
//! A set of rules is a bitmap in blocks of 64 rules. Rules that say `any` in a coordinate are in all of its sets: they are
//! kept once (`common`). The others are few in each set, of which only the blocks that are not zero are kept, and a
//! *summary* with one bit a block that says which ones these are. Intersecting the summaries first leaves only the blocks
//! in which all five coordinates have some rule: one or two, in practice, of the 157 that 10,000 rules have. Intervals with
//! equal sets share one.
//!
//! What a lookup costs with many rules is not steps but memory that is not in the cache. So an interval that one rule alone
//! matches, as most do where rules name single servers or networks, names this rule in place of a set; then only the
//! other address and the rule's own [`Row`] are looked at: some three cache lines in all that others do not keep warm.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::model::{Action, Decision, Default, Policy};
use super::ranges::{self, Addresses, Ranges, service_key};
use crate::addr::Ip;
use crate::id::{RuleId, ZoneId};
use crate::parse::IpOptions;
use crate::timeouts::Timeouts;
use crate::tuple::Tuple;

/// A policy ready to decide.
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
    /// What each rule does, and what of it is quickly compared: the search ends here.
    rows: Vec<Row>,
    /// Each rule's name and text.
    texts: Vec<(String, String)>,
}

impl Policy {
    /// Makes it ready to decide; `zone` gives the number of each declared zone.
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
            source_v4: Dimension::new(&each(&|rule| family(Addresses::of_list(&rule.source, &sets), true)), true),
            source_v6: Dimension::new(&each(&|rule| family(Addresses::of_list(&rule.source, &sets), false)), true),
            destination_v4: Dimension::new(
                &each(&|rule| family(Addresses::of_list(&rule.destination, &sets), true)),
                true,
            ),
            destination_v6: Dimension::new(
                &each(&|rule| family(Addresses::of_list(&rule.destination, &sets), false)),
                true,
            ),
            service: Dimension::new(
                &each(&|rule| rule.services.items().map(|items| ranges::services_of(items, &services))),
                false,
            ),
            groups: count.div_ceil(64 * 64),
            default: self.default,
            default_text: self.default.to_string(),
            ip_options: self.ip_options.iter().copied().collect(),
            timeouts: self.timeouts,
            rows: (self.rules.iter())
                .map(|rule| {
                    let services = rule.services.items().map(|items| ranges::services_of(items, &services));
                    Row::new(rule, zones_of(&rule.from), zones_of(&rule.to), services)
                })
                .collect(),
            texts: self.rules.iter().map(|rule| (rule.name.clone(), rule.to_string())).collect(),
        }
    }
}

impl Compiled {
    /// The decision for a session that begins with `tuple`, from one zone to another. First match wins. For ICMP echo
    /// the request's tuple counts.
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

    /// The rules that match, in order, until `each` has enough.
    fn matching(&self, from: ZoneId, to: ZoneId, tuple: &Tuple, mut each: impl FnMut(usize) -> ControlFlow<()>) {
        let (source, destination) = match (tuple.src, tuple.dst) {
            (Ip::V4(src), Ip::V4(dst)) => {
                (self.source_v4.find(u32::from_be_bytes(src)), self.destination_v4.find(u32::from_be_bytes(dst)))
            }
            (Ip::V6(src), Ip::V6(dst)) => {
                (self.source_v6.find(u128::from_be_bytes(src)), self.destination_v6.find(u128::from_be_bytes(dst)))
            }
            // No packet is of both families, and so no rule about one.
            _ => return,
        };
        let key = service_key(tuple.protocol, tuple.dst_port);
        if let Some(rule) = source.only.or(destination.only) {
            let Some(row) = self.rows.get(rule) else { return };
            let rest = || match &row.quick {
                Some(quick) => quick.matches(from, to, key),
                None => {
                    [self.service.find(key), self.to.find(to.0), self.from.find(from.0)].iter().all(|s| s.has(rule))
                }
            };
            if source.has(rule) && destination.has(rule) && rest() {
                // The last one in any case: no other can match.
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
            sets.iter_mut().for_each(|set| set.pass(group));
        }
    }

    /// The rules, by index from 0, that match a connection, as far as they come before one.
    pub(super) fn before(&self, index: usize, from: ZoneId, to: ZoneId, tuple: &Tuple, found: &mut Vec<usize>) {
        self.matching(from, to, tuple, |earlier| {
            if earlier >= index {
                return ControlFlow::Break(());
            }
            found.push(earlier);
            ControlFlow::Continue(())
        });
    }

    /// The IPv4 options that it lets through.
    #[must_use]
    pub fn ip_options(&self) -> IpOptions {
        self.ip_options
    }

    /// How long sessions may be idle.
    #[must_use]
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// A rule's text as the policy has it, for `session show` and the log. Rule 0 is the default.
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

/// The index of a rule; that of none, for the default.
fn index(rule: RuleId) -> usize {
    rule.0.wrapping_sub(1) as usize
}

/// The id of the rule at an index.
pub(super) fn id(index: usize) -> RuleId {
    // There are at most 65,535.
    RuleId(u32::try_from(index + 1).unwrap_or(u32::MAX))
}

/// What a rule does.
#[derive(Debug)]
struct Row {
    action: Action,
    log: bool,
    /// Its zones and service, if they fit.
    quick: Option<Quick>,
}

/// A rule's zones and service, in half a cache line.
#[derive(Debug)]
struct Quick {
    from: Zones,
    to: Zones,
    /// First and last.
    service: (u32, u32),
}

/// A list of zones with numbers below 64, or any.
#[derive(Clone, Copy, Debug)]
enum Zones {
    Any,
    These(u64),
}

impl Zones {
    fn new(ranges: Option<Ranges>) -> Option<Zones> {
        let Some(ranges) = ranges else { return Some(Zones::Any) };
        let mut these = 0;
        for (zone, _) in ranges {
            these |= 1_u64.checked_shl(u32::try_from(zone).ok()?)?;
        }
        Some(Zones::These(these))
    }

    fn has(self, zone: ZoneId) -> bool {
        match self {
            Zones::Any => true,
            Zones::These(these) => these.checked_shr(zone.0.into()).is_some_and(|bits| bits & 1 != 0),
        }
    }
}

impl Row {
    fn new(rule: &super::Rule, from: Option<Ranges>, to: Option<Ranges>, services: Option<Ranges>) -> Row {
        let service = match services.as_deref() {
            None => Some((0, u32::MAX)),
            Some(&[(first, last)]) => u32::try_from(first).ok().zip(u32::try_from(last).ok()),
            Some(_) => None,
        };
        let quick = || Some(Quick { from: Zones::new(from)?, to: Zones::new(to)?, service: service? });
        Row { action: rule.action, log: rule.log, quick: quick() }
    }
}

impl Quick {
    fn matches(&self, from: ZoneId, to: ZoneId, service: u32) -> bool {
        let (first, last) = self.service;
        (first..=last).contains(&service) && self.from.has(from) && self.to.has(to)
    }
}

/// How many intervals one step of a search compares: for IPv4 a cache line.
const FANOUT: usize = 16;

/// How many the last step does: for IPv4 a cache line with what they lead to.
const LEAF: usize = 8;

/// Marks, in a leaf, a rule in place of a set.
const ONLY: u32 = 1 << 31;

/// Neighbouring intervals.
#[derive(Debug)]
#[repr(align(64))]
struct Leaf<K> {
    /// Where they begin. Behind the last one: the greatest number.
    starts: [K; LEAF],
    /// Where in `data` the set of each is, or the only rule that matches. Behind the last one: the same as of that.
    sets: [u32; LEAF],
}

/// One coordinate: for each number the set of the rules that match it.
#[derive(Debug)]
struct Dimension<K> {
    /// Where leaves begin, the first one at the least number; above it every sixteenth of them, and so on until there are at
    /// most sixteen. Searching costs one cache line a level, and no jump that could be foretold wrongly.
    levels: Vec<Vec<K>>,
    leaves: Vec<Leaf<K>>,
    /// The sets: of each its summary (a number for each group of blocks), then its blocks that are not zero.
    data: Vec<u64>,
    /// Rules that match every number.
    common: Bitmap,
    /// Do intervals name their only rule in place of a set?
    singles: bool,
}

/// Intervals while they are found: where each begins, and what it leads to.
#[derive(Default)]
struct Intervals<K> {
    all: Vec<(K, u32)>,
    known: HashMap<Vec<u64>, u32>,
}

/// A set of rules, whole, with its summary.
#[derive(Clone, Debug)]
struct Bitmap {
    blocks: Vec<u64>,
    summary: Vec<u64>,
}

impl Bitmap {
    /// An empty set with room for some rules.
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

    /// The only rule in it.
    fn only(&self) -> Option<usize> {
        let mut groups = self.summary.iter().enumerate().filter(|(_, summary)| **summary != 0);
        let (group, summary) = groups.next().filter(|(_, summary)| summary.is_power_of_two())?;
        let block = group * 64 + summary.trailing_zeros() as usize;
        let rules = self.blocks.get(block).filter(|rules| rules.is_power_of_two())?;
        groups.next().is_none().then_some(block * 64 + rules.trailing_zeros() as usize)
    }

    /// Is it empty?
    fn is_empty(&self) -> bool {
        self.summary.iter().all(|summary| *summary == 0)
    }

    fn has(&self, rule: usize) -> bool {
        self.blocks.get(rule / 64).is_some_and(|block| block >> (rule % 64) & 1 != 0)
    }

    /// The summary, and the blocks that are not zero.
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
    /// Built from each rule's numbers, which are sorted or few and do not overlap; `None` are all. With `singles`, an
    /// interval may name its only rule in place of a set.
    fn new(rules: &[Option<Ranges>], singles: bool) -> Dimension<K> {
        let mut common = Bitmap::new(rules.len());
        // Where rules begin and end to match.
        let mut changes: Vec<(K, bool, usize)> = Vec::new();
        for (rule, ranges) in rules.iter().enumerate() {
            match ranges {
                None => common.set(rule, true),
                Some(ranges) => {
                    for &(first, last) in ranges {
                        changes.extend(K::try_from(first).ok().map(|first| (first, true, rule)));
                        // After the last number of all there is nothing to end at.
                        let after = last.checked_add(1).and_then(|after| K::try_from(after).ok());
                        changes.extend(after.map(|after| (after, false, rule)));
                    }
                }
            }
        }
        // At one number, ends before beginnings: a rule may have adjacent ranges.
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
        // No number is greater; where one is equal, the padding leads to the same set.
        let greatest = K::try_from(u128::MAX >> (128 - 8 * size_of::<K>())).ok();
        dimension.leaves.extend(intervals.all.chunks(LEAF).filter_map(|some| {
            let &(last, set) = some.last()?;
            let mut leaf = Leaf { starts: [greatest.unwrap_or(last); LEAF], sets: [set; LEAF] };
            for ((start, set), from) in leaf.starts.iter_mut().zip(&mut leaf.sets).zip(some) {
                (*start, *set) = *from;
            }
            Some(leaf)
        }));
        let mut starts: Vec<K> = intervals.all.iter().step_by(LEAF).map(|(start, _)| *start).collect();
        while starts.len() > 1 {
            let above = starts.iter().copied().step_by(FANOUT).collect();
            dimension.levels.push(std::mem::replace(&mut starts, above));
        }
        dimension
    }

    /// Adds an interval that is matched by the rules in `now`.
    fn interval(&mut self, start: Option<K>, now: &Bitmap, intervals: &mut Intervals<K>) {
        let Some(start) = start else { return };
        let only = now.only().filter(|_| self.singles);
        let set = match only {
            // There are at most 65,535.
            Some(rule) => ONLY | rule as u32,
            None => *intervals.known.entry(now.packed()).or_insert_with_key(|packed| {
                let place = self.data.len();
                self.data.extend(packed);
                // Far fewer than 2^31: the rules' ranges are bounded.
                place as u32
            }),
        };
        intervals.all.pop_if(|last| last.0 == start);
        if intervals.all.last().is_none_or(|last| last.1 != set) {
            intervals.all.push((start, set));
        }
    }

    /// The set of the rules that match a number.
    fn find(&self, number: K) -> Set<'_> {
        let mut place = 0;
        for level in self.levels.iter().rev() {
            let first = place * FANOUT;
            let some = level.get(first..level.len().min(first + FANOUT)).unwrap_or_default();
            // The first one is never greater than the number: it was found in the level above, or is 0.
            place = first + not_greater(some, number);
        }
        let none = Set { only: None, common: &self.common, summary: &[], blocks: &[] };
        let Some(leaf) = self.leaves.get(place) else { return none };
        let Some(&set) = leaf.sets.get(not_greater(&leaf.starts, number)) else { return none };
        if set & ONLY != 0 {
            return Set { only: Some((set & !ONLY) as usize), ..none };
        }
        let data = self.data.get(set as usize..).unwrap_or_default();
        let (summary, blocks) = data.split_at_checked(self.common.summary.len()).unwrap_or_default();
        Set { summary, blocks, ..none }
    }
}

/// The index of the last number that is not greater.
fn not_greater<K: Copy + Ord>(some: &[K], number: K) -> usize {
    let count: usize = some.iter().map(|start| usize::from(*start <= number)).sum();
    count.saturating_sub(1)
}

/// The rules that match one coordinate of a connection.
struct Set<'a> {
    /// There is only this one. The rest is empty then.
    only: Option<usize>,
    common: &'a Bitmap,
    summary: &'a [u64],
    /// Blocks from the current group on, those that are zero left out.
    blocks: &'a [u64],
}

impl Set<'_> {
    fn has(&self, rule: usize) -> bool {
        if self.only == Some(rule) || self.common.has(rule) {
            return true;
        }
        let (block, bit) = (rule / 64, rule % 64);
        // Called before the first `pass`: blocks of earlier groups are still there.
        let earlier: u32 = self.summary.iter().take(block / 64).map(|summary| summary.count_ones()).sum();
        let own = self.own(block / 64);
        let before = earlier + (own & !(u64::MAX << (block % 64))).count_ones();
        own >> (block % 64) & 1 != 0 && self.blocks.get(before as usize).is_some_and(|rules| rules >> bit & 1 != 0)
    }

    /// Which blocks of a group are not zero.
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

    /// Goes on to the next group.
    fn pass(&mut self, group: usize) {
        self.blocks = self.blocks.get(self.own(group).count_ones() as usize..).unwrap_or_default();
    }
}
