//! A member is drained: traffic and leadership move away, nothing is lost, and it still forwards what arrives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use palisade_lab::guard::require_lab;
use palisade_lab::traffic::{POLICY, Traffic};
use palisade_lab::{Lab, WAIT, wait_until};
use palisade_tests::members;
use serde_json::Value;
use tokio::time::{Instant, sleep};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

#[tokio::test(flavor = "multi_thread")]
async fn drain_moves_traffic_and_leadership_away_and_loses_nothing() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = drain_each(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn forwarded(lab: &Lab, number: usize) -> Result<f64> {
    lab.member(number).metric("palisade_packets_total", &["verdict=\"forward\""]).await
}

async fn json(lab: &Lab, number: usize, args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&lab.member(number).cli(&[args, &["-o", "json"]].concat()).await?)?)
}

async fn drain_each(lab: &mut Lab) -> Result<()> {
    let traffic = Traffic::start(lab, 100).await?;
    traffic.counts().wait_opened(100).await?;
    let leader = lab.wait_leader().await?;
    let others: Vec<usize> = (1..=3).filter(|n| *n != leader).collect();

    let begun = Instant::now();
    let drained = json(lab, leader, &["drain"]).await?;
    println!("drained the leader in {:?}: {drained}", begun.elapsed());
    assert_eq!((&drained["quiet"], &drained["leader"]), (&true.into(), &false.into()), "{drained}");
    lab.wait_live(&others).await?;
    let (code, text) = lab.member(leader).http("/readyz").await?;
    assert!(code == 503 && text.contains("palisade undrain"), "{code} {text}");
    let status = lab.member(leader).status().await?;
    assert_eq!(status["draining"]["reason"], "operator", "{status}");
    assert_eq!(lab.member(leader).metric("palisade_drained", &[]).await?, 1.0);
    // It knows all that is established elsewhere, but nothing passes here.
    let before = forwarded(lab, leader).await?;
    sleep(Duration::from_secs(2)).await;
    let passed = forwarded(lab, leader).await? - before;
    assert!(passed <= 20.0, "{passed} packets passed a drained member in 2 s");
    assert_ne!(lab.wait_leader().await?, leader);

    // The next leader dies. The third one leads, not the drained one; what is sent to that one passes.
    let second = lab.wait_leader().await?;
    let third = others.iter().copied().find(|n| *n != second).unwrap();
    lab.member_mut(second).terminate(WAIT).await?;
    assert_eq!(lab.wait_leader().await?, third);
    lab.member_mut(second).start().await?;
    lab.member_mut(second).wait_ready(WAIT).await?;
    lab.wait_live(&others).await?;
    let back = json(lab, leader, &["undrain"]).await?;
    assert_eq!(back["was_drained"], true);
    lab.wait_live(&[1, 2, 3]).await?;
    traffic.counts().wait_opened(50).await?;

    // Routers that do not follow: it says so, is drained, and forwards all that comes.
    lab.freeze_routes(true);
    let begun = Instant::now();
    let late = lab.member(third).cli(&["drain", "--timeout", "3s"]).await.unwrap_err().to_string();
    println!("with routers that do not follow, after {:?}: {late}", begun.elapsed());
    assert!(late.contains("exit status: 1") && late.contains("traffic does not move away"), "{late}");
    let before = forwarded(lab, third).await?;
    wait_until("a drained member to forward what comes", async || Ok(forwarded(lab, third).await? > before + 100.0))
        .await?;
    lab.freeze_routes(false);

    // A restart ends it.
    lab.member_mut(third).terminate(WAIT).await?;
    lab.member_mut(third).start().await?;
    lab.member_mut(third).wait_ready(WAIT).await?;
    lab.wait_live(&[1, 2, 3]).await?;

    traffic.counts().wait_opened(100).await?;
    traffic.finish().await;
    let counts = traffic.counts();
    let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
    assert_eq!(get(&counts.lost), 0, "{:?}", counts.problems());
    assert_eq!(get(&counts.failed), 0, "{:?}", counts.problems());
    assert_eq!(get(&counts.resets), 0, "{:?}", counts.problems());
    assert_eq!(get(&counts.forbidden_passed), 0, "{:?}", counts.problems());
    println!("{} connections opened, none lost", get(&counts.opened));
    Ok(())
}
