//! A load generator: long-lived connections, each with a block there and back every second, and new ones at a steady pace.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use palisade_engine::Time;
use palisade_lab::clock;
use palisade_lab::drops::{Drops, is_overload};
use palisade_lab::random::Random;
use palisade_lab::{Lab, NsThread, Process, Side, Spawn};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::overload::full_queues;
use crate::{ECHO_BLOCK as BLOCK, ECHO_LAST as LAST};
use palisade_lab::program::wait_port;
use palisade_lab::wait_until;

/// The port of the echo server.
pub const PORT: u16 = 7007;
/// Between two blocks on one connection.
const BLOCK_INTERVAL: Duration = Duration::from_secs(1);
/// A connection that gives no answer for this long is lost; a new one that is not done by then has failed.
/// Longer than the longest pause of a sender whose retransmissions were lost (TCP_RTO_MAX: 120 s).
const LOST_AFTER: Duration = Duration::from_secs(180);
/// A machine that cannot carry a block a second on each connection gets fewer, down to one in this time.
const MAX_BLOCK_INTERVAL: Duration = Duration::from_secs(32);

/// A request and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// When the request was sent.
    pub begun: Time,
    /// When the answer was there.
    pub ended: Time,
}

impl Took {
    /// How long it took.
    #[must_use]
    pub fn time(self) -> Duration {
        self.ended.since(self.begun)
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// The block interval is doubled this often.
    slowdown: AtomicU32,
    /// New connections a second, at present.
    rate: AtomicU64,
    long_lived: AtomicU64,
    /// New connections that were begun, and the numbers of those that have neither an answer nor an error yet.
    begun: AtomicU64,
    pending: Mutex<BTreeSet<u64>>,
    /// When the block was sent that each long-lived connection waits for, in nanoseconds; 0: none.
    waiting: Mutex<Vec<Arc<AtomicU64>>>,
    lost: AtomicU64,
    failed: AtomicU64,
    resets: AtomicU64,
    echoes: Mutex<Vec<Took>>,
    /// connect(2) of new connections, and that with their first answer.
    setups: Mutex<Vec<Took>>,
    answers: Mutex<Vec<Took>>,
    problems: Mutex<Vec<String>>,
}

impl Shared {
    fn problem(&self, what: &AtomicU64, error: &io::Error, name: &str) {
        what.fetch_add(1, Ordering::Relaxed);
        self.resets.fetch_add(u64::from(error.kind() == io::ErrorKind::ConnectionReset), Ordering::Relaxed);
        let mut problems = self.problems.lock();
        if problems.len() < 10 {
            problems.push(format!("{name}: {error}"));
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The running load. It ends when this is dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    _clients: NsThread,
    _server: Process,
}

impl Load {
    /// Opens `long_lived` connections, half of them IPv4, half IPv6, and returns when each has had an answer. `server` is the
    /// path of the program `echo-server`.
    ///
    /// # Errors
    /// The server does not start, or the connections are not all there in time.
    pub async fn start(lab: &Lab, server: &str, long_lived: usize) -> Result<Load> {
        let clients = lab.client().thread("load")?;
        let server = Spawn::new(server, lab.dir().join("echo-server")).arg(PORT.to_string());
        let mut server = lab.server().start(server).await?;
        wait_port(lab.server(), &mut server, PORT).await?;
        let shared = Arc::<Shared>::default();
        let mut tasks = Vec::new();
        for number in 0..long_lived {
            let waiting = Arc::<AtomicU64>::default();
            shared.waiting.lock().push(Arc::clone(&waiting));
            tasks.push(clients.spawn(stay(number, shared.clone(), waiting)));
            // Handshakes are the subject of other tests: no more of them at once than a loaded machine can take.
            if number % 20 == 19 {
                sleep(Duration::from_millis(10)).await;
            }
        }
        tasks.push(clients.spawn(come_and_go(shared.clone())));
        let load = Load { shared, tasks, _clients: clients, _server: server };
        let all_there = || load.long_lived() == long_lived as u64 || load.is_whole().is_err();
        // Not `?`: what went wrong is in the summary.
        let _ = wait_until("all connections to stand", async || Ok(all_there())).await;
        let there = load.long_lived();
        ensure!(there == long_lived as u64, "{there} of {long_lived} connections: {}", load.summary());
        Ok(load)
    }

    fn long_lived(&self) -> u64 {
        self.shared.long_lived.load(Ordering::Relaxed)
    }

    /// Opens this many new connections a second from now on.
    pub fn open(&self, per_second: usize) {
        self.shared.rate.store(per_second as u64, Ordering::Relaxed);
    }

    /// Blocks that were under way at `at`, or sent within `window` after it.
    #[must_use]
    pub fn echoes(&self, at: Time, window: Duration) -> Vec<Took> {
        let all = self.shared.echoes.lock();
        all.iter().copied().filter(|e| e.ended >= at && e.begun < at + window).collect()
    }

    /// New connections that were begun from `from` to `until`.
    #[must_use]
    pub fn setups(&self, from: Time, until: Time) -> Vec<Duration> {
        begun(&self.shared.setups.lock(), from, until)
    }

    /// New connections that were begun from `from` to `until`: the time to their first answer.
    #[must_use]
    pub fn answers(&self, from: Time, until: Time) -> Vec<Duration> {
        begun(&self.shared.answers.lock(), from, until)
    }

    /// Makes the load so small that the members carry it: blocks come half as often until no member drops packets for want of
    /// time or room. Where a machine is overloaded, senders pause for minutes (RFC 6298, section 5.5), whatever the members do.
    ///
    /// # Errors
    /// A member does not answer.
    pub async fn fit(&self, lab: &Lab) -> Result<()> {
        loop {
            let (drops, full) = (Drops::read(lab).await?, full_queues(lab).await?);
            sleep(2 * BLOCK_INTERVAL).await;
            let dropped = Drops::read(lab).await?.since(&drops).only(is_overload);
            let slowdown = self.shared.slowdown.load(Ordering::Relaxed);
            let interval = BLOCK_INTERVAL * (1 << slowdown);
            if dropped.total() + full_queues(lab).await? - full == 0 || interval >= MAX_BLOCK_INTERVAL {
                return Ok(());
            }
            eprintln!(
                "a block on each connection every {interval:?} is more than this machine carries: dropped {dropped}"
            );
            self.shared.slowdown.store(slowdown + 1, Ordering::Relaxed);
            // Until what is under way has come back.
            sleep(interval).await;
        }
    }

    /// How many new connections were begun so far.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.shared.begun.load(Ordering::Relaxed)
    }

    /// Waits until no connection waits any longer for what it sent before `at`, and each new connection that was begun before
    /// this call has had its answer. What fails waits no longer; see [`Load::is_whole`].
    ///
    /// # Errors
    /// Something does not come within [`WAIT`].
    pub async fn settle(&self, at: Time) -> Result<()> {
        let opened = self.begun();
        let settled = || {
            let shared = &self.shared;
            let waits = |w: &Arc<AtomicU64>| (1..at.0).contains(&w.load(Ordering::Relaxed));
            shared.pending.lock().first().is_none_or(|first| *first > opened)
                && !shared.waiting.lock().iter().any(waits)
        };
        wait_until("what was under way to come to its end", async || Ok(settled())).await?;
        Ok(())
    }

    /// Waits until this many more new connections were begun, and all of them are over.
    ///
    /// # Errors
    /// They are not within [`WAIT`].
    pub async fn open_more(&self, count: u64) -> Result<()> {
        let wanted = self.begun() + count;
        wait_until("more new connections", async || Ok(self.begun() >= wanted)).await?;
        self.settle(clock::now()).await
    }

    /// Ends the load in good order: what is under way may come to its end, or is lost.
    ///
    /// # Errors
    /// A task died.
    pub async fn finish(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            task.await?;
        }
        Ok(())
    }

