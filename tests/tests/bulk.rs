//! One TCP stream through one member, as fast as it goes, beside the kernel's own forwarding.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::Result;
use palisade_lab::guard::require_lab;
use palisade_lab::{Lab, Options, Side};
use palisade_tests::program::iperf3;
use palisade_tests::{OPEN_POLICY, kernels, members};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

/// What is asked of a machine that can do it.
const GIGABITS: f64 = 8.0;

/// What is asked of a slower or busier machine, as a share of what its kernel forwards in the same minute.
const SHARE: f64 = 0.5;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_reaches_eight_gigabits_with_its_packets_whole() {
    let Some(_turn) = require_lab(&["iperf3"]) else { return };
    let mut tried = Vec::new();
    for _ in 0..3 {
        let kernel = measure(kernels(1), "").await;
        let ours = measure(members(1, BINARY), OPEN_POLICY).await;
        eprintln!("{:.2} Gbit/s, {} bytes a packet; the kernel alone: {:.2} Gbit/s", ours.0, ours.1, kernel.0);
        // Many times the MTU: what came in as one GSO packet went out as one.
        assert!(ours.1 > 10_000, "{} bytes a packet", ours.1);
        if ours.0 >= GIGABITS.min(kernel.0 * SHARE) {
            return;
        }
        tried.push((ours.0, kernel.0));
    }
    panic!("Gbit/s, ours and the kernel's: {tried:?}");
}

/// Gbit/s, and bytes in a packet as it left the member.
async fn measure(options: Options, policy: &str) -> (f64, u64) {
    let mut lab = Lab::with_cluster(options, policy).await.unwrap();
    let result = stream(&lab).await;
    lab.or_keep(result).unwrap()
}

async fn stream(lab: &Lab) -> Result<(f64, u64)> {
    let out = Side::Server.interface();
    let before = lab.member(1).netns().netlink().sent(out).await?;
    let rate = iperf3::run(lab, Side::Server.v4(), 5).await? / 1e9;
    let after = lab.member(1).netns().netlink().sent(out).await?;
    let (packets, bytes) = (after.0 - before.0, after.1 - before.1);
    Ok((rate, bytes / packets.max(1)))
}
