//! What was judged leaves by the zone that it was judged for, or not at all, whatever the kernel's routes say.
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

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use datapath_member::PROGRAMS;
use nix::sys::socket::{setsockopt, sockopt};
use palisade_engine::replica::{Batch, Command, Outcome, PolicyChange, Replica};
use palisade_engine::{Config, Engine, Generation, MemberId, Proposal, Reason, Wake};
use palisade_lab::guard::can_run;
use palisade_lab::small::{BlockingNetns, SmallLab, eventually};
use palisade_node::clock;
use palisade_node::datapath::{self, Datapath, Inject, Interface, Options, Sinks, WorkerWake};
use palisade_node::lease::Lease;

const NEVER: Duration = Duration::from_millis(300);

/// The small lab with a second host that has the server's address, behind an interface of its own:
///
/// ```text
///  client c0 10.1.0.2 ── 10.1.0.1 f0 [member] f1 10.2.0.1 ── 10.2.0.2 s0 server, 10.9.0.2       (IPv6: fd00:1::, …)
///                                          f2 10.3.0.1 ── 10.3.0.2 o0 other, 10.2.0.2, 10.9.0.2
/// ```
struct ThreeZones {
    lab: SmallLab,
    other: BlockingNetns,
}

impl ThreeZones {
    fn new() -> ThreeZones {
        let (lab, other) = (SmallLab::new(), BlockingNetns::new("other"));
        lab.member.ip(&format!("link add f2 type veth peer name o0 netns {}", other.path()));
        for line in ["addr add 10.3.0.1/24 dev f2", "addr add fd00:3::1/64 dev f2 nodad", "link set f2 up"] {
            lab.member.ip(line);
        }
        for line in [
            "addr add 10.3.0.2/24 dev o0",
            "addr add fd00:3::2/64 dev o0 nodad",
            "link set o0 up",
            "link set lo up",
            "addr add 10.2.0.2/32 dev lo",
            "addr add fd00:2::2/128 dev lo nodad",
            "route add default via 10.3.0.1",
            "-6 route add default via fd00:3::1",
        ] {
            other.ip(line);
        }
        for host in [&lab.server, &other] {
            host.ip("link set lo up");
            host.ip("addr add 10.9.0.2/32 dev lo");
            host.ip("addr add fd00:9::2/128 dev lo nodad");
        }
        ThreeZones { lab, other }
    }

    /// A listener of the other host, at an address that it has.
    fn other_listens(&self, address: &str, port: u16) -> UdpSocket {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        let socket = self.other.call(move || UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(NEVER)).unwrap();
        socket
    }

    /// The client's socket.
    fn client(&self, to: &str, port: u16) -> UdpSocket {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = self.lab.client.call(move || {
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect(to).unwrap();
            socket
        });
        socket.set_read_timeout(Some(NEVER)).unwrap();
        socket
    }
}

/// A member with the real engine, and a log of its own.
struct Member {
    datapath: Option<Datapath>,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

fn apply(replica: &mut Replica, number: u64, command: Command, wake: &mut dyn Wake) -> Outcome {
    let batch = Batch {
        proposer: MemberId(1),
        first_serial: number,
        lowest_outstanding: number,
        unix_ms: 0,
        commands: vec![command],
    };
    replica.apply(clock::now(), &batch, wake).remove(0).outcome
}

impl Member {
    fn start(net: &ThreeZones, zones: [&str; 3], inject: Inject, rules: &str) -> Member {
        let engine = Engine::new(Config::new(MemberId(1), 1, 7));
        let mut replica = Replica::new(Arc::clone(&engine));
        let mut wake = WorkerWake::new(1).unwrap();
        let mut names = zones.to_vec();
        names.dedup();
        let text = format!("zone {}\ndefault drop\n{rules}\n", names.join(", "));
        let change = PolicyChange::new(Generation(0), text, "lab".to_owned());
        let enact = Command::Enact(Box::new(change.enactment()));
        apply(&mut replica, 0, Command::Policy(Box::new(change)), &mut wake);
        engine.compile_policies();
        let outcome = apply(&mut replica, 1, enact, &mut wake);
        assert!(matches!(outcome, Outcome::Policy(_)), "{outcome:?}");
        let interfaces = ["f0", "f1", "f2"].iter().zip(zones).map(|(name, zone)| Interface {
            name: (*name).to_owned(),
            zone: zone.to_owned(),
            antispoof: true,
            track: true,
        });
        let options = Options { interfaces: interfaces.collect(), inject, ..Options::default() };
        let lease = Arc::new(Lease::new(Duration::from_secs(3600)));
        lease.renew(clock::now());
        let (hints, mut hints_received) = tokio::sync::mpsc::channel(1024);
        let (proposals, mut proposed) = tokio::sync::mpsc::channel(1024);
        let (cell, workers) = (Arc::clone(&lease), wake.clone());
        let datapath = net.lab.member.call(move || {
            datapath::start(options, engine, cell, workers, Sinks { hints, proposals })
                .unwrap_or_else(|e| panic!("{e:?}"))
        });
        let stop = Arc::new(AtomicBool::new(false));
        let log = std::thread::spawn(move || {
            let mut number = 1;
            while let Some(proposal) = proposed.blocking_recv() {
                number += 1;
                let command = match proposal {
                    Proposal::Establish(establish) => Command::Establish(establish),
                    Proposal::Close(close) => Command::Close(close),
                    Proposal::Refresh(id) => Command::Refresh(vec![id]),
                };
                apply(&mut replica, number, command, &mut wake);
            }
        });
        let nobody = std::thread::spawn(move || while hints_received.blocking_recv().is_some() {});
        let stopped = Arc::clone(&stop);
        let renewal = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                lease.renew(clock::now());
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Member { datapath: Some(datapath), stop, threads: vec![log, nobody, renewal] }
    }

