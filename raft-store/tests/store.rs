//! The log and the state machine in operation: order, readers, snapshots in flight.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Map, NoWake, append, append_durably, clock, entry, log_id, open, setup, vote};
use futures::{StreamExt, TryStreamExt};
use openraft::RaftSnapshotBuilder;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftStateMachine};
use palisade_engine::replica::{Applied, Batch};
use palisade_raft_store::{
    Barrier, DiskBarrier, Entry, LentLimits, LogLimits, LogStore, MemoryDisk, MemoryLog, Observer, Options, Setup,
    SlowDisk, StateMachine, Store, flush,
};
use parking_lot::Mutex;

async fn apply(machine: &mut StateMachine<Map>, from: u64, to: u64) {
    let entries = (from..to).map(|index| Ok((entry(1, index, 10), None)));
    machine.apply(futures::stream::iter(entries)).await.unwrap();
}

/// A barrier that waits for permission, or fails.
struct Gate {
    disk: DiskBarrier,
    open: Arc<AtomicBool>,
    fail: Arc<AtomicBool>,
    waits: Arc<AtomicU64>,
}

impl Barrier for Gate {
    fn wait(&mut self, db: &sled::Db) -> io::Result<()> {
        self.waits.fetch_add(1, Ordering::SeqCst);
        while !self.open.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.fail.load(Ordering::SeqCst) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.disk.wait(db)
    }
}

