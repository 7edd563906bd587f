//! The datapath in a lab of network namespaces: what must pass passes, and GSO packets whole.
//!
//! How fast: `cargo bench -p palisade-tests -- bulk packets`.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test; the lab that it shares has more than it uses"
)]

mod datapath_member;

use std::net::{IpAddr, TcpStream, UdpSocket};
use std::time::Duration;

use datapath_member::{Fixed, KEY, PROGRAMS, start, two_interfaces};
use palisade_engine::hold::HoldLimits;
use palisade_engine::{Reason, WorkerSet};
use palisade_lab::guard::can_run;
use palisade_lab::small::{SOON, SmallLab, eventually};
use palisade_node::datapath::{Inject, Options};
use pnet::datalink::{self, Channel};

const NEVER: Duration = Duration::from_millis(300);
/// How long a stream is sent.
const STREAM: Duration = Duration::from_secs(1);

fn forwards(options: Options, mode: &str) {
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    let running = start(&lab, options, &judge).unwrap();
    assert_eq!(running.datapath.status().mode, mode);
    for v6 in [false, true] {
        assert!(lab.passes(v6, SOON), "v6: {v6}");
    }
    for address in ["10.2.0.2:7001", "[fd00:2::2]:7001"] {
        let metrics = running.datapath.metrics();
        let counts = || (metrics.forwarded(), metrics.total(|worker| worker.captured_frames.get()));
        let (packets, frames) = counts();
        let rate = lab.bulk(address, STREAM);
        let (packets_after, frames_after) = counts();
        let whole = (packets_after - packets) as f64 / (frames_after - frames) as f64;
        println!("{mode} {address}: {rate:.1} Gbit/s, {whole:.1} segments a frame");
        assert!(whole > 2.0, "GSO packets do not pass whole: {whole}");
    }
    assert!(running.datapath.healthy());
    let metrics = running.datapath.metrics();
    assert_eq!(metrics.dropped(Reason::InjectFailed), 0, "{metrics:?}");
    running.datapath.stop();
    assert!(!lab.passes(false, NEVER), "a stopped datapath forwards");
}

#[test]
fn tun_forwards_tcp_in_whole_gso_packets() {
    if can_run("tun_forwards", PROGRAMS) {
        forwards(two_interfaces(), "raw/tun");
    }
}

#[test]
fn workers_forward_where_there_are_two() {
    if can_run("two_workers_forward", PROGRAMS) {
        forwards(Options { workers: 2, ..two_interfaces() }, "raw/tun");
    }
}

#[test]
fn veth_forwards_the_same() {
    if can_run("veth_forwards", PROGRAMS) {
        forwards(Options { inject: Inject::Veth, ..two_interfaces() }, "raw/veth");
    }
}

