//! The gate's table: chains, sets and rules, as one transaction.
//!
//! ```text
//! table inet palisade_gate {
//!     set egress { type iface_index . iface_index }
//!     chain prerouting { type filter hook prerouting priority -450
//!         iifname "palisade*" notrack accept       what was judged; before conntrack and its defragmentation
//!         iifname "lo" accept                      and one rule for each interface that is exempt
//!         iif 9 ether daddr != 02:00:00:00:00:01 accept    a bridge's frames for others, which are not routed
//!         fib daddr type != local-multicast drop   transit that was not judged
//!     }
//!     chain forward { type filter hook forward priority -450
//!         iifname != "palisade*" accept
//!         iif . oif @egress accept                 the kernel's route leads where the verdict was about
//!         limit rate 50/second log group 28769
//!         drop
//!     }
//!     chain output { type filter hook output priority -300
//!         oifname "palisade*" notrack              and the kernel's ICMP errors about transit
//!     }
//!     chain listeners { type filter hook input priority -450
//!         iifname "lo" accept
//!         ip daddr 10.9.0.1 tcp dport 7946 iif 3 accept
//!         ip daddr 10.9.0.1 tcp dport 7946 drop
//!     }
//! }
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::expression::{
    Action, Expression, Header, Is, Meta, between, compare, destination_type, limit, log, lookup, meta, notrack,
    payload, value, verdict,
};
use super::wire::{APPEND, Attributes, CREATE, INET, Message};

/// The table's name, in the family `inet`.
pub(crate) const TABLE: &str = "palisade_gate";

/// The NFLOG group to which re-injected packets are logged that would leave by an interface to which they may not go.
pub(crate) const EGRESS_LOG_GROUP: u16 = 28_769;
/// Their prefix.
const EGRESS_LOG_PREFIX: &str = "palisade egress";
/// How many of them a second.
const EGRESS_LOG_RATE: u64 = 50;
const EGRESS_LOG_BURST: u32 = 100;
/// The bytes of them that are logged: the headers.
const EGRESS_LOG_LENGTH: u32 = 256;

/// How the names of all devices for re-injection begin.
pub(crate) const DEVICE_PREFIX: &str = "palisade";

/// The set of pairs of interfaces.
const EGRESS: &str = "egress";
const EGRESS_ID: u32 = 1;
/// Two interface indices, in the numbering of the program `nft`, which shows them by it.
const EGRESS_KEY_TYPE: u32 = 20 << 6 | 20;
/// Elements in one message, whose list may have 65,531 bytes.
const ELEMENTS: usize = 1000;

/// `NFT_MSG_*`
pub(super) mod kind {
    pub(in super::super) const NEW_TABLE: u16 = 0;
    pub(in super::super) const DEL_TABLE: u16 = 2;
    pub(in super::super) const NEW_CHAIN: u16 = 3;
    pub(in super::super) const GET_CHAIN: u16 = 4;
    pub(in super::super) const NEW_RULE: u16 = 6;
    pub(in super::super) const GET_RULE: u16 = 7;
    pub(in super::super) const DEL_RULE: u16 = 8;
    pub(in super::super) const NEW_SET: u16 = 9;
    pub(in super::super) const NEW_ELEMENT: u16 = 12;
    pub(in super::super) const GET_ELEMENT: u16 = 13;
    pub(in super::super) const DEL_ELEMENT: u16 = 14;
}

/// `NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST`: nobody else can change or flush it, and it outlives its owner (Linux 6.9).
const OWNED: u32 = 2 | 4;

/// A socket of this machine that only some interfaces may reach.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Listener {
    /// Its address; unspecified: all of the machine's.
    pub address: IpAddr,
    /// Its TCP port.
    pub port: u16,
    /// The indices of the interfaces from which it may be reached. The loopback always may.
    pub interfaces: Vec<u32>,
}

