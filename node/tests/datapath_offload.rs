//! What senders and network cards leave to the kernel: checksums, segmentation. What is judged is what leaves, no frame costs
//! more than others, and none stops a ring.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod datapath_member;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use datapath_member::virtio::{TCPV4, UFO, Virtio, choose, tap, unfinished};
use datapath_member::{Fixed, PROGRAMS, start, two_interfaces};
use palisade_engine::parse::{Tcp, build};
use palisade_engine::{Ip, Protocol, Reason, Tuple};
use palisade_lab::guard::can_run;
use palisade_lab::small::{SOON, SmallLab, eventually};
use palisade_node::datapath::{Interface, Options};

const NEVER: Duration = Duration::from_millis(300);

fn ip(bytes: [u8; 4]) -> Ip {
    IpAddr::V4(Ipv4Addr::from(bytes)).into()
}

fn tuple(protocol: Protocol, dst_port: u16) -> Tuple {
    Tuple { src: ip([10, 1, 0, 2]), dst: ip([10, 2, 0, 2]), src_port: 7000, dst_port, protocol }
}

fn frame(mac: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let mut frame = mac.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
    frame.extend(packet);
    frame
}

fn send(socket: &OwnedFd, virtio: Virtio, frame: &[u8]) {
    let message = virtio.before(frame);
    assert_eq!(nix::unistd::write(socket, &message).unwrap(), message.len());
}

/// A TAP interface of the member, as of a virtual machine with the address 10.3.0.2, and the member's options with it.
fn with_tap(lab: &SmallLab) -> (OwnedFd, Options) {
    let device = lab.member.call(|| tap("t0"));
    lab.member.ip("addr add 10.3.0.1/24 dev t0");
    lab.member.ip("link set t0 up");
    let mut options = two_interfaces();
    let outside = Interface { name: "t0".into(), zone: "outside".into(), antispoof: true, track: true };
    options.interfaces.push(outside);
    (device, options)
}

/// A sender leaves a checksum to the kernel, and says that its place is the destination port.
#[test]
fn checksum_left_to_the_kernel_chooses_no_port() {
    if !can_run("checksum_left_to_the_kernel", &[PROGRAMS, &["ethtool"]].concat()) {
        return;
    }
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    let running = start(&lab, two_interfaces(), &judge).unwrap();
    assert!(lab.passes(false, SOON));
    // The wire begins behind f1.
    lab.member.exec("ethtool -K f1 tx off");
    judge.say(6);
    let metrics = running.datapath.metrics();
    let (allowed, forbidden) = (lab.listen(false, 80, NEVER), lab.listen(false, 22, NEVER));
    let socket = lab.client.call(|| unfinished("c0"));
    let mac = lab.member.mac("f0");
    let mut packet = build::udp(&tuple(Protocol::UDP, 80), &[0; 16]).unwrap();
    let mut wire = lab.client.wire("c0");
    wire.send(&frame(mac, &packet)).unwrap();
    eventually("what goes to port 80 passes", || allowed.recv(&mut [0; 64]).is_ok());
    packet[26..28].fill(0); // no checksum
    choose(&mut packet, 20, 22, 28, 22);
    let judged = || metrics.dropped(Reason::Policy) + metrics.forwarded();
    let before = judged();
    send(&socket, Virtio { start: 34, offset: 2, ..Virtio::default() }, &frame(mac, &packet));
    eventually("it is judged", || judged() > before);
    assert!(forbidden.recv(&mut [0; 64]).is_err(), "judged as udp/80, and on the wire udp/22");
    assert_eq!(metrics.dropped(Reason::Policy), 1, "it is judged by what leaves");
}