    /// Nothing was lost, reset or refused so far.
    ///
    /// # Errors
    /// Something was; the message has the counts.
    pub fn is_whole(&self) -> Result<()> {
        let shared = &self.shared;
        let [lost, failed, resets] = [&shared.lost, &shared.failed, &shared.resets].map(|c| c.load(Ordering::Relaxed));
        ensure!((lost, failed, resets) == (0, 0, 0), "{}", self.summary());
        Ok(())
    }

    /// All counts in words, with the first problems.
    #[must_use]
    pub fn summary(&self) -> String {
        let shared = &self.shared;
        let count = |c: &AtomicU64| c.load(Ordering::Relaxed);
        format!(
            "{} lost, {} failed, {} resets; {} blocks came back, {} new connections were opened {:?}",
            count(&shared.lost),
            count(&shared.failed),
            count(&shared.resets),
            shared.echoes.lock().len(),
            shared.setups.lock().len(),
            shared.problems.lock()
        )
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn begun(all: &[Took], from: Time, until: Time) -> Vec<Duration> {
    all.iter().filter(|t| t.begun >= from && t.begun < until).map(|t| t.time()).collect()
}

async fn connect(family: usize) -> io::Result<TcpStream> {
    let socket = if family == 0 { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // With a port from the beginning, or the kernel may choose the next hop without it.
    socket.bind(SocketAddr::new(Side::Client.hosts()[family], 0))?;
    let to = SocketAddr::new(Side::Server.hosts()[family], PORT);
    let stream =
        timeout(LOST_AFTER, socket.connect(to)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A block there and back; how long that took.
async fn echo(stream: &mut TcpStream, random: &mut Random, first: u8) -> io::Result<Took> {
    let mut block = [0; BLOCK];
    for piece in block.chunks_mut(8) {
        piece.copy_from_slice(&random.number().to_be_bytes());
    }
    block[0] = first;
    let begun = clock::now();
    let exchange = async {
        stream.write_all(&block).await?;
        let mut back = [0; BLOCK];
        stream.read_exact(&mut back).await?;
        if back == block { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "another answer")) }
    };
    timeout(LOST_AFTER, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(Took { begun, ended: clock::now() })
}

async fn stay(number: usize, shared: Arc<Shared>, waiting: Arc<AtomicU64>) {
    let mut random = Random(number as u64 + 1);
    let mut stream = match connect(number % 2).await {
        Ok(stream) => stream,
        Err(error) => return shared.problem(&shared.failed, &error, &format!("connection {number}")),
    };
    let mut spoken = false;
    while !shared.stopped() {
        waiting.store(clock::now().0.max(1), Ordering::Relaxed);
        let echoed = echo(&mut stream, &mut random, 0).await;
        waiting.store(0, Ordering::Relaxed);
        match echoed {
            Ok(took) => shared.echoes.lock().push(took),
            Err(error) => return shared.problem(&shared.lost, &error, &format!("connection {number}")),
        }
        if !std::mem::replace(&mut spoken, true) {
            shared.long_lived.fetch_add(1, Ordering::Relaxed);
        }
        // Not all at the same moment.
        let interval = BLOCK_INTERVAL * (1 << shared.slowdown.load(Ordering::Relaxed));
        sleep(interval / 2 + interval * random.below(1000) as u32 / 1000).await;
    }
}

async fn come_and_go(shared: Arc<Shared>) {
    const TICK: Duration = Duration::from_millis(10);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut open = tokio::task::JoinSet::new();
    let (mut due, mut number) = (0.0, 0_u64);
    while !shared.stopped() {
        ticks.tick().await;
        due += shared.rate.load(Ordering::Relaxed) as f64 * TICK.as_secs_f64();
        while due >= 1.0 {
            due -= 1.0;
            number += 1;
            shared.pending.lock().insert(number);
            shared.begun.store(number, Ordering::Relaxed);
            open.spawn(visit(number, shared.clone()));
        }
        while open.try_join_next().is_some() {}
    }
    while open.join_next().await.is_some() {}
}

/// A connection with one block.
async fn visit(number: u64, shared: Arc<Shared>) {
    let opened = open(number, &shared).await;
    shared.pending.lock().remove(&number);
    if let Some(mut stream) = opened {
        // The server closes; what the client hears after its last block does not matter.
        let _ = timeout(LOST_AFTER, stream.read(&mut [0; 1])).await;
    }
}

/// Connects and exchanges a block, and counts what came of it.
async fn open(number: u64, shared: &Shared) -> Option<TcpStream> {
    let begun = clock::now();
    let mut stream = match connect(usize::from(number % 2 == 1)).await {
        Ok(stream) => stream,
        Err(error) => {
            shared.problem(&shared.failed, &error, &format!("new connection {number}"));
            return None;
        }
    };
    shared.setups.lock().push(Took { begun, ended: clock::now() });
    match echo(&mut stream, &mut Random(number + 1), LAST).await {
        Ok(took) => shared.answers.lock().push(Took { begun, ..took }),
        Err(error) => {
            shared.problem(&shared.failed, &error, &format!("new connection {number}, open"));
            return None;
        }
    }
    Some(stream)
}
