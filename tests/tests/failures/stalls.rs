//! SIGSTOP: a member that is stopped counts as lost, and slows nobody down.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use palisade_lab::Lab;
use palisade_lab::guard::require_lab;
use palisade_node::clock;
use palisade_tests::members;

use super::load::Load;
use super::{BINARY, POLICY, READY, moved, percentile, seconds, share, without};

const NEW: usize = 1000;
const WINDOW: Duration = Duration::from_secs(2);
const WINDOWS: usize = 4;
/// By no more may p99 be longer than before, or than it varies without a change.
const SLOWER: f64 = 1.1;
/// Other work on the machine may begin between the two: the best of so many comparisons counts.
const TRIES: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_member_slows_nobody_down() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = follower_then_leader(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn follower_then_leader(lab: &mut Lab) -> Result<()> {
    let mut load = Load::start(lab, share(100)).await?;
    load.open(share(NEW));
    seconds(2.0).await;
    let leader = lab.wait_leader().await?;
    let follower = without(leader)[0];
    let mut slower = f64::MAX;
    for _ in 0..TRIES {
        slower = slower.min(with_and_without(lab, &load, follower).await?);
        if slower <= 1.0 {
            break;
        }
    }
    ensure!(slower <= 1.0, "p99 is {slower:.2} times what it may be");

    let stopped = clock::now();
    lab.member_mut(leader).signal(Signal::SIGSTOP)?;
    let out = moved(lab, leader, stopped).await?;
    seconds(3.0).await;
    let ended = clock::now();
    lab.member_mut(leader).signal(Signal::SIGCONT)?;
    lab.member_mut(leader).wait_ready(READY).await?;
    lab.wait_live(&[1, 2, 3]).await?;
    seconds(1.0).await;
    load.finish().await?;
    let (mut setups, mut answers) = (load.setups(out, ended), load.answers(out, ended));
    eprintln!(
        "the leader stopped; the routers moved after {:?}; {} new connections since: setup p99 {:?}, longest {:?}; first answer p99 \
         {:?}, longest {:?}",
        out.since(stopped),
        setups.len(),
        percentile(&mut setups, 99),
        percentile(&mut setups, 100),
        percentile(&mut answers, 99),
        percentile(&mut answers, 100),
    );
    eprintln!("{}", load.summary());
    load.is_whole()?;
    ensure!(percentile(&mut setups, 100) <= Duration::from_secs(1), "a connection took longer than a second");
    Ok(())
}

/// The p99 of setups while this follower is stopped, as a share of what it may be.
async fn with_and_without(lab: &mut Lab, load: &Load, follower: usize) -> Result<f64> {
    let before = p99s(load).await;
    let stopped = clock::now();
    lab.member_mut(follower).signal(Signal::SIGSTOP)?;
    moved(lab, follower, stopped).await?;
    seconds(0.5).await;
    let after = p99s(load).await;
    lab.member_mut(follower).signal(Signal::SIGCONT)?;
    lab.member_mut(follower).wait_ready(READY).await?;
    lab.wait_live(&[1, 2, 3]).await?;
    let [usual, noise, now] = [middle(&before), percentile(&mut before.clone(), 100), middle(&after)];
    let noise = noise.as_secs_f64() / usual.as_secs_f64();
    let slower = now.as_secs_f64() / usual.as_secs_f64();
    eprintln!(
        "setup p99 by windows of {WINDOW:?}, {} new connections/s: before {before:?}, a follower stopped {after:?}: {slower:.2} times; \
         the noise of those before {noise:.2}",
        share(NEW)
    );
    Ok(slower / noise.max(SLOWER))
}

async fn p99s(load: &Load) -> Vec<Duration> {
    let mut all = Vec::new();
    for _ in 0..WINDOWS {
        let from = clock::now();
        seconds(WINDOW.as_secs_f64()).await;
        all.push(percentile(&mut load.setups(from, clock::now()), 99));
    }
    all
}

fn middle(all: &[Duration]) -> Duration {
    percentile(&mut all.to_vec(), 50)
}
