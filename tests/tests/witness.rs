//! Two firewalls and a witness: each of the three may die.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use palisade_lab::guard::require_lab;
use palisade_lab::traffic::{POLICY, Traffic};
use palisade_lab::{Lab, WAIT};
use palisade_tests::{members, wait_voters};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

#[tokio::test(flavor = "multi_thread")]
async fn witness_and_two_firewalls_survive_the_loss_of_each() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(2, BINARY), POLICY).await.unwrap();
    let result = lose_each(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn lose_each(lab: &mut Lab) -> Result<()> {
    let witness = lab.add_witness().await?;
    lab.member_mut(witness).start().await?;
    lab.member_mut(witness).wait_up(WAIT).await?;
    lab.join(witness).await?;
    wait_voters(lab, 1, 3).await?;
    let status = lab.member(witness).status().await?;
    assert_eq!((&status["role"], &status["ready"]), (&"witness".into(), &true.into()), "{status}");
    assert!(status["datapath"].is_null(), "a witness forwards nothing: {status}");

    let traffic = Traffic::start(lab, 100).await?;
    let counts = traffic.counts();
    counts.wait_opened(100).await?;
    let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
    // The leader first; in the end each member has been away.
    let leader = lab.wait_leader().await?;
    let order: Vec<usize> = std::iter::once(leader).chain((1..=3).filter(|n| *n != leader)).collect();
    for number in order {
        let before = get(&counts.opened);
        lab.member_mut(number).kill().await?;
        let led_by = lab.wait_leader().await?;
        counts.wait_opened(200).await?;
        println!("without fw{number}: fw{led_by} leads, {} connections opened", get(&counts.opened) - before);
        lab.member_mut(number).start().await?;
        lab.member_mut(number).wait_ready(WAIT).await?;
        lab.wait_live(&[1, 2]).await?;
        counts.wait_opened(50).await?;
    }
    traffic.finish().await;
    assert_eq!(get(&counts.lost), 0, "{:?}", counts.problems());
    assert_eq!(get(&counts.failed), 0, "{:?}", counts.problems());
    assert_eq!(get(&counts.resets), 0, "{:?}", counts.problems());
    assert_eq!(get(&counts.forbidden_passed), 0, "{:?}", counts.problems());
    // The witness has what the firewalls have.
    let count = async |n: usize| lab.member(n).cli(&["policy", "show"]).await;
    assert_eq!(count(witness).await?, count(1).await?);
    Ok(())
}
