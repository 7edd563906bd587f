//! One member is cut off from the two others for ten seconds, under load.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use palisade_lab::frames::{self, Wire};
use palisade_lab::guard::require_lab;
use palisade_lab::packets::{IPV4, ethernet, udp_packet};
use palisade_lab::{Lab, Side};
use palisade_node::clock;
use palisade_tests::members;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::load::Load;
use super::{BINARY, POLICY, READY, moved, seconds, share, without};

const STANDING: usize = 1000;
const NEW: usize = 100;
const CUT: Duration = Duration::from_secs(10);
/// Between two datagrams that would open a session at the member that is cut off.
const EVERY: Duration = Duration::from_millis(20);
/// A member goes on for so long after it was current last (DESIGN section 5), and an election more.
const CURRENT: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_admits_nothing_and_a_majority_loses_nothing() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = cut(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn cut(lab: &mut Lab) -> Result<()> {
    let mut load = Load::start(lab, share(STANDING)).await?;
    load.open(NEW);
    seconds(1.0).await;
    // The leader: the harder case.
    let alone = lab.wait_leader().await?;
    let port = format!("fw{alone}");
    let server = lab.server().run(UdpSocket::bind("10.20.0.1:7007")).await??;
    let mut opener = Opener::new(lab, alone).await?;
    ensure!(
        opener.try_one(&server).await?,
        "a datagram by the link of {port} does not arrive: the test could not fail"
    );

    let cut = clock::now();
    lab.fabric().netlink().down(&port).await?;
    // Nobody asks for its standing here: whether it is ready is asked below, while the routers have it out.
    moved(lab, alone, cut).await?;
    let out = clock::now().since(cut);
    let mut admitted_late = 0;
    let mut tried = 0;
    while clock::now().since(cut) < CUT {
        let late = clock::now().since(cut) > CURRENT;
        let arrived = opener.try_one(&server).await?;
        tried += u32::from(late);
        admitted_late += u32::from(late && arrived);
        if late {
            let (status, _) = lab.member(alone).http("/readyz").await?;
            ensure!(status == 503, "/readyz of the member that is cut off says {status}");
        }
    }
    // Half of the established connections go by it again, though it is cut off: it passes what it knew.
    let leader = leader_of_the_others(lab, alone).await?;
    lab.fabric().netlink().up(&port).await?;
    let healed = clock::now();
    lab.member_mut(alone).wait_ready(READY).await?;
    lab.wait_live(&[1, 2, 3]).await?;
    let ready = clock::now().since(healed);
    let agreed = same_state(lab, healed).await?;
    seconds(1.0).await;
    load.finish().await?;
    eprintln!(
        "{port} was cut off for {CUT:?}; the routers had it out after {out:?}, {leader} led the others; of {tried} datagrams that would \
         open a session there {admitted_late} passed; ready again after {ready:?}, the same state after {agreed:?}"
    );
    eprintln!("{}", load.summary());
    load.is_whole()?;
    ensure!(tried > 100 && admitted_late == 0, "the minority admitted {admitted_late} of {tried}");
    ensure!(agreed <= Duration::from_secs(5), "the same state only after {agreed:?}");
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
    while clock::now().since(since) < Duration::from_secs(15) {
        // The lead may be handed over meanwhile.
        let leader = lab.member(lab.wait_leader().await?);
        if leader.metric("palisade_audited_index", &[]).await? > healed_at {
            return Ok(clock::now().since(since));
        }
        seconds(0.05).await;
    }
    anyhow::bail!("the members do not come to the same state")
}

/// Opens a session of its own with each datagram, by the link of one member.
struct Opener {
    wire: Wire,
    to: pnet::datalink::MacAddr,
    port: u16,
}

impl Opener {
    async fn new(lab: &Lab, member: usize) -> Result<Opener> {
        let wire = Wire::open(lab.client(), &format!("fw{member}")).await?;
        let to = frames::mac(lab.member(member).netns(), Side::Client.interface()).await?;
        Ok(Opener { wire, to, port: 20_000 })
    }

    /// Does it arrive?
    async fn try_one(&mut self, server: &UdpSocket) -> Result<bool> {
        self.port += 1;
        let from = SocketAddrV4::new([10, 10, 0, 1].into(), self.port);
        let packet = udp_packet(from, SocketAddrV4::new([10, 20, 0, 1].into(), 7007), b"new");
        self.wire.send(&ethernet(self.to, self.wire.mac(), IPV4, &packet))?;
        let mut buffer = [0; 16];
        let end = clock::now() + EVERY;
        let mut arrived = false;
        loop {
            let left = end.since(clock::now());
            match timeout(left.max(Duration::from_millis(1)), server.recv_from(&mut buffer)).await {
                Ok(received) => arrived |= received?.1.port() >= 20_000,
                Err(_) => return Ok(arrived),
            }
        }
    }
}
