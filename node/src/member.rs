//! A running member: its replication and its datapath, from their start to their end.
//!
//! ```text
//!  open ──> replication runs ── valid lease for the first time ──> datapath runs ──> close
//!               │ the log fails, a task ends         │ refused, a thread dies
//!               └───────────── MemberFailure ────────┘
//! ```
//!
//! A witness has no datapath.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use miette::Diagnostic;
use palisade_engine::{Engine, Hint, LeaseState, MemberId, MemberInfo, Proposal, Role, ZoneId};
use palisade_raft_store::Unreadable;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use crate::affordable::UnaffordableError;
use crate::clock;
use crate::config::{self, Config, INJECT_DEVICE};
use crate::connection_log::{self, ConnectionLog};
use crate::datapath::{self, Condition, Datapath, Gate, Inject, Severity, Sinks, StartError, WorkerWake};
use crate::drain::Drainable;
use crate::lab_panic;
use crate::lease::Lease;
use crate::listen::SecondLock;
use crate::raft::unreadable::REMEDY;
use crate::readiness::Cause;
use crate::replication::{self, ElectionPriority, EndedError, OpenError, Replication, Timing};
use crate::resets::{self, ResetQueue};
use crate::zone_registration;

/// Length of the queues of hints and of proposals from the workers to the replication. What finds them full is dropped
/// and counted.
const SINK_LENGTH: usize = 8192;
/// Age of a worker's heartbeat from which it is stuck. An idle worker beats twice a second.
const WORKER_STUCK_AFTER: Duration = Duration::from_secs(5);
/// Interval at which the datapath's threads are checked for one that died.
const THREAD_CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// Interval at which a task looks for a state of the member that nothing notifies it of.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long the datapath's start waits for the registration of this machine's zones. Nothing passes at the interfaces of a
/// zone that is not registered.
const ZONES_REGISTERED_WITHIN: Duration = Duration::from_secs(3);
/// How long [`Member::close`] waits for other tasks to drop their handles, of the datapath and of the member.
const HANDLES_DROPPED_WITHIN: Duration = Duration::from_secs(2);

/// The version of this program.
pub(crate) const PROGRAM_VERSION: &str = if cfg!(feature = "next-level") {
    concat!(env!("CARGO_PKG_VERSION"), "+next-level")
} else {
    env!("CARGO_PKG_VERSION")
};

/// How a running member ends by itself.
#[derive(Debug)]
pub(crate) enum MemberEnd {
    /// The cluster has removed it.
    Removed,
    /// It cannot go on.
    Failed(MemberFailure),
}

/// Why a running member cannot go on.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum MemberFailure {
    /// The replication ended by itself.
    #[error("the replication ended")]
    #[diagnostic(help("the daemon's log says more; its systemd unit starts it again"))]
    Replication(#[source] EndedError),
    /// It cannot read an entry or a snapshot.
    #[error("this member stops: it cannot read what the others write")]
    #[diagnostic(help("{}", REMEDY))]
    Unreadable(#[source] Unreadable),
    /// The settings ask for more than this machine affords.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Unaffordable(#[from] UnaffordableError),
    /// The datapath does not start.
    #[error("the datapath does not start")]
    #[diagnostic(transparent)]
    Datapath(#[from] StartError),
    /// A task panicked.
    #[error("the member's task `{name}` died")]
    #[diagnostic(help(
        "a bug: report what was logged before this. The gate is closed and nothing passes this machine until the daemon is started again; its systemd unit does so"
    ))]
    Task {
        /// Its name.
        name: &'static str,
    },
    /// A thread of the datapath or of the connection log is dead.
    #[error("the thread {name} died")]
    #[diagnostic(help(
        "a bug: report what was logged before this. The gate is closed and nothing passes this machine until the daemon is started again; its systemd unit does so"
    ))]
    Thread {
        /// Its name.
        name: String,
    },
    /// The task that starts the datapath panicked.
    #[error("the datapath's start broke off")]
    Starter(#[source] JoinError),
}

/// Why a member does not start.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum MemberError {
    /// The workers' eventfds.
    #[error("the packet workers' eventfds cannot be created")]
    Wake(#[source] io::Error),
    /// The threads of the connection log.
    #[error("the connection log cannot be started")]
    Log(#[source] io::Error),
    /// The replication.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Replication(#[from] OpenError),
}

/// A running member.
pub(crate) struct Member {
    pub(crate) replication: Replication,
    pub(crate) engine: Arc<Engine>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) connection_log: ConnectionLog,
    log_writer: Mutex<Option<connection_log::Running>>,
    pub(crate) resets: ResetQueue,
    /// The name and the address of node.toml.
    info: MemberInfo,
    /// The zones of this machine's interfaces, sorted.
    zones: Vec<String>,
    datapath: Mutex<DatapathState>,
    starter: Mutex<Option<JoinHandle<()>>>,
    /// Keeps the replication's queues open where the datapath has others ([`crate::config::Lab`]).
    _sinks: Sinks,
}

