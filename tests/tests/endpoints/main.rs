//! Real programs at both ends, nearly every connection asymmetric: they get what they ask for, and nothing that they send is
//! taken for INVALID. What is INVALID is provoked at the end, so that it is known to be counted.
//!
//! Everything runs in one lab, part after part, beside connections that are idle all the while. With `PALISADE_LONG=1` they are idle
//! for longer than the default timeouts, without it for longer than those of the test's policy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bulk;
mod dns;
mod idle;
mod path;
mod provoked;
mod web;

use std::future::Future;

use anyhow::{Context, Result, ensure};
use palisade_lab::RemoteNetwork;
use palisade_lab::drops::{Drops, is_invalid};
use palisade_lab::guard::{require_lab, require_programs};
use palisade_lab::{Flow, Lab, Side};
use palisade_tests::overload::SETTLED;
use palisade_tests::program::traceroute::Probe;
use palisade_tests::{OPEN_POLICY, long, members};
use tokio::time::{Instant, sleep};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_get_what_they_ask_for_and_nothing_is_invalid() {
    let Some(_turn) = require_lab(&[]) else { return };
    let timeouts = if long() { "" } else { idle::SHORT_TIMEOUTS };
    let mut lab = Lab::with_cluster(members(3, BINARY), &format!("{OPEN_POLICY}{timeouts}")).await.unwrap();
    // Nobody dies here, and a late answer of a busy machine is to move no connection to another member.
    lab.freeze_routes(true);
    let result = everything(&lab).await;
    lab.or_keep(result).unwrap();
}

async fn everything(lab: &Lab) -> Result<()> {
    let mut parts = Parts { lab, failures: Vec::new() };
    // Ports that are chosen for the ways that their packets go are nobody else's.
    lab.client().sysctl("net/ipv4/ip_local_reserved_ports", "20000-39999").await?;
    // A member that does not answer ends it, but what was found until then is told, too.
    if let Err(e) = all_parts(lab, &mut parts).await {
        parts.failures.push(format!("{e:#}"));
    }
    ensure!(parts.failures.is_empty(), "{}", parts.failures.join("\n"));
    Ok(())
}

async fn all_parts(lab: &Lab, parts: &mut Parts<'_>) -> Result<()> {
    let mut idle = None;
    let open = async {
        let opened = idle.insert(idle::Idle::open(lab).await?);
        Ok(opened.to_string())
    };
    parts.part("idle connections opened", &[], open).await?;
    for to in Side::Server.hosts() {
        parts.part(&format!("ping -f {to}"), &["ping"], bulk::ping(lab, to)).await?;
        parts.part(&format!("iperf3 -u {to}"), &["iperf3"], bulk::udp(lab, to)).await?;
        parts.part(&format!("iperf3 --bidir {to}"), &["iperf3"], bulk::both_ways(lab, to)).await?;
        let web = ["nginx", "openssl", "wrk", "h2load"];
        parts.part(&format!("HTTP/1.1 keep-alive {to}"), &web, web::keep_alive(lab, to)).await?;
        parts.part(&format!("HTTP/2 {to}"), &web, web::streams(lab, to)).await?;
        parts.part(&format!("DNS over UDP {to}"), &["dnsmasq", "dig"], dns::udp(lab, to)).await?;
        parts.part(&format!("DNS over TCP {to}"), &["dnsmasq", "dig"], dns::tcp(lab, to)).await?;
        parts.part(&format!("DNS in fragments {to}"), &["dnsmasq", "dig"], dns::fragments(lab, to)).await?;
    }
    parts.part("rsync of files", &["rsync", "cmp"], bulk::files(lab)).await?;
    ways(lab, parts).await?;
    if let Some(idle) = idle {
        parts.part("idle connections used again", &[], idle.use_again(lab)).await?;
    }
    parts.provoked().await
}

