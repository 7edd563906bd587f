//! A member whose log has what another version of Palisade wrote: it says so and stops, as often as it is started, and the others go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use palisade_lab::guard::require_lab;
use palisade_lab::traffic::{POLICY, Traffic};
use palisade_lab::{Lab, WAIT};
use palisade_tests::{members, wait_ended, wait_voters};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

#[tokio::test(flavor = "multi_thread")]
async fn member_that_cannot_read_its_log_says_so_and_stops_and_the_others_go_on() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = cannot_read(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn cannot_read(lab: &mut Lab) -> Result<()> {
    wait_voters(lab, 1, 3).await?;
    let leader = lab.wait_leader().await?;
    let number = (1..=3).find(|n| *n != leader).unwrap();
    let traffic = Traffic::start(lab, 50).await?;
    let counts = traffic.counts();
    counts.wait_opened(100).await?;
    lab.member_mut(number).terminate(WAIT).await?;
    let database = lab.member(number).dir().join("data/raft/db");
    let index = set_level(&database, 1, 77)?;

    for start in 1..=3 {
        lab.member_mut(number).start().await?;
        let ended = wait_ended(lab, number).await?;
        for part in
            ["exit status: 6", &format!("entry {index} of the log, which has level 77"), "install on this machine"]
        {
            ensure!(ended.contains(part), "start {start}: no `{part}` in {ended}");
        }
        counts.wait_opened(100).await?;
    }

    // As with the program that wrote it.
    assert_eq!(set_level(&database, 77, 1)?, index);
    lab.member_mut(number).start().await?;
    lab.member_mut(number).wait_ready(WAIT).await?;
    lab.wait_live(&[1, 2, 3]).await?;
    counts.wait_opened(100).await?;
    traffic.finish().await;
    assert_eq!(counts.lost.load(Ordering::Relaxed), 0, "{:?}", counts.problems());
    assert_eq!(counts.failed.load(Ordering::Relaxed), 0, "{:?}", counts.problems());
    Ok(())
}

/// Changes the level of the last batch in a member's log from `old` to `new`. Returns the entry's index.
fn set_level(database: &Path, old: u8, new: u8) -> Result<u64> {
    let db = sled::open(database)?;
    let log = db.open_tree("log")?;
    for pair in log.iter().rev() {
        let (key, record) = pair?;
        let (index, part) = key.split_at(8);
        let mut record = record.to_vec();
        // A header of seven bytes and the layout's version; then term, leader and index as varints, the kind, and the length.
        let skip = |at: usize| at + record[at..].iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let kind = skip(skip(skip(8)));
        if part != [0, 0] || record[kind] != 1 {
            continue;
        }
        let level = skip(kind + 1);
        ensure!(record[level..level + 2] == [old, 0], "level {:?}", &record[level..level + 2]);
        record[level] = new;
        let mut crc = crc32fast::Hasher::new();
        for covered in [&key[..], &record[..1], &record[1..3], &record[7..]] {
            crc.update(covered);
        }
        let crc = crc.finalize().to_be_bytes();
        record[3..7].copy_from_slice(&crc);
        log.insert(&key, record)?;
        db.flush()?;
        return Ok(u64::from_be_bytes(index.try_into()?));
    }
    anyhow::bail!("the log has no batch")
}
