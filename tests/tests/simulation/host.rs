//! A simulated host: a clock, a disk, a tokio runtime of its own that runs only when the simulation steps it.
//!
//! ```text
//!  on ── stall ──> stands still ── goes on: all its timers are overdue at once (SIGSTOP, a busy host)
//!   │ └─ sleep ──> stands still ── goes on: only its boot-time clock tells (suspend to RAM)
//!   └─── crash ──> off: what was not yet durable is lost ── switched on: starts again from its disk
//! ```

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use palisade_engine::Time;
use palisade_engine::replica::Replica;
use palisade_lab::random::Random;
use palisade_node::simulation::{self, Connection, Incoming};
use palisade_raft_store::{Inspector, MemoryDisk};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::network::{Nanos, Network, STEP};

/// The wall clock when a simulation begins: 2026-01-01, in milliseconds.
const NEW_YEAR: i64 = 1_767_225_600_000;

/// What a running host's programs see of it.
pub(crate) struct Host {
    pub(crate) index: usize,
    pub(crate) network: Arc<Network>,
    disk: MemoryDisk,
    random: Mutex<Random>,
    inspector: Mutex<Option<Inspector<Replica>>>,
    /// What the boot-time clock is ahead of the simulation's, and the wall clock of what it should be.
    boot: u64,
    wall: AtomicI64,
    /// The simulation's time when tokio's clock was at `origin`.
    began: AtomicU64,
    origin: Mutex<Option<Instant>>,
    running: AtomicBool,
}

impl Host {
    pub(crate) fn new(index: usize, network: Arc<Network>, mut random: Random) -> Arc<Host> {
        let boot = 1_000_000_000 + random.number() % 1_000_000_000_000;
        let wall = AtomicI64::new(i64::try_from(random.below(2_000)).unwrap_or(0) - 1_000);
        let disk = MemoryDisk::new(Arc::new(palisade_node::clock::now), usize::MAX);
        Arc::new(Host {
            index,
            network,
            disk,
            random: Mutex::new(random),
            inspector: Mutex::default(),
            boot,
            wall,
            began: AtomicU64::new(0),
            origin: Mutex::default(),
            running: AtomicBool::new(false),
        })
    }

    /// The simulation's time, also in the midst of a step.
    pub(crate) fn elapsed(&self) -> Nanos {
        match *self.origin.lock() {
            Some(origin) if self.running.load(Ordering::Relaxed) => {
                let since = Instant::now().saturating_duration_since(origin);
                self.began.load(Ordering::Relaxed) + u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
            }
            _ => self.network.now(),
        }
    }

    /// What this host's boot-time clock shows at `at`.
    pub(crate) fn time(&self, at: Nanos) -> Time {
        Time(self.boot + at)
    }

    /// The wall clock jumps.
    pub(crate) fn jump(&self, by: i64) {
        self.wall.fetch_add(by, Ordering::Relaxed);
    }

    /// The replicated state, as applied here.
    pub(crate) fn inspector(&self) -> Option<Inspector<Replica>> {
        self.inspector.lock().clone()
    }

    pub(crate) fn storage(&self) -> &MemoryDisk {
        &self.disk
    }

    /// From now on flushes take from `shortest` to `longest`, by what the seed says of this moment.
    pub(crate) fn flushes(self: &Arc<Self>, shortest: Nanos, longest: Nanos) {
        let host = Arc::downgrade(self);
        self.disk.slow(move || {
            let time = host.upgrade().map_or(shortest, |host| {
                let mut random = Random(host.boot ^ (host.elapsed() / STEP));
                shortest + random.number() % (longest - shortest + 1)
            });
            Duration::from_nanos(time)
        });
    }

    pub(crate) fn below(&self, end: usize) -> usize {
        self.random.lock().below(end)
    }
}

/// Its [`Host`], as the code under test sees it.
struct HostView(Arc<Host>);

impl simulation::Host for HostView {
    fn now(&self) -> Time {
        self.0.time(self.0.elapsed())
    }

    fn unix_ms(&self) -> u64 {
        let elapsed = i64::try_from(self.0.elapsed() / 1_000_000).unwrap_or(i64::MAX);
        u64::try_from(NEW_YEAR + elapsed + self.0.wall.load(Ordering::Relaxed)).unwrap_or(0)
    }

    fn random(&self, bytes: &mut [u8]) {
        let mut random = self.0.random.lock();
        for part in bytes.chunks_mut(8) {
            let number = random.number().to_le_bytes();
            part.copy_from_slice(&number[..part.len()]);
        }
    }

    fn disk(&self) -> MemoryDisk {
        self.0.disk.clone()
    }

    fn opened(&self, inspector: Inspector<Replica>) {
        *self.0.inspector.lock() = Some(inspector);
    }

    fn listen(&self, at: SocketAddr) -> io::Result<Incoming> {
        if at.port() != port(self.0.index) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        Ok(Network::listen(self.0.clone()).boxed())
    }

    fn connect(&self, to: &str) -> BoxFuture<'static, io::Result<Box<dyn Connection>>> {
        let host = self.0.clone();
        let to =
            to.parse::<SocketAddr>().ok().and_then(|to| (0..crate::network::MEMBERS).find(|n| port(*n) == to.port()));
        Box::pin(async move {
            match to {
                Some(to) => Network::connect(host, to).await,
                None => Err(io::ErrorKind::AddrNotAvailable.into()),
            }
        })
    }
}

/// A host's address is its port.
fn port(host: usize) -> u16 {
    7001 + u16::try_from(host).unwrap_or(0)
}

/// Where a host's member listens.
pub(crate) fn address(host: usize) -> SocketAddr {
    SocketAddr::from(([10, 9, 0, 1], port(host)))
}

/// A host that is on.
pub(crate) struct Power {
    host: Arc<Host>,
    runtime: Runtime,
}

impl Power {
    pub(crate) fn on(host: Arc<Host>) -> Power {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime of one thread needs nothing of the system");
        host.network.switch_on(host.index);
        host.began.store(host.network.now(), Ordering::Relaxed);
        *host.origin.lock() = Some(runtime.block_on(async { Instant::now() }));
        Power { host, runtime }
    }

    /// Starts a task on it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    fn enter<T>(&self, work: impl Future<Output = T>) -> T {
        let _entered = simulation::enter(Arc::new(HostView(self.host.clone())));
        self.host.running.store(true, Ordering::Relaxed);
        let done = self.runtime.block_on(work);
        self.host.running.store(false, Ordering::Relaxed);
        done
    }

    /// Runs it for one step.
    pub(crate) fn step(&self) {
        self.enter(async { tokio::time::sleep(Duration::from_nanos(STEP)).await });
    }

    /// It stood still for `time` and continues; only the clocks that kept running show it.
    pub(crate) fn overslept(&self, time: Nanos, monotonic_too: bool) {
        if monotonic_too {
            self.enter(async { tokio::time::advance(Duration::from_nanos(time)).await });
        } else {
            self.host.began.fetch_add(time, Ordering::Relaxed);
        }
    }

    /// Switches it off. `killed`: only the program ends, the kernel goes on.
    pub(crate) fn off(self, killed: bool) {
        self.host.network.switch_off(self.host.index, killed);
        let _entered = simulation::enter(Arc::new(HostView(self.host.clone())));
        drop(self.runtime);
        *self.host.origin.lock() = None;
        *self.host.inspector.lock() = None;
        // Of the writes under way some are on the disk.
        let kept = self.host.below(4);
        self.host.disk.crash(kept);
    }
}
