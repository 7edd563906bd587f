//! A member's replication: [`builder`] wires the subsystems, and [`Replication`] is what the daemon holds of them.
//!
//! ```text
//!  worker ── Hint ──────> hints ───────── a stream per peer ─────────> service ──> Engine::hint
//!  worker ── Proposal ──> proposals ─ local, or a stream to the leader ─> openraft ──> log ──> apply on every member
//!  admin ─── Command ───────┘                                               │
//!                                                        observed here: the proposal's outcome
//! ```
//!
//! Tasks, all ended by [`Replication::shutdown`] or by dropping it: the member port's server; proposals; hints, with a task
//! for each peer; progress and the failure detector; the lease; elections and the transfer of leadership; who leads and who
//! is a member; the leader's tasks (membership, idle expiry, comparison); scrub and repair; the engine's tick.
//! `docs/replication.md` lists the queues between them with their bounds.

mod builder;
mod error;
mod service;
mod status;
mod tasks;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use openraft::async_runtime::WatchReceiver;
use palisade_engine::replica::{Command, Outcome, PolicyChange, Replica};
use palisade_engine::{Engine, LeaseState, Level, MemberId, MemberInfo, Wake};
use palisade_engine::{Hint, Proposal};
use palisade_proto::member::v1 as wire;
use palisade_raft_store::{Auditor, StoreMetrics};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;

use crate::audit::on_request;
use crate::clock;
use crate::grace::PeerGrace;
use crate::lease::Lease;
use crate::membership::presence::{Presence, Roster};
use crate::membership::register::Membership;
use crate::peer::connections::{Client, Lane};
use crate::policy::put::Put;
use crate::raft::barrier::ReadBarrier;
use crate::raft::config::PalisadeRaft;
use crate::raft::quorum::{QUORUM_POLL_INTERVAL, QuorumContact};
use crate::raft::requests::{AdminRequest, propose_and_wait};
use crate::raft::transfer::LeadershipTransfer;
use crate::raft::unreadable::{Refusals, UnreadableAlarm};
use crate::replication::builder::WorkerSide;
use crate::replication::tasks::Tasks;
use crate::sync::hints::Reachability;

pub use crate::audit::on_request::AuditReport;
pub use crate::membership::error::MembershipError;
pub use crate::membership::identity::{Identity, IdentityError, has_identity};
pub use crate::membership::join::{init, init_with, join};
pub use crate::membership::level::RaiseError;
pub use crate::membership::options::Options;
pub use crate::membership::recover::{RecoverError, Recovered, Recovery, RecoveryPlan, RemovedMember};
pub use crate::membership::register::Removal;
pub use crate::membership::rollback_check::RollbackError;
pub use crate::membership::token::{Token, TokenError};
pub use crate::policy::put::{CandidateReports, PutError, PutInForce};
pub use crate::raft::barrier::ReadBarrierError;
pub use crate::raft::config::{LogSize, Timing};
pub use crate::raft::priority::ElectionPriority;
pub use crate::raft::quorum::{NoQuorum, Quorum, explain as explain_quorum};
pub use crate::raft::requests::ProposeError;
pub use crate::raft::start::RaftStartError;
pub use crate::raft::transfer::TransferError;
pub use crate::replication::error::{EndedError, OpenError, RemovedError};
pub use crate::replication::status::{Member, RaftRole, Status, Suffrage};
pub use crate::replication_metrics::ReplicationMetrics;
pub use crate::sync::events::{SessionChange, SessionEvent};
pub use palisade_raft_store::{LentLimits, LogLimits, SlowDisk};

