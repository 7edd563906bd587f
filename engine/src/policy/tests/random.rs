//! Random policies and texts, compared with a simple reference implementation.

use proptest::prelude::*;

use super::*;
use crate::policy::model::number;

/// Whether a prefix contains an address, compared bit by bit.
fn contains(prefix: &Prefix, address: Ip) -> bool {
    let ((first, bits), (address, other)) = (number(prefix.address), number(address));
    bits == other && (0..prefix.length).all(|bit| (first ^ address) >> (bits - 1 - u32::from(bit)) & 1 == 0)
}

/// The reference implementation: tries rule after rule. [`Compiled`] must agree with it.
fn reference(policy: &Policy, from: Option<&str>, to: Option<&str>, tuple: &Tuple) -> u32 {
    fn address(policy: &Policy, item: &Address, ip: Ip) -> bool {
        match item {
            Address::Prefix(prefix) => contains(prefix, ip),
            Address::Set(name) => policy
                .sets()
                .iter()
                .filter(|set| set.name == *name)
                .any(|set| set.members.iter().any(|member| address(policy, member, ip))),
        }
    }
    fn service(policy: &Policy, item: &Service, tuple: &Tuple) -> bool {
        match item {
            Service::Protocol(protocol) => tuple.protocol == *protocol,
            Service::Ports(protocol, low, high) => {
                tuple.protocol == *protocol && (*low..=*high).contains(&tuple.dst_port)
            }
            Service::Named(name) => policy
                .services()
                .iter()
                .filter(|service| service.name == *name)
                .any(|named| named.members.iter().any(|member| service(policy, member, tuple))),
        }
    }
    fn list<T>(list: &List<T>, matches: impl Fn(&T) -> bool) -> bool {
        list.items().is_none_or(|items| items.iter().any(matches))
    }
    let found = policy.rules().iter().position(|rule| {
        list(&rule.from, |zone| Some(zone.as_str()) == from)
            && list(&rule.to, |zone| Some(zone.as_str()) == to)
            && list(&rule.source, |item| address(policy, item, tuple.src))
            && list(&rule.destination, |item| address(policy, item, tuple.dst))
            && list(&rule.services, |item| service(policy, item, tuple))
    });
    found.map_or(0, |index| index as u32 + 1)
}

/// A small set of addresses, so that rules and packets often match.
fn addresses(v4: bool) -> impl Strategy<Value = Ip> {
    let low = prop_oneof![0..4u8, Just(127), Just(128), Just(255)];
    (0..3u8, prop_oneof![Just(0u8), Just(255), Just(16)], low).prop_map(move |(a, b, c)| match v4 {
        true => Ip::V4([a * 127, b, b, c]),
        false => Ip::V6([a * 127, b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b, c]),
    })
}

fn prefixes(v4: bool) -> impl Strategy<Value = Prefix> {
    let most = if v4 { 32u8 } else { 128 };
    (addresses(v4), prop_oneof![0..=most, most - 8..=most, Just(most)]).prop_map(|(address, length)| {
        let (value, bits) = number(address);
        let host = bits - u32::from(length);
        let value = if host == 128 { 0 } else { value >> host << host };
        let address = match address {
            Ip::V4(_) => Ip::V4((value as u32).to_be_bytes()),
            Ip::V6(_) => Ip::V6(value.to_be_bytes()),
        };
        Prefix { address, length }
    })
}

fn list_of<T: Clone + std::fmt::Debug>(item: impl Strategy<Value = T> + 'static) -> impl Strategy<Value = List<T>> {
    prop_oneof![1 => Just(List::ANY), 3 => prop::collection::vec(item, 1..4).prop_map(List::Of)]
}

fn ports() -> impl Strategy<Value = u16> {
    prop_oneof![1..6u16, Just(80), Just(65534), Just(65535)]
}

fn plain_services() -> impl Strategy<Value = Service> {
    let protocols = || prop_oneof![Just(Protocol::TCP), Just(Protocol::UDP)];
    prop_oneof![
        3 => (protocols(), ports(), ports()).prop_map(|(p, a, b)| Service::Ports(p, a.min(b), a.max(b))),
        1 => prop::sample::select(vec![0u8, 1, 6, 17, 47, 58, 132, 255]).prop_map(|n| Service::Protocol(Protocol(n))),
    ]
}

