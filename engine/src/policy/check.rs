//! The checks that turn statements into a policy: names, address families, limits.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::ops::Range;

use miette::NamedSource;

use super::cost::{Expansion, MAX_SET_WORDS, MAX_STEPS, Member};
use super::error::{PolicyError, Problem, similar};
use super::foreign::instead_of;
use super::model::{Action, Address, Default, List, Named, Policy, Rule, Service};
use super::ranges::{self, Addresses, Ranges};
use super::read::{Draft, DraftNamed, DraftRule, Located, read};
use super::{MAX_RANGES, MAX_RULES, MAX_TEXT, MAX_ZONES};
use crate::level::Level;
use crate::timeouts::{Timeout, Timeouts};
use crate::tuple::Protocol;

/// Maximum number of errors reported; further ones are usually of the same kind.
const MAX_PROBLEMS: usize = 1000;

impl Policy {
    /// Parses and checks a policy; `name` is the file name shown in errors.
    ///
    /// # Errors
    /// All errors in the text, up to the first thousand.
    pub fn parse(name: &str, text: &str) -> Result<Policy, PolicyError> {
        Policy::parse_at(Level::HIGHEST, name, text)
    }

    /// The same with the language of a level: what later ones add is unknown, and so an error.
    ///
    /// # Errors
    /// As [`Policy::parse`].
    pub fn parse_at(level: Level, name: &str, text: &str) -> Result<Policy, PolicyError> {
        let mut problems = Vec::new();
        if text.len() > MAX_TEXT {
            let message = format!("the policy has {} bytes; the maximum is {MAX_TEXT}", text.len());
            problems.push(Problem::new(0..0, message, "too long"));
            // The error does not keep the whole text, which may have any size.
            let first = text.lines().next().unwrap_or_default().chars().take(200).collect();
            return Err(PolicyError { source_code: NamedSource::new(name, first), problems });
        }
        let draft = read(level, text, &mut problems);
        let policy = Checker { lines: text.match_indices('\n').map(|(at, _)| at).collect(), problems: &mut problems }
            .policy(draft);
        if problems.is_empty() {
            return Ok(policy);
        }
        problems.sort_by_key(|problem| problem.span.offset());
        if let Some(more) = problems.len().checked_sub(MAX_PROBLEMS).filter(|&more| more > 0) {
            problems.truncate(MAX_PROBLEMS);
            let end = text.len();
            problems.push(Problem::new(end..end, format!("{more} further errors are not shown"), "up to here"));
        }
        Err(PolicyError { source_code: NamedSource::new(name, text.to_owned()), problems })
    }

    /// The lowest level whose language has all that a text uses; `None` if it is valid at no level that this program knows.
    #[must_use]
    pub fn needed_level(text: &str) -> Option<Level> {
        let known = (Level::LOWEST.0..=Level::HIGHEST.0).map(Level);
        known.into_iter().find(|level| Policy::parse_at(*level, "policy", text).is_ok())
    }
}

struct Checker<'a> {
    /// The offsets of the line breaks.
    lines: Vec<usize>,
    problems: &'a mut Vec<Problem>,
}

