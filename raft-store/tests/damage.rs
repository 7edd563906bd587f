//! Damaged, foreign and half-written folders: a clear error or the right recovery, never a panic.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{append_durably, clock, entry, open, setup};
use openraft::RaftSnapshotBuilder;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftStateMachine};
use palisade_engine::{Level, Levels, MemberId};
use palisade_raft_store::{Options, Store, StoreError, StoreOwner, Thing, Unknown, Unreadable, quarantine};

/// A folder with entries 1..=30 applied, snapshots at 10, 20 and 30 (of which two are kept), purged up to `purge`.
async fn filled(dir: &Path, purge: u64) {
    let (mut log, mut machine) = open(dir).unwrap();
    for from in [1, 11, 21] {
        let entries: Vec<_> = (from..from + 10).map(|index| entry(1, index, 100)).collect();
        append_durably(&mut log, entries.clone()).await.unwrap();
        let last = entries.last().unwrap().log_id;
        log.save_committed(Some(last)).await.unwrap();
        machine.apply(futures::stream::iter(entries.into_iter().map(|entry| Ok((entry, None))))).await.unwrap();
        machine.try_create_snapshot_builder(true).await.unwrap().build_snapshot().await.unwrap();
    }
    if purge > 0 {
        log.purge(common::log_id(1, purge)).await.unwrap();
    }
}

