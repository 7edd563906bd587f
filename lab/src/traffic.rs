//! The demo's traffic: connections that stay, connections that come and go, and connections that must not be.
//!
//! Nothing here is simulated. Clients and servers are tasks on threads inside the two hosts' namespaces, so their
//! sockets are those of the kernels there; what they see is what an application would see.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;
use anyhow::{Context, Result};
use palisade_engine::Time;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::random::Random;
use crate::{Flow, Lab, NsThread, Paths, Side, wait_until};

/// The policy under which the traffic runs.
pub const POLICY: &str = "\
zone outside, inside

set servers = 10.20.0.0/24, fd20::/64

default drop

accept \"echo\" from outside to inside: any -> @servers tcp/7007
";

/// Allowed by the policy, from outside to inside.
pub const ECHO_PORT: u16 = 7007;

/// Not allowed, in either direction.
const FORBIDDEN_PORT: u16 = 7666;

/// Between two requests on one connection.
const ECHO_INTERVAL: Duration = Duration::from_millis(100);

/// Between two new connections.
const NEW_CONNECTION_INTERVAL: Duration = Duration::from_millis(10);

/// Between two forbidden attempts; how long each is tried. Shorter than the first retransmission of a SYN (RFC 6298:
/// 1 s), so that these cannot be mistaken for lost SYNs in the client kernel's counters.
const FORBIDDEN_INTERVAL: Duration = Duration::from_millis(50);
const FORBIDDEN_TIMEOUT: Duration = Duration::from_millis(400);

/// A connection that gives no answer for this long is lost; a new one that is not done by then has failed.
const ECHO_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest block that is sent to be echoed.
const MAX_BLOCK: usize = 16 * 1024;

/// TCP, by its number.
const TCP: u8 = 6;

/// What all tasks count into.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections, of either kind, whose handshake was completed.
    pub opened: AtomicU64,
    /// Established connections that broke, gave a wrong answer or none.
    pub lost: AtomicU64,
    /// Connections that could not be opened.
    pub failed: AtomicU64,
    /// Errors that were ECONNRESET.
    pub resets: AtomicU64,
    /// Blocks that came back, and right.
    pub echoes: AtomicU64,
    /// Forbidden attempts, and those of them that reached the other side.
    pub forbidden_tried: AtomicU64,
    /// See `forbidden_tried`.
    pub forbidden_passed: AtomicU64,
    /// Connections whose two directions were seen to go through different members, of those that were looked at.
    pub asymmetric: AtomicU64,
    /// See `asymmetric`.
    pub looked_at: AtomicU64,
    /// The longest time from a block's being sent to its being back, in nanoseconds.
    pub longest_stall: AtomicU64,
    setups: Mutex<Vec<u32>>,
    problems: Mutex<Vec<String>>,
}

/// Maximum number of problems kept for the report.
const MAX_PROBLEMS: usize = 5;

impl Counts {
    fn problem(&self, what: &AtomicU64, e: &io::Error, text: impl FnOnce() -> String) {
        what.fetch_add(1, Ordering::Relaxed);
        if matches!(e.kind(), io::ErrorKind::ConnectionReset) {
            self.resets.fetch_add(1, Ordering::Relaxed);
        }
        let mut problems = self.problems.lock();
        if problems.len() < MAX_PROBLEMS {
            problems.push(format!("{}: {e}", text()));
        }
    }

    /// Waits until this many more connections were opened.
    ///
    /// # Errors
    /// They are not within [`crate::WAIT`].
    pub async fn wait_opened(&self, count: u64) -> Result<()> {
        let opened = || self.opened.load(Ordering::Relaxed);
        let wanted = opened() + count;
        let waited = wait_until("more connections", async || Ok(opened() >= wanted)).await;
        waited.with_context(|| format!("{:?}", self.problems()))
    }

    /// The first problems, in words.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.problems.lock().clone()
    }

    /// Percentiles (0 to 100) of the time that connect(2) took, in microseconds.
    #[must_use]
    pub fn setup_percentiles(&self, percentiles: [usize; 2]) -> [u32; 2] {
        let mut sorted = self.setups.lock().clone();
        sorted.sort_unstable();
        percentiles.map(|p| sorted.get(sorted.len().saturating_sub(1) * p / 100).copied().unwrap_or(0))
    }

    /// The share of connections with two ways, of those that were looked at.
    #[must_use]
    pub fn asymmetric_share(&self) -> f64 {
        let all = self.looked_at.load(Ordering::Relaxed);
        if all == 0 { 0.0 } else { self.asymmetric.load(Ordering::Relaxed) as f64 / all as f64 }
    }
}

/// One of the connections that stay.
#[derive(Debug)]
struct LongLived {
    /// The client's direction, once connected.
    flow: Mutex<Option<Flow>>,
    /// When the block was sent that is not yet back; 0 if none is.
    waiting_since: AtomicU64,
    /// Over, and counted as lost or failed if it should not be.
    ended: AtomicBool,
}

