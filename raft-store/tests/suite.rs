//! openraft's own storage suite, on sled and in memory.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Map, clock, open, setup};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use palisade_raft_store::{LogStore, MemoryDisk, MemoryLog, StateMachine, TypeConfig};
use tempfile::TempDir;

struct Sled;

impl StoreBuilder<TypeConfig, LogStore, StateMachine<Map>, TempDir> for Sled {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine<Map>), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (log, machine) = open(&dir.path().join("data")).unwrap();
        Ok((dir, log, machine))
    }
}

/// In memory; with a flush that takes time, or none.
struct Memory(Option<Duration>);

impl StoreBuilder<TypeConfig, MemoryLog, StateMachine<Map>, ()> for Memory {
    async fn build(&self) -> Result<((), MemoryLog, StateMachine<Map>), StorageError<TypeConfig>> {
        let disk = MemoryDisk::new(clock(), usize::MAX);
        if let Some(time) = self.0 {
            disk.slow(move || time);
        }
        let (log, machine) = disk.open(setup()).unwrap();
        Ok(((), log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sled_store() {
    Suite::test_all(Sled).await.unwrap();
}

#[tokio::test]
async fn memory_store() {
    Suite::test_all(Memory(None)).await.unwrap();
}

#[tokio::test]
async fn memory_store_that_takes_its_time() {
    Suite::test_all(Memory(Some(Duration::from_micros(50)))).await.unwrap();
}
