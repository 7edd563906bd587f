//! The gate's first lock: policy rules behind `local`, for IPv4 and IPv6.
//!
//! ```text
//! 0: lookup local             the kernel's own; what is for this machine never comes further
//! 1: iif lo goto 3            this machine's own output
//! 1: iif palisade0 goto 3     what was re-injected
//! 1: iif mgmt0 goto 3         for each interface that is exempt
//! 2: blackhole                everything else: transit that was not re-injected
//! 3: nop                      where the operator's rules begin
//! ```
//!
//! They name interfaces and not their indices, so they hold for interfaces that come later, and all carry `protocol
//! kernel`, because systemd-networkd deletes others.

use std::io;

use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::datapath::host::netlink::Netlink;
use crate::datapath::host::sysctl::Family;

/// Where admitted packets go on, behind the gate.
const BEHIND: u32 = 3;

/// One of the gate's rules.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    priority: u32,
    iif: Option<String>,
    action: RuleAction,
}

/// A family's rules as the gate finds them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Found {
    /// Does `local` come first?
    pub(super) local_first: bool,
    /// Priorities at or ahead of the gate's blackhole that a foreign rule has.
    pub(super) foreign: Vec<u32>,
    /// Rules of the gate that are there.
    present: Vec<Rule>,
    /// Exemptions of an earlier configuration.
    stale: Vec<Rule>,
}

/// The rules that must be there, in the order in which they are made: the way past the blackhole before the blackhole.
fn wanted(pass: &[String]) -> Vec<Rule> {
    let mut rules = vec![Rule { priority: BEHIND, iif: None, action: RuleAction::Nop }];
    rules.extend(pass.iter().map(|name| Rule { priority: 1, iif: Some(name.clone()), action: RuleAction::Goto }));
    rules.push(Rule { priority: 2, iif: None, action: RuleAction::Blackhole });
    rules
}

fn message(family: Family, rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(family);
    message.header.action = rule.action;
    message.attributes = vec![RuleAttribute::Priority(rule.priority), RuleAttribute::Protocol(RouteProtocol::Kernel)];
    message.attributes.extend(rule.iif.clone().map(RuleAttribute::Iifname));
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

fn dump(netlink: &mut Netlink, family: Family) -> io::Result<Vec<RuleMessage>> {
    let mut request = RuleMessage::default();
    request.header.family = address_family(family);
    let answers = netlink.dump(RouteNetlinkMessage::GetRule(request))?;
    Ok(answers
        .into_iter()
        .filter_map(|m| if let RouteNetlinkMessage::NewRule(m) = m { Some(m) } else { None })
        .collect())
}

fn priority(rule: &RuleMessage) -> u32 {
    let given = rule.attributes.iter().find_map(|a| if let RuleAttribute::Priority(p) = a { Some(*p) } else { None });
    given.unwrap_or(0)
}

/// The rule, if it selects by nothing but the incoming interface.
fn plain(rule: &RuleMessage) -> Option<Rule> {
    let selects_more = rule.header.src_len != 0
        || rule.header.dst_len != 0
        || rule.header.tos != 0
        || rule.header.flags.contains(RuleFlags::Invert);
    if selects_more {
        return None;
    }
    let mut plain = Rule { priority: priority(rule), iif: None, action: rule.header.action };
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Iifname(name) => plain.iif = Some(name.clone()),
            RuleAttribute::Goto(target) if *target != BEHIND => return None,
            RuleAttribute::FwMark(_)
            | RuleAttribute::TunId(_)
            | RuleAttribute::Oifname(_)
            | RuleAttribute::L3MDev(true)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_) => return None,
            _ => {}
        }
    }
    Some(plain)
}

/// Is it the kernel's own `lookup local`?
fn is_local(rule: &RuleMessage) -> bool {
    let to_local = rule.header.table == libc::RT_TABLE_LOCAL
        || rule.attributes.iter().any(|a| *a == RuleAttribute::Table(u32::from(libc::RT_TABLE_LOCAL)));
    to_local && plain(rule).is_some_and(|p| p.iif.is_none() && p.action == RuleAction::ToTable)
}

/// Is it an exemption as we make them? (Asked only of those that are not wanted.)
fn stale(rule: &RuleMessage) -> bool {
    plain(rule).is_some_and(|p| p.priority == 1 && p.action == RuleAction::Goto && p.iif.is_some())
        && rule.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Kernel))
}

fn judge(rules: &[RuleMessage], pass: &[String]) -> Found {
    let wanted = wanted(pass);
    let mut found = Found::default();
    for rule in rules {
        let at = priority(rule);
        match plain(rule).filter(|p| wanted.contains(p)) {
            Some(ours) => found.present.push(ours),
            None if stale(rule) => found.stale.extend(plain(rule)),
            None if is_local(rule) => found.local_first |= at == 0,
            None if at < BEHIND => found.foreign.push(at),
            None => {}
        }
    }
    found
}

