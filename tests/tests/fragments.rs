//! Datagrams in fragments that go through different members, in any order: none is lost, and nothing else gets through.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use palisade_engine::parse::build;
use palisade_engine::{Protocol, Tuple};
use palisade_lab::frames::{self, Wire};
use palisade_lab::guard::require_lab;
use palisade_lab::packets::{self, ethernet};
use palisade_lab::program;
use palisade_lab::{Lab, SIDES, Side, WAIT, wait_until};
use palisade_tests::overload::lossless;
use palisade_tests::{OPEN_POLICY, members};
use pnet::datalink::MacAddr;
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

const MEMBERS: usize = 3;
const PORT: u16 = 7007;
/// Six fragments on links of 1500 bytes.
const LENGTH: usize = 8000;
/// Long after the last hold has ended.
const LOST_AFTER: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn fragments_pass_in_any_order_and_through_any_member() {
    let Some(_turn) = require_lab(&["nft"]) else { return };
    let mut lab = Lab::with_cluster(members(MEMBERS, BINARY), OPEN_POLICY).await.unwrap();
    let result = match all(&lab).await {
        Err(error) => Err(error.context(told(&lab).await)),
        done => done,
    };
    lab.or_keep(result).unwrap();
}

async fn all(lab: &Lab) -> Result<()> {
    for side in SIDES {
        // A kernel gives up a datagram once 64 fragments of others came between its own (ip-sysctl: ipfrag_max_dist). Held
        // fragments do, with so many sessions between two hosts, and no such loss is to be counted here.
        lab.host(side).sysctl("net/ipv4/ipfrag_max_dist", "0").await?;
    }
    for host in Side::Server.hosts() {
        let socket = lab.server().run(UdpSocket::bind(SocketAddr::new(host, PORT))).await??;
        lab.server().spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&buffer[..length], from).await;
            }
        });
    }
    let mut senders = Vec::new();
    for number in 1..=MEMBERS {
        let wire = Wire::open(lab.client(), &format!("fw{number}")).await?;
        senders.push((wire, frames::mac(lab.member(number).netns(), Side::Client.interface()).await?));
    }
    for (client, server) in Side::Client.hosts().into_iter().zip(Side::Server.hosts()) {
        reversed(lab, &mut senders, client, server).await.with_context(|| format!("in reverse order to {server}"))?;
        astray(lab, &mut senders, client, server).await.with_context(|| format!("astray to {server}"))?;
    }
    for side in SIDES {
        split(lab, side).await?;
    }
    for (client, server) in Side::Client.hosts().into_iter().zip(Side::Server.hosts()) {
        echoed(lab, client, server).await.with_context(|| format!("by the kernel to {server}"))?;
    }
    Ok(())
}

/// What may say why one was lost: what members dropped, what kernels could not put together, by host.
async fn told(lab: &Lab) -> String {
    let mut text = String::new();
    for member in lab.members() {
        let (_, all) = member.http("/metrics").await.unwrap_or_default();
        let drops = all.lines().filter(|line| line.contains("verdict=\"drop\"") && !line.ends_with(" 0"));
        let _ = writeln!(text, "{}: {}", member.name(), drops.collect::<Vec<_>>().join(", "));
    }
    for side in SIDES {
        for file in ["snmp", "snmp6"] {
            let all = lab.host(side).proc_net(file).await.unwrap_or_default();
            let some = |line: &&str| ["Ip:", "Udp:", "Ip6Reasm", "Udp6In"].iter().any(|name| line.starts_with(name));
            let _ =
                writeln!(text, "{} {file}:\n{}", side.name(), all.lines().filter(some).collect::<Vec<_>>().join("\n"));
        }
    }
    text
}

/// What all members together have counted.
async fn counted(lab: &Lab, name: &str, labels: &[&str]) -> Result<f64> {
    let mut sum = 0.0;
    for member in lab.members() {
        sum += member.metric(name, labels).await?;
    }
    Ok(sum)
}

async fn held(lab: &Lab) -> Result<f64> {
    counted(lab, "palisade_held_packets_total", &[]).await
}

async fn dropped(lab: &Lab, reason: &str) -> Result<f64> {
    counted(lab, "palisade_packets_total", &["verdict=\"drop\"", &format!("reason=\"{reason}\"")]).await
}

async fn bound(lab: &Lab, client: IpAddr) -> Result<UdpSocket> {
    Ok(lab.client().run(UdpSocket::bind(SocketAddr::new(client, 0))).await??)
}

