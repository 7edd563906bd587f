//! One member is partitioned from the two others for ten seconds, under load.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use palisade_lab::clock;
use palisade_lab::frames::{self, Wire};
use palisade_lab::guard::require_lab;
use palisade_lab::packets::{IPV4, ethernet, udp_packet};
use palisade_lab::{Lab, Side};
use palisade_lab::{WAIT, wait_until};
use palisade_tests::load::Load;
use palisade_tests::members;
use palisade_tests::scenario::{rerouted, share, without};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::{BINARY, POLICY, SERVER};

const STANDING: usize = 1000;
const NEW: usize = 100;
const CUT: Duration = Duration::from_secs(10);
/// Between two datagrams that would open a session at the member that is cut off.
const DATAGRAM_INTERVAL: Duration = Duration::from_millis(20);
/// As many of them at least, sent after the lease has ended.
const ENOUGH: usize = 100;
/// A lease lasts a second from the moment at which it was asked for, which was before the cut.
const LEASE: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread")]
async fn partition_minority_admits_nothing_and_majority_loses_nothing() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = cut(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn cut(lab: &mut Lab) -> Result<()> {
    let mut load = Load::start(lab, SERVER, share(STANDING)).await?;
    load.open(NEW);
    load.open_more(NEW as u64).await?;
    load.fit(lab).await?;
    // The leader: the harder case.
    let alone = lab.wait_leader().await?;
    let port = format!("fw{alone}");
    let server = lab.server().run(UdpSocket::bind("10.20.0.1:7007")).await??;
    let mut opener = Opener::new(lab, alone).await?;
    // A single one may be late, and is then dropped, not held for ever.
    let opens = async || Ok(opener.send(&server).await? > 0);
    wait_until("a datagram to pass by the member, or the test could not fail", opens).await?;

    let cut = clock::now();
    lab.fabric().netlink().down(&port).await?;
    // Nobody asks for its lease here: whether it is ready is asked below, while the routers have it out.
    rerouted(lab, alone, cut).await?;
    let out = clock::now().since(cut);
    let (mut early, mut late) = (Vec::new(), Vec::new());
    while clock::now().since(cut) < CUT || late.len() < ENOUGH {
        let ended = clock::now().since(cut) > LEASE;
        opener.send(&server).await?;
        if ended {
            late.push(opener.port)
        } else {
            early.push(opener.port)
        }
        if ended {
            let (status, _) = lab.member(alone).http("/readyz").await?;
            ensure!(status == 503, "/readyz of the member that is cut off says {status}");
        }
    }
    // Half of the established connections go by it again, though it is cut off: it passes what it knew.
    let leader = leader_of_the_others(lab, alone).await?;
    lab.fabric().netlink().up(&port).await?;
    let healed = clock::now();
    lab.member_mut(alone).wait_ready(WAIT).await?;
    lab.wait_live(&[1, 2, 3]).await?;
    let ready = clock::now().since(healed);
    let agreed = same_state(lab, healed).await?;
    load.open_more(NEW as u64).await?;
    load.finish().await?;
    // Nothing of what was sent then was held until the member was well again, either.
    opener.receive(&server, DATAGRAM_INTERVAL).await?;
    let admitted: Vec<&u16> = late.iter().filter(|port| opener.arrived.contains(port)).collect();
    eprintln!(
        "{port} was cut off for {CUT:?}; the routers had it out after {out:?}, {leader} led the others; of {} datagrams that would \
         open a session there after the end of the lease {} passed ({} before it); ready again after {ready:?}, the same state after \
         {agreed:?}",
        late.len(),
        admitted.len(),
        early.len(),
    );
    eprintln!("{}", load.summary());
    load.is_whole()?;
    ensure!(admitted.is_empty(), "the minority admitted {} of {}", admitted.len(), late.len());
    Ok(())
}

async fn leader_of_the_others(lab: &Lab, alone: usize) -> Result<String> {
    for number in without(alone) {
        let status = lab.member(number).status().await?;
        let id = status.pointer("/cluster/leader").cloned().context("no leader")?;
        let members = status.pointer("/cluster/members").and_then(|m| m.as_array().cloned()).unwrap_or_default();
        let name =
            members.iter().find(|m| m.get("id") == Some(&id)).and_then(|m| m.get("name")?.as_str().map(str::to_owned));
        if let Some(name) = name.filter(|name| *name != lab.member(alone).name()) {
            return Ok(name);
        }
    }
    anyhow::bail!("the majority has no leader")
}

/// Waits until the members' states were found equal at an entry that came after `since`; how long that took.
async fn same_state(lab: &Lab, since: palisade_engine::Time) -> Result<Duration> {
    let leader = lab.wait_leader().await?;
    let healed_at = lab.member(leader).metric("palisade_raft_applied_index", &[]).await?;
    wait_until("the members to come to the same state", async || {
        // Leadership may be transferred meanwhile.
        let leader = lab.member(lab.wait_leader().await?);
        Ok(leader.metric("palisade_audited_index", &[]).await? > healed_at)
    })
    .await?;
    Ok(clock::now().since(since))
}

/// Opens a session of its own with each datagram, by the link of one member.
struct Opener {
    wire: Wire,
    to: pnet::datalink::MacAddr,
    /// The source port of the last datagram.
    port: u16,
    /// The source ports of those that arrived.
    arrived: BTreeSet<u16>,
}

impl Opener {
    async fn new(lab: &Lab, member: usize) -> Result<Opener> {
        let wire = Wire::open(lab.client(), &format!("fw{member}")).await?;
        let to = frames::mac(lab.member(member).netns(), Side::Client.interface()).await?;
        Ok(Opener { wire, to, port: 20_000, arrived: BTreeSet::new() })
    }

    /// Sends one more datagram, and takes in for a moment what arrives; how many have so far.
    async fn send(&mut self, server: &UdpSocket) -> Result<usize> {
        self.port += 1;
        let from = SocketAddrV4::new([10, 10, 0, 1].into(), self.port);
        let packet = udp_packet(from, SocketAddrV4::new([10, 20, 0, 1].into(), 7007), b"new");
        self.wire.send(&ethernet(self.to, self.wire.mac(), IPV4, &packet))?;
        self.receive(server, DATAGRAM_INTERVAL).await?;
        Ok(self.arrived.len())
    }

    async fn receive(&mut self, server: &UdpSocket, time: Duration) -> Result<()> {
        let mut buffer = [0; 16];
        let end = clock::now() + time;
        loop {
            let left = end.since(clock::now());
            match timeout(left.max(Duration::from_millis(1)), server.recv_from(&mut buffer)).await {
                Ok(received) => drop(self.arrived.insert(received?.1.port())),
                Err(_) => return Ok(()),
            }
        }
    }
}
