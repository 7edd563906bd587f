//! The daemon: a member of the cluster, put together.
//!
//! ```text
//!            node.toml                                       SIGTERM, SIGINT
//!                │                                                 │
//!  gate ──> [Daemon] ── admin socket ── http ── watchdog      [run] waits
//!                │ an identity is there, or `init`, `join`
//!                v
//!            [Member]: Replication (engine, log, hints, being current)
//!                │ current for the first time
//!                v
//!            Datapath (workers, watcher); a witness has none
//! ```
//!
//! **Order at the start.** The gate is installed before anything else: whatever fails afterwards, the machine is closed, not
//! open. The datapath starts only when the member is current for the first time, because before that every packet would be
//! dropped anyway. If the machine's settings forbid the datapath, the daemon ends with what is wrong and its remedy.
//!
//! **Order at the end.** Not ready first, then the lead is handed over while routers turn away ([`crate::drain`]), then the
//! datapath stops, then the replication. The gate stays.
//!
//! **Tasks**, all of them ended by dropping the future of [`Node::run`]:
//!
//! | task | does | cancel-safe |
//! |---|---|---|
//! | `run` itself | waits for a signal or a failure | yes |
//! | admin server | answers the unix socket; one task a connection | an `init`, `join` or `leave` that is cut off may be half done; it goes on in a task of its own |
//! | http server | `/metrics` and so on | yes |
//! | starter | waits until current, starts the datapath, ends the daemon if one of its threads dies | yes: a datapath that was started is stored or stopped |
//! | watchdog | tells systemd that all threads go round | yes |

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use miette::Diagnostic;
use palisade_engine::event::{Hint, Proposal};
use palisade_engine::hold::Limits;
use palisade_engine::replica::Role;
use palisade_engine::{Engine, MemberId, Standing};
use palisade_metrics::MetricFamilies;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::config::{Config, INJECT_DEVICE, Inject};
use crate::datapath::{self, Datapath, Gate, Sinks, StartError, WorkerWake, gate};
use crate::drain::{Drain, Ended, Why};
use crate::http::{self, HttpState};
use crate::metrics;
use crate::replication::{self, MembershipError, OpenError, Replication, Timing, Voters};
use crate::standing::StandingCell;
use crate::{admin, clock, systemd};

/// Hints, and proposals, that wait for the replication; what comes beyond is lost and counted.
const QUEUE: usize = 8192;
/// A worker that has not gone round for so long is stuck; an idle one does so twice a second.
const STUCK: Duration = Duration::from_secs(5);
/// How often the datapath's threads are looked at.
const SUPERVISE: Duration = Duration::from_millis(200);
/// How long a member that ends waits for routers to turn away and for another one to take the lead.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long a new member may take to become current.
const INIT: Duration = Duration::from_secs(20);
const CATCH_UP: Duration = Duration::from_secs(600);

/// Why the daemon did not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The gate can not be installed: the machine would be open.
    #[error("the gate can not be installed, so this machine would forward unfiltered")]
    Gate(#[source] io::Error),
    /// The admin socket.
    #[error("can not listen on the admin socket {path}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The port of `/metrics`.
    #[error("can not listen on [http] {address}")]
    Http {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The replication.
    #[error("the member can not be started")]
    Replication(#[from] OpenError),
    /// The datapath.
    #[error("the datapath is not started")]
    Datapath(#[from] StartError),
    /// A thread of the datapath is dead.
    #[error("the datapath's thread {name} died")]
    Thread {
        /// Its name.
        name: String,
    },
    /// Something of the operating system's.
    #[error("the operating system refuses {what}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl NodeError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            NodeError::Gate(_) => Some(
                "the daemon needs CAP_NET_ADMIN and a kernel with CONFIG_IP_MULTIPLE_TABLES: run it as root, or by its systemd unit".into(),
            ),
            NodeError::Socket { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("another daemon answers there: stop it first, or give this one another [admin] socket".into())
            }
            NodeError::Socket { .. } => Some("create its folder, or set [admin] socket to a path that the daemon may write".into()),
            NodeError::Http { .. } => Some("set [http] listen to a free port and an address of this machine".into()),
            NodeError::Datapath(e) => e.help().map(|h| h.to_string()),
            NodeError::Thread { .. } => Some(
                "a bug: report what was written before this. The gate is closed and nothing passes this machine until the daemon is started again; its systemd unit does so".into(),
            ),
            NodeError::Replication(_) | NodeError::System { .. } => None,
        }
    }
}

