//! A SYN flood with forged sources against a port that the policy allows.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Result, ensure};
use palisade_lab::clock;
use palisade_lab::drops::Drops;
use palisade_lab::frames::{self, Wire};
use palisade_lab::guard::require_lab;
use palisade_lab::packets::{IPV4, ethernet, syn, udp_packet};
use palisade_lab::{Lab, Side};
use palisade_tests::load::Load;
use palisade_tests::members;
use palisade_tests::scenario::share;

use super::{BINARY, POLICY, SERVER};

/// SYNs in all, and how many a second at most.
const SYNS: usize = 500_000;
const SYN_RATE: usize = 50_000;
/// New legitimate connections a second.
const NEW: usize = 100;
/// The fewest of these with which the test says something.
const ENOUGH: u64 = 500;
/// All half-open sessions that there may be, and what goes with them (docs/limits.md).
const MEMORY: f64 = 128e6;

#[tokio::test(flavor = "multi_thread")]
async fn syn_flood_adds_nothing_to_the_log_and_keeps_nobody_out() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = flood(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn flood(lab: &mut Lab) -> Result<()> {
    let mut load = Load::start(lab, SERVER, share(100)).await?;
    load.open(NEW);
    load.open_more(3 * NEW as u64).await?;
    let (commands, memory) = (commands(lab).await?, memory(lab).await?);
    let drops = Drops::read(lab).await?;
    let before = load.begun();
    let from = clock::now();
    let mut senders = Vec::new();
    for number in 1..=3 {
        let wire = Wire::open(lab.client(), &format!("fw{number}")).await?;
        let to = frames::mac(lab.member(number).netns(), Side::Client.interface()).await?;
        let sender = move || pour(wire, to, number as u32, share(SYN_RATE) as u32 / 3, share(SYNS) as u32 / 3);
        senders.push(std::thread::spawn(sender));
    }
    // The SYNs that the links took: a SYN that does not fit is sent again.
    let mut poured = 0;
    for sender in senders {
        let sender = tokio::task::spawn_blocking(move || sender.join());
        poured += sender.await?.map_err(|_| anyhow::anyhow!("a sender died"))?;
    }
    let (begun, took) = (load.begun() - before, clock::now().since(from));
    // A connection that the flood kept out stays out for longer than the flood lasted, unless its SYN is sent again.
    load.settle(clock::now()).await?;
    let until = clock::now();
    let grown = self::memory(lab).await? - memory;
    let drops = Drops::read(lab).await?.since(&drops);
    let all = load.begun() - before;
    load.finish().await?;
    let committed = self::commands(lab).await? - commands;
    let opened = load.answers(from, until).len() as u64;
    eprintln!(
        "{poured} SYNs in {took:?}; {begun} legitimate connections were begun meanwhile, {all} until these had ended; {opened} were \
         opened and answered; {committed} commands were committed; the most that a member grew by: {:.1} MB",
        grown / 1e6,
    );
    eprintln!("dropped meanwhile: {drops}");
    eprintln!("{}", load.summary());
    ensure!(poured as usize >= share(SYNS) * 9 / 10, "only {poured} SYNs were sent");
    ensure!(begun >= ENOUGH.min(NEW as u64 * 5), "only {begun} legitimate connections were tried");
    // Each legitimate connection is established and closed, and may expire: three commands, and some of before and after.
    let bound = 3.0 * (all as f64 + 3.0 * NEW as f64 + load.begun() as f64 - (before + all) as f64);
    ensure!(committed <= bound, "{committed} commands were committed for {all} connections");
    // One in a hundred may give up: among half-open sessions that are all forged, a SYN finds no place each time.
    ensure!(opened as f64 >= 0.99 * all as f64 - 2.0, "{opened} of {all} legitimate connections");
    ensure!(grown <= MEMORY, "a member grew by {grown} bytes");
    Ok(())
}

/// Sends this many SYNs, each from another source, at this pace or slower.
fn pour(mut wire: Wire, to: pnet::datalink::MacAddr, member: u32, per_second: u32, count: u32) -> u32 {
    let server = SocketAddrV4::new([10, 20, 0, 1].into(), 7007);
    let begun = clock::now();
    let (mut tried, mut sent, mut state) = (0_u32, 0_u32, member);
    // Where the link is always full, half of what was tried did not fit.
    while sent < count && tried < 4 * count {
        let due = (clock::now().since(begun).as_secs_f64() * f64::from(per_second)) as u32;
        for _ in tried..due {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let [a, b, c, d] = state.to_be_bytes();
            // Of the client's side, or antispoof would have an easy day; not an address that answers with RST.
            let from = SocketAddrV4::new([10, 10, 0, 2 + a % 250].into(), u16::from_be_bytes([b, c]).max(1024));
            // The link may be full for a moment.
            let done = wire.send(&ethernet(to, wire.mac(), IPV4, &syn(from, server, state ^ u32::from(d))));
            sent += u32::from(done.is_ok());
        }
        tried = tried.max(due);
        std::thread::sleep(Duration::from_millis(1));
    }
    sent
}

/// Commands that a member has applied: the most of all.
async fn commands(lab: &Lab) -> Result<f64> {
    let mut most: f64 = 0.0;
    for member in lab.members() {
        most = most.max(member.metric("palisade_applied_commands_total", &[]).await?);
    }
    Ok(most)
}

/// Resident memory in bytes: the most of all members.
async fn memory(lab: &Lab) -> Result<f64> {
    let mut most: f64 = 0.0;
    for member in lab.members() {
        most = most.max(member.metric("palisade_process_resident_memory_bytes", &[]).await?);
    }
    Ok(most)
}

/// How long the links are flooded with more than the members take in.
const BEYOND: Duration = Duration::from_secs(10);

/// Each member gets more packets than it can judge, if the senders get as far: twice as many. Heartbeats, votes and lease renewals are in time
/// nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn flood_beyond_the_capacity_changes_no_leader() {
    let Some(_turn) = require_lab(&[]) else { return };
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if processors < 4 && std::env::var_os("PALISADE_LAB_SMALL").is_none() {
        eprintln!(
            "SKIPPED: flood_beyond_the_capacity_changes_no_leader: three members and three senders need four processors, and \
             here are {processors} (PALISADE_LAB_SMALL=1 tries it all the same)"
        );
        return;
    }
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = beyond(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn beyond(lab: &mut Lab) -> Result<()> {
    lab.wait_leader().await?;
    let before = states(lab).await?;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut senders = Vec::new();
    for number in 1..=3 {
        let wire = Wire::open(lab.client(), &format!("fw{number}")).await?;
        let to = frames::mac(lab.member(number).netns(), Side::Client.interface()).await?;
        let stop = stop.clone();
        senders.push(std::thread::spawn(move || overflow(wire, to, &stop)));
    }
    tokio::time::sleep(BEYOND).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for sender in senders {
        tokio::task::spawn_blocking(move || sender.join()).await?.map_err(|_| anyhow::anyhow!("a sender died"))?;
    }
    let after = states(lab).await?;
    let mut enough = true;
    for (number, (before, after)) in before.iter().zip(&after).enumerate() {
        let (judged, lost) = (after.judged - before.judged, after.lost - before.lost);
        let factor = (judged + lost) / judged.max(1.0);
        eprintln!("fw{}: {judged} frames were judged, {lost} found no room: {factor:.1} of its capacity", number + 1);
        enough &= lost > 0.0;
    }
    let changes = |states: &[State]| states.iter().map(|state| state.leader_changes).collect::<Vec<_>>();
    eprintln!("leader changes: {:?} before, {:?} after", changes(&before), changes(&after));
    if !enough {
        eprintln!(
            "SKIPPED: flood_beyond_the_capacity_changes_no_leader: the senders do not reach twice the capacity here"
        );
        return Ok(());
    }
    ensure!(changes(&before) == changes(&after), "the flood changed the leader");
    Ok(())
}

/// What a member has counted.
struct State {
    judged: f64,
    lost: f64,
    leader_changes: f64,
}

async fn states(lab: &Lab) -> Result<Vec<State>> {
    let mut states = Vec::new();
    for member in lab.members() {
        states.push(State {
            judged: member.metric("palisade_captured_frames_total", &[]).await?,
            lost: member.metric("palisade_capture_dropped_total", &[]).await?,
            leader_changes: member.metric("palisade_raft_leader_changes_total", &[]).await?,
        });
    }
    Ok(states)
}

/// Sends datagrams that no rule allows, as fast as the link takes them.
fn overflow(mut wire: Wire, to: pnet::datalink::MacAddr, stop: &std::sync::atomic::AtomicBool) {
    let server = SocketAddrV4::new([10, 20, 0, 1].into(), 9);
    let frames: Vec<Vec<u8>> = (0..=u8::MAX)
        .map(|n| {
            let from = SocketAddrV4::new([10, 10, 0, 2 + n % 250].into(), 1024 + u16::from(n));
            ethernet(to, wire.mac(), IPV4, &udp_packet(from, server, &[0; 18]))
        })
        .collect();
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        for frame in &frames {
            // A link that is full for a moment loses it, as it should.
            let _ = wire.send(frame);
        }
    }
}
