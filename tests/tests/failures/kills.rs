//! kill -9 to each member in turn, the leader included, under 10,000 connections that are alive.

use std::time::Duration;

use anyhow::{Result, ensure};
use palisade_lab::Lab;
use palisade_lab::guard::require_lab;
use palisade_node::clock;
use palisade_tests::members;

use super::load::Load;
use super::{BINARY, POLICY, back, kill, percentile, seconds, share};

const STANDING: usize = 10_000;
const NEW: usize = 50;

/// The longest that one in a hundred may wait after the routers have moved.
const STALL: Duration = Duration::from_millis(300);
/// Where no processor is free the second retransmission is waited for, 200 ms and more after the first; so the best of so
/// many runs counts. That nothing is lost holds in each.
const TRIES: usize = 3;
const SETUP: Duration = Duration::from_secs(1);
/// A SYN that was sent to the dead member is sent again after a second (RFC 6298 section 2).
const SYN_AGAIN: Duration = Duration::from_millis(1200);
/// What is looked at after each kill.
const AFTER: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_notices_that_its_member_dies() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
        let result = one_after_the_other(&mut lab).await;
        best = best.min(lab.or_keep(result).unwrap());
        if best <= STALL {
            return;
        }
    }
    panic!("p99 of the stall {best:?}");
}

/// The longest p99 of the stall.
async fn one_after_the_other(lab: &mut Lab) -> Result<Duration> {
    let mut load = Load::start(lab, share(STANDING)).await?;
    load.open(NEW);
    seconds(2.0).await;
    // The leader first; whoever leads then is not the last one.
    let leader = lab.wait_leader().await?;
    let order = [leader, leader % 3 + 1, (leader + 1) % 3 + 1];
    let mut seen = Vec::new();
    for number in order {
        let led = lab.wait_leader().await? == number;
        let killed = clock::now();
        let moved = kill(lab, number).await?;
        seconds(AFTER.as_secs_f64()).await;
        seen.push((number, led, killed, moved));
        back(lab, number).await?;
        seconds(1.0).await;
    }
    load.finish().await?;
    let mut worst = Duration::ZERO;
    let mut slowest = Duration::ZERO;
    for (number, led, killed, moved) in seen {
        let echoes = load.echoes(moved, AFTER);
        let mut under_way: Vec<Duration> =
            echoes.iter().filter(|e| e.begun < moved && e.begun >= killed).map(|e| e.ended.since(moved)).collect();
        let mut all: Vec<Duration> = echoes.iter().map(|e| e.ended.since(e.begun.max(moved))).collect();
        let mut setups = load.setups(moved, moved + AFTER);
        let mut answers = load.answers(moved, moved + AFTER);
        let [p99, of_all] = [percentile(&mut under_way, 99), percentile(&mut all, 99)];
        let [setup, answer] = [percentile(&mut setups, 100), percentile(&mut answers, 100)];
        let of_syns = percentile(&mut load.setups(killed, moved), 100);
        eprintln!(
            "fw{number}{} killed; the routers moved after {:?}. Stall after that: of {} blocks that were under way p50 {:?}, p99 \
             {p99:?}, longest {:?}; of all {} blocks p99 {of_all:?}. {} new connections: longest setup {setup:?}, first answer \
             {answer:?}; those that began before the routers moved: {of_syns:?}",
            if led { ", the leader," } else { "" },
            moved.since(killed),
            under_way.len(),
            percentile(&mut under_way, 50),
            percentile(&mut under_way, 100),
            all.len(),
            setups.len(),
        );
        worst = worst.max(p99).max(of_all);
        slowest = slowest.max(setup);
        ensure!(of_syns <= SYN_AGAIN, "a connection took {of_syns:?}");
    }
    eprintln!("{}", load.summary());
    load.is_whole()?;
    ensure!(slowest <= SETUP, "longest setup {slowest:?}");
    Ok(worst)
}
