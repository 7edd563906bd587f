//! Lease renewal: four times a second this member proves to itself that it has applied everything that was committed.
//!
//! t is this member's own clock when it asks. The leader answers with its commit index, and only after a majority has
//! confirmed, *after the question came*, that it still leads ([`read_index`](crate::raft::read_index); never because of a
//! leader lease: clocks may stand still). Once that index is applied here, this member's lease is valid until t + 1 s.
//! [`crate::lease`] has the states.
//!
//! With the question goes what this member has made of the candidate for the next policy ([`crate::policy`]). A member that has not
//! compiled the policy in force gets no lease.
//!
//! A member that begins to forward packets says so in the log first (`Command::Resume`): it remembers nothing of what an
//! earlier run reported about idle sessions, or was not asked about them while its lease was expired. Then it registers what
//! it can, if the register says something else: no lease before that.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::replica::{Command, MemberChange};
use palisade_engine::{Capabilities, Engine, LeaseState, MemberId};
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::lease::Lease;
use crate::membership::error::{MembershipError, accepted};
use crate::raft::barrier::{ReadBarrier, ReadBarrierError};
use crate::raft::leadership::Leadership;
use crate::raft::read_index::READ_INDEX_TIMEOUT;
use crate::raft::requests::{AdminRequest, ProposeError, propose_and_wait};
use crate::replication_metrics::ReplicationMetrics;

/// Time between two renewals.
const RENEWAL_INTERVAL: Duration = Duration::from_millis(250);
/// The same after a failure: by then there may be a new leader.
const RENEWAL_RETRY_DELAY: Duration = Duration::from_millis(25);
/// The same after a refusal by the log: each attempt adds entries to it.
const REFUSED_RETRY_DELAY: Duration = Duration::from_secs(5);

/// The task that renews this member's lease.
pub(crate) struct LeaseRenewer {
    pub(crate) me: MemberId,
    /// What this member can.
    pub(crate) capabilities: Capabilities,
    pub(crate) barrier: ReadBarrier,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) requests: mpsc::Sender<AdminRequest>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
}

/// Why the lease was not renewed this time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseRenewalError {
    #[error("no leader is known")]
    NoLeader,
    #[error("this member has not compiled the policy in force")]
    Policy,
    #[error(transparent)]
    Barrier(#[from] ReadBarrierError),
    #[error("the log did not take that this member resumes")]
    Propose(#[from] ProposeError),
    #[error("the log refused that this member resumes: {0}")]
    Refused(MembershipError),
}

impl LeaseRenewer {
    pub(crate) async fn run(self) {
        // The number of replacements of the state after which this member last resumed.
        let (mut resumed, mut was) = (None, LeaseState::Expired);
        loop {
            let replacements = self.lease.replacements();
            let is = self.lease.state_at(clock::now());
            if is == LeaseState::Expired && was != LeaseState::Expired {
                resumed = None;
            }
            was = is;
            if is == LeaseState::Expired {
                // Nothing passes, so applying need not wait for the compiler.
                self.engine.set_packets_pass(false);
            }
            let mut asked = clock::now();
            let renewal = async {
                if resumed != Some(replacements) {
                    self.resume().await?;
                    self.lease.resume(replacements);
                    resumed = Some(replacements);
                    asked = clock::now();
                }
                self.barrier.attempt().await?;
                // Before the lease: from now on a policy must be compiled before it comes into force here.
                if self.engine.set_packets_pass(true) { Ok(()) } else { Err(LeaseRenewalError::Policy) }
            };
            let renewal = renewal.await;
            let pause = match renewal {
                Ok(()) => {
                    self.lease.renew(asked);
                    self.engine.set_applied_as_of(asked);
                    self.metrics.lease_renewals.renewed.add(1);
                    RENEWAL_INTERVAL
                }
                Err(LeaseRenewalError::Refused(error)) => {
                    self.metrics.lease_renewals.failed.add(1);
                    tracing::warn!(%error, "the log refused that this member resumes: nothing passes here");
                    REFUSED_RETRY_DELAY
                }
                Err(error) => {
                    self.metrics.lease_renewals.failed.add(1);
                    tracing::debug!(%error, "the lease was not renewed");
                    RENEWAL_RETRY_DELAY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Has the log take that this member begins to forward packets, and what it can, if that has changed.
    async fn resume(&self) -> Result<(), LeaseRenewalError> {
        if self.leadership.borrow().leader.is_none() {
            return Err(LeaseRenewalError::NoLeader);
        }
        self.propose(Command::Resume).await?;
        // Now no command of an earlier run has an effect any longer: what the register says is what counts.
        let Self { me, capabilities, .. } = self;
        if self.engine.cluster_state().capabilities.get(me) == Some(capabilities) {
            return Ok(());
        }
        let change = MemberChange::Capabilities { member: *me, capabilities: capabilities.clone() };
        self.propose(Command::Member(change)).await?;
        tracing::info!(levels = %capabilities.levels(), program = capabilities.program, "registered what this member can");
        Ok(())
    }

    async fn propose(&self, command: Command) -> Result<(), LeaseRenewalError> {
        let outcome = propose_and_wait(&self.requests, command, READ_INDEX_TIMEOUT).await?;
        accepted(outcome).map_err(LeaseRenewalError::Refused)
    }
}