/// A datagram's payload: its number, and bytes that differ from those of others at every place.
fn payload(number: u32) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    #[allow(clippy::cast_possible_truncation, reason = "any bytes will do")]
    bytes.extend((4..LENGTH).map(|at| (at as u32 * 7 + number) as u8));
    bytes
}

/// The fragments of a datagram from the client to the server.
fn fragments(from: SocketAddr, to: SocketAddr, id: u32, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (src, dst) = (from.ip().into(), to.ip().into());
    let tuple = Tuple { src, dst, src_port: from.port(), dst_port: to.port(), protocol: Protocol::UDP };
    let packet = build::udp(&tuple, payload).context("too long")?;
    Ok(packets::fragments(&packet, id, 1448))
}

fn send((wire, to): &mut (Wire, MacAddr), packet: &[u8]) -> Result<()> {
    let ether_type = if packet[0] >> 4 == 4 { packets::IPV4 } else { packets::IPV6 };
    let frame = ethernet(*to, wire.mac(), ether_type, packet);
    wire.send(&frame)
}

/// The last fragment first, and each by another member than the one before.
async fn reversed(lab: &Lab, senders: &mut [(Wire, MacAddr)], client: IpAddr, server: IpAddr) -> Result<()> {
    const COUNT: u32 = 300;
    let socket = bound(lab, client).await?;
    let (from, to) = (socket.local_addr()?, SocketAddr::new(server, PORT));
    let before = held(lab).await?;
    let mut buffer = vec![0; 1 << 16];
    let mut id = 0x5000;
    lossless(lab, async || {
        let mut lost = 0;
        for number in 0..COUNT {
            let expected = payload(number);
            id += 1;
            for (at, fragment) in fragments(from, to, id, &expected)?.iter().enumerate().rev() {
                send(&mut senders[(at + number as usize) % MEMBERS], fragment)?;
            }
            match timeout(LOST_AFTER, socket.recv(&mut buffer)).await {
                Ok(length) => ensure!(buffer[..length?] == expected, "datagram {number} came back changed"),
                Err(_) => lost += 1,
            }
        }
        Ok(lost)
    })
    .await?;
    let now_held = held(lab).await? - before;
    eprintln!("{server}: {COUNT} of {COUNT} datagrams in reverse order came back, {now_held} packets were held");
    ensure!(now_held >= f64::from(COUNT), "only {now_held} packets were held: the fragments were not out of order");
    Ok(())
}