impl Checker<'_> {
    fn policy(&mut self, draft: Draft) -> Policy {
        let Draft { zones, sets, services, timeouts, defaults, ip_options, rules } = draft;
        self.unique("zone", zones.iter());
        self.unique("set", sets.iter().map(|set| &set.name));
        self.unique("service", services.iter().map(|service| &service.name));
        self.unique("rule", rules.iter().map(|rule| &rule.name));
        self.limit("zones", MAX_ZONES, zones.get(MAX_ZONES));
        self.limit("rules", MAX_RULES, rules.get(MAX_RULES).map(|rule| &rule.name));
        for again in defaults.iter().skip(1) {
            let first = defaults.first().map_or(0, |first| self.line(first.span.start));
            let problem = Problem::new(again.span.clone(), "a second default", "remove this line");
            self.problems.push(problem.help(format!("the first one is in line {first}")));
        }
        self.unique_in_list(&ip_options);
        let zones: Vec<String> = zones.into_iter().map(|zone| zone.value).collect();
        let default = defaults.first().map_or(Default { action: Action::Drop, log: false }, |first| first.value);
        self.members("set", &sets, |address| match address {
            Address::Set(name) => Some(name),
            Address::Prefix(_) => None,
        });
        self.members("service", &services, |service| match service {
            Service::Named(name) => Some(name),
            Service::Protocol(_) | Service::Ports(..) => None,
        });
        let places: Vec<Range<usize>> = sets.iter().map(|set| set.name.span.clone()).collect();
        let service_places: Vec<Range<usize>> = services.iter().map(|service| service.name.span.clone()).collect();
        let rule_places: Vec<Range<usize>> = rules.iter().map(|rule| rule.name.span.clone()).collect();
        let (sets, services) =
            (sets.into_iter().map(into_named).collect(), services.into_iter().map(into_named).collect());
        let timeouts = self.timeouts(&timeouts);
        let ip_options = ip_options.into_iter().map(|option| option.value).collect();
        let mut policy = Policy { zones, sets, services, timeouts, default, ip_options, rules: Vec::new() };
        let rules = self.rules(rules, &policy, (&places, &service_places));
        policy.rules = rules;
        if self.problems.is_empty() {
            self.cost(&policy, &rule_places);
            self.canonical(&policy);
        }
        policy
    }

    /// Reports a policy that takes too much to compile.
    fn cost(&mut self, policy: &Policy, places: &[Range<usize>]) {
        let cost = policy.cost();
        let (what, max) = match (cost.set_words > MAX_SET_WORDS, cost.steps > MAX_STEPS) {
            (true, _) => ("words for its sets of rules", MAX_SET_WORDS),
            (false, true) => ("steps", MAX_STEPS),
            (false, false) => return,
        };
        let (rule, share) = cost.most.unwrap_or_default();
        let place = places.get(rule).cloned().unwrap_or_default();
        let name = policy.rules.get(rule).map_or("", |rule| rule.name.as_str());
        let message = format!("compiling this policy takes more than {max} {what}: its rules overlap too much");
        let label = format!("`{name}` costs most: it is in {share} intervals between the ends of other rules");
        let help = "a rule costs little if its ranges hold few ends of other rules' ranges, or if it says `any`";
        self.problems.push(Problem::new(place, message, label).help(help));
    }

    /// Reports a policy whose canonical form is longer than a policy can be: what `show` prints can be applied.
    fn canonical(&mut self, policy: &Policy) {
        let mut length = Length(0);
        // It never fails.
        let _ = fmt::write(&mut length, format_args!("{policy}"));
        if length.0 > MAX_TEXT {
            let message = format!("the canonical form of the policy has {} bytes; the maximum is {MAX_TEXT}", length.0);
            let problem = Problem::new(0..0, message, "too long in canonical form");
            self.problems.push(problem.help("`any` and sets make rules short"));
        }
    }

    /// Reports ranges beyond the limit, at the one that has most of them.
    fn too_many_ranges(&mut self, of: &str, total: u64, (place, most): (Range<usize>, u64)) {
        let message = format!("the {of} have {total} ranges in all; a policy can have {MAX_RANGES}");
        let problem = Problem::new(place, message, format!("this one has {most}, the most"));
        self.problems.push(problem.help("the sets and services in it count with all their members"));
    }

    /// Returns the timeouts and reports those that are set twice.
    fn timeouts(&mut self, set: &[Located<(Timeout, u32)>]) -> Timeouts {
        let mut timeouts = Timeouts::DEFAULT;
        let mut seen: HashMap<Timeout, usize> = HashMap::new();
        for Located { value: (timeout, seconds), span } in set {
            timeouts.set(*timeout, *seconds);
            if let Some(first) = seen.get(timeout) {
                let message = format!("the timeout `{}` is set twice", timeout.name());
                let help = format!("the first one is in line {}", self.line(*first));
                self.problems.push(Problem::new(span.clone(), message, "the second one").help(help));
            } else {
                seen.insert(*timeout, span.start);
            }
        }
        timeouts
    }

    /// Reports names that are declared twice.
    fn unique<'n>(&mut self, what: &str, names: impl Iterator<Item = &'n Located<String>>) {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for name in names.filter(|name| !name.value.is_empty()) {
            match seen.get(name.value.as_str()) {
                None => {
                    seen.insert(&name.value, name.span.start);
                }
                Some(&first) => {
                    let message = format!("there are two {what}s named `{}`", name.value);
                    let help = format!("the first one is in line {}", self.line(first));
                    self.problems.push(Problem::new(name.span.clone(), message, "the second one").help(help));
                }
            }
        }
    }

    /// Reports the first item beyond a limit.
    fn limit(&mut self, what: &str, max: usize, beyond: Option<&Located<String>>) {
        if let Some(beyond) = beyond {
            let message = format!("more than {max} {what}");
            self.problems.push(Problem::new(beyond.span.clone(), message, "one too many"));
        }
    }

    /// Reports members that are not declared earlier. Sets and services refer only to earlier ones, so there are no cycles.
    fn members<T>(&mut self, what: &str, all: &[DraftNamed<T>], name_of: impl Fn(&T) -> Option<&String>) {
        let mut index: HashMap<&str, usize> = HashMap::with_capacity(all.len());
        for (at, named) in all.iter().enumerate() {
            index.entry(&named.name.value).or_insert(at);
        }
        for (at, named) in all.iter().enumerate() {
            for member in &named.members {
                let Some(name) = name_of(&member.value) else { continue };
                match index.get(name.as_str()) {
                    Some(&before) if before < at => {}
                    Some(_) => {
                        let message = format!("the {what} `{name}` is declared below");
                        let help = format!("a {what} can refer only to {what}s above it: move `{name}` up");
                        self.problems.push(Problem::new(member.span.clone(), message, "not yet known here").help(help));
                    }
                    None => self.unknown(what, name, &member.span, all.iter().map(|named| named.name.value.as_str())),
                }
            }
        }
    }

    fn unknown<'n>(&mut self, what: &str, name: &str, span: &Range<usize>, known: impl Iterator<Item = &'n str>) {
        let sign = if what == "set" { "@" } else { "" };
        let problem = Problem::new(span.clone(), format!("there is no {what} named `{name}`"), "not declared");
        // The search takes time, and errors beyond the limit are not shown.
        let meant = if self.problems.len() < MAX_PROBLEMS { similar(name, known) } else { None };
        let help = match (meant, what) {
            (Some(meant), _) => format!("did you mean {sign}{meant}?"),
            (None, "zone") => format!("declare it: zone {name}"),
            (None, "set") => format!("declare it: set {name} = ADDRESS, …"),
            (None, _) => match instead_of(name) {
                Some(instead) => instead.to_owned(),
                None => format!("declare it: service {name} = tcp/PORT, …"),
            },
        };
        self.problems.push(problem.help(help));
    }

    fn rules(
        &mut self,
        drafts: Vec<DraftRule>,
        policy: &Policy,
        (set_places, service_places): (&[Range<usize>], &[Range<usize>]),
    ) -> Vec<Rule> {
        let Some(set_sizes) = self.sizes("sets", &policy.sets, set_places) else { return Vec::new() };
        let Some(service_sizes) = self.sizes("services", &policy.services, service_places) else { return Vec::new() };
        let (sets, services) = (ranges::sets(&policy.sets), ranges::services(&policy.services));
        let zones: HashSet<&str> = policy.zones.iter().map(String::as_str).collect();
        let (mut total, mut most) = (0_u64, (0..0, 0));
        let mut rules = Vec::with_capacity(drafts.len());
        for draft in drafts {
            for zone in [&draft.from, &draft.to].into_iter().flatten().flatten() {
                if !zones.contains(zone.value.as_str()) {
                    self.unknown("zone", &zone.value, &zone.span, policy.zones.iter().map(String::as_str));
                }
            }
            for list in [&draft.from, &draft.to].into_iter().flatten() {
                self.unique_in_list(list);
            }
            for address in [&draft.source.value, &draft.destination.value].into_iter().flatten().flatten() {
                if let Address::Set(name) = &address.value
                    && !sets.contains_key(name.as_str())
                {
                    let known = policy.sets.iter().map(|set| set.name.as_str());
                    self.unknown("set", name, &address.span, known);
                }
            }
            for service in draft.services.iter().flatten() {
                if let Service::Named(name) = &service.value
                    && !services.contains_key(name.as_str())
                {
                    let known = policy.services.iter().map(|service| service.name.as_str());
                    self.unknown("service", name, &service.span, known);
                }
            }
            let places = [draft.source.span.clone(), draft.destination.span.clone(), draft.name.span.clone()];
            let DraftRule { action, name, from, to, source, destination, services: list, log } = draft;
            let rule = Rule {
                action,
                name: name.value,
                from: into_list(from),
                to: into_list(to),
                source: into_list(source.value),
                destination: into_list(destination.value),
                services: into_list(list),
                log,
            };
            let addresses = set_sizes.count_list(&rule.source).saturating_add(set_sizes.count_list(&rule.destination));
            let ranges = addresses.saturating_add(service_sizes.count_list(&rule.services));
            total = total.saturating_add(ranges);
            if ranges > most.1 {
                most = (name.span, ranges);
            }
            // Beyond the limit nothing is expanded any longer.
            if total <= MAX_RANGES as u64 {
                self.families(&rule, &sets, &services, &places);
            }
            rules.push(rule);
        }
        if total > MAX_RANGES as u64 {
            self.too_many_ranges("rules", total, most);
        }
        rules
    }

    /// Returns how many ranges each set or service has, unless they exceed the limit in all.
    fn sizes<'p, T: Member>(
        &mut self,
        what: &str,
        all: &'p [Named<T>],
        places: &[Range<usize>],
    ) -> Option<Expansion<'p>> {
        let mut sizes = Expansion::default();
        let (mut total, mut most) = (0_u64, (0..0, 0));
        for (named, place) in all.iter().zip(places) {
            let size = sizes.add(named);
            total = total.saturating_add(size);
            if size > most.1 {
                most = (place.clone(), size);
            }
        }
        if total > MAX_RANGES as u64 {
            self.too_many_ranges(what, total, most);
            return None;
        }
        Some(sizes)
    }

    /// Reports duplicates in one list.
    fn unique_in_list<T: Eq + Hash + fmt::Display>(&mut self, list: &[Located<T>]) {
        let mut seen = HashSet::new();
        for item in list.iter().filter(|item| !seen.insert(&item.value)) {
            let message = format!("`{}` is duplicated in this list", item.value);
            self.problems.push(Problem::new(item.span.clone(), message, "the second one"));
        }
    }

    /// Reports a rule that matches no packet because it mixes address families.
    fn families(
        &mut self,
        rule: &Rule,
        sets: &HashMap<&str, Addresses>,
        services: &HashMap<&str, Ranges>,
        [source, destination, name]: &[Range<usize>; 3],
    ) {
        let from = Addresses::resolve_list(&rule.source, sets);
        let to = Addresses::resolve_list(&rule.destination, sets);
        let services = rule.services.items().map(|items| ranges::resolve_services(items, services));
        let (from, to, what) =
            (Families::of(from.as_ref()), Families::of(to.as_ref()), Families::of_services(services.as_deref()));
        // A part without a family is invalid, and already reported.
        if [from, to, what].iter().any(|part| !part.v4 && !part.v6) {
            return;
        }
        let addresses = from.and(to);
        if !addresses.v4 && !addresses.v6 {
            let message =
                format!("the source is {} and the destination {}: no packet has both", from.name(), to.name());
            let span = source.start..destination.end;
            let problem = Problem::new(span, message, "mixed families");
            self.problems.push(problem.help("write one rule for each family, or sets with addresses of both"));
        } else if !addresses.and(what).v4 && !addresses.and(what).v6 {
            let (wrong, right) = if what.v4 { ("icmp", "icmp6") } else { ("icmp6", "icmp") };
            let message = format!("the addresses are {}, and {wrong} is not", addresses.name());
            let problem = Problem::new(name.clone(), message, "never matches");
            self.problems.push(problem.help(format!("use {right}/echo")));
        }
    }

    /// The line number, from 1, of an offset.
    fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|&end| end < at) + 1
    }
}