/// A bridge. With br_netfilter its frames pass IP's hooks although they are not routed: those for other stations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bridge {
    pub(crate) index: u32,
    /// The MAC addresses of the machine itself there: the bridge's and those of its ports.
    pub(crate) own: Vec<[u8; 6]>,
}

/// What the table has to contain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Wanted {
    /// Interfaces whose transit passes unjudged.
    pub(super) exempt: Vec<String>,
    /// Which interface of ours may lead to which other.
    pub(super) pairs: BTreeSet<(u32, u32)>,
    pub(super) listeners: Vec<Listener>,
    pub(super) bridges: Vec<Bridge>,
}

/// What not every kernel has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Features {
    /// Tables with an owner that outlive it.
    pub(super) owner: bool,
    /// The expression `notrack`.
    pub(super) notrack: bool,
    /// The expressions `limit` and `log` with a group.
    pub(super) log: bool,
}

impl Features {
    pub(super) const ALL: Features = Features { owner: true, notrack: true, log: true };
}

/// For which feature a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    Base,
    Owner,
    Notrack,
    Log,
}

impl Features {
    /// What is left after a message of this part was refused; `None`: it cannot be done without.
    pub(super) fn without(mut self, part: Part) -> Option<Features> {
        match part {
            Part::Base => return None,
            Part::Owner => self.owner = false,
            Part::Notrack => self.notrack = false,
            Part::Log => self.log = false,
        }
        Some(self)
    }
}

/// One rule.
struct Rule {
    part: Part,
    /// What the program `nft` shows behind it.
    comment: &'static str,
    expressions: Vec<Expression>,
}

fn rule(comment: &'static str, expressions: Vec<Expression>) -> Rule {
    Rule { part: Part::Base, comment, expressions }
}

/// The bytes of an interface's name, up to its end, so that nothing longer is equal.
fn name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(libc::IFNAMSIZ, 0);
    bytes
}

/// Whether the interface is one of ours.
fn ours(key: Meta, is: Is) -> [Expression; 2] {
    [meta(key, 0), compare(is, DEVICE_PREFIX.as_bytes())]
}

fn prerouting(wanted: &Wanted, features: Features) -> Vec<Rule> {
    let mut judged = Vec::from(ours(Meta::IifName, Is::Equal));
    judged.extend(features.notrack.then(notrack));
    judged.push(verdict(Action::Accept));
    let part = if features.notrack { Part::Notrack } else { Part::Base };
    let mut rules = vec![Rule { part, comment: "judged", expressions: judged }];
    rules.extend(wanted.exempt.iter().map(|interface| {
        let is_exempt = compare(Is::Equal, &name(interface));
        rule("exempt", vec![meta(Meta::IifName, 0), is_exempt, verdict(Action::Accept)])
    }));
    rules.extend(wanted.bridges.iter().map(|bridge| {
        let mut expressions = vec![meta(Meta::IifIndex, 0), compare(Is::Equal, &bridge.index.to_ne_bytes())];
        expressions.push(payload(Header::Link, 0, 6));
        expressions.extend(bridge.own.iter().map(|mac| compare(Is::Unequal, mac)));
        expressions.push(verdict(Action::Accept));
        rule("bridged", expressions)
    }));
    // RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST are 2 to 5.
    let (first, last) = (2u32.to_ne_bytes(), 5u32.to_ne_bytes());
    let transit = vec![destination_type(), between(Is::Unequal, &first, &last), verdict(Action::Drop)];
    rules.push(rule("transit that was not judged", transit));
    rules
}

fn forward(features: Features) -> Vec<Rule> {
    let mut foreign = Vec::from(ours(Meta::IifName, Is::Unequal));
    foreign.push(verdict(Action::Accept));
    let pair =
        vec![meta(Meta::IifIndex, 0), meta(Meta::OifIndex, 1), lookup(EGRESS, EGRESS_ID), verdict(Action::Accept)];
    let mut rules = vec![rule("not ours", foreign), rule("leaves where the verdict was about", pair)];
    if features.log {
        let expressions =
            vec![limit(EGRESS_LOG_RATE, EGRESS_LOG_BURST), log(EGRESS_LOG_GROUP, EGRESS_LOG_PREFIX, EGRESS_LOG_LENGTH)];
        rules.push(Rule { part: Part::Log, comment: "leaves elsewhere", expressions });
    }
    rules.push(rule("leaves elsewhere", vec![verdict(Action::Drop)]));
    rules
}