struct Gated {
    log: LogStore,
    open: Arc<AtomicBool>,
    fail: Arc<AtomicBool>,
    waits: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

fn gated() -> Gated {
    let dir = tempfile::tempdir().unwrap();
    let (open, fail) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let waits = Arc::new(AtomicU64::new(0));
    let gate = (Arc::clone(&open), Arc::clone(&fail), Arc::clone(&waits));
    let store = Store::open_with(dir.path(), Options::new(clock()), |db| {
        let (open, fail, waits) = gate;
        Ok(Box::new(Gate { disk: DiskBarrier::new(db)?, open, fail, waits }))
    });
    let (log, _) = store.unwrap().into_parts(setup()).unwrap();
    Gated { log, open, fail, waits, _dir: dir }
}

#[tokio::test(flavor = "multi_thread")]
async fn append_is_acknowledged_after_the_barrier_and_in_order() {
    let mut gated = gated();
    gated.open.store(false, Ordering::SeqCst);
    let before = gated.waits.load(Ordering::SeqCst);
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for index in 1..=50 {
        let done = append(&mut gated.log, vec![entry(1, index, 100)]).await;
        let order = Arc::clone(&order);
        waiting.push(tokio::spawn(async move {
            done.await.unwrap();
            order.lock().push(index);
        }));
    }
    let mut reader = gated.log.get_log_reader().await;
    assert_eq!(reader.try_get_log_entries(..).await.unwrap().len(), 50, "readable before they are durable");
    // The flusher is a thread, which a busy machine may let wait before it comes to the barrier.
    while gated.waits.load(Ordering::SeqCst) == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let shut = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(order.lock().is_empty());
    let shut = shut.elapsed();
    gated.open.store(true, Ordering::SeqCst);
    for waiting in waiting {
        waiting.await.unwrap();
    }
    let flushes = gated.waits.load(Ordering::SeqCst) - before;
    assert!(flushes <= 3, "one flush for whatever queued: {flushes} for 50 appends");
    let metrics = gated.log.metrics();
    assert_eq!((metrics.operations.get(), metrics.entries.get()), (50, 50));
    assert!(metrics.flush.sum() >= shut, "{metrics:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn vote_is_seen_only_when_durable_and_an_error_is_the_end() {
    let mut gated = gated();
    gated.log.save_vote(&vote(3)).await.unwrap();
    gated.open.store(false, Ordering::SeqCst);
    let mut reader = gated.log.get_log_reader().await;
    {
        let next = vote(4);
        let save = gated.log.save_vote(&next);
        tokio::pin!(save);
        assert!(tokio::time::timeout(Duration::from_millis(30), &mut save).await.is_err());
        assert_eq!(reader.read_vote().await.unwrap(), Some(vote(3)));
        gated.fail.store(true, Ordering::SeqCst);
        gated.open.store(true, Ordering::SeqCst);
        assert_eq!(save.await.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
    assert_eq!(reader.read_vote().await.unwrap(), Some(vote(3)));
    gated.fail.store(false, Ordering::SeqCst);
    let error = append_durably(&mut gated.log, vec![entry(4, 1, 10)]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "it stays an error though the disk has room again");
    assert!(gated.log.save_vote(&vote(5)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_cold_or_recent_are_read_alike_also_after_truncation_and_restart() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { recent_bytes: 4000, ..Options::new(clock()) };
    let open = || Store::open(dir.path(), options()).unwrap().into_parts(setup()).unwrap();
    let (mut log, _) = open();
    let mut want: Vec<Entry> = Vec::new();
    let mut reader = log.get_log_reader().await;
    for round in 0..40u64 {
        let (term, next) = (round + 1, want.last().map_or(1, |entry| entry.log_id.index + 1));
        let bytes = if round % 7 == 0 { 30_000 } else { 200 };
        let entries: Vec<_> = (next..next + 9).map(|index| entry(term, index, bytes)).collect();
        let durable = append(&mut log, entries.clone()).await;
        want.extend(entries);
        if round % 3 == 0 {
            // Not waited for: the truncation may overtake nothing.
            want.truncate(want.len().saturating_sub(12).max(3));
            log.truncate_after(Some(want.last().unwrap().log_id)).await.unwrap();
        }
        durable.await.unwrap();
        assert_eq!(reader.try_get_log_entries(..).await.unwrap(), want, "round {round}");
        let streamed: Vec<_> = reader.entries_stream(1..).await.try_collect().await.unwrap();
        assert_eq!(streamed, want);
        let some = reader.limited_get_log_entries(2, 1000).await.unwrap();
        assert!(!some.is_empty() && want[1..].starts_with(&some));
    }
    assert!(log.metrics().cold_reads.get() > 0);
    drop((log, reader));
    let (mut log, _) = open();
    let mut reader = log.get_log_reader().await;
    assert_eq!(reader.try_get_log_entries(..).await.unwrap(), want);
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, want.last().map(|entry| entry.log_id));
    assert!(append_hole(&mut log, want.last().unwrap().log_id.index + 2).await.is_err());
}

async fn append_hole(log: &mut LogStore, index: u64) -> io::Result<()> {
    log.append([entry(99, index, 1)], openraft::storage::IOFlushed::noop()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_that_is_long_is_finished_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, mut machine) = open(dir.path()).unwrap();
    for from in (1..20_000).step_by(500) {
        drop(append(&mut log, (from..from + 500).map(|index| entry(1, index, 50)).collect()).await);
    }
    append_durably(&mut log, vec![entry(1, 20_001, 50)]).await.unwrap();
    apply(&mut machine, 1, 20_002).await;
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    log.purge(log_id(1, 19_990)).await.unwrap();
    append_durably(&mut log, vec![entry(1, 20_002, 50)]).await.unwrap();
    let mut reader = log.get_log_reader().await;
    assert_eq!(reader.try_get_log_entries(..).await.unwrap().first().unwrap().log_id.index, 19_991);
    drop((log, reader, machine));

    let (mut log, machine) = open(dir.path()).unwrap();
    assert_eq!(machine.last_applied(), Some(log_id(1, 20_001)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 19_990)), Some(log_id(1, 20_002))));
    // The rest goes by itself.
    drop((log, machine));
    for patience in (0..120).rev() {
        let opened = open(dir.path()).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(opened);
        let left = released(dir.path()).open_tree("log").unwrap().len();
        if left == 12 {
            return;
        }
        assert!(patience > 0 && left > 12, "{left} entries are left");
    }
}

/// The database of a store that was closed a moment ago.
fn released(dir: &std::path::Path) -> sled::Db {
    for _ in 0..12_000 {
        match sled::open(dir.join("db")) {
            Ok(db) => return db,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    panic!("the database stays locked");
}

#[derive(Default)]
struct Told {
    applied: Mutex<Vec<(u64, usize)>>,
    advanced: AtomicU64,
    installed: AtomicU64,
}

impl Observer for Told {
    fn applied(&self, index: u64, _: &Batch, answers: &[Applied]) {
        self.applied.lock().push((index, answers.len()));
    }

    fn advanced(&self, index: u64) {
        self.advanced.store(index, Ordering::SeqCst);
    }

    fn installed(&self, index: u64) {
        self.installed.store(index, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_is_exact_though_apply_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Options::new(clock())).unwrap();
    let map = Map::default();
    let gate = map.gate.clone();
    let machine = map;
    let (log, mut machine) =
        store.into_parts(Setup { state: machine, wake: Box::new(NoWake), observer: Arc::new(()) }).unwrap();
    apply(&mut machine, 1, 11).await;
    gate.shut(true);
    let mut builder = machine.try_create_snapshot_builder(false).await.unwrap();
    let building = tokio::spawn(async move { builder.build_snapshot().await.unwrap().meta });
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Returns though the job has not ended.
    apply(&mut machine, 11, 21).await;
    assert!(!building.is_finished());
    assert!(machine.try_create_snapshot_builder(false).await.is_none(), "one at a time");
    gate.shut(false);
    assert_eq!(building.await.unwrap().last_log_id, Some(log_id(1, 10)));
    drop((log, machine));

    let (_log, machine) = open(dir.path()).unwrap();
    assert_eq!(machine.inspector().look(|map, applied| (map.batches.len(), applied)), (10, Some(log_id(1, 10))));
}

/// Limits for entries of about 50 bytes, with marks of 1 KiB.
fn limits() -> LogLimits {
    let lent = LentLimits { bytes: 20_000, time: Duration::from_secs(600) };
    LogLimits { floor: 4096, ceiling: 4096, interval: Duration::from_secs(600), keep: 2048, lent }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_follows_a_lent_snapshot_is_kept_within_bounds_and_snapshots_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, mut machine) = open(dir.path()).unwrap();
    let planner = machine.planner();
    let plan = || planner.plan(&limits());
    assert_eq!((plan().snapshot, plan().purge), (false, None));
    apply(&mut machine, 1, 101).await;
    assert!(plan().snapshot, "so many bytes were logged");
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert!(!plan().snapshot);
    let purge = plan().purge.unwrap();
    assert!((1..100).contains(&purge), "some of the log before the snapshot is kept: {purge}");

    let sent = machine.get_current_snapshot().await.unwrap().unwrap();
    let pin = sent.snapshot.pin().unwrap();
    assert_eq!(sent.meta.last_log_id, Some(log_id(1, 100)));
    let (mut next, mut given_up) = (101, false);
    for _ in 0..20 {
        apply(&mut machine, next, next + 60).await;
        next += 60;
        assert!(plan().snapshot, "one is made though another is sent");
        machine.try_create_snapshot_builder(false).await.unwrap().build_snapshot().await.unwrap();
        let current = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(current.meta.last_log_id, Some(log_id(1, next - 1)), "the newest one is handed out");
        drop(current);
        let purge = plan().purge.unwrap();
        given_up |= purge > 100;
        assert!(purge > 100 || !given_up);
        if next < 200 {
            assert!(purge <= 100, "{purge}: the receiver needs what follows");
        }
    }
    // A receiver that never takes it: its pin is there still.
    assert!(given_up, "the log grows without bound");
    let purge = plan().purge.unwrap();
    assert!(purge > next - 200, "{purge} of {next}");
    assert_eq!(sent.snapshot.chunk(0, usize::MAX).unwrap().len() as u64, sent.snapshot.len(), "it stays readable");
    drop((sent, pin));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_is_read_while_the_state_is_looked_at_and_a_bad_one_changes_nothing() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_log, mut sender) = open(here.path()).unwrap();
    apply(&mut sender, 1, 101).await;
    sender.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let map = Map::default();
    let gate = map.gate.clone();
    let store = Store::open(there.path(), Options::new(clock())).unwrap();
    let setup = Setup { state: map, wake: Box::new(NoWake), observer: Arc::new(()) };
    let (_log, mut receiver) = store.into_parts(setup).unwrap();
    apply(&mut receiver, 1, 11).await;
    let (inspector, auditor) = (receiver.inspector(), receiver.auditor());
    let before = inspector.look(|map, applied| (map.batches.clone(), applied));
    gate.shut(true);
    let sent = sender.get_current_snapshot().await.unwrap().unwrap();
    let installing = tokio::spawn(async move {
        receiver.install_snapshot(&sent.meta, sent.snapshot).await.unwrap();
        receiver
    });
    // Until it is read. Each look would wait for the whole of it.
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let looked = tokio::task::spawn_blocking({
            let (inspector, auditor) = (inspector.clone(), auditor.clone());
            move || (inspector.look(|map, applied| (map.batches.clone(), applied)), auditor.applied())
        });
        let looked = tokio::time::timeout(Duration::from_secs(20), looked).await;
        let looked = looked.inspect_err(|_| gate.shut(false)).expect("the state is locked while a snapshot is read");
        assert_eq!(looked.unwrap(), (before.clone(), before.1));
    }
    assert!(!installing.is_finished());
    gate.shut(false);
    let mut receiver = installing.await.unwrap();
    assert_eq!(inspector.look(|map, applied| (map.batches.len(), applied)), (100, Some(log_id(1, 100))));
    apply(&mut receiver, 101, 103).await;
    assert_eq!(auditor.applied(), Some(log_id(1, 102)));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_that_is_written_slowly_ends_with_its_store() {
    let dir = tempfile::tempdir().unwrap();
    let writes = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&writes);
    let disk = SlowDisk(Some(Arc::new(move |bytes| {
        counted.fetch_add(bytes, Ordering::SeqCst);
    })));
    let store = Store::open(dir.path(), Options { disk, ..Options::new(clock()) }).unwrap();
    let mut batches = std::collections::BTreeMap::new();
    // 32 MB: two seconds at the rate at which it is written.
    batches.extend((0..2_000_000_u64).map(|n| (n, n)));
    let map = Map { batches, ..Map::default() };
    let setup = Setup { state: map, wake: Box::new(NoWake), observer: Arc::new(()) };
    let (log, mut machine) = store.into_parts(setup).unwrap();
    let mut builder = machine.get_snapshot_builder().await;
    let building = tokio::spawn(async move { builder.build_snapshot().await });
    while writes.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop((log, machine));
    assert!(building.await.unwrap().is_err(), "it was written to its end");
    assert!(writes.load(Ordering::SeqCst) < 32_000_000);
    // Nothing of it is left, and the store opens.
    let (_log, machine) = open(dir.path()).unwrap();
    assert_eq!(machine.last_applied(), None);
    assert_eq!(std::fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_travels_and_is_installed() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_log, mut sender) = open(here.path()).unwrap();
    apply(&mut sender, 1, 101).await;
    sender.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let sent = sender.get_current_snapshot().await.unwrap().unwrap().snapshot;

    let store = Store::open(there.path(), Options::new(clock())).unwrap();
    let snapshots = store.snapshots();
    let told = Arc::new(Told::default());
    let (log, mut receiver) = store
        .into_parts(Setup { state: Map::default(), wake: Box::new(NoWake), observer: Arc::clone(&told) as _ })
        .unwrap();

    let mut incoming = snapshots.receive(1 << 20).unwrap();
    let mut offset = 0;
    loop {
        let chunk = sent.chunk(offset, 100).unwrap();
        if chunk.is_empty() {
            break;
        }
        offset += chunk.len() as u64;
        incoming.write(&chunk).unwrap();
    }
    assert_eq!(offset, sent.len());
    let snapshot = incoming.finish().unwrap();
    let meta = snapshot.meta().clone();
    assert_eq!(meta.last_log_id, Some(log_id(1, 100)));
    receiver.install_snapshot(&meta, snapshot).await.unwrap();
    assert_eq!((told.installed.load(Ordering::SeqCst), told.advanced.load(Ordering::SeqCst)), (100, 100));
    apply(&mut receiver, 101, 103).await;
    assert_eq!(*told.applied.lock(), [(101, 1), (102, 1)]);
    let current = receiver.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.snapshot.chunk(0, usize::MAX).unwrap(), sent.chunk(0, usize::MAX).unwrap());
    drop(sent);

    // Damaged, cut short or too long ones are refused, and nothing is left of them.
    let bytes = current.snapshot.chunk(0, usize::MAX).unwrap();
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    for bad in [&damaged[..], &bytes[..bytes.len() - 1], &bytes[..10], &[]] {
        let mut incoming = snapshots.receive(1 << 20).unwrap();
        incoming.write(bad).unwrap();
        assert_eq!(incoming.finish().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
    assert!(snapshots.receive(10).unwrap().write(&bytes).is_err());
    assert_eq!(std::fs::read_dir(there.path().join("snapshots")).unwrap().count(), 1);
    drop((log, receiver));
    let (_log, receiver) = open(there.path()).unwrap();
    assert_eq!(receiver.last_applied(), Some(log_id(1, 100)));
}

#[tokio::test]
async fn memory_log_survives_its_owner_and_is_bounded() {
    let disk = MemoryDisk::new(clock(), 5);
    let mut log = disk.log();
    let (tx, rx) = <palisade_raft_store::TypeConfig as openraft::type_config::TypeConfigExt>::oneshot();
    log.append((1..=5).map(|index| entry(1, index, 1)), openraft::storage::IOFlushed::signal(tx)).await.unwrap();
    rx.await.unwrap().unwrap();
    log.save_vote(&vote(2)).await.unwrap();
    assert!(log.append([entry(1, 6, 1)], openraft::storage::IOFlushed::noop()).await.is_err());
    drop(log);
    let mut log = disk.log();
    assert_eq!(log.read_vote().await.unwrap(), Some(vote(2)));
    let entries: Vec<_> = log.entries_stream(2..4).await.collect().await;
    assert_eq!(entries.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn crash_leaves_a_prefix_of_what_was_under_way_on_a_disk_in_memory() {
    for (kept, lies) in [(0, false), (2, false), (9, false), (0, true)] {
        let disk = MemoryDisk::new(clock(), 100);
        disk.slow(|| Duration::from_millis(10));
        if lies {
            disk.lie();
        }
        let mut log = disk.log();
        let append = async |log: &mut MemoryLog, from, to| {
            let (tx, rx) = <palisade_raft_store::TypeConfig as openraft::type_config::TypeConfigExt>::oneshot();
            let entries = (from..=to).map(|index| entry(1, index, 1));
            log.append(entries, openraft::storage::IOFlushed::signal(tx)).await.unwrap();
            tokio::time::timeout(Duration::from_millis(5), rx).await
        };
        assert_eq!(append(&mut log, 1, 3).await.is_ok(), lies, "acknowledged before it is durable");
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(append(&mut log, 4, 6).await.is_ok(), lies);
        disk.crash(kept);
        drop(log);
        let last = disk.log().get_log_state().await.unwrap().last_log_id.unwrap().index;
        assert_eq!(last, 3 + kept.min(3) as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_a_flush_and_what_it_made_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let metrics = log.metrics();
    let counts = || [metrics.flush.count(), metrics.operations.get(), metrics.entries.get(), metrics.bytes.get()];
    let (before, spent) = (counts(), metrics.flush.sum());
    append_durably(&mut log, (1..=16).map(|index| entry(1, index, 1024)).collect()).await.unwrap();
    let [flushes, operations, entries, bytes] = counts();
    assert_eq!((flushes - before[0], operations - before[1], entries - before[2]), (1, 1, 16));
    assert!(bytes - before[3] > 16 * 1024 && metrics.flush.sum() > spent);
    // Compiles, and is what a barrier of one's own is made of.
    let _: fn(&sled::Db) -> io::Result<()> = flush;
}
