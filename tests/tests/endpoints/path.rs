//! What routers say of the way: that a packet's time is exceeded, and how large one may be. All of it is RELATED.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use palisade_lab::counters::syn_retransmits;
use palisade_lab::program::run;
use palisade_lab::random::Random;
use palisade_lab::remote_network::{RemoteNetwork, steer_icmp};
use palisade_lab::{Flow, Lab, Netns, Side, WAIT, wait_until};
use palisade_tests::overload::lossless;
use palisade_tests::program::ping;
use palisade_tests::program::traceroute::{self, Probe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

/// Somebody listens there while routes are traced.
pub(crate) const OPEN_PORT: u16 = 7300;

const CLOSED_PORT: u16 = 7310;
const REFUSALS: u32 = 100;
/// Longer than anything is held. What does not come by then is lost.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);

/// The MTU of the small link.
const SMALL: u32 = 1300;
/// The MTU behind the members, when they are what is small.
const SMALL_MEMBERS: u32 = 1350;
const ETHERNET: u32 = 1500;

/// A server's kernel refuses each connection to a port where nobody listens, with a RST that comes by another member than
/// the SYN: the client hears it at once, instead of asking again after a second.
pub(crate) async fn refused_tcp(lab: &Lab, family: usize) -> Result<String> {
    let to = SocketAddr::new(Side::Server.hosts()[family], CLOSED_PORT);
    lossless(lab, async || {
        let before = syn_retransmits(lab.client()).await?;
        for _ in 0..REFUSALS {
            match lab.client().run(timeout(WAIT, TcpStream::connect(to))).await? {
                Ok(Err(e)) if e.kind() == ErrorKind::ConnectionRefused => {}
                other => bail!("not refused: {other:?}"),
            }
        }
        Ok(syn_retransmits(lab.client()).await? - before)
    })
    .await?;
    Ok(format!("{REFUSALS} refusals, no SYN sent again"))
}

/// The same for UDP, by an ICMP error.
pub(crate) async fn refused_udp(lab: &Lab, family: usize) -> Result<String> {
    let (from, to) = (Side::Client.hosts()[family], SocketAddr::new(Side::Server.hosts()[family], CLOSED_PORT));
    lossless(lab, async || {
        let mut unheard = 0;
        for _ in 0..REFUSALS {
            // The server's kernel sends no more than 1,000 ICMP errors a second (icmp(7), icmp_msgs_per_sec).
            sleep(Duration::from_millis(2)).await;
            unheard += u64::from(!lab.client().run(refused(from, to)).await??);
        }
        Ok(unheard)
    })
    .await?;
    Ok(format!("{REFUSALS} refusals"))
}

async fn refused(from: IpAddr, to: SocketAddr) -> std::io::Result<bool> {
    let socket = UdpSocket::bind(SocketAddr::new(from, 0)).await?;
    socket.connect(to).await?;
    socket.send(b"text").await?;
    let answer = timeout(REFUSED_WITHIN, socket.recv(&mut [0; 8])).await;
    Ok(matches!(answer, Ok(Err(e)) if e.kind() == ErrorKind::ConnectionRefused))
}

/// From a host behind two routers to another: each hop answers each of the probes.
pub(crate) async fn trace(
    lab: &Lab,
    [client, server]: [&RemoteNetwork; 2],
    family: usize,
    probe: Probe,
) -> Result<String> {
    let to = server.hosts()[family];
    let _listener = server.host().run(TcpListener::bind(SocketAddr::new(to, OPEN_PORT))).await??;
    let hops = traceroute::run(client.host(), lab.dir(), to, probe).await?;
    let members: Vec<IpAddr> = lab.members().iter().map(|m| Side::Client.link(m.number(), 2)[family].0).collect();
    let expected = [
        vec![client.inner()[family]],
        vec![client.edge()[family]],
        members,
        vec![Side::Server.hosts()[family]],
        vec![server.inner_outside()[family]],
        vec![to],
    ];
    let fits = |(hop, expected): (&Vec<Option<IpAddr>>, &Vec<IpAddr>)| {
        hop.iter().all(|who| who.is_some_and(|who| expected.contains(&who)))
    };
    ensure!(hops.len() == expected.len() && hops.iter().zip(&expected).all(fits), "{hops:?}, not {expected:?}");
    let answers: usize = hops.iter().map(Vec::len).sum();
    Ok(format!("{} hops, {answers} answers", hops.len()))
}

/// `ping` hears of the small link behind the members.
pub(crate) async fn small_link(lab: &Lab, server: &RemoteNetwork, family: usize) -> Result<String> {
    // Not the host that TCP sends to: what is learned of one path must not be known of the other.
    let to = server.inner()[family];
    server.set_mtu(SMALL).await?;
    let told = too_big(lab, to, family, &[Side::Server.hosts()[family]], SMALL).await;
    server.set_mtu(ETHERNET).await?;
    told
}

/// `ping` hears of small links between the members and the server's router: that is the members' own word.
pub(crate) async fn small_members(lab: &Lab, family: usize) -> Result<String> {
    let routers: Vec<IpAddr> = lab.members().iter().map(|m| Side::Client.link(m.number(), 2)[family].0).collect();
    members_mtu(lab, SMALL_MEMBERS).await?;
    let told = too_big(lab, Side::Server.hosts()[family], family, &routers, SMALL_MEMBERS).await;
    members_mtu(lab, ETHERNET).await?;
    told
}

async fn members_mtu(lab: &Lab, bytes: u32) -> Result<()> {
    for member in lab.members() {
        member.netns().netlink().set_mtu(Side::Server.interface(), bytes).await?;
    }
    Ok(())
}

/// One of `routers` says that packets to `to` may have `mtu` bytes; such packets then pass, and no larger ones.
async fn too_big(lab: &Lab, to: IpAddr, family: usize, routers: &[IpAddr], mtu: u32) -> Result<String> {
    // ICMP's header and IP's.
    let headers = 8 + [20, 40][family];
    let large = ping::whole(lab.client(), lab.dir(), to, mtu + 1 - headers).await?;
    let Some((router, told)) = large.mtu else { bail!("nobody names an MTU: {}", large.text) };
    ensure!(routers.contains(&router) && told == mtu && large.received == 0, "{}", large.text);
    // A member that was late may have dropped some.
    wait_until("three answers to packets that fit", async || {
        let fitting = ping::whole(lab.client(), lab.dir(), to, mtu - headers).await?;
        ensure!(fitting.mtu.is_none(), "{}", fitting.text);
        Ok(fitting.received == 3)
    })
    .await?;
    Ok(format!("{router} says {told}"))
}

/// TCP sends much data over the small link behind the members, and learns of its MTU from ICMP errors that come by another
/// member than its packets.
pub(crate) async fn discovered(lab: &Lab, remote: &RemoteNetwork, family: usize) -> Result<String> {
    remote.set_mtu(SMALL).await?;
    let result = both_others(lab, remote, family).await;
    steer_icmp(lab, remote.side(), None).await?;
    remote.set_mtu(ETHERNET).await?;
    result
}

/// Once they come by the member that the other direction goes through, and once by the third. What IPv6 learns is of one next
/// hop, which is the member: so the data go through another one each time. IPv4 has to be told to forget.
async fn both_others(lab: &Lab, remote: &RemoteNetwork, family: usize) -> Result<String> {
    let mut done = Vec::new();
    for (data, errors, port) in [(1, 2, 7400), (2, 1, 7600)] {
        let transfer = Transfer::new(lab, remote, family, port, data).await?;
        steer_icmp(lab, remote.side(), Some(errors)).await?;
        let icmp = Flow { protocol: [1, 58][family], sport: 0, dport: 0, ..transfer.big.reversed() };
        let icmp = Flow { src: remote.side().hosts()[family], ..icmp };
        let by = lab.paths().from(remote.side(), icmp).await?;
        ensure!(by == errors, "ICMP goes by fw{by}");
        let sender = transfer.sender(lab);
        run(sender, lab.dir(), WAIT, "ip", &["-4", "route", "flush", "cache"]).await?;
        let before = route(lab, sender, transfer.big).await?;
        ensure!(!before.contains("mtu"), "known before: {before}");
        let bytes = timeout(WAIT, transfer.run(lab, remote)).await.context("TCP stalls")??;
        let after = route(lab, sender, transfer.big).await?;
        ensure!(after.contains(&format!("mtu {SMALL}")), "not learned: {after}");
        done.push(format!("{} MiB through fw{data} with errors through fw{errors}", bytes >> 20));
    }
    Ok(done.join(", "))
}

/// The kernel's way for a connection's packets, and what it has learned of it.
async fn route(lab: &Lab, netns: &Netns, Flow { src, sport, dst, dport, .. }: Flow) -> Result<String> {
    let flow = format!("route get {dst} from {src} ipproto tcp sport {sport} dport {dport}");
    let args: Vec<&str> = flow.split(' ').collect();
    run(netns, lab.dir(), WAIT, "ip", &args).await
}

/// A connection from the client's side, over which the end that is not behind the small link sends.
struct Transfer {
    client: SocketAddr,
    server: SocketAddr,
    /// The direction with the data.
    big: Flow,
    upload: bool,
}

impl Transfer {
    /// With a client port for which the data go through `member`.
    async fn new(lab: &Lab, remote: &RemoteNetwork, family: usize, port: u16, member: usize) -> Result<Transfer> {
        let upload = remote.side() == Side::Server;
        let (mut client, mut server) = (Side::Client.hosts()[family], Side::Server.hosts()[family]);
        *(if upload { &mut server } else { &mut client }) = remote.hosts()[family];
        // None of them is used twice.
        let first = 24_000 + port;
        for sport in first..first + 50 {
            let flow = Flow { protocol: 6, src: client, sport, dst: server, dport: port };
            let big = if upload { flow } else { flow.reversed() };
            if lab.paths().from(remote.side().opposite(), big).await? == member {
                let (client, server) = (SocketAddr::new(client, sport), SocketAddr::new(server, port));
                return Ok(Transfer { client, server, big, upload });
            }
        }
        bail!("nothing goes through fw{member}")
    }

    fn sender<'a>(&self, lab: &'a Lab) -> &'a Netns {
        if self.upload { lab.client() } else { lab.server() }
    }

    /// Sends, and compares what came.
    async fn run(&self, lab: &Lab, remote: &RemoteNetwork) -> Result<usize> {
        let data = Arc::new(data());
        let (from, to) = (self.client, self.server);
        let (client, server) = if self.upload { (lab.client(), remote.host()) } else { (remote.host(), lab.server()) };
        let listener = server.run(TcpListener::bind(to)).await??;
        let accept = server.spawn(async move { listener.accept().await });
        let connect = async move {
            let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.bind(from)?;
            socket.connect(to).await
        };
        let client = client.run(connect).await??;
        let server = accept.await??.0;
        let (mut sender, mut receiver) = if self.upload { (client, server) } else { (server, client) };
        let sent = Arc::clone(&data);
        let send = tokio::spawn(async move {
            sender.write_all(&sent).await?;
            sender.shutdown().await?;
            // Until the other end closes, too.
            sender.read_to_end(&mut Vec::new()).await
        });
        let mut got = Vec::with_capacity(data.len());
        receiver.read_to_end(&mut got).await?;
        ensure!(got == *data, "{} bytes came, and not those that were sent", got.len());
        drop(receiver);
        send.await??;
        Ok(got.len())
    }
}

/// Nothing that a wrong offset would leave equal.
fn data() -> Vec<u8> {
    let mut random = Random(7);
    (0..2 << 20).flat_map(|_| random.number().to_ne_bytes()).collect()
}