/// ICMP errors that a router sends about transit, as types and codes: conntrack does not know what they are about. The
/// others (port unreachable) are about the machine's own packets and stay tracked.
const ICMP_ERRORS: [(u8, &[[u16; 2]]); 2] = [
    (
        libc::IPPROTO_ICMP as u8,
        &[[0x0300, 0x0301], [0x0304, 0x030f], [0x0500, 0x0503], [0x0b00, 0x0b00], [0x0c00, 0x0c00]],
    ),
    (
        libc::IPPROTO_ICMPV6 as u8,
        &[[0x0100, 0x0103], [0x0105, 0x0107], [0x0200, 0x0200], [0x0300, 0x0300], [0x0400, 0x0400], [0x0402, 0x0402]],
    ),
];

fn output(features: Features) -> Vec<Rule> {
    if !features.notrack {
        return Vec::new();
    }
    let mut to_us = Vec::from(ours(Meta::OifName, Is::Equal));
    to_us.extend([notrack(), verdict(Action::Accept)]);
    let mut rules = vec![Rule { part: Part::Notrack, comment: "to ourselves", expressions: to_us }];
    for (protocol, kinds) in ICMP_ERRORS {
        for [from, to] in kinds {
            let expressions = vec![
                meta(Meta::Protocol, 0),
                compare(Is::Equal, &[protocol]),
                payload(Header::Transport, 0, 2),
                between(Is::Equal, &from.to_be_bytes(), &to.to_be_bytes()),
                notrack(),
                verdict(Action::Accept),
            ];
            rules.push(Rule { part: Part::Notrack, comment: "an error about transit", expressions });
        }
    }
    rules
}

/// Continues for what is sent to the listener.
fn to_listener(listener: &Listener) -> Vec<Expression> {
    let mut expressions = Vec::new();
    // A socket on `::` is reached by IPv4 as well.
    let family = match listener.address {
        IpAddr::V4(_) => Some(libc::NFPROTO_IPV4),
        IpAddr::V6(address) if address.is_unspecified() => None,
        IpAddr::V6(_) => Some(libc::NFPROTO_IPV6),
    };
    if let Some(family) = family.and_then(|f| u8::try_from(f).ok()) {
        expressions.extend([meta(Meta::Family, 0), compare(Is::Equal, &[family])]);
    }
    let tcp = [libc::IPPROTO_TCP as u8];
    expressions.extend([meta(Meta::Protocol, 0), compare(Is::Equal, &tcp)]);
    match listener.address {
        address if address.is_unspecified() => {}
        IpAddr::V4(address) => {
            expressions.extend([payload(Header::Network, 16, 4), compare(Is::Equal, &address.octets())]);
        }
        IpAddr::V6(address) => {
            expressions.extend([payload(Header::Network, 24, 16), compare(Is::Equal, &address.octets())]);
        }
    }
    expressions.extend([payload(Header::Transport, 2, 2), compare(Is::Equal, &listener.port.to_be_bytes())]);
    expressions
}

fn listeners(listeners: &[Listener]) -> Vec<Rule> {
    let loopback = vec![meta(Meta::IifName, 0), compare(Is::Equal, &name("lo")), verdict(Action::Accept)];
    let mut rules = vec![rule("", loopback)];
    for listener in listeners {
        for index in &listener.interfaces {
            let mut expressions = to_listener(listener);
            expressions.extend([
                meta(Meta::IifIndex, 0),
                compare(Is::Equal, &index.to_ne_bytes()),
                verdict(Action::Accept),
            ]);
            rules.push(rule("", expressions));
        }
        let mut expressions = to_listener(listener);
        expressions.push(verdict(Action::Drop));
        rules.push(rule("not from here", expressions));
    }
    rules
}

