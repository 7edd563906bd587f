//! One TCP stream through one member: GSO packets pass whole. (How fast: `cargo bench -p palisade-tests -- bulk`.)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use palisade_lab::Lab;
use palisade_lab::guard::require_lab;
use palisade_tests::scenario::bulk::stream;
use palisade_tests::{OPEN_POLICY, members};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

/// Twice an Ethernet frame: a mean above it needs GSO packets.
const LARGE: u64 = 3_000;

#[tokio::test(flavor = "multi_thread")]
async fn gso_packets_of_a_stream_leave_as_they_came() {
    let Some(_turn) = require_lab(&["iperf3"]) else { return };
    let mut lab = Lab::with_cluster(members(1, BINARY), OPEN_POLICY).await.unwrap();
    let result = stream(&lab, 3).await;
    let stream = lab.or_keep(result).unwrap();
    eprintln!("{stream:?}");
    assert!(stream.bytes_per_frame > LARGE, "{stream:?}");
    // None is cut into pieces. Some more frames leave than came: the routers ask whether the member is ready.
    assert!(stream.frames_out <= stream.frames_in + stream.frames_in / 20 + 500, "{stream:?}");
}