/// All traffic; it ends when this is dropped.
#[derive(Debug)]
pub struct Traffic {
    counts: Arc<Counts>,
    long_lived: Vec<Arc<LongLived>>,
    stop: Arc<AtomicBool>,
    running: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    paths: Paths,
    _threads: Vec<NsThread>,
}

impl Traffic {
    /// Starts all traffic: `long_lived` connections that stay, half of them IPv4, half IPv6. Returns when they are
    /// connected.
    ///
    /// # Errors
    /// The lab cannot carry it at all: a server that cannot listen.
    pub async fn start(lab: &Lab, long_lived: usize) -> Result<Traffic> {
        let counts = Arc::new(Counts::default());
        let stop = Arc::new(AtomicBool::new(false));
        let servers = lab.server().thread("servers")?;
        let clients = lab.client().thread("clients")?;
        let intruders = [lab.client().thread("intruder")?, lab.server().thread("intruder")?];
        servers.run(listen(ECHO_PORT)).await??.serve(&servers);

        let mut traffic = Traffic {
            counts: Arc::clone(&counts),
            long_lived: Vec::new(),
            stop: Arc::clone(&stop),
            running: Mutex::default(),
            paths: lab.paths(),
            _threads: Vec::new(),
        };
        for number in 0..long_lived {
            let one = Arc::new(LongLived {
                flow: Mutex::new(None),
                waiting_since: AtomicU64::new(0),
                ended: AtomicBool::new(false),
            });
            traffic.long_lived.push(Arc::clone(&one));
            let to = SocketAddr::new(Side::Server.hosts()[number % 2], ECHO_PORT);
            let task = stay(to, number as u64, one, Arc::clone(&counts), Arc::clone(&stop), lab.paths());
            traffic.running.lock().push(clients.spawn(task));
            // All at once would be a test of the backlog.
            sleep(Duration::from_millis(2)).await;
        }
        traffic.wait_standing().await;

        let come_and_go = come_and_go(Arc::clone(&counts), Arc::clone(&stop), lab.paths());
        traffic.running.lock().push(clients.spawn(come_and_go));
        for (thread, side) in intruders.iter().zip([Side::Client, Side::Server]) {
            thread.run(listen_forbidden(side, Arc::clone(&counts))).await??.serve(thread);
        }
        for (thread, side) in intruders.iter().zip([Side::Client, Side::Server]) {
            traffic.running.lock().push(thread.spawn(intrude(side.opposite(), Arc::clone(&counts), Arc::clone(&stop))));
        }
        traffic._threads.extend([servers, clients]);
        traffic._threads.extend(intruders);
        Ok(traffic)
    }

