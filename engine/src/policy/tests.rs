#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::net::IpAddr;

use super::*;
use crate::addr::Ip;
use crate::id::{RuleId, ZoneId};
use crate::parse::{IpOption, IpOptions};
use crate::timeouts::{Seconds, Timeout, Timeouts};
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

/// The messages of an invalid text, each with its position.
fn errors(text: &str) -> Vec<String> {
    let error = Policy::parse("p", text).unwrap_err();
    let line = |problem: &Problem| {
        let (line, column) = error.place(problem);
        let help = problem.advice().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{line}:{column}: {problem}{help}")
    };
    error.problems().iter().map(line).collect()
}

/// Compiles a policy with zone numbers from 1, in the order of declaration.
fn compiled(policy: &Policy) -> Compiled {
    let zones: HashMap<&str, u16> = policy.zones().iter().map(String::as_str).zip(1..).collect();
    policy.compile(&mut |zone| ZoneId(zones[zone]))
}

fn tuple(protocol: Protocol, src: &str, dst: &str, dst_port: u16) -> Tuple {
    Tuple { src: ip(src), dst: ip(dst), src_port: 40000, dst_port, protocol }
}

#[test]
fn policy_without_rules_drops_everything() {
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
fn set_that_is_undeclared_is_reported_with_its_position() {
    let error = Policy::parse("policy.pal", EXAMPLE).unwrap_err();
    assert_eq!(error.to_string(), "the policy is not valid: 1 error");
    assert_eq!(
        error.render(),
        "\
policy.pal:13:44: there is no set named `bogons`
13 | drop   \"bogons\"       from outside to any: @bogons -> any
   |                                            ^^^^^^^ not declared
   = help: declare it: set bogons = ADDRESS, …
"
    );
    let error = Policy::parse("policy.pal", &EXAMPLE.replace("@bogons", "@wbe")).unwrap_err();
    assert!(error.render().ends_with("= help: did you mean @web?\n"), "{}", error.render());
}

#[test]
fn policy_error_is_a_miette_diagnostic() {
    use miette::Diagnostic;
    let error = Policy::parse("policy.pal", EXAMPLE).unwrap_err();
    let problem = error.related().unwrap().next().unwrap();
    let label = problem.labels().unwrap().next().unwrap();
    let text = error.source_code().unwrap().read_span(label.inner(), 0, 0).unwrap();
    assert_eq!(text.data(), b"@bogons");
    assert_eq!((text.name(), text.line()), (Some("policy.pal"), 12));
}

#[test]
fn policy_example_decides_as_documented() {
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
fn policy_display_writes_canonical_form() {
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
fn policy_spelling_variants_parse_to_the_same_policy() {
    let same = [
        "zone a, b\nset s = 10.0.0.0/8, ::/0\naccept \"x\" from a to b: @s -> any icmp/echo, icmp6/echo log",
        "zone a\r\nzone b\r\nset s = 10.0.0.0/8,\r\n  ::/0 # all of IPv6\r\n\taccept \"x\" from a to b:@s->any icmp,icmp6 log\r\n",
        "accept \"x\" from a to b : @s -> any proto/1, proto/58 log\ndefault drop\nset s = 10.0.0.0/8 , 0::0/0\nzone a,# first\n\n b",
        "accept \"x\" from a\u{20}to b:\t@s -> any icmp, # and\n# nothing\nicmp6/echo log\nset s = 10.0.0.0/8,::/0\nzone a,b",
    ];
    for text in same {
        assert_eq!(policy(text), policy(same[0]), "{text}");
    }
    // Colons and hyphens in names, addresses, ranges and arrows.
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
fn policy_errors_are_all_reported_with_their_positions() {
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
        "1:24: `1st` cannot be a name (a name begins with a letter or `_` and contains up to 63 letters, digits, `_`, `-` and `.`)",
        "2:11: 10.0.0.1/24 has bits set beyond its length: write 10.0.0.0/24 or 10.0.0.1 (as in 192.0.2.1, 192.0.2.0/24, 2001:db8::/32, @web)",
        "2:24: `10.0.0.300` is not an IPv4 or IPv6 address (as in 192.0.2.1, 192.0.2.0/24, 2001:db8::/32, @web)",
        "2:36: `web` is not an address: to name a set, write @web (as in 192.0.2.1, 192.0.2.0/24, 2001:db8::/32, @web)",
        "2:41: `::ffff:1.2.3.4` is an IPv4 address in IPv6 notation: write 1.2.3.4 (as in 192.0.2.1, 192.0.2.0/24, 2001:db8::/32, @web)",
        "3:1: expected `zone`, `set`, `service`, `timeout`, `default`, `ip-options`, `accept`, `drop` or `reject`, found `sett` (did you mean `set`?)",
        "4:13: `0` is not a port: it goes from 1 to 65535",
        "4:20: the range is empty: write 8-9",
        "4:29: `99999` is not a port: it goes from 1 to 65535",
        "4:40: only echo opens an ICMP session: write icmp/echo (ICMP errors about a session are always forwarded)",
        "4:55: `256` is not an IP protocol number: it goes from 0 to 255",
        "4:66: `foo` is not a protocol",
        "4:73: the service `later` is declared below (a service can refer only to services above it: move `later` up)",
        "6:9: expected `drop`, `reject` or `accept`, found `allow` (that action is called `accept`)",
        "7:8: expected the rule's name in double quotes, found `from` (a rule is: accept \"name\" from ZONE to ZONE: SOURCE -> DESTINATION SERVICE)",
        "8:17: there is no zone named `inside` (declare it: zone inside)",
        "8:32: the source is IPv4 and the destination IPv6: no packet has both (write one rule for each family, or sets with addresses of both)",
        "9:20: `any` cannot be part of a list (remove `any`, or everything else)",
        "10:28: expected `:`, found `any` (a rule is: accept \"name\" from ZONE to ZONE: SOURCE -> DESTINATION SERVICE)",
        "11:17: there is no zone named `outsid` (did you mean outside?)",
        "11:32: there is no set named `wbe` (did you mean @web?)",
        "11:40: `web` is not an address: to name a set, write @web (as in 192.0.2.1, 192.0.2.0/24, 2001:db8::/32, @web)",
        "11:44: there is no service named `htp` (declare it: service htp = tcp/PORT, …)",
        "11:52: expected `,` or the end of the line, found `more`",
        "12:8: the addresses are IPv6, and icmp is not (use icmp6/echo)",
        "13:8: the name is not terminated (a rule's name ends with \" on the same line)",
        "13:13: expected the rule's name in double quotes, found the end of the line (a rule is: accept \"name\" from ZONE to ZONE: SOURCE -> DESTINATION SERVICE)",
        "14:31: unexpected `-`",
        "14:33: expected `->`, found `any` (a rule is: accept \"name\" from ZONE to ZONE: SOURCE -> DESTINATION SERVICE)",
        "14:37: unexpected `;`",
        "16:1: a second default (the first one is in line 15)",
    ];
    let help = " (as in tcp/443, tcp/1000-2000, udp/53, icmp/echo, icmp6/echo, proto/47, or a service's name)";
    let found = errors(text);
    let found: Vec<&str> = found.iter().map(|line| line.strip_suffix(help).unwrap_or(line)).collect();
    assert_eq!(found, expected);
}

#[test]
fn policy_error_causes_no_follow_up_errors() {
    // An invalid declaration still declares its name.
    let cases = [
        ("set s = x\naccept \"r\" from any to any: @s -> any", 1),
        ("set s\naccept \"r\" from any to any: @s -> ::1", 1),
        ("service s = tcp/0\naccept \"r\" from any to any: 10.0.0.1 -> any s", 1),
        ("zone a,\nset s = 1.1.1.1\naccept \"r\" from a to any: @s -> any", 1),
        ("set @s = 1.1.1.1", 1),
        ("zone any", 1),
        ("set s = any", 1),
        ("accept \"r\" from any to any: 1.1.1.1, any -> any", 1),
        ("accept \"\" from any to any: any -> any", 1),
        ("accept \"r\" from any to any: any -> any tcp,", 1),
        ("zone a\naccept \"r\" from a, a to any: any -> any", 1),
        ("accept \"r\" from any to any: any -> any\ndrop \"r\" from any to any: any -> any", 1),
        ("set s = @s", 1),
        ("set s = @t, @t\nset t = @s", 2),
        ("timeout", 1),
        ("timeout icmp", 1),
        ("timeout icmp 5s,", 1),
        ("timeout any", 1),
        ("timeout icmp 5s tcp.close 5s", 1),
        ("=", 1),
        ("\u{e9}\u{e8}", 2),
        ("accept \"r\" from any to any: any -> any any, tcp", 1),
    ];
    for (text, count) in cases {
        assert_eq!(errors(text).len(), count, "{text}: {:#?}", errors(text));
    }
}

/// What other firewalls have is told apart from a typing mistake: one error for each, with what there is instead.
#[test]
fn words_of_other_firewalls_get_what_there_is_instead() {
    let rule = |rest: &str| format!("zone a, b\naccept \"r\" from a to b: {rest}\n");
    let cases = [
        ("nat on eth0 from any to any -> 192.0.2.1".to_owned(), "does not translate addresses"),
        ("masquerade".to_owned(), "does not translate addresses"),
        ("rdr pass on em0 proto tcp".to_owned(), "does not translate addresses"),
        (rule("any -> any tcp/80 dnat"), "does not translate addresses"),
        ("pass in quick on em0".to_owned(), "called `accept`"),
        ("block in all".to_owned(), "called `drop`"),
        ("chain input".to_owned(), "the first rule that matches decides"),
        (rule("any -> any tcp/22 limit rate 5/minute"), "table.half_open_per_source"),
        (rule("any -> any limit"), "table.half_open_per_source"),
        (rule("any -> !192.0.2.1 tcp/80"), "there is no negation"),
        (rule("not 192.0.2.1 -> any tcp/80"), "there is no negation"),
        (rule("any -> any tcp/22,3389"), "each port has its protocol: tcp/3389"),
        (rule("any -> any udp/53, 5353, tcp/80"), "each port has its protocol: udp/5353"),
        (rule("any -> any 443"), "each port has its protocol: tcp/443"),
        (rule("any -> any tcp/{80, 443}"), "no braces, and each port its protocol: tcp/80, tcp/443"),
        (rule("any -> any tcp/{80"), "no braces, and each port its protocol"),
        ("set s = { 192.0.2.1, 192.0.2.2 }".to_owned(), "a list has no braces"),
        (rule("any -> any tcp dport 443"), "written with its protocol"),
        (rule("any -> any tcp/80 ct state established"), "need no rule"),
        (rule("any -> any icmp type echo-request"), "icmp/echo"),
        ("set s = 192.0.2.1, www.example.com".to_owned(), "names are not looked up"),
        (rule("any -> db.example.com tcp/80"), "names are not looked up"),
        ("accept \"r\" from a on eth0".to_owned(), "zones, not interfaces"),
    ];
    for (text, instead) in cases {
        let errors = errors(&text);
        assert!(errors.iter().any(|error| error.contains(instead)), "{text}: {errors:#?}");
        assert_eq!(errors.len(), 1, "{text}: {errors:#?}");
    }
}

#[test]
fn policy_timeouts_are_parsed_and_validated() {
    let text =
        "timeout tcp.established 1d, udp.unreplied 10s,\n  generic 90s # a minute and a half\ntimeout icmp 120s\n";
    let read = policy(text);
    let secs = |policy: &Policy, timeout| policy.timeouts().get(timeout).as_secs();
    assert_eq!(secs(&read, Timeout::TcpEstablished), 86_400);
    assert_eq!(secs(&read, Timeout::UdpUnreplied), 10);
    assert_eq!(secs(&read, Timeout::TcpClose), 10, "the default");
    // Only non-default values, on one line, in the order of the list, in the largest unit.
    let canonical = "timeout tcp.established 1d, udp.unreplied 10s, icmp 2m, generic 90s\n\ndefault drop\n";
    assert_eq!(read.to_string(), canonical);
    assert_eq!(policy("timeout tcp.close 10s, tcp.established 120h").to_string(), "default drop\n");
    assert_eq!(compiled(&read).timeouts(), read.timeouts());

    let names = "the timeouts are tcp.syn_sent, tcp.syn_recv, tcp.established, tcp.fin_wait, tcp.close_wait, tcp.last_ack, \
                 tcp.time_wait, tcp.close, udp.unreplied, udp.assured, icmp, gre.unreplied, gre.assured, generic";
    let unknown = |name: &str, meant: &str| format!("there is no timeout named `{name}` ({meant}{names})");
    let wrong = "timeout tcp.establish 5d, xyz 5s, icmp 5s, icmp 6s\ntimeout generic 5, tcp.close 0s, udp.assured 31d\n\
                 timeout icmp 7m, gre.assured abc, tcp 1s\n";
    assert_eq!(
        errors(wrong),
        [
            format!("1:9: {}", unknown("tcp.establish", "did you mean tcp.established? ")),
            format!("1:27: {}", unknown("xyz", "")),
            "1:44: the timeout `icmp` is set twice (the first one is in line 1)".to_owned(),
            "2:17: `5` has no unit: s, m, h or d (as in 30s, 5m, 2h, 5d)".to_owned(),
            "2:30: `0s` is out of bounds: from 1s to 30d (as in 30s, 5m, 2h, 5d)".to_owned(),
            "2:46: `31d` is out of bounds: from 1s to 30d (as in 30s, 5m, 2h, 5d)".to_owned(),
            "3:9: the timeout `icmp` is set twice (the first one is in line 1)".to_owned(),
            "3:30: `abc` is not a time (as in 30s, 5m, 2h, 5d)".to_owned(),
            format!("3:35: {}", unknown("tcp", "")),
        ]
    );

    let json = serde_json::to_value(&read).unwrap();
    let map = serde_json::json!({"tcp.established": "1d", "udp.unreplied": "10s", "icmp": "2m", "generic": "90s"});
    assert_eq!(json["timeouts"], map);
    assert_eq!(serde_json::from_value::<Policy>(json).unwrap(), read);
    assert_eq!(serde_json::to_value(policy("")).unwrap().get("timeouts"), None);
    for (map, message) in [
        ("{\"tcp\": \"1s\"}", "there is no timeout named `tcp`"),
        ("{\"icmp\": \"1s\", \"icmp\": \"2s\"}", "set twice"),
        ("{\"icmp\": \"1\"}", "no unit"),
        ("{\"icmp\": 1}", "expected a string"),
        ("[\"icmp\"]", "timeouts by name"),
    ] {
        let text = format!("{{\"default\": {{\"action\": \"drop\"}}, \"timeouts\": {map}}}");
        let error = serde_json::from_str::<Policy>(&text).unwrap_err().to_string();
        assert!(error.contains(message), "{map}: {error}");
    }

    let warned = |text: &str| policy(text).warnings().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        warned("timeout tcp.established 123m, tcp.close_wait 1m, tcp.time_wait 59s, udp.assured 119s"),
        [
            "timeout tcp.established is below 124m: idle connections are dropped before their keep-alive packets arrive (RFC \
             5382 REQ-5)",
            "timeout tcp.close_wait is below 124m: a connection that one end has closed is open in the other direction (RFC \
             5382 section 5)",
            "timeout tcp.time_wait is below 1m: late packets of a closed connection may still arrive (RFC 9293 section \
             3.4.2; Linux waits 60 seconds itself)",
            "timeout udp.assured is below 2m: applications rely on two minutes (RFC 4787 REQ-5)",
        ]
    );
    assert!(warned("timeout tcp.established 124m, tcp.time_wait 1m, udp.assured 2m, udp.unreplied 1s").is_empty());
    assert!(warned("").is_empty(), "the defaults");
}

#[test]
fn set_and_service_can_refer_to_earlier_ones() {
    let policy = policy(
        "set a = 10.0.0.0/9\nset b = @a, 10.128.0.0/9, ::/128\nservice s = tcp/1\nservice t = s, udp/2\n\
         accept \"r\" from any to any: @b -> any t",
    );
    let compiled = compiled(&policy);
    let rule =
        |protocol, src, dst, port| compiled.decide(ZoneId(0), ZoneId(0), &tuple(protocol, src, dst, port)).rule.0;
    assert_eq!(rule(Protocol::TCP, "10.255.255.255", "1.1.1.1", 1), 1);
    assert_eq!(rule(Protocol::UDP, "10.0.0.0", "1.1.1.1", 2), 1);
    assert_eq!(rule(Protocol::UDP, "::", "::1", 2), 1);
    assert_eq!(rule(Protocol::TCP, "11.0.0.0", "1.1.1.1", 1), 0);
    assert_eq!(rule(Protocol::TCP, "9.255.255.255", "1.1.1.1", 1), 0);
    assert_eq!(rule(Protocol::TCP, "10.0.0.0", "1.1.1.1", 2), 0);
}

#[test]
fn policy_over_a_limit_is_refused() {
    let long = "#".repeat(MAX_TEXT + 1);
    assert_eq!(errors(&long), ["1:1: the policy has 4194305 bytes; the maximum is 4194304"]);
    Policy::parse("p", &long[1..]).unwrap();

    let rule = |n| format!("drop \"{n}\" from any to any: any -> any\n");
    let mut rules: String = (0..MAX_RULES).map(rule).collect();
    assert_eq!(policy(&rules).rules().len(), MAX_RULES);
    rules += &rule(MAX_RULES);
    assert_eq!(errors(&rules), ["65536:6: more than 65535 rules"]);

    // A set in a set counts with all its members: a few lines could name very many addresses.
    let base: Vec<String> =
        (0..60_000u32).map(|n| format!("10.{}.{}.{}", n >> 15, n >> 7 & 255, n << 1 & 255)).collect();
    let mut sets = format!("set s0 = {}\n", base.join(", "));
    for n in 1..100 {
        sets += &format!("set s{n} = @s{}\n", n - 1);
    }
    let found = errors(&sets);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("1:5: the sets have 6000000 ranges in all; a policy can have 2097152"), "{found:?}");
    let mut rules = format!("set s = {}\n", base.join(", "));
    for n in 0..40 {
        rules += &format!("drop \"{n}\" from any to any: @s -> any\n");
    }
    let found = errors(&rules);
    assert!(found.len() == 1 && found[0].starts_with("2:6: the rules have 2400000 ranges in all;"), "{found:?}");

    let errors = errors(&"!\n".repeat(5000));
    assert_eq!(errors.len(), 1001);
    assert_eq!(errors[1000], "5001:1: 4000 further errors are not shown");
}

#[test]
fn policy_json_form_is_checked_like_the_text() {
    let text = "zone a\nset s = 10.0.0.0/8, ::1\nservice w = tcp/80-81, icmp/echo, proto/47\ndefault reject log\n\
                ip-options timestamp, router-alert\n\
                accept \"r\" from a to any: @s -> any w log\ndrop \"d\" from any to a: 1.1.1.1 -> any";
    let json = serde_json::to_value(policy(text)).unwrap();
    let expected = serde_json::json!({
        "zones": ["a"],
        "sets": [{"name": "s", "members": ["10.0.0.0/8", "::1"]}],
        "services": [{"name": "w", "members": ["tcp/80-81", "icmp/echo", "proto/47"]}],
        "default": {"action": "reject", "log": true},
        "ip_options": ["timestamp", "router-alert"],
        "rules": [
            {"action": "accept", "name": "r", "from": ["a"], "to": "any", "source": ["@s"], "destination": "any",
             "services": ["w"], "log": true},
            {"action": "drop", "name": "d", "from": "any", "to": ["a"], "source": ["1.1.1.1"], "destination": "any",
             "services": "any", "log": false},
        ],
    });
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_value::<Policy>(json.clone()).unwrap(), policy(text));

    // The JSON form is checked as strictly as the text.
    let wrong = [
        ("/zones/0", "b c".into(), "there is no zone"),
        ("/zones/0", "a\nzone b".into(), "contains characters"),
        ("/rules/0/name", "x\" from any to any: any -> any #".into(), "contains characters"),
        ("/rules/0/name", "".into(), "invalid rule name"),
        ("/rules/0/source", serde_json::json!(["@t"]), "there is no set named `t`"),
        ("/rules/0/source", serde_json::json!([]), "expected"),
        ("/rules/0/source", serde_json::json!(["10.0.0.1/8"]), "did not match"),
        ("/rules/0/action", "allow".into(), "unknown variant"),
        ("/default/also", true.into(), "unknown field"),
        ("/ip_options/0", "timestamps".into(), "not an IPv4 option"),
        ("/ip_options/0", "router-alert".into(), "duplicated"),
    ];
    for (place, value, message) in wrong {
        let mut changed = json.clone();
        match (changed.pointer_mut(place), place.rsplit_once('/')) {
            (Some(field), _) => *field = value,
            (None, Some((parent, key))) => changed.pointer_mut(parent).unwrap()[key] = value,
            _ => unreachable!(),
        }
        let error = serde_json::from_value::<Policy>(changed).unwrap_err().to_string();
        assert!(error.contains(message), "{place}: {error}");
    }
}