/// Fragments that belong to nothing, or overlap: none reaches the server.
async fn astray(lab: &Lab, senders: &mut [(Wire, MacAddr)], client: IpAddr, server: IpAddr) -> Result<()> {
    const COUNT: u32 = 50;
    let socket = bound(lab, client).await?;
    let (from, to) = (socket.local_addr()?, SocketAddr::new(server, PORT));
    let arrived = || async { lab.server().proc_net(if server.is_ipv4() { "snmp" } else { "snmp6" }).await };
    let requested = |text: &str| reassemblies(text, server.is_ipv4());
    let (before, expired) = (requested(&arrived().await?)?, dropped(lab, "hold_expired").await?);
    for number in 0..COUNT {
        let parts = fragments(from, to, 0x7000 + number, &payload(number))?;
        for (at, fragment) in parts.iter().enumerate().skip(1) {
            send(&mut senders[at % MEMBERS], fragment)?;
        }
        sleep(Duration::from_millis(2)).await;
    }
    wait_until("fragments to be held in vain", async || Ok(dropped(lab, "hold_expired").await? > expired)).await?;
    sleep(Duration::from_millis(500)).await;
    ensure!(requested(&arrived().await?)? == before, "fragments without a first one reached the server");

    // First by one member, what overlaps it by the others.
    let overlaps = async || anyhow::Ok(dropped(lab, "fragment").await? + dropped(lab, "hold_expired").await?);
    let overlapping = overlaps().await? + 2.0;
    let parts = fragments(from, to, 0x9000, &payload(0))?;
    let wider = fragments(from, to, 0x9000, &payload(1))?;
    send(&mut senders[0], &parts[0])?;
    sleep(Duration::from_millis(100)).await;
    // The same place 8 bytes earlier: one word of the offset less.
    let mut early = wider[1].clone();
    let at = if server.is_ipv4() { 7 } else { 43 };
    early[at] -= if server.is_ipv4() { 1 } else { 8 };
    if server.is_ipv4() {
        early[10..12].fill(0);
        let sum = pnet::packet::ipv4::Ipv4Packet::new(&early).map_or(0, |p| pnet::packet::ipv4::checksum(&p));
        early[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    send(&mut senders[1], &early)?;
    send(&mut senders[2], &early)?;
    // By a member that is late to learn of the first one they are held, and dropped then.
    wait_until("both overlapping fragments to be dropped", async || Ok(overlaps().await? >= overlapping)).await?;
    ensure!(requested(&arrived().await?)? <= before + 1, "an overlapping fragment reached the server");
    eprintln!("{server}: of {COUNT} datagrams without a first fragment nothing passed; both overlaps were dropped");
    Ok(())
}

/// How many fragments a kernel was asked to put together.
fn reassemblies(text: &str, v4: bool) -> Result<u64> {
    let found = if v4 {
        let mut lines = text.lines().filter(|line| line.starts_with("Ip:")).map(str::split_whitespace);
        let (mut names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
        names.position(|name| name == "ReasmReqds").and_then(|at| values.clone().nth(at))
    } else {
        text.lines().find_map(|line| line.strip_prefix("Ip6ReasmReqds")).map(str::trim)
    };
    found.context("no ReasmReqds")?.parse().context("no number")
}

/// What routers do that balance by ports: of each datagram that leaves by one link, the fragments that have none, all but the
/// first, leave by the next one.
async fn split(lab: &Lab, side: Side) -> Result<()> {
    let host = lab.host(side);
    let mut rules = "table netdev lab {\n".to_owned();
    for number in 1..=MEMBERS {
        let next = number % MEMBERS + 1;
        let mac = frames::mac(lab.member(next).netns(), side.interface()).await?;
        writeln!(rules, "chain fw{number} {{")?;
        writeln!(rules, "  type filter hook egress device \"fw{number}\" priority 0")?;
        for fragment in ["ip frag-off & 0x1fff != 0", "frag frag-off != 0"] {
            // What came here by a rule of another link is not to go on in a circle.
            writeln!(rules, "  {fragment} meta mark != 1 meta mark set 1 ether daddr set {mac} fwd to \"fw{next}\"")?;
        }
        rules.push_str("}\n");
    }
    rules.push_str("}\n");
    let file = lab.dir().join(format!("split-{}.nft", side.name()));
    std::fs::write(&file, rules)?;
    let file = file.to_string_lossy();
    program::run(host, lab.dir(), WAIT, "nft", &["-f", &file]).await.map(drop)
}

/// Large datagrams, fragmented by the kernels of both hosts, many at once and of several sessions.
async fn echoed(lab: &Lab, client: IpAddr, server: IpAddr) -> Result<()> {
    const SESSIONS: u32 = 8;
    const ROUNDS: u32 = 200;
    let to = SocketAddr::new(server, PORT);
    let forwarded = |number: usize| lab.member(number).metric("palisade_packets_total", &["verdict=\"forward\""]);
    let mut before = Vec::new();
    for number in 1..=MEMBERS {
        before.push(forwarded(number).await?);
    }
    let full = dropped(lab, "hold_full").await?;
    lossless(lab, async || {
        let mut all = Vec::new();
        for session in 0..SESSIONS {
            let socket = bound(lab, client).await?;
            socket.connect(to).await?;
            all.push(lab.client().spawn(async move {
                let (mut buffer, mut lost) = (vec![0; 1 << 16], 0);
                for round in 0..ROUNDS {
                    let expected = payload(session * ROUNDS + round);
                    socket.send(&expected).await?;
                    match timeout(LOST_AFTER, socket.recv(&mut buffer)).await {
                        Ok(length) => {
                            ensure!(
                                buffer[..length?] == expected,
                                "session {session}, datagram {round} came back changed"
                            );
                        }
                        Err(_) => lost += 1,
                    }
                }
                Ok(lost)
            }));
        }
        let mut lost = 0;
        for session in all {
            lost += session.await??;
        }
        Ok(lost)
    })
    .await?;
    let mut shares = Vec::new();
    for (number, before) in (1..=MEMBERS).zip(before) {
        shares.push(forwarded(number).await? - before);
    }
    let full = dropped(lab, "hold_full").await? - full;
    eprintln!(
        "{server}: {} of {} datagrams of {LENGTH} bytes came back; forwarded by member: {shares:?}; no room to hold: {full}",
        SESSIONS * ROUNDS,
        SESSIONS * ROUNDS
    );
    // Each has six fragments, there and back.
    let fragments = f64::from(SESSIONS * ROUNDS * 6 * 2);
    ensure!(shares.iter().sum::<f64>() >= fragments, "fewer than {fragments} fragments were forwarded: {shares:?}");
    ensure!(shares.iter().all(|share| *share >= fragments / 50.0), "not all members forwarded: {shares:?}");
    Ok(())
}
