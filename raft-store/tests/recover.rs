//! What a store comes to, and a new store that begins with it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::collections::BTreeSet;

use common::{Map, append_durably, clock, entry, log_id, open, setup, vote};
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use palisade_engine::{MemberId, MemberInfo};
use palisade_raft_store::{Options, Store, StoreError, StoreOwner, SurvivingState};

fn surviving_state(dir: &std::path::Path) -> SurvivingState<Map> {
    Store::open(dir, Options::new(clock())).unwrap().surviving_state(setup()).unwrap()
}

fn owner() -> StoreOwner {
    StoreOwner { cluster: "new".to_owned(), member: MemberId(3) }
}

/// Snapshot up to 20, purged up to 10, committed up to 30, the last entry 40, of term 4; voted in term 6.
async fn old(dir: &std::path::Path) {
    let (mut log, mut machine) = open(dir).unwrap();
    log.save_vote(&vote(6)).await.unwrap();
    append_durably(&mut log, (1..=40).map(|index| entry(4, index, 10_000)).collect()).await.unwrap();
    let entries = (1..=20).map(|index| Ok((entry(4, index, 10_000), None)));
    machine.apply(futures::stream::iter(entries)).await.unwrap();
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    log.purge(log_id(4, 10)).await.unwrap();
    log.save_committed(Some(log_id(4, 30))).await.unwrap();
    // The commit index goes with the next group.
    log.save_vote(&vote(6)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_keeps_everything_the_old_store_had() {
    let dir = tempfile::tempdir().unwrap();
    old(&dir.path().join("old")).await;
    let surviving = surviving_state(&dir.path().join("old"));
    assert_eq!((surviving.last, surviving.committed), (Some(log_id(4, 40)), Some(log_id(4, 30))));
    let all: Vec<u64> = (1..=40).collect();
    assert_eq!(surviving.state(|map| map.batches.keys().copied().collect::<Vec<_>>()), all);

    let new = dir.path().join("new");
    let info = MemberInfo { name: "fw3".to_owned(), ..MemberInfo::default() };
    surviving.bootstrap(&new, Options::new(clock()), owner(), info).unwrap();
    assert_eq!(Store::open(&new, Options::new(clock())).unwrap().owner(), Some(&owner()));

    let (mut log, mut machine) = open(&new).unwrap();
    let state = log.get_log_state().await.unwrap();
    let (applied, membership) = machine.applied_state().await.unwrap();
    let at = applied.unwrap();
    assert_eq!((at.index, at.leader_id.term, at.leader_id.node_id), (41, 7, MemberId(3)), "above the vote's term");
    assert_eq!((state.last_log_id, state.last_purged_log_id), (applied, applied));
    assert_eq!(membership.voter_ids().collect::<BTreeSet<_>>(), BTreeSet::from([MemberId(3)]));
    let voted = log.get_log_reader().await.read_vote().await.unwrap().unwrap();
    assert_eq!((voted.leader_id.term, voted.leader_id.node_id), (7, MemberId(3)));
    let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(snapshot.meta.last_log_id, applied);

    // The old one is as it was.
    let surviving = self::surviving_state(&dir.path().join("old"));
    assert_eq!(surviving.last, Some(log_id(4, 40)));
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_refuses_an_existing_folder_and_a_damaged_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old");
    old(&path).await;
    let taken = surviving_state(&path).bootstrap(dir.path(), Options::new(clock()), owner(), MemberInfo::default());
    assert!(matches!(taken, Err(StoreError::Io { .. })), "{taken:?}");
    std::fs::remove_dir_all(path.join("snapshots")).unwrap();
    let lost = Store::open(&path, Options::new(clock())).unwrap().surviving_state(setup());
    assert!(matches!(lost, Err(StoreError::Damaged { .. })), "what was purged is nowhere");
}
