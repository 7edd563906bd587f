//! What is legal in a policy and yet most likely a mistake.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::compile::id;
use super::model::{Address, List, Policy, Rule, Service};
use super::ranges::{self, Addresses, Ranges};
use crate::addr::Ip;
use crate::id::{RuleId, ZoneId};
use crate::parse::IpOption;
use crate::timeouts::{Seconds, Timeout};
use crate::tuple::{Protocol, Tuple};

/// Something in a policy that has no effect, or one that is hardly wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Warning {
    /// Whatever the rule matches, an earlier rule matches first.
    Shadowed {
        /// The rule, and its name.
        rule: (RuleId, String),
        /// The first rule that takes all of it, and its name.
        by: (RuleId, String),
        /// Do both do the same?
        same: bool,
    },
    /// A set that nothing names.
    UnusedSet(String),
    /// A service that nothing names.
    UnusedService(String),
    /// A source route is let through.
    SourceRoute(IpOption),
    /// A timeout that is too short for what it is for.
    ShortTimeout {
        /// Which one.
        timeout: Timeout,
        /// The recommended minimum, in seconds.
        min: u32,
        /// Why.
        why: &'static str,
    },
}

/// Timeouts that should not be shorter than a number of seconds.
const SHORT: &[(Timeout, u32, &str)] = &[
    (
        Timeout::TcpEstablished,
        2 * 3600 + 4 * 60,
        "idle connections are cut before their keep-alive packets come (RFC 5382 REQ-5)",
    ),
    (
        Timeout::TcpTimeWait,
        60,
        "late packets of a closed connection are still under way (RFC 9293 section 3.4.2; Linux waits 60 seconds itself)",
    ),
    (Timeout::UdpAssured, 120, "applications rely on two minutes (RFC 4787 REQ-5)"),
];

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Shadowed { rule: (RuleId(rule), name), by: (RuleId(by), first), same } => {
                write!(f, "rule {rule} \"{name}\" never matches: rule {by} \"{first}\" ")?;
                f.write_str(if *same { "does the same for all of it" } else { "takes all of it" })
            }
            Warning::UnusedSet(name) => write!(f, "set {name} is not used"),
            Warning::UnusedService(name) => write!(f, "service {name} is not used"),
            Warning::SourceRoute(option) => write!(
                f,
                "ip-options {option} lets source routes through: rules judge the next stop of such a packet, not its end"
            ),
            Warning::ShortTimeout { timeout, min, why } => {
                write!(f, "timeout {} is below {}: {why}", timeout.name(), Seconds(*min))
            }
        }
    }
}

impl Policy {
    /// Rules that never match because one earlier rule takes all that they would (those that several earlier ones cover only
    /// together are not found), names that nothing uses, and timeouts that are too short.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = self.shadowed();
        let addresses = self.rules.iter().flat_map(|rule| [&rule.source, &rule.destination]);
        let used: HashSet<&str> = addresses
            .filter_map(List::items)
            .chain(self.sets.iter().map(|set| set.members.as_slice()))
            .flatten()
            .filter_map(|address| match address {
                Address::Set(name) => Some(name.as_str()),
                Address::Prefix(_) => None,
            })
            .collect();
        let unused = self.sets.iter().filter(|set| !used.contains(set.name.as_str()));
        warnings.extend(unused.map(|set| Warning::UnusedSet(set.name.clone())));
        let services = self.rules.iter().filter_map(|rule| rule.services.items());
        let used: HashSet<&str> = services
            .chain(self.services.iter().map(|service| service.members.as_slice()))
            .flatten()
            .filter_map(|service| match service {
                Service::Named(name) => Some(name.as_str()),
                Service::Protocol(_) | Service::Ports(..) => None,
            })
            .collect();
        let unused = self.services.iter().filter(|service| !used.contains(service.name.as_str()));
        warnings.extend(unused.map(|service| Warning::UnusedService(service.name.clone())));
        let source_routes = self.ip_options.iter().copied().filter(|option| option.is_source_route());
        warnings.extend(source_routes.map(Warning::SourceRoute));
        let short = SHORT.iter().filter(|(timeout, min, _)| self.timeouts.get(*timeout).as_secs() < (*min).into());
        warnings.extend(short.map(|&(timeout, min, why)| Warning::ShortTimeout { timeout, min, why }));
        warnings
    }

    /// A rule that takes all of another takes also any one connection of it: so only the rules that match one such
    /// connection need to be compared, not every pair.
    fn shadowed(&self) -> Vec<Warning> {
        let mut next = 0u16;
        let compiled = self.compile(&mut |_| {
            next += 1;
            ZoneId(next)
        });
        let sets = ranges::sets(&self.sets);
        let services = ranges::services(&self.services);
        let zones: HashMap<&str, u128> = self.zones.iter().map(String::as_str).zip(1..).collect();
        let areas: Vec<Area> = self
            .rules
            .iter()
            .map(|rule| Area {
                from: zone_numbers(&rule.from, &zones),
                to: zone_numbers(&rule.to, &zones),
                source: Addresses::of_list(&rule.source, &sets),
                destination: Addresses::of_list(&rule.destination, &sets),
                services: rule.services.items().map(|items| ranges::services_of(items, &services)),
            })
            .collect();
        let mut found = Vec::new();
        let mut warnings = Vec::new();
        for (index, (rule, area)) in self.rules.iter().zip(&areas).enumerate() {
            let Some((from, to, tuple)) = area.example() else { continue };
            found.clear();
            compiled.before(index, from, to, &tuple, &mut found);
            let mut by =
                found.iter().filter_map(|&earlier| Some((earlier, self.rules.get(earlier)?, areas.get(earlier)?)));
            if let Some((earlier, first, _)) = by.find(|(_, _, earlier)| earlier.covers(area)) {
                let named = |index: usize, rule: &Rule| (id(index), rule.name.clone());
                let same = rule.action == first.action;
                warnings.push(Warning::Shadowed { rule: named(index, rule), by: named(earlier, first), same });
            }
        }
        warnings
    }
}

