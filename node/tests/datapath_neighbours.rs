//! What else runs on the machine: other programs' nftables rules, conntrack, bridges, routes. What can work beside
//! Palisade does, the rest refuses the start or is noticed (docs/neighbours.md).
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod datapath_member;

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use datapath_member::{Fixed, PROGRAMS, start, two_interfaces};
use palisade_engine::parse::{Tcp, build};
use palisade_engine::{Ip, Protocol, Tuple};
use palisade_lab::frames::Wire;
use palisade_lab::guard::can_run;
use palisade_lab::small::{BlockingNetns, SOON, SmallLab, eventually};
use palisade_node::datapath::{Gate, StartError};
use rtnetlink::packet_core::{DefaultNla, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

const NEVER: Duration = Duration::from_millis(300);

fn ip(bytes: [u8; 4]) -> Ip {
    IpAddr::V4(Ipv4Addr::from(bytes)).into()
}

fn tuple(protocol: Protocol) -> Tuple {
    Tuple { src: ip([10, 1, 0, 2]), dst: ip([10, 2, 0, 2]), src_port: 7000, dst_port: 7001, protocol }
}

/// A frame with this packet from the client to the member.
fn frame(lab: &SmallLab, packet: &[u8]) -> Vec<u8> {
    let mut frame = lab.member.mac("f0").to_vec();
    frame.extend(lab.client.mac("c0"));
    frame.extend([8, 0]);
    frame.extend(packet);
    frame
}

/// Sends a packet to the member until a frame arrives at `wire` that satisfies `is`, which is given the IPv4 packet.
fn arrives(lab: &SmallLab, wire: &mut Wire, packet: &[u8], is: impl Fn(&[u8]) -> bool) -> bool {
    let frame = frame(lab, packet);
    let mut sender = lab.client.wire("c0");
    (0..8).any(|_| {
        sender.send(&frame).unwrap();
        (0..50).map_while(|_| wire.receive().unwrap().map(<[u8]>::to_vec)).any(|f| f.get(14..).is_some_and(&is))
    })
}

/// A host beside the server: an interface `mgmt0` of the member that is no data interface.
fn management(lab: &SmallLab) -> BlockingNetns {
    let host = BlockingNetns::new("mgmt");
    lab.member.ip(&format!("link add mgmt0 type veth peer name h0 netns {}", host.path()));
    lab.member.ip("addr add 10.9.0.1/24 dev mgmt0");
    lab.member.ip("link set mgmt0 up");
    host.ip("addr add 10.9.0.2/24 dev h0");
    host.ip("link set h0 up");
    host.ip("route add default via 10.9.0.1");
    host
}

#[test]
fn nothing_leaves_by_an_interface_that_is_no_data_interface() {
    if !can_run("nothing_leaves_by_an_interface_that_is_no_data_interface", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let host = management(&lab);
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    assert!(lab.passes(false, SOON) && lab.passes(true, SOON));
    let receiver = host.call(|| std::net::UdpSocket::bind("10.9.0.2:7000").unwrap());
    receiver.set_read_timeout(Some(NEVER)).unwrap();
    let sender = lab.client.call(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    for _ in 0..5 {
        sender.send_to(b"out of the management interface", "10.9.0.2:7000").unwrap();
        assert!(receiver.recv(&mut [0; 64]).is_err(), "a packet for everybody left by the management interface");
    }
    // The route of a session moves there.
    lab.member.ip("route add 10.2.0.2/32 via 10.9.0.2");
    lab.server.ip("addr del 10.2.0.2/24 dev s0");
    host.ip("addr add 10.2.0.2/32 dev lo");
    let moved = host.call(|| std::net::UdpSocket::bind("10.2.0.2:7000").unwrap());
    moved.set_read_timeout(Some(NEVER)).unwrap();
    for _ in 0..5 {
        sender.send_to(b"moved", "10.2.0.2:7000").unwrap();
        assert!(moved.recv(&mut [0; 64]).is_err(), "the moved route leads out of the management interface");
    }
    drop(running);
}

/// Hardening guides, kube-proxy and ufw drop what conntrack calls invalid. It calls so whatever it has not seen from the
/// beginning, as of a session whose other direction goes through another member.
#[test]
fn conntrack_of_the_machine_eats_no_asymmetric_session() {
    if !can_run("conntrack_of_the_machine", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    lab.member.exec("nft add table inet operator");
    for (chain, hook) in [("f", "forward"), ("o", "output")] {
        lab.member.exec(&format!(
            "nft add chain inet operator {chain} {{type filter hook {hook} priority 0;policy accept;}}"
        ));
        lab.member.exec(&format!("nft add rule inet operator {chain} ct state invalid counter drop"));
    }
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    assert!(lab.passes(false, SOON));

    let mut server = lab.server.wire("s0");
    let syn_ack = Tcp {
        seq: 1,
        ack: 1,
        flags: Tcp::SYN | Tcp::ACK,
        window: 1000,
        payload: 0,
        wscale: None,
        sack_permitted: false,
    };
    let packet = build::tcp(&tuple(Protocol::TCP), &syn_ack, &[]).unwrap();
    let to_server = |p: &[u8]| p.get(16..20) == Some(&[10, 2, 0, 2]);
    let is_syn_ack = |p: &[u8]| to_server(p) && p.get(9) == Some(&6) && p.get(33) == Some(&0x12);
    assert!(arrives(&lab, &mut server, &packet, is_syn_ack), "a SYN-ACK whose SYN went through another member");

    // The first fragment went through another member.
    let mut fragment = build::packet(ip([10, 1, 0, 2]), ip([10, 2, 0, 2]), Protocol::UDP, &[7; 64]).unwrap();
    fragment[6..8].copy_from_slice(&(1480u16 / 8).to_be_bytes());
    fragment[10..12].copy_from_slice(&[0, 0]);
    let sum = checksum(&fragment[..20]);
    fragment[10..12].copy_from_slice(&sum.to_be_bytes());
    let is_fragment = |p: &[u8]| to_server(p) && p.get(9) == Some(&17) && p.get(6..8) == Some(&[0, 185]);
    assert!(arrives(&lab, &mut server, &fragment, is_fragment), "a fragment whose others go through another member");

    // The kernel's own error about a packet that it does not track.
    let mut client = lab.client.wire("c0");
    let mut dying = build::udp(&tuple(Protocol::UDP), b"ttl").unwrap();
    dying[8] = 1;
    dying[10..12].copy_from_slice(&[0, 0]);
    let sum = checksum(&dying[..20]);
    dying[10..12].copy_from_slice(&sum.to_be_bytes());
    let is_error = |p: &[u8]| p.get(16..20) == Some(&[10, 1, 0, 2]) && p.get(9) == Some(&1) && p.get(20) == Some(&11);
    assert!(arrives(&lab, &mut client, &dying, is_error), "the kernel's ICMP error was eaten");

    let tracked = lab.member.exec("sysctl -n net.netfilter.nf_conntrack_count");
    assert_eq!(tracked.trim(), "0", "conntrack has entries of what was forwarded: its table can be full");
    drop(running);
}

/// The kernel drops what it cannot track when its table is full. What is forwarded is not tracked.
#[test]
fn full_conntrack_table_stops_nothing_that_is_forwarded() {
    if !can_run("full_conntrack_table", &[PROGRAMS, &["ping"]].concat()) {
        return;
    }
    let lab = SmallLab::new();
    lab.member.exec("nft add table inet operator");
    lab.member.exec("nft add chain inet operator f {type filter hook forward priority 0;policy accept;}");
    lab.member.exec("nft add rule inet operator f ct state established accept");
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    assert!(lab.passes(false, SOON));
    lab.member.exec("ping -c 1 -W 60 10.1.0.2");
    let entries = Cell::new(0);
    // The entries of the datagrams above are over after a while, so there is room again.
    let fill = || {
        let from = entries.get();
        entries.set(lab.member.call(move || fill_conntrack(from)));
    };
    fill();
    let own = lab.member.try_exec("ping -c 1 -W 1 10.1.0.2");
    assert!(own.is_err(), "the table was to be full, with {entries:?} entries: {own:?}");
    for v6 in [false, true] {
        let passes = || {
            fill();
            // One datagram at a time: there is no room even for one.
            lab.passes(v6, Duration::from_millis(200))
        };
        eventually(if v6 { "an IPv6 datagram passes" } else { "an IPv4 datagram passes" }, passes);
    }
    fill();
    assert!(lab.member.try_exec("ping -c 1 -W 1 10.1.0.2").is_err(), "the table was to stay full");
    drop(running);
}

/// An attribute of netlink.
fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + data.len()).unwrap();
    let mut out = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    out.extend(data);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(1 << 15 | kind, &parts.concat())
}

/// Fills the connection table of this namespace with established connections, which the kernel does not evict (conntrack's
/// netlink: `IPCTNL_MSG_CT_NEW`), from this number on. Returns the next number.
fn fill_conntrack(from: u32) -> u32 {
    const NEW: u16 = 1 << 8;
    const ASSURED_AND_CONFIRMED: u32 = 1 << 1 | 1 << 2 | 1 << 3;
    // Of which the last is acknowledged.
    const BATCH: u32 = 128;
    let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    let tuple = |kind, [src, dst]: [[u8; 4]; 2], [from, to]: [u16; 2]| {
        let addresses = nested(1, &[attribute(1, &src), attribute(2, &dst)]);
        let ports = [attribute(2, &from.to_be_bytes()), attribute(3, &to.to_be_bytes())];
        nested(kind, &[addresses, nested(2, &[vec![attribute(1, &[17])], ports.into()].concat())])
    };
    let message = |number: u32| {
        let ([high, low, ..], port) = (number.to_be_bytes(), number as u16);
        let (one, other) = ([10, 99, high, low], [10, 98, 0, 1]);
        let body = [
            vec![2, 0, 0, 0],
            tuple(1, [one, other], [port, 9]),
            tuple(2, [other, one], [9, port]),
            attribute(3, &ASSURED_AND_CONFIRMED.to_be_bytes()),
            attribute(7, &3600_u32.to_be_bytes()),
        ]
        .concat();
        // A request, to create, exclusively.
        let flags: u16 = 1 | 0x400 | 0x200 | if number % BATCH == BATCH - 1 { 4 } else { 0 };
        let mut out = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        out.extend([NEW.to_ne_bytes(), flags.to_ne_bytes()].concat());
        out.extend([number.to_ne_bytes(), [0; 4]].concat());
        out.extend(body);
        out
    };
    for first in (from..u32::MAX - BATCH).step_by(BATCH as usize) {
        let batch: Vec<u8> = (first..first + BATCH).flat_map(message).collect();
        socket.send(&batch, 0).unwrap();
        let (answer, _) = socket.recv_from_full().unwrap();
        let error = i32::from_ne_bytes(answer[16..20].try_into().unwrap());
        if error != 0 {
            assert_eq!(error, -libc::ENOMEM, "{}", std::io::Error::from_raw_os_error(-error));
            return first + BATCH;
        }
    }
    panic!("the table has no end");
}

fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks(2).map(|b| u32::from(u16::from_be_bytes([b[0], b[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

/// With br_netfilter, bridged frames pass IP's hooks. They are not routed.
#[test]
fn frames_that_a_bridge_forwards_are_left_alone() {
    if !can_run("frames_of_a_bridge", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    if lab
        .member
        .try_exec("sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1")
        .is_err()
    {
        eprintln!("SKIPPED: frames_of_a_bridge: a kernel without br_netfilter");
        return;
    }
    let hosts = [BlockingNetns::new("a"), BlockingNetns::new("b")];
    lab.member.ip("link add br0 type bridge");
    lab.member.ip("link set br0 up");
    lab.member.ip("addr add 10.5.0.9/24 dev br0");
    for (number, host) in hosts.iter().enumerate() {
        lab.member.ip(&format!("link add p{number} type veth peer name v0 netns {}", host.path()));
        lab.member.ip(&format!("link set p{number} master br0 up"));
        host.ip(&format!("addr add 10.5.0.{}/24 dev v0", number + 1));
        host.ip(&format!("addr add fd00:5::{}/64 dev v0", number + 1));
        host.ip("link set v0 up");
    }
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    assert!(lab.passes(false, SOON));
    assert!(lab.answers(&hosts[0], "10.5.0.9"), "the machine itself");
    assert!(lab.answers(&hosts[0], "10.5.0.2"), "from port to port of the bridge, IPv4");
    assert!(lab.answers(&hosts[0], "fd00:5::2"), "IPv6");
    // What the machine would route is not bridged.
    hosts[0].ip("route add 10.2.0.0/24 via 10.5.0.9");
    lab.server.ip("route replace 10.5.0.0/24 via 10.2.0.1");
    let receiver = lab.listen(false, 7000, NEVER);
    let sender = hosts[0].call(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    for _ in 0..5 {
        sender.send_to(b"routed", "10.2.0.2:7000").unwrap();
        assert!(receiver.recv(&mut [0; 64]).is_err(), "the kernel routes what came by the bridge");
    }
    drop(running);
}

/// The kernel looks for the gateway's own route through the policy rules.
#[test]
fn routes_via_a_global_gateway_can_be_added_behind_the_gate() {
    if !can_run("routes_via_a_global_gateway", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    lab.member.ip("-6 route add default via fd00:2::2 dev f1 table 100");
    lab.member.ip("route add default via 10.2.0.2 dev f1 table 100");
    drop(running);
}

/// What refuses the start: how it is provoked, undone, and what the remedy names.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "nft add table inet fw; nft add chain inet fw pre {type filter hook prerouting priority -300;policy accept;}; nft add rule inet fw pre fib saddr . iif oif missing counter drop",
        "nft insert rule inet fw pre iifname palisade* accept",
        "iifname",
    ),
    (
        "nft add table ip fw; nft add chain ip fw rpf; nft add rule ip fw rpf fib saddr . mark . iif oif 0 drop; nft add chain ip fw pre {type filter hook prerouting priority -300;policy accept;}; nft add rule ip fw pre jump rpf",
        "nft delete table ip fw",
        "iifname",
    ),
    (
        "nft add table inet ft; nft add flowtable inet ft fast {hook ingress priority 0;devices={f0};}",
        "nft delete table inet ft",
        "nft delete flowtable",
    ),
];

#[test]
fn neighbours_that_break_the_datapath_refuse_the_start() {
    if !can_run("neighbours_that_break_the_datapath", PROGRAMS) {
        return;
    }
    let mut accepted = Vec::new();
    for (provoke, undo, remedy) in REFUSED {
        let lab = SmallLab::new();
        if let Err(why) = provoke.split("; ").try_for_each(|line| lab.member.try_exec(line).map(drop)) {
            eprintln!("SKIPPED: neighbours_that_break_the_datapath: {provoke}: {why}");
            continue;
        }
        match start(&lab, two_interfaces(), &Fixed::forward()) {
            Ok(running) => {
                let passes = lab.passes(false, NEVER * 5);
                accepted.push(format!("{provoke}: it starts, and a packet passes: {passes}"));
                drop(running);
            }
            Err(error) => {
                let help = miette::Diagnostic::help(&error).expect("a remedy").to_string();
                println!("{error}\n  help: {help}");
                assert!(help.contains(remedy), "{provoke}: {help}");
            }
        }
        undo.split("; ").for_each(|line| drop(lab.member.exec(line)));
        let running =
            start(&lab, two_interfaces(), &Fixed::forward()).unwrap_or_else(|e| panic!("after {undo}: {e:?}"));
        assert!(lab.passes(false, SOON), "after {undo}");
        drop(running);
    }
    assert!(accepted.is_empty(), "{accepted:#?}");
}

/// What is said of the machine, but ends nothing: how it is provoked, and what is said.
const NOTICED: &[(&str, &str)] = &[
    (
        "ip xfrm policy add src 10.9.0.0/24 dst 10.8.0.0/24 dir fwd tmpl src 10.2.0.2 dst 10.2.0.1 proto esp mode tunnel",
        "xfrm interface",
    ),
    ("ip rule add pref 100 iif f0 lookup 100", "from NETWORK"),
    (
        "tc qdisc add dev f0 clsact; tc filter add dev f0 ingress protocol ip u32 match ip dst 203.0.113.9/32 flowid 1:1",
        "tc filter show dev f0 ingress",
    ),
    (
        "nft add table ip dockerlike; nft add chain ip dockerlike post {type nat hook postrouting priority 100;}; nft add rule ip dockerlike post ip saddr 172.17.0.0/16 masquerade",
        "ip dockerlike",
    ),
];

#[test]
fn neighbours_that_work_otherwise_are_noticed() {
    if !can_run("neighbours_that_work_otherwise", PROGRAMS) {
        return;
    }
    let provoke = |lab: &SmallLab, lines: &str| {
        lines.split("; ").try_for_each(|line| lab.member.try_exec(line).map(drop)).inspect_err(|why| {
            eprintln!("SKIPPED: neighbours_that_work_otherwise: {lines}: {why}");
        })
    };
    let said = |running: &datapath_member::Running, what: &str| {
        running.datapath.status().warnings.iter().any(|warning| warning.contains(what))
    };
    // Before the start, and while the datapath runs.
    let (before, during) = (SmallLab::new(), SmallLab::new());
    let run = start(&during, two_interfaces(), &Fixed::forward()).unwrap();
    assert_eq!(run.datapath.status().warnings, Vec::<String>::new());
    let there: Vec<_> = NOTICED
        .iter()
        .filter(|(lines, _)| provoke(&before, lines).is_ok() && provoke(&during, lines).is_ok())
        .collect();
    let started = start(&before, two_interfaces(), &Fixed::forward()).unwrap();
    for (lines, what) in there {
        eventually(lines, || said(&run, what) && said(&started, what));
    }
    for warning in run.datapath.status().warnings {
        println!("{warning}");
    }
    assert!(run.datapath.healthy() && started.datapath.healthy());
    assert!(before.passes(false, SOON) && during.passes(false, SOON));
}

/// Attaches an XDP program that passes everything; it goes with the descriptors. `None`: this kernel takes none.
#[allow(unsafe_code, reason = "no crate here has this system call")]
fn attach_xdp(index: u32) -> Option<[OwnedFd; 2]> {
    // r0 = XDP_PASS; exit
    let (program, license): ([u64; 2], [u8; 4]) = ([2 << 32 | 0xb7, 0x95], *b"GPL\0");
    let bpf = |command: i64, attributes: [u64; 16]| {
        // SAFETY: the kernel reads 128 bytes, which `attributes` has; the pointers in it are to live buffers.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), 128) };
        // SAFETY: a fresh descriptor that nobody else has.
        i32::try_from(fd).ok().filter(|fd| *fd >= 0).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // BPF_PROG_LOAD: type BPF_PROG_TYPE_XDP, two instructions, their place, the license's.
    let mut load = [0; 16];
    load[..3].copy_from_slice(&[2 << 32 | 6, program.as_ptr() as u64, license.as_ptr() as u64]);
    let loaded = bpf(5, load)?;
    // BPF_LINK_CREATE: program, interface, BPF_XDP, XDP_FLAGS_SKB_MODE.
    let mut link = [0; 16];
    link[..2].copy_from_slice(&[u64::from(index) << 32 | u64::try_from(loaded.as_raw_fd()).ok()?, 2 << 32 | 37]);
    Some([bpf(28, link)?, loaded])
}

fn index(lab: &SmallLab, name: &str) -> u32 {
    lab.member.ip(&format!("-o link show {name}")).split(':').next().unwrap().trim().parse().unwrap()
}

#[test]
fn foreign_xdp_program_refuses_the_start_and_is_noticed() {
    if !can_run("a_foreign_xdp_program", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let f0 = index(&lab, "f0");
    let Some(program) = lab.member.call(move || attach_xdp(f0)) else {
        eprintln!("SKIPPED: a_foreign_xdp_program: a kernel that takes none");
        return;
    };
    let error = start(&lab, two_interfaces(), &Fixed::forward()).err().expect("it starts behind an XDP program");
    let help = miette::Diagnostic::help(&error).expect("a remedy").to_string();
    println!("{error}\n  help: {help}");
    assert!(matches!(error, StartError::Xdp { .. }) && help.contains("ip link set dev f0 xdp off"), "{error:?}");
    drop(program);
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    assert!(lab.passes(false, SOON) && running.datapath.healthy());
    let program = lab.member.call(move || attach_xdp(f0));
    eventually("it is noticed", || !running.datapath.healthy());
    assert!(running.datapath.status().warnings.iter().any(|w| w.contains("XDP")));
    drop(program);
    eventually("and its end", || running.datapath.healthy());
}

/// With forwarding on, the kernel drops the default routes of router advertisements and takes no new ones.
#[test]
fn default_route_of_an_advertisement_is_noticed() {
    if !can_run("a_default_route_of_an_advertisement", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    lab.member.exec("sysctl -qw net.ipv6.conf.f1.accept_ra=1");
    lab.member.ip("-6 route add default via fd00:2::2 dev f1 proto ra");
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    let warnings = running.datapath.status().warnings;
    assert!(warnings.iter().any(|w| w.contains("net.ipv6.conf.f1.accept_ra=2")), "{warnings:?}");
    running.datapath.stop();
    lab.member.exec("sysctl -qw net.ipv6.conf.f1.accept_ra=2");
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    assert_eq!(running.datapath.status().warnings, Vec::<String>::new());
}

/// A rule for some packets only must not pass as the gate's, whatever newer kernels select by.
#[test]
fn rule_with_an_unknown_selector_is_not_taken_for_the_gates() {
    if !can_run("a_rule_with_an_unknown_selector", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let made = lab.member.call(|| {
        let mut rule = RuleMessage::default();
        rule.header.family = AddressFamily::Inet;
        rule.header.action = RuleAction::Blackhole;
        // FRA_DSCP, since Linux 6.13.
        let dscp = RuleAttribute::Other(DefaultNla::new(25, vec![46]));
        rule.attributes = vec![RuleAttribute::Priority(2), RuleAttribute::Protocol(RouteProtocol::Kernel), dscp];
        let inner = NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(rule));
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), inner);
        message.header.flags = 0x1 | 0x4 | 0x400 | 0x200; // REQUEST, ACK, CREATE, EXCL
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
        socket.bind_auto().unwrap();
        socket.send(&bytes, 0).unwrap();
        let (answer, _) = socket.recv_from_full().unwrap();
        answer.get(16..20) == Some(&[0; 4])
    });
    if !made {
        eprintln!("SKIPPED: a_rule_with_an_unknown_selector: a kernel whose rules select by no DSCP");
        return;
    }
    let error = start(&lab, two_interfaces(), &Fixed::forward()).err().expect("it starts behind half a blackhole");
    assert!(matches!(error, StartError::ForeignRule { priority: 2, .. }), "{error:?}");
    // Whoever installs the gate alone has a whole one.
    lab.member.call(|| Gate::new("palisade0", &[]).install().unwrap());
    lab.member.exec("nft delete table inet palisade_gate");
    assert!(!lab.passes(false, NEVER), "a blackhole for one DSCP was taken for the gate's");
}

/// The gate knows Palisade's own devices by the beginning of their names.
#[test]
fn interface_with_the_name_of_a_device_of_ours_refuses_the_start() {
    if !can_run("an_interface_with_the_name_of_a_device", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    lab.member.ip("link set f0 down");
    lab.member.ip("link set f0 name palisade-lan");
    lab.member.ip("link set palisade-lan up");
    let mut options = two_interfaces();
    options.interfaces[0].name = "palisade-lan".to_owned();
    let bypass =
        palisade_node::datapath::Options { bypass_interfaces: vec!["palisade-lan".to_owned()], ..two_interfaces() };
    for options in [options, bypass] {
        let error = start(&lab, options, &Fixed::forward()).err().expect("it starts");
        assert!(matches!(&error, StartError::Reserved { name } if name == "palisade-lan"), "{error:?}");
    }
}
