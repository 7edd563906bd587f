//! Warnings about a valid policy: statements that are most likely a mistake.

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

/// A part of a policy that has no effect, or probably not the intended one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Warning {
    /// A rule that never matches, because an earlier rule matches all of its connections.
    Shadowed {
        /// The rule, and its name.
        rule: (RuleId, String),
        /// The first rule that covers it, and its name.
        by: (RuleId, String),
        /// Whether both rules have the same action.
        same: bool,
    },
    /// A set that is not used.
    UnusedSet(String),
    /// A service that is not used.
    UnusedService(String),
    /// An allowed source route option.
    SourceRoute(IpOption),
    /// A timeout below its recommended minimum.
    ShortTimeout {
        /// The timeout.
        timeout: Timeout,
        /// Its recommended minimum, in seconds.
        min_seconds: u32,
        /// The reason for the minimum.
        why: &'static str,
    },
}

/// Recommended minimum of timeouts, in seconds, with the reason.
const MIN_TIMEOUTS: &[(Timeout, u32, &str)] = &[
    (
        Timeout::TcpEstablished,
        2 * 3600 + 4 * 60,
        "idle connections are dropped before their keep-alive packets arrive (RFC 5382 REQ-5)",
    ),
    (
        Timeout::TcpFinWait,
        2 * 3600 + 4 * 60,
        "a connection that one end has closed is open in the other direction (RFC 5382 section 5)",
    ),
    (
        Timeout::TcpCloseWait,
        2 * 3600 + 4 * 60,
        "a connection that one end has closed is open in the other direction (RFC 5382 section 5)",
    ),
    (
        Timeout::TcpTimeWait,
        60,
        "late packets of a closed connection may still arrive (RFC 9293 section 3.4.2; Linux waits 60 seconds itself)",
    ),
    (Timeout::UdpAssured, 120, "applications rely on two minutes (RFC 4787 REQ-5)"),
];

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Shadowed { rule: (RuleId(rule), name), by: (RuleId(by), first), same } => {
                write!(f, "rule {rule} \"{name}\" never matches: rule {by} \"{first}\" ")?;
                f.write_str(if *same { "covers it with the same action" } else { "covers it with another action" })
            }
            Warning::UnusedSet(name) => write!(f, "set {name} is not used"),
            Warning::UnusedService(name) => write!(f, "service {name} is not used"),
            Warning::SourceRoute(option) => write!(
                f,
                "ip-options {option} allows source routes: rules see the next hop of a packet, not its final destination"
            ),
            Warning::ShortTimeout { timeout, min_seconds, why } => {
                write!(f, "timeout {} is below {}: {why}", timeout.name(), Seconds(*min_seconds))
            }
        }
    }
}

impl Policy {
    /// The warnings: rules that one earlier rule covers (those that only several earlier ones cover together are not found),
    /// unused names, source routes, and timeouts that are too short.
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
        let short = MIN_TIMEOUTS
            .iter()
            .filter(|(timeout, min_seconds, _)| self.timeouts.get(*timeout).as_secs() < (*min_seconds).into());
        warnings.extend(short.map(|&(timeout, min_seconds, why)| Warning::ShortTimeout { timeout, min_seconds, why }));
        warnings
    }

    /// The shadowed rules. A rule that covers another matches every connection of it, so it suffices to compare the rules
    /// that match one sample connection, not every pair.
    fn shadowed(&self) -> Vec<Warning> {
        let mut next = 0u16;
        let compiled = self.compile(&mut |_| {
            next += 1;
            ZoneId(next)
        });
        let sets = ranges::sets(&self.sets);
        let services = ranges::services(&self.services);
        let zones: HashMap<&str, u128> = self.zones.iter().map(String::as_str).zip(1..).collect();
        let spaces: Vec<MatchSpace> = self
            .rules
            .iter()
            .map(|rule| MatchSpace {
                from: zone_numbers(&rule.from, &zones),
                to: zone_numbers(&rule.to, &zones),
                source: Addresses::resolve_list(&rule.source, &sets),
                destination: Addresses::resolve_list(&rule.destination, &sets),
                services: rule.services.items().map(|items| ranges::resolve_services(items, &services)),
            })
            .collect();
        let mut found = Vec::new();
        let mut warnings = Vec::new();
        for (index, (rule, space)) in self.rules.iter().zip(&spaces).enumerate() {
            let Some((from, to, tuple)) = space.sample_connection() else { continue };
            found.clear();
            compiled.matching_before(index, from, to, &tuple, &mut found);
            let mut by =
                found.iter().filter_map(|&earlier| Some((earlier, self.rules.get(earlier)?, spaces.get(earlier)?)));
            if let Some((earlier, first, _)) = by.find(|(_, _, earlier)| earlier.covers(space)) {
                let named = |index: usize, rule: &Rule| (id(index), rule.name.clone());
                let same = rule.action == first.action;
                warnings.push(Warning::Shadowed { rule: named(index, rule), by: named(earlier, first), same });
            }
        }
        warnings
    }
}

/// The sorted numbers of zones.
fn zone_numbers(list: &List<String>, zones: &HashMap<&str, u128>) -> Option<Ranges> {
    list.items().map(|names| {
        let number = |name: &String| zones.get(name.as_str()).map(|&number| (number, number));
        let mut numbers: Ranges = names.iter().filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    })
}

/// All connections that a rule matches; `None` is everything.
struct MatchSpace {
    from: Option<Ranges>,
    to: Option<Ranges>,
    source: Option<Addresses>,
    destination: Option<Addresses>,
    services: Option<Ranges>,
}

impl MatchSpace {
    /// One connection that the rule matches.
    fn sample_connection(&self) -> Option<(ZoneId, ZoneId, Tuple)> {
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

    /// Whether it matches all connections that `other` matches.
    fn covers(&self, other: &MatchSpace) -> bool {
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

/// The ranges of one family of a source or destination.
fn ranges(addresses: &Option<Addresses>, v4: bool) -> Option<&Ranges> {
    addresses.as_ref().map(|addresses| if v4 { &addresses.v4 } else { &addresses.v6 })
}
