//! What needs the datapath's care below the transport layer: VLAN devices, SCTP's checksum, tunnels.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod datapath_member;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use datapath_member::virtio::unfinished;
use datapath_member::{Fixed, PROGRAMS, arrives, start, two_interfaces};
use palisade_engine::parse::{self, Checksum, Kind, Packet, build};
use palisade_engine::{Ip, Protocol, Reason, Tuple};
use palisade_lab::guard::can_run;
use palisade_lab::small::{SOON, SmallLab, eventually};
use palisade_node::datapath::{Interface, Options};
use pnet::datalink::{self, Channel, DataLinkReceiver};

const NEVER: Duration = Duration::from_millis(300);

fn ip(bytes: [u8; 4]) -> Ip {
    IpAddr::V4(Ipv4Addr::from(bytes)).into()
}

fn tuple(protocol: Protocol) -> Tuple {
    Tuple { src: ip([10, 1, 0, 2]), dst: ip([10, 2, 0, 2]), src_port: 7000, dst_port: 7000, protocol }
}

/// A frame to the member's first interface, with something between the addresses and the IPv4 packet.
fn frame(lab: &SmallLab, tag: &[u8], packet: &[u8]) -> Vec<u8> {
    let mut frame = lab.member.mac("f0").to_vec();
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend(tag);
    frame.extend([8, 0]);
    frame.extend(packet);
    frame
}

/// Adds a VLAN device to an interface of the client and one of the member. False: this kernel has none.
fn add_vlan(lab: &SmallLab, id: u16, at_member: bool) -> bool {
    let added = lab.client.try_exec(&format!("ip link add link c0 name c0.{id} type vlan id {id}"));
    match added {
        Err(error) if error.contains("Unknown device type") => return false,
        added => drop(added.unwrap()),
    }
    lab.client.ip(&format!("addr add 10.{id}.0.2/24 dev c0.{id}"));
    lab.client.ip(&format!("link set c0.{id} up"));
    if at_member {
        lab.member.ip(&format!("link add link f0 name f0.{id} type vlan id {id}"));
        lab.member.ip(&format!("addr add 10.{id}.0.1/24 dev f0.{id}"));
        lab.member.ip(&format!("link set f0.{id} up"));
    }
    true
}

#[test]
fn frames_of_a_vlan_device_are_that_devices_and_no_others() {
    if !can_run("frames_of_a_vlan_device", &[PROGRAMS, &["ethtool"]].concat()) {
        return;
    }
    let lab = SmallLab::new();
    if !add_vlan(&lab, 5, true) {
        eprintln!("SKIPPED: frames_of_a_vlan_device: a kernel without VLAN devices (CONFIG_VLAN_8021Q)");
        return;
    }
    // Number 6 is a device of the member, but no data interface; of number 7 it knows nothing.
    assert!(add_vlan(&lab, 6, true) && add_vlan(&lab, 7, false));
    let vlan = Interface { name: "f0.5".into(), zone: "outside".into(), antispoof: true, track: true };
    let mut options = two_interfaces();
    options.interfaces.push(vlan);
    let judge = Fixed::forward();
    let running = start(&lab, options, &judge).unwrap();
    assert!(lab.passes(false, SOON), "untagged");
    let by = |id: u16| lab.client.ip(&format!("route replace 10.2.0.2/32 via 10.{id}.0.1 dev c0.{id}"));
    // The tag beside the frame, as network cards and veth carry it; then in the frame itself.
    for offload in ["on", "off"] {
        let _ = lab.client.try_exec(&format!("ethtool -K c0 tx-vlan-hw-insert {offload}"));
        by(5);
        eventually("it passes", || lab.passes(false, NEVER));
        let foreign = || running.datapath.metrics().dropped(Reason::NotForUs);
        let before = foreign();
        let rate = lab.bulk("10.2.0.2:7001", Duration::from_millis(500));
        println!("VLAN, offload {offload}: {rate:.1} Gbit/s");
        assert_eq!(foreign(), before, "what is the VLAN's was counted as nobody's at the device below");
        by(6);
        assert!(!lab.passes(false, NEVER), "a VLAN device that is no data interface is a way around");
        lab.client.ip(&format!(
            "neigh replace 10.7.0.1 lladdr {} dev c0.7",
            lab.member.mac("f0").map(|b| format!("{b:02x}")).join(":")
        ));
        by(7);
        assert!(!lab.passes(false, NEVER), "a foreign VLAN's frames are forwarded");
    }
    let mut sender = lab.client.wire("c0");
    let receiver = lab.listen(false, 7000, NEVER);
    let mut send = |tag: &[u8]| {
        let frame = frame(&lab, tag, &build::udp(&tuple(Protocol::UDP), b"tagged").unwrap());
        sender.send(&frame).unwrap();
        receiver.recv(&mut [0; 64]).is_ok()
    };
    for own in [[0x81, 0, 0, 5], [0x81, 0, 0xa0, 5]] {
        assert!(arrives(|| send(&own), &receiver), "in the frame, with and without a priority: {own:02x?}");
    }
    for foreign in [&[0x81, 0, 0, 6][..], &[0x81, 0, 0, 7], &[0x88, 0xa8, 0, 5], &[0x81, 0, 0, 5, 0x81, 0, 0, 5]] {
        assert!(!send(foreign), "{foreign:02x?} is forwarded");
    }
}

