//! A SYN flood with forged sources against a port that the policy allows.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Result, ensure};
use palisade_lab::drops::Drops;
use palisade_lab::frames::{self, Wire};
use palisade_lab::guard::require_lab;
use palisade_lab::packets::{IPV4, ethernet, syn};
use palisade_lab::{Lab, Side};
use palisade_node::clock;
use palisade_tests::members;

use super::load::Load;
use super::{BINARY, POLICY, seconds, share};

const SYNS: usize = 50_000;
const SECONDS: u32 = 10;
const NEW: usize = 100;
/// All half-open sessions that there may be, and what goes with them (docs/limits.md).
const MEMORY: f64 = 128e6;

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_no_log_entry_and_keeps_nobody_out() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = flood(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn flood(lab: &mut Lab) -> Result<()> {
    let mut load = Load::start(lab, share(100)).await?;
    load.open(NEW);
    seconds(3.0).await;
    let (commands, memory) = (commands(lab).await?, memory(lab).await?);
    let drops = Drops::read(lab).await?;
    let from = clock::now();
    let per_second = share(SYNS);
    let mut senders = Vec::new();
    for number in 1..=3 {
        let wire = Wire::open(lab.client(), &format!("fw{number}")).await?;
        let to = frames::mac(lab.member(number).netns(), Side::Client.interface()).await?;
        let sender = move || pour(wire, to, number as u32, per_second as u32 / 3);
        senders.push(std::thread::spawn(sender));
    }
    let mut poured = 0;
    for sender in senders {
        let sender = tokio::task::spawn_blocking(move || sender.join());
        poured += sender.await?.map_err(|_| anyhow::anyhow!("a sender died"))?;
    }
    let until = clock::now();
    let grown = self::memory(lab).await? - memory;
    let drops = Drops::read(lab).await?.since(&drops);
    load.finish().await?;
    let committed = self::commands(lab).await? - commands;
    let (mut setups, took) = (load.setups(from, until), until.since(from));
    let wanted = (NEW as f64 * took.as_secs_f64()).floor();
    let opened = load.answers(from, until).len() as f64;
    eprintln!(
        "{poured} SYNs in {took:?}; {opened} of {wanted:.0} legitimate connections were opened and answered, setup p50 {:?}, p99 {:?}, \
         longest {:?}; {committed} commands were committed; the most that a member grew by: {:.1} MB",
        super::percentile(&mut setups, 50),
        super::percentile(&mut setups, 99),
        super::percentile(&mut setups, 100),
        grown / 1e6,
    );
    eprintln!("dropped meanwhile: {drops}");
    eprintln!("{}", load.summary());
    ensure!(
        f64::from(poured) >= 0.9 * per_second as f64 * took.as_secs_f64().max(f64::from(SECONDS)),
        "only {poured} SYNs were sent"
    );
    // Each legitimate connection is established and closed, and may expire: three commands, and some of before.
    ensure!(
        committed <= 3.0 * (wanted + 3.0 * NEW as f64),
        "{committed} commands were committed for {wanted} connections"
    );
    ensure!(opened >= 0.99 * wanted - 2.0, "{opened} of {wanted} legitimate connections");
    ensure!(grown <= MEMORY, "a member grew by {grown} bytes");
    Ok(())
}

/// Sends SYNs at a steady pace, each from another source.
fn pour(mut wire: Wire, to: pnet::datalink::MacAddr, member: u32, per_second: u32) -> u32 {
    let server = SocketAddrV4::new([10, 20, 0, 1].into(), 7007);
    let begun = clock::now();
    let (mut tried, mut sent, mut state) = (0_u32, 0_u32, member);
    while clock::now().since(begun) < Duration::from_secs(u64::from(SECONDS)) {
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
        tried = due;
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
