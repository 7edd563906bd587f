//! The gate's first lock: policy rules behind `local`, for IPv4 and IPv6.
//!
//! ```text
//! 0: lookup local             the kernel's own; what is for this machine never comes further
//! 1: iif lo goto 3            this machine's own output
//! 1: iif palisade0 goto 3     what was re-injected
//! 1: iif mgmt0 goto 3         for each interface that is exempt
//! 1: oif eth0 goto 3          IPv6, for each data interface: only lookups without a packet name an outgoing interface, as
//!                             that of a gateway when a route is added to another table than `main`
//! 2: blackhole                everything else: transit that was not re-injected
//! 3: nop                      where the operator's rules begin
//! ```
//!
//! They name interfaces and not their indices, so they hold for interfaces that come later, and all carry `protocol
//! kernel`, because systemd-networkd deletes others.
//!
//! What the kernel lists is read attribute by attribute: a selector that a newer kernel has and this program does not know
//! (a DSCP, a flow label) makes a rule one that is not the gate's.

use std::io;

use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::nft::DEVICE_PREFIX;
use super::nft::wire::attributes;
use crate::datapath::host::netlink::Netlink;
use crate::datapath::host::sysctl::Family;

/// Where admitted packets go on, behind the gate.
const BEHIND: u32 = 3;

/// `struct fib_rule_hdr`, in bytes.
const HEADER: usize = 12;
/// `FIB_RULE_INVERT`
const INVERT: u32 = 2;

/// Which interfaces the gate lets pass.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Pass {
    /// Those whose packets pass: the loopback, our devices, exempt ones.
    pub(super) from: Vec<String>,
    /// Data interfaces.
    pub(super) data: Vec<String>,
}

/// One of the gate's rules.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    priority: u32,
    iif: Option<String>,
    oif: Option<String>,
    action: RuleAction,
}

/// A family's rules as the gate finds them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Found {
    /// Does `local` come first?
    pub(super) local_first: bool,
    /// Priorities at or ahead of the gate's blackhole that a foreign rule has.
    pub(super) foreign: Vec<u32>,
    /// Rules behind the gate that name an incoming interface: priority and name.
    pub(super) names: Vec<(u32, String)>,
    /// Rules of the gate that are there.
    present: Vec<Rule>,
    /// Exemptions of an earlier configuration.
    stale: Vec<Rule>,
}

/// The rules that must be there, in the order in which they are made: the way past the blackhole before the blackhole.
fn wanted(family: Family, pass: &Pass) -> Vec<Rule> {
    let rule = |priority, action| Rule { priority, iif: None, oif: None, action };
    let mut rules = vec![rule(BEHIND, RuleAction::Nop)];
    rules.extend(pass.from.iter().map(|name| Rule { iif: Some(name.clone()), ..rule(1, RuleAction::Goto) }));
    if family == Family::V6 {
        rules.extend(pass.data.iter().map(|name| Rule { oif: Some(name.clone()), ..rule(1, RuleAction::Goto) }));
    }
    rules.push(rule(2, RuleAction::Blackhole));
    rules
}

fn message(family: Family, rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(family);
    message.header.action = rule.action;
    message.attributes = vec![RuleAttribute::Priority(rule.priority), RuleAttribute::Protocol(RouteProtocol::Kernel)];
    message.attributes.extend(rule.iif.clone().map(RuleAttribute::Iifname));
    message.attributes.extend(rule.oif.clone().map(RuleAttribute::Oifname));
    if rule.action == RuleAction::Goto {
        message.attributes.push(RuleAttribute::Goto(BEHIND));
    }
    message
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// The rules of a family as the kernel lists them, each a `fib_rule_hdr` with attributes.
fn dump(netlink: &mut Netlink, family: Family) -> io::Result<Vec<Listed>> {
    let mut request = RuleMessage::default();
    request.header.family = address_family(family);
    let answers = netlink.dump_bytes(RouteNetlinkMessage::GetRule(request))?;
    Ok(answers.iter().map(|(_, bytes)| Listed::parse(bytes).unwrap_or_default()).collect())
}

/// A rule of the kernel's list. What cannot be read is one at priority 0 that is nobody's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Listed {
    priority: u32,
    table: u32,
    protocol: u8,
    /// What it is, if it selects by nothing but interfaces.
    plain: Option<Rule>,
    /// The incoming interface it names, whatever else it selects by.
    iif: Option<String>,
}

