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

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::model::{Action, Decision, Default, Policy};
use super::ranges::{self, Addresses, Ranges, service_key};
use crate::addr::Ip;
use crate::id::{RuleId, ZoneId};
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
    /// What each rule does, close together: the search ends here.
    actions: Vec<(Action, bool)>,
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
            from: Dimension::new(&each(&|rule| zones_of(&rule.from))),
            to: Dimension::new(&each(&|rule| zones_of(&rule.to))),
            source_v4: Dimension::new(&each(&|rule| family(Addresses::of_list(&rule.source, &sets), true))),
            source_v6: Dimension::new(&each(&|rule| family(Addresses::of_list(&rule.source, &sets), false))),
            destination_v4: Dimension::new(&each(&|rule| family(Addresses::of_list(&rule.destination, &sets), true))),
            destination_v6: Dimension::new(&each(&|rule| family(Addresses::of_list(&rule.destination, &sets), false))),
            service: Dimension::new(&each(&|rule| {
                rule.services.items().map(|items| ranges::services_of(items, &services))
            })),
            groups: count.div_ceil(64 * 64),
            default: self.default,
            default_text: self.default.to_string(),
            actions: self.rules.iter().map(|rule| (rule.action, rule.log)).collect(),
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
            if let Some(&(action, log)) = self.actions.get(index) {
                decision = Decision { action, rule: id(index), log };
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
        let service = self.service.find(service_key(tuple.protocol, tuple.dst_port));
        let mut sets = [source, destination, service, self.to.find(to.0), self.from.find(from.0)];
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

/// How many intervals one step of a search compares: for IPv4 a cache line.
const FANOUT: usize = 16;

/// One coordinate: for each number the set of the rules that match it.
#[derive(Debug)]
struct Dimension<K> {
    /// Where intervals begin, the first one at 0; above it every sixteenth of them, and so on until there are at most
    /// sixteen. Searching costs one cache line a level, and no jump that could be foretold wrongly.
    levels: Vec<Vec<K>>,
    /// Where in `data` the set of each interval is.
    sets: Vec<u32>,
    /// The sets: of each its summary (a number for each group of blocks), then its blocks that are not zero.
    data: Vec<u64>,
    /// Rules that match every number.
    common: Bitmap,
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
    /// Built from each rule's numbers, which are sorted or few and do not overlap; `None` are all.
    fn new(rules: &[Option<Ranges>]) -> Dimension<K> {
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
        let mut starts = Vec::new();
        let mut dimension = Dimension { levels: Vec::new(), sets: Vec::new(), data: Vec::new(), common };
        let mut known = HashMap::new();
        let mut now = Bitmap::new(rules.len());
        dimension.interval(K::try_from(0).ok(), &now, &mut starts, &mut known);
        let mut rest = changes.as_slice();
        while let Some(&(start, ..)) = rest.first() {
            let here = rest.iter().take_while(|change| change.0 == start).count();
            let (changes, after) = rest.split_at(here);
            for &(_, begins, rule) in changes {
                now.set(rule, begins);
            }
            dimension.interval(Some(start), &now, &mut starts, &mut known);
            rest = after;
        }
        while starts.len() > FANOUT {
            let above = starts.iter().copied().step_by(FANOUT).collect();
            dimension.levels.push(std::mem::replace(&mut starts, above));
        }
        dimension.levels.push(starts);
        dimension
    }

    /// Adds an interval that is matched by the rules in `now`.
    fn interval(&mut self, start: Option<K>, now: &Bitmap, starts: &mut Vec<K>, known: &mut HashMap<Vec<u64>, u32>) {
        let Some(start) = start else { return };
        let set = *known.entry(now.packed()).or_insert_with_key(|packed| {
            let place = self.data.len();
            self.data.extend(packed);
            // Far fewer than 2^32: the rules' ranges are bounded.
            place as u32
        });
        if starts.last() == Some(&start) {
            starts.pop();
            self.sets.pop();
        }
        if self.sets.last() != Some(&set) {
            starts.push(start);
            self.sets.push(set);
        }
    }

    /// The set of the rules that match a number.
    fn find(&self, number: K) -> Set<'_> {
        let mut interval = 0;
        for level in self.levels.iter().rev() {
            let first = interval * FANOUT;
            let some = level.get(first..level.len().min(first + FANOUT)).unwrap_or_default();
            // The first one is never greater than the number: it was found in the level above, or is 0.
            let not_greater: usize = some.iter().map(|start| usize::from(*start <= number)).sum();
            interval = first + not_greater.saturating_sub(1);
        }
        let place = self.sets.get(interval).map_or(0, |&place| place as usize);
        let set = self.data.get(place..).unwrap_or_default();
        let (summary, blocks) = set.split_at_checked(self.common.summary.len()).unwrap_or_default();
        Set { common: &self.common, summary, blocks }
    }
}

/// The rules that match one coordinate of a connection.
struct Set<'a> {
    common: &'a Bitmap,
    summary: &'a [u64],
    /// Blocks from the current group on, those that are zero left out.
    blocks: &'a [u64],
}

impl Set<'_> {
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