#[test]
fn held_packet_goes_on_when_woken_and_expires_otherwise() {
    if !can_run("a_held_packet", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    // Nothing expires here while a slow machine comes to wake it.
    let hold = HoldLimits { max_time: SOON, ..HoldLimits::default() };
    let running = start(&lab, Options { hold, ..two_interfaces() }, &judge).unwrap();
    assert!(lab.passes(false, SOON));
    let metrics = running.datapath.metrics();
    let holds = || metrics.total(|worker| worker.holds.matched.get());
    judge.say(2);
    assert!(!lab.passes(false, Duration::from_millis(50)));
    eventually("it is held", || holds() == 1);
    let receiver = lab.listen(false, 7000, SOON);
    judge.say(0);
    running.wake.send(WorkerSet::of(0), KEY);
    assert!(receiver.recv(&mut [0; 64]).is_ok(), "woken, but not forwarded");
    drop(receiver);
    eventually("nothing is held any more", || holds() == 0);
    assert_eq!((metrics.total(|worker| worker.hold.count()), metrics.dropped(Reason::HoldExpired)), (1, 0));
    running.datapath.stop();

    let running = start(&lab, two_interfaces(), &judge).unwrap();
    assert!(lab.passes(false, SOON));
    let metrics = running.datapath.metrics();
    let holds = || metrics.total(|worker| worker.holds.matched.get());
    judge.say(2);
    assert!(!lab.passes(false, NEVER));
    eventually("it has expired", || metrics.dropped(Reason::HoldExpired) == 1);
    running.wake.send(WorkerSet::of(0), KEY);
    let receiver = lab.listen(false, 7000, NEVER);
    assert!(receiver.recv(&mut [0; 64]).is_err(), "it comes out late");
    assert_eq!((holds(), metrics.dropped(Reason::HoldExpired)), (0, 1), "{metrics:?}");
}

#[test]
fn egress_zones_are_the_kernels_routes_and_follow_their_changes() {
    if !can_run("egress_zones", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    judge.say(4);
    let running = start(&lab, two_interfaces(), &judge).unwrap();
    for v6 in [false, true] {
        assert!(lab.passes(v6, SOON), "v6: {v6}");
    }
    let dropped = |reason| running.datapath.metrics().dropped(reason);
    lab.member.ip("route add blackhole 10.2.0.2/32");
    eventually("its new route is none", || !lab.passes(false, NEVER) && dropped(Reason::NoRoute) >= 1);
    lab.member.ip("route del blackhole 10.2.0.2/32");
    lab.member.ip("route add 10.2.0.2/32 via 10.1.0.2 dev f0");
    eventually("its new route leads back", || !lab.passes(false, NEVER) && dropped(Reason::WrongZone) >= 1);
    lab.member.ip("route del 10.2.0.2/32");
    assert!(lab.passes(false, SOON));
    // An operator's rule about the source applies to what arrives on palisade0.
    lab.member.ip("rule add pref 100 from 10.1.0.2 unreachable");
    eventually("it is obeyed", || !lab.passes(false, NEVER));
    lab.member.ip("rule del pref 100");
}

#[test]
fn rejected_packet_is_answered() {
    if !can_run("a_rejected_packet", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    judge.say(3);
    let running = start(&lab, two_interfaces(), &judge).unwrap();
    for address in ["10.2.0.2:7009", "[fd00:2::2]:7009"] {
        let error =
            lab.client.call(move || TcpStream::connect_timeout(&address.parse().unwrap(), SOON).err().unwrap().kind());
        assert_eq!(error, std::io::ErrorKind::ConnectionRefused, "{address}");
    }
    // One for each SYN; a slow machine may send one again.
    assert!(running.datapath.metrics().rejected(Reason::PolicyReject) >= 2);
}

/// The sources of the ICMP errors that come back for datagrams to an address and are seen on the client's link, until none
/// comes for a while.
fn errors_for(lab: &SmallLab, address: &'static str, count: usize) -> Vec<IpAddr> {
    // Administratively prohibited.
    unreachable_for(lab, address, count, (13, 1))
}

/// The same, with these codes of "destination unreachable" over IPv4 and IPv6.
fn unreachable_for(lab: &SmallLab, address: &'static str, count: usize, codes: (u8, u8)) -> Vec<IpAddr> {
    lab.client.call(move || {
        let interface = datalink::interfaces().into_iter().find(|i| i.name == "c0").unwrap();
        let config = datalink::Config { read_timeout: Some(Duration::from_millis(300)), ..Default::default() };
        let Channel::Ethernet(_, mut frames) = datalink::channel(&interface, config).unwrap() else {
            panic!("no Ethernet channel")
        };
        let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).unwrap();
        for _ in 0..count {
            socket.send_to(b"reject me", address).unwrap();
        }
        let mut sources = Vec::new();
        // On a slow machine none may come for a while before the first does.
        let mut patience = 10;
        loop {
            let frame = match frames.next() {
                Ok(frame) => frame,
                Err(_) if sources.is_empty() && patience > 0 => {
                    patience -= 1;
                    continue;
                }
                Err(_) => break,
            };
            match (&frame[12..14], frame.get(23), frame.get(20)) {
                ([8, 0], Some(1), _) if frame[34..36] == [3, codes.0] => {
                    sources.push(IpAddr::from(*frame[26..].first_chunk::<4>().unwrap()));
                }
                ([0x86, 0xdd], _, Some(58)) if frame[54..56] == [1, codes.1] => {
                    sources.push(IpAddr::from(*frame[22..].first_chunk::<16>().unwrap()));
                }
                _ => {}
            }
        }
        sources
    })
}

#[test]
fn packet_without_a_route_is_answered_as_the_kernel_would() {
    if !can_run("a_packet_without_a_route", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    judge.say(4);
    let running = start(&lab, two_interfaces(), &judge).unwrap();
    assert!(lab.passes(false, SOON) && lab.passes(true, SOON));
    lab.member.ip("route add blackhole 10.9.3.0/24");
    for (kind, codes, v4, v6) in [
        ("", (0, 0), "10.9.0.1:7", "[fd00:9::1]:7"),
        ("unreachable", (1, 3), "10.9.1.1:7", "[fd00:9:1::1]:7"),
        ("prohibit", (13, 1), "10.9.2.1:7", "[fd00:9:2::1]:7"),
    ] {
        if !kind.is_empty() {
            lab.member.ip(&format!("route add {kind} 10.9.{}.0/24", if codes.0 == 1 { 1 } else { 2 }));
            lab.member.ip(&format!("route add {kind} fd00:9:{}::/48", if codes.0 == 1 { 1 } else { 2 }));
        }
        for (to, own) in [(v4, "10.1.0.1"), (v6, "fd00:1::1")] {
            assert!(lab.answers(&lab.client, own));
            let sources = unreachable_for(&lab, to, 5, codes);
            assert!(!sources.is_empty(), "{to}: the sender is told nothing");
            assert!(sources.iter().all(|source| *source == own.parse::<IpAddr>().unwrap()), "{to}: {sources:?}");
        }
    }
    let dropped = || running.datapath.metrics().dropped(Reason::NoRoute);
    let before = dropped();
    for codes in [(0, 0), (1, 3), (13, 1)] {
        assert_eq!(unreachable_for(&lab, "10.9.3.1:7", 1, codes), [] as [IpAddr; 0], "a blackhole says nothing");
    }
    assert!(dropped() > before, "and counts");
}

#[test]
fn icmp_errors_come_from_this_router_and_not_too_many() {
    if !can_run("icmp_errors_come_from_this_router", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    judge.say(3);
    let running = start(&lab, two_interfaces(), &judge).unwrap();
    let metrics = running.datapath.metrics();
    let rejected = || metrics.rejected(Reason::PolicyReject);
    let suppressed = || metrics.total(|worker| worker.icmp_errors_suppressed.get());
    for (address, own) in [("10.2.0.2:7009", "10.1.0.1"), ("[fd00:2::2]:7009", "fd00:1::1")] {
        // So that neighbour discovery is over.
        assert!(lab.answers(&lab.client, own));
        let (own, mut seen) = (own.parse::<IpAddr>().unwrap(), 0);
        eventually("five errors", || {
            let sources = errors_for(&lab, address, 5);
            assert!(sources.iter().all(|source| *source == own), "{address}: {sources:?}");
            seen += sources.len();
            seen >= 5
        });
    }
    assert_eq!(suppressed(), 0);
    // Renumbered: the next error has the new address.
    lab.member.ip("addr del 10.1.0.1/24 dev f0");
    lab.member.ip("addr add 10.1.0.9/24 dev f0");
    lab.client.ip("route replace default via 10.1.0.9");
    eventually("the new address answers", || {
        errors_for(&lab, "10.2.0.2:7009", 1) == ["10.1.0.9".parse::<IpAddr>().unwrap()]
    });
    let (before, count) = (rejected(), 2000);
    // A slow machine sends so slowly that all may be answered.
    let (mut answers, mut all) = (0, 0);
    eventually("datagrams of a burst without an answer", || {
        answers += errors_for(&lab, "10.2.0.2:7009", count).len();
        all += count;
        suppressed() > 0
    });
    let unanswered = usize::try_from(suppressed()).unwrap();
    let rejected = usize::try_from(rejected() - before).unwrap();
    // The listener may lose some of the burst, and so may the capture of a slow machine; the counters lose none. A burst of 50
    // is answered.
    assert!(
        rejected <= all && rejected >= unanswered + 50,
        "{rejected} rejected, {unanswered} of them without an answer"
    );
    assert!(answers + unanswered <= rejected, "{answers} answers, {unanswered} without, {rejected} rejected");
}