/// How far a member's datapath is.
enum DatapathState {
    NotStarted,
    Running(Arc<Datapath>),
    /// The member ends: a datapath that is started now is stopped again.
    Closed,
}

impl Member {
    /// Starts the member that the data folder belongs to and, in the background, its datapath. What ends it later is sent
    /// to `ends`.
    pub(crate) async fn open(
        config: &Arc<Config>,
        gate: Option<Gate>,
        second_lock: SecondLock,
        ends: &mpsc::Sender<MemberEnd>,
    ) -> Result<Arc<Member>, MemberError> {
        let workers = if config.role == Role::Witness { 0 } else { config.datapath.workers };
        let wake = WorkerWake::new(workers).map_err(MemberError::Wake)?;
        let lease = Arc::new(Lease::default());
        let (sinks, hints, proposals) = queues();
        let (connection_log, log_queue) = ConnectionLog::new(&config.log);
        let options = replication::Options {
            connection_log: connection_log.clone(),
            second_lock,
            ..replication::Options::from(&**config)
        };
        let info = options.info();
        let replication = Replication::open(options, hints, proposals, wake.clone(), lease.clone()).await?;
        let engine = replication.engine();
        let log_writer = log_queue.start(&config.name, &config.log, engine.clone()).map_err(MemberError::Log)?;
        let identity = replication.identity();
        tracing::info!(cluster = %identity.cluster, member = %identity.member, starts = identity.starts, "the member runs");
        let (reset_queue, resets) = ResetQueue::new(sinks.hints.clone(), replication.metrics());
        let member = Arc::new(Member {
            replication,
            engine,
            lease,
            connection_log,
            log_writer: Mutex::new(Some(log_writer)),
            resets: reset_queue,
            info,
            zones: zone_registration::of(config),
            datapath: Mutex::new(DatapathState::NotStarted),
            starter: Mutex::new(None),
            _sinks: sinks.clone(),
        });
        if let Some(why) = member.registered_otherwise(false) {
            tracing::warn!("{why}");
        }
        let (ended, failed) = (member.replication.failed(), ends.clone());
        let (removed, lease) = (member.replication.removed(), member.lease.clone());
        spawn(ends, "end of the member", async move {
            let mut ended = std::pin::pin!(ended);
            tokio::select! {
                why = &mut ended => return report_failure(&failed, why),
                () = removed => {}
            }
            // At once: nothing that it knows counts any longer.
            lease.remove();
            report(&failed, MemberEnd::Removed);
            report_failure(&failed, ended.await);
        });
        spawn(ends, "zone registration", zone_registration::run(Arc::downgrade(&member)));
        spawn(ends, "resets", resets::run(Arc::downgrade(&member), resets));
        spawn(ends, "threads of the connection log", follow_log_threads(Arc::downgrade(&member), ends.clone()));
        spawn(ends, "settings", watch_settings(Arc::downgrade(&member), ends.clone()));
        if config.role == Role::Firewall {
            let starting = run_datapath(config.clone(), gate, Arc::downgrade(&member), wake, sinks, ends.clone());
            *member.starter.lock() = Some(spawn(ends, "start of the datapath", starting));
        }
        Ok(member)
    }

