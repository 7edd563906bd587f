//! What is measured of the log, without a datapath.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::stream::{FuturesUnordered, StreamExt};
use palisade_engine::replica::Outcome;
use palisade_lab::{WAIT, clock, wait_until};
use palisade_node::replication::LogSize;
use palisade_tests::figures::{Table, ms, percentile};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::cluster::{Node, establish, three, whole};

pub(crate) async fn one(node: &Node, n: u32) -> Result<Duration> {
    let asked = clock::now();
    ensure!(node.run()?.command(establish(n), WAIT).await? == Outcome::Accepted, "a command was refused");
    Ok(clock::now().since(asked))
}

pub(crate) fn leader(nodes: &[Node]) -> Result<usize> {
    nodes.iter().position(Node::leads).context("nobody leads")
}

fn row(table: &mut Table, what: &str, times: &mut [Duration]) {
    let cells = [50, 90, 99, 100].map(|p| ms(percentile(times, p)));
    table.row([what.to_owned(), times.len().to_string()].into_iter().chain(cells));
}

pub(crate) async fn commit() -> Result<Table> {
    const TIMES: u32 = 500;
    const LOST: u32 = 20;
    let mut table = Table::new(
        "From a proposal to its outcome at the proposer: three members in one process, durable on this disk",
        &["proposer", "times", "p50", "p90", "p99", "longest"],
    );
    let mut nodes = three(LogSize::default).await?;
    let mut next = 0;
    let lead = leader(&nodes)?;
    for (what, proposer) in [("the leader", lead), ("a follower", (lead + 1) % 3)] {
        let mut times = Vec::new();
        for _ in 0..TIMES {
            next += 1;
            times.push(one(&nodes[proposer], next).await?);
        }
        row(&mut table, what, &mut times);
    }
    let mut times = Vec::new();
    for round in 0..LOST {
        let lead = leader(&nodes)?;
        // At another time since the last heartbeat each time, asked from each of the others in turn.
        sleep(Duration::from_millis(u64::from(round) * 17 % 40)).await;
        nodes[lead].crash();
        next += 1;
        let proposer = (lead + 1 + round as usize % 2) % 3;
        times.push(one(&nodes[proposer], next).await?);
        nodes[lead].start().await?;
        whole(&nodes.each_ref(), 3).await?;
    }
    row(&mut table, "a follower, at the moment at which the leader is lost", &mut times);
    Ok(table)
}

/// A steady stream of commands until `end`; how long each took.
async fn steady(node: &Node, next: &mut u32, end: impl Future<Output = Result<()>>) -> Result<Vec<Duration>> {
    let (mut end, mut under_way, mut times) = (std::pin::pin!(end), FuturesUnordered::new(), Vec::new());
    let mut ticks = interval(Duration::from_millis(2));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            biased;
            done = &mut end => { done?; break }
            Some(took) = under_way.next() => times.push(took?),
            _ = ticks.tick() => {
                under_way.push(one(node, *next));
                *next += 1;
            }
        }
    }
    while let Some(took) = under_way.next().await {
        times.push(took?);
    }
    Ok(times)
}

/// Establishes the sessions from `next` on, up to `count`.
pub(crate) async fn fill(node: &Node, next: &mut u32, count: u32) -> Result<()> {
    const UNDER_WAY: usize = 2048;
    let mut under_way = FuturesUnordered::new();
    while *next < count || !under_way.is_empty() {
        while *next < count && under_way.len() < UNDER_WAY {
            under_way.push(one(node, *next));
            *next += 1;
        }
        if let Some(took) = under_way.next().await {
            took?;
        }
    }
    Ok(())
}

pub(crate) async fn join_large() -> Result<Table> {
    let count = std::env::var("PALISADE_SESSIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let log = || LogSize::every(2 << 20);
    let nodes = three(log).await?;
    let mut next = 0;
    let begun = clock::now();
    fill(&nodes[leader(&nodes)?], &mut next, count).await?;
    let filled = clock::now().since(begun);

    let follower = (leader(&nodes)? + 1) % 3;
    let mut before = steady(&nodes[follower], &mut next, async {
        sleep(Duration::from_secs(4)).await;
        Ok(())
    })
    .await?;
    let mut late = Node::new("fw4")?;
    late.options.log = log();
    let begun = clock::now();
    let (mut current, mut voter) = (Duration::ZERO, Duration::ZERO);
    let mut meanwhile = steady(&nodes[follower], &mut next, async {
        late.join(&nodes[0]).await?;
        wait_until("the new member to have a valid lease", async || Ok(late.is_current())).await?;
        current = clock::now().since(begun);
        whole(&[&nodes[0], &nodes[1], &nodes[2], &late], 4).await?;
        voter = clock::now().since(begun);
        Ok(())
    })
    .await?;
    let mut table = Table::new(
        format!(
            "A member joins a cluster with {count} sessions while commands arrive every 2 ms; four members in one process"
        ),
        &["filled in", "valid after", "a voter after", "commit p50 before", "meanwhile", "p99 before", "meanwhile"],
    );
    let [p50, p99] = [50, 99].map(|p| [percentile(&mut before, p), percentile(&mut meanwhile, p)].map(ms));
    table.row([filled, current, voter].map(ms).into_iter().chain(p50).chain(p99));
    Ok(table)
}