/// The daemon.
#[derive(Debug)]
pub struct Node;

impl Node {
    /// Runs a member until SIGTERM or SIGINT. A second signal ends it at once.
    ///
    /// # Errors
    /// [`NodeError`]
    pub async fn run(config: Config) -> Result<(), NodeError> {
        let system = |what| move |source| NodeError::System { what, source };
        let mut term = signal(SignalKind::terminate()).map_err(system("a signal handler"))?;
        let mut int = signal(SignalKind::interrupt()).map_err(system("a signal handler"))?;
        let stop = async move {
            tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
            (term, int)
        };
        Node::run_until(config, stop, |(mut term, mut int)| async move {
            tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
        })
        .await
    }

    /// As [`Node::run`], until `stop`; what it returns makes the future that cuts the farewell short.
    async fn run_until<S, H: Future<Output = ()>>(
        config: Config,
        stop: impl Future<Output = S>,
        hurry: impl FnOnce(S) -> H,
    ) -> Result<(), NodeError> {
        install_gate(&config).await?;
        let (failed, mut failure) = mpsc::channel(4);
        let daemon = Arc::new(Daemon::new(config, failed));
        let listen = daemon.config.http.listen;
        let http = TcpListener::bind(listen).await.map_err(|source| NodeError::Http { address: listen, source })?;
        let socket = admin::Socket::bind(&daemon.config.admin.socket)?;

        let mut tasks = tokio::task::JoinSet::new();
        let state: Arc<dyn HttpState> = daemon.clone();
        tasks.spawn(async move {
            http::serve(http, state).await;
        });
        tasks.spawn(admin::serve(socket, daemon.clone()));
        tasks.spawn(watchdog(daemon.clone()));

        match daemon.open().await {
            Ok(()) => {}
            Err(OpenError::NotMember) => {
                tracing::info!(
                    "this machine is in no cluster: `palisade cluster init` makes one, `palisade cluster join` joins one"
                );
            }
            Err(e) => return Err(e.into()),
        }
        systemd::notify("READY=1");

        let hurry = tokio::select! {
            stopped = stop => hurry(stopped),
            Some(error) = failure.recv() => {
                systemd::notify("STOPPING=1");
                daemon.close().await;
                return Err(error);
            }
        };
        systemd::notify("STOPPING=1");
        tokio::select! {
            () = daemon.farewell() => {}
            () = hurry => tracing::info!("a second signal: ending at once"),
        }
        daemon.close().await;
        tracing::info!("stopped; the gate stays");
        Ok(())
    }
}