/// How long the streams of the member port may take to end.
const SERVER_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long Raft may take to stop: a disk that hangs must not keep the process.
const RAFT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// A running member's replication.
pub struct Replication {
    put: Put,
    membership: Membership,
    raft: PalisadeRaft,
    engine: Arc<Engine>,
    auditor: Auditor<Replica>,
    metrics: Arc<ReplicationMetrics>,
    alarm: UnreadableAlarm,
    /// Which entries this member is to take for those of another version.
    #[cfg(test)]
    foreign: crate::raft::unreadable::ForeignEntries,
    refusals: Refusals,
    store: StoreMetrics,
    lease: Arc<Lease>,
    grace: PeerGrace,
    requests: mpsc::Sender<AdminRequest>,
    barrier: ReadBarrier,
    events: broadcast::Sender<Arc<SessionEvent>>,
    reachability: Reachability,
    roster: Roster,
    /// True once this member was removed.
    removed: watch::Receiver<bool>,
    quorum: QuorumContact,
    transfer: LeadershipTransfer,
    priority: watch::Sender<ElectionPriority>,
    server: parking_lot::Mutex<Option<JoinHandle<()>>>,
    tasks: Tasks,
}

impl Drop for Replication {
    fn drop(&mut self) {
        self.tasks.stop();
        // Applying must not wait for a compiler that is gone.
        self.engine.set_packets_pass(false);
        if let Some(server) = self.server.lock().take() {
            server.abort();
        }
        // Connections of other members may hold Raft for a while: it must not go on, and lead, without us.
        let raft = self.raft.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { drop(raft.shutdown().await) });
        }
    }
}