    /// Stops the datapath and the replication. When this returns, the data folder is free.
    pub(crate) async fn close(self: Arc<Member>) {
        if let Some(starter) = self.starter.lock().take() {
            starter.abort();
        }
        let state = std::mem::replace(&mut *self.datapath.lock(), DatapathState::Closed);
        if let DatapathState::Running(datapath) = state {
            // Joins the workers' threads.
            let stopped = spawn_blocking(move || stop_last_handle(datapath)).await;
            if let Err(error) = stopped {
                tracing::error!(%error, "the datapath did not stop as it should");
            }
        }
        self.replication.shutdown().await;
        let log_writer = self.log_writer.lock().take();
        if spawn_blocking(move || drop(log_writer)).await.is_err() {
            tracing::error!("the connection log did not stop as it should");
        }
        // Requests that still use the member end within their deadlines. A `join` right after a `leave` needs the lock of
        // the data folder.
        let deadline = clock::now() + HANDLES_DROPPED_WITHIN;
        while Arc::strong_count(&self) > 1 && clock::now() < deadline {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// The datapath, if it runs.
    pub(crate) fn datapath(&self) -> Option<Arc<Datapath>> {
        match &*self.datapath.lock() {
            DatapathState::Running(datapath) => Some(datapath.clone()),
            DatapathState::NotStarted | DatapathState::Closed => None,
        }
    }

    /// Where this member stands now.
    pub(crate) fn lease_state(&self) -> LeaseState {
        self.lease.state_at(clock::now())
    }

    /// The name and the address of node.toml.
    pub(crate) fn info(&self) -> &MemberInfo {
        &self.info
    }

    /// The zones of this machine's interfaces, sorted.
    pub(crate) fn zones(&self) -> &[String] {
        &self.zones
    }

    /// Whether the replicated state has this member's zones, as applied here.
    pub(crate) fn zones_are_registered(&self) -> bool {
        let cluster = self.engine.cluster_state();
        cluster
            .member_zones
            .get(&self.replication.identity().member)
            .map_or(self.zones.is_empty(), |z| *z == self.zones)
    }

    /// The zones of this machine's interfaces that have no number yet: nothing passes there.
    fn unregistered_zones(&self) -> Vec<String> {
        let cluster = self.engine.cluster_state();
        self.zones.iter().filter(|zone| cluster.zone(zone) == ZoneId::UNKNOWN).cloned().collect()
    }

    /// What keeps a member with this role from full readiness.
    pub(crate) fn unready(&self, role: Role) -> Vec<Cause> {
        let mut causes = Vec::new();
        if self.lease.is_removed() {
            return vec![Cause::withdraw(replication::RemovedError::from(self.replication.identity()).to_string())];
        }
        match (self.lease_state(), self.lease.is_suspect()) {
            (LeaseState::Valid, _) => {}
            (LeaseState::Grace, true) => {
                causes.push(Cause::fallback(
                    "what this member has applied is being repaired: only established sessions pass",
                ));
            }
            (LeaseState::Grace, false) => {
                let why = self.without_lease("is cut off from");
                causes.push(Cause::fallback(format!("{why}: only established sessions pass")));
            }
            (LeaseState::Expired, _) => {
                let why = self.without_lease("has not caught up with");
                causes.push(Cause::withdraw(format!("{why}: nothing passes")));
            }
        }
        if role == Role::Firewall {
            causes.extend(self.unregistered_zones().into_iter().map(|zone| {
                let reason =
                    format!("the zone {zone} is not registered in the cluster yet: nothing passes at its interfaces");
                Cause::fallback(reason)
            }));
            match self.datapath() {
                None => causes.push(Cause::withdraw("the datapath does not run yet")),
                Some(datapath) => causes.extend(datapath.conditions().iter().map(cause)),
            }
        }
        causes
    }

    /// What the cluster should be told, because node.toml says otherwise. `only_address`: only if nobody reaches this member therefore.
    fn registered_otherwise(&self, only_address: bool) -> Option<String> {
        let own = &self.info;
        let MemberInfo { name, address, .. } =
            self.replication.registered_otherwise(own).filter(|info| !only_address || info.address != own.address)?;
        Some(format!(
            "node.toml says that this member is {} at {}, the cluster knows it as {name} at {address}: tell the cluster with \
             `palisade cluster update`",
            own.name, own.address
        ))
    }

    /// Why there is no valid lease: there is no quorum, or this member alone lacks something.
    fn without_lease(&self, what: &str) -> String {
        if let Some(moved) = self.registered_otherwise(true) {
            return moved;
        }
        if self.replication.has_quorum() {
            return format!("this member {what} the cluster");
        }
        replication::explain_quorum(&self.replication.status().quorum)
    }

    /// The packet workers that make no progress.
    pub(crate) fn stuck_threads(&self) -> Vec<String> {
        let now = clock::now();
        let metrics = self.datapath().map(|d| d.metrics());
        let workers = metrics.iter().flat_map(|m| m.workers.iter().enumerate());
        workers
            .filter(|(_, w)| now.since(w.heartbeat.get()) > WORKER_STUCK_AFTER)
            .map(|(n, _)| format!("packet worker {n} has made no progress for more than {WORKER_STUCK_AFTER:?}"))
            .collect()
    }
}

impl Drainable for Member {
    fn forwarded(&self) -> Option<u64> {
        self.datapath().map(|datapath| datapath.metrics().forwarded())
    }

    fn is_leader(&self) -> bool {
        self.replication.is_replaceable_leader()
    }

    fn set_election_priority(&self, priority: ElectionPriority) {
        self.replication.set_election_priority(priority);
    }
}

impl From<&Config> for replication::Options {
    fn from(c: &Config) -> replication::Options {
        let mut engine = palisade_engine::Config::new(MemberId(0), 0, seed());
        engine.affordable_sessions = c.limits.affordable_sessions();
        replication::Options {
            data_dir: c.data_dir.clone(),
            name: c.name.clone(),
            listen: c.cluster.listen,
            interfaces: c.cluster.interfaces.clone(),
            second_lock: SecondLock::default(),
            advertise: c.cluster.advertise.to_string(),
            role: c.role,
            engine,
            timing: Timing {
                heartbeat: c.raft.heartbeat_interval,
                election: c.raft.election_timeout,
                ..Timing::default()
            },
            log: replication::LogSize::default(),
            progress_rate: c.limits.progress_rate as u64,
            connection_log: ConnectionLog::default(),
        }
    }
}

impl From<&Config> for datapath::Options {
    fn from(c: &Config) -> datapath::Options {
        let d = &c.datapath;
        let interface = |i: &config::Interface| datapath::Interface {
            name: i.name.clone(),
            zone: i.zone.clone(),
            antispoof: i.antispoof,
            track: i.track,
        };
        datapath::Options {
            interfaces: c.interfaces.iter().map(interface).collect(),
            bypass_interfaces: d.bypass_interfaces.clone(),
            workers: d.workers,
            hold: d.hold,
            stale_after: d.stale_after,
            ring_memory: d.ring_memory,
            device: INJECT_DEVICE.to_owned(),
            inject: match d.inject {
                config::Inject::Auto => Inject::Auto,
                config::Inject::Tun => Inject::Tun,
                config::Inject::Veth => Inject::Veth,
            },
            manage_rp_filter: d.manage_rp_filter,
            manage_forwarding: d.manage_forwarding,
            ..datapath::Options::default()
        }
    }
}

/// Random bits that make the session table's hashes unpredictable; the clock where the system has no random numbers.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => clock::now().0 ^ u64::from(std::process::id()),
    }
}