/// A witness forwards nothing for others, so it needs no gate.
async fn install_gate(config: &Config) -> Result<(), NodeError> {
    if config.role == Role::Witness {
        return Ok(());
    }
    let gate = Gate::new(INJECT_DEVICE, &config.datapath.unfiltered);
    // It asks the kernel and runs nft.
    let installed = blocking(move || gate::install(&gate)).await.map_err(NodeError::Gate)?;
    match installed.nft {
        Ok(_) => tracing::info!("the gate is installed"),
        Err(reason) => tracing::warn!(reason, "the gate is installed, but without its second lock (nftables)"),
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// What the daemon's tasks share.
pub(crate) struct Daemon {
    pub(crate) config: Config,
    member: ArcSwapOption<Member>,
    /// Whoever makes, joins or leaves a cluster holds it.
    change: tokio::sync::Mutex<()>,
    pub(crate) drain: Drain,
    failed: mpsc::Sender<NodeError>,
}

/// A running member.
pub(crate) struct Member {
    pub(crate) replication: Replication,
    pub(crate) engine: Arc<Engine>,
    pub(crate) standing: Arc<StandingCell>,
    datapath: Mutex<Slot>,
    starter: Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// Keeps the replication's queues open where the datapath has others ([`crate::config::Lab`]).
    _sinks: Sinks,
}

/// Where the datapath is.
enum Slot {
    /// Not started yet.
    Empty,
    Running(Arc<Datapath>),
    /// The member ends: nothing is to be started any more.
    Closed,
}

impl Member {
    /// The datapath, if it runs.
    pub(crate) fn datapath(&self) -> Option<Arc<Datapath>> {
        match &*self.datapath.lock() {
            Slot::Running(datapath) => Some(datapath.clone()),
            Slot::Empty | Slot::Closed => None,
        }
    }

    /// Where this member stands now.
    pub(crate) fn standing(&self) -> Standing {
        self.standing.at(clock::now())
    }
}

impl From<&Config> for replication::Options {
    fn from(c: &Config) -> replication::Options {
        let mut engine = palisade_engine::Config::new(MemberId(0), 0, seed());
        engine.max_sessions = c.limits.max_sessions;
        engine.max_half_open = c.limits.max_half_open;
        // The configuration has at most ten million.
        engine.max_half_open_per_source = u32::try_from(c.limits.max_half_open_per_source).unwrap_or(u32::MAX);
        engine.takeover_rate = c.limits.takeover_rate as u64;
        replication::Options {
            data_dir: c.data_dir.clone(),
            name: c.name.clone(),
            listen: c.cluster.listen,
            advertise: c.cluster.advertise.to_string(),
            role: c.role,
            engine,
            timing: Timing { heartbeat: c.raft.heartbeat, election: c.raft.election, ..Timing::default() },
            log: replication::LogSize::default(),
            voters: Voters { most: c.raft.max_voters, replace_after: c.raft.replace_after },
            progress_rate: c.limits.progress_rate as u64,
        }
    }
}

impl Daemon {
    fn new(config: Config, failed: mpsc::Sender<NodeError>) -> Daemon {
        let (member, change) = (ArcSwapOption::empty(), tokio::sync::Mutex::new(()));
        Daemon { config, member, change, drain: Drain::new(), failed }
    }

    /// The member, if this machine is one.
    pub(crate) fn member(&self) -> Option<Arc<Member>> {
        self.member.load_full()
    }

    /// Starts the member that the data folder belongs to.
    async fn open(self: &Arc<Daemon>) -> Result<(), OpenError> {
        let _change = self.change.lock().await;
        self.start().await.map(drop)
    }

    /// Makes a cluster; the future returned goes on if its caller is cut off.
    pub(crate) fn init(self: &Arc<Daemon>) -> impl Future<Output = Result<Arc<Member>, ChangeError>> + use<> {
        let daemon = self.clone();
        detached(async move {
            let _change = daemon.change.try_lock().map_err(|_| ChangeError::Busy)?;
            daemon.outside()?;
            replication::init(&replication::Options::from(&daemon.config)).await?;
            let member = daemon.start().await?;
            daemon.caught_up(&member, INIT).await?;
            Ok(member)
        })
    }

    /// Joins a cluster; the future returned goes on if its caller is cut off.
    pub(crate) fn join(
        self: &Arc<Daemon>,
        token: String,
    ) -> impl Future<Output = Result<Arc<Member>, ChangeError>> + use<> {
        let daemon = self.clone();
        detached(async move {
            let _change = daemon.change.try_lock().map_err(|_| ChangeError::Busy)?;
            daemon.outside()?;
            replication::join(&replication::Options::from(&daemon.config), &token).await?;
            let member = daemon.start().await?;
            daemon.caught_up(&member, CATCH_UP).await?;
            Ok(member)
        })
    }

    /// Leaves the cluster; the future returned goes on if its caller is cut off.
    pub(crate) fn leave(self: &Arc<Daemon>, limit: Duration) -> impl Future<Output = Result<(), ChangeError>> + use<> {
        let daemon = self.clone();
        detached(async move {
            let _change = daemon.change.try_lock().map_err(|_| ChangeError::Busy)?;
            let member = daemon.member().ok_or(ChangeError::Outside)?;
            // Before anybody turns away for nothing.
            if member.engine.view().members.len() < 2 {
                return Err(MembershipError::Last.into());
            }
            let before = daemon.drain.now();
            daemon.drain.begin(Why::Leaving, &member);
            // Late or not: it is to leave.
            daemon.drain.moved_away(limit).await;
            let left = member.replication.leave().await;
            match (&left, before) {
                (Ok(()), _) => {
                    drop(member);
                    daemon.close().await;
                    daemon.drain.end(None);
                }
                (Err(_), Some(before)) => daemon.drain.begin(before.why, &member),
                (Err(_), None) => daemon.drain.end(Some(&member)),
            }
            Ok(left?)
        })
    }

    fn outside(&self) -> Result<(), ChangeError> {
        match self.member() {
            Some(member) => Err(ChangeError::Inside(member.replication.identity().cluster.clone())),
            None => Ok(()),
        }
    }

    async fn caught_up(&self, member: &Arc<Member>, limit: Duration) -> Result<(), ChangeError> {
        let ready = async {
            loop {
                let witness = self.config.role == Role::Witness;
                if member.standing() == Standing::Current && (witness || member.datapath().is_some()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(limit, ready).await.map_err(|_| ChangeError::Late)
    }

    /// Starts the member and, in the background, its datapath.
    async fn start(self: &Arc<Daemon>) -> Result<Arc<Member>, OpenError> {
        let workers = if self.config.role == Role::Witness { 0 } else { self.config.datapath.workers };
        let failed = |e: io::Error| OpenError::Raft(format!("eventfd: {e}"));
        let wake = WorkerWake::new(workers).map_err(failed)?;
        let standing = Arc::new(StandingCell::new(self.config.limits.cut_off_limit));
        let (sinks, hints, proposals) = queues();
        let replication = Replication::open(
            replication::Options::from(&self.config),
            hints,
            proposals,
            wake.clone(),
            standing.clone(),
        )
        .await?;
        let engine = replication.engine();
        let identity = replication.identity();
        tracing::info!(cluster = %identity.cluster, member = %identity.member, starts = identity.starts, "the member runs");
        let member = Arc::new(Member {
            replication,
            engine,
            standing,
            datapath: Mutex::new(Slot::Empty),
            starter: Mutex::new(None),
            _sinks: sinks.clone(),
        });
        self.member.store(Some(member.clone()));
        let (ended, failed) = (member.replication.failed(), self.failed.clone());
        tokio::spawn(async move {
            if let Some(why) = ended.await {
                let source = io::Error::other(why);
                // Full only if a failure is being dealt with already.
                drop(failed.try_send(NodeError::System { what: "the replication", source }));
            }
        });
        if self.config.role == Role::Firewall {
            let starter = tokio::spawn(start_datapath(self.clone(), Arc::downgrade(&member), wake, sinks));
            *member.starter.lock() = Some(starter);
        }
        Ok(member)
    }

    fn datapath_options(&self) -> datapath::Options {
        let d = &self.config.datapath;
        let interface = |i: &crate::config::Interface| datapath::Interface {
            name: i.name.clone(),
            zone: i.zone.clone(),
            antispoof: i.antispoof,
        };
        datapath::Options {
            interfaces: self.config.interfaces.iter().map(interface).collect(),
            unfiltered: d.unfiltered.clone(),
            workers: d.workers,
            hold: Limits { packets: d.hold_packets, bytes: d.hold_bytes, time: d.hold_time },
            device: INJECT_DEVICE.to_owned(),
            inject: match d.inject {
                Inject::Auto => datapath::Inject::Auto,
                Inject::Tun => datapath::Inject::Tun,
                Inject::Veth => datapath::Inject::Veth,
            },
            manage_rp_filter: d.manage_rp_filter,
            manage_forwarding: d.manage_forwarding,
            ..datapath::Options::default()
        }
    }

    /// Not ready, and the lead to somebody else, while routers turn away.
    async fn farewell(&self) {
        let Some(member) = self.member() else { return };
        self.drain.begin(Why::Stopping, &member);
        drop(member);
        match self.drain.moved_away(FAREWELL).await {
            Ended::Quiet(d) if d.leads => {
                tracing::info!("ending without handing the lead over: nobody took it in time")
            }
            Ended::Late(d) => {
                let (packets, leads) = (d.passing, d.leads);
                tracing::info!(packets, leads, "ending though traffic still comes (packets in the last second)");
            }
            Ended::Quiet(_) | Ended::Undone => {}
        }
    }

    /// Turns traffic away until [`Daemon::undrain`]; the future says when it has moved away.
    pub(crate) fn drain(&self, limit: Duration) -> Result<impl Future<Output = Ended> + Send + use<>, ChangeError> {
        let _change = self.change.try_lock().map_err(|_| ChangeError::Busy)?;
        let member = self.member().ok_or(ChangeError::Outside)?;
        self.drain.begin(Why::Drained, &member);
        Ok(self.drain.moved_away(limit))
    }

    /// Takes traffic again. Answers whether it did not before.
    pub(crate) fn undrain(&self) -> Result<bool, ChangeError> {
        let _change = self.change.try_lock().map_err(|_| ChangeError::Busy)?;
        let member = self.member().ok_or(ChangeError::Outside)?;
        let was = self.drain.now().is_some();
        self.drain.end(Some(&member));
        Ok(was)
    }

    /// Ends the member, if there is one; when this returns, its data folder is free.
    async fn close(&self) {
        let Some(member) = self.member.swap(None) else { return };
        if let Some(starter) = member.starter.lock().take() {
            starter.abort();
        }
        let slot = std::mem::replace(&mut *member.datapath.lock(), Slot::Closed);
        if let Slot::Running(datapath) = slot {
            // Joins the workers' threads.
            let stopped = tokio::task::spawn_blocking(move || last(datapath)).await;
            if let Err(error) = stopped {
                tracing::error!(%error, "the datapath did not stop as it should");
            }
        }
        member.replication.shutdown().await;
        // Requests that still use it end within their deadlines; a `join` right after a `leave` needs the folder's lock.
        for _ in 0..100 {
            if Arc::strong_count(&member) == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Why this member should not be given traffic.
    pub(crate) fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Some(draining) = self.drain.now() {
            reasons.push(draining.why.reason().to_owned());
        }
        let Some(member) = self.member() else {
            reasons.push("this machine is in no cluster".to_owned());
            return reasons;
        };
        match member.standing() {
            Standing::Current => {}
            Standing::CutOff => {
                reasons.push("this member is cut off from the cluster: only established sessions pass".to_owned())
            }
            Standing::Expired => {
                reasons.push("this member has not caught up with the cluster: nothing passes".to_owned())
            }
        }
        if self.config.role == Role::Firewall {
            match member.datapath() {
                None => reasons.push("the datapath does not run yet".to_owned()),
                Some(datapath) => reasons.extend(unhealthy(&datapath)),
            }
        }
        reasons
    }

    /// Which threads do not go round.
    pub(crate) fn stuck_threads(&self) -> Vec<String> {
        let now = clock::now();
        let metrics = self.member().and_then(|m| m.datapath()).map(|d| d.metrics());
        let workers = metrics.iter().flat_map(|m| m.workers.iter().enumerate());
        workers
            .filter(|(_, w)| now.since(w.heartbeat.get()) > STUCK)
            .map(|(n, _)| format!("packet worker {n} has not gone round for more than {STUCK:?}"))
            .collect()
    }
}

/// What keeps a running datapath from being fit for traffic.
fn unhealthy(datapath: &Datapath) -> Vec<String> {
    if datapath.healthy() {
        return Vec::new();
    }
    let mut reasons = datapath.status().warnings;
    if reasons.is_empty() {
        reasons.push("a packet worker does not go round".to_owned());
    }
    reasons
}

/// Drops what may be the last handle, after the others have let go of theirs.
fn last(datapath: Arc<Datapath>) {
    let mut datapath = datapath;
    for _ in 0..100 {
        match Arc::try_unwrap(datapath) {
            Ok(datapath) => return datapath.stop(),
            Err(shared) => datapath = shared,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the member is current for the first time, then starts its datapath.
async fn start_datapath(daemon: Arc<Daemon>, member: std::sync::Weak<Member>, wake: WorkerWake, sinks: Sinks) {
    loop {
        let Some(member) = member.upgrade() else { return };
        if member.standing() == Standing::Current {
            break;
        }
        drop(member);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let Some(member) = member.upgrade() else { return };
    let (options, engine, standing) = (daemon.datapath_options(), member.engine.clone(), member.standing.clone());
    let sinks = if daemon.config.lab.cut_replication { nowhere() } else { sinks };
    // It asks the kernel for much and runs nft. If this task is aborted meanwhile, the result is dropped, and so stopped.
    let weak = Arc::downgrade(&member);
    let started = tokio::task::spawn_blocking(move || {
        let datapath = datapath::start(options, engine, standing, wake, sinks)?;
        let mut slot = member.datapath.lock();
        match *slot {
            Slot::Closed => drop(datapath),
            Slot::Empty | Slot::Running(_) => *slot = Slot::Running(Arc::new(datapath)),
        }
        Ok::<(), StartError>(())
    });
    match started.await {
        Ok(Ok(())) => {
            tracing::info!("the datapath runs");
            if let Some(name) = dead_thread(&weak).await {
                drop(daemon.failed.try_send(NodeError::Thread { name }));
            }
        }
        // Full only if a failure is being dealt with already.
        Ok(Err(error)) => drop(daemon.failed.try_send(error.into())),
        Err(error) => {
            let source = io::Error::other(error);
            drop(daemon.failed.try_send(NodeError::System { what: "the start of the datapath", source }));
        }
    }
}

/// Waits until a thread of the datapath dies; `None` if the datapath was stopped first. A worker that died would leave its
/// share of the flows unanswered, or the gate unwatched: better no daemon, and a start from the beginning.
async fn dead_thread(member: &std::sync::Weak<Member>) -> Option<String> {
    loop {
        // No handle is kept over the wait: who stops the datapath waits for all to be gone.
        let dead = member.upgrade()?.datapath()?.dead_thread();
        if dead.is_some() {
            return dead;
        }
        tokio::time::sleep(SUPERVISE).await;
    }
}

fn queues() -> (Sinks, mpsc::Receiver<Hint>, mpsc::Receiver<Proposal>) {
    let (hints, hints_end) = mpsc::channel(QUEUE);
    let (proposals, proposals_end) = mpsc::channel(QUEUE);
    (Sinks { hints, proposals }, hints_end, proposals_end)
}

/// Queues whose other end throws everything away: see [`crate::config::Lab`].
fn nowhere() -> Sinks {
    tracing::warn!("[lab] cut_replication: the other members hear nothing of this one's packets");
    let (sinks, mut hints, mut proposals) = queues();
    tokio::spawn(async move { while hints.recv().await.is_some() {} });
    tokio::spawn(async move { while proposals.recv().await.is_some() {} });
    sinks
}

/// Makes the session table's hashes unforeseeable. Without random numbers the clock has to do.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => clock::now().0 ^ u64::from(std::process::id()),
    }
}

/// Runs a future to its end even if whoever waits for it goes away.
fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
) -> impl Future<Output = Result<T, ChangeError>> {
    let (done, result) = oneshot::channel();
    tokio::spawn(async move {
        let result = work.await;
        if let Err(error) = &result {
            tracing::warn!(%error, "the membership was not changed");
        }
        // Nobody waits any longer: fine.
        let _ = done.send(result);
    });
    async move { result.await.unwrap_or(Err(ChangeError::Late)) }
}

/// Why the membership was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("another change of the membership is under way on this machine")]
    Busy,
    #[error("this machine is in no cluster")]
    Outside,
    #[error("this machine is a member of cluster {0} already")]
    Inside(String),
    #[error("this machine is a member now, but it is not ready in time; see its log and `palisade cluster status`")]
    Late,
    #[error(transparent)]
    Membership(#[from] MembershipError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Tells systemd that the process lives, for as long as no thread is stuck.
async fn watchdog(daemon: Arc<Daemon>) {
    let Some(every) = systemd::watchdog() else { return };
    loop {
        if daemon.stuck_threads().is_empty() {
            systemd::notify("WATCHDOG=1");
        }
        tokio::time::sleep(every).await;
    }
}

impl HttpState for Daemon {
    fn metrics(&self) -> MetricFamilies {
        metrics::collect(self)
    }

    fn stuck(&self) -> Vec<String> {
        self.stuck_threads()
    }

    fn not_ready(&self) -> Vec<String> {
        Daemon::not_ready(self)
    }
}