    /// Waits until the connections that stay have come up, or failed: these are counted, and the report tells of them.
    async fn wait_standing(&self) {
        let connected = async {
            while !self.long_lived.iter().all(|s| s.flow.lock().is_some() || s.ended.load(Ordering::Relaxed)) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        // Each attempt has this limit of its own, so all but the tasks' scheduling is over by then.
        let _ = timeout(ECHO_TIMEOUT + Duration::from_secs(1), connected).await;
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many of the connections that stay still do.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.long_lived.iter().filter(|s| s.flow.lock().is_some() && !s.ended.load(Ordering::Relaxed)).count()
    }

    /// How long the block has been under way that has been longest.
    #[must_use]
    pub fn stalled_for(&self) -> Duration {
        let now = clock::now();
        let since = self.long_lived.iter().map(|s| s.waiting_since.load(Ordering::Relaxed)).filter(|t| *t != 0).min();
        since.map_or(Duration::ZERO, |t| now.since(Time(t)))
    }

    /// The members that the connections which stay go through now: to the server, and back.
    pub async fn ways(&self) -> Vec<[usize; 2]> {
        let mut ways = Vec::new();
        for one in self.long_lived.iter().filter(|s| !s.ended.load(Ordering::Relaxed)) {
            let flow = *one.flow.lock();
            if let Some(flow) = flow
                && let Ok(way) = self.paths.of(flow).await
            {
                ways.push(way);
            }
        }
        ways
    }

    /// Ends the traffic in good order: what is under way may come to its end, or is lost.
    pub async fn finish(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let running = std::mem::take(&mut *self.running.lock());
        for task in running {
            // A task that panicked would be a mistake here, and a connection without a good end.
            if task.await.is_err() {
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        for task in self.running.lock().iter() {
            task.abort();
        }
    }
}

/// Opens a connection. Counts it, takes its time, and looks which ways it goes.
async fn open(to: SocketAddr, counts: &Counts, paths: &Paths) -> io::Result<(TcpStream, Flow)> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // With a source port from the beginning. Without one the kernel may choose the next hop before it has a port, at
    // random, and stay with it: then nobody could say which way the connection goes.
    socket.bind(SocketAddr::new(Side::Client.hosts()[usize::from(to.is_ipv6())], 0))?;
    let before = clock::now();
    let stream =
        timeout(ECHO_TIMEOUT, socket.connect(to)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let took = clock::now().since(before);
    stream.set_nodelay(true)?;
    counts.opened.fetch_add(1, Ordering::Relaxed);
    counts.setups.lock().push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    let from = stream.local_addr()?;
    let flow = Flow { protocol: TCP, src: from.ip(), sport: from.port(), dst: to.ip(), dport: to.port() };
    if let Ok([there, back]) = paths.of(flow).await {
        counts.looked_at.fetch_add(1, Ordering::Relaxed);
        counts.asymmetric.fetch_add(u64::from(there != back), Ordering::Relaxed);
    }
    Ok((stream, flow))
}

/// One connection that stays: blocks there and back until the end.
async fn stay(to: SocketAddr, seed: u64, me: Arc<LongLived>, counts: Arc<Counts>, stop: Arc<AtomicBool>, paths: Paths) {
    let (mut stream, flow) = match open(to, &counts, &paths).await {
        Ok(opened) => opened,
        Err(e) => {
            me.ended.store(true, Ordering::Relaxed);
            counts.problem(&counts.failed, &e, || format!("long-lived connection {seed} to {to}"));
            return;
        }
    };
    *me.flow.lock() = Some(flow);
    let mut random = Random(seed + 1);
    while !stop.load(Ordering::Relaxed) {
        let sent = clock::now();
        me.waiting_since.store(sent.0, Ordering::Relaxed);
        let echoed = echo(&mut stream, &mut random, MAX_BLOCK).await;
        me.waiting_since.store(0, Ordering::Relaxed);
        let took = u64::try_from(clock::now().since(sent).as_nanos()).unwrap_or(u64::MAX);
        counts.longest_stall.fetch_max(took, Ordering::Relaxed);
        if let Err(e) = echoed {
            me.ended.store(true, Ordering::Relaxed);
            counts.problem(&counts.lost, &e, || format!("long-lived connection {seed} from port {}", flow.sport));
            return;
        }
        counts.echoes.fetch_add(1, Ordering::Relaxed);
        sleep(ECHO_INTERVAL).await;
    }
}

/// New connections, one after another at a steady pace whatever becomes of the earlier ones.
async fn come_and_go(counts: Arc<Counts>, stop: Arc<AtomicBool>, paths: Paths) {
    let mut ticks = interval(NEW_CONNECTION_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut open_ones = tokio::task::JoinSet::new();
    for number in 0u64.. {
        ticks.tick().await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let to = SocketAddr::new(Side::Server.hosts()[usize::from(number % 2 == 1)], ECHO_PORT);
        let (counts, paths) = (Arc::clone(&counts), paths.clone());
        open_ones.spawn(async move {
            match open(to, &counts, &paths).await {
                Err(e) => counts.problem(&counts.failed, &e, || format!("new connection {number} to {to}")),
                Ok((mut stream, flow)) => {
                    if let Err(e) = echo(&mut stream, &mut Random(number + 1_000_003), 512).await {
                        counts.problem(&counts.lost, &e, || {
                            format!("connection {number} to {to} from port {}", flow.sport)
                        });
                    }
                }
            }
        });
        while open_ones.try_join_next().is_some() {}
    }
    while open_ones.join_next().await.is_some() {}
}

/// Sends one block of random length and content, and checks what comes back.
async fn echo(stream: &mut TcpStream, random: &mut Random, max: usize) -> io::Result<()> {
    let block = random.block(max);
    let exchange = async {
        let header = header(&block);
        stream.write_all(&header).await?;
        stream.write_all(&block).await?;
        let mut back = vec![0; header.len() + block.len()];
        stream.read_exact(&mut back).await?;
        if back[..header.len()] == header && back[header.len()..] == block {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is not what was sent"))
        }
    };
    timeout(ECHO_TIMEOUT, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Length and CRC-32 of a block: the server, too, checks what it got.
fn header(block: &[u8]) -> [u8; 8] {
    let length = u32::try_from(block.len()).unwrap_or(u32::MAX);
    (u64::from(length) << 32 | u64::from(crc32fast::hash(block))).to_be_bytes()
}

struct Server {
    listener: TcpListener,
}

/// A listener for both families, deep enough that its backlog is no part of the test.
async fn listen(port: u16) -> Result<Server> {
    let socket = TcpSocket::new_v6().context("a listener")?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(IpAddr::from([0u16; 8]), port)).with_context(|| format!("port {port}"))?;
    Ok(Server { listener: socket.listen(4096)? })
}

impl Server {
    fn serve(self, thread: &NsThread) {
        thread.spawn(async move {
            loop {
                match self.listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(answer(stream))),
                    // Out of descriptors or the like; the client will report it as a failed connection.
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            }
        });
    }
}

/// Echoes blocks until the client is done. A damaged block ends the connection, which the client reports.
async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut block = Vec::new();
    loop {
        let mut head = [0; 8];
        stream.read_exact(&mut head).await?;
        let length = usize::try_from(u64::from_be_bytes(head) >> 32).unwrap_or(usize::MAX);
        if length > MAX_BLOCK {
            return Err(io::ErrorKind::InvalidData.into());
        }
        block.clear();
        block.extend_from_slice(&head);
        block.resize(head.len() + length, 0);
        stream.read_exact(&mut block[head.len()..]).await?;
        if header(&block[head.len()..]) != head {
            return Err(io::ErrorKind::InvalidData.into());
        }
        stream.write_all(&block).await?;
    }
}

/// Sockets at the forbidden port: whatever arrives there has passed the firewall.
struct ForbiddenListener {
    side: Side,
    listener: TcpListener,
    datagrams: UdpSocket,
    counts: Arc<Counts>,
}

async fn listen_forbidden(side: Side, counts: Arc<Counts>) -> Result<ForbiddenListener> {
    let listener = listen(FORBIDDEN_PORT).await?.listener;
    let datagrams = UdpSocket::bind(SocketAddr::new(IpAddr::from([0u16; 8]), FORBIDDEN_PORT)).await?;
    Ok(ForbiddenListener { side, listener, datagrams, counts })
}

impl ForbiddenListener {
    fn serve(self, thread: &NsThread) {
        thread.spawn(async move {
            let mut datagram = [0; 64];
            loop {
                let from = tokio::select! {
                    connection = self.listener.accept() => connection.map(|(_, from)| from),
                    datagram = self.datagrams.recv_from(&mut datagram) => datagram.map(|(_, from)| from),
                };
                if let Ok(from) = from {
                    self.counts.forbidden_passed.fetch_add(1, Ordering::Relaxed);
                    let mut problems = self.counts.problems.lock();
                    if problems.len() < MAX_PROBLEMS {
                        problems.push(format!("forbidden: {from} reached the {}", self.side.name()));
                    }
                }
            }
        });
    }
}

/// Tries the forbidden port at `target` all the while, by TCP and UDP, IPv4 and IPv6.
async fn intrude(target: Side, counts: Arc<Counts>, stop: Arc<AtomicBool>) {
    let mut ticks = interval(FORBIDDEN_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut attempts = tokio::task::JoinSet::new();
    for number in 0usize.. {
        ticks.tick().await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let to = SocketAddr::new(target.hosts()[number % 2], FORBIDDEN_PORT);
        let udp = number / 2 % 2 == 1;
        let counts = Arc::clone(&counts);
        attempts.spawn(async move {
            // The listener at the other end counts what passes: an attempt that only looks failed from here would not do.
            let tried = if udp { datagram(to).await } else { connect(to).await };
            counts.forbidden_tried.fetch_add(u64::from(tried.is_ok()), Ordering::Relaxed);
        });
        while attempts.try_join_next().is_some() {}
    }
    while attempts.join_next().await.is_some() {}
}

/// Fails only if nothing was sent.
async fn connect(to: SocketAddr) -> io::Result<()> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Refused or timed out is what should happen, and is seen by the listener if not.
    let _ = timeout(FORBIDDEN_TIMEOUT, socket.connect(to)).await;
    Ok(())
}

async fn datagram(to: SocketAddr) -> io::Result<()> {
    let any = if to.is_ipv4() { IpAddr::from([0u8; 4]) } else { IpAddr::from([0u16; 8]) };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.send_to(b"forbidden", to).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_taken_from_sorted_values() {
        let counts = Counts::default();
        assert_eq!(counts.setup_percentiles([50, 99]), [0, 0]);
        *counts.setups.lock() = (1..=101).rev().collect();
        assert_eq!(counts.setup_percentiles([50, 99]), [51, 100]);
    }

    #[test]
    fn block_headers_reveal_damage() {
        let mut random = Random(1);
        let (a, mut b) = (random.block(512), random.block(512));
        assert_ne!(a, b);
        let head = header(&b);
        b[0] ^= 1;
        assert_ne!(head, header(&b));
        assert!(!a.is_empty() && a.len() <= 512);
    }

    #[tokio::test]
    async fn echo_with_a_changed_byte_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                buffer[n - 1] ^= 0x80;
                stream.write_all(&buffer[..n]).await.unwrap();
            }
        });
        let mut stream = TcpStream::connect(to).await.unwrap();
        let e = echo(&mut stream, &mut Random(7), 256).await.unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidData);
    }
}
