//! A database with long-lived connections, while the leader dies and comes back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::Result;
use palisade_lab::guard::require_lab;
use palisade_lab::{Lab, Side};
use palisade_tests::program::postgres::{self, Postgres};
use palisade_tests::scenario::{back, kill};
use palisade_tests::{OPEN_POLICY, members};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

const CLIENTS: u32 = 20;
/// Transactions before the leader dies, while it is dead, and when it is back.
const PHASE: u64 = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn database_notices_nothing_when_the_leader_dies_and_comes_back() {
    let Some(_turn) = require_lab(postgres::PROGRAMS) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), OPEN_POLICY).await.unwrap();
    let result = bench(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn bench(lab: &mut Lab) -> Result<()> {
    let postgres = Postgres::start(lab).await?;
    postgres::prepare(lab, Side::Server.v4()).await?;
    let before = postgres.connections();
    let leader = lab.wait_leader().await?;
    let run = postgres::Run::start(lab, Side::Server.v4(), CLIENTS).await?;
    run.transact(PHASE).await?;
    kill(lab, leader).await?;
    run.transact(PHASE).await?;
    back(lab, leader).await?;
    run.transact(PHASE).await?;
    let outcome = run.finish().await?;
    assert_eq!(outcome.failed, 0, "{}", outcome.text);
    assert!(outcome.transactions >= 3 * PHASE, "{}", outcome.text);
    // One that pgbench itself makes first, and one for each client: none was made again.
    let connections = postgres.connections() - before;
    let clients = usize::try_from(CLIENTS)?;
    assert!((clients..=clients + 1).contains(&connections), "{connections} connections for {clients} clients");
    Ok(())
}
