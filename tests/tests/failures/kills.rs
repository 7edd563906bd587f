//! kill -9 to each member in turn, the leader included, under 10,000 live connections.

use std::time::Duration;

use anyhow::{Result, ensure};
use palisade_lab::Lab;
use palisade_lab::guard::require_lab;
use palisade_tests::members;
use palisade_tests::scenario::kill::{Plan, each_member};
use palisade_tests::scenario::share;

use super::{BINARY, POLICY, SERVER};

#[tokio::test(flavor = "multi_thread")]
async fn kill_of_each_member_loses_no_connection_and_none_waits_for_its_return() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = one_after_the_other(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn one_after_the_other(lab: &mut Lab) -> Result<()> {
    let plan = Plan { long_lived: share(10_000), new: 50, window: Duration::from_secs(1) };
    // That nothing waits for a dead member is asserted in there: each stays dead until everything has come to its end.
    let (killed, load) = each_member(lab, SERVER, plan).await?;
    eprintln!("{}", load.summary());
    ensure!(killed.iter().filter(|k| k.led).count() >= 1, "no leader was killed");
    for one in &killed {
        ensure!(!one.under_way.is_empty(), "nothing was under way when fw{} was killed", one.number);
    }
    load.is_whole()
}