/// Policies with zones a, b, c; sets s0, s1, s2 and services w0, w1, each of which may refer to earlier ones.
fn policies() -> impl Strategy<Value = Policy> {
    let prefix = || any::<bool>().prop_flat_map(prefixes);
    let member = move || prop_oneof![3 => prefix().prop_map(Address::Prefix), 1 => (0..3usize).prop_map(|n| Address::Set(format!("s{n}")))];
    let sets = (
        prop::collection::vec(prefix().prop_map(Address::Prefix), 1..4),
        prop::collection::vec(member(), 1..4),
        prop::collection::vec(member(), 1..4),
    )
        .prop_map(|(a, b, c)| [a, b, c]);
    let service = || prop_oneof![3 => plain_services(), 1 => (0..2usize).prop_map(|n| Service::Named(format!("w{n}")))];
    let services = (prop::collection::vec(plain_services(), 1..3), prop::collection::vec(service(), 1..3));
    let zone = || prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned);
    let action = || prop::sample::select(vec![Action::Accept, Action::Drop, Action::Reject]);
    let rule = (
        (action(), "[a-zA-Z#@ :>,='-]{0,8}"),
        (list_of(zone()), list_of(zone())),
        (list_of(member()), list_of(member())),
        (list_of(service()), any::<bool>()),
    );
    let default = (action(), any::<bool>()).prop_map(|(action, log)| Default { action, log });
    let timeouts =
        prop::collection::vec((prop::sample::select(Timeout::ALL), 1..=3_000_000_u32), 0..4).prop_map(|some| {
            let mut timeouts = Timeouts::DEFAULT;
            some.into_iter().for_each(|(timeout, seconds)| timeouts.set(timeout, seconds));
            timeouts
        });
    let ip_options = prop::sample::subsequence(IpOption::ALL, 0..4);
    let parts = (sets, services, timeouts, default, ip_options, prop::collection::vec(rule, 0..100));
    parts.prop_map(|(sets, services, timeouts, default, ip_options, rules)| {
        let mut policy = Policy {
            zones: ["a", "b", "c"].map(str::to_owned).to_vec(),
            sets: Vec::new(),
            services: Vec::new(),
            timeouts,
            default,
            ip_options,
            rules: Vec::new(),
        };
        for (n, mut members) in sets.into_iter().enumerate() {
            let earlier: Vec<String> = (0..n).map(|n| format!("s{n}")).collect();
            members.retain(|member| !matches!(member, Address::Set(name) if !earlier.contains(name)));
            if members.is_empty() {
                members.push(Address::Prefix("10.0.0.0/8".parse().unwrap()));
            }
            policy.sets.push(Named { name: format!("s{n}"), members });
        }
        for (n, mut members) in [services.0, services.1].into_iter().enumerate() {
            members.retain(|member| {
                n == 1 && *member != Service::Named("w1".to_owned()) || !matches!(member, Service::Named(_))
            });
            if members.is_empty() {
                members.push(Service::Protocol(Protocol::TCP));
            }
            policy.services.push(Named { name: format!("w{n}"), members });
        }
        for (n, (what, zones, ends, rest)) in rules.into_iter().enumerate() {
            let distinct = |list: List<String>| match list {
                List::Of(mut zones) => {
                    zones.sort();
                    zones.dedup();
                    List::Of(zones)
                }
                any => any,
            };
            policy.rules.push(Rule {
                action: what.0,
                name: format!("{n}{}", what.1),
                from: distinct(zones.0),
                to: distinct(zones.1),
                source: ends.0,
                destination: ends.1,
                services: rest.0,
                log: rest.1,
            });
        }
        // Rules that mix address families are errors, so they are removed.
        while let Err(error) = Policy::parse("p", &policy.to_string()) {
            let text = policy.to_string();
            let ahead = text.lines().count() - policy.rules.len();
            let mut lines: Vec<usize> =
                error.problems().iter().map(|problem| error.place(problem).0 - 1 - ahead).collect();
            assert!(error.problems().iter().all(|problem| problem.advice().is_some()), "{}", error.render());
            lines.dedup();
            for line in lines.into_iter().rev() {
                policy.rules.remove(line);
            }
        }
        policy
    })
}