impl Listed {
    fn parse(bytes: &[u8]) -> Option<Listed> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
        let &[_, dst_len, src_len, tos, table, _, _, action, flags @ ..] = header;
        let mut listed = Listed { table: table.into(), ..Listed::default() };
        let mut oif = None;
        let mut target = None;
        let mut selects_more = dst_len != 0 || src_len != 0 || tos != 0 || u32::from_ne_bytes(flags) & INVERT != 0;
        for (kind, value) in attributes(rest) {
            let number = value.try_into().ok().map(u32::from_ne_bytes);
            match (kind, number) {
                (3 /* FRA_IIFNAME */, _) => listed.iif = name(value),
                (17 /* FRA_OIFNAME */, _) => oif = name(value),
                (4 /* FRA_GOTO */, Some(n)) => target = Some(n),
                (6 /* FRA_PRIORITY */, Some(n)) => listed.priority = n,
                (15 /* FRA_TABLE */, Some(n)) => listed.table = n,
                (21 /* FRA_PROTOCOL */, _) => listed.protocol = *value.first()?,
                // FRA_SUPPRESS_IFGROUP, FRA_SUPPRESS_PREFIXLEN: all ones where there is nothing to suppress.
                (13 | 14, Some(u32::MAX)) => {}
                // FRA_FWMARK and its mask, which are listed where nothing is selected by them; FRA_L3MDEV.
                (10, Some(0)) => {}
                (19, _) if value == [0] => {}
                _ => selects_more = true,
            }
        }
        let action = RuleAction::from(action);
        selects_more |= action == RuleAction::Goto && target != Some(BEHIND);
        let rule = Rule { priority: listed.priority, iif: listed.iif.clone(), oif, action };
        listed.plain = (!selects_more).then_some(rule);
        Some(listed)
    }

    /// Is it the kernel's own `lookup local`?
    fn is_local(&self) -> bool {
        let plain = |p: &Rule| p.iif.is_none() && p.oif.is_none() && p.action == RuleAction::ToTable;
        self.table == u32::from(libc::RT_TABLE_LOCAL) && self.plain.as_ref().is_some_and(plain)
    }

    /// A way past the blackhole as the gate makes them.
    fn is_exemption(&self) -> bool {
        self.protocol == libc::RTPROT_KERNEL
            && self.plain.as_ref().is_some_and(|p| p.priority == 1 && p.action == RuleAction::Goto)
    }

    /// Is it an exemption as we make them? (Asked only of those that are not wanted.)
    fn stale(&self) -> bool {
        self.is_exemption() && self.plain.as_ref().is_some_and(|p| p.iif.is_some() && p.oif.is_none())
    }

    /// One of which this handle on the gate need not know: it lets no packet pass, or those of another device of ours.
    fn harmless(&self) -> bool {
        let ours = |name: &String| name.starts_with(DEVICE_PREFIX);
        let of_lookups = |p: &Rule| p.iif.is_none() && p.oif.is_some();
        self.is_exemption() && self.plain.as_ref().is_some_and(|p| of_lookups(p) || p.iif.as_ref().is_some_and(ours))
    }
}

/// An interface's name in an attribute.
fn name(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    Some(String::from_utf8_lossy(value.get(..end)?).into_owned())
}

fn judge(rules: &[Listed], family: Family, pass: &Pass) -> Found {
    let wanted = wanted(family, pass);
    let mut found = Found::default();
    for rule in rules {
        match rule.plain.as_ref().filter(|p| wanted.contains(p)) {
            Some(ours) => found.present.push(ours.clone()),
            None if rule.harmless() => {}
            None if rule.stale() => found.stale.extend(rule.plain.clone()),
            None if rule.is_local() => found.local_first |= rule.priority == 0,
            None if rule.priority < BEHIND => found.foreign.push(rule.priority),
            None => found.names.extend(rule.iif.clone().map(|name| (rule.priority, name))),
        }
    }
    found
}

/// What is there of one family's rules.
pub(super) fn find(netlink: &mut Netlink, family: Family, pass: &Pass) -> io::Result<Found> {
    Ok(judge(&dump(netlink, family)?, family, pass))
}

