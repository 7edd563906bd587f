//! How many batches a second become durable: `cargo run --release -p palisade-raft-store --example durable [folder]`.
//!
//! One batch after the other (the latency that a lone connection sees), and 64 in flight (what group commit makes of
//! it), with 1 and 16 entries of 1 KiB a batch. The folder should be on the disk that is to be measured.
#![allow(clippy::print_stdout, reason = "it prints its result")]

use std::collections::VecDeque;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderIdExt;
use openraft::{EntryPayload, impls::leader_id_adv::LeaderId};
use palisade_engine::replica::{Applied, Batch, Command, PolicyChange, RestoreError};
use palisade_engine::{Generation, HoldKey, MemberId, Time, Wake};
use palisade_raft_store::{
    Clock, Entry, Job, LogId, LogStore, Options, ReplicatedState, Setup, SnapshotReader, Store, TypeConfig,
};
use tokio::time::Instant;

const TIME: Duration = Duration::from_secs(5);
/// Entries to leave in the log: the rest is purged, as a running member does.
const LEAVE: u64 = 20_000;

/// Keeps nothing: only the log is measured.
struct Nothing;

impl ReplicatedState for Nothing {
    type Job = Nothing;
    type Restorer = Nothing;

    fn apply(&mut self, _: Time, _: &Batch, _: &mut dyn Wake) -> Vec<Applied> {
        Vec::new()
    }

    fn begin_snapshot(&mut self) -> Nothing {
        Nothing
    }

    fn digest(&self) -> u64 {
        0
    }

    fn restorer(&self) -> Nothing {
        Nothing
    }

    fn install(&mut self, _: Time, (): &mut (), _: &mut dyn Wake) -> bool {
        false
    }
}

impl SnapshotReader for Nothing {
    type Restored = ();

    fn read(&self, _: Time, _: &mut dyn std::io::Read) -> Result<(), RestoreError> {
        Ok(())
    }
}

impl Job for Nothing {
    fn write(self, _: &mut dyn std::io::Write, _: &Clock) -> std::io::Result<Duration> {
        Ok(Duration::ZERO)
    }
}

impl Wake for Nothing {
    fn wake(&mut self, _: palisade_engine::WorkerSet, _: HoldKey) {}
}

fn entry(index: u64) -> Entry {
    let change = PolicyChange::new(Generation(0), "x".repeat(1000), String::new());
    let commands = vec![Command::Policy(Box::new(change))];
    let batch = Batch { proposer: MemberId(1), first_serial: index, lowest_outstanding: 0, unix_ms: 0, commands };
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(batch) }
}

fn log_id(index: u64) -> LogId {
    LogId::new(LeaderId::new_committed(1, MemberId(1)), index)
}

fn size(dir: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for file in std::fs::read_dir(dir)? {
        let file = file?;
        sum += if file.file_type()?.is_dir() { size(&file.path())? } else { file.metadata()?.len() };
    }
    Ok(sum)
}

async fn measure(log: &mut LogStore, next: &mut u64, entries: u64, flying: usize) -> Result<(), Box<dyn Error>> {
    let metrics = log.metrics();
    let (operations, flushes) = (metrics.operations.get(), metrics.flush.count());
    let mut purged = log.get_log_state().await?.last_purged_log_id.map_or(0, |id| id.index);
    let begin = Instant::now();
    let (mut latencies, mut waiting) = (Vec::new(), VecDeque::new());
    while begin.elapsed() < TIME {
        let (tx, rx) = TypeConfig::oneshot();
        let sent = Instant::now();
        log.append((*next..*next + entries).map(entry), IOFlushed::signal(tx)).await?;
        *next += entries;
        waiting.push_back((sent, rx));
        if waiting.len() >= flying {
            let Some((sent, rx)) = waiting.pop_front() else { continue };
            rx.await??;
            latencies.push(sent.elapsed());
        }
        if *next > purged + LEAVE + 1024 {
            purged = *next - LEAVE;
            log.purge(log_id(purged)).await?;
        }
    }
    for (sent, rx) in waiting {
        rx.await??;
        latencies.push(sent.elapsed());
    }
    let took = begin.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "{entries:>2} × 1 KiB, {flying:>2} in flight: {:>6.0} batches/s, {:>6.0} entries/s, p50 {:?}, p99 {:?}, {:.1} batches a flush",
        latencies.len() as f64 / took,
        latencies.len() as f64 * entries as f64 / took,
        at(0.5),
        at(0.99),
        (metrics.operations.get() - operations) as f64 / (metrics.flush.count() - flushes).max(1) as f64,
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).map_or_else(|| std::env::temp_dir().join("palisade-durable"), PathBuf::from);
    let begin = Instant::now();
    let clock = Arc::new(move || Time(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)));
    let store = Store::open(&dir, Options::new(clock))?;
    let setup = Setup { state: Nothing, wake: Box::new(Nothing), observer: Arc::new(()) };
    let (mut log, machine) = store.into_parts(setup)?;
    let mut next = log.get_log_state().await?.last_log_id.map_or(1, |id| id.index + 1);
    for flying in [1, 64] {
        for entries in [1, 16] {
            measure(&mut log, &mut next, entries, flying).await?;
        }
    }
    println!("{next} entries written, {} MiB on disk for {LEAVE} entries left", size(&dir)? >> 20);
    drop((log, machine));
    // Purged without a snapshot that covers it, this is no data folder to go on with.
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