/// The parts that need routers and hosts behind those of the lab.
async fn ways(lab: &Lab, parts: &mut Parts<'_>) -> Result<()> {
    let (client, server) =
        (RemoteNetwork::attach(lab, Side::Client).await?, RemoteNetwork::attach(lab, Side::Server).await?);
    let beyond = [&client, &server];
    RemoteNetwork::answer_everything(lab, beyond).await?;
    for (family, name) in ["IPv4", "IPv6"].into_iter().enumerate() {
        parts.part(&format!("refused TCP {name}"), &[], path::refused_tcp(lab, family)).await?;
        parts.part(&format!("refused UDP {name}"), &[], path::refused_udp(lab, family)).await?;
        for probe in [Probe::Udp, Probe::Icmp, Probe::Tcp(path::OPEN_PORT)] {
            let trace = path::trace(lab, beyond, family, probe);
            parts.part(&format!("traceroute {probe:?} {name}"), &["traceroute"], trace).await?;
        }
        parts
            .part(&format!("path MTU by ping {name}"), &["ping", "ip"], path::small_link(lab, &server, family))
            .await?;
        parts.part(&format!("path MTU at members {name}"), &["ping", "ip"], path::small_members(lab, family)).await?;
        let up = path::discovered(lab, &server, family);
        parts.part(&format!("path MTU by TCP {name}, to the server"), &["ip"], up).await?;
        let down = path::discovered(lab, &client, family);
        parts.part(&format!("path MTU by TCP {name}, to the client"), &["ip"], down).await?;
    }
    Ok(())
}

/// Runs one part after the other; all failures are told at the end.
struct Parts<'a> {
    lab: &'a Lab,
    failures: Vec<String>,
}

impl Parts<'_> {
    /// Does what a part does; nothing INVALID may be counted meanwhile.
    async fn part(&mut self, name: &str, programs: &[&str], work: impl Future<Output = Result<String>>) -> Result<()> {
        if require_programs(name, programs) {
            let invalid = self.measured(name, work).await?;
            if invalid.total() > 0 {
                self.failures.push(format!("{name}: INVALID: {invalid}"));
            }
        }
        Ok(())
    }

    /// The same for packets that are INVALID: they are counted, each by its reason, and nothing else is.
    async fn provoked(&mut self) -> Result<()> {
        let name = "INVALID packets provoked";
        if !require_programs(name, &["tcpdump"]) {
            return Ok(());
        }
        let invalid = self.measured(name, provoked::all(self.lab)).await?;
        let all: u64 = provoked::EXPECTED.iter().map(|(_, count)| count).sum();
        let each = provoked::EXPECTED.iter().all(|(reason, count)| invalid.only(|r| r == *reason).total() == *count);
        if !each || invalid.total() != all {
            self.failures.push(format!("{name}: {invalid}, not {:?}", provoked::EXPECTED));
        }
        Ok(())
    }

    /// What was INVALID during a part.
    async fn measured(&mut self, name: &str, work: impl Future<Output = Result<String>>) -> Result<Drops> {
        let (before, began) = (Drops::read(self.lab).await?, Instant::now());
        let figures = work.await.unwrap_or_else(|e| {
            self.failures.push(format!("{name}: {e:#}"));
            "FAILED".to_owned()
        });
        let took = began.elapsed().as_secs_f64();
        sleep(SETTLED).await;
        let drops = Drops::read(self.lab).await?.since(&before);
        let (invalid, other) = (drops.only(is_invalid), drops.only(|reason| !is_invalid(reason)));
        eprintln!("{name}: {figures}; {took:.1} s; INVALID: {invalid}; other drops: {other}");
        Ok(invalid)
    }
}

/// A client's port with which both directions of a connection go through different members. Another for each of the
/// server's ports.
async fn asymmetric_port(lab: &Lab, family: usize, protocol: u8, dport: u16) -> Result<u16> {
    let (src, dst) = (Side::Client.hosts()[family], Side::Server.hosts()[family]);
    let first = 20_000 + dport;
    for sport in first..first + 50 {
        let [there, back] = lab.path(Flow { protocol, src, sport, dst, dport }).await?;
        if there != back {
            return Ok(sport);
        }
    }
    None.context("no connection is asymmetric")
}
