//! The kernel's side: a namespace that routes between two wires and lets conntrack decide.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use palisade_lab::Netns;
use palisade_lab::Spawn;
use palisade_lab::frames::{self, Wire};
use palisade_lab::packets::{IPV4, IPV6, ethernet, udp_packet};
use palisade_lab::program::find_program;
use pnet::datalink::MacAddr;

use crate::packet::{self, Side};

/// New connections from the client's side only, as the policy that Palisade gets. Conntrack's word on each packet is
/// written into its DSCP. An INVALID packet, which has no entry that anything could change, is let out so marked: a
/// firewall's `ct state invalid drop` is what stands here for it. A new one that is denied has to be dropped, or its
/// entry would be confirmed.
const RULES: &str = r#"
table inet differential {
    counter denied { }
    chain raw {
        type filter hook prerouting priority raw
        udp sport 9 udp dport 9 notrack
    }
    chain forward {
        type filter hook forward priority filter; policy drop
        udp sport 9 udp dport 9 ct state untracked accept
        ct state invalid ip dscp set 1 accept
        ct state invalid ip6 dscp set 1 accept
        ct state established ip dscp set 2 accept
        ct state established ip6 dscp set 2 accept
        ct state related ip dscp set 3 accept
        ct state related ip6 dscp set 3 accept
        ct state new iifname client oifname server ip dscp set 4 accept
        ct state new iifname client oifname server ip6 dscp set 4 accept
        counter name denied
    }
}
"#;

/// The marker's port: "discard".
const MARKER: u16 = 9;

/// What conntrack and the rules say of a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum State {
    New,
    Established,
    Related,
    Invalid,
    /// It did not come out: denied by the rules, or by the kernel's IP layer.
    Absent,
}

impl State {
    pub(crate) fn passes(self) -> bool {
        matches!(self, State::New | State::Established | State::Related)
    }
}

/// One routing namespace.
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    router: Netns,
    wires: [Wire; 2],
    macs: [MacAddr; 2],
    serial: u64,
    /// Packets of which nothing came out when they were given; of a datagram, fragments before the last among them.
    pub(crate) absent: u64,
}

impl Kernel {
    /// `loose`: does it pick up connections in the middle (`nf_conntrack_tcp_loose`)?
    pub(crate) async fn new(name: &'static str, loose: bool) -> Result<Kernel> {
        let (router, ends) = (Netns::new("router").await?, Netns::new("ends").await?);
        let disable = "net/ipv6/conf/all/disable_ipv6";
        ends.sysctl(disable, "1").await?;
        for side in [Side::Client, Side::Server] {
            let (here, there) = (side.name(), side.far_name());
            router.netlink().add_veth(here, there, ends.file()).await?;
            for (key, value) in [("send_redirects", "0"), ("rp_filter", "0")] {
                router.sysctl(&format!("net/ipv4/conf/{here}/{key}"), value).await?;
            }
            router.sysctl(&format!("net/ipv6/conf/{here}/accept_dad"), "0").await?;
            router.netlink().up(here).await?;
            ends.netlink().up(there).await?;
        }
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
        ] {
            router.sysctl(key, value).await?;
        }
        let wires =
            [Wire::open(&ends, Side::Client.far_name()).await?, Wire::open(&ends, Side::Server.far_name()).await?];
        let mut macs = [MacAddr::zero(); 2];
        for (side, wire) in [Side::Client, Side::Server].into_iter().zip(&wires) {
            macs[side.index()] = frames::mac(&router, side.name()).await?;
            addresses(&router, side, wire.mac()).await?;
        }
        rules(&router).await?;
        // The kernel's defaults, whatever the machine's are.
        for (key, value) in [("tcp_loose", if loose { "1" } else { "0" }), ("tcp_be_liberal", "0"), ("checksum", "1")] {
            router.sysctl(&format!("net/netfilter/nf_conntrack_{key}"), value).await?;
        }
        let mut kernel = Kernel { name, router, wires, macs, serial: 0, absent: 0 };
        kernel.ready().await?;
        Ok(kernel)
    }

    /// Until the wires carry.
    async fn ready(&mut self) -> Result<()> {
        for _ in 0..100 {
            let there = self.give(Side::Client, &packet::probe(), 1);
            let back = self.give(Side::Server, &packet::probe(), 1);
            if there.is_ok() && back.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the kernel does not route between the wires")
    }

    /// Packets denied by the rules so far, as nft counts them.
    pub(crate) async fn denied(&self) -> Result<u64> {
        let text = nft(&self.router, &["-j", "list", "counters"]).await?;
        let json: serde_json::Value = serde_json::from_str(&text).context("nft's JSON")?;
        let all = json["nftables"].as_array().context("nft's list")?;
        all.iter().find_map(|o| o["counter"]["packets"].as_u64()).context("the counter")
    }

    /// Sends a packet and tells what became of it: the outcome of the first packet with its addresses that comes out.
    /// A marker follows it on the same way, so that nobody waits for what does not come.
    pub(crate) fn give(&mut self, from: Side, bytes: &[u8], tries: usize) -> Result<State> {
        let out = packet::destination(bytes).unwrap_or(from.other());
        self.send(from, bytes)?;
        self.serial += 1;
        let serial = self.serial;
        self.send(from, &marker(from, out, serial))?;
        let addresses = packet::addresses(bytes);
        let mut state = State::Absent;
        for _ in 0..tries {
            while let Some(frame) = self.wires[out.index()].receive()? {
                let Some(came) = frame.get(14..) else { continue };
                if marked(came) == Some(serial) {
                    self.absent += u64::from(state == State::Absent);
                    return Ok(state);
                }
                if state == State::Absent && addresses.is_some() && packet::addresses(came) == addresses {
                    state = read(came)?;
                }
            }
        }
        bail!("the marker did not come out of {}", self.name)
    }

    fn send(&mut self, from: Side, bytes: &[u8]) -> Result<()> {
        let kind = if bytes.first().is_some_and(|b| b >> 4 == 6) { IPV6 } else { IPV4 };
        let wire = &mut self.wires[from.index()];
        let frame = ethernet(self.macs[from.index()], wire.mac(), kind, bytes);
        wire.send(&frame)
    }
}

