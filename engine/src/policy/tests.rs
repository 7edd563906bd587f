#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::model::number;
use super::*;
use crate::addr::Ip;
use crate::id::{RuleId, ZoneId};
use crate::tuple::{Protocol, Tuple};

const EXAMPLE: &str = r#"# Zones are bound to interfaces in each member's node.toml.
zone outside, inside, dmz

set web    = 203.0.113.10, 2001:db8::10
set admins = 198.51.100.0/24
service https = tcp/443, udp/443

default drop

accept "public web"   from outside to dmz: any -> @web tcp/80, https log
accept "admin ssh"    from inside to any: @admins -> any tcp/22
reject "no telnet"    from any to any: any -> any tcp/23
drop   "bogons"       from outside to any: @bogons -> any
"#;

fn ip(text: &str) -> Ip {
    text.parse::<IpAddr>().unwrap().into()
}

fn policy(text: &str) -> Policy {
    Policy::parse("test", text).unwrap_or_else(|error| panic!("{}", error.render()))
}

/// The messages of a wrong text, each with its place.
fn errors(text: &str) -> Vec<String> {
    let error = Policy::parse("p", text).unwrap_err();
    let line = |problem: &Problem| {
        let (line, column) = error.place(problem);
        let help = problem.advice().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{line}:{column}: {problem}{help}")
    };
    error.problems().iter().map(line).collect()
}

/// Zones get numbers from 1 in the order of their declaration.
fn compiled(policy: &Policy) -> Compiled {
    let zones: HashMap<&str, u16> = policy.zones().iter().map(String::as_str).zip(1..).collect();
    policy.compile(&mut |zone| ZoneId(zones[zone]))
}

fn tuple(protocol: Protocol, src: &str, dst: &str, dst_port: u16) -> Tuple {
    Tuple { src: ip(src), dst: ip(dst), src_port: 40000, dst_port, protocol }
}

#[test]
fn the_empty_policy_drops_everything() {
    for text in ["", "\n", "# nothing", "default drop"] {
        let empty = policy(text);
        assert_eq!(empty.to_string(), "default drop\n");
        let decision =
            compiled(&empty).decide(ZoneId::UNKNOWN, ZoneId(1), &tuple(Protocol::TCP, "192.0.2.1", "192.0.2.2", 80));
        assert_eq!(decision, Decision { action: Action::Drop, rule: RuleId(0), log: false });
    }
    let compiled = compiled(&policy("default reject log"));
    let decision = compiled.decide(ZoneId(0), ZoneId(0), &tuple(Protocol::UDP, "::2", "::3", 1));
    assert_eq!(decision, Decision { action: Action::Reject, rule: RuleId(0), log: true });
    assert_eq!((compiled.rule_text(RuleId(0)), compiled.rule_name(RuleId(0))), ("default reject log", "default"));
    assert_eq!((compiled.rule_text(RuleId(1)), compiled.rule_name(RuleId(1))), ("", ""));
}

#[test]
fn an_undeclared_set_is_shown_with_its_place() {
    let error = Policy::parse("policy.pal", EXAMPLE).unwrap_err();
    assert_eq!(error.to_string(), "the policy is not valid: 1 error");
    assert_eq!(
        error.render(),
        "\
policy.pal:13:42: there is no set named `bogons`
13 | drop   \"bogons\"       from outside to any: @bogons -> any
   |                                            ^^^^^^^ not declared
   = help: declare it: set bogons = ADDRESS, …
"
        .replace(":42:", ":44:")
    );
    let error = Policy::parse("policy.pal", &EXAMPLE.replace("@bogons", "@wbe")).unwrap_err();
    assert!(error.render().ends_with("= help: did you mean @web?\n"), "{}", error.render());
}

#[test]
fn it_is_a_diagnostic() {
    use miette::Diagnostic;
    let error = Policy::parse("policy.pal", EXAMPLE).unwrap_err();
    let problem = error.related().unwrap().next().unwrap();
    let label = problem.labels().unwrap().next().unwrap();
    let text = error.source_code().unwrap().read_span(label.inner(), 0, 0).unwrap();
    assert_eq!(text.data(), b"@bogons");
    assert_eq!((text.name(), text.line()), (Some("policy.pal"), 12));
}

