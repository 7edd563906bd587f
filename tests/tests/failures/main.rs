//! Three members under the failures that a rack can produce, with real traffic: what may be lost, and what may not.
//!
//! How long the stalls are is measured by `cargo bench -p palisade-tests` (docs/performance.md), not asserted here.
//! `PALISADE_LAB_LOAD` (a number, 100 by default) is the share of the load in percent, for machines that are slow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod flood;
mod kills;
mod overflow;
mod partition;
mod stalls;
mod transfers;

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");
const SERVER: &str = env!("CARGO_BIN_EXE_echo-server");

/// What the load of these tests needs.
const POLICY: &str = "\
zone outside, inside
default drop
accept \"echo\" from outside to inside: any -> any tcp/7007, udp/7007
accept \"all else of the lab\" from outside to inside: any -> any tcp/5432, tcp/7008
";
