//! Zones and interfaces: a data interface is never exempt from the gate.
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

use datapath_member::{Fixed, PROGRAMS, start, two_interfaces};
use palisade_lab::guard::can_run;
use palisade_lab::small::{SmallLab, eventually};
use palisade_node::datapath::{Options, StartError};

/// Two interfaces of data, and one bypass interface.
fn bypass(name: &str) -> Options {
    Options { bypass_interfaces: vec![name.to_owned()], ..two_interfaces() }
}

#[test]
fn data_interface_among_the_bypass_interfaces_refuses_the_start() {
    if !can_run("a_data_interface_among_the_bypass_interfaces", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let refused = |options: Options, name: &str| {
        let error = start(&lab, options, &Fixed::forward()).err().expect("it starts");
        let by_name = |e: &StartError| matches!(e, StartError::Bypassed { interface, bypass } if interface == "f0" && bypass == name);
        assert!(by_name(&error), "{error:?}");
        assert!(miette::Diagnostic::help(&error).expect("a remedy").to_string().contains(name));
    };
    refused(bypass("f0"), "f0");
    lab.member.exec("ip link property add dev f0 altname uplink");
    refused(bypass("uplink"), "uplink");
    // The name comes while the datapath runs: it is not fit for traffic from then on.
    lab.member.exec("ip link property del dev f0 altname uplink");
    let running = start(&lab, bypass("uplink"), &Fixed::forward()).unwrap_or_else(|e| panic!("{e:?}"));
    eventually("readiness", || running.datapath.healthy());
    lab.member.exec("ip link property add dev f0 altname uplink");
    eventually("the warning", || !running.datapath.healthy());
    let warnings = running.datapath.status().warnings;
    assert!(warnings.iter().any(|w| w.contains("f0") && w.contains("uplink")), "{warnings:?}");
    lab.member.exec("ip link property del dev f0 altname uplink");
    eventually("readiness again", || running.datapath.healthy());
}
