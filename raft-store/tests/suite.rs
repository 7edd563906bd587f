//! openraft's own storage suite, on sled and in memory.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{Map, clock, open, setup};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use palisade_engine::Time;
use palisade_raft_store::{LogStore, MemoryLog, Snapshots, StateMachine, TypeConfig};
use tempfile::TempDir;

struct Sled;

impl StoreBuilder<TypeConfig, LogStore, StateMachine<Map>, TempDir> for Sled {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine<Map>), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (log, machine) = open(&dir.path().join("data")).unwrap();
        Ok((dir, log, machine))
    }
}

struct Memory;

impl StoreBuilder<TypeConfig, MemoryLog, StateMachine<Map>, ()> for Memory {
    async fn build(&self) -> Result<((), MemoryLog, StateMachine<Map>), StorageError<TypeConfig>> {
        let machine = StateMachine::restore(setup(), Snapshots::memory(clock()), Arc::new(|| Time::ZERO)).unwrap();
        Ok(((), MemoryLog::default(), machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sled_store() {
    Suite::test_all(Sled).await.unwrap();
}

#[tokio::test]
async fn memory_store() {
    Suite::test_all(Memory).await.unwrap();
}