/// The exemptions that the kernel has, without the loopback's.
pub(super) fn exempt(netlink: &mut Netlink, family: Family) -> io::Result<Vec<String>> {
    let exemptions = dump(netlink, family)?.into_iter().filter(Listed::stale).filter_map(|rule| rule.iif);
    Ok(exemptions.filter(|name| name != "lo").collect())
}

impl Found {
    /// Is all of the gate there, and no exemption too many?
    pub(super) fn complete(&self, family: Family, pass: &Pass) -> bool {
        self.stale.is_empty() && wanted(family, pass).iter().all(|rule| self.present.contains(rule))
    }
}

/// Makes what is missing; says how many rules that were. None where `local` is not ahead of them: they would cut the machine
/// off from itself.
pub(super) fn install(netlink: &mut Netlink, family: Family, pass: &Pass) -> io::Result<usize> {
    let found = find(netlink, family, pass)?;
    let mut made = 0;
    let missing = wanted(family, pass).into_iter().filter(|rule| found.local_first && !found.present.contains(rule));
    for rule in missing {
        // Not exclusively: a rule that differs from it only by a selector that it does not have (a DSCP) is equal to it for the
        // kernel.
        netlink.add(RouteNetlinkMessage::NewRule(message(family, &rule)))?;
        made += 1;
    }
    // An exemption that the configuration no longer has would leave a door open.
    for rule in &found.stale {
        match netlink.change(RouteNetlinkMessage::DelRule(message(family, rule))) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => tracing::info!(interface = rule.iif, %family, "an exemption from the gate was removed"),
        }
    }
    Ok(made)
}

/// Removes the gate's rules, also exemptions of an earlier configuration.
pub(super) fn remove(netlink: &mut Netlink, family: Family) -> io::Result<()> {
    let ours = |rule: &Listed| {
        let plain = rule.plain.as_ref().filter(|_| rule.protocol == libc::RTPROT_KERNEL);
        plain.is_some_and(|p| {
            matches!(
                (p.priority, p.action),
                (1, RuleAction::Goto) | (2, RuleAction::Blackhole) | (BEHIND, RuleAction::Nop)
            )
        })
    };
    let mut rules: Vec<Rule> = dump(netlink, family)?.into_iter().filter(ours).filter_map(|r| r.plain).collect();
    // The blackhole first: without it, nothing needs the others.
    rules.sort_by_key(|rule| rule.action != RuleAction::Blackhole);
    rules.iter().try_for_each(|rule| netlink.change(RouteNetlinkMessage::DelRule(message(family, rule))))
}

#[cfg(test)]
mod tests {
    use super::*;

    use rtnetlink::packet_core::{DefaultNla, Emitable};

    fn pass() -> Pass {
        Pass { from: vec!["lo".to_owned(), "palisade0".to_owned()], data: Vec::new() }
    }

    /// What the gate makes of rules that the kernel lists.
    fn judged(rules: &[RuleMessage]) -> Found {
        let listed = |rule: &RuleMessage| {
            let mut bytes = vec![0; rule.buffer_len()];
            rule.emit(&mut bytes);
            Listed::parse(&bytes).unwrap()
        };
        judge(&rules.iter().map(listed).collect::<Vec<_>>(), Family::V4, &pass())
    }

    fn complete(rules: &[RuleMessage]) -> bool {
        judged(rules).complete(Family::V4, &pass())
    }

