//! A SYN flood with forged sources against a port that the policy allows.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Result, ensure};
use palisade_lab::clock;
use palisade_lab::drops::Drops;
use palisade_lab::frames::{self, Wire};
use palisade_lab::guard::require_lab;
use palisade_lab::packets::{IPV4, ethernet, syn};
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