/// What a condition of the datapath means for routers.
fn cause(condition: &Condition) -> Cause {
    match condition.severity() {
        Severity::Failed => Cause::failed(condition.to_string()),
        Severity::Degraded => Cause::fallback(condition.to_string()),
    }
}

fn report(ends: &mpsc::Sender<MemberEnd>, end: MemberEnd) {
    // Full only while the daemon deals with an earlier one.
    drop(ends.try_send(end));
}

/// Runs a task of the member. One that panics ends the daemon.
fn spawn(
    ends: &mpsc::Sender<MemberEnd>,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let alarm = PanicAlarm { name, ends: ends.clone() };
    tokio::spawn(async move {
        // Dropped with the task, also when it panics.
        let _alarm = alarm;
        lab_panic::task(name, task).await;
    })
}

/// Reports the panic of its task.
struct PanicAlarm {
    name: &'static str,
    ends: mpsc::Sender<MemberEnd>,
}

impl Drop for PanicAlarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            report(&self.ends, MemberEnd::Failed(MemberFailure::Task { name: self.name }));
        }
    }
}

/// Waits until a thread of the connection log dies: what the policy wants logged would be lost, and only a counter would say so.
async fn follow_log_threads(member: Weak<Member>, ends: mpsc::Sender<MemberEnd>) {
    loop {
        // No handle is kept during the wait: `close` waits until all are dropped.
        let Some(member) = member.upgrade() else { return };
        let dead = member.log_writer.lock().as_ref().and_then(connection_log::Running::dead_thread);
        drop(member);
        if let Some(name) = dead {
            return report(&ends, MemberEnd::Failed(MemberFailure::Thread { name }));
        }
        tokio::time::sleep(THREAD_CHECK_INTERVAL).await;
    }
}

/// Reports why the replication ended; `None`: it was shut down.
fn report_failure(ends: &mpsc::Sender<MemberEnd>, why: Option<EndedError>) {
    let failure = match why {
        Some(EndedError::Unreadable(unreadable)) => MemberFailure::Unreadable(unreadable),
        Some(why) => MemberFailure::Replication(why),
        None => return,
    };
    report(ends, MemberEnd::Failed(failure));
}