fn tuples() -> impl Strategy<Value = Tuple> {
    let ends = any::<bool>().prop_flat_map(|v4| (addresses(v4), addresses(v4)));
    let protocol = prop::sample::select(vec![0u8, 1, 6, 6, 6, 17, 17, 47, 58, 132, 255]);
    (ends, protocol, prop_oneof![Just(0u16), 1..6u16, Just(80), Just(65534), Just(65535)]).prop_map(
        |((src, dst), protocol, dst_port)| Tuple { src, dst, src_port: 1, dst_port, protocol: Protocol(protocol) },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn policy_canonical_form_parses_to_the_same_policy(policy in policies()) {
        let text = policy.to_string();
        prop_assert_eq!(&Policy::parse("p", &text).unwrap(), &policy);
        let json = serde_json::to_string(&policy).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Policy>(&json).unwrap(), &policy);
    }

    #[test]
    fn policy_compiled_decides_like_the_reference(
        policy in policies(),
        packets in prop::collection::vec((0..4u16, 0..4u16, tuples()), 200),
    ) {
        let compiled = compiled(&policy);
        for (from, to, tuple) in packets {
            let name = |zone: u16| usize::from(zone).checked_sub(1).map(|index| policy.zones[index].as_str());
            let expected = reference(&policy, name(from), name(to), &tuple);
            let decision = compiled.decide(ZoneId(from), ZoneId(to), &tuple);
            prop_assert_eq!(decision.rule, RuleId(expected), "{} {} {}\n{}", from, to, tuple, policy);
            let (action, log) = match expected {
                0 => (policy.default.action, policy.default.log),
                rule => (policy.rules[rule as usize - 1].action, policy.rules[rule as usize - 1].log),
            };
            prop_assert_eq!((decision.action, decision.log), (action, log));
        }
    }

    /// What the sweep of forbidden sessions relies on.
    #[test]
    fn policy_decides_for_each_zone_as_for_one_of_the_distinct_ones(
        policy in policies(),
        packets in prop::collection::vec((0..4u16, tuples()), 100),
    ) {
        let compiled = compiled(&policy);
        let all = || (0..6).map(ZoneId);
        let distinct = compiled.distinct_egress(all());
        prop_assert!(distinct.len() <= 4, "zones 4 and 5 are in no rule, as 0 is: {:?}", distinct);
        for (from, tuple) in packets {
            let actions = |zones: &mut dyn Iterator<Item = ZoneId>| {
                let mut all: Vec<u32> = zones.map(|to| compiled.decide(ZoneId(from), to, &tuple).rule.0).collect();
                all.sort_unstable();
                all.dedup();
                all
            };
            prop_assert_eq!(actions(&mut all()), actions(&mut distinct.iter().copied()), "{} {}\n{}", from, tuple, policy);
        }
    }

    #[test]
    fn rule_reported_as_shadowed_never_matches(policy in policies(), packets in prop::collection::vec((0..4u16, 0..4u16, tuples()), 200)) {
        let compiled = compiled(&policy);
        let shadowed: Vec<RuleId> = policy.warnings().into_iter().filter_map(|warning| match warning {
            Warning::Shadowed { rule, .. } => Some(rule.0),
            _ => None,
        }).collect();
        for (from, to, tuple) in packets {
            let decision = compiled.decide(ZoneId(from), ZoneId(to), &tuple);
            prop_assert!(!shadowed.contains(&decision.rule));
        }
    }

    /// The parser never panics, and every error has a position and can be rendered.
    #[test]
    fn policy_parser_accepts_or_refuses_any_text(text in "(zone|set|service|timeout|icmp|5s|default|accept|drop|any|from|to|log|->|[@:,=\"#/\n .-]|[a-c]{1,2}|[0-9]{1,3}|\\PC| ){0,60}") {
        match Policy::parse("p", &text) {
            Ok(policy) => prop_assert_eq!(Policy::parse("p", &policy.to_string()).unwrap(), policy),
            Err(error) => {
                prop_assert!(!error.problems().is_empty());
                let rendered = error.render();
                prop_assert!(rendered.lines().count() >= 3 * error.problems().len());
            }
        }
    }

    /// One character of a valid text is replaced.
    #[test]
    fn policy_parser_accepts_or_refuses_damaged_text(at in 0..600usize, with in "\\PC|[\n\"@,]|") {
        let text = EXAMPLE.replace("@bogons", "@admins");
        let mut damaged: String = text.chars().take(at).collect();
        damaged.push_str(&with);
        damaged.extend(text.chars().skip(at + 1));
        if let Err(error) = Policy::parse("p", &damaged) {
            prop_assert!(error.render().starts_with("p:"));
        }
    }
}
