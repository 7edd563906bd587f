//! Members are upgraded one by one under load, and half of them back again: nothing is lost, nothing fails, and at every step
//! all members have the same state.
//!
//! As systemd and a package do it: the file is exchanged while the daemon runs, then the daemon is stopped and started. The old
//! program is that of the commit in `tests/previous-release`; a build with the feature `next-level` plays the one after today's
//! ([`palisade_tests::release`]).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use palisade_lab::guard::{require_lab, skip};
use palisade_lab::{Lab, WAIT, clock, wait_until};
use palisade_tests::load::Load;
use palisade_tests::release::{self, Program};
use palisade_tests::scenario::share;
use palisade_tests::{OPEN_POLICY, members, wait_voters};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");
const SERVER: &str = env!("CARGO_BIN_EXE_echo-server");

/// Connections that stay.
const LIVE: usize = 1000;
/// New connections a second, on a machine with at least [`PROCESSORS`]; one with fewer gets as many fewer.
const NEW: usize = 500;
const PROCESSORS: usize = 8;

/// What a machine of this size is given.
fn rate() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let rate = share(NEW * processors.min(PROCESSORS) / PROCESSORS);
    if rate < NEW {
        eprintln!("{processors} processors: {rate} new connections a second instead of {NEW}");
    }
    rate
}

/// A lab of three members under load.
struct Cluster {
    lab: Lab,
    load: Load,
    rate: usize,
}

impl Cluster {
    /// All members run `program`.
    async fn start(program: &Program) -> Result<Cluster> {
        let path = program.path.to_str().context("the program's path")?;
        let mut lab = Lab::with_cluster(members(3, path), OPEN_POLICY).await?;
        let rate = rate();
        let started = async {
            wait_voters(&lab, 1, 3).await?;
            let load = Load::start(&lab, SERVER, share(LIVE)).await?;
            load.open(rate);
            load.open_more(rate as u64).await?;
            load.fit(&lab).await?;
            Ok(load)
        };
        let started = started.await;
        let load = lab.or_keep(started)?;
        let cluster = Cluster { lab, load, rate };
        cluster.check(&format!("all run {}", program.name)).await?;
        Ok(cluster)
    }

    /// A member gets another program.
    async fn exchange(&mut self, number: usize, program: &Program) -> Result<()> {
        let led = self.lab.wait_leader().await? == number;
        let begun = Instant::now();
        let member = self.lab.member_mut(number);
        member.exchange(&program.path);
        member.terminate(WAIT).await?;
        member.start().await?;
        member.wait_ready(WAIT).await?;
        self.lab.wait_live(&[1, 2, 3]).await?;
        let took = begun.elapsed();
        wait_voters(&self.lab, number, 3).await?;
        self.load.open_more(self.rate as u64).await?;
        let led = if led { ", which led," } else { "" };
        self.check(&format!("fw{number}{led} runs {} after {took:.1?}", program.name)).await
    }

    /// Nothing was lost, reset or refused, and all states are equal.
    async fn check(&self, when: &str) -> Result<()> {
        self.load.settle(clock::now()).await?;
        self.load.is_whole().with_context(|| when.to_owned())?;
        let equal = wait_until("a comparison that all members answer", async || self.is_equal().await);
        equal.await.with_context(|| when.to_owned())?;
        eprintln!("{when}: {}", self.load.summary());
        Ok(())
    }

    /// Whether all members have answered an audit, and their states are equal. An error if one differs.
    async fn is_equal(&self) -> Result<bool> {
        match self.lab.member(1).cli(&["audit", "-o", "json"]).await {
            Ok(text) => Ok(serde_json::from_str::<Value>(&text)?["equal"] == true),
            Err(said) if said.to_string().contains("\"different\"") => Err(said),
            // Somebody was late, or the leader changed.
            Err(_) => Ok(false),
        }
    }

    /// All members, the leader last.
    async fn order(&self) -> Result<Vec<usize>> {
        let leader = self.lab.wait_leader().await?;
        Ok((1..=3).filter(|n| *n != leader).chain([leader]).collect())
    }

    /// Upgrades all members, the one that leads last.
    async fn upgrade_all(&mut self, program: &Program) -> Result<()> {
        let mut left = BTreeSet::from([1, 2, 3]);
        while !left.is_empty() {
            let next = self.order().await?.into_iter().find(|n| left.contains(n));
            let next = next.context("nobody is left")?;
            self.exchange(next, program).await?;
            left.remove(&next);
        }
        Ok(())
    }

    /// Upgrades a follower and the leader, and takes both back.
    async fn upgrade_half_and_go_back(&mut self, old: &Program, new: &Program) -> Result<()> {
        let order = self.order().await?;
        let [first, _, leader] = order[..] else { bail!("three members, not {order:?}") };
        for number in [first, leader] {
            self.exchange(number, new).await?;
        }
        for number in [leader, first] {
            self.exchange(number, old).await?;
        }
        Ok(())
    }

    async fn end(mut self) -> Result<()> {
        self.load.finish().await?;
        self.load.is_whole()?;
        for member in self.lab.members_mut() {
            member.check()?;
        }
        Ok(())
    }
}

/// The program, or a line that says why there is none.
fn program(what: &str, built: Result<Program, String>) -> Option<Program> {
    built.map_or_else(|why| skip(&format!(" {what}"), &why), Some)
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_upgrade_and_the_way_back_lose_nothing() {
    let today = Program::today(BINARY);
    let Some(previous) = program("the upgrade from the previous release", release::previous(&today)) else { return };
    let Some(_turn) = require_lab(&[]) else { return };
    let mut cluster = Cluster::start(&previous).await.unwrap();
    let result = async {
        cluster.upgrade_half_and_go_back(&previous, &today).await?;
        cluster.upgrade_all(&today).await
    };
    let result = result.await;
    cluster.lab.or_keep(result).unwrap();
    cluster.end().await.unwrap();
}