#[test]
fn policy_warnings_name_likely_mistakes() {
    let text = "\
zone a, b
set used = 10.0.0.0/8
set inner = 10.1.0.0/16
set unused = @inner
service w = tcp/80, tcp/81
service idle = w
accept \"1\" from any to a, b: @used -> any tcp/1-1000
accept \"2\" from a to b: 10.2.0.0/16 -> ::/0, 1.1.1.1 w
drop \"3\" from a to b: 10.2.0.0/16, 11.0.0.0/8 -> any w
drop \"4\" from a to any: 10.2.0.0/16 -> any w
drop \"5\" from a to b: 10.9.9.9 -> any tcp/500
drop \"6\" from any to any: ::/0 -> any
drop \"7\" from b to any: ::1 -> ::2 icmp6
";
    let warnings: Vec<String> = policy(text).warnings().iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "rule 2 \"2\" never matches: rule 1 \"1\" covers it with the same action",
            "rule 5 \"5\" never matches: rule 1 \"1\" covers it with another action",
            "rule 7 \"7\" never matches: rule 6 \"6\" covers it with the same action",
            "set unused is not used",
            "service idle is not used",
        ]
    );
}

#[test]
fn policy_ip_options_are_parsed_and_validated() {
    assert_eq!(compiled(&policy("")).ip_options(), IpOptions::NONE);
    let text = "default drop\nip-options router-alert, timestamp\n";
    let (written, expected) = (policy(text), [IpOption::RouterAlert, IpOption::Timestamp]);
    assert_eq!((written.to_string().as_str(), written.ip_options()), (text, &expected[..]));
    assert_eq!(compiled(&written).ip_options(), expected.into_iter().collect());
    // On several lines, in several statements, before or after the rest.
    for same in
        ["ip-options router-alert,\n  timestamp\n", "ip-options router-alert\ndefault drop\nip-options timestamp"]
    {
        assert_eq!(policy(same), written, "{same}");
    }
    for option in IpOption::ALL {
        let text = format!("default drop\nip-options {option}\n");
        assert_eq!(policy(&text).to_string(), text);
    }
    let known = "record-route, quick-start, timestamp, security, lsrr, extended-security, cipso, ssrr, router-alert";
    let wrong = [
        ("ip-options router-alarm", "did you mean `router-alert`?".to_owned()),
        ("ip-options stream-id", format!("write one of {known}")),
        ("ip-options 148", format!("write one of {known}")),
    ];
    for (text, help) in wrong {
        let word = text.rsplit(' ').next().unwrap();
        assert_eq!(errors(text), [format!("1:12: `{word}` is not an IPv4 option that can be allowed ({help})")]);
    }
    assert_eq!(errors("ip-options lsrr, lsrr"), ["1:18: `lsrr` is duplicated in this list"]);
    assert_eq!(errors("ip-options lsrr\nip-options ssrr, lsrr"), ["2:18: `lsrr` is duplicated in this list"]);
    assert_eq!(errors("ip-options"), ["1:11: expected an IPv4 option, found the end of the line"]);
    assert_eq!(errors("ip-options any").len(), 1);
    assert_eq!(errors("ip-options log"), ["1:12: expected an IPv4 option, found `log`"]);
    assert_eq!(errors("zone ip-options").len(), 1);
    let warnings: Vec<String> =
        policy("ip-options lsrr, timestamp, ssrr").warnings().iter().map(ToString::to_string).collect();
    let warning = |option| {
        format!(
            "ip-options {option} allows source routes: rules see the next hop of a packet, not its final destination"
        )
    };
    assert_eq!(warnings, [warning("lsrr"), warning("ssrr")]);
}