/// Zones as sorted numbers.
fn zone_numbers(list: &List<String>, zones: &HashMap<&str, u128>) -> Option<Ranges> {
    list.items().map(|names| {
        let number = |name: &String| zones.get(name.as_str()).map(|&number| (number, number));
        let mut numbers: Ranges = names.iter().filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    })
}

/// All that a rule matches; `None` is everything.
struct Area {
    from: Option<Ranges>,
    to: Option<Ranges>,
    source: Option<Addresses>,
    destination: Option<Addresses>,
    services: Option<Ranges>,
}

impl Area {
    /// One connection that the rule matches.
    fn example(&self) -> Option<(ZoneId, ZoneId, Tuple)> {
        let first = |ranges: Option<&Ranges>| ranges.map_or(Some(0), |ranges| ranges.first().map(|range| range.0));
        let zone =
            |ranges: &Option<Ranges>| first(ranges.as_ref()).and_then(|zone| u16::try_from(zone).ok()).map(ZoneId);
        let service = u32::try_from(first(self.services.as_ref())?).ok()?;
        // The lower 16 bits are the port.
        let (protocol, dst_port) = (Protocol(u8::try_from(service >> 16).ok()?), service as u16);
        let family = |v4: bool| {
            let (src, dst) = (first(ranges(&self.source, v4))?, first(ranges(&self.destination, v4))?);
            let ip = |number: u128| match v4 {
                true => Ip::V4((number as u32).to_be_bytes()),
                false => Ip::V6(number.to_be_bytes()),
            };
            Some((ip(src), ip(dst)))
        };
        let (src, dst) = family(true).or_else(|| family(false))?;
        Some((zone(&self.from)?, zone(&self.to)?, Tuple { src, dst, src_port: 0, dst_port, protocol }))
    }

    /// Does it match all that `other` does?
    fn covers(&self, other: &Area) -> bool {
        let within = |outer: Option<&Ranges>, inner: Option<&Ranges>| match (outer, inner) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(outer), Some(inner)) => ranges::covers(outer, inner),
        };
        let addresses = [true, false].into_iter().all(|v4| {
            let (source, destination) = (ranges(&other.source, v4), ranges(&other.destination, v4));
            let nothing = [source, destination].into_iter().flatten().any(Vec::is_empty);
            nothing || within(ranges(&self.source, v4), source) && within(ranges(&self.destination, v4), destination)
        });
        addresses
            && within(self.from.as_ref(), other.from.as_ref())
            && within(self.to.as_ref(), other.to.as_ref())
            && within(self.services.as_ref(), other.services.as_ref())
    }
}

/// One family of a source or destination.
fn ranges(addresses: &Option<Addresses>, v4: bool) -> Option<&Ranges> {
    addresses.as_ref().map(|addresses| if v4 { &addresses.v4 } else { &addresses.v6 })
}
