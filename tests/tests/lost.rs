//! Members whose disks are lost: one of them, or the majority.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use palisade_lab::guard::require_lab;
use palisade_lab::lateness::Lateness;
use palisade_lab::traffic::{POLICY, Traffic};
use palisade_lab::{Lab, WAIT};
use palisade_tests::{members, wait_voters};
use serde_json::Value;

/// What selects the established sessions.
const ESTABLISHED: &[&str] = &["--state", "ESTABLISHED"];

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

/// After this silence a member asks for votes: docs/config.md.
const ELECTION_TIMEOUT: Duration = Duration::from_millis(160);

#[tokio::test(flavor = "multi_thread")]
async fn disk_that_is_erased_after_all_died_costs_one_member() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = erase_one(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn erase_one(lab: &mut Lab) -> Result<()> {
    wait_voters(lab, 1, 3).await?;
    let policy = lab.member(1).cli(&["policy", "show"]).await?;
    let before = ids(lab, 1).await?;
    for member in lab.members_mut() {
        member.kill().await?;
    }
    erase(lab, 2)?;
    for member in lab.members_mut() {
        member.start().await?;
    }
    for number in [1, 3] {
        lab.member_mut(number).wait_ready(WAIT).await?;
        assert_eq!(lab.member(number).cli(&["policy", "show"]).await?, policy);
        assert_eq!(ids(lab, number).await?, before);
    }
    lab.member_mut(2).wait_up(WAIT).await?;
    let erased = lab.member(2).status().await?;
    assert!(erased["cluster"].is_null(), "an empty folder gets no id back: {erased}");
    lab.wait_live(&[1, 3]).await?;

    // Its name is taken until it is removed; then it joins, as another member.
    let token = lab.member(1).cli(&["cluster", "token"]).await?;
    let refused = lab.member(2).cli(&["cluster", "join", token.trim()]).await.unwrap_err().to_string();
    assert!(refused.contains("palisade cluster remove fw2"), "{refused}");
    lab.member(1).cli(&["cluster", "remove", "fw2"]).await?;
    lab.join(2).await?;
    lab.wait_live(&[1, 2, 3]).await?;
    assert_eq!(lab.member(2).cli(&["policy", "show"]).await?, policy);
    let after = ids(lab, 2).await?;
    println!("ids before {before:?}, after {after:?}");
    assert_eq!((after.len(), after.difference(&before).count()), (3, 1), "{before:?}, {after:?}");
    passes(lab).await
}

#[tokio::test(flavor = "multi_thread")]
async fn majority_lost_for_good_leaves_a_survivor_that_recovers() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = recover(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn recover(lab: &mut Lab) -> Result<()> {
    wait_voters(lab, 3, 3).await?;
    let policy = lab.member(3).cli(&["policy", "show"]).await?;
    let old_cluster = lab.member(3).status().await?["cluster"]["id"].clone();
    let traffic = Traffic::start(lab, 50).await?;
    traffic.counts().wait_opened(100).await?;
    let config = lab.member(3).config().display().to_string();
    let command = ["cluster", "recover", "--config", &config, "-o", "json"];
    let running = lab.member(3).cli(&command).await.unwrap_err().to_string();
    assert!(running.contains("exit status: 4") && running.contains("in use by another process"), "{running}");

    lab.member_mut(2).kill().await?;
    erase(lab, 2)?;
    // Long-lived ones: others may end in the moment between.
    let earlier = session_ids(lab, 3, ESTABLISHED).await?;
    traffic.counts().wait_opened(50).await?;
    let sessions = &session_ids(lab, 3, ESTABLISHED).await? & &earlier;
    lab.member_mut(3).kill().await?;
    drop(traffic);
    let majority = lab.member(3).cli(&command).await.unwrap_err().to_string();
    assert!(majority.contains("exit status: 4") && majority.contains("2 of 3 voters are there (fw1"), "{majority}");
    lab.member_mut(1).kill().await?;

    let plan = lab.member(3).cli(&command[..4]).await.unwrap_err().to_string();
    println!("{plan}");
    assert!(plan.contains("exit status: 4") && plan.contains("nothing was changed"), "{plan}");
    assert!(plan.contains("fw1 (member 1") && plan.contains("fw2 (member 2"), "{plan}");
    let done: Value = serde_json::from_str(&lab.member(3).cli(&[&command[..], &["--yes"]].concat()).await?)?;
    println!("{done}");
    assert_eq!((&done["recovered"], &done["old_cluster"]), (&true.into(), &old_cluster));
    assert_ne!(done["cluster"], old_cluster);

    lab.member_mut(3).start().await?;
    lab.member_mut(3).wait_ready(WAIT).await?;
    assert_eq!(lab.member(3).cli(&["policy", "show"]).await?, policy);
    // In whatever state: the ends have closed them meanwhile, and repeat their FINs until a member passes them.
    let kept = session_ids(lab, 3, &[]).await?;
    println!("{} sessions before, {} of them kept", sessions.len(), kept.intersection(&sessions).count());
    assert!(sessions.len() > 10 && kept.is_superset(&sessions), "{sessions:?}, {kept:?}");

    for _ in 0..2 {
        let new = lab.add_member().await?;
        lab.member_mut(new).start().await?;
        lab.member_mut(new).wait_up(WAIT).await?;
        lab.join(new).await?;
    }
    lab.wait_live(&[3, 4, 5]).await?;
    let members = ids(lab, 4).await?;
    assert_eq!(members, BTreeSet::from([3, 4, 5]), "old ids are not given again");

    // One of the old cluster is started as it was: it finds nobody, and nobody minds.
    let late = Lateness::watch(lab.dir())?;
    let term = lab.member(3).status().await?["cluster"]["term"].clone();
    lab.member_mut(1).start().await?;
    lab.member_mut(1).wait_up(WAIT).await?;
    // What ended while nobody passed packets is still open here, and would be in the way of new connections from the same ports.
    lab.member(3).cli(&["session", "kill", "--all"]).await?;
    passes(lab).await?;
    let old = lab.member(1).status().await?;
    assert_eq!((&old["ready"], &old["cluster"]["id"]), (&false.into(), &old_cluster), "{old}");
    if late.excuses(ELECTION_TIMEOUT).is_none() {
        assert_eq!(lab.member(3).status().await?["cluster"]["term"], term, "no election because of it");
    }
    assert!(lab.member(3).metric("palisade_wrong_destination_requests_total", &[]).await? > 0.0);
    lab.wait_live(&[3, 4, 5]).await
}

fn erase(lab: &Lab, number: usize) -> Result<()> {
    let data = lab.member(number).dir().join("data");
    std::fs::remove_dir_all(&data)?;
    Ok(std::fs::create_dir(&data)?)
}

/// The ids of all members, as one of them says.
async fn ids(lab: &Lab, number: usize) -> Result<BTreeSet<u64>> {
    let status = lab.member(number).status().await?;
    let members = status.pointer("/cluster/members").and_then(Value::as_array).context("no members")?;
    Ok(members.iter().filter_map(|m| m["id"].as_u64()).collect())
}

/// The ids of the sessions that these selectors select.
async fn session_ids(lab: &Lab, number: usize, selectors: &[&str]) -> Result<BTreeSet<String>> {
    let lines = lab.member(number).cli(&[&["session", "list", "-o", "json"], selectors].concat()).await?;
    let ids = lines.lines().map(|line| {
        let session: Value = serde_json::from_str(line)?;
        Ok(session["id"].as_str().context("a session without id")?.to_owned())
    });
    ids.collect()
}

async fn passes(lab: &Lab) -> Result<()> {
    let traffic = Traffic::start(lab, 30).await?;
    traffic.counts().wait_opened(200).await?;
    traffic.finish().await;
    let counts = traffic.counts();
    let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
    assert_eq!(get(&counts.failed), 0, "{:?}", counts.problems());
    assert_eq!(get(&counts.lost), 0, "{:?}", counts.problems());
    assert_eq!(get(&counts.forbidden_passed), 0, "{:?}", counts.problems());
    println!("{} connections opened", get(&counts.opened));
    Ok(())
}
