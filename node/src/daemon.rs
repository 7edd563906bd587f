//! The daemon's state: the configuration, the member if this machine is one, and whether it is drained. The admin socket
//! and the HTTP port work on it; [`crate::node`] composes it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use miette::Diagnostic;
use palisade_engine::{LeaseState, Role};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock;
use crate::config::Config;
use crate::datapath::Gate;
use crate::drain::{Drain, DrainOutcome, DrainReason, Draining};
use crate::limits::AdminLimits;
use crate::member::{Member, MemberError, MemberFailure};
use crate::readiness::{Announcer, Cause, Readiness};
use crate::replication::{self, MembershipError};

/// How long a member that ends waits until routers turn away and another member leads.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How long the first member of a cluster may take until it is ready.
const INIT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a member that joins may take to catch up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(600);
/// Interval at which a change of the membership looks whether the member is ready.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(20);

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
    #[error("this machine is a member of cluster {0} already")]
    #[diagnostic(help("leave that cluster first: `palisade cluster leave`"))]
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
    member: ArcSwapOption<Member>,
    /// Held by whatever creates, joins or leaves a cluster.
    change: tokio::sync::Mutex<()>,
    drain: Drain,
    announcer: Mutex<Announcer>,
    admin_limits: Arc<AdminLimits>,
    failures: mpsc::Sender<MemberFailure>,
}

impl Daemon {
    /// A daemon without a member. What ends a member later is sent to `failures`.
    pub(crate) fn new(config: Config, gate: Option<Gate>, failures: mpsc::Sender<MemberFailure>) -> Daemon {
        let (member, change) = (ArcSwapOption::empty(), tokio::sync::Mutex::new(()));
        let announcer = Mutex::new(Announcer::new(config.readiness.hold_down));
        Daemon {
            config: Arc::new(config),
            gate,
            member,
            change,
            drain: Drain::new(),
            announcer,
            admin_limits: Arc::default(),
            failures,
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

    /// Creates a cluster. The work goes on if the caller drops the returned future.
    pub(crate) fn init(self: &Arc<Daemon>) -> impl Future<Output = Result<Arc<Member>, ChangeError>> + use<> {
        let daemon = self.clone();
        detached(async move {
            let _change = daemon.change.try_lock().map_err(|_| ChangeError::Busy)?;
            daemon.check_not_a_member()?;
            replication::init(&replication::Options::from(&*daemon.config)).await?;
            let member = daemon.start().await?;
            daemon.wait_ready(&member, INIT_TIMEOUT).await?;
            Ok(member)
        })
    }

    /// Joins a cluster. The work goes on if the caller drops the returned future.
    pub(crate) fn join(
        self: &Arc<Daemon>,
        token: String,
    ) -> impl Future<Output = Result<Arc<Member>, ChangeError>> + use<> {
        let daemon = self.clone();
        detached(async move {
            let _change = daemon.change.try_lock().map_err(|_| ChangeError::Busy)?;
            daemon.check_not_a_member()?;
            replication::join(&replication::Options::from(&*daemon.config), &token).await?;
            let member = daemon.start().await?;
            daemon.wait_ready(&member, CATCH_UP_TIMEOUT).await?;
            Ok(member)
        })
    }

    /// Drains for at most `timeout`, then leaves the cluster. The work goes on if the caller drops the returned future.
    pub(crate) fn leave(
        self: &Arc<Daemon>,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), ChangeError>> + use<> {
        let daemon = self.clone();
        detached(async move {
            let _change = daemon.change.try_lock().map_err(|_| ChangeError::Busy)?;
            let member = daemon.member().ok_or(ChangeError::NotAMember)?;
            // Before any router turns away for nothing.
            if member.engine.cluster_state().members.len() < 2 {
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
                if member.lease_state() == LeaseState::Valid && (witness || member.datapath().is_some()) {
                    return;
                }
                tokio::time::sleep(READY_POLL_INTERVAL).await;
            }
        };
        tokio::time::timeout(timeout, ready).await.map_err(|_| ChangeError::Timeout)
    }

    async fn start(&self) -> Result<Arc<Member>, MemberError> {
        let member = Member::open(&self.config, self.gate.clone(), &self.failures).await?;
        self.member.store(Some(member.clone()));
        Ok(member)
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
        let _change = self.change.try_lock().map_err(|_| ChangeError::Busy)?;
        let member = self.member().ok_or(ChangeError::NotAMember)?;
        self.drain.begin(DrainReason::Operator, &member);
        Ok(self.drain.wait_drained(timeout))
    }

    /// Takes traffic again. Whether the member was drained before.
    pub(crate) fn undrain(&self) -> Result<bool, ChangeError> {
        let _change = self.change.try_lock().map_err(|_| ChangeError::Busy)?;
        let member = self.member().ok_or(ChangeError::NotAMember)?;
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
            None => causes.push(Cause::withdraw(ChangeError::NotAMember.to_string())),
        }
        self.announcer.lock().announce(causes, clock::now())
    }

    /// The threads that make no progress.
    pub(crate) fn stuck_threads(&self) -> Vec<String> {
        self.member().map(|member| member.stuck_threads()).unwrap_or_default()
    }
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
