//! Lists of addresses and services, expanded to ranges of numbers.

use std::collections::HashMap;

use super::model::{Address, List, Named, Prefix, Service};
use crate::tuple::Protocol;

/// Ranges of numbers, both ends included.
pub(super) type Ranges = Vec<(u128, u128)>;

/// Addresses of both families.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Addresses {
    pub(super) v4: Ranges,
    pub(super) v6: Ranges,
}

impl Addresses {
    /// Expands a list of addresses. Sets that are not in `sets` are empty.
    pub(super) fn resolve<'a>(
        items: impl IntoIterator<Item = &'a Address>,
        sets: &HashMap<&str, Addresses>,
    ) -> Addresses {
        let mut all = Addresses::default();
        for item in items {
            match item {
                Address::Prefix(prefix) => all.add_prefix(*prefix),
                Address::Set(name) => {
                    if let Some(set) = sets.get(name.as_str()) {
                        all.v4.extend(&set.v4);
                        all.v6.extend(&set.v6);
                    }
                }
            }
        }
        merge(&mut all.v4);
        merge(&mut all.v6);
        all
    }

    /// Expands the source or destination of a rule; `None` is all addresses.
    pub(super) fn resolve_list(list: &List<Address>, sets: &HashMap<&str, Addresses>) -> Option<Addresses> {
        list.items().map(|items| Addresses::resolve(items, sets))
    }

    fn add_prefix(&mut self, prefix: Prefix) {
        if prefix.address.is_v4() { &mut self.v4 } else { &mut self.v6 }.push(prefix.range());
    }
}

/// Expands all sets. A set refers only to sets before it.
pub(super) fn sets(sets: &[Named<Address>]) -> HashMap<&str, Addresses> {
    let mut all = HashMap::with_capacity(sets.len());
    for set in sets {
        let addresses = Addresses::resolve(&set.members, &all);
        all.insert(set.name.as_str(), addresses);
    }
    all
}

/// A service as a number: the protocol above 16 bits of destination port.
pub(super) fn service_key(protocol: Protocol, port: u16) -> u32 {
    u32::from(protocol.0) << 16 | u32::from(port)
}

/// Expands a list of services. Services that are not in `named` are empty.
pub(super) fn resolve_services<'a>(
    items: impl IntoIterator<Item = &'a Service>,
    named: &HashMap<&str, Ranges>,
) -> Ranges {
    let range = |protocol, low, high| (service_key(protocol, low).into(), service_key(protocol, high).into());
    let mut all = Ranges::new();
    for item in items {
        match item {
            Service::Protocol(protocol) => all.push(range(*protocol, 0, u16::MAX)),
            Service::Ports(protocol, low, high) => all.push(range(*protocol, *low, *high)),
            Service::Named(name) => all.extend(named.get(name.as_str()).into_iter().flatten()),
        }
    }
    merge(&mut all);
    all
}

/// Expands all services. A service refers only to services before it.
pub(super) fn services(services: &[Named<Service>]) -> HashMap<&str, Ranges> {
    let mut all = HashMap::with_capacity(services.len());
    for service in services {
        let ranges = resolve_services(&service.members, &all);
        all.insert(service.name.as_str(), ranges);
    }
    all
}

/// Sorts ranges and joins those that overlap or are adjacent.
fn merge(ranges: &mut Ranges) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let joins = next.0 <= last.1.saturating_add(1);
        if joins {
            last.1 = last.1.max(next.1);
        }
        joins
    });
}

/// Whether every number of `inner` is in `outer`. Both are merged.
pub(super) fn covers(outer: &[(u128, u128)], inner: &[(u128, u128)]) -> bool {
    inner.iter().all(|&(low, high)| {
        let after = outer.partition_point(|range| range.0 <= low);
        after.checked_sub(1).and_then(|at| outer.get(at)).is_some_and(|range| high <= range.1)
    })
}
