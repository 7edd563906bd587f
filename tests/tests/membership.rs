//! Members come, go, and all die at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::atomic::Ordering;

use anyhow::Result;
use palisade_lab::guard::require_lab;
use palisade_lab::traffic::{POLICY, Traffic};
use palisade_lab::{Lab, WAIT};
use palisade_tests::{members, wait_voters};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

#[tokio::test(flavor = "multi_thread")]
async fn membership_changes_under_traffic_lose_nothing() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = come_and_go(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn come_and_go(lab: &mut Lab) -> Result<()> {
    let traffic = Traffic::start(lab, 100).await?;
    let counts = traffic.counts();
    counts.wait_opened(100).await?;
    let new = lab.add_member().await?;
    lab.member_mut(new).start().await?;
    lab.member_mut(new).wait_up(WAIT).await?;
    lab.join(new).await?;
    lab.wait_live(&[1, 2, 3, 4]).await?;
    counts.wait_opened(100).await?;
    // First one of the followers, then, harder, the leader.
    let leader = lab.wait_leader().await?;
    let follower = (1..=3).find(|n| *n != leader).unwrap();
    for leaving in [follower, leader] {
        lab.leave(leaving).await?;
        counts.wait_opened(100).await?;
    }
    let mut names = names(&lab.member(new).status().await?);
    names.sort();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.contains(&format!("fw{new}")));
    traffic.finish().await;
    let get = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
    assert_eq!(get(&counts.lost), 0, "{:?}", counts.problems());
    assert_eq!(get(&counts.failed), 0, "{:?}", counts.problems());
    assert_eq!(get(&counts.resets), 0, "{:?}", counts.problems());
    assert_eq!(get(&counts.forbidden_passed), 0, "{:?}", counts.problems());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn membership_and_policy_survive_the_death_of_all() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = all_die(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn all_die(lab: &mut Lab) -> Result<()> {
    let policy = lab.member(1).cli(&["policy", "show"]).await?;
    assert!(policy.contains("accept \"echo\""), "{policy}");
    let before = names(&lab.member(1).status().await?);
    assert_eq!(before.len(), 3, "{before:?}");
    for member in lab.members_mut() {
        member.kill().await?;
    }
    for member in lab.members_mut() {
        member.start().await?;
    }
    for member in lab.members_mut() {
        member.wait_ready(WAIT).await?;
    }
    for number in 1..=3 {
        assert_eq!(lab.member(number).cli(&["policy", "show"]).await?, policy);
        assert_eq!(names(&lab.member(number).status().await?), before);
    }
    lab.wait_live(&[1, 2, 3]).await?;
    let traffic = Traffic::start(lab, 30).await?;
    traffic.counts().wait_opened(200).await?;
    traffic.finish().await;
    let counts = traffic.counts();
    assert_eq!(counts.failed.load(Ordering::Relaxed), 0, "{:?}", counts.problems());
    assert_eq!(counts.lost.load(Ordering::Relaxed), 0, "{:?}", counts.problems());
    assert_eq!(counts.forbidden_passed.load(Ordering::Relaxed), 0, "{:?}", counts.problems());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_move_to_other_addresses_under_traffic() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = renumber(&mut lab).await;
    lab.or_keep(result).unwrap();
}

/// All members, the leader last, as docs/operations.md says.
async fn renumber(lab: &mut Lab) -> Result<()> {
    wait_voters(lab, 1, 3).await?;
    let traffic = Traffic::start(lab, 100).await?;
    let counts = traffic.counts();
    counts.wait_opened(100).await?;
    let leader = lab.wait_leader().await?;
    let order: Vec<usize> = (1..=3).filter(|n| *n != leader).chain([leader]).collect();
    for number in order {
        let address = std::net::Ipv4Addr::new(10, 9, 0, 100 + u8::try_from(number)?);
        let member = lab.member_mut(number);
        member.move_to(address.into()).await?;
        member.terminate(WAIT).await?;
        member.start().await?;
        member.wait_up(WAIT).await?;
        // It says why it is not ready, and what to do.
        let health = member.http("/readyz").await?.1;
        assert!(health.contains("palisade cluster update"), "{health}");
        member.cli(&["cluster", "update"]).await?;
        member.wait_ready(WAIT).await?;
        lab.wait_live(&[1, 2, 3]).await?;
        wait_voters(lab, number, 3).await?;
        counts.wait_opened(100).await?;
    }
    let renamed = lab.member(1).cli(&["cluster", "update", "--member", "fw3", "--name", "edge"]).await?;
    assert_eq!(renamed.trim(), "member 3 is edge at 10.9.0.103:7946 now");
    lab.member(1).cli(&["audit", "--wait", "10s"]).await?;
    traffic.finish().await;
    let get = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
    assert_eq!(get(&counts.lost), 0, "{:?}", counts.problems());
    assert_eq!(get(&counts.failed), 0, "{:?}", counts.problems());
    assert_eq!(get(&counts.resets), 0, "{:?}", counts.problems());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn member_of_a_lost_cluster_abandons_it_and_joins_another() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = abandon(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn abandon(lab: &mut Lab) -> Result<()> {
    for number in [1, 2] {
        lab.member_mut(number).kill().await?;
        std::fs::remove_dir_all(lab.member(number).dir().join("data"))?;
    }
    lab.member_mut(1).start().await?;
    lab.member_mut(1).wait_up(WAIT).await?;
    lab.member(1).cli(&["cluster", "init"]).await?;
    lab.member_mut(1).wait_ready(WAIT).await?;
    let token = lab.member(1).cli(&["cluster", "token"]).await?;
    let refused = lab.member(3).cli(&["cluster", "join", token.trim()]).await.unwrap_err().to_string();
    assert!(refused.contains("cluster join --abandon TOKEN"), "{refused}");
    lab.member(3).cli(&["cluster", "join", "--abandon", token.trim()]).await?;
    lab.member_mut(3).wait_ready(WAIT).await?;
    assert!(lab.member(3).dir().join("data/removed-3/identity.toml").exists(), "its old data are set aside");
    assert_eq!(names(&lab.member(3).status().await?), ["fw1", "fw3"]);
    // Once more, because the answer was lost: it is a member already.
    let again = lab.member(3).cli(&["cluster", "join", token.trim()]).await?;
    assert!(again.contains("member 2"), "{again}");
    assert_eq!(names(&lab.member(1).status().await?), ["fw1", "fw3"]);
    Ok(())
}

/// The members' names, as one of them says.
fn names(status: &Value) -> Vec<String> {
    let members = status.pointer("/cluster/members").and_then(Value::as_array).cloned().unwrap_or_default();
    members.iter().filter_map(|m| m.get("name")?.as_str().map(str::to_owned)).collect()
}
