//! What snapshots cost those who wait for a commit, on a slow disk.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::stream::{FuturesUnordered, StreamExt};
use palisade_lab::{WAIT, clock, wait_until};
use palisade_node::replication::{LogSize, SlowDisk};
use palisade_tests::figures::{Table, ms, percentile};
use tokio::time::{MissedTickBehavior, interval};

use crate::cluster::{Node, three};
use crate::log::{fill, leader, one};

/// The bytes that each member's disk does in a second.
const DISK: u64 = 50_000_000;
/// Bytes of log between two snapshots: with a million sessions one is under way about half of the time.
const LOG: u64 = 3 << 20;
/// New connections in a millisecond.
const RATE: u32 = 2;
/// How long commits are measured.
const TIME: Duration = Duration::from_secs(40);

fn is_writing(nodes: &[Node]) -> Result<bool> {
    for node in nodes {
        if node.run()?.store_metrics().snapshots.under_way.get() > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn leader_changes(nodes: &[Node]) -> Result<u64> {
    nodes.iter().map(|node| Ok(node.run()?.metrics().leader_changes.get())).sum()
}

fn written(nodes: &[Node]) -> Result<u64> {
    nodes.iter().map(|node| Ok(node.run()?.store_metrics().snapshots.written.get())).sum()
}

/// How long commits took while no snapshot was written, and while one was.
async fn commits(nodes: &[Node], next: &mut u32) -> Result<[Vec<Duration>; 2]> {
    let (mut times, mut under_way) = ([Vec::new(), Vec::new()], FuturesUnordered::new());
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let follower = (leader(nodes)? + 1) % 3;
    let begun = clock::now();
    while clock::now().since(begun) < TIME || !under_way.is_empty() {
        tokio::select! {
            biased;
            Some(done) = under_way.next() => {
                let (took, before): (Result<Duration>, bool) = done;
                times[usize::from(before || is_writing(nodes)?)].push(took?);
            }
            _ = ticks.tick(), if clock::now().since(begun) < TIME => {
                let before = is_writing(nodes)?;
                for _ in 0..RATE {
                    let (node, n) = (&nodes[follower], *next);
                    under_way.push(async move { (one(node, n).await, before) });
                    *next += 1;
                }
            }
        }
    }
    Ok(times)
}

pub(crate) async fn measure() -> Result<Table> {
    let count = std::env::var("PALISADE_SESSIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let nodes =
        three(|| LogSize { disk: SlowDisk::limited(DISK, Arc::new(clock::now)), ..LogSize::every(LOG) }).await?;
    let mut next = 0;
    let begun = clock::now();
    fill(&nodes[leader(&nodes)?], &mut next, count).await?;
    let filled = clock::now().since(begun);
    wait_until("snapshots of all sessions", async || Ok(!is_writing(&nodes)?)).await?;
    let (changes, before) = (leader_changes(&nodes)?, written(&nodes)?);
    let [mut without, mut with] = commits(&nodes, &mut next).await?;
    let (changes, snapshots) = (leader_changes(&nodes)? - changes, written(&nodes)? - before);
    ensure!(!without.is_empty() && !with.is_empty(), "a snapshot was under way all the time, or never");
    ensure!(clock::now().since(begun) < filled + TIME + WAIT, "it took too long");
    let mut locked = Duration::ZERO;
    for node in &nodes {
        locked = locked.max(node.run()?.store_metrics().snapshots.shard_locked.get());
    }
    let mut table = Table::new(
        format!(
            "{count} sessions, {} new ones a second, disks with {} MB/s; three members in one process, filled in {:.0} s",
            1000 * RATE,
            DISK / 1_000_000,
            filled.as_secs_f64()
        ),
        &["while", "commits", "p50", "p90", "p99", "longest", "snapshots", "shard locked at most", "leader changes"],
    );
    for (what, times, rest) in [
        ("no snapshot is written", &mut without, [String::new(), String::new(), String::new()]),
        (
            "one is written",
            &mut with,
            [snapshots.to_string(), format!("{:.3} ms", locked.as_secs_f64() * 1000.0), changes.to_string()],
        ),
    ] {
        let cells = [50, 90, 99, 100].map(|p| ms(percentile(times, p)));
        table.row([what.to_owned(), times.len().to_string()].into_iter().chain(cells).chain(rest));
    }
    Ok(table)
}