    fn datapath(&self) -> &Datapath {
        self.datapath.as_ref().unwrap()
    }

    fn dropped(&self, reason: Reason) -> u64 {
        self.datapath().metrics().dropped(reason)
    }

    /// Packets that the policy denied. (Some wait first for another member to claim them.)
    fn denied(&self) -> u64 {
        self.dropped(Reason::Policy) + self.dropped(Reason::HoldExpired)
    }

    fn mismatches(&self) -> u64 {
        self.datapath().metrics().watcher.egress_mismatches.get()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        drop(self.datapath.take());
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Sends from the client until the datagram arrives.
fn reaches(from: &UdpSocket, to: &UdpSocket) -> Option<SocketAddr> {
    for _ in 0..100 {
        let _ = from.send(b"there");
        if let Ok((_, peer)) = to.recv_from(&mut [0; 64]) {
            return Some(peer);
        }
    }
    None
}

/// Opens a session of datagrams, with its answer and a packet after that.
fn open_session(client: &UdpSocket, server: &UdpSocket) {
    let peer = reaches(client, server).expect("the session does not open");
    for _ in 0..3 {
        server.send_to(b"back", peer).unwrap();
        client.recv(&mut [0; 64]).expect("the answer does not arrive");
        client.send(b"again").unwrap();
        server.recv(&mut [0; 64]).expect("the session does not go on");
    }
}

/// How many datagrams arrive of those that the client sends in a while.
fn leaked(client: &UdpSocket, to: &UdpSocket, count: usize) -> usize {
    let mut arrived = 0;
    for _ in 0..count {
        let _ = client.send(b"not to you");
        std::thread::sleep(Duration::from_millis(20));
    }
    while to.recv(&mut [0; 64]).is_ok() {
        arrived += 1;
    }
    arrived
}

const TO_INSIDE: &str = "accept \"inside\" from outside to inside: any -> any udp/7000";

fn possible(test: &str) -> bool {
    can_run(test, PROGRAMS)
}

#[test]
fn open_session_does_not_follow_its_route_to_another_zone() {
    if !possible("open_session_does_not_follow_its_route") {
        return;
    }
    for (inject, to) in [(Inject::Auto, ["10.2.0.2", "fd00:2::2"]), (Inject::Veth, ["10.2.0.2", "fd00:2::2"])] {
        for (v6, address) in to.into_iter().enumerate() {
            let net = ThreeZones::new();
            let member = Member::start(&net, ["outside", "inside", "leak"], inject, TO_INSIDE);
            let server = net.lab.listen(v6 == 1, 7000, NEVER);
            let other = net.other_listens(address, 7000);
            let client = net.client(address, 7000);
            open_session(&client, &server);
            let route = match v6 {
                0 => ("route", "10.2.0.2/32 via 10.3.0.2 dev f2"),
                _ => ("-6 route", "fd00:2::2/128 via fd00:3::2 dev f2"),
            };
            net.lab.member.ip(&format!("{} add {}", route.0, route.1));
            assert_eq!(
                leaked(&client, &other, 20),
                0,
                "{inject:?} {address}: packets of the session leave by zone leak"
            );
            net.lab.member.ip(&format!("{} del {}", route.0, route.1));
            eventually("the session goes on where its route is back", || {
                let _ = client.send(b"again");
                server.recv(&mut [0; 64]).is_ok()
            });
            drop(member);
        }
    }
}

#[test]
fn first_packet_is_judged_by_the_route_of_its_dscp_and_ports() {
    if !possible("first_packet_is_judged_by_the_route_of_its_dscp") {
        return;
    }
    for rule in ["tos 0x10", "ipproto udp dport 7000", "ipproto udp sport 6000"] {
        let net = ThreeZones::new();
        let member = Member::start(&net, ["outside", "inside", "leak"], Inject::Auto, TO_INSIDE);
        let other = net.other_listens("10.2.0.2", 7000);
        let server = net.lab.listen(false, 7000, NEVER);
        net.lab.member.ip("route add default via 10.3.0.2 table 100");
        net.lab.member.ip(&format!("rule add pref 100 {rule} lookup 100"));
        let client = net.lab.client.call(|| {
            let socket = UdpSocket::bind("0.0.0.0:6000").unwrap();
            socket.connect("10.2.0.2:7000").unwrap();
            setsockopt(&socket, sockopt::Ipv4Tos, &0x10).unwrap();
            socket
        });
        assert_eq!(leaked(&client, &other, 10), 0, "{rule}: packets leave by zone leak");
        eventually("it is judged by its true zone", || {
            let _ = client.send(b"again");
            member.denied() > 0
        });
        net.lab.member.ip("rule del pref 100");
        eventually("without the rule it passes", || {
            let _ = client.send(b"again");
            server.recv(&mut [0; 64]).is_ok()
        });
    }
}

/// Rules that choose by a mark of netfilter: the kernel does not tell the daemon.
fn mark(net: &ThreeZones) {
    let member = &net.lab.member;
    member.exec("nft add table ip marks");
    member.exec("nft add chain ip marks before {type filter hook prerouting priority -150;}");
    member.exec("nft add rule ip marks before udp dport 7000 meta mark set 7");
    member.ip("route add default via 10.3.0.2 table 100");
    member.ip("rule add pref 100 fwmark 7 lookup 100");
}

#[test]
fn packet_that_the_kernel_sends_elsewhere_is_dropped_and_the_next_one_judged_by_its_true_zone() {
    if !possible("packet_that_the_kernel_sends_elsewhere") {
        return;
    }
    // Not allowed there: it stops.
    let net = ThreeZones::new();
    let member = Member::start(&net, ["outside", "inside", "leak"], Inject::Auto, TO_INSIDE);
    mark(&net);
    let (other, client) = (net.other_listens("10.2.0.2", 7000), net.client("10.2.0.2", 7000));
    assert_eq!(leaked(&client, &other, 10), 0, "packets leave by zone leak");
    eventually("the daemon learns it", || {
        let _ = client.send(b"again");
        member.mismatches() > 0 && member.denied() > 0
    });
    let (mismatches, denied) = (member.mismatches(), member.denied());
    assert_eq!(leaked(&client, &other, 10), 0);
    eventually("all of these are denied", || member.denied() >= denied + 10);
    assert_eq!(member.mismatches(), mismatches, "the kernel gets packets of a flow whose zone is known");
    drop(member);

    // Allowed there as well: it goes on.
    let net = ThreeZones::new();
    let both = format!("{TO_INSIDE}\naccept \"second\" from outside to second: any -> any udp/7000");
    let member = Member::start(&net, ["outside", "inside", "second"], Inject::Auto, &both);
    mark(&net);
    let (other, client) = (net.other_listens("10.2.0.2", 7000), net.client("10.2.0.2", 7000));
    open_session(&client, &other);
    assert!(member.mismatches() > 0, "the case was to be one that nobody can ask for");
}

#[test]
fn flows_over_two_allowed_zones_are_not_lost() {
    if !possible("flows_over_two_allowed_zones") {
        return;
    }
    for policy in [0, 1] {
        let net = ThreeZones::new();
        let both = format!("{TO_INSIDE}\naccept \"second\" from outside to second: any -> any udp/7000");
        let member = Member::start(&net, ["outside", "inside", "second"], Inject::Auto, &both);
        net.lab.member.exec(&format!(
            "sysctl -qw net.ipv4.fib_multipath_hash_policy={policy} net.ipv6.fib_multipath_hash_policy={policy}"
        ));
        net.lab.member.ip("route add 10.9.0.2/32 nexthop via 10.2.0.2 dev f1 nexthop via 10.3.0.2 dev f2");
        net.lab.member.ip("-6 route add fd00:9::2/128 nexthop via fd00:2::2 dev f1 nexthop via fd00:3::2 dev f2");
        // As every modern sender.
        net.lab.client.exec("sysctl -qw net.ipv6.auto_flowlabels=1");
        let answer = |address: &'static str| {
            for host in [&net.lab.server, &net.other] {
                let socket = host.call(move || UdpSocket::bind((address, 7000)).unwrap());
                std::thread::spawn(move || {
                    let mut buffer = [0; 64];
                    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                        if &buffer[..length] == b"end" {
                            break;
                        }
                        let _ = socket.send_to(&buffer[..length], peer);
                    }
                });
            }
        };
        for address in ["10.9.0.2", "fd00:9::2"] {
            answer(address);
            let mut lost = 0;
            for flow in 0..24 {
                let client = net.client(address, 7000);
                let answered = (0..10).position(|_| {
                    let _ = client.send(b"there and back");
                    client.recv(&mut [0; 64]).is_ok()
                });
                let Some(tries) = answered else {
                    panic!("hash policy {policy}, {address}: flow {flow} is lost for ever")
                };
                lost += tries;
                // And it goes on.
                for _ in 0..3 {
                    client.send(b"there and back").unwrap();
                    assert!(client.recv(&mut [0; 64]).is_ok(), "hash policy {policy}, {address}: flow {flow} stops");
                }
            }
            println!("hash policy {policy}, {address}: {lost} packets lost of 24 flows, {} seen", member.mismatches());
        }
        assert_eq!(member.dropped(Reason::Policy), 0);
    }
}

#[test]
fn interface_that_is_made_again_is_let_out_again() {
    if !possible("interface_that_is_made_again") {
        return;
    }
    let net = ThreeZones::new();
    let rules = "accept \"leak\" from outside to leak: any -> any udp/7000";
    let member = Member::start(&net, ["outside", "inside", "leak"], Inject::Auto, rules);
    let (other, client) = (net.other_listens("10.3.0.2", 7000), net.client("10.3.0.2", 7000));
    assert!(reaches(&client, &other).is_some());
    net.lab.member.ip("link del f2");
    net.lab.member.ip(&format!("link add f2 type veth peer name o0 netns {}", net.other.path()));
    net.other.ip("addr add 10.3.0.2/24 dev o0");
    net.other.ip("link set o0 up");
    net.lab.member.ip("addr add 10.3.0.1/24 dev f2");
    net.lab.member.ip("link set f2 up");
    assert!(reaches(&client, &other).is_some(), "the new interface stays closed");
    drop(member);
}

#[test]
fn each_zone_has_a_device_whose_settings_are_restored() {
    if !possible("each_zone_has_a_device") {
        return;
    }
    let net = ThreeZones::new();
    net.lab.member.exec("sysctl -qw net.ipv4.conf.default.rp_filter=2 net.ipv6.conf.default.disable_ipv6=1");
    let member = Member::start(&net, ["outside", "inside", "leak"], Inject::Auto, TO_INSIDE);
    let show = net.lab.member.ip("link");
    for (device, alias) in [
        ("palisade0", "palisade: answers"),
        ("palisade00001", "palisade: to zone outside"),
        ("palisade00002", "palisade: to zone inside"),
        ("palisade00003", "palisade: to zone leak"),
    ] {
        assert!(show.contains(&format!("{device}:")) && show.contains(alias), "{show}");
        let value = |name: &str| net.lab.member.exec(&format!("sysctl -n {name}")).trim().to_owned();
        let settings = [
            (format!("net.ipv4.conf.{device}.rp_filter"), "0", "2"),
            (format!("net.ipv4.conf.{device}.accept_local"), "1", "0"),
            (format!("net.ipv4.conf.{device}.forwarding"), "1", "0"),
            (format!("net.ipv6.conf.{device}.disable_ipv6"), "0", "1"),
        ];
        for (name, right, wrong) in &settings {
            assert_eq!(value(name), *right, "{name}");
            net.lab.member.exec(&format!("sysctl -qw {name}={wrong}"));
        }
        // Not all of them are notified: the watcher looks at everything every ten seconds.
        for (name, right, _) in &settings {
            eventually(name, || value(name) == *right);
        }
    }
    for family in ["", "-6 "] {
        let rules = net.lab.member.ip(&format!("{family}rule"));
        for device in ["palisade0", "palisade00001", "palisade00002", "palisade00003"] {
            assert!(rules.contains(&format!("iif {device} goto")), "{rules}");
        }
    }
    assert!(member.datapath().healthy(), "{:?}", member.datapath().status());
    drop(member);
    assert!(!net.lab.member.ip("link").contains("palisade"), "a device stays behind");
}
