//! A web server behind three members: every connection is new, and each packet of it may be at another member.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use palisade_lab::drops::{Drops, is_overload};
use palisade_lab::guard::require_lab;
use palisade_lab::lateness::Lateness;
use palisade_lab::{Flow, Lab, Side};
use palisade_tests::overload::full_queues;
use palisade_tests::program::nginx;
use palisade_tests::scenario::web;
use palisade_tests::{OPEN_POLICY, long, members};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

/// The longest that a packet is held. One whose commit takes longer is dropped, and its SYN is sent again.
const HOLD: Duration = Duration::from_millis(250);
/// How often a machine that is late may try again.
const ATTEMPTS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn connections_at_a_steady_rate_open_without_a_retransmission() {
    let Some(_turn) = require_lab(&["nginx", "wrk"]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), OPEN_POLICY).await.unwrap();
    let result = steady(&lab).await;
    lab.or_keep(result).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_flat_out_are_all_answered() {
    let Some(_turn) = require_lab(&["nginx", "wrk"]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), OPEN_POLICY).await.unwrap();
    let result = flat_out(&lab).await;
    lab.or_keep(result).unwrap();
}

async fn flat_out(lab: &Lab) -> Result<()> {
    let outcome = web::flat_out(lab, 5).await?;
    eprintln!("{:.0} connections/s", outcome.per_second);
    ensure!(outcome.errors.is_empty() && outcome.requests > 0, "{}", outcome.text);
    Ok(())
}

/// 500 new connections a second: each is answered, and no SYN is sent twice.
async fn steady(lab: &Lab) -> Result<()> {
    let _nginx = nginx::start(lab).await?;
    asymmetric(lab).await?;
    for to in Side::Server.hosts() {
        let to = SocketAddr::new(to, nginx::PORT);
        let mut late = Lateness::watch(lab.dir())?;
        for attempt in 1..=ATTEMPTS {
            late.reset();
            if once(lab, to, &late).await? {
                break;
            }
            eprintln!("{to}: attempt {attempt} says nothing");
        }
    }
    Ok(())
}

/// One attempt. `false`: SYNs were sent again because the machine was late, as it and the members' counters say.
async fn once(lab: &Lab, to: SocketAddr, late: &Lateness) -> Result<bool> {
    let (drops, full) = (Drops::read(lab).await?, full_queues(lab).await?);
    let steady = web::steady(lab, to, if long() { 10 } else { 5 }).await?;
    let again = steady.syn_retransmits;
    eprintln!("{to}: {} requests, {} connections, {again} SYNs sent again", steady.outcome.requests, steady.opened);
    ensure!(steady.outcome.errors.is_empty() && steady.outcome.requests > 0, "{to}: {}", steady.outcome.text);
    ensure!(steady.opened >= steady.outcome.requests, "{} connections for that", steady.opened);
    if again == 0 {
        return Ok(true);
    }
    let drops = Drops::read(lab).await?.since(&drops);
    let dropped = drops.only(is_overload).total() + full_queues(lab).await? - full;
    let Some(how) = late.excuses(HOLD) else {
        bail!(
            "{to}: {again} SYNs were sent again, and the machine was not late: {:?}; dropped: {drops}",
            late.longest()
        );
    };
    // An answer that came after a second, dropped by nobody, is the machine's, too.
    eprintln!("{to}: {again} SYNs were sent again; {how}; {dropped} packets were dropped for that: {drops}");
    Ok(false)
}

/// The lab does what it is for: most connections' two directions go through different members. (Where wrk leaves the
/// port to the kernel, that may choose the first way at random; then two of three are.)
async fn asymmetric(lab: &Lab) -> Result<()> {
    let mut two_ways = 0;
    for sport in 20_000..20_100 {
        let (src, dst) = (Side::Client.v4(), Side::Server.v4());
        let [there, back] = lab.path(Flow { protocol: 6, src, sport, dst, dport: nginx::PORT }).await?;
        two_ways += usize::from(there != back);
    }
    ensure!(two_ways > 50, "only {two_ways} of 100 connections are asymmetric");
    Ok(())
}
