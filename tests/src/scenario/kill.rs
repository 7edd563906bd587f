//! `kill -9` to each member in turn, the leader first, under load.

use std::time::Duration;

use anyhow::Result;
use palisade_engine::Time;
use palisade_lab::clock;
use tokio::time::sleep;

use super::{back, kill};
use crate::load::Load;
use palisade_lab::Lab;
use palisade_lab::drops::Drops;

/// What was seen when one member was killed.
#[derive(Clone, Debug)]
pub struct Killed {
    /// Its number.
    pub number: usize,
    /// Whether it led.
    pub led: bool,
    /// From the kill to the later of the two routers' new routes.
    pub reroute: Duration,
    /// The stall of blocks that were under way between the kill and the new routes: what they waited after these.
    pub under_way: Vec<Duration>,
    /// The stall of all blocks in the window.
    pub blocks: Vec<Duration>,
    /// New connections begun after the new routes: the time of connect(2), and that until the first answer.
    pub setups: Vec<Duration>,
    /// See `setups`.
    pub answers: Vec<Duration>,
    /// connect(2) of connections begun between the kill and the new routes.
    pub early_setups: Vec<Duration>,
}

/// How much load, and how long each dead member is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Long-lived connections.
    pub long_lived: usize,
    /// New connections a second.
    pub new: usize,
    /// The time in which stalls are measured after each kill.
    pub window: Duration,
}

/// Kills and restarts each of three members in turn. While each is dead, everything that was under way comes to its end and
/// as many new connections open as in a second: or this fails.
///
/// # Errors
/// Something waits for a member that is dead, or a member does not come back.
pub async fn each_member(lab: &mut Lab, server: &str, plan: Plan) -> Result<(Vec<Killed>, Load)> {
    let mut load = Load::start(lab, server, plan.long_lived).await?;
    load.open(plan.new);
    load.open_more(plan.new as u64).await?;
    load.fit(lab).await?;
    // The leader first; the next leader is not the last one.
    let leader = lab.wait_leader().await?;
    let order = [leader, leader % 3 + 1, (leader + 1) % 3 + 1];
    let mut seen = Vec::new();
    for number in order {
        let led = lab.wait_leader().await? == number;
        let killed = clock::now();
        let rerouted = kill(lab, number).await?;
        sleep(plan.window).await;
        load.settle(clock::now()).await?;
        load.open_more(plan.new as u64).await?;
        seen.push((number, led, killed, rerouted));
        back(lab, number).await?;
        load.open_more(plan.new as u64).await?;
    }
    load.finish().await?;
    if load.is_whole().is_err() {
        eprintln!("dropped since the last start of each member: {}", Drops::read(lab).await?);
    }
    let seen = seen.into_iter().map(|(number, led, killed, rerouted)| {
        let echoes = load.echoes(rerouted, plan.window);
        let stall = |begun: Time, ended: Time| ended.since(begun.max(rerouted));
        let under_way = echoes.iter().filter(|e| e.begun < rerouted && e.begun >= killed);
        Killed {
            number,
            led,
            reroute: rerouted.since(killed),
            under_way: under_way.map(|e| stall(e.begun, e.ended)).collect(),
            blocks: echoes.iter().map(|e| stall(e.begun, e.ended)).collect(),
            setups: load.setups(rerouted, rerouted + plan.window),
            answers: load.answers(rerouted, rerouted + plan.window),
            early_setups: load.setups(killed, rerouted),
        }
    });
    Ok((seen.collect(), load))
}
