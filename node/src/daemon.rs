//! The daemon's state: the configuration, the member if this machine is one, and whether it is drained. The admin socket
//! and the HTTP port work on it; [`crate::node`] composes it.

use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use miette::Diagnostic;
use palisade_engine::replica::Assignment;
use palisade_engine::{LeaseState, Role};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock;
use crate::config::Config;
use crate::datapath::Gate;
use crate::drain::{Drain, DrainOutcome, DrainReason, Draining};
use crate::limits::AdminLimits;
use crate::listen::SecondLock;
use crate::member::{Member, MemberEnd, MemberError};
use crate::readiness::{Announcer, Cause, Readiness};
use crate::replication::{self, MembershipError, NoQuorum, OpenError, RemovedError, Suffrage};

/// How long a member that ends waits until routers turn away and another member leads. The rest of the time for a stop is
/// for closing.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(3500);
/// How long the first member of a cluster may take until it is ready.
const INIT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a member that joins may take to catch up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(600);
/// Interval at which a change of the membership looks whether the member is ready.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long a member that has joined waits until it votes. The cluster lets members vote one after the other.
const VOTE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a removed member waits until the voters have changed.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why no member runs on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outside {
    /// It is in no cluster.
    NoCluster,
    /// Its member starts: it reads its log.
    Starting,
    /// The cluster has removed it.
    Removed(RemovedError),
}

/// A member that has joined.
pub(crate) struct Joined {
    pub(crate) member: Arc<Member>,
    /// Whether it votes; else it is a learner.
    pub(crate) voter: bool,
    /// The members that vote.
    pub(crate) voters: usize,
}

