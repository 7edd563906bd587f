//! The checks that turn statements into a policy: names, address families, limits.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::ops::Range;

use miette::NamedSource;

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
        let (sets, services) =
            (sets.into_iter().map(into_named).collect(), services.into_iter().map(into_named).collect());
        let timeouts = self.timeouts(&timeouts);
        let ip_options = ip_options.into_iter().map(|option| option.value).collect();
        let mut policy = Policy { zones, sets, services, timeouts, default, ip_options, rules: Vec::new() };
        let rules = self.rules(rules, &policy, &places);
        policy.rules = rules;
        policy
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

    fn rules(&mut self, drafts: Vec<DraftRule>, policy: &Policy, places: &[Range<usize>]) -> Vec<Rule> {
        let Some(sets) = self.sets(&policy.sets, places) else { return Vec::new() };
        let services = ranges::services(&policy.services);
        let zones: HashSet<&str> = policy.zones.iter().map(String::as_str).collect();
        let mut total = 0;
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
            let fits = total <= MAX_RANGES;
            total += self.families(&rule, &sets, &services, &places);
            if fits && total > MAX_RANGES {
                let message = format!("the rules up to here have more than {MAX_RANGES} address ranges in all");
                let problem = Problem::new(name.span, message, "one too many");
                self.problems.push(problem.help("the sets in the rules count with all their members"));
            }
            rules.push(rule);
        }
        rules
    }

    /// Returns the expanded sets, unless they exceed the limit.
    fn sets<'p>(&mut self, sets: &'p [Named<Address>], places: &[Range<usize>]) -> Option<HashMap<&'p str, Addresses>> {
        let mut all = HashMap::with_capacity(sets.len());
        let mut total = 0;
        for (set, place) in sets.iter().zip(places) {
            let addresses = Addresses::resolve(&set.members, &all);
            total += addresses.len();
            if total > MAX_RANGES {
                let message = format!("the sets up to here have more than {MAX_RANGES} address ranges in all");
                let problem = Problem::new(place.clone(), message, "one too many");
                self.problems.push(problem.help("a set in a set counts with all its members"));
                return None;
            }
            all.insert(set.name.as_str(), addresses);
        }
        Some(all)
    }

    /// Reports duplicates in one list.
    fn unique_in_list<T: Eq + Hash + fmt::Display>(&mut self, list: &[Located<T>]) {
        let mut seen = HashSet::new();
        for item in list.iter().filter(|item| !seen.insert(&item.value)) {
            let message = format!("`{}` is duplicated in this list", item.value);
            self.problems.push(Problem::new(item.span.clone(), message, "the second one"));
        }
    }

    /// Reports a rule that matches no packet because it mixes address families. Returns its number of address ranges.
    fn families(
        &mut self,
        rule: &Rule,
        sets: &HashMap<&str, Addresses>,
        services: &HashMap<&str, Ranges>,
        [source, destination, name]: &[Range<usize>; 3],
    ) -> usize {
        let from = Addresses::resolve_list(&rule.source, sets);
        let to = Addresses::resolve_list(&rule.destination, sets);
        let ranges = from.as_ref().map_or(0, Addresses::len) + to.as_ref().map_or(0, Addresses::len);
        let services = rule.services.items().map(|items| ranges::resolve_services(items, services));
        let (from, to, what) =
            (Families::of(from.as_ref()), Families::of(to.as_ref()), Families::of_services(services.as_deref()));
        // A part without a family is invalid, and already reported.
        if [from, to, what].iter().any(|part| !part.v4 && !part.v6) {
            return ranges;
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
        ranges
    }

    /// The line number, from 1, of an offset.
    fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|&end| end < at) + 1
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
