//! Failures under load, as functions: the tests assert what must hold, the benchmark `measure` prints how long it took.

pub mod bulk;
pub mod kill;
pub mod stop;
pub mod web;

use anyhow::Result;
use palisade_engine::Time;
use palisade_lab::clock;

use palisade_lab::WAIT;
use palisade_lab::{Lab, SIDES};

/// The members of a lab of three but one.
#[must_use]
pub fn without(number: usize) -> Vec<usize> {
    (1..=3).filter(|n| *n != number).collect()
}

/// Kills a member and waits until no traffic goes to it any longer. Answers when the later of the two routers had its new
/// routes.
///
/// # Errors
/// It did not run, or the routers do not notice.
pub async fn kill(lab: &mut Lab, number: usize) -> Result<Time> {
    let killed = clock::now();
    lab.member_mut(number).kill().await?;
    rerouted(lab, number, killed).await
}

/// Waits until no traffic goes to a member any longer. Answers when the later of the two routers had its new routes.
///
/// # Errors
/// The routers do not notice.
pub async fn rerouted(lab: &Lab, number: usize, since: Time) -> Result<Time> {
    lab.wait_live(&without(number)).await?;
    let out = SIDES.iter().filter_map(|side| {
        let changes = lab.router(*side).changes();
        changes.iter().rev().find(|c| c.number == number && !c.live && c.at >= since).map(|c| c.at)
    });
    Ok(out.max().unwrap_or(since))
}

/// Starts a member again and waits until traffic goes through all three.
///
/// # Errors
/// It does not become ready.
pub async fn back(lab: &mut Lab, number: usize) -> Result<()> {
    lab.member_mut(number).start().await?;
    lab.member_mut(number).wait_ready(WAIT).await?;
    lab.wait_live(&[1, 2, 3]).await
}

/// A number, or the share of it that `PALISADE_LAB_LOAD` (in percent) says: for machines that are slow.
#[must_use]
pub fn share(of: usize) -> usize {
    let percent = std::env::var("PALISADE_LAB_LOAD").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    (of * percent / 100).max(1)
}