impl Replication {
    /// Starts the member that the data folder belongs to: counts the start, opens the store, replays it, opens the member
    /// port and takes part in the cluster. The lease becomes valid once the member has caught up.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn open<W>(
        options: Options,
        hints: mpsc::Receiver<Hint>,
        proposals: mpsc::Receiver<Proposal>,
        wake: W,
        lease: Arc<Lease>,
    ) -> Result<Replication, OpenError>
    where
        W: Wake + Clone + Send + Sync + 'static,
    {
        builder::open(options, WorkerSide { hints, proposals, wake, lease }).await
    }

    /// Waits until the replication has ended by itself, and returns why. The member cannot go on then and must be
    /// restarted. `None` when it is shut down.
    pub fn failed(&self) -> impl Future<Output = Option<EndedError>> + Send + use<> {
        let (raft, mut ended, mut stop) = (self.raft.clone(), self.tasks.ended(), self.tasks.stopped());
        let alarm = self.alarm.clone();
        async move {
            let wait = raft.wait(None);
            let end = wait.metrics(|m| m.running_state.is_err(), "Raft has ended");
            let why = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return None,
                // Before the end of Raft, which may be its consequence.
                unreadable = alarm.wait() => EndedError::Unreadable(unreadable),
                ended = ended.wait_for(Option::is_some) => match ended {
                    Ok(name) => EndedError::Task(name.unwrap_or_default()),
                    Err(_) => return None,
                },
                end = end => match end.map(|metrics| metrics.running_state) {
                    Ok(Err(fatal)) => EndedError::Raft(Box::new(fatal)),
                    Ok(Ok(())) | Err(_) => EndedError::Task("raft"),
                },
            };
            // A task may see the end before the flag is seen here.
            (!*stop.borrow()).then_some(why)
        }
    }

    /// This member's identity.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.membership.identity
    }

    /// The engine: for the workers and the administration.
    #[must_use]
    pub fn engine(&self) -> Arc<Engine> {
        self.engine.clone()
    }

    /// The replication's counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<ReplicationMetrics> {
        self.metrics.clone()
    }

    /// The store's counters: flushes and their times.
    #[must_use]
    pub fn store_metrics(&self) -> StoreMetrics {
        self.store.clone()
    }

    /// The digest of this member's state at a log index, if it is still known: equal on all members. Known for the last 4096
    /// indices, and for every 4096th before them.
    #[must_use]
    pub fn digest_at(&self, index: u64) -> Option<u64> {
        self.auditor.digest_at(index)
    }

    /// Compares the states of all members that have come, at an index that is not older than this call.
    ///
    /// # Errors
    /// [`ReadBarrierError`]
    pub async fn audit(&self, timeout: Duration) -> Result<AuditReport, ReadBarrierError> {
        self.barrier.wait(timeout).await?;
        let report = on_request::audit(&self.engine, &self.auditor, &self.membership.peers).await;
        report.ok_or(ReadBarrierError::NoLeader)
    }

    /// The changes of sessions from now on, in the order of the log. A watcher that is too slow loses some and is told so.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<SessionEvent>> {
        self.events.subscribe()
    }

    /// The hits of other members' rules; a member that does not answer in time has an error.
    pub(crate) async fn rule_hits(
        &self,
        members: &BTreeMap<MemberId, MemberInfo>,
        timeout: Duration,
    ) -> Vec<(MemberId, Result<wire::RuleHitsResponse, tonic::Status>)> {
        let ask = |mut client: Client| async move { client.rule_hits(wire::RuleHitsRequest {}).await };
        self.membership.peers.fan_out(members, Lane::Control, timeout, ask).collect().await
    }

    /// The connection log of another member from now on.
    pub(crate) fn follow_connection_log(
        &self,
        id: MemberId,
        info: &MemberInfo,
    ) -> impl Future<Output = Result<tonic::Streaming<wire::ConnectionLogBatch>, tonic::Status>> + Send + use<> {
        let client = self.membership.peers.client(id, &info.address, Lane::ConnectionLog);
        async move { Ok(client?.connection_log(wire::ConnectionLogRequest {}).await?.into_inner()) }
    }

    /// The state of the member and its cluster.
    #[must_use]
    pub fn status(&self) -> Status {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let lease = self.lease.state_at(clock::now());
        let draining = *self.priority.borrow() != ElectionPriority::Normal;
        let seen = status::Seen {
            reachability: &self.reachability,
            roster: &self.roster,
            quorum_held: self.has_quorum(),
            refusals: &self.refusals,
            own: Presence { draining, lease_valid: lease == LeaseState::Valid },
            lease,
        };
        status::status(self.identity(), &metrics, &self.engine.cluster_state(), &seen)
    }

    /// Whether a majority was seen behind the leader in the last second.
    #[must_use]
    pub fn has_quorum(&self) -> bool {
        self.quorum.is_fresh(clock::now())
    }

    /// Waits for a quorum, at most for `wait`.
    ///
    /// # Errors
    /// [`NoQuorum`]
    pub async fn require_quorum(&self, wait: Duration) -> Result<(), NoQuorum> {
        let begin = clock::now();
        while !self.has_quorum() {
            if clock::now().since(begin) >= wait {
                return Err(NoQuorum(self.status().quorum));
            }
            tokio::time::sleep(QUORUM_POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// How long any member may still pass sessions that a command has ended, if it is cut off: the grace that it may go by.
    #[must_use]
    pub fn certain_after(&self) -> Duration {
        self.grace.largest()
    }

    /// Waits until the cluster has removed this member; forever, if it does not.
    pub fn removed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut removed = self.removed.clone();
        async move {
            // The sender is gone when the replication is shut down.
            if removed.wait_for(|removed| *removed).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until Raft does not count this removed member any longer: the change of the voters may need its vote.
    pub async fn wait_uncounted(&self, timeout: Duration) {
        // Without a majority that does not happen; then nothing is lost by going.
        drop(tokio::time::timeout(timeout, self.membership.wait_removed()).await);
    }

    /// Marks the data folder as that of a removed member. Afterwards the replication is to be shut down.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub fn mark_removed(&self) -> Result<(), MembershipError> {
        self.membership.mark_removed()
    }

    /// Has a command committed and applied here, and returns its outcome: committed is not accepted.
    ///
    /// # Errors
    /// [`ProposeError`]; the command may still be carried out.
    pub async fn command(&self, command: Command, timeout: Duration) -> Result<Outcome, ProposeError> {
        propose_and_wait(&self.requests, command, timeout).await
    }

    /// Proposes a policy, and waits until it is in force at this member, or at the leader, or is not going to be.
    ///
    /// # Errors
    /// [`PutError`]
    pub async fn put_policy(&self, change: PolicyChange, timeout: Duration) -> Result<PutInForce, PutError> {
        self.put.put(change, timeout).await
    }

    /// Waits until everything is applied here that was committed before this call, through an election if need be. Adds
    /// nothing to the log.
    ///
    /// # Errors
    /// [`ReadBarrierError`]
    pub async fn read_barrier(&self, timeout: Duration) -> Result<(), ReadBarrierError> {
        self.barrier.wait(timeout).await
    }

    /// Makes a join token that is good for `ttl`.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub async fn token(&self, ttl: Duration) -> Result<String, MembershipError> {
        self.membership.create_token(ttl).await
    }

    /// Leaves the cluster: transfers leadership if need be, is removed, and archives the identity. Afterwards the
    /// replication is to be shut down; the data folder belongs to no cluster any longer.
    ///
    /// # Errors
    /// [`MembershipError`]; the member is then still one.
    pub async fn leave(&self) -> Result<(), MembershipError> {
        self.membership.leave().await
    }

    /// Removes another member; one that answers only with `alive_too`.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub async fn remove(&self, name: &str, alive_too: bool) -> Result<Removal, MembershipError> {
        self.membership.remove(name, alive_too).await
    }

    /// Raises the level in force, one by one, until it is `to`.
    ///
    /// # Errors
    /// [`MembershipError`]; the level may have been raised in part.
    pub async fn raise_level(&self, to: Level) -> Result<(), MembershipError> {
        self.membership.raise_level(to).await
    }

    /// Gives a member another name or another address; this one, if none is named.
    ///
    /// # Errors
    /// [`MembershipError`]; it may still happen, if it took too long.
    pub async fn update(
        &self,
        member: Option<&str>,
        name: Option<String>,
        address: Option<String>,
    ) -> Result<MemberId, MembershipError> {
        self.membership.update(member, name, address).await
    }

    /// How the cluster knows this member, if its node.toml says another name or another address.
    pub(crate) fn registered_otherwise(&self, own: &MemberInfo) -> Option<MemberInfo> {
        self.membership.registered_otherwise(own)
    }

    /// Names the zones that this member's interfaces are in: each gets a number that all members know.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub async fn register_zones(&self, zones: &[String]) -> Result<(), MembershipError> {
        self.membership.register_zones(zones).await
    }

    /// Transfers leadership, to `to` or to the voter that is most up to date. Does nothing if this member does not lead and
    /// no one is named.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub async fn transfer_leadership(&self, to: Option<MemberId>) -> Result<(), MembershipError> {
        Ok(self.transfer.transfer(to).await?)
    }

    /// Sets this member's priority in elections. A member that declines leadership transfers it as soon as it can.
    pub fn set_election_priority(&self, priority: ElectionPriority) {
        self.priority.send_replace(priority);
    }

    /// Whether this member leads although others could.
    #[must_use]
    pub fn is_replaceable_leader(&self) -> bool {
        // Without a quorum no other member can take over.
        self.raft.is_leader() && self.transfer.has_peers() && self.has_quorum()
    }

    /// Stops taking part. Established sessions of this machine are the workers' business.
    pub async fn shutdown(&self) {
        self.tasks.stop();
        // Applying must not wait for a compiler that is gone. What comes into force from now on drops everything here.
        self.engine.set_packets_pass(false);
        let server = self.server.lock().take();
        if let Some(mut server) = server
            && tokio::time::timeout(SERVER_SHUTDOWN_TIMEOUT, &mut server).await.is_err()
        {
            server.abort();
        }
        // Its result is only whether its task could be joined.
        if tokio::time::timeout(RAFT_SHUTDOWN_TIMEOUT, self.raft.shutdown()).await.is_err() {
            tracing::warn!("Raft did not stop in time");
        }
    }
}
