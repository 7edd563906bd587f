//! Words of other firewalls' languages, and what there is instead. Each text completes an error's help.

/// Words, and what to write instead of them.
const FOREIGN: &[(&[&str], &str)] = &[
    (
        &["nat", "dnat", "snat", "masquerade", "rdr", "rdr-to", "nat-to", "binat", "binat-to", "redirect", "netmap"],
        "Palisade does not translate addresses: do that on the routers before or behind it",
    ),
    (
        &["limit", "rate", "meter", "hashlimit", "connlimit", "max-src-conn", "max-src-states", "synproxy"],
        "rules have no rate limits: half-open sessions are bounded per source, by the setting table.half_open_per_source",
    ),
    (&["pass", "allow", "permit"], "that action is called `accept`"),
    (&["block", "deny"], "that action is called `drop`, or `reject` if the sender gets an answer"),
    (
        &["chain", "table", "hook", "jump", "goto", "anchor", "policy", "rule"],
        "there are no chains: the first rule that matches decides, and `default` decides about the rest",
    ),
    (&["quick"], "leave it out: the first rule that matches decides"),
    (
        &["ct", "state", "ctstate", "established", "related", "keep", "flags"],
        "leave it out: packets of an accepted connection, and ICMP errors about it, need no rule",
    ),
    (
        &["in", "out", "on", "iif", "oif", "iifname", "oifname", "interface", "direction"],
        "rules name zones, not interfaces: `from ZONE to ZONE`; node.toml says which interface belongs to which zone",
    ),
    (&["port", "ports", "dport"], "a port is written with its protocol: tcp/443, udp/5000-5999"),
    (&["sport"], "rules do not match source ports"),
    (&["saddr", "daddr", "src", "dst", "ip", "ip6"], "addresses are written as `SOURCE -> DESTINATION`"),
    (&["type", "icmp-type", "echo-request"], "write icmp/echo or icmp6/echo; ICMP errors about a session need no rule"),
    (&["not"], NO_NEGATION),
    (&["include", "define", "macro"], "a policy is one file; `set` and `service` name lists in it"),
    (
        &["mark", "meta", "dscp", "tos", "ttl", "mac", "ether", "vlan", "user", "geoip", "schedule", "tag"],
        "rules match zones, addresses, protocols and destination ports only",
    ),
];

/// What there is instead of `!`.
pub(super) const NO_NEGATION: &str =
    "there is no negation: the first rule that matches decides, so put a rule for the exception before this one";

/// What there is instead of a word that is no part of the language.
pub(super) fn instead_of(word: &str) -> Option<&'static str> {
    let known = FOREIGN.iter().find(|(words, _)| words.iter().any(|known| known.eq_ignore_ascii_case(word)));
    known.map(|(_, instead)| *instead)
}

/// What there is instead of a host's name; `None` if the word does not look like one.
pub(super) fn instead_of_host(word: &str) -> Option<&'static str> {
    let (_, top) = word.rsplit_once('.')?;
    let host = top.len() >= 2 && top.bytes().all(|byte| byte.is_ascii_alphabetic());
    host.then_some(
        "names are not looked up, because a policy means the same on all members and at all times: write the host's addresses",
    )
}