#[test]
fn service_of_sctp_has_ports() {
    let text = "default drop\n\naccept \"s1ap\" from any to any: any -> any sctp/36412, sctp/1-9\naccept \"all\" from any to any: ::/0 -> any sctp\n";
    let written = policy(text);
    assert_eq!(written.to_string(), text);
    let compiled = compiled(&written);
    let rule = |src, dst, port| compiled.decide(ZoneId(0), ZoneId(0), &tuple(Protocol::SCTP, src, dst, port)).rule;
    let (v4, v6) = (("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2"));
    assert_eq!([36412, 9, 10].map(|port| rule(v4.0, v4.1, port)), [1, 1, 0].map(RuleId));
    assert_eq!([36412, 10].map(|port| rule(v6.0, v6.1, port)), [1, 2].map(RuleId));
    let udp = tuple(Protocol::UDP, v4.0, v4.1, 36412);
    assert_eq!(compiled.decide(ZoneId(0), ZoneId(0), &udp).rule, RuleId(0));
    assert_eq!(
        policy("accept \"x\" from any to any: any -> any proto/132"),
        policy("accept \"x\" from any to any: any -> any sctp")
    );
    assert_eq!(errors("service s = sctp/0").len(), 1);
}

/// More than 4,096 rules: several groups of blocks.
#[test]
fn policy_with_more_than_4096_rules_decides_correctly() {
    let mut text = String::new();
    for n in 0..10_000u32 {
        let source = if n % 3 == 0 { "any".to_owned() } else { format!("10.{}.{}.0/24", n >> 8, n & 255) };
        text +=
            &format!("accept \"{n}\" from any to any: {source} -> 172.16.{}.{} tcp/{}\n", n >> 8, n & 255, n % 7 + 1);
    }
    let policy = policy(&text);
    let compiled = compiled(&policy);
    for n in 0..10_000u32 {
        let octet = |shift: u32| (n >> shift & 255) as u8;
        let tuple = |port: u32| Tuple {
            src: Ip::V4([10, octet(8), octet(0), 7]),
            dst: Ip::V4([172, 16, octet(8), octet(0)]),
            src_port: 1,
            dst_port: port as u16,
            protocol: Protocol::TCP,
        };
        assert_eq!(compiled.decide(ZoneId(0), ZoneId(0), &tuple(n % 7 + 1)).rule, RuleId(n + 1));
        assert_eq!(compiled.decide(ZoneId(0), ZoneId(0), &tuple(n % 7 + 2)).rule, RuleId(0));
    }
    assert_eq!(policy.warnings(), []);
}