fn snapshots(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir.join("snapshots")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

fn applied(dir: &Path) -> Result<u64, StoreError> {
    let (_log, machine) = open(dir)?;
    let applied = machine.last_applied().map_or(0, |id| id.index);
    assert_eq!(machine.inspector().look(|map, _| map.batches.len() as u64), applied);
    Ok(applied)
}

fn assert_damaged<T: std::fmt::Debug>(result: Result<T, StoreError>, says: &str) {
    match result {
        Err(error @ StoreError::Damaged { .. }) => {
            let text = error.to_string();
            assert!(text.contains(says), "{text}");
            assert!(text.contains("quarantine"), "{text}");
        }
        other => panic!("expected damage with `{says}`: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_keep_the_last_two_and_use_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 20).await;
    assert_eq!(snapshots(dir.path()).len(), 2);
    assert_eq!(applied(dir.path()).unwrap(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_truncated_at_any_length_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 20).await;
    let newest = snapshots(dir.path()).pop().unwrap();
    let whole = fs::read(&newest).unwrap();
    for len in (0..whole.len()).step_by(7) {
        fs::write(&newest, &whole[..len]).unwrap();
        assert_eq!(applied(dir.path()).unwrap(), 20, "{len} of {}", whole.len());
    }
    fs::write(&newest, &whole).unwrap();
    assert_eq!(applied(dir.path()).unwrap(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_with_a_flipped_byte_anywhere_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 0).await;
    let newest = snapshots(dir.path()).pop().unwrap();
    let whole = fs::read(&newest).unwrap();
    for at in (0..whole.len()).step_by(5) {
        let mut bad = whole.clone();
        bad[at] ^= 0x10;
        fs::write(&newest, &bad).unwrap();
        assert_eq!(applied(dir.path()).unwrap(), 20, "byte {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_purged_past_every_good_snapshot_is_damage_and_quarantine_sets_it_aside() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    filled(&dir, 25).await;
    fs::write(snapshots(&dir).pop().unwrap(), b"no snapshot").unwrap();
    assert_damaged(open(&dir), "reaches entry 20, but the log was purged up to entry 25");

    let held = Store::open(&dir, Options::new(clock())).unwrap();
    assert!(matches!(quarantine(&dir), Err(StoreError::Locked { .. })), "never under a running member");
    drop(held);
    let aside = quarantine(&dir).unwrap();
    assert_eq!(aside, parent.path().join("data.quarantine-1"));
    assert!(!dir.exists() && aside.join("db").exists());
    drop(open(&dir).unwrap());
    assert_eq!(quarantine(&dir).unwrap(), parent.path().join("data.quarantine-2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_without_a_database_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 0).await;
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    assert_damaged(open(dir.path()), "no database");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_record_that_changed_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let log_key = |index: u64| [&index.to_be_bytes()[..], &[0, 0]].concat();
    type Change = fn(&sled::Tree, &dyn Fn(u64) -> Vec<u8>);
    let changes: [(Change, &str); 4] = [
        (
            |log, key| {
                let mut record = log.get(key(7)).unwrap().unwrap().to_vec();
                record[40] ^= 1;
                log.insert(key(7), record).unwrap();
            },
            "entry 7: the checksum",
        ),
        (|log, key| drop(log.remove(key(7)).unwrap()), "entry 7 is missing"),
        (|log, key| drop(log.insert(key(7), vec![1, 2]).unwrap()), "too short"),
        (
            |log, key| {
                let record = log.get(key(7)).unwrap().unwrap();
                log.insert(key(8), record).unwrap();
            },
            "entry 8: the checksum",
        ),
    ];
    for (number, (change, says)) in changes.into_iter().enumerate() {
        let dir = dir.path().join(number.to_string());
        filled(&dir, 0).await;
        let db = sled::open(dir.join("db")).unwrap();
        change(&db.open_tree("log").unwrap(), &log_key);
        db.flush().unwrap();
        drop(db);
        assert_damaged(open(&dir), says);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn format_of_another_version_is_named() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 0).await;
    let db = sled::open(dir.path().join("db")).unwrap();
    let meta = db.open_tree("meta").unwrap();
    let mut record = meta.get("format").unwrap().unwrap().to_vec();
    *record.last_mut().unwrap() = 9;
    let mut crc = crc32fast::Hasher::new();
    for part in [&b"format"[..], &record[..1], &record[1..3], &record[7..]] {
        crc.update(part);
    }
    record[3..7].copy_from_slice(&crc.finalize().to_be_bytes());
    meta.insert("format", record).unwrap();
    db.flush().unwrap();
    drop((meta, db));
    match open(dir.path()) {
        Err(error @ StoreError::Version { found: 9, known: 4, .. }) => assert!(error.to_string().contains("format 9")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn database_opens_in_spite_of_a_half_written_file_of_sled() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 0).await;
    let half = dir.path().join("db/snap.0000000000FFFFFF.generating");
    fs::write(&half, b"half").unwrap();
    fs::write(dir.path().join("snapshots/3.tmp"), b"half").unwrap();
    assert_eq!(applied(dir.path()).unwrap(), 30);
    assert!(!half.exists());
    assert!(!dir.path().join("snapshots/3.tmp").exists());
}

/// A byte of the database file itself. sled takes most of them for the torn end of its log, and would go on without the
/// rest; the watermark knows better.
#[tokio::test(flavor = "multi_thread")]
async fn database_with_a_flipped_byte_is_damaged_or_unharmed() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    filled(&good, 0).await;
    let whole = fs::read(good.join("db/db")).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let (mut refused, mut unharmed) = (0, 0);
    for at in (0..used).step_by(used / 60) {
        let bad = dir.path().join(format!("bad-{at}"));
        fs::create_dir_all(bad.join("db")).unwrap();
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        fs::write(bad.join("db/db"), bytes).unwrap();
        for file in ["db/conf", "durable_watermark"] {
            fs::copy(good.join(file), bad.join(file)).unwrap();
        }
        match open(&bad) {
            Err(StoreError::Damaged { .. }) => refused += 1,
            Err(other) => panic!("byte {at}: {other}"),
            Ok((mut log, _machine)) => {
                unharmed += 1;
                let entries = log.get_log_reader().await.try_get_log_entries(0..).await.unwrap();
                assert_eq!(entries.len(), 30, "byte {at}");
                for (found, index) in entries.iter().zip(1..) {
                    assert_eq!(*found, entry(1, index, 100));
                }
            }
        }
    }
    eprintln!("flipped bytes: {refused} refused, {unharmed} harmless");
    assert!(refused > 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn database_older_than_the_watermark_or_without_one_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 0).await;
    let old = fs::read(dir.path().join("db/db")).unwrap();
    let (mut log, machine) = open(dir.path()).unwrap();
    log.save_vote(&common::vote(9)).await.unwrap();
    drop((log, machine));
    let new = fs::read(dir.path().join("db/db")).unwrap();
    fs::write(dir.path().join("db/db"), old).unwrap();
    for file in fs::read_dir(dir.path().join("db")).unwrap() {
        let path = file.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("snap.") {
            fs::remove_file(path).unwrap();
        }
    }
    assert_damaged(open(dir.path()), "ends before");
    fs::write(dir.path().join("db/db"), new).unwrap();
    drop(open(dir.path()).unwrap());
    fs::remove_file(dir.path().join("durable_watermark")).unwrap();
    assert_damaged(open(dir.path()), "no watermark");
}

#[tokio::test]
async fn owner_is_set_once_and_starts_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let ours = StoreOwner { cluster: "c1".to_owned(), member: MemberId(3) };
    for start in 1..=3 {
        let mut store = Store::open(dir.path(), Options::new(clock())).unwrap();
        assert_eq!(store.start(), start);
        assert_eq!(store.owner(), (start > 1).then_some(&ours));
        store.set_owner(ours.clone()).unwrap();
        let other = StoreOwner { member: MemberId(4), ..ours.clone() };
        let error = store.set_owner(other).unwrap_err().to_string();
        assert!(error.contains("belongs to member 3 of cluster c1, not to member 4"), "{error}");
        drop(store.into_parts(setup()).unwrap());
    }
}

/// The database. The threads of the store that was just dropped hold it until they have ended.
fn database(dir: &Path) -> sled::Db {
    loop {
        match sled::open(dir.join("db")) {
            Ok(db) => return db,
            Err(error) => assert!(error.to_string().contains("lock"), "{error}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Gives a record of the database another content, with the checksum that belongs to it.
fn rewrite(tree: &sled::Tree, key: &[u8], change: impl FnOnce(&mut [u8])) {
    let mut record = tree.get(key).unwrap().unwrap().to_vec();
    change(&mut record[7..]);
    let mut crc = crc32fast::Hasher::new();
    for part in [key, &record[..1], &record[1..3], &record[7..]] {
        crc.update(part);
    }
    record[3..7].copy_from_slice(&crc.finalize().to_be_bytes());
    tree.insert(key, record).unwrap();
}

fn unreadable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> Unreadable {
    match result {
        Err(error @ StoreError::Unreadable { .. }) => {
            let text = error.to_string();
            assert!(text.contains(&Levels::PROGRAM.to_string()) && !text.contains("damage"), "{text}");
            let StoreError::Unreadable { unreadable, .. } = error else { unreachable!() };
            unreadable
        }
        other => panic!("{other:?}"),
    }
}

/// Another version wrote it: no damage, and nothing is lost or changed by the attempt to read it.
#[tokio::test(flavor = "multi_thread")]
async fn entry_of_another_version_is_refused_at_the_start_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 0).await;
    let key = [&7u64.to_be_bytes()[..], &[0, 0]].concat();
    let change = |change: &dyn Fn(&mut [u8])| {
        let db = database(dir.path());
        rewrite(&db.open_tree("log").unwrap(), &key, change);
        db.flush().unwrap();
    };
    // Layout (1), term, leader, index (1 each), kind (1), length (2 or 1), and the level.
    let level_at = |content: &[u8]| 5 + content[5..].windows(2).position(|two| two == [1, 0]).unwrap();

    change(&|content| content[level_at(content)] = 77);
    let found = unreadable(open(dir.path()));
    assert_eq!(found, Unreadable { thing: Thing::Entry(7), unknown: Unknown::Level(Level(77)) });
    assert_eq!(unreadable(open(dir.path())), found, "the next start says the same");

    change(&|content| {
        let at = 5 + content[5..].windows(2).position(|two| two == [77, 0]).unwrap();
        content[at] = 1;
        content[0] = 9;
    });
    assert_eq!(unreadable(open(dir.path())).unknown, Unknown::Layout(9));

    change(&|content| content[0] = 1);
    assert_eq!(applied(dir.path()).unwrap(), 30, "with the program that wrote it all is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn vote_of_another_layout_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, machine) = open(dir.path()).unwrap();
    log.save_vote(&common::vote(9)).await.unwrap();
    drop((log, machine));
    let db = database(dir.path());
    rewrite(&db.open_tree("meta").unwrap(), b"vote", |content| content[0] = 2);
    db.flush().unwrap();
    drop(db);
    let found = unreadable(open(dir.path()));
    assert_eq!(found, Unreadable { thing: Thing::Record("vote"), unknown: Unknown::Layout(2) });
}

/// Not skipped, as a damaged one is: the older one would be a step back that nobody notices.
#[tokio::test(flavor = "multi_thread")]
async fn snapshot_of_another_level_is_refused_at_the_start_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 20).await;
    let newest = snapshots(dir.path()).pop().unwrap();
    let whole = fs::read(&newest).unwrap();
    let other = |at: usize, value: u8| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        let header = 16 + u32::from_be_bytes(bytes[12..16].try_into().unwrap()) as usize;
        let crc = crc32fast::hash(&bytes[..header]);
        bytes[header..header + 4].copy_from_slice(&crc.to_be_bytes());
        let end = bytes.len() - 4;
        let crc = crc32fast::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.to_be_bytes());
        fs::write(&newest, bytes).unwrap();
    };
    // "PALISNAP", version (u16), level (u16).
    other(11, 77);
    assert_eq!(unreadable(open(dir.path())).unknown, Unknown::Level(Level(77)));
    other(9, 3);
    assert_eq!(unreadable(open(dir.path())).unknown, Unknown::Layout(3));
    fs::write(&newest, &whole).unwrap();
    assert_eq!(applied(dir.path()).unwrap(), 30);
}