/// A frame of a tunnel that is to be cut into pieces of one byte.
#[test]
fn frame_of_many_segments_is_dropped_as_one() {
    if !can_run("frame_of_many_segments", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let (socket, options) = with_tap(&lab);
    let running = start(&lab, options, &Fixed::forward()).unwrap();
    assert!(lab.passes(false, SOON));
    let metrics = running.datapath.metrics();
    let header = Tcp { seq: 1, ack: 1, flags: Tcp::ACK, window: 100, payload: 0, wscale: None, sack_permitted: false };
    let inside = Tuple { src: ip([10, 3, 0, 2]), ..tuple(Protocol::TCP, 80) };
    let inner = build::tcp(&inside, &header, &vec![1; 60_000]).unwrap();
    let tunnel = build::packet(inside.src, inside.dst, Protocol(4), &inner).unwrap();
    let mac = lab.member.mac("t0");
    let before = metrics.forwarded();
    let dropped = || metrics.dropped(Reason::Malformed);
    let inside = Virtio { start: 54, offset: 16, gso_type: TCPV4, gso_size: 1, headers: 74 };
    send(&socket, inside, &frame(mac, &tunnel));
    eventually("the tunnel's frame is judged", || dropped() > 0 || metrics.forwarded() > before);
    assert_eq!((dropped(), metrics.forwarded() - before), (1, 0), "dropped, forwarded");
    // One that the kernel would cut for us, in this worker's time.
    let plain = Virtio { start: 34, offset: 16, gso_type: TCPV4, gso_size: 1, headers: 54 };
    send(&socket, plain, &frame(mac, &inner));
    eventually("the other is judged", || dropped() > 1 || metrics.forwarded() > before);
    assert_eq!((dropped(), metrics.forwarded() - before), (2, 0), "dropped, forwarded");
    let fair = Virtio { gso_size: 1000, ..inside };
    send(&socket, fair, &frame(mac, &tunnel));
    // The server has no tunnel and answers with ICMP errors.
    eventually("a fair one passes", || metrics.forwarded() >= before + 60);
    assert_eq!(metrics.dropped(Reason::InjectFailed), 0);
}

/// GRO by lists of packets (`rx-gro-list`): merged, and every checksum complete.
#[test]
fn packets_merged_with_complete_checksums_pass() {
    if !can_run("packets_merged_with_complete_checksums", &[PROGRAMS, &["ethtool"]].concat()) {
        return;
    }
    let lab = SmallLab::new();
    lab.client.exec("ethtool -K c0 tx off tso off gso off");
    lab.member.exec("ethtool -K f0 gro on rx-gro-list on");
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap();
    let metrics = running.datapath.metrics();
    for (v6, address) in [(false, "10.2.0.2:7001"), (true, "[fd00:2::2]:7001")] {
        assert!(lab.passes(v6, SOON));
        let counts = || (metrics.forwarded(), metrics.total(|worker| worker.captured_frames.get()));
        let (packets, frames) = counts();
        let rate = lab.bulk(address, Duration::from_secs(1));
        let (packets_after, frames_after) = counts();
        let whole = (packets_after - packets) as f64 / (frames_after - frames) as f64;
        println!("{address}: {rate:.2} Gbit/s, {whole:.1} segments a frame");
        assert_eq!(metrics.dropped(Reason::InjectFailed), 0, "merged packets are lost");
    }
    assert_eq!(metrics.dropped(Reason::BadChecksum), 0);
}

/// The kernel cannot put UFO into a ring's virtio header, and never again uses the slot that it had chosen.
#[test]
fn ring_that_a_frame_has_stopped_is_opened_again() {
    if !can_run("ring_that_a_frame_has_stopped", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let (device, options) = with_tap(&lab);
    let running = start(&lab, options, &Fixed::forward()).unwrap();
    let metrics = running.datapath.metrics();
    let receiver = lab.listen(false, 7000, NEVER);
    let mac = lab.member.mac("t0");
    let from = |payload: &[u8]| {
        let tuple = Tuple { src: ip([10, 3, 0, 2]), ..tuple(Protocol::UDP, 7000) };
        frame(mac, &build::udp(&tuple, payload).unwrap())
    };
    let plain = from(b"does it pass?");
    let passes = || {
        send(&device, Virtio { start: 34, offset: 6, ..Virtio::default() }, &plain);
        receiver.recv(&mut [0; 64]).is_ok()
    };
    eventually("it passes", passes);
    for round in 1..=2 {
        let large = Virtio { start: 34, offset: 6, gso_type: UFO, gso_size: 1000, headers: 42 };
        send(&device, large, &from(&[7; 3000]));
        eventually("it passes again", passes);
        assert_eq!(metrics.watcher.captures_stalled.get(), round, "counted");
    }
    drop(receiver);
    // The other interfaces were not touched.
    assert!(lab.passes(false, SOON) && running.datapath.healthy());
}
