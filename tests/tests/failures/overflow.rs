//! More packets than the members can judge, at all of them: the leader stays.
//!
//! ```text
//!  sender ── f1 ══ c1 ──> copied by the client's kernel (`dup`) ──> fw1 ══ data interface of the member ──> ring ──> worker
//! ```
//!
//! The senders share the processors with the members. So that they can offer more than the members take, the kernel makes most of
//! the frames: a copy costs less than what a worker spends on it.

use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use palisade_lab::frames::{self, Wire};
use palisade_lab::guard::{require_lab, skip};
use palisade_lab::packets::{IPV4, ethernet, udp_packet};
use palisade_lab::{Lab, Side, WAIT, program};
use palisade_tests::members;
use pnet::datalink::MacAddr;

use super::{BINARY, POLICY};

/// Copies that the kernel makes of a frame.
const COPIES: usize = 32;
/// How long the members are flooded.
const FLOOD: Duration = Duration::from_secs(10);
/// Of the frames that come to a member, the share that it takes at the most: more than its capacity. How much more depends on
/// the processors: twice in an optimized build on two of them.
const MAX_TAKEN: f64 = 0.8;
/// The share of the processors' time from which on other programs excuse what timers missed.
const OTHERS: f64 = 0.1;
/// How often it is tried where they do.
const ATTEMPTS: usize = 3;

/// Heartbeats, votes and lease renewals are in time while every member gets far more packets than it can judge.
#[tokio::test(flavor = "multi_thread")]
async fn flood_beyond_the_capacity_changes_no_leader() {
    let Some(_turn) = require_lab(&["ip", "nft"]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = beyond(&lab).await;
    lab.or_keep(result).unwrap();
}

async fn beyond(lab: &Lab) -> Result<()> {
    for number in 1..=3 {
        if let Err(error) = copier(lab, number).await {
            // Without it the senders do not get as far.
            let why = format!("nftables here does not copy frames (CONFIG_NFT_DUP_NETDEV): {error:#}");
            skip::<()>(" flood_beyond_the_capacity_changes_no_leader", &why);
            return Ok(());
        }
    }
    for _ in 0..ATTEMPTS {
        lab.wait_leader().await?;
        let (before, ticks) = (states(lab).await?, Ticks::read()?);
        flood(lab).await?;
        let others = Ticks::read()?.others_since(&ticks);
        let after = states(lab).await?;
        for (number, (before, after)) in before.iter().zip(&after).enumerate() {
            let (taken, lost) = (after.taken - before.taken, after.lost - before.lost);
            let factor = (taken + lost) / taken;
            eprintln!(
                "fw{}: {taken} frames were taken, {lost} found no room: {factor:.1} times its capacity",
                number + 1
            );
            ensure!(taken > 0.0 && taken <= MAX_TAKEN * (taken + lost), "fw{} is not flooded", number + 1);
        }
        let changes = |states: &[State]| states.iter().map(|state| state.leader_changes).collect::<Vec<_>>();
        let (before, after) = (changes(&before), changes(&after));
        eprintln!(
            "leader changes: {before:?} before, {after:?} after; others had {:.0} % of the processors",
            others * 100.0
        );
        if before == after {
            return Ok(());
        }
        ensure!(others >= OTHERS, "the flood changed the leader");
    }
    eprintln!("this machine is too busy with other programs to say more");
    Ok(())
}

/// Makes the interfaces `fN` and `cN` in the client's namespace. What is sent by `fN` goes to the member N many times.
async fn copier(lab: &Lab, number: usize) -> Result<()> {
    let run = async |program: &str, args: &str| {
        let args: Vec<&str> = args.split(' ').collect();
        program::run(lab.client(), lab.dir(), WAIT, program, &args).await
    };
    run("ip", &format!("link add f{number} type veth peer name c{number}")).await?;
    // No other frames than ours: the kernel would send some of its own by an interface with IPv6.
    for interface in ["f", "c"] {
        run("ip", &format!("link set {interface}{number} up addrgenmode none")).await?;
    }
    let copies = format!("dup to \"fw{number}\"\n").repeat(COPIES);
    let table = format!(
        "table netdev c{number} {{\n chain copy {{\n type filter hook ingress device \"c{number}\" priority 0\n \
         meta protocol != ip drop\n{}drop\n }}\n}}\n",
        copies
    );
    let file = lab.dir().join(format!("c{number}.nft"));
    std::fs::write(&file, table)?;
    run("nft", &format!("-f {}", file.to_string_lossy())).await.map(drop)
}

/// Floods all members at once.
async fn flood(lab: &Lab) -> Result<()> {
    let stop = Arc::<AtomicBool>::default();
    let mut senders = Vec::new();
    for number in 1..=3 {
        let wire = Wire::open(lab.client(), &format!("f{number}")).await?;
        let to = frames::mac(lab.member(number).netns(), Side::Client.interface()).await?;
        let stop = Arc::clone(&stop);
        senders.push(tokio::task::spawn_blocking(move || send(wire, to, &stop)));
    }
    tokio::time::sleep(FLOOD).await;
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.context("a sender died")?;
    }
    Ok(())
}