/// Why the membership was not changed.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub(crate) enum ChangeError {
    #[error("another change of the membership is in progress on this machine")]
    #[diagnostic(help("wait until it is done"))]
    Busy,
    #[error("this machine is in no cluster")]
    #[diagnostic(help(
        "create a cluster with `palisade cluster init`, or join one with `palisade cluster join TOKEN`"
    ))]
    NotAMember,
    #[error("this member is starting: it reads its log")]
    #[diagnostic(help("wait a moment; `palisade cluster status` says when it runs"))]
    Starting,
    #[error(transparent)]
    #[diagnostic(transparent)]
    Removed(RemovedError),
    #[error(transparent)]
    #[diagnostic(transparent)]
    NoQuorum(#[from] NoQuorum),
    #[error("this machine is a member of cluster {0} already")]
    #[diagnostic(help(
        "leave that cluster first: `palisade cluster leave`. If that cluster is lost, or cannot be reached for good: `palisade cluster join --abandon TOKEN`"
    ))]
    AlreadyMember(String),
    #[error("this machine is a member now, but it is not ready in time")]
    #[diagnostic(help("see the daemon's log and `palisade cluster status`"))]
    Timeout,
    #[error(transparent)]
    #[diagnostic(transparent)]
    Membership(#[from] MembershipError),
    #[error(transparent)]
    #[diagnostic(transparent)]
    Start(#[from] MemberError),
}

/// The state that the daemon's tasks share.
pub(crate) struct Daemon {
    config: Arc<Config>,
    /// The gate, where there is one: not on a witness.
    gate: Option<Gate>,
    /// Where the interfaces of listeners are enforced once more.
    second_lock: SecondLock,
    member: ArcSwapOption<Member>,
    /// Held by whatever creates, joins or leaves a cluster.
    change: tokio::sync::Mutex<()>,
    drain: Drain,
    announcer: Mutex<Announcer>,
    admin_limits: Arc<AdminLimits>,
    /// What `member` is not there for.
    outside: Mutex<Outside>,
    ends: mpsc::Sender<MemberEnd>,
}

impl Daemon {
    /// A daemon without a member. What ends a member later is sent to `ends`.
    pub(crate) fn new(
        config: Config,
        gate: Option<Gate>,
        second_lock: SecondLock,
        ends: mpsc::Sender<MemberEnd>,
    ) -> Daemon {
        let (member, change) = (ArcSwapOption::empty(), tokio::sync::Mutex::new(()));
        let announcer = Mutex::new(Announcer::new(config.readiness.hold_down));
        Daemon {
            second_lock,
            config: Arc::new(config),
            gate,
            member,
            change,
            drain: Drain::new(),
            announcer,
            admin_limits: Arc::default(),
            outside: Mutex::new(Outside::NoCluster),
            ends,
        }
    }

    /// The bounds of the administration.
    pub(crate) fn admin_limits(&self) -> Arc<AdminLimits> {
        self.admin_limits.clone()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The member, if this machine is one.
    pub(crate) fn member(&self) -> Option<Arc<Member>> {
        self.member.load_full()
    }

    /// Why no member runs here; `None`: one does.
    pub(crate) fn outside(&self) -> Option<Outside> {
        // In this order: a member is there before it is not outside any longer.
        let outside = self.outside.lock().clone();
        self.member.load().is_none().then_some(outside)
    }

    /// The member, or why there is none.
    pub(crate) fn require_member(&self) -> Result<Arc<Member>, ChangeError> {
        self.member().ok_or_else(|| self.why_outside())
    }

    fn why_outside(&self) -> ChangeError {
        match self.outside.lock().clone() {
            Outside::NoCluster => ChangeError::NotAMember,
            Outside::Starting => ChangeError::Starting,
            Outside::Removed(removed) => ChangeError::Removed(removed),
        }
    }

    /// How far a drain is; `None`: this member takes traffic.
    pub(crate) fn draining(&self) -> Option<Draining> {
        self.drain.now()
    }

    /// The progress of a drain.
    pub(crate) fn follow_drain(&self) -> watch::Receiver<Option<Draining>> {
        self.drain.follow()
    }

    /// Starts the member that the data folder belongs to.
    pub(crate) async fn open(&self) -> Result<(), MemberError> {
        let _change = self.change.lock().await;
        self.start().await.map(drop)
    }

    /// Begins a change of the membership. Waits for the end of a removed member, which nobody asked for here.
    async fn begin_change(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, ChangeError> {
        match self.change.try_lock() {
            Ok(change) => Ok(change),
            Err(_) if self.is_removed() => Ok(self.change.lock().await),
            Err(_) => Err(ChangeError::Busy),
        }
    }

    /// Why a change of the membership cannot begin now.
    fn why_busy(&self) -> ChangeError {
        if self.is_removed() { self.why_outside() } else { ChangeError::Busy }
    }

    /// Whether the cluster has removed this machine, also while its member still ends.
    fn is_removed(&self) -> bool {
        matches!(*self.outside.lock(), Outside::Removed(_))
            && self.member.load().as_ref().is_none_or(|m| m.lease.is_removed())
    }

    /// Creates a cluster. The work goes on if the caller drops the returned future.
    pub(crate) fn init(
        self: &Arc<Daemon>,
        settings: Vec<Assignment>,
        author: String,
    ) -> impl Future<Output = Result<Arc<Member>, ChangeError>> + use<> {
        let daemon = self.clone();
        detached(async move {
            let _change = daemon.begin_change().await?;
            daemon.check_not_a_member()?;
            let options = replication::Options::from(&*daemon.config);
            replication::init_with(&options, &settings, &author).await?;
            let member = daemon.start().await?;
            daemon.wait_ready(&member, INIT_TIMEOUT).await?;
            Ok(member)
        })
    }

    /// Joins a cluster. The work goes on if the caller drops the returned future.
    pub(crate) fn join(
        self: &Arc<Daemon>,
        token: String,
        abandon: bool,
    ) -> impl Future<Output = Result<Joined, ChangeError>> + use<> {
        let daemon = self.clone();
        detached(async move {
            let _change = daemon.begin_change().await?;
            match daemon.member() {
                Some(member) if abandon => daemon.give_up(member).await?,
                // An attempt before has come so far, and its answer was lost.
                Some(member) if is_of(&token, &member) => {
                    daemon.wait_ready(&member, CATCH_UP_TIMEOUT).await?;
                    return Ok(daemon.wait_vote(member).await);
                }
                _ => daemon.check_not_a_member()?,
            }
            replication::join(&replication::Options::from(&*daemon.config), &token).await?;
            let member = daemon.start().await?;
            daemon.wait_ready(&member, CATCH_UP_TIMEOUT).await?;
            Ok(daemon.wait_vote(member).await)
        })
    }

    /// Waits until a member that has joined votes, unless there are enough voters.
    async fn wait_vote(&self, member: Arc<Member>) -> Joined {
        let begin = clock::now();
        loop {
            let status = member.replication.status();
            let own = status.members.iter().find(|m| m.id == status.member).map(|m| m.suffrage);
            let voter = own == Some(Suffrage::Voter);
            let voters = status.quorum.voters;
            let enough = own == Some(Suffrage::Learner) && voters >= member.engine.settings().max_voters();
            if voter || enough || member.lease.is_removed() || clock::now().since(begin) > VOTE_TIMEOUT {
                return Joined { member, voter, voters };
            }
            drop(status);
            tokio::time::sleep(READY_POLL_INTERVAL).await;
        }
    }

    /// The cluster has removed this member: ends it, once Raft does not need its vote any longer.
    pub(crate) async fn on_removed(self: Arc<Daemon>) {
        let _change = self.change.lock().await;
        // It may have left by itself meanwhile, or be another one.
        let Some(member) = self.member().filter(|member| member.lease.is_removed()) else { return };
        let removed = RemovedError::from(member.replication.identity());
        *self.outside.lock() = Outside::Removed(removed.clone());
        tracing::error!("{removed}; to come back as a new member: `palisade cluster join TOKEN`");
        member.replication.wait_uncounted(REMOVAL_TIMEOUT).await;
        if let Err(error) = self.give_up(member).await {
            tracing::error!(%error, "the data folder could not be marked as that of a removed member");
        }
    }

    /// Ends the member for good: its identity is not used again. Its data are set aside by the next `join`.
    async fn give_up(&self, member: Arc<Member>) -> Result<(), ChangeError> {
        let removed = RemovedError::from(member.replication.identity());
        let marked = member.replication.mark_removed();
        drop(member);
        *self.outside.lock() = Outside::Removed(removed);
        self.close().await;
        self.drain.end(None::<&Member>);
        Ok(marked?)
    }

    /// Drains for at most `timeout`, then leaves the cluster. The work goes on if the caller drops the returned future.
    pub(crate) fn leave(
        self: &Arc<Daemon>,
        timeout: Duration,
        wait: Duration,
    ) -> impl Future<Output = Result<(), ChangeError>> + use<> {
        let daemon = self.clone();
        detached(async move {
            let _change = daemon.begin_change().await?;
            let member = daemon.require_member()?;
            member.replication.require_quorum(wait).await?;
            // Before any router turns away for nothing.
            if member.engine.cluster_state().is_last(member.replication.identity().member) {
                return Err(MembershipError::LastMember.into());
            }
            let before = daemon.drain.now();
            daemon.drain.begin(DrainReason::Leaving, &member);
            // Whether or not traffic has moved away in time, the member leaves.
            daemon.drain.wait_drained(timeout).await;
            daemon.drain.withdraw();
            let left = member.replication.leave().await;
            match (&left, before) {
                (Ok(()), _) => {
                    drop(member);
                    *daemon.outside.lock() = Outside::NoCluster;
                    daemon.close().await;
                    daemon.drain.end(None::<&Member>);
                }
                (Err(_), Some(before)) => daemon.drain.begin(before.reason, &member),
                (Err(_), None) => daemon.drain.end(Some(&*member)),
            }
            Ok(left?)
        })
    }

    fn check_not_a_member(&self) -> Result<(), ChangeError> {
        match self.member() {
            Some(member) => Err(ChangeError::AlreadyMember(member.replication.identity().cluster.clone())),
            None => Ok(()),
        }
    }

    async fn wait_ready(&self, member: &Arc<Member>, timeout: Duration) -> Result<(), ChangeError> {
        let ready = async {
            loop {
                let witness = self.config.role == Role::Witness;
                if member.lease.is_removed() {
                    return Err(ChangeError::Removed(RemovedError::from(member.replication.identity())));
                }
                if member.lease_state() == LeaseState::Valid && (witness || member.datapath().is_some()) {
                    return Ok(());
                }
                tokio::time::sleep(READY_POLL_INTERVAL).await;
            }
        };
        tokio::time::timeout(timeout, ready).await.unwrap_or(Err(ChangeError::Timeout))
    }

    async fn start(&self) -> Result<Arc<Member>, MemberError> {
        if replication::has_identity(&self.config.data_dir) {
            *self.outside.lock() = Outside::Starting;
        }
        match Member::open(&self.config, self.gate.clone(), self.second_lock.clone(), &self.ends).await {
            Ok(member) => {
                self.member.store(Some(member.clone()));
                Ok(member)
            }
            Err(error) => {
                *self.outside.lock() = match &error {
                    MemberError::Replication(OpenError::Removed(removed)) => Outside::Removed(removed.clone()),
                    _ => Outside::NoCluster,
                };
                Err(error)
            }
        }
    }

    /// Drains before the daemon ends: not ready, and leadership to another member, while routers turn away.
    pub(crate) async fn graceful_shutdown(&self) {
        let Some(member) = self.member() else { return };
        self.drain.begin(DrainReason::Stopping, &member);
        drop(member);
        match self.drain.wait_drained(SHUTDOWN_GRACE).await {
            DrainOutcome::Drained(d) if d.leader => {
                tracing::info!("ending as the leader: no other member took over leadership in time")
            }
            DrainOutcome::TimedOut(d) => {
                let (packets, leader) = (d.packets, d.leader);
                tracing::info!(packets, leader, "ending while traffic still arrives (packets in the last second)");
            }
            DrainOutcome::Drained(_) | DrainOutcome::Cancelled => {}
        }
        self.drain.withdraw();
    }

    /// Turns traffic away until [`Daemon::undrain`]. The future ends when traffic has moved away, or after `timeout`.
    pub(crate) fn drain(
        &self,
        timeout: Duration,
    ) -> Result<impl Future<Output = DrainOutcome> + Send + use<>, ChangeError> {
        let _change = self.change.try_lock().map_err(|_| self.why_busy())?;
        let member = self.require_member()?;
        self.drain.begin(DrainReason::Operator, &member);
        Ok(self.drain.wait_drained(timeout))
    }

    /// Takes traffic again. Whether the member was drained before.
    pub(crate) fn undrain(&self) -> Result<bool, ChangeError> {
        let _change = self.change.try_lock().map_err(|_| self.why_busy())?;
        let member = self.require_member()?;
        let was_drained = self.drain.now().is_some();
        self.drain.end(Some(&*member));
        Ok(was_drained)
    }

    /// Ends the member, if there is one. When this returns, its data folder is free.
    pub(crate) async fn close(&self) {
        if let Some(member) = self.member.swap(None) {
            member.close().await;
        }
    }

    /// How much of the traffic routers should give this member now.
    pub(crate) fn readiness(&self) -> Readiness {
        let mut causes = Vec::new();
        if let Some(draining) = self.drain.now() {
            let reason = draining.reason.explanation();
            causes.push(if draining.over { Cause::withdraw(reason) } else { Cause::turned_away(reason) });
        }
        match self.member() {
            Some(member) => causes.extend(member.unready(self.config.role)),
            None => causes.push(Cause::withdraw(self.why_outside().to_string())),
        }
        self.announcer.lock().announce(causes, clock::now())
    }

    /// The threads that make no progress.
    pub(crate) fn stuck_threads(&self) -> Vec<String> {
        self.member().map(|member| member.stuck_threads()).unwrap_or_default()
    }
}

/// Whether a join token is of the cluster that this member is in.
fn is_of(token: &str, member: &Member) -> bool {
    replication::Token::from_str(token).is_ok_and(|token| token.cluster == member.replication.identity().cluster)
}

/// Runs a future to its end even if the caller drops the one that is returned.
fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
) -> impl Future<Output = Result<T, ChangeError>> {
    let (done, result) = oneshot::channel();
    tokio::spawn(async move {
        let result = work.await;
        if let Err(error) = &result {
            tracing::warn!(%error, "the membership was not changed");
        }
        // The caller may be gone.
        let _ = done.send(result);
    });
    async move { result.await.unwrap_or(Err(ChangeError::Timeout)) }
}