/// Stops the datapath once all other handles to it are dropped; after [`HANDLES_DROPPED_WITHIN`] the last of them does so.
fn stop_last_handle(mut datapath: Arc<Datapath>) {
    let deadline = clock::now() + HANDLES_DROPPED_WITHIN;
    loop {
        match Arc::try_unwrap(datapath) {
            Ok(datapath) => return datapath.stop(),
            Err(shared) => datapath = shared,
        }
        if clock::now() >= deadline {
            return;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Waits until the member's lease is valid for the first time, starts its datapath, and watches its threads.
async fn run_datapath(
    config: Arc<Config>,
    gate: Option<Gate>,
    member: Weak<Member>,
    wake: WorkerWake,
    sinks: Sinks,
    ends: mpsc::Sender<MemberEnd>,
) {
    loop {
        let Some(member) = member.upgrade() else { return };
        if member.lease_state() == LeaseState::Valid {
            break;
        }
        drop(member);
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let deadline = clock::now() + ZONES_REGISTERED_WITHIN;
    while clock::now() < deadline && member.upgrade().is_some_and(|member| !member.unregistered_zones().is_empty()) {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let Some(starting) = member.upgrade() else { return };
    let sinks = if config.lab.cut_replication { null_sinks() } else { sinks };
    // The start queries the kernel, so it blocks. If this task is aborted meanwhile, the blocking part goes on
    // and finds `Closed`.
    let started = spawn_blocking(move || starting.start_datapath(&config, gate, wake, sinks)).await;
    let failure = match started {
        Ok(Ok(())) => {
            tracing::info!("the datapath runs");
            dead_thread(&member).await.map(|name| MemberFailure::Thread { name })
        }
        Ok(Err(error)) => Some(error.into()),
        Err(error) => Some(MemberFailure::Starter(error)),
    };
    if let Some(failure) = failure {
        report(&ends, MemberEnd::Failed(failure));
    }
}

impl Member {
    fn start_datapath(
        &self,
        config: &Config,
        gate: Option<Gate>,
        wake: WorkerWake,
        sinks: Sinks,
    ) -> Result<(), StartError> {
        let (engine, lease) = (self.engine.clone(), self.lease.clone());
        let connection_log = self.connection_log.clone();
        let options = datapath::Options { connection_log, gate, ..datapath::Options::from(config) };
        let datapath = datapath::start(options, engine, lease, wake, sinks)?;
        let mut state = self.datapath.lock();
        match *state {
            DatapathState::Closed => drop(datapath),
            DatapathState::NotStarted | DatapathState::Running(_) => {
                *state = DatapathState::Running(Arc::new(datapath));
            }
        }
        Ok(())
    }
}

/// Ends a member whose settings ask for more than it affords: an administrator has overridden it. It would take memory that it
/// has not. At its next start it says the same, until its node.toml has changed or the settings have.
async fn watch_settings(member: Weak<Member>, ends: mpsc::Sender<MemberEnd>) {
    loop {
        let Some(member) = member.upgrade() else { return };
        if let Err(error) = UnaffordableError::check(&member.engine) {
            return report(&ends, MemberEnd::Failed(error.into()));
        }
        // No handle is kept during the wait: the member's end waits until all are dropped.
        drop(member);
        tokio::time::sleep(THREAD_CHECK_INTERVAL).await;
    }
}

/// Waits until a thread of the datapath dies; `None` if the datapath was stopped first. Without a worker its share of the
/// flows gets no verdict, and without the watcher nobody restores the gate: the daemon ends and starts from the beginning.
async fn dead_thread(member: &Weak<Member>) -> Option<String> {
    loop {
        // No handle is kept during the wait: `close` waits until all are dropped.
        let dead = member.upgrade()?.datapath()?.dead_thread();
        if dead.is_some() {
            return dead;
        }
        tokio::time::sleep(THREAD_CHECK_INTERVAL).await;
    }
}

fn queues() -> (Sinks, mpsc::Receiver<Hint>, mpsc::Receiver<Proposal>) {
    let (hints, hint_queue) = mpsc::channel(SINK_LENGTH);
    let (proposals, proposal_queue) = mpsc::channel(SINK_LENGTH);
    (Sinks { hints, proposals }, hint_queue, proposal_queue)
}

/// Queues whose other end discards everything: see [`crate::config::Lab`].
fn null_sinks() -> Sinks {
    tracing::warn!("[lab] cut_replication: the other members get no hints and no sessions from this one");
    let (sinks, mut hints, mut proposals) = queues();
    tokio::spawn(async move { while hints.recv().await.is_some() {} });
    tokio::spawn(async move { while proposals.recv().await.is_some() {} });
    sinks
}