/// A priority alone makes no VLAN (IEEE 802.1Q, the null VLAN id).
#[test]
fn frame_with_a_priority_tag_is_as_one_without() {
    if !can_run("a_frame_with_a_priority_tag", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    assert!(lab.passes(false, SOON));
    let mut sender = lab.client.wire("c0");
    let receiver = lab.listen(false, 7000, NEVER);
    let mut send = |tag: &[u8]| {
        let frame = frame(&lab, tag, &build::udp(&tuple(Protocol::UDP), b"tagged").unwrap());
        sender.send(&frame).unwrap();
        receiver.recv(&mut [0; 64]).is_ok()
    };
    assert!(arrives(|| send(&[0x81, 0, 0xa0, 0]), &receiver));
    let foreign = || running.datapath.metrics().dropped(Reason::NotForUs);
    let before = foreign();
    assert!(!send(&[0x81, 0, 0xa0, 5]), "with a VLAN's id it is a foreign one");
    // Neighbour discovery's multicasts count too.
    assert!(foreign() > before);
}

/// The frames that arrive at the server.
fn arrivals(lab: &SmallLab) -> Box<dyn DataLinkReceiver> {
    lab.server.call(|| {
        let interface = datalink::interfaces().into_iter().find(|i| i.name == "s0").unwrap();
        let config = datalink::Config { read_timeout: Some(SOON), ..Default::default() };
        match datalink::channel(&interface, config).unwrap() {
            Channel::Ethernet(_, frames) => frames,
            _ => panic!("no Ethernet channel"),
        }
    })
}

/// The next packet from the client that arrives, if one does, as it is on the wire.
fn next(frames: &mut dyn DataLinkReceiver) -> Option<(Packet, Vec<u8>)> {
    while let Ok(frame) = frames.next() {
        let packet = &frame[14..];
        if frame[12..14] == [8, 0] && packet[12..16] == [10, 1, 0, 2] {
            let parsed = parse::parse(packet, Checksum::Complete).expect("a valid packet");
            return Some((parsed, packet[..parsed.length as usize].to_vec()));
        }
    }
    None
}

#[test]
fn sctp_arrives_with_its_own_checksum_whoever_has_computed_it() {
    if !can_run("sctp_arrives_with_its_own_checksum", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    assert!(lab.passes(false, SOON));
    let dropped = || running.datapath.metrics().dropped(Reason::BadChecksum);
    let mut frames = arrivals(&lab);
    let mut sender = lab.client.wire("c0");
    let good = build::sctp(&tuple(Protocol::SCTP), 0x0102_0304, &[7; 100]).unwrap();
    let mut wrong = good.clone();
    wrong[20 + 8] ^= 1;
    sender.send(&frame(&lab, &[], &wrong)).unwrap();
    eventually("a wrong checksum is dropped", || dropped() == 1);
    sender.send(&frame(&lab, &[], &good)).unwrap();
    let (packet, bytes) = next(frames.as_mut()).expect("it passes");
    assert_eq!((packet.kind, packet.tuple), (Kind::Sctp, tuple(Protocol::SCTP)));
    assert_eq!(bytes[20..], good[20..]);
    // As from a host of this machine, whose kernel leaves it to the network card: nobody has computed it yet.
    let socket = lab.client.call(|| unfinished("c0"));
    let header = [&[1u8, 0, 0, 0, 0, 0][..], &34u16.to_ne_bytes(), &8u16.to_ne_bytes()].concat();
    let message = [header, frame(&lab, &[], &wrong)].concat();
    let sent = nix::unistd::write(&socket, &message).unwrap();
    assert_eq!(sent, message.len());
    let (_, bytes) = next(frames.as_mut()).expect("it passes, and its checksum is right");
    assert_eq!(bytes[20..], good[20..]);
    assert_eq!(dropped(), 1);
}

#[test]
fn gre_esp_and_ah_come_through_the_kernel() {
    if !can_run("gre_esp_and_ah", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let _running = start(&lab, Options { workers: 2, ..two_interfaces() }, &Fixed::forward()).unwrap();
    assert!(lab.passes(false, SOON));
    let mut frames = arrivals(&lab);
    let mut sender = lab.client.wire("c0");
    let ends = (ip([10, 1, 0, 2]), ip([10, 2, 0, 2]));
    for protocol in [47, 50, 51].map(Protocol) {
        let packet = build::packet(ends.0, ends.1, protocol, &[0x5a; 64]).unwrap();
        sender.send(&frame(&lab, &[], &packet)).unwrap();
        let (arrived, bytes) = next(frames.as_mut()).unwrap_or_else(|| panic!("protocol {protocol} is lost"));
        assert_eq!((arrived.kind, arrived.tuple.protocol), (Kind::Other, protocol));
        assert_eq!(bytes[20..], packet[20..]);
    }
}
