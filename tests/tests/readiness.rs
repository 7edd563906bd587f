//! What routers learn of members that lose their leader, all at once: over HTTP, and from BIRD by BGP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use palisade_lab::guard::require_lab;
use palisade_lab::netns::Netns;
use palisade_lab::program::{path, run};
use palisade_lab::{Lab, Process, Side, Spawn, WAIT, wait_until};
use palisade_tests::{OPEN_POLICY, members};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

/// The example that a user begins with.
const EXAMPLE: &str = include_str!("../../deploy/bird/palisade.conf");

const MEMBERS: usize = 3;
/// The table of `readiness.routes`.
const TABLE: &str = "7946";

#[tokio::test(flavor = "multi_thread")]
async fn members_that_all_lose_the_leader_are_not_all_withdrawn() {
    let Some(_turn) = require_lab(&["bird", "birdc", "ip"]) else { return };
    let mut lab = Lab::with_cluster(members(MEMBERS, BINARY), OPEN_POLICY).await.unwrap();
    let result = leaderless(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn leaderless(lab: &mut Lab) -> Result<()> {
    for number in 1..=MEMBERS {
        announce(lab, number).await?;
    }
    lab.wait_leader().await?;
    let birds = birds(lab).await?;
    wait_grades(lab, &[(200, 200, "full"); MEMBERS]).await?;
    wait_routes(lab, &["100"; MEMBERS]).await?;
    wait_learned(&birds, &[100; MEMBERS]).await?;

    // Nobody hears of anybody: no member has a leader.
    for number in 1..=MEMBERS {
        lab.fabric().netlink().down(&format!("fw{number}")).await?;
    }
    wait_grades(lab, &[(503, 200, "fallback"); MEMBERS]).await?;
    wait_routes(lab, &["1000"; MEMBERS]).await?;
    wait_learned(&birds, &[1000; MEMBERS]).await?;
    let (_, body) = lab.member(1).http("/readyz").await?;
    let body: Value = serde_json::from_str(&body)?;
    assert!(body["reasons"][0].as_str().is_some_and(|why| why.contains("only established sessions pass")), "{body}");
    let health = lab.member(1).cli(&["health", "-o", "json"]).await;
    assert!(health.is_err_and(|e| e.to_string().contains("\"readiness\": \"fallback\"")));
    assert_eq!(lab.member(1).metric("palisade_readiness", &["grade=\"fallback\""]).await?, 1.0);

    // A dead daemon's routes go with it.
    lab.member_mut(2).kill().await?;
    wait_learned(&birds, &[1000, 0, 1000]).await?;
    for number in 1..=MEMBERS {
        lab.fabric().netlink().up(&format!("fw{number}")).await?;
    }
    wait_learned(&birds, &[100, 0, 100]).await?;

    // A drain turns away at once, and routes stay until the daemon ends.
    let drained = lab.member(1).cli(&["drain"]).await;
    wait_learned(&birds, &[1000, 0, 100]).await?;
    ensure!(drained.is_ok(), "{drained:?}");
    lab.member(1).cli(&["undrain"]).await?;
    wait_learned(&birds, &[100, 0, 100]).await?;
    lab.member_mut(1).terminate(WAIT).await?;
    wait_learned(&birds, &[0, 0, 100]).await
}

/// Restarts a member with the default time of a lower grade, and with routes.
async fn announce(lab: &mut Lab, number: usize) -> Result<()> {
    let member = lab.member_mut(number);
    let text = std::fs::read_to_string(member.config())?;
    ensure!(text.contains("hold_down = \"0s\""), "{text}");
    member.terminate(WAIT).await?;
    std::fs::write(
        member.config(),
        text.replace("hold_down = \"0s\"", "routes = [\"10.20.0.0/24\", \"10.10.0.0/24\", \"fd20::/64\"]"),
    )?;
    member.start().await?;
    member.wait_ready(WAIT).await
}

/// BIRD in a namespace.
struct Bird {
    netns: Netns,
    dir: PathBuf,
    socket: String,
    _process: Process,
}

impl Bird {
    async fn start(netns: &Netns, dir: &Path, config: &str) -> Result<Bird> {
        std::fs::create_dir_all(dir)?;
        let (file, socket) = (dir.join("bird.conf"), dir.join("ctl").display().to_string());
        std::fs::write(&file, config)?;
        let spawn = Spawn::new(path("bird")?, dir.join("log")).arg("-f").arg("-c").arg(&file).arg("-s").arg(&socket);
        let process = netns.start(spawn).await?;
        let bird = Bird { netns: netns.clone(), dir: dir.to_owned(), socket, _process: process };
        wait_until("BIRD runs", async || Ok(bird.ask("show status").await.is_ok())).await?;
        Ok(bird)
    }

    async fn ask(&self, command: &str) -> Result<String> {
        run(&self.netns, &self.dir, WAIT, "birdc", &["-s", &self.socket, command]).await
    }

    /// The MED of the route to `network` by each member; 0: there is none.
    async fn learned(&self, network: &str) -> Result<Vec<u32>> {
        let text = self.ask(&format!("show route for {network} all")).await.unwrap_or_default();
        let mut meds = vec![0; MEMBERS];
        let mut member = None;
        for line in text.lines() {
            if let Some((_, rest)) = line.split_once("[member") {
                member = rest.chars().next().and_then(|digit| digit.to_digit(10));
            }
            if let (Some(number), Some((_, med))) = (member, line.split_once("BGP.med: ")) {
                meds[number as usize - 1] = med.trim().parse().with_context(|| text.clone())?;
            }
        }
        Ok(meds)
    }
}

/// BIRD on each member, as in the example, and one on the client's router: the last.
async fn birds(lab: &Lab) -> Result<Vec<Bird>> {
    let mut birds = Vec::new();
    let mut router = "router id 10.10.0.1;\nprotocol device {}\n".to_owned();
    for number in 1..=MEMBERS {
        let outside = Side::Client.link(number, 2)[0].0;
        let mut config = EXAMPLE.to_owned();
        for (from, to) in [
            ("192.0.2.11", outside.to_string()),
            ("neighbor 192.0.2.1 ", format!("neighbor {} ", Side::Client.link(number, 1)[0].0)),
            ("neighbor 10.0.0.1 ", format!("neighbor {} ", Side::Server.link(number, 1)[0].0)),
            ("203.0.113.0/24", "10.20.0.0/24".to_owned()),
            ("198.51.100.0/24", "10.10.0.0/24".to_owned()),
        ] {
            ensure!(config.contains(from), "the example lacks {from}");
            config = config.replace(from, &to);
        }
        let member = lab.member(number);
        birds.push(Bird::start(member.netns(), &lab.dir().join(format!("bird{number}")), &config).await?);
        router += &format!(
            "protocol bgp member{number} {{\n  local as 64496; neighbor {outside} as 64512; connect retry time 1;\n  \
             ipv4 {{ import all; export none; }};\n}}\n"
        );
    }
    birds.push(Bird::start(lab.client(), &lab.dir().join("router"), &router).await?);
    Ok(birds)
}

/// Waits until the router has learned these MEDs, and the network on its own side from nobody.
async fn wait_learned(birds: &[Bird], meds: &[u32]) -> Result<()> {
    let router = birds.last().context("no router")?;
    let mut last = Vec::new();
    let waited = wait_until("the router has learned it", async || {
        last = router.learned("10.20.0.1").await?;
        Ok(last == meds)
    })
    .await;
    waited.with_context(|| format!("the router has {last:?}, not {meds:?}"))?;
    assert_eq!(router.learned("10.10.0.1").await?, [0; MEMBERS]);
    Ok(())
}

/// Waits until each member answers so at `/readyz` and `/readyz?for=established`, with this grade.
async fn wait_grades(lab: &Lab, wanted: &[(u16, u16, &str)]) -> Result<()> {
    let mut last = Vec::new();
    let waited = wait_until("the grades", async || {
        last.clear();
        for number in 1..=wanted.len() {
            let (new, body) = lab.member(number).http("/readyz").await?;
            let (established, _) = lab.member(number).http("/readyz?for=established").await?;
            let body: Value = serde_json::from_str(&body)?;
            last.push((new, established, body["grade"].as_str().unwrap_or_default().to_owned()));
        }
        Ok(last.iter().map(|(a, b, grade)| (*a, *b, grade.as_str())).eq(wanted.iter().copied()))
    })
    .await;
    waited.with_context(|| format!("{last:?}, not {wanted:?}"))
}

/// Waits until the kernel has each member's routes with these metrics.
async fn wait_routes(lab: &Lab, metrics: &[&str]) -> Result<()> {
    for (number, metric) in (1..).zip(metrics) {
        let netns = lab.member(number).netns();
        for (family, count) in [("-4", 2), ("-6", 1)] {
            wait_until("the routes", async || {
                let text = run(netns, lab.dir(), WAIT, "ip", &[family, "route", "show", "table", TABLE]).await;
                let text = text.unwrap_or_default();
                let good = |line: &&str| line.contains("dev palisade0") && line.contains(&format!("metric {metric}"));
                Ok(text.lines().count() == count && text.lines().filter(good).count() == count)
            })
            .await
            .with_context(|| format!("fw{number}, {family}, metric {metric}"))?;
        }
    }
    Ok(())
}