/// A base chain: its name, `NF_INET_*` hook and priority.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) hook: u32,
    pub(super) priority: i32,
}

/// Before everybody else's, and before conntrack (-200) and its defragmentation (-400): at -300 (`raw`) the fragments of
/// which the others go through another member have been eaten.
const FIRST: i32 = -450;
const PREROUTING: Chain = Chain { name: "prerouting", hook: 0, priority: FIRST };
const LISTENERS: Chain = Chain { name: "listeners", hook: 1, priority: FIRST };
const FORWARD: Chain = Chain { name: "forward", hook: 2, priority: FIRST };
const OUTPUT: Chain = Chain { name: "output", hook: 3, priority: -300 };

pub(super) const CHAINS: [Chain; 4] = [PREROUTING, LISTENERS, FORWARD, OUTPUT];

fn message(kind: u16, flags: u16, attributes: Attributes) -> Message {
    Message { kind, family: INET, flags, attributes }
}

fn table(kind: u16, flags: u16) -> Message {
    message(kind, flags, Attributes::default().text(1, TABLE))
}

fn new_chain(chain: Chain) -> Message {
    // NFTA_CHAIN_TABLE, NAME, HOOK (HOOKNUM, PRIORITY), POLICY, TYPE.
    let hook = Attributes::default().number(1, chain.hook).bytes(2, &chain.priority.to_be_bytes());
    let attributes = Attributes::default()
        .text(1, TABLE)
        .text(3, chain.name)
        .nested(4, &hook)
        .number(5, Action::Accept as u32)
        .text(7, "filter");
    message(kind::NEW_CHAIN, CREATE, attributes)
}

fn new_rule(chain: Chain, rule: &Rule) -> (Part, Message) {
    // NFTA_RULE_TABLE, CHAIN, EXPRESSIONS (NFTA_LIST_ELEM each), USERDATA (a comment, as the program `nft` has it).
    let expressions = Attributes::default().list(1, rule.expressions.iter().map(Expression::encode));
    let mut attributes = Attributes::default().text(1, TABLE).text(2, chain.name).nested(4, &expressions);
    if !rule.comment.is_empty() {
        let mut comment = vec![0, u8::try_from(rule.comment.len() + 1).unwrap_or(u8::MAX)];
        comment.extend(rule.comment.as_bytes());
        comment.push(0);
        attributes = attributes.bytes(7, &comment);
    }
    (rule.part, message(kind::NEW_RULE, CREATE | APPEND, attributes))
}

fn new_set() -> Message {
    // NFTA_SET_TABLE, NAME, FLAGS, KEY_TYPE, KEY_LEN, ID.
    let attributes = Attributes::default()
        .text(1, TABLE)
        .text(2, EGRESS)
        .number(3, 0)
        .number(4, EGRESS_KEY_TYPE)
        .number(5, 8)
        .number(10, EGRESS_ID);
    message(kind::NEW_SET, CREATE, attributes)
}

/// The set's element for a pair: indices in host byte order, as the registers have them.
fn key(pair: (u32, u32)) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&pair.0.to_ne_bytes());
    key[4..].copy_from_slice(&pair.1.to_ne_bytes());
    key
}

fn elements(kind: u16, flags: u16, pairs: &[(u32, u32)]) -> impl Iterator<Item = Message> {
    pairs.chunks(ELEMENTS).map(move |pairs| {
        // NFTA_SET_ELEM_LIST_TABLE, SET, ELEMENTS: of each NFTA_LIST_ELEM the NFTA_SET_ELEM_KEY.
        let items = pairs.iter().map(|pair| Attributes::default().nested(1, &value(&key(*pair))));
        let list = Attributes::default().list(1, items);
        message(kind, flags, Attributes::default().text(1, TABLE).text(2, EGRESS).nested(3, &list))
    })
}