    fn local(at: u32) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.action = RuleAction::ToTable;
        rule.header.table = libc::RT_TABLE_LOCAL;
        rule.attributes = vec![RuleAttribute::Priority(at)];
        rule
    }

    fn gate() -> Vec<RuleMessage> {
        let mut rules: Vec<_> = wanted(Family::V4, &pass()).iter().map(|r| message(Family::V4, r)).collect();
        rules.insert(0, local(0));
        rules
    }

    #[test]
    fn a_whole_gate_is_recognised_and_each_missing_rule_noticed() {
        let whole = judged(&gate());
        assert!(complete(&gate()) && whole.local_first && whole.foreign.is_empty());
        for missing in 1..gate().len() {
            let mut rules = gate();
            rules.remove(missing);
            assert!(!complete(&rules), "without rule {missing}");
        }
    }

    #[test]
    fn local_must_come_first() {
        let mut rules = gate();
        rules[0] = local(5);
        assert!(!judged(&rules).local_first);
    }

    #[test]
    fn a_rule_that_leads_around_the_gate_is_foreign() {
        let mut rules = gate();
        let mut around = RuleMessage::default();
        around.header.action = RuleAction::ToTable;
        around.header.table = libc::RT_TABLE_MAIN;
        around.attributes = vec![RuleAttribute::Priority(1)];
        rules.push(around.clone());
        assert_eq!(judged(&rules).foreign, [1]);
        around.attributes = vec![RuleAttribute::Priority(100)];
        rules.pop();
        rules.push(around);
        assert!(judged(&rules).foreign.is_empty());
    }

    #[test]
    fn an_exemption_of_an_earlier_configuration_does_not_make_a_whole_gate() {
        let mut rules = gate();
        let old = Rule { priority: 1, iif: Some("mgmt0".to_owned()), oif: None, action: RuleAction::Goto };
        rules.insert(2, message(Family::V4, &old));
        let found = judged(&rules);
        assert_eq!((found.stale.as_slice(), found.foreign.as_slice()), (&[old][..], &[][..]));
        assert!(!complete(&rules));
        // Somebody else's is not ours to remove.
        rules[2].attributes.retain(|a| !matches!(a, RuleAttribute::Protocol(_)));
        let found = judged(&rules);
        assert_eq!((found.stale.len(), found.foreign.as_slice()), (0, &[1][..]));
    }

    #[test]
    fn a_blackhole_that_is_only_for_some_is_not_the_gates() {
        let mut rules = gate();
        let last = rules.len() - 1;
        assert_eq!(rules[last].header.action, RuleAction::Blackhole);
        rules[last].attributes.push(RuleAttribute::FwMark(7));
        assert!(!complete(&rules));
    }

    #[test]
    fn a_rule_with_a_selector_of_a_newer_kernel_is_not_the_gates() {
        for at in 1..gate().len() {
            let mut rules = gate();
            // FRA_DSCP: the rule holds for some packets only.
            rules[at].attributes.push(RuleAttribute::Other(DefaultNla::new(25, vec![46])));
            assert!(!complete(&rules), "rule {at}");
            assert_eq!(judged(&rules).foreign.len(), usize::from(priority(&rules[at]) < BEHIND), "rule {at}");
        }
        let mut rules = gate();
        rules[0].attributes.push(RuleAttribute::Other(DefaultNla::new(25, vec![46])));
        assert!(!judged(&rules).local_first);
    }

    fn priority(rule: &RuleMessage) -> u32 {
        rule.attributes.iter().find_map(|a| if let RuleAttribute::Priority(p) = a { Some(*p) } else { None }).unwrap()
    }

    #[test]
    fn a_list_that_is_cut_off_is_no_gate() {
        assert_eq!(Listed::parse(&[0; HEADER - 1]), None);
        let unreadable = judge(&[Listed::default()], Family::V4, &pass());
        assert_eq!((unreadable.foreign.as_slice(), unreadable.local_first), (&[0][..], false));
    }

    #[test]
    fn an_interface_that_a_rule_behind_the_gate_names_is_found() {
        let mut rules = gate();
        let mut named = RuleMessage::default();
        named.header.action = RuleAction::ToTable;
        named.header.table = 100;
        named.attributes = vec![RuleAttribute::Priority(100), RuleAttribute::Iifname("eth0".to_owned())];
        rules.push(named);
        assert_eq!(judged(&rules).names, [(100, "eth0".to_owned())]);
        assert!(judged(&rules).foreign.is_empty());
    }

    #[test]
    fn data_interfaces_have_a_rule_for_lookups_without_a_packet() {
        let data = Pass { data: vec!["eth0".to_owned()], ..pass() };
        assert_eq!(wanted(Family::V4, &data), wanted(Family::V4, &pass()), "IPv4 needs none");
        let rules: Vec<_> = wanted(Family::V6, &data);
        assert_eq!(rules.len(), wanted(Family::V6, &pass()).len() + 1);
        // Whoever does not know the data interfaces takes it for no way around.
        let mut listed = gate();
        listed.extend(rules.iter().filter(|rule| rule.oif.is_some()).map(|rule| message(Family::V6, rule)));
        assert!(complete(&listed) && judged(&listed).foreign.is_empty());
    }
}