/// The examples in the documentation are valid policies.
#[test]
fn policy_examples_in_docs_are_valid() {
    let text = include_str!("../../../docs/policy.md");
    let blocks: Vec<&str> = text.split("```").skip(1).step_by(2).collect();
    let policies: Vec<Policy> = blocks
        .iter()
        .filter(|block| block.contains("\nzone ") && !block.contains("statement"))
        .map(|block| policy(block.strip_prefix('\n').unwrap()))
        .collect();
    assert_eq!(policies.iter().map(|policy| policy.rules().len()).collect::<Vec<_>>(), [4, 3]);
    assert!(policies.iter().all(|policy| policy.warnings().is_empty()));
    let json = blocks.iter().find_map(|block| block.strip_prefix("json\n")).unwrap();
    assert_eq!(serde_json::from_str::<Policy>(json).unwrap().rules().len(), 1);
    // The table of timeouts.
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | `"));
    let defaults: Vec<(&str, &str)> = rows
        .filter(|(name, _)| Timeout::named(name).is_some())
        .map(|(name, rest)| (name, rest.split('`').next().unwrap()))
        .collect();
    let expected: Vec<(&str, String)> = Timeout::ALL
        .iter()
        .map(|t| (t.name(), Seconds(Timeouts::DEFAULT.get(*t).as_secs() as u32).to_string()))
        .collect();
    assert_eq!(defaults, expected.iter().map(|(name, time)| (*name, time.as_str())).collect::<Vec<_>>());
    for keyword in super::model::KEYWORDS {
        let line = text.lines().find(|line| line.starts_with("The keywords are:")).unwrap();
        assert!(line.contains(keyword), "{keyword}");
    }
}

mod random;
