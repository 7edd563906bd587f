//! Policies in two steps, with real members: an emergency block while members are dead or hang, and a policy that takes long to
//! compile under load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use palisade_lab::guard::require_lab;
use palisade_lab::lateness::Lateness;
use palisade_lab::{Lab, Side, WAIT, clock, wait_until};
use palisade_tests::load::Load;
use palisade_tests::scenario::share;
use palisade_tests::{OPEN_POLICY, long, members, wait_voters};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");
const SERVER: &str = env!("CARGO_BIN_EXE_echo-server");

/// Within this time an emergency block is in force.
const EMERGENCY: Duration = Duration::from_secs(6);
/// What apply may stand still for.
const PAUSE: f64 = 0.010;
/// The same where other programs take the processors: a small part of the time that compiling takes there.
const BUSY_PAUSE: f64 = 1.0;

const BLOCK: &str = "\
zone outside, inside
default drop
accept \"all but the attacked one\" from outside to inside: any -> any tcp/1-6999
";

#[tokio::test(flavor = "multi_thread")]
async fn emergency_block_is_in_force_in_time_with_one_member_dead_and_one_hung() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(5, BINARY), OPEN_POLICY).await.unwrap();
    let result = emergency(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn emergency(lab: &mut Lab) -> Result<()> {
    wait_voters(lab, 1, 5).await?;
    let to = SocketAddr::new(Side::Server.v4(), 7000);
    let listener = lab.server().run(TcpListener::bind(to)).await??;
    lab.server().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    drop(timeout(WAIT, lab.client().run(TcpStream::connect(to))).await???);

    let leader = lab.leader().await?;
    let mut others = (1..=5).filter(|number| *number != leader);
    let (dead, hung, asked) =
        (others.next().context("one")?, others.next().context("two")?, others.next().context("three")?);
    let file = lab.dir().join("block.policy");
    std::fs::write(&file, BLOCK)?;
    lab.member_mut(dead).kill().await?;
    lab.member_mut(hung).signal(Signal::SIGSTOP)?;
    let begin = clock::now();
    let file = file.to_str().context("a path")?;
    let answer = lab.member(asked).cli(&["-o", "json", "policy", "apply", file]).await?;
    let took = clock::now().since(begin);
    eprintln!("in force after {took:?}: {answer}");
    ensure!(took <= EMERGENCY, "it was in force after {took:?}");
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    let without: Vec<&str> =
        answer["without"].as_array().context("a list")?.iter().filter_map(|n| n.as_str()).collect();
    let name = |number: usize| lab.member(number).name().to_owned();
    ensure!(without.len() == 2 && [dead, hung].iter().all(|n| without.contains(&name(*n).as_str())), "{without:?}");
    // It is what the members that pass packets do.
    for number in (1..=5).filter(|number| ![dead, hung].contains(number)) {
        let member = lab.member(number);
        wait_until(
            "the block is in force",
            async || Ok(member.metric("palisade_policy_generation", &[]).await? == 2.0),
        )
        .await?;
    }
    if let Ok(Ok(Ok(_))) = timeout(Duration::from_secs(2), lab.client().run(TcpStream::connect(to))).await {
        bail!("the block lets it through");
    }

    // The member that hung catches up, and says so.
    lab.member_mut(hung).signal(Signal::SIGCONT)?;
    lab.member_mut(hung).wait_ready(WAIT).await?;
    let generation = lab.member(hung).metric("palisade_policy_generation", &[]).await?;
    ensure!(generation == 2.0, "it passes packets by generation {generation}");
    Ok(())
}

/// A policy of `rules` rules with 32 ranges each.
fn large(rules: usize) -> String {
    let nets: Vec<String> = (0..30).map(|n| format!("198.{}.0.0/16", n * 2)).collect();
    // The client's network is the last one, so that its connections pass.
    let mut text = format!("zone outside, inside\nset s = 10.0.0.0/8, {}\ndefault drop\n", nets.join(", "));
    for n in 0..rules - 1 {
        let to = format!("11.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
        writeln!(text, "drop \"{n}\" from outside to inside: @s -> {to} tcp/80").unwrap();
    }
    text + "accept \"all\" from outside to inside: any -> any\n"
}

#[tokio::test(flavor = "multi_thread")]
async fn large_policy_stops_nothing_and_a_member_that_cannot_compile_it_is_named() {
    let Some(_turn) = require_lab(&["prlimit"]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), OPEN_POLICY).await.unwrap();
    let result = large_policy(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn large_policy(lab: &mut Lab) -> Result<()> {
    wait_voters(lab, 1, 3).await?;
    let rules = if long() { 65_535 } else { 8_192 };
    let file = lab.dir().join("large.policy");
    std::fs::write(&file, large(rules))?;
    let file = file.to_str().context("a path")?.to_owned();
    let leader = lab.leader().await?;
    let small = (1..=3).find(|number| *number != leader).context("a follower")?;
    let name = lab.member(small).name().to_owned();
    // It has memory for what it does, and not for this.
    let room: u64 = if long() { 256 << 20 } else { 48 << 20 };
    limit(lab.member(small).pid().context("it runs")?, Some(room)).await?;

    let late = Lateness::watch(lab.dir())?;
    let mut load = Load::start(lab, SERVER, share(100)).await?;
    load.open(share(500));
    load.open_more(500).await?;
    let refused = lab.member(leader).cli(&["policy", "apply", &file]).await;
    let refused = refused.err().context("a member cannot compile it")?.to_string();
    ensure!(refused.contains(&name) && refused.contains("memory"), "{refused}");
    ensure!(refused.contains(&format!("--without {name}")), "{refused}");
    let generations = lab.member(leader).metric("palisade_policy_generation", &[]).await?;
    ensure!(generations == 1.0, "it came into force");

    let begin = clock::now();
    let answer = lab.member(leader).cli(&["-o", "json", "policy", "apply", &file, "--without", &name]).await?;
    eprintln!("in force after {:?}: {answer}", clock::now().since(begin));
    ensure!(answer.contains(&name), "{answer}");
    // That member alone loses its lease, and routers turn away from it.
    wait_until("it applies nothing", async || {
        Ok(lab.member(small).metric("palisade_policy_awaited", &[]).await? == 1.0)
    })
    .await?;
    wait_until("its lease is over", async || {
        Ok(lab.member(small).metric("palisade_lease_state", &["state=\"valid\""]).await? == 0.0)
    })
    .await?;
    for number in (1..=3).filter(|number| *number != small) {
        let valid = lab.member(number).metric("palisade_lease_state", &["state=\"valid\""]).await?;
        ensure!(valid == 1.0, "member {number} lost its lease");
        longest_pause(lab, number, &late).await?;
    }
    // With memory it compiles it by itself, and is there again.
    limit(lab.member(small).pid().context("it runs")?, None).await?;
    lab.member_mut(small).wait_ready(WAIT).await?;
    longest_pause(lab, small, &late).await?;
    load.finish().await?;
    load.is_whole()?;
    eprintln!("{}", load.summary());
    Ok(())
}

/// That no entry of the log took longer to apply than it may: on a machine that was busy meanwhile, [`BUSY_PAUSE`].
async fn longest_pause(lab: &Lab, number: usize, late: &Lateness) -> Result<()> {
    let member = lab.member(number);
    let all = member.metric("palisade_apply_seconds_count", &[]).await?;
    let excuse = late.excuses(Duration::from_secs_f64(PAUSE));
    let pause = if excuse.is_some() { BUSY_PAUSE } else { PAUSE };
    let quick = member.metric("palisade_apply_seconds_bucket", &[&format!("le=\"{pause:?}\"")]).await?;
    eprintln!("member {number}: {quick} of {all} entries applied within {pause} s ({})", excuse.unwrap_or_default());
    ensure!(all > 0.0 && all - quick < 1.0, "member {number}: {} entries took longer than {pause} s", all - quick);
    Ok(())
}

/// Limits the data of a process to what it has and `more` bytes.
async fn limit(pid: u32, more: Option<u64>) -> Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let has = status.lines().find_map(|line| line.strip_prefix("VmData:")).context("it has data")?;
    let has: u64 = has.split_whitespace().next().context("a number")?.parse()?;
    let limit = more.map_or("unlimited".to_owned(), |more| (has * 1024 + more).to_string());
    let done = tokio::process::Command::new("prlimit")
        .args([format!("--pid={pid}"), format!("--data={limit}:unlimited")])
        .output()
        .await?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}