#[test]
fn the_example_decides_as_it_reads() {
    let text = EXAMPLE.replace("@bogons", "192.0.2.0/24");
    let example = policy(&text);
    let compiled = compiled(&example);
    let (outside, inside, dmz) = (ZoneId(1), ZoneId(2), ZoneId(3));
    let check = |from, to, tuple: Tuple, rule| {
        let decision = compiled.decide(from, to, &tuple);
        assert_eq!(decision.rule, RuleId(rule), "{tuple}");
        decision
    };
    let (tcp, udp) = (Protocol::TCP, Protocol::UDP);
    let accepted = check(outside, dmz, tuple(tcp, "192.0.2.1", "203.0.113.10", 80), 1);
    assert_eq!((accepted.action, accepted.log), (Action::Accept, true));
    check(outside, dmz, tuple(udp, "2001:db8:9::1", "2001:db8::10", 443), 1);
    check(outside, inside, tuple(tcp, "8.8.8.8", "203.0.113.10", 80), 0);
    check(inside, dmz, tuple(tcp, "8.8.8.8", "203.0.113.10", 80), 0);
    check(outside, dmz, tuple(tcp, "8.8.8.8", "203.0.113.11", 80), 0);
    check(outside, dmz, tuple(udp, "8.8.8.8", "203.0.113.10", 80), 0);
    let ssh = check(inside, ZoneId::UNKNOWN, tuple(tcp, "198.51.100.255", "8.8.8.8", 22), 2);
    assert_eq!((ssh.action, ssh.log), (Action::Accept, false));
    check(inside, dmz, tuple(tcp, "198.51.101.0", "8.8.8.8", 22), 0);
    assert_eq!(check(ZoneId(0), ZoneId(0), tuple(tcp, "::5", "::6", 23), 3).action, Action::Reject);
    assert_eq!(check(outside, inside, tuple(Protocol(89), "192.0.2.9", "8.8.8.8", 0), 4).action, Action::Drop);
    assert_eq!(compiled.rule_text(RuleId(2)), r#"accept "admin ssh" from inside to any: @admins -> any tcp/22"#);
    assert_eq!(compiled.rule_name(RuleId(2)), "admin ssh");
}

#[test]
fn the_canonical_form() {
    let text = "\
zone outside, inside, dmz

set web = 203.0.113.10, 2001:db8::10
set admins = 198.51.100.0/24
service https = tcp/443, udp/443

default drop

accept \"public web\" from outside to dmz: any -> @web tcp/80, https log
accept \"admin ssh\" from inside to any: @admins -> any tcp/22
reject \"no telnet\" from any to any: any -> any tcp/23
drop \"bogons\" from outside to any: 192.0.2.0/24 -> any
";
    assert_eq!(policy(&EXAMPLE.replace("@bogons", "192.0.2.0/24")).to_string(), text);
    assert_eq!(policy(text).to_string(), text);
}

#[test]
fn ways_to_write() {
    let same = [
        "zone a, b\nset s = 10.0.0.0/8, ::/0\naccept \"x\" from a to b: @s -> any icmp/echo, icmp6/echo log",
        "zone a\r\nzone b\r\nset s = 10.0.0.0/8,\r\n  ::/0 # all of IPv6\r\n\taccept \"x\" from a to b:@s->any icmp,icmp6 log\r\n",
        "accept \"x\" from a to b : @s -> any proto/1, proto/58 log\ndefault drop\nset s = 10.0.0.0/8 , 0::0/0\nzone a,# first\n\n b",
        "accept \"x\" from a\u{20}to b:\t@s -> any icmp, # and\n# nothing\nicmp6/echo log\nset s = 10.0.0.0/8,::/0\nzone a,b",
    ];
    for text in same {
        assert_eq!(policy(text), policy(same[0]), "{text}");
    }
    // Colons and hyphens: what belongs to names, addresses, ranges and arrows.
    let tight = policy(
        "zone a-b, dead, x.y\naccept \"#1 -> \" from dead to any:any->::1/128 tcp/1-2\naccept \"2\" from a-b to dead: 1::->any\naccept \"3\" from any to x.y: ::/1 -> ff::1",
    );
    let rules: Vec<String> = tight.rules().iter().map(ToString::to_string).collect();
    assert_eq!(
        rules,
        [
            "accept \"#1 -> \" from dead to any: any -> ::1 tcp/1-2",
            "accept \"2\" from a-b to dead: 1:: -> any",
            "accept \"3\" from any to x.y: ::/1 -> ff::1",
        ]
    );
}

#[test]
fn every_error_is_told_at_once_with_its_place() {
    let text = "\
zone outside, outside, 1st
set web = 10.0.0.1/24, 10.0.0.300, web, ::ffff:1.2.3.4
sett x = 1.2.3.4
service s = tcp/0, udp/9-8, tcp/99999, icmp/redirect, proto/256, foo/1, later
service later = tcp
default allow
accept from any to any: any -> any
accept \"x\" from inside to any: 10.0.0.0/8 -> ::1
accept \"x\" from any, outside to any: any -> any
accept \"y\" from any to any any -> any
accept \"z\" from outsid to any: @wbe -> web htp log more
accept \"w\" from any to any: any -> 2001:db8::/32 icmp
accept \"open
drop \"v\" from any to any: any - any ;
default drop
default reject
";
    let expected = [
        "1:15: there are two zones named `outside` (the first one is in line 1)",
        "1:24: `1st` can not be a name (a name begins with a letter and has letters, digits, `_`, `-` and `.` in it, at most 63)",
        "2:11: 10.0.0.1/24 has bits set behind its length: write 10.0.0.0/24 or 10.0.0.1 (as in 192.0.2.1, 192.0.2.0/24, 2001:db8::/32, @web)",
        "2:24: `10.0.0.300` is not an IPv4 or IPv6 address (as in 192.0.2.1, 192.0.2.0/24, 2001:db8::/32, @web)",
        "2:36: `web` is not an address: to name a set, write @web (as in 192.0.2.1, 192.0.2.0/24, 2001:db8::/32, @web)",
        "2:41: `::ffff:1.2.3.4` is an IPv4 address in IPv6 notation: write 1.2.3.4 (as in 192.0.2.1, 192.0.2.0/24, 2001:db8::/32, @web)",
        "3:1: expected `zone`, `set`, `service`, `default`, `accept`, `drop` or `reject`, found `sett` (did you mean `set`?)",
        "4:13: `0` is not a port: it goes from 1 to 65535",
        "4:20: the range is empty: write 8-9",
        "4:29: `99999` is not a port: it goes from 1 to 65535",
        "4:40: only echo opens an ICMP session: write icmp/echo (errors about a session always pass)",
        "4:55: `256` is not an IP protocol number: it goes from 0 to 255",
        "4:66: `foo` is not a protocol",
        "4:73: the service `later` is declared further down (a service can name only services above it: move `later` up)",
        "6:9: expected `drop`, `reject` or `accept`, found `allow`",
        "7:8: expected the rule's name in double quotes, found `from` (a rule is: accept \"name\" from ZONE to ZONE: SOURCE -> DESTINATION SERVICE)",
        "8:17: there is no zone named `inside` (declare it: zone inside)",
        "8:32: the source is IPv4 and the destination IPv6: no packet is both (write one rule for each family, or sets with addresses of both)",
        "9:20: `any` stands alone or not at all (leave out `any`, or everything else)",
        "10:26: expected `:`, found `any` (a rule is: accept \"name\" from ZONE to ZONE: SOURCE -> DESTINATION SERVICE)",
        "11:17: there is no zone named `outsid` (did you mean outside?)",
        "11:32: there is no set named `wbe` (did you mean @web?)",
    ];
    let help = " (as in tcp/443, tcp/1000-2000, udp/53, icmp/echo, icmp6/echo, proto/47, or a service's name)";
    let found = errors(text);
    let found: Vec<&str> = found.iter().map(|line| line.strip_suffix(help).unwrap_or(line)).collect();
    // Line 11 has an error that ends it, so its names are not looked up.
    assert_eq!(found[..20], expected[..20]);
    assert_eq!(
        found[20..],
        [
            "11:40: `web` is not an address: to name a set, write @web (as in 192.0.2.1, 192.0.2.0/24, 2001:db8::/32, @web)",
            "11:52: expected `,` or the end of the line, found `more`",
            "12:8: the addresses are IPv6, and icmp is not (use icmp6/echo)",
            "13:8: the name has no end (a rule's name ends with \" on the same line)",
            "13:13: expected the rule's name in double quotes, found the end of the line (a rule is: accept \"name\" from ZONE to ZONE: SOURCE -> DESTINATION SERVICE)",
            "14:31: `-` means nothing here",
            "14:33: expected `->`, found `any` (a rule is: accept \"name\" from ZONE to ZONE: SOURCE -> DESTINATION SERVICE)",
            "14:37: `;` means nothing here",
            "16:1: a second default (the first one is in line 15)",
        ]
    );
}
