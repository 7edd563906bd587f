//! Three members under every failure that a rack can produce, with real traffic: what is lost, what stalls, for how long.
//!
//! `PALISADE_LAB_LOAD` (a number, 100 by default) is the share of the load in percent, for machines that are slow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod flood;
mod kills;
mod load;
mod partition;
mod stalls;
mod transfers;

use std::time::Duration;

use anyhow::Result;
use palisade_engine::Time;
use palisade_lab::{Lab, SIDES};
use palisade_node::clock;
use tokio::time::sleep;

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

/// How long a member that was started again may take until it is ready.
const READY: Duration = Duration::from_secs(30);

/// Where a request of `load` goes.
const POLICY: &str = "\
zone outside, inside
default drop
accept \"echo\" from outside to inside: any -> any tcp/7007, udp/7007
accept \"all else of the lab\" from outside to inside: any -> any tcp/5432, tcp/7008
";

/// The members but one.
fn without(number: usize) -> Vec<usize> {
    (1..=3).filter(|n| *n != number).collect()
}

/// Kills a member; when both routers had it out of their routes.
async fn kill(lab: &mut Lab, number: usize) -> Result<Time> {
    let killed = clock::now();
    lab.member_mut(number).kill().await?;
    moved(lab, number, killed).await
}

/// Waits until no traffic goes to a member any longer; when the later of the two routers had its new routes.
async fn moved(lab: &Lab, number: usize, since: Time) -> Result<Time> {
    lab.wait_live(&without(number)).await?;
    let out = SIDES.iter().filter_map(|side| {
        let changes = lab.router(*side).changes();
        changes.iter().rev().find(|c| c.number == number && !c.live && c.at >= since).map(|c| c.at)
    });
    Ok(out.max().unwrap_or(since))
}

/// Starts a member again and waits until traffic goes through all three.
async fn back(lab: &mut Lab, number: usize) -> Result<()> {
    lab.member_mut(number).start().await?;
    lab.member_mut(number).wait_ready(READY).await?;
    lab.wait_live(&[1, 2, 3]).await
}

/// What the machine should bear of a number.
fn share(of: usize) -> usize {
    let percent = std::env::var("PALISADE_LAB_LOAD").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    (of * percent / 100).max(1)
}

/// The value that `percent` of them do not exceed.
fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

async fn seconds(n: f64) {
    sleep(Duration::from_secs_f64(n)).await;
}
