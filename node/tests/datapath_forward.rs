//! The datapath in a lab of network namespaces: what must pass passes, whole and fast.
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
use palisade_engine::parse::build;
use palisade_engine::{Protocol, Reason, Tuple, WorkerSet};
use palisade_lab::guard::can_run;
use palisade_lab::small::{SmallLab, eventually};
use palisade_node::clock;
use palisade_node::datapath::{Inject, Options};
use pnet::datalink::{self, Channel};

const SOON: Duration = Duration::from_secs(2);
const NEVER: Duration = Duration::from_millis(300);

fn forwards(options: Options, mode: &str, least: f64) {
    let lab = SmallLab::new();
    // The kernel's own forwarding, on the same machine at the same time, is what the rest is to be compared with.
    let kernel = lab.bulk("10.2.0.2:7001", SOON);
    println!("kernel: {kernel:.1} Gbit/s");
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
        let rate = lab.bulk(address, SOON);
        let (packets_after, frames_after) = counts();
        let whole = (packets_after - packets) as f64 / (frames_after - frames) as f64;
        println!("{mode} {address}: {rate:.1} Gbit/s, {whole:.1} segments a frame");
        assert!(rate > least, "{rate} Gbit/s");
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
        forwards(two_interfaces(), "raw/tun", 1.0);
    }
}

#[test]
fn two_workers_forward() {
    if can_run("two_workers_forward", PROGRAMS) {
        forwards(Options { workers: 2, ..two_interfaces() }, "raw/tun", 1.0);
    }
}

#[test]
fn veth_forwards_the_same() {
    if can_run("veth_forwards", PROGRAMS) {
        forwards(Options { inject: Inject::Veth, ..two_interfaces() }, "raw/veth", 1.0);
    }
}

#[test]
fn a_held_packet_goes_on_when_woken_and_expires_otherwise() {
    if !can_run("a_held_packet", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    let running = start(&lab, two_interfaces(), &judge).unwrap();
    assert!(lab.passes(false, SOON));
    let metrics = running.datapath.metrics();
    let holds = || metrics.total(|worker| worker.holds.matched.get());
    judge.say(2);
    assert!(!lab.passes(false, Duration::from_millis(50)));
    assert_eq!(holds(), 1, "{metrics:?}");
    let receiver = lab.listen(false, 7000, SOON);
    judge.say(0);
    running.wake.send(WorkerSet::of(0), KEY);
    assert!(receiver.recv(&mut [0; 64]).is_ok(), "woken, but not forwarded");
    drop(receiver);
    eventually("nothing is held any more", || holds() == 0);
    assert_eq!((metrics.total(|worker| worker.hold.count()), metrics.dropped(Reason::HoldExpired)), (1, 0));
    judge.say(2);
    assert!(!lab.passes(false, Duration::from_millis(600)));
    running.wake.send(WorkerSet::of(0), KEY);
    std::thread::sleep(Duration::from_millis(50));
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
    std::thread::sleep(Duration::from_millis(100));
    assert!(!lab.passes(false, NEVER));
    assert!(dropped(Reason::NoRoute) >= 1);
    lab.member.ip("route del blackhole 10.2.0.2/32");
    lab.member.ip("route add 10.2.0.2/32 via 10.1.0.2 dev f0");
    std::thread::sleep(Duration::from_millis(100));
    assert!(!lab.passes(false, NEVER));
    assert!(dropped(Reason::WrongZone) >= 1);
    lab.member.ip("route del 10.2.0.2/32");
    std::thread::sleep(Duration::from_millis(100));
    assert!(lab.passes(false, SOON));
    // An operator's rule about the source applies to what comes in by palisade0.
    lab.member.ip("rule add pref 100 from 10.1.0.2 unreachable");
    std::thread::sleep(Duration::from_millis(100));
    assert!(!lab.passes(false, NEVER));
    lab.member.ip("rule del pref 100");
}

#[test]
fn a_rejected_packet_is_answered() {
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
    assert_eq!(running.datapath.metrics().rejected(Reason::PolicyReject), 2);
}

/// The sources of the ICMP errors that come back for datagrams to an address and are seen on the client's link.
fn errors_for(lab: &SmallLab, address: &'static str, count: usize) -> Vec<IpAddr> {
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
        while let Ok(frame) = frames.next() {
            match (&frame[12..14], frame.get(23), frame.get(20)) {
                // Destination unreachable, administratively prohibited.
                ([8, 0], Some(1), _) if frame[34..36] == [3, 13] => {
                    sources.push(IpAddr::from(*frame[26..].first_chunk::<4>().unwrap()));
                }
                ([0x86, 0xdd], _, Some(58)) if frame[54..56] == [1, 1] => {
                    sources.push(IpAddr::from(*frame[22..].first_chunk::<16>().unwrap()));
                }
                _ => {}
            }
        }
        sources
    })
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
        let sources = errors_for(&lab, address, 5);
        assert_eq!(sources, vec![own.parse::<IpAddr>().unwrap(); 5], "{address}");
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
    let answers = errors_for(&lab, "10.2.0.2:7009", count).len();
    let unanswered = usize::try_from(suppressed()).unwrap();
    assert_eq!(usize::try_from(rejected() - before).unwrap(), count);
    assert!(unanswered > 0, "{count} datagrams in one burst were all answered");
    // The listener may lose some of the burst; the counter loses none. A burst of 50 is allowed.
    assert!(unanswered <= count - 50 && answers + unanswered <= count, "{answers} answers, {unanswered} without");
}

/// Floods the member with small datagrams for two seconds; how many a second arrived at the server's interface, in
/// millions.
fn flood(lab: &SmallLab) -> f64 {
    let ip = |b: [u8; 4]| std::net::IpAddr::from(b).into();
    let (src, dst) = (ip([10, 1, 0, 2]), ip([10, 2, 0, 2]));
    let tuple = Tuple { src, dst, src_port: 9, dst_port: 9, protocol: Protocol::UDP };
    let mut frame = lab.member.mac("f0").to_vec();
    frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
    frame.extend(build::udp(&tuple, &[0; 18]).unwrap());
    let mut sender = lab.client.wire("c0");
    let arrived = || {
        let text = lab.server.ip("-j -s link show s0");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json.pointer("/0/stats64/rx/packets").unwrap().as_u64().unwrap()
    };
    let (before, begin) = (arrived(), clock::now());
    while clock::now().since(begin) < Duration::from_secs(2) {
        for _ in 0..64 {
            let _ = sender.send(&frame);
        }
    }
    let time = clock::now().since(begin).as_secs_f64();
    (arrived() - before) as f64 / time / 1e6
}

/// How many small packets a second one worker forwards, and how many the kernel; printed, and only grossly judged (the
/// sender shares the machine).
#[test]
fn small_packets() {
    if !can_run("small_packets", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    assert!(lab.passes(false, SOON));
    // The server answers to closed ports, which is not what is measured.
    lab.server.exec("nft add table ip t");
    lab.server.exec("nft add chain ip t c {type filter hook prerouting priority -400;policy drop;}");
    let kernel = flood(&lab);
    let judge = Fixed::forward();
    let running = start(&lab, two_interfaces(), &judge).unwrap();
    let rate = flood(&lab);
    let metrics = running.datapath.metrics();
    println!(
        "small packets: {rate:.3} Mpps, the kernel {kernel:.3} Mpps; {} missed, {} batches",
        metrics.total(|worker| worker.capture_dropped.get()),
        metrics.total(|worker| worker.batches.get())
    );
    assert!(rate > 0.02, "{rate} Mpps");
}
