//! Settings with the command line, on real members: shown, changed, refused by what a member affords, overridden.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::Result;
use palisade_lab::guard::require_lab;
use palisade_lab::{Lab, WAIT, wait_until};
use palisade_tests::{OPEN_POLICY, members, unwrapped, wait_voters};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

/// The bytes for so many sessions.
const fn memory(sessions: u64) -> u64 {
    sessions * 1024
}

async fn settings(lab: &Lab, number: usize, args: &[&str]) -> Result<Value> {
    let all = [&["cluster", "settings"], args, &["-o", "json"]].concat();
    Ok(serde_json::from_str(&lab.member(number).cli(&all).await?)?)
}

/// What a command says that is refused.
async fn refusal(lab: &Lab, number: usize, args: &[&str]) -> String {
    let all = [&["cluster", "settings", "set"], args].concat();
    match lab.member(number).cli(&all).await {
        Ok(text) => panic!("it was to be refused: {text}"),
        Err(e) => unwrapped(&e.to_string()),
    }
}

async fn value(lab: &Lab, number: usize, key: &str) -> Result<Value> {
    let shown = settings(lab, number, &["show"]).await?;
    let found = shown["settings"].as_array().into_iter().flatten().find(|s| s["key"] == key).cloned();
    Ok(found.unwrap_or_default()["value"].take())
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_changed_on_all_members_and_refused_by_what_one_affords() {
    let Some(_turn) = require_lab(&[]) else { return };
    let extra = |member: &palisade_lab::Member| {
        let sessions = if member.number() == 2 { 1_500_000 } else { 4_000_000 };
        format!("\n[limits]\nmemory = {}\n", memory(sessions))
    };
    let mut lab = Lab::with_config(members(3, BINARY), OPEN_POLICY, extra).await.unwrap();
    let result = change(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn change(lab: &mut Lab) -> Result<()> {
    wait_voters(lab, 1, 3).await?;
    // A follower takes it, all have it.
    let follower = lab.leader().await? % 3 + 1;
    let done = settings(lab, follower, &["set", "table.sessions=1_200_000", "lease.grace=10m"]).await?;
    assert_eq!(done, json!({ "revision": 1, "changed": true, "stopping": [] }));
    for number in 1..=3 {
        wait_until("all members have it", async || Ok(value(lab, number, "table.sessions").await? == "1200000"))
            .await?;
        assert_eq!(value(lab, number, "lease.grace").await?, "10m");
    }
    let (status, metrics) = lab.member(1).http("/metrics").await?;
    assert!(status == 200 && metrics.contains("palisade_sessions_limit 1200000"), "{metrics}");
    let same = settings(lab, 1, &["set", "lease.grace=600s"]).await?;
    assert_eq!((&same["revision"], &same["changed"]), (&json!(1), &json!(false)));

    // Who and when, in the state and in the daemon's log.
    let shown = settings(lab, 1, &["show", "--barrier"]).await?;
    let last = &shown["history"][0];
    assert_eq!(last["changes"], json!(["table.sessions=1200000", "lease.grace=10m"]), "{shown}");
    assert!(last["author"].as_str().is_some_and(|author| !author.is_empty()), "{shown}");
    let log = std::fs::read_to_string(lab.member(follower).log())?;
    assert!(log.contains("cluster settings set table.sessions=1_200_000 lease.grace=10m"), "{log}");

    // Errors say what was expected, and who refuses.
    let said = refusal(lab, 1, &["table.session=5"]).await;
    assert!(said.contains("there is no setting `table.session`") && said.contains("table.half_open"), "{said}");
    let said = refusal(lab, 1, &["lease.grace=5 weeks"]).await;
    assert!(said.contains("expected a time from 1s to 1d") && said.contains("found `5 weeks`"), "{said}");
    let said = refusal(lab, 1, &["lease.grace=1m", "--base", "0"]).await;
    assert!(said.contains("revision 1 of the settings is in force") && said.contains("settings show"), "{said}");
    let said = refusal(lab, 3, &["table.sessions=2000000"]).await;
    assert!(said.contains("fw2 affords 1500000 sessions, and 2000000 are needed"), "{said}");
    assert!(said.contains(&memory(2_000_000).to_string()) && said.contains("--without fw2"), "{said}");
    assert_eq!(settings(lab, 1, &["show"]).await?["revision"], 1, "nothing was changed");

    // Overridden, it stops and says why; the others go on.
    let done = settings(lab, 1, &["set", "table.sessions=2000000", "--without", "fw2"]).await?;
    assert_eq!(done, json!({ "revision": 2, "changed": true, "stopping": ["fw2"] }));
    wait_until("fw2 to say what it needs", async || {
        let log = unwrapped(&std::fs::read_to_string(lab.member(2).log())?);
        Ok(log.contains("the cluster's settings ask for room for 2000000 sessions, and this member affords 1500000"))
    })
    .await?;
    wait_until("fw2 to end", async || Ok(lab.member_mut(2).check().is_err())).await?;
    lab.wait_live(&[1, 3]).await?;
    // With the memory that it asked for, it is back.
    lab.member(2).write_config(&format!("\n[limits]\nmemory = {}\n", memory(2_000_000)))?;
    lab.member_mut(2).start().await?;
    lab.member_mut(2).wait_ready(WAIT).await?;
    wait_until("what it affords", async || {
        Ok(settings(lab, 1, &["show"]).await?["members"][1]["affordable_sessions"] == 2_000_000)
    })
    .await?;
    lab.wait_live(&[1, 2, 3]).await?;
    Ok(())
}
