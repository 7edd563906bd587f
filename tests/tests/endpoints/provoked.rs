//! Packets that are INVALID, so that a count of none means something.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use palisade_engine::Reason;
use palisade_lab::frames::{self, Wire};
use palisade_lab::packets::{IPV4, ethernet, ipv4_packet, tcp_packet, udp_packet};
use palisade_lab::program;
use palisade_lab::{Lab, Side, Spawn, WAIT};
use pnet::packet::tcp::TcpFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

const PORT: u16 = 7500;

/// What is counted of what is sent here, and nothing besides.
pub(crate) const EXPECTED: [(Reason, u64); 6] = [
    (Reason::IcmpUnrelated, 3),
    (Reason::TcpRst, 3),
    (Reason::TcpWindow, 3),
    (Reason::TcpFlags, 3),
    (Reason::BadChecksum, 3),
    (Reason::Truncated, 3),
];

/// Longer than a forgery is held, while the others are asked.
const APART: Duration = Duration::from_millis(300);

/// As far away from what is sent as can be.
const FAR: u32 = 1 << 30;

/// Sends each to every member, about a connection that goes on as if nothing had been.
pub(crate) async fn all(lab: &Lab) -> Result<String> {
    let to = SocketAddrV4::new(v4(Side::Server)?, PORT);
    let listener = lab.server().run(TcpListener::bind(SocketAddr::V4(to))).await??;
    let accept = lab.server().spawn(async move { listener.accept().await });
    let handshake = Handshake::watch(lab).await?;
    let mut client = lab.client().run(TcpStream::connect(SocketAddr::V4(to))).await??;
    let mut server = accept.await??.0;
    let SocketAddr::V4(from) = client.local_addr()? else { bail!("not IPv4") };
    exchange(&mut client, &mut server).await?;
    let [client_isn, server_isn] = handshake.isns().await?;

    let mut wires = Vec::new();
    for member in lab.members() {
        let mac = frames::mac(member.netns(), Side::Client.interface()).await?;
        wires.push((Wire::open(lab.client(), member.name()).await?, mac));
    }
    let mut bad_sum = udp_packet(from, to, b"text");
    if let Some(last) = bad_sum.last_mut() {
        *last ^= 1;
    }
    let forged = |flags| tcp_packet(from, to, client_isn.wrapping_add(FAR), flags);
    for packet in [
        // At once: two seconds after what it saw last, a member believes more (`Track::sent`).
        icmp_error(from, to, &tcp_packet(to, from, server_isn.wrapping_add(FAR), TcpFlags::ACK)),
        forged(TcpFlags::RST),
        forged(TcpFlags::ACK),
        forged(0),
        bad_sum,
        udp_packet(from, to, b"text")[..27].to_vec(),
    ] {
        for (wire, mac) in &mut wires {
            wire.send(&ethernet(*mac, wire.mac(), IPV4, &packet))?;
        }
        sleep(APART).await;
    }
    exchange(&mut client, &mut server).await?;
    let sent: u64 = EXPECTED.iter().map(|(_, count)| count).sum();
    Ok(format!("{sent} packets sent, their connection unharmed"))
}

/// What is said of a handshake on the wire.
struct Handshake {
    tcpdump: palisade_lab::Process,
}

impl Handshake {
    async fn watch(lab: &Lab) -> Result<Handshake> {
        let filter = format!("tcp port {PORT} and tcp[tcpflags] & tcp-syn != 0");
        let spawn = Spawn::new(program::path("tcpdump")?, lab.dir().join("tcpdump")).args([
            "-i",
            "any",
            "-n",
            "-S",
            "-l",
            "--immediate-mode",
            "-c",
            "2",
            &filter,
        ]);
        let handshake = Handshake { tcpdump: lab.client().start(spawn).await? };
        handshake.wait(|said| said.contains("listening on").then_some(())).await?;
        Ok(handshake)
    }

    /// The initial sequence numbers, the client's first: of the SYN and the SYN-ACK.
    async fn isns(&self) -> Result<[u32; 2]> {
        let isn = |said: &str, flags: &str| {
            let line = said.lines().find(|l| l.contains(&format!("Flags [{flags}], seq ")))?;
            line.split_once("], seq ")?.1.split(',').next()?.parse().ok()
        };
        self.wait(|said| Some([isn(said, "S").or(isn(said, "SEW"))?, isn(said, "S.").or(isn(said, "S.E"))?])).await
    }

    async fn wait<T>(&self, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let found = async {
            loop {
                match find(&self.tcpdump.output()) {
                    Some(found) => return found,
                    None => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        timeout(WAIT, found).await.with_context(|| format!("tcpdump says:\n{}", self.tcpdump.output()))
    }
}

/// "Port unreachable" (RFC 792), about a packet.
fn icmp_error(from: SocketAddrV4, to: SocketAddrV4, about: &[u8]) -> Vec<u8> {
    let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(about);
    let sum = pnet::util::checksum(&message, 1);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4_packet(*from.ip(), *to.ip(), 1, &message)
}

fn v4(side: Side) -> Result<Ipv4Addr> {
    match side.v4() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => bail!("not IPv4"),
    }
}

async fn exchange(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    client.write_all(b"x").await?;
    timeout(WAIT, server.read_exact(&mut byte)).await.context("the connection is dead")??;
    server.write_all(b"x").await?;
    timeout(WAIT, client.read_exact(&mut byte)).await.context("the connection is dead")??;
    Ok(())
}