/// The transaction that replaces the table, whatever was there, with the part of each message.
pub(super) fn replace(wanted: &Wanted, features: Features) -> Vec<(Part, Message)> {
    // It is made first, so that there is one to delete.
    let mut messages = vec![(Part::Base, table(kind::NEW_TABLE, CREATE)), (Part::Base, table(kind::DEL_TABLE, 0))];
    let new = table(kind::NEW_TABLE, CREATE);
    messages.push(if features.owner {
        (Part::Owner, Message { attributes: new.attributes.number(2, OWNED), ..new })
    } else {
        (Part::Base, new)
    });
    messages.push((Part::Base, new_set()));
    messages.extend(CHAINS.map(|chain| (Part::Base, new_chain(chain))));
    let chains = [
        (PREROUTING, prerouting(wanted, features)),
        (LISTENERS, listeners(&wanted.listeners)),
        (FORWARD, forward(features)),
        (OUTPUT, output(features)),
    ];
    for (chain, rules) in &chains {
        messages.extend(rules.iter().map(|rule| new_rule(*chain, rule)));
    }
    let pairs: Vec<_> = wanted.pairs.iter().copied().collect();
    messages.extend(elements(kind::NEW_ELEMENT, CREATE, &pairs).map(|m| (Part::Base, m)));
    messages
}

/// The transaction that removes the table, whether it is there or not.
pub(super) fn remove() -> [Message; 2] {
    [table(kind::NEW_TABLE, CREATE), table(kind::DEL_TABLE, 0)]
}

/// The transaction that replaces the pairs.
pub(super) fn change_pairs(old: &BTreeSet<(u32, u32)>, new: &BTreeSet<(u32, u32)>) -> Vec<Message> {
    let added: Vec<_> = new.difference(old).copied().collect();
    let removed: Vec<_> = old.difference(new).copied().collect();
    elements(kind::DEL_ELEMENT, 0, &removed).chain(elements(kind::NEW_ELEMENT, CREATE, &added)).collect()
}

/// The transaction that replaces the listeners.
pub(super) fn change_listeners(new: &[Listener]) -> Vec<Message> {
    // Without a handle, all rules of the chain are deleted.
    let delete = Attributes::default().text(1, TABLE).text(2, LISTENERS.name);
    let mut messages = vec![message(kind::DEL_RULE, 0, delete)];
    messages.extend(listeners(new).iter().map(|rule| new_rule(LISTENERS, rule).1));
    messages
}

/// Limits a list of elements to those of the set.
pub(super) fn elements_filter() -> Attributes {
    Attributes::default().text(1, TABLE).text(2, EGRESS)
}

#[cfg(test)]
mod tests {
    use super::super::wire::{attributes, find, text};
    use super::*;

    fn wanted() -> Wanted {
        Wanted { exempt: vec!["lo".to_owned(), "mgmt0".to_owned()], pairs: [(7, 2)].into(), ..Wanted::default() }
    }

    /// The names of a rule's expressions, by chain.
    fn rules(messages: &[(Part, Message)], chain: &str) -> Vec<Vec<String>> {
        let of_chain =
            |m: &&Message| m.kind == kind::NEW_RULE && text(m.attributes.as_bytes(), 2).as_deref() == Some(chain);
        let names = |m: &Message| {
            let list = find(m.attributes.as_bytes(), 4).unwrap();
            attributes(list).map(|(_, expression)| text(expression, 1).unwrap()).collect()
        };
        messages.iter().map(|(_, m)| m).filter(of_chain).map(names).collect()
    }