/// Counts the bytes that are written to it.
struct Length(usize);

impl fmt::Write for Length {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

/// The address families that a part of a rule can match.
#[derive(Clone, Copy)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    fn of(addresses: Option<&Addresses>) -> Families {
        match addresses {
            None => Families { v4: true, v6: true },
            Some(addresses) => Families { v4: !addresses.v4.is_empty(), v6: !addresses.v6.is_empty() },
        }
    }

    fn of_services(services: Option<&[(u128, u128)]>) -> Families {
        let only = |protocol: Protocol| {
            let (first, last) =
                (ranges::service_key(protocol, 0).into(), ranges::service_key(protocol, u16::MAX).into());
            move |range: &(u128, u128)| range.0 >= first && range.1 <= last
        };
        match services {
            None => Families { v4: true, v6: true },
            Some(services) => Families {
                v4: !services.iter().all(only(Protocol::ICMPV6)),
                v6: !services.iter().all(only(Protocol::ICMP)),
            },
        }
    }

    fn and(self, other: Families) -> Families {
        Families { v4: self.v4 && other.v4, v6: self.v6 && other.v6 }
    }

    fn name(self) -> &'static str {
        if self.v4 { "IPv4" } else { "IPv6" }
    }
}

fn into_named<T>(draft: DraftNamed<T>) -> Named<T> {
    Named { name: draft.name.value, members: draft.members.into_iter().map(|member| member.value).collect() }
}

fn into_list<T>(list: Option<Vec<Located<T>>>) -> List<T> {
    list.map_or(List::ANY, |items| List::Of(items.into_iter().map(|item| item.value).collect()))
}
