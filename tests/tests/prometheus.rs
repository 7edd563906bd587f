//! Figures that Prometheus itself accepts and reads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::{Context, Result};
use palisade_lab::Lab;
use palisade_lab::guard::require_lab;
use palisade_tests::program::prometheus;
use palisade_tests::{OPEN_POLICY, members};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

#[tokio::test(flavor = "multi_thread")]
async fn promtool_accepts_the_figures_and_prometheus_scrapes_all_members() {
    let Some(_turn) = require_lab(&["prometheus", "promtool"]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), OPEN_POLICY).await.unwrap();
    let result = scrape(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn scrape(lab: &mut Lab) -> Result<()> {
    for member in lab.members() {
        let (status, text) = member.http("/metrics").await?;
        assert_eq!(status, 200);
        prometheus::check(lab, &text).await.with_context(|| member.name().to_owned())?;
    }
    let _prometheus = prometheus::start(lab).await?;
    prometheus::wait_query(lab, "up", 3, "1").await?;
    prometheus::wait_query(lab, "palisade_lease_state{state=\"valid\"}", 3, "1").await?;
    lab.member_mut(3).kill().await?;
    prometheus::wait_query(lab, "sum(up)", 1, "2").await
}
