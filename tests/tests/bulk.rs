//! One TCP stream through one member, as fast as it goes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::Result;
use palisade_tests::guard::require_lab;
use palisade_tests::lab::{Lab, Side};
use palisade_tests::program::iperf3;
use palisade_tests::{OPEN_POLICY, members};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_reaches_eight_gigabits_with_its_packets_whole() {
    let Some(_turn) = require_lab(&["iperf3"]) else { return };
    let mut lab = Lab::with_cluster(members(1, BINARY), OPEN_POLICY).await.unwrap();
    let result = stream(&lab).await;
    lab.or_keep(result).unwrap();
}

async fn stream(lab: &Lab) -> Result<()> {
    let out = Side::Server.interface();
    let before = lab.member(1).netns().netlink().sent(out).await?;
    let rate = iperf3::run(lab, Side::Server.v4(), 8).await? / 1e9;
    let after = lab.member(1).netns().netlink().sent(out).await?;
    let (packets, bytes) = (after.0 - before.0, after.1 - before.1);
    eprintln!("{rate:.2} Gbit/s, {} bytes a packet", bytes / packets.max(1));
    assert!(rate >= 8.0, "{rate:.2} Gbit/s");
    // Many times the MTU: what came in as one GSO packet went out as one.
    assert!(bytes / packets.max(1) > 10_000, "{packets} packets for {bytes} bytes");
    Ok(())
}
