//! What else runs on this machine and works otherwise than its operator may expect. None of it ends the datapath.

use std::io;

use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};

use super::links::Link;
use super::netlink::{self, Netlink};
use super::ruleset::Ruleset;
use super::sysctl::{Family, Setting};
use crate::datapath::gate::{self, Gate, wire};

/// One of them, with what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, miette::Diagnostic)]
pub(crate) enum Notice {
    #[error("the table {table} translates addresses; what Palisade forwards is not translated")]
    #[diagnostic(help(
        "containers that publish ports or need a translated source do not work on a member: give them the host's network"
    ))]
    Translates { table: String },
    #[error(
        "the {family} policy rule at priority {priority} is for what comes from {interface}, and Palisade re-injects that from palisade0"
    )]
    #[diagnostic(help("name the sources instead: `from NETWORK`"))]
    RuleNames { family: Family, priority: u32, interface: String },
    #[error(
        "the machine's IPv6 default route comes from router advertisements, which {setting} = 1 ignores while forwarding is on"
    )]
    #[diagnostic(help("`sysctl -w {setting}=2`, or a static route"))]
    Advertised { setting: String },
    #[error(
        "traffic control has filters for what arrives on {interface}; they see packets before Palisade, and may redirect them"
    )]
    #[diagnostic(help(
        "see `tc filter show dev {interface} ingress`; filters that only count, shape or drop may stay"
    ))]
    Filters { interface: String },
    #[error(
        "an IPsec policy is for forwarded packets: what Palisade re-injects has lost that it came through the tunnel, and is dropped"
    )]
    #[diagnostic(help("use an xfrm interface (`if_id`) as a data interface instead of policies"))]
    Ipsec,
}

/// Those about other programs' nftables.
pub(crate) fn of_ruleset(ruleset: &Ruleset) -> Vec<Notice> {
    ruleset.translators().into_iter().map(|table| Notice::Translates { table }).collect()
}

/// Those about policy rules and IPsec policies.
pub(crate) fn of_routing(netlink: &mut Netlink, gate: &Gate, data: &[&str]) -> io::Result<Vec<Notice>> {
    let mut notices = Vec::new();
    for family in Family::present() {
        let named = gate::named(netlink, gate, family)?;
        notices.extend(
            named
                .into_iter()
                .filter(|(_, interface)| data.contains(&interface.as_str()))
                .map(|(priority, interface)| Notice::RuleNames { family, priority, interface }),
        );
    }
    notices.extend(forwarding_policy()?.then_some(Notice::Ipsec));
    for link in super::links::links(netlink)?.iter().filter(|link| data.contains(&link.name.as_str())) {
        notices.extend(filters(netlink, link)?.then(|| Notice::Filters { interface: link.name.clone() }));
    }
    Ok(notices)
}

/// Whether traffic control has filters for what arrives on an interface.
fn filters(netlink: &mut Netlink, link: &Link) -> io::Result<bool> {
    let mut request = TcMessage::default();
    request.header.index = i32::try_from(link.index).unwrap_or(0);
    // TC_H_CLSACT with TC_H_MIN_INGRESS, which the older qdisc `ingress` takes as well.
    request.header.parent = TcHandle { major: 0xffff, minor: 0xfff2 };
    match netlink.dump_bytes(RouteNetlinkMessage::GetTrafficFilter(request)) {
        Ok(found) => Ok(!found.is_empty()),
        // A kernel without traffic control.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Default routes that go as soon as forwarding is switched on.
pub(crate) fn advertised(netlink: &mut Netlink) -> io::Result<Vec<Notice>> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet6;
    let interfaces = super::links::links(netlink)?;
    let mut notices = Vec::new();
    for answer in netlink.dump(RouteNetlinkMessage::GetRoute(request))? {
        let RouteNetlinkMessage::NewRoute(route) = answer else { continue };
        if route.header.protocol != RouteProtocol::Ra || route.header.destination_prefix_length != 0 {
            continue;
        }
        let by = route.attributes.iter().find_map(|a| if let RouteAttribute::Oif(i) = a { Some(*i) } else { None });
        if let Some(link) = interfaces.iter().find(|link| Some(link.index) == by) {
            let setting = Setting::new(Family::V6, &link.name, "accept_ra");
            if setting.value() == 1 {
                notices.push(Notice::Advertised { setting: setting.to_string() });
            }
        }
    }
    Ok(notices)
}

/// `XFRM_MSG_GETPOLICY`
const GET_POLICY: u16 = 21;
/// Of `struct xfrm_userpolicy_info`: the direction, and its length.
const DIRECTION: usize = 160;
const POLICY: usize = 168;
/// `XFRM_POLICY_FWD`
const FORWARD: u8 = 2;
/// `XFRMA_MARK`, `XFRMA_IF_ID`: the policy belongs to a tunnel interface.
const MARK: u16 = 21;
const IF_ID: u16 = 31;

/// Whether there is an IPsec policy for forwarded packets that belongs to no tunnel interface.
fn forwarding_policy() -> io::Result<bool> {
    let policies = match netlink::dump_xfrm(GET_POLICY, NLM_F_REQUEST | NLM_F_DUMP) {
        // A kernel without IPsec.
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(false),
        other => other?,
    };
    Ok(policies.iter().any(|policy| is_forwarding(policy)))
}

fn is_forwarding(policy: &[u8]) -> bool {
    let attributes = policy.get(POLICY..).unwrap_or_default();
    policy.get(DIRECTION) == Some(&FORWARD)
        && !wire::attributes(attributes).any(|(kind, _)| matches!(kind, MARK | IF_ID))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notice_of_ipsec_is_for_policies_without_an_interface() {
        let mut policy = vec![0; POLICY];
        assert!(!is_forwarding(&policy), "an incoming one");
        policy[DIRECTION] = FORWARD;
        assert!(is_forwarding(&policy));
        policy.extend(wire::Attributes::default().number(IF_ID, 7).as_bytes());
        assert!(!is_forwarding(&policy), "an xfrm interface's");
        assert!(!is_forwarding(&[]));
    }
}
