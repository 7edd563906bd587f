//! What an administrator is told: about members that were removed, a cluster without quorum, drained and starting members.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use anyhow::{Context, Result};
use palisade_lab::guard::require_lab;
use palisade_lab::{Lab, WAIT, wait_until};
use palisade_tests::{OPEN_POLICY, members, unwrapped, wait_voters};
use serde_json::Value;
use tokio::time::Instant;

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

/// What a command says that fails, its exit code included.
async fn refusal(lab: &Lab, number: usize, args: &[&str]) -> String {
    let begun = Instant::now();
    let said = match lab.member(number).cli(args).await {
        Ok(text) => panic!("palisade {} was to be refused: {text}", args.join(" ")),
        Err(e) => e.to_string(),
    };
    // The text is wrapped for people.
    let said = unwrapped(&said);
    println!("{:?}: {said}", begun.elapsed());
    said
}

async fn json(lab: &Lab, number: usize, args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&lab.member(number).cli(&[args, &["-o", "json"]].concat()).await?)?)
}

fn log(lab: &Lab, number: usize) -> String {
    std::fs::read_to_string(lab.member(number).log()).unwrap()
}

/// A member as another one lists it.
async fn listed(lab: &Lab, by: usize, name: &str) -> Result<Value> {
    let list = json(lab, by, &["cluster", "members"]).await?;
    let found = list.as_array().into_iter().flatten().find(|m| m["name"] == name).cloned();
    found.with_context(|| format!("{name} is not in {list}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn member_that_is_removed_learns_it_and_joins_again() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), OPEN_POLICY).await.unwrap();
    let result = remove_and_join_again(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn remove_and_join_again(lab: &mut Lab) -> Result<()> {
    wait_voters(lab, 1, 3).await?;
    // Alive: asked first, and nothing was changed.
    let said = refusal(lab, 1, &["cluster", "remove", "fw3"]).await;
    assert!(said.contains("exit status: 4") && said.contains("palisade cluster leave"), "{said}");
    assert!(said.contains("fw3 answers"), "{said}");
    assert_eq!(listed(lab, 1, "fw3").await?["removed"], false);

    lab.member(1).cli(&["cluster", "remove", "fw3", "--yes"]).await?;
    removed_says_so(lab, 3).await?;
    // No circle: each command names the way back.
    let leave = refusal(lab, 3, &["cluster", "leave"]).await;
    assert!(leave.contains("was removed") && leave.contains("cluster join TOKEN"), "{leave}");

    // Nor does a restart hide it.
    lab.member_mut(3).terminate(WAIT).await?;
    lab.member_mut(3).start().await?;
    lab.member_mut(3).wait_up(WAIT).await?;
    removed_says_so(lab, 3).await?;
    rejoin(lab, 3, 4).await?;
    assert!(lab.member(3).dir().join("data/removed-3/identity.toml").exists(), "its old data are set aside");

    // One that was dead when it was removed learns it when it is started. Nobody is asked for a dead one.
    lab.member_mut(2).kill().await?;
    wait_until("fw2 to be seen dead", async || Ok(listed(lab, 1, "fw2").await?["reachable"] == false)).await?;
    // The other one is needed now: without it nothing could be decided any longer.
    let risk = refusal(lab, 1, &["cluster", "remove", "fw3", "--yes"]).await;
    assert!(risk.contains("fw2 does not answer"), "{risk}");
    let risk = refusal(lab, 3, &["cluster", "leave", "--timeout", "1s"]).await;
    assert!(risk.contains("fw2 does not answer"), "{risk}");
    lab.member(1).cli(&["cluster", "remove", "fw2"]).await?;
    lab.member_mut(2).start().await?;
    lab.member_mut(2).wait_up(WAIT).await?;
    removed_says_so(lab, 2).await?;
    rejoin(lab, 2, 5).await?;
    lab.wait_live(&[1, 2, 3]).await
}

/// Status, health, `/readyz`, metrics and log say that it was removed.
async fn removed_says_so(lab: &Lab, number: usize) -> Result<()> {
    wait_until(
        "the removed member to know it",
        async || Ok(lab.member(number).status().await?["outside"] == "removed"),
    )
    .await?;
    let (code, text) = lab.member(number).http("/readyz").await?;
    assert!(code == 503 && text.contains("was removed from cluster"), "{code} {text}");
    let health = refusal(lab, number, &["health"]).await;
    assert!(health.contains("exit status: 1") && health.contains("was removed from cluster"), "{health}");
    assert!(lab.member(number).cli(&["cluster", "status"]).await?.contains("REMOVED from"));
    assert_eq!(lab.member(number).metric("palisade_removed", &[]).await?, 1.0);
    assert!(log(lab, number).contains("was removed from cluster"));
    Ok(())
}

/// A removed machine joins again, under a new id; when `join` returns, it votes.
async fn rejoin(lab: &mut Lab, number: usize, id: u64) -> Result<()> {
    let token = lab.member(1).cli(&["cluster", "token"]).await?;
    let joined = json(lab, number, &["cluster", "join", token.trim()]).await?;
    assert_eq!((&joined["member"], &joined["voter"]), (&id.into(), &true.into()), "{joined}");
    let status = lab.member(number).status().await?;
    let own = status["cluster"]["members"].as_array().unwrap().iter().find(|m| m["id"] == id).unwrap();
    assert_eq!((&own["suffrage"], &status["cluster"]["quorum"]["changing"]), (&"voter".into(), &false.into()));
    assert_eq!(lab.member(number).metric("palisade_removed", &[]).await?, 0.0);
    lab.member_mut(number).wait_ready(WAIT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_without_quorum_says_so_and_refuses_at_once() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), OPEN_POLICY).await.unwrap();
    let result = lose_the_quorum(&mut lab).await;
    lab.or_keep(result).unwrap();
}

const NO_QUORUM: &str = "no quorum: 1 of 3 voters answer";

async fn lose_the_quorum(lab: &mut Lab) -> Result<()> {
    wait_voters(lab, 1, 3).await?;
    let leader = lab.wait_leader().await?;
    let [left, other] = [1, 2, 3].into_iter().filter(|n| *n != leader).collect::<Vec<_>>()[..] else { unreachable!() };
    for dead in [leader, other] {
        lab.member_mut(dead).kill().await?;
    }
    wait_until("the survivor to see it", async || {
        let quorum = lab.member(left).status().await?["cluster"]["quorum"].clone();
        Ok(quorum["held"] == false && quorum["answering"] == 1 && quorum["voters"] == 3)
    })
    .await?;
    let status = lab.member(left).status().await?;
    assert_eq!((&status["leader"], &status["cluster"]["leader"]), (&Value::Null, &Value::Null), "{status}");
    for command in ["status", "members"] {
        let text = lab.member(left).cli(&["cluster", command]).await?;
        assert!(text.contains(NO_QUORUM) && !text.contains("leader fw"), "{text}");
    }
    let (code, text) = lab.member(left).http("/readyz").await?;
    assert!(code == 503 && text.contains(NO_QUORUM), "{code} {text}");
    for (metric, is) in [("raft_leader_known", 0.0), ("quorum", 0.0), ("voters_answering", 1.0), ("raft_voters", 3.0)] {
        assert_eq!(lab.member(left).metric(&format!("palisade_{metric}"), &[]).await?, is, "{metric}");
    }

    // One rule for all.
    let policy = lab.dir().join("policy");
    let dead = lab.member(other).name().to_owned();
    let commands: [&[&str]; 7] = [
        &["cluster", "token"],
        &["cluster", "leave"],
        &["cluster", "remove", &dead],
        &["policy", "apply", &policy.to_string_lossy()],
        &["policy", "show", "--barrier"],
        &["policy", "history", "--barrier"],
        &["session", "kill", "--all"],
    ];
    for command in commands {
        let said = refusal(lab, left, command).await;
        assert!(said.contains("exit status: 3") && said.contains(NO_QUORUM), "{said}");
        assert!(said.contains("nothing was changed") && !said.contains("may still happen"), "{said}");
    }
    let said = refusal(lab, left, &["cluster", "token", "--wait", "1s"]).await;
    assert!(said.contains(NO_QUORUM), "{said}");

    // It says what is true.
    let drained = lab.member(left).cli(&["drain", "--timeout", "10s"]).await?;
    assert!(drained.contains("drained"), "{drained}");
    let undrained = lab.member(left).cli(&["undrain"]).await?;
    assert!(undrained.contains("NOT READY") && undrained.contains(NO_QUORUM), "{undrained}");

    // Who wants to wait is served when the quorum is back; and a member that starts says that it does.
    lab.member_mut(other).start().await?;
    let mut seen = Vec::new();
    let token = async { lab.member(left).cli(&["cluster", "token", "--wait", "4m"]).await };
    let watch = async {
        loop {
            if let Ok((code, text)) = lab.member(other).http("/readyz").await {
                seen.push(text);
                if code == 200 {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (token, ()) = tokio::join!(token, watch);
    assert!(token?.starts_with("palisade-join-"));
    let wrong: Vec<&String> = seen.iter().filter(|text| text.contains("in no cluster")).collect();
    assert!(wrong.is_empty(), "{} of {}: {}", wrong.len(), seen.len(), wrong[0]);

    // A leader without quorum does not wait for somebody to take over.
    let leader = lab.wait_leader().await?;
    let follower = if leader == left { other } else { left };
    lab.member_mut(follower).kill().await?;
    wait_until("the leader to see it", async || {
        Ok(lab.member(leader).status().await?["cluster"]["quorum"]["held"] == false)
    })
    .await?;
    let begun = Instant::now();
    lab.member_mut(leader).terminate(WAIT).await?;
    println!("the leader without quorum stopped in {:?}", begun.elapsed());
    let text = log(lab, leader);
    for late in ["ending as the leader", "ending while traffic", "not everything has ended"] {
        assert!(!text.contains(late), "{late}: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn drained_member_is_seen_by_the_others_and_commands_are_in_the_log() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), OPEN_POLICY).await.unwrap();
    let result = drain_and_look(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn drain_and_look(lab: &mut Lab) -> Result<()> {
    lab.member(2).cli(&["drain", "--timeout", "10s"]).await?;
    wait_until("fw1 to see that fw2 is drained", async || Ok(listed(lab, 1, "fw2").await?["draining"] == true)).await?;
    assert_eq!(lab.member(1).metric("palisade_member_draining", &["member=\"fw2\""]).await?, 1.0);
    assert_eq!(lab.member(1).metric("palisade_member_draining", &["member=\"fw3\""]).await?, 0.0);
    let table = lab.member(1).cli(&["cluster", "members"]).await?;
    assert!(table.lines().any(|l| l.contains("fw2") && l.contains("draining")), "{table}");
    lab.member(2).cli(&["undrain"]).await?;
    wait_until("fw1 to see that it is not any longer", async || Ok(listed(lab, 1, "fw2").await?["draining"] == false))
        .await?;
    lab.member(2).cli(&["session", "kill", "--proto", "tcp", "--dport", "4711"]).await?;
    lab.member(2).cli(&["cluster", "token", "--valid", "90s"]).await?;
    let text = log(lab, 2);
    for what in ["drain", "undrain", "session kill --proto tcp --dport 4711: 0 killed", "cluster token, valid for 90s"]
    {
        let line = text.lines().find(|l| l.contains("palisade::audit") && l.contains(what));
        assert!(line.is_some_and(|l| l.contains("user=\"root\"")), "{what}: {line:?} in {text}");
    }
    // A healthy cluster logs no errors.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for number in 1..=3 {
        let text = log(lab, number);
        let errors: Vec<&str> = text.lines().filter(|l| l.contains("ERROR")).collect();
        assert!(errors.is_empty(), "fw{number}: {errors:?}");
    }
    Ok(())
}
