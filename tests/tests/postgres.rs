//! A database with connections that stay, while the leader dies and comes back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use anyhow::Result;
use palisade_lab::guard::require_lab;
use palisade_lab::{Lab, Side};
use palisade_tests::program::postgres::{self, Postgres};
use palisade_tests::{OPEN_POLICY, members};
use tokio::time::sleep;

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

const CLIENTS: u32 = 20;
const SECONDS: u64 = 30;

#[tokio::test(flavor = "multi_thread")]
async fn no_transaction_notices_that_the_leader_dies_and_comes_back() {
    let Some(_turn) = require_lab(&["postgres", "initdb", "pgbench"]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), OPEN_POLICY).await.unwrap();
    let result = bench(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn bench(lab: &mut Lab) -> Result<()> {
    let postgres = Postgres::start(lab).await?;
    postgres::prepare(lab, Side::Server.v4()).await?;
    let before = postgres.connections();
    let leader = lab.wait_leader().await?;
    let run = postgres::Run::start(lab, Side::Server.v4(), CLIENTS, SECONDS).await?;
    let failures = async {
        sleep(Duration::from_secs(8)).await;
        lab.member_mut(leader).kill().await?;
        let survivors: Vec<usize> = (1..=3).filter(|n| *n != leader).collect();
        lab.wait_live(&survivors).await?;
        sleep(Duration::from_secs(7)).await;
        lab.member_mut(leader).start().await?;
        lab.member_mut(leader).wait_ready(Duration::from_secs(20)).await?;
        lab.wait_live(&[1, 2, 3]).await
    };
    let (outcome, failed) = tokio::join!(run.wait(), failures);
    failed?;
    let outcome = outcome?;
    assert_eq!(outcome.failed, 0, "{}", outcome.text);
    assert!(outcome.transactions > 1_000, "{}", outcome.text);
    // One that pgbench itself makes first, and one for each client: none came back.
    let connections = postgres.connections() - before;
    let clients = usize::try_from(CLIENTS)?;
    assert!((clients..=clients + 1).contains(&connections), "{connections} connections for {clients} clients");
    Ok(())
}