fn marker(from: Side, out: Side, serial: u64) -> Vec<u8> {
    let at = |side: Side, last| std::net::SocketAddrV4::new(Ipv4Addr::new(10, side.network(), 0, last), MARKER);
    udp_packet(at(from, 1), at(out, 2), &serial.to_be_bytes())
}

fn marked(bytes: &[u8]) -> Option<u64> {
    let ports = bytes.get(20..24)?;
    if bytes.len() != 36 || bytes[9] != 17 || ports != [0, 9, 0, 9] {
        return None;
    }
    Some(u64::from_be_bytes(*bytes[28..].first_chunk()?))
}

/// What the rules wrote into the DSCP.
fn read(bytes: &[u8]) -> Result<State> {
    let class = if bytes[0] >> 4 == 4 { bytes[1] } else { bytes[0] << 4 | bytes[1] >> 4 };
    Ok(match class >> 2 {
        1 => State::Invalid,
        2 => State::Established,
        3 => State::Related,
        4 => State::New,
        other => bail!("DSCP {other}"),
    })
}

/// The router's address on a side, the route to the side's network, and the neighbour that the route goes by.
async fn addresses(router: &Netns, side: Side, mac: MacAddr) -> Result<()> {
    let n = side.network();
    let v4 = |last| IpAddr::V4(Ipv4Addr::new(192, 168, n, last));
    let v6 = |last| IpAddr::V6(Ipv6Addr::new(0xfd00, n.into(), 0, 0, 0, 0, 0, last));
    let networks = [
        (v4(1), v4(2), 24, IpAddr::V4(Ipv4Addr::new(10, n, 0, 0)), 16),
        (v6(1), v6(2), 64, IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, n.into(), 0, 0, 0, 0, 0)), 48),
    ];
    let ifindex = router.netlink().index(side.name()).await?;
    for (own, via, prefix, network, length) in networks {
        router.netlink().add_address(side.name(), own, prefix).await?;
        let add = async move {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let added = handle.neighbours().add(ifindex, via).link_layer_address(&mac.octets()).execute().await;
            connection.abort();
            added.with_context(|| format!("the neighbour {via}"))
        };
        router.run(add).await??;
        let hop = palisade_lab::netlink::NextHop { via, ifindex };
        router.netlink().replace_route((network, length), None, &[hop]).await?;
    }
    Ok(())
}

async fn rules(router: &Netns) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), RULES)?;
    let path = file.path().to_string_lossy().into_owned();
    nft(router, &["-f", &path]).await.map(drop)
}

async fn nft(router: &Netns, args: &[&str]) -> Result<String> {
    let log = tempfile::NamedTempFile::new()?;
    let mut run = router.start(Spawn::new(find_program("nft").context("nft")?, log.path()).args(args)).await?;
    let status = run.wait(Duration::from_secs(10)).await?;
    ensure!(status.success(), "nft {args:?}: {}", run.output());
    Ok(run.output())
}
