//! What the storage tests share: a machine that is a map, entries, and waiting for completions.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "test helpers; each test file uses some of them"
)]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderIdExt;
use openraft::{Entry as RaftEntry, EntryPayload};
use palisade_engine::policy::PolicyHash;
use palisade_engine::replica::{Applied, Batch, Command, Outcome, PolicyChange, RestoreError};
use palisade_engine::{Generation, HoldKey, MemberId, Time, Wake};
use palisade_raft_store::{
    Clock, Entry, Job, LogId, LogStore, Options, ReplicatedState, Setup, SnapshotReader, StateMachine, Store,
    StoreError, TypeConfig, Vote,
};

/// A machine that is a map from first command number to the number of commands.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Map {
    pub batches: BTreeMap<u64, u64>,
    /// What a job waits for.
    pub gate: JobGate,
}

/// Keeps snapshot jobs, and those who read snapshots, from ending while it is shut. Two gates count as equal.
#[derive(Clone, Default, Debug)]
pub struct JobGate(Arc<AtomicBool>);

impl JobGate {
    pub fn shut(&self, shut: bool) {
        self.0.store(shut, Ordering::SeqCst);
    }

    fn wait(&self) {
        while self.0.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl PartialEq for JobGate {
    fn eq(&self, _: &JobGate) -> bool {
        true
    }
}

impl Eq for JobGate {}

pub struct MapJob(Map);

impl ReplicatedState for Map {
    type Job = MapJob;
    type Restorer = MapReader;

    fn apply(&mut self, _: Time, batch: &Batch, _: &mut dyn Wake) -> Vec<Applied> {
        *self.batches.entry(batch.first_serial).or_default() += batch.commands.len() as u64;
        batch
            .commands
            .iter()
            .map(|_| Applied { outcome: Outcome::Accepted, changed: true, removed: Vec::new(), ended: Vec::new() })
            .collect()
    }

    fn begin_snapshot(&mut self) -> MapJob {
        MapJob(self.clone())
    }

    fn digest(&self) -> u64 {
        self.batches.iter().fold(0, |sum, (first, commands)| sum.wrapping_mul(31).wrapping_add(first ^ commands << 32))
    }

    fn restorer(&self) -> MapReader {
        MapReader(self.gate.clone())
    }

    fn install(&mut self, _: Time, restored: &mut BTreeMap<u64, u64>, _: &mut dyn Wake) -> bool {
        self.batches = std::mem::take(restored);
        false
    }
}

/// Reads the snapshots of a [`Map`]: not while its gate is shut.
pub struct MapReader(JobGate);

impl SnapshotReader for MapReader {
    type Restored = BTreeMap<u64, u64>;

    fn read(&self, _: Time, snapshot: &mut dyn Read) -> Result<BTreeMap<u64, u64>, RestoreError> {
        self.0.wait();
        let mut bytes = Vec::new();
        snapshot.read_to_end(&mut bytes)?;
        let chunks = bytes.chunks_exact(16);
        if !chunks.remainder().is_empty() {
            return Err(RestoreError::Damaged("an odd number of bytes".to_owned()));
        }
        let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
        Ok(chunks.map(|pair| (number(&pair[..8]), number(&pair[8..]))).collect())
    }
}

impl Job for MapJob {
    fn write(self, to: &mut dyn Write, _: &Clock) -> io::Result<Duration> {
        self.0.gate.wait();
        for (key, value) in self.0.batches {
            to.write_all(&key.to_be_bytes())?;
            to.write_all(&value.to_be_bytes())?;
        }
        Ok(Duration::ZERO)
    }
}

pub struct NoWake;

impl Wake for NoWake {
    fn wake(&mut self, _: palisade_engine::WorkerSet, _: HoldKey) {}
}

pub fn clock() -> Clock {
    let begin = tokio::time::Instant::now();
    Arc::new(move || Time(u64::try_from(begin.elapsed().as_nanos()).unwrap()))
}

pub fn setup() -> Setup<Map> {
    Setup { state: Map::default(), wake: Box::new(NoWake), observer: Arc::new(()) }
}

pub fn open(dir: &Path) -> Result<(LogStore, StateMachine<Map>), StoreError> {
    let mut patience = 12_000;
    loop {
        match Store::open(dir, Options::new(clock())) {
            // The threads of the store that was just dropped hold it until they have ended.
            Err(StoreError::Locked { .. }) if patience > 0 => patience -= 1,
            opened => return opened?.into_parts(setup()),
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::impls::leader_id_adv::LeaderId::new_committed(term, MemberId(1)), index)
}

pub fn vote(term: u64) -> Vote {
    Vote::new(term, MemberId(1))
}

/// An entry of about `bytes` bytes whose content depends on its index.
pub fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let letter = char::from(b'a' + u8::try_from(index % 26).unwrap());
    let batch = Batch {
        proposer: MemberId(1),
        first_serial: index,
        lowest_outstanding: 0,
        unix_ms: 0,
        commands: vec![Command::Policy(Box::new(PolicyChange {
            base: Generation(index),
            text: letter.to_string().repeat(bytes),
            author: String::new(),
            hash: PolicyHash([0; 32]),
            zones: Vec::new(),
            overridden: Vec::new(),
        }))],
    };
    RaftEntry { log_id: log_id(term, index), payload: EntryPayload::Normal(batch) }
}

/// Appends and does not wait; what comes back resolves when it is durable.
pub async fn append(
    log: &mut LogStore,
    entries: Vec<Entry>,
) -> impl Future<Output = io::Result<()>> + Send + 'static + use<> {
    let (tx, rx) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(tx)).await.unwrap();
    async move { rx.await.map_err(io::Error::other)? }
}

pub async fn append_durably(log: &mut LogStore, entries: Vec<Entry>) -> io::Result<()> {
    append(log, entries).await.await
}
