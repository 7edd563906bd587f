//! A dead datapath is seen, and what can be repaired is: interfaces that are missing, down or without a carrier.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod datapath_member;

use datapath_member::{Fixed, PROGRAMS, Running, start, two_interfaces};
use palisade_lab::guard::can_run;
use palisade_lab::small::{SOON, SmallLab, eventually};
use palisade_node::datapath::{Condition, Inject, Options, Severity};

/// Waits until these are the conditions.
#[track_caller]
fn expect(running: &Running, conditions: &[Condition]) {
    eventually(&format!("{conditions:?}"), || running.datapath.conditions() == conditions);
}

fn f1() -> String {
    "f1".to_owned()
}

#[test]
fn interface_that_is_missing_at_the_start_is_captured_when_it_appears() {
    if !can_run("interface_that_is_missing_at_the_start", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    lab.member.ip("link set f1 down");
    lab.member.ip("link set f1 name g1");
    let running = start(&lab, Options { workers: 2, ..two_interfaces() }, &Fixed::forward()).unwrap();
    expect(&running, &[Condition::InterfaceMissing(f1())]);
    lab.member.ip("link set g1 name f1");
    expect(&running, &[Condition::InterfaceDown(f1())]);
    lab.member.ip("link set f1 up");
    expect(&running, &[]);
    for v6 in [false, true] {
        // The kernel forgets IPv6 addresses of an interface that goes down.
        let _ = lab.member.try_exec("ip addr add fd00:2::1/64 dev f1");
        assert!(lab.passes(v6, SOON), "v6: {v6}");
    }
}

#[test]
fn links_are_conditions_where_they_are_tracked_and_gauges_everywhere() {
    if !can_run("links_are_conditions", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    for track in [true, false] {
        let mut options = two_interfaces();
        options.interfaces[1].track = track;
        let running = start(&lab, options, &Fixed::forward()).unwrap();
        let metrics = running.datapath.metrics();
        let expect = |condition: Condition, gauges: [u64; 3]| {
            assert_eq!(condition.severity(), Severity::Degraded);
            let of = &metrics.interfaces[1];
            eventually(&format!("{gauges:?}"), || [of.up.get(), of.carrier.get(), of.captured.get()] == gauges);
            expect(&running, if track { std::slice::from_ref(&condition) } else { &[] });
        };
        lab.server.ip("link set s0 down");
        expect(Condition::NoCarrier(f1()), [1, 0, 1]);
        lab.member.ip("link set f1 down");
        expect(Condition::InterfaceDown(f1()), [0, 0, 1]);
        lab.member.ip("link set f1 name g1");
        expect(Condition::InterfaceMissing(f1()), [0, 0, 0]);
        lab.member.ip("link set g1 name f1");
        for (host, link) in [(&lab.member, "f1"), (&lab.server, "s0")] {
            host.ip(&format!("link set {link} up"));
        }
        lab.server.ip("route replace default via 10.2.0.1");
        eventually("all is well again", || running.datapath.healthy());
        assert!(lab.passes(false, SOON));
    }
}

#[test]
fn device_for_re_injection_is_set_up_and_made_again() {
    if !can_run("device_for_re_injection_is_set_up_and_made_again", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    for inject in [Inject::Tun, Inject::Veth] {
        // Routes are asked for what comes in by the new device.
        let judge = Fixed::forward();
        judge.say(4);
        let running = start(&lab, Options { workers: 2, inject, ..two_interfaces() }, &judge).unwrap();
        let passes = || lab.passes(false, SOON) && lab.passes(true, SOON);
        assert!(passes());
        for (number, change) in ["link set palisade0 down", "link del palisade0"].into_iter().enumerate() {
            lab.member.ip(change);
            let restored = || running.datapath.metrics().watcher.devices_restored.get();
            eventually(change, || restored() > number as u64);
            assert!(passes(), "{inject:?}: {change}");
            expect(&running, &[]);
        }
        lab.member.call(move || running.datapath.stop());
    }
}
