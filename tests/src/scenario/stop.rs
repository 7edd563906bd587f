//! SIGSTOP: a member that hangs, under new connections.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use palisade_lab::clock;
use tokio::time::sleep;

use super::rerouted;
use crate::figures::percentile;
use crate::load::Load;
use palisade_lab::Lab;
use palisade_lab::WAIT;

/// Stops a member's process and waits until the routers send it nothing. Then as many new connections as `count` open while
/// it hangs, and all that was under way comes to its end: or this fails. Answers the time until the new routes.
///
/// # Errors
/// Something waits for the member that hangs, or it does not come back.
pub async fn hang(lab: &mut Lab, load: &Load, number: usize, count: u64) -> Result<Duration> {
    let stopped = clock::now();
    lab.member_mut(number).signal(Signal::SIGSTOP)?;
    let out = rerouted(lab, number, stopped).await?;
    load.settle(clock::now()).await?;
    load.open_more(count).await?;
    resume(lab, number).await?;
    Ok(out.since(stopped))
}

async fn resume(lab: &mut Lab, number: usize) -> Result<()> {
    lab.member_mut(number).signal(Signal::SIGCONT)?;
    lab.member_mut(number).wait_ready(WAIT).await?;
    lab.wait_live(&[1, 2, 3]).await
}

/// Setup p99s of new connections in windows, before a member was stopped and while it hangs.
#[derive(Clone, Debug)]
pub struct Compared {
    /// One p99 a window.
    pub before: Vec<Duration>,
    /// One p99 a window.
    pub meanwhile: Vec<Duration>,
    /// From the signal to the routers' new routes.
    pub reroute: Duration,
}

/// Compares the setup times before a member is stopped and while it hangs, in `windows` windows each.
///
/// # Errors
/// A member does not come back.
pub async fn compare(lab: &mut Lab, load: &Load, number: usize, windows: usize, window: Duration) -> Result<Compared> {
    let before = p99s(load, windows, window).await;
    let stopped = clock::now();
    lab.member_mut(number).signal(Signal::SIGSTOP)?;
    let out = rerouted(lab, number, stopped).await?;
    sleep(Duration::from_millis(500)).await;
    let meanwhile = p99s(load, windows, window).await;
    resume(lab, number).await?;
    Ok(Compared { before, meanwhile, reroute: out.since(stopped) })
}

async fn p99s(load: &Load, windows: usize, window: Duration) -> Vec<Duration> {
    let mut all = Vec::new();
    for _ in 0..windows {
        let from = clock::now();
        sleep(window).await;
        all.push(percentile(&mut load.setups(from, clock::now()), 99));
    }
    all
}