/// What is there of one family's rules.
pub(super) fn find(netlink: &mut Netlink, family: Family, pass: &[String]) -> io::Result<Found> {
    Ok(judge(&dump(netlink, family)?, pass))
}

impl Found {
    /// Is all of the gate there, and no exemption too many?
    pub(super) fn complete(&self, pass: &[String]) -> bool {
        self.stale.is_empty() && wanted(pass).iter().all(|rule| self.present.contains(rule))
    }
}

/// Makes what is missing; says how many rules that were.
pub(super) fn install(netlink: &mut Netlink, family: Family, pass: &[String]) -> io::Result<usize> {
    let found = find(netlink, family, pass)?;
    let mut made = 0;
    for rule in wanted(pass).into_iter().filter(|rule| !found.present.contains(rule)) {
        match netlink.create(RouteNetlinkMessage::NewRule(message(family, &rule))) {
            Ok(()) => made += 1,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
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
    let ours = |rule: &RuleMessage| {
        plain(rule).is_some_and(|p| {
            let shape = matches!(
                (p.priority, p.action),
                (1, RuleAction::Goto) | (2, RuleAction::Blackhole) | (BEHIND, RuleAction::Nop)
            );
            shape && rule.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Kernel))
        })
    };
    let mut rules: Vec<Rule> = dump(netlink, family)?.iter().filter(|r| ours(r)).filter_map(plain).collect();
    // The blackhole first: without it, nothing needs the others.
    rules.sort_by_key(|rule| rule.action != RuleAction::Blackhole);
    rules.iter().try_for_each(|rule| netlink.change(RouteNetlinkMessage::DelRule(message(family, rule))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass() -> Vec<String> {
        vec!["lo".to_owned(), "palisade0".to_owned()]
    }

    fn local(at: u32) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.action = RuleAction::ToTable;
        rule.header.table = libc::RT_TABLE_LOCAL;
        rule.attributes = vec![RuleAttribute::Priority(at)];
        rule
    }

    fn gate() -> Vec<RuleMessage> {
        let mut rules: Vec<_> = wanted(&pass()).iter().map(|r| message(Family::V4, r)).collect();
        rules.insert(0, local(0));
        rules
    }

    #[test]
    fn a_whole_gate_is_recognised_and_each_missing_rule_noticed() {
        let whole = judge(&gate(), &pass());
        assert!(whole.complete(&pass()) && whole.local_first && whole.foreign.is_empty());
        for missing in 1..gate().len() {
            let mut rules = gate();
            rules.remove(missing);
            assert!(!judge(&rules, &pass()).complete(&pass()), "without rule {missing}");
        }
    }

    #[test]
    fn local_must_come_first() {
        let mut rules = gate();
        rules[0] = local(5);
        assert!(!judge(&rules, &pass()).local_first);
    }

    #[test]
    fn a_rule_that_leads_around_the_gate_is_foreign() {
        let mut rules = gate();
        let mut around = RuleMessage::default();
        around.header.action = RuleAction::ToTable;
        around.header.table = libc::RT_TABLE_MAIN;
        around.attributes = vec![RuleAttribute::Priority(1)];
        rules.push(around.clone());
        assert_eq!(judge(&rules, &pass()).foreign, [1]);
        around.attributes = vec![RuleAttribute::Priority(100)];
        rules.pop();
        rules.push(around);
        assert!(judge(&rules, &pass()).foreign.is_empty());
    }

    #[test]
    fn an_exemption_of_an_earlier_configuration_does_not_make_a_whole_gate() {
        let mut rules = gate();
        let old = Rule { priority: 1, iif: Some("mgmt0".to_owned()), action: RuleAction::Goto };
        rules.insert(2, message(Family::V4, &old));
        let found = judge(&rules, &pass());
        assert_eq!((found.stale.as_slice(), found.foreign.as_slice()), (&[old][..], &[][..]));
        assert!(!found.complete(&pass()));
        // Somebody else's is not ours to remove.
        rules[2].attributes.retain(|a| !matches!(a, RuleAttribute::Protocol(_)));
        let found = judge(&rules, &pass());
        assert_eq!((found.stale.len(), found.foreign.as_slice()), (0, &[1][..]));
    }

    #[test]
    fn a_blackhole_that_is_only_for_some_is_not_the_gates() {
        let mut rules = gate();
        let last = rules.len() - 1;
        assert_eq!(rules[last].header.action, RuleAction::Blackhole);
        rules[last].attributes.push(RuleAttribute::FwMark(7));
        assert!(!judge(&rules, &pass()).complete(&pass()));
    }
}
