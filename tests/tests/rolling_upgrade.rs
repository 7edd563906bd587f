//! Members are upgraded one by one under load, and half of them back again: nothing is lost, nothing fails, and at every step
//! all members have the same state. Then the level is raised under the same load, what it adds is used, and a program that does not
//! know it is refused.
//!
//! As systemd and a package do it: the file is exchanged while the daemon runs, then the daemon is stopped and started. The old
//! program is that of the commit in `tests/previous-release`; a build with the feature `next-level` plays the one after today's
//! ([`palisade_tests::release`]).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "it says how long an exchange took")]

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use palisade_lab::guard::{require_lab, skip};
use palisade_lab::{Lab, WAIT, clock, wait_until};
use palisade_tests::load::Load;
use palisade_tests::release::{self, Program};
use palisade_tests::scenario::share;
use palisade_tests::{OPEN_POLICY, members, unwrapped, wait_ended, wait_voters};
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
            self.raise_is_refused(new).await?;
        }
        for number in [leader, first] {
            self.exchange(number, old).await?;
        }
        Ok(())
    }

    /// What every member says of the level in force.
    async fn wait_level(&self, level: u64) -> Result<()> {
        wait_until(&format!("level {level} at all members"), async || {
            for member in self.lab.members() {
                if member.status().await?["cluster"]["level"] != level {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
    }

    /// A command that a member refuses, with this exit code and these parts of its answer.
    async fn is_refused(&self, number: usize, command: &[&str], code: u8, parts: &[&str]) -> Result<()> {
        let Err(refused) = self.lab.member(number).cli(command).await else { bail!("fw{number} took {command:?}") };
        let said = unwrapped(&refused.to_string());
        for part in [format!("exit status: {code}")].iter().map(String::as_str).chain(parts.iter().copied()) {
            ensure!(said.contains(part), "no `{part}` in: {said}");
        }
        Ok(())
    }

    /// The policy with the keyword of the next level, as a file.
    fn next_policy(&self) -> Result<String> {
        let path = self.lab.dir().join("next-policy");
        std::fs::write(&path, format!("{OPEN_POLICY}next-level\n"))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// The rule of a session of this policy generation, as each member shows it.
    async fn rule_texts(&self, generation: u64) -> Result<Vec<String>> {
        let mut id = None;
        wait_until(&format!("a session of policy {generation}"), async || {
            let all = self.lab.member(1).cli(&["session", "list", "-o", "json"]).await?;
            let mut sessions = all.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let found = sessions.find(|s| s["generation"] == generation && s["half_open"] == false);
            id = found.and_then(|session| Some(session["id"].as_str()?.to_owned()));
            Ok(id.is_some())
        })
        .await?;
        let id = id.context("no session")?;
        let mut texts = Vec::new();
        for member in self.lab.members() {
            let shown: Value = serde_json::from_str(&member.cli(&["session", "show", &id, "-o", "json"]).await?)?;
            texts.push(shown["rule_text"].as_str().unwrap_or_default().to_owned());
        }
        Ok(texts)
    }

    /// Before the raise nobody uses what the next level has, though all members know it.
    async fn next_is_refused(&self) -> Result<()> {
        let policy = self.next_policy()?;
        self.is_refused(1, &["policy", "apply", &policy], 4, &["needs level 2, and level 1 is in force"]).await?;
        let texts = self.rule_texts(1).await?;
        ensure!(texts.iter().all(|text| !text.is_empty() && !text.contains("# tag")), "{texts:?}");
        Ok(())
    }

    /// The raise, and what it brings.
    async fn raise(&self) -> Result<()> {
        let leader = self.lab.wait_leader().await?;
        wait_until("every member knows level 2", async || {
            Ok(self.lab.member(leader).status().await?["cluster"]["possible_level"] == 2)
        })
        .await?;
        self.lab.member(leader % 3 + 1).cli(&["cluster", "level", "raise", "2"]).await?;
        self.wait_level(2).await?;
        self.load.open_more(self.rate as u64).await?;
        self.check("level 2 is in force").await?;
        self.lab.member(1).cli(&["policy", "apply", &self.next_policy()?]).await?;
        self.load.open_more(self.rate as u64).await?;
        let texts = self.rule_texts(2).await?;
        ensure!(texts.iter().all(|text| text.ends_with("# tag 2")), "{texts:?}");
        self.check("what level 2 adds is used").await
    }

    /// The program before the next one is no member any longer: not one that starts, as often as it does, and not one that joins.
    async fn old_is_refused(&mut self, old: &Program, next: &Program) -> Result<()> {
        let leader = self.lab.wait_leader().await?;
        let number = leader % 3 + 1;
        let member = self.lab.member_mut(number);
        member.terminate(WAIT).await?;
        member.exchange(&old.path);
        for start in 1..=2 {
            self.lab.member_mut(number).start().await?;
            let said = wait_ended(&mut self.lab, number).await?;
            for part in ["exit status: 6", "this program cannot read", "level 2", "install on this machine"] {
                ensure!(said.contains(part), "start {start}: no `{part}` in: {said}");
            }
        }
        self.load.open_more(self.rate as u64).await?;
        self.load.is_whole()?;

        let fourth = self.lab.add_member().await?;
        self.lab.member_mut(fourth).exchange(&old.path);
        self.lab.member_mut(fourth).start().await?;
        self.lab.member_mut(fourth).wait_up(WAIT).await?;
        let token = self.lab.member(leader).cli(&["cluster", "token"]).await?;
        let parts = ["the cluster is at level 2", "knows level 1", "install the version of Palisade"];
        self.is_refused(fourth, &["cluster", "join", token.trim()], 4, &parts).await?;
        self.lab.member_mut(fourth).terminate(WAIT).await?;

        let member = self.lab.member_mut(number);
        member.exchange(&next.path);
        member.start().await?;
        member.wait_ready(WAIT).await?;
        self.lab.wait_live(&[1, 2, 3]).await?;
        self.load.open_more(self.rate as u64).await?;
        self.check(&format!("fw{number} is back with {}", next.name)).await
    }

    /// As long as one member does not know a level, it cannot be raised to it.
    async fn raise_is_refused(&self, new: &Program) -> Result<()> {
        if !new.has_next_level {
            return Ok(());
        }
        let parts = ["which knows level 1: the level in force stays", "upgrade"];
        self.is_refused(1, &["cluster", "level", "raise", "2"], 4, &parts).await
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

/// What was built, or a line that says why it was not.
fn program<T>(what: &str, built: Result<T, String>) -> Option<T> {
    built.map_or_else(|why| skip(&format!(" {what}"), &why), Some)
}

/// From the previous release to today's and back and on, and so to the next one, whose level is then raised.
#[tokio::test(flavor = "multi_thread")]
async fn rolling_upgrades_and_the_way_back_and_the_raise_lose_nothing() {
    let today = Program::today(BINARY);
    let Some(previous) = program("the upgrade from the previous release", release::previous(&today)) else { return };
    let Some(next) = program("the upgrade to the next release", release::next(&today)) else { return };
    let Some(_turn) = require_lab(&[]) else { return };
    let begun = Instant::now();
    let mut cluster = Cluster::start(&previous).await.unwrap();
    let result = async {
        if previous.path != today.path {
            cluster.upgrade_half_and_go_back(&previous, &today).await?;
            cluster.upgrade_all(&today).await?;
        }
        cluster.upgrade_half_and_go_back(&today, &next).await?;
        cluster.upgrade_all(&next).await?;
        cluster.next_is_refused().await?;
        cluster.raise().await?;
        cluster.old_is_refused(&today, &next).await
    };
    let result = result.await;
    cluster.lab.or_keep(result).unwrap();
    cluster.end().await.unwrap();
    eprintln!("all of it in {:.0?}", begun.elapsed());
}

/// What the engine does with a level more, as its tests say.
#[test]
fn next_level_does_in_the_engine_what_it_should() {
    let Some(said) = program("the engine's tests of the next level", release::test_next(&Program::today(BINARY)))
    else {
        return;
    };
    assert!(said.contains("test result: ok.") && said.contains("next_level_command_and_field"), "{said}");
    println!("{said}");
}