    #[test]
    fn table_is_replaced_in_one_transaction() {
        let messages = replace(&wanted(), Features::ALL);
        let kinds: Vec<u16> = messages.iter().map(|(_, m)| m.kind).take(5).collect();
        assert_eq!(kinds, [kind::NEW_TABLE, kind::DEL_TABLE, kind::NEW_TABLE, kind::NEW_SET, kind::NEW_CHAIN]);
        assert_eq!(messages.last().unwrap().1.kind, kind::NEW_ELEMENT);
        let forward = rules(&messages, "forward");
        assert_eq!(forward[0], ["meta", "cmp", "immediate"]);
        assert_eq!(forward[1], ["meta", "meta", "lookup", "immediate"]);
        assert_eq!(forward[2], ["limit", "log"]);
        assert_eq!(forward[3], ["immediate"]);
        let prerouting = rules(&messages, "prerouting");
        assert_eq!(prerouting[0], ["meta", "cmp", "notrack", "immediate"]);
        assert_eq!(prerouting.len(), 4, "two exemptions");
        assert_eq!(prerouting[3], ["fib", "range", "immediate"]);
    }

    #[test]
    fn bridge_passes_what_is_for_none_of_its_own_addresses() {
        let bridge = Bridge { index: 9, own: vec![[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]] };
        let messages = replace(&Wanted { bridges: vec![bridge], ..Wanted::default() }, Features::ALL);
        let prerouting = rules(&messages, "prerouting");
        assert_eq!(prerouting[1], ["meta", "cmp", "payload", "cmp", "cmp", "immediate"]);
        assert_eq!(prerouting.len(), 3, "and the drop is the last");
    }

    #[test]
    fn table_can_do_without_what_a_kernel_lacks() {
        let none = Features { owner: false, notrack: false, log: false };
        let messages = replace(&wanted(), none);
        assert!(messages.iter().all(|(part, _)| *part == Part::Base));
        assert_eq!(rules(&messages, "forward").len(), 3);
        assert_eq!(rules(&messages, "prerouting")[0], ["meta", "cmp", "immediate"]);
        assert!(rules(&messages, "output").is_empty());
        for part in [Part::Owner, Part::Notrack, Part::Log] {
            assert!(replace(&wanted(), Features::ALL).iter().any(|(p, _)| *p == part), "{part:?}");
            assert_ne!(Features::ALL.without(part), Some(Features::ALL));
        }
        assert_eq!(Features::ALL.without(Part::Base), None);
    }

    #[test]
    fn change_of_pairs_is_the_difference() {
        let (old, new) = ([(7, 2), (7, 3)].into(), [(7, 3), (8, 2)].into());
        let messages = change_pairs(&old, &new);
        assert_eq!(messages.iter().map(|m| m.kind).collect::<Vec<_>>(), [kind::DEL_ELEMENT, kind::NEW_ELEMENT]);
        let added = find(messages[1].attributes.as_bytes(), 3).unwrap();
        let keys: Vec<_> = attributes(added).map(|(_, e)| find(find(e, 1).unwrap(), 1).unwrap().to_vec()).collect();
        assert_eq!(keys, [key((8, 2)).to_vec()]);
        assert!(change_pairs(&new, &new).is_empty());
        let many: BTreeSet<_> = (0..2_500).map(|n| (7, n)).collect();
        assert_eq!(change_pairs(&BTreeSet::new(), &many).len(), 3, "an attribute has at most 64 KiB");
    }

    #[test]
    fn listener_drops_what_comes_from_elsewhere() {
        let listener =
            |address: &str| Listener { address: address.parse().unwrap(), port: 7946, interfaces: vec![3, 4] };
        for (address, length) in [("10.9.0.1", 8), ("fd00:9::1", 8), ("0.0.0.0", 6), ("::", 4)] {
            let rules = listeners(&[listener(address)]);
            assert_eq!(rules.len(), 4, "the loopback, two interfaces, the rest");
            let (allowed, rest) = (&rules[2].expressions, &rules[3].expressions);
            assert_eq!(rest.len(), length + 1, "{address}");
            assert_eq!(rest.last(), Some(&verdict(Action::Drop)));
            assert_eq!(allowed.last(), Some(&verdict(Action::Accept)));
            assert_eq!(allowed[..length], rest[..length]);
        }
        assert_eq!(change_listeners(&[]).len(), 2, "the old ones are deleted, the loopback stays");
    }
}