/// Sends datagrams that no rule allows, as fast as the link takes them.
fn send(mut wire: Wire, to: MacAddr, stop: &AtomicBool) {
    let server = SocketAddrV4::new([10, 20, 0, 1].into(), 9);
    let frames: Vec<Vec<u8>> = (0..=u8::MAX)
        .map(|n| {
            let from = SocketAddrV4::new([10, 10, 0, 2 + n % 250].into(), 1024 + u16::from(n));
            ethernet(to, wire.mac(), IPV4, &udp_packet(from, server, &[0; 18]))
        })
        .collect();
    while !stop.load(Ordering::Relaxed) {
        for frame in &frames {
            // A link that is full for a moment loses it, as it should.
            let _ = wire.send(frame);
        }
    }
}

/// What a member has counted.
struct State {
    taken: f64,
    lost: f64,
    leader_changes: f64,
}

async fn states(lab: &Lab) -> Result<Vec<State>> {
    let mut states = Vec::new();
    for member in lab.members() {
        states.push(State {
            taken: member.metric("palisade_captured_frames_total", &[]).await?,
            lost: member.metric("palisade_capture_dropped_total", &[]).await?,
            leader_changes: member.metric("palisade_raft_leader_changes_total", &[]).await?,
        });
    }
    Ok(states)
}

/// Ticks of the processors' time until now.
struct Ticks {
    /// Of all processors, idle or not.
    all: f64,
    /// Those that other programs had than the members and this test, and the machine's host.
    others: f64,
}

impl Ticks {
    fn read() -> Result<Ticks> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
        // user, nice, system, idle, iowait, irq, softirq, steal: proc_stat(5).
        let steal = ticks.get(7).with_context(|| format!("/proc/stat: {line}"))?;
        let processes = std::fs::read_dir("/proc")?.flatten().filter_map(|entry| of_others(&entry.path()));
        Ok(Ticks { all: ticks.iter().take(8).sum(), others: steal + processes.sum::<f64>() })
    }

    /// The share that others had.
    fn others_since(&self, before: &Ticks) -> f64 {
        (self.others - before.others).max(0.0) / (self.all - before.all)
    }
}

/// The ticks of a process and of its children that have ended. `None`: it is this one, one of its children or one of the
/// kernel's, or it has ended.
fn of_others(process: &Path) -> Option<f64> {
    const KERNEL: u32 = 2;
    let own = std::process::id();
    let pid: u32 = process.file_name()?.to_str()?.parse().ok()?;
    let text = std::fs::read_to_string(process.join("stat")).ok()?;
    // The name, in brackets, may have blanks: proc_pid_stat(5).
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let parent: u32 = fields.get(1)?.parse().ok()?;
    // utime, stime, cutime, cstime.
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<f64>().ok()).sum();
    (![pid, parent].iter().any(|pid| [KERNEL, own].contains(pid))).then_some(ticks)
}
