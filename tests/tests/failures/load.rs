//! Much traffic: connections that stay, each with a block there and back every second, and new ones at a steady pace.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use palisade_engine::Time;
use palisade_lab::program::wait_port;
use palisade_lab::random::Random;
use palisade_lab::{Lab, NsThread, Process, Side, Spawn};
use palisade_node::clock;
use palisade_tests::{ECHO_BLOCK as BLOCK, ECHO_LAST as LAST};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

const PORT: u16 = 7007;
/// Between two blocks on one connection.
const EVERY: Duration = Duration::from_secs(1);
/// A connection that gives no answer for so long is lost; a new one that is not done by then has failed.
const LOST: Duration = Duration::from_secs(15);
const SERVER: &str = env!("CARGO_BIN_EXE_echo-server");

/// Something that took time: from the request to the answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Took {
    pub(crate) begun: Time,
    pub(crate) ended: Time,
}

impl Took {
    pub(crate) fn time(self) -> Duration {
        self.ended.since(self.begun)
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// New connections a second, at present.
    rate: AtomicU64,
    standing: AtomicU64,
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

/// All of it; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    _clients: NsThread,
    _server: Process,
}

impl Load {
    /// Opens `standing` connections, half of them IPv4, half IPv6, and returns when they have spoken.
    pub(crate) async fn start(lab: &Lab, standing: usize) -> Result<Load> {
        let clients = lab.client().thread("load")?;
        let server = Spawn::new(SERVER, lab.dir().join("echo-server")).arg(PORT.to_string());
        let mut server = lab.server().start(server).await?;
        wait_port(lab.server(), &mut server, PORT).await?;
        let shared = Arc::<Shared>::default();
        let mut tasks = Vec::new();
        for number in 0..standing {
            tasks.push(clients.spawn(stay(number, shared.clone())));
            // Handshakes are the business of other tests: not more of them at once than a loaded machine bears.
            if number % 20 == 19 {
                sleep(Duration::from_millis(10)).await;
            }
        }
        tasks.push(clients.spawn(come_and_go(shared.clone())));
        let load = Load { shared, tasks, _clients: clients, _server: server };
        for _ in 0..300 {
            if load.standing() == standing as u64 {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        ensure!(
            load.standing() == standing as u64,
            "{} of {standing} connections: {}",
            load.standing(),
            load.summary()
        );
        Ok(load)
    }

    fn standing(&self) -> u64 {
        self.shared.standing.load(Ordering::Relaxed)
    }

    /// From now on so many new connections a second.
    pub(crate) fn open(&self, per_second: usize) {
        self.shared.rate.store(per_second as u64, Ordering::Relaxed);
    }

    /// Blocks that were under way at `at`, or sent within `window` after it.
    pub(crate) fn echoes(&self, at: Time, window: Duration) -> Vec<Took> {
        let all = self.shared.echoes.lock();
        all.iter().copied().filter(|e| e.ended >= at && e.begun < at + window).collect()
    }

    /// New connections that were begun from `from` to `until`.
    pub(crate) fn setups(&self, from: Time, until: Time) -> Vec<Duration> {
        begun(&self.shared.setups.lock(), from, until)
    }

    /// New connections that were begun from `from` to `until`: the time to their first answer.
    pub(crate) fn answers(&self, from: Time, until: Time) -> Vec<Duration> {
        begun(&self.shared.answers.lock(), from, until)
    }

    /// Ends it in good order: what is under way may come to its end, or is lost.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            task.await?;
        }
        Ok(())
    }

    /// Nothing was lost, reset, or refused.
    pub(crate) fn is_whole(&self) -> Result<()> {
        let shared = &self.shared;
        let [lost, failed, resets] = [&shared.lost, &shared.failed, &shared.resets].map(|c| c.load(Ordering::Relaxed));
        ensure!((lost, failed, resets) == (0, 0, 0), "{}", self.summary());
        Ok(())
    }

    pub(crate) fn summary(&self) -> String {
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

async fn connect(number: usize) -> io::Result<TcpStream> {
    let family = number % 2;
    let socket = if family == 0 { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // With a port from the beginning, or the kernel may choose the next hop without it.
    socket.bind(SocketAddr::new(Side::Client.hosts()[family], 0))?;
    let to = SocketAddr::new(Side::Server.hosts()[family], PORT);
    let stream = timeout(LOST, socket.connect(to)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
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
    timeout(LOST, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(Took { begun, ended: clock::now() })
}

async fn stay(number: usize, shared: Arc<Shared>) {
    let mut random = Random(number as u64 + 1);
    let mut stream = match connect(number).await {
        Ok(stream) => stream,
        Err(error) => return shared.problem(&shared.failed, &error, &format!("connection {number}")),
    };
    let mut spoken = false;
    while !shared.stopped() {
        match echo(&mut stream, &mut random, 0).await {
            Ok(took) => shared.echoes.lock().push(took),
            Err(error) => return shared.problem(&shared.lost, &error, &format!("connection {number}")),
        }
        if !std::mem::replace(&mut spoken, true) {
            shared.standing.fetch_add(1, Ordering::Relaxed);
        }
        // Not all at the same moment.
        sleep(EVERY / 2 + EVERY * random.below(1000) as u32 / 1000).await;
    }
}

async fn come_and_go(shared: Arc<Shared>) {
    const TICK: Duration = Duration::from_millis(10);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut open = tokio::task::JoinSet::new();
    let (mut due, mut number) = (0.0, 0);
    while !shared.stopped() {
        ticks.tick().await;
        due += shared.rate.load(Ordering::Relaxed) as f64 * TICK.as_secs_f64();
        while due >= 1.0 {
            due -= 1.0;
            number += 1;
            open.spawn(visit(number, shared.clone()));
        }
        while open.try_join_next().is_some() {}
    }
    while open.join_next().await.is_some() {}
}

/// A connection with one block.
async fn visit(number: usize, shared: Arc<Shared>) {
    let begun = clock::now();
    let mut stream = match connect(number).await {
        Ok(stream) => stream,
        Err(error) => return shared.problem(&shared.failed, &error, &format!("new connection {number}")),
    };
    shared.setups.lock().push(Took { begun, ended: clock::now() });
    match echo(&mut stream, &mut Random(number as u64 + 1), LAST).await {
        Ok(took) => shared.answers.lock().push(Took { begun, ..took }),
        Err(error) => return shared.problem(&shared.failed, &error, &format!("new connection {number}, open")),
    }
    // The server closes; what the client hears after its last block does not matter.
    let _ = timeout(LOST, stream.read(&mut [0; 1])).await;
}
