//! Transfer of leadership: a member that is drained, leaves or stops gives leadership away and does not campaign for it.
//!
//! A member says with each renewal of its lease whether it accepts leadership ([`crate::raft::lease`]), so the leader knows
//! the possible transferees. Where no other member can lead, a drained member still does: it campaigns after all others
//! ([`crate::raft::election`]), and transfers leadership as soon as another member accepts it.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::Fatal;
use openraft::{RaftMetrics, ServerState};
use palisade_engine::MemberId;
use palisade_raft_store::TypeConfig;
use tokio::sync::watch;

use crate::clock;
use crate::raft::config::PalisadeRaft;
use crate::raft::contact::{CONTACT_FRESH, LastContact};
use crate::raft::handle::matched_index;
use crate::raft::priority::ElectionPriority;

/// How long a transfer may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a member that declines leadership looks whether it leads.
const TRANSFER_INTERVAL: Duration = Duration::from_millis(100);
/// How often a new leader looks whether it has heard from all voters.
const CONTACT_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Why leadership was not transferred.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum TransferError {
    /// It does not lead.
    #[error("this member does not lead; the leader is {}", leader.map_or("unknown".to_owned(), |id| format!("member {id}")))]
    NotLeader {
        /// The leader, if known.
        leader: Option<MemberId>,
    },
    /// There is no other voter.
    #[error("no other member votes: there is none that could lead")]
    NoTransferee,
    /// The member that was named does not vote.
    #[error("member {0} does not vote")]
    NotVoter(MemberId),
    /// Raft has stopped.
    #[error("Raft has stopped")]
    Stopped(#[from] Fatal<TypeConfig>),
    /// It took too long.
    #[error("the transfer of leadership did not happen in time; it may still happen")]
    #[diagnostic(help("is a majority of the members up (`palisade cluster members`)?"))]
    Timeout,
}

/// Whether a drained voter may become the leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DrainedVoters {
    /// Not at all: leadership would go back and forth between drained members.
    Excluded,
    /// Where no other voter accepts leadership: this member must not lead.
    LastResort,
}

/// The voter that is to lead instead of `me`: one that accepts leadership, with the longest log among those. `accepts` says
/// whether a member accepts leadership, and `None` for one without recent contact.
fn transferee(
    metrics: &RaftMetrics<TypeConfig>,
    me: MemberId,
    accepts: impl Fn(MemberId) -> Option<bool>,
    drained: DrainedVoters,
) -> Option<MemberId> {
    let others = metrics.membership_config.voter_ids().filter(|id| *id != me);
    let candidates = others.map(|id| ((accepts(id), matched_index(metrics, id)), id));
    let ((accepts, _), best) = candidates.max()?;
    (accepts == Some(true) || drained == DrainedVoters::LastResort).then_some(best)
}

/// Transfers leadership to another member.
#[derive(Clone)]
pub(crate) struct LeadershipTransfer {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) contact: LastContact,
    pub(crate) priority: watch::Receiver<ElectionPriority>,
}

impl LeadershipTransfer {
    /// Transfers leadership whenever this member has it and declines it.
    pub(crate) async fn run(mut self) {
        loop {
            // Fails only when the replication is gone; this task is aborted then.
            let declines = self.priority.wait_for(|priority| *priority != ElectionPriority::Normal).await;
            let Ok(priority) = declines.map(|priority| *priority) else { return };
            let drained = match priority {
                ElectionPriority::Never => DrainedVoters::LastResort,
                ElectionPriority::Normal | ElectionPriority::LastResort => DrainedVoters::Excluded,
            };
            if self.raft.is_leader()
                && let Some(to) = self.informed_transferee(drained).await
                && let Err(error) = self.transfer_to(to).await
            {
                tracing::info!(%error, %to, "leadership was not transferred; trying again");
            }
            // A changed priority is acted upon at once.
            drop(tokio::time::timeout(TRANSFER_INTERVAL, self.priority.changed()).await);
        }
    }

    /// Whether there is another voter at all.
    pub(crate) fn has_peers(&self) -> bool {
        let metrics = self.raft.server_metrics().borrow_watched().clone();
        metrics.membership_config.voter_ids().any(|id| id != self.me)
    }

    /// The voter that is to lead instead of this member.
    fn transferee(&self, drained: DrainedVoters) -> Option<MemberId> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        transferee(&metrics, self.me, |id| self.contact.accepts_leadership(id, metrics.current_term), drained)
    }

    /// The same, once this member can know it. A new leader has not heard from all voters yet: the first that answers may be a
    /// drained one, while one that accepts leadership answers a moment later.
    async fn informed_transferee(&self, drained: DrainedVoters) -> Option<MemberId> {
        let begin = clock::now();
        while drained == DrainedVoters::LastResort && clock::now().since(begin) < CONTACT_FRESH {
            if let Some(to) = self.transferee(DrainedVoters::Excluded) {
                return Some(to);
            }
            if self.knows_all_voters() {
                break;
            }
            tokio::time::sleep(CONTACT_POLL_INTERVAL).await;
        }
        self.transferee(drained)
    }

    /// Whether every other voter has said lately whether it accepts leadership.
    fn knows_all_voters(&self) -> bool {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let mut others = metrics.membership_config.voter_ids().filter(|id| *id != self.me);
        others.all(|id| self.contact.accepts_leadership(id, metrics.current_term).is_some())
    }

    /// Whether a member accepts leadership, as far as this member, leading, knows.
    #[cfg(test)]
    pub(crate) fn accepts_leadership(&self, member: MemberId) -> Option<bool> {
        self.contact.accepts_leadership(member, self.raft.metrics().borrow_watched().current_term)
    }

    /// Transfers leadership to `to`, or to the best voter. Does nothing if this member does not lead and no one is named.
    pub(crate) async fn transfer(&self, to: Option<MemberId>) -> Result<(), TransferError> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        if metrics.state != ServerState::Leader {
            let leader = metrics.current_leader;
            return if to.is_none() { Ok(()) } else { Err(TransferError::NotLeader { leader }) };
        }
        let to = match to {
            Some(to) => to,
            None => self.informed_transferee(DrainedVoters::LastResort).await.ok_or(TransferError::NoTransferee)?,
        };
        if !metrics.membership_config.voter_ids().any(|id| id == to) {
            return Err(TransferError::NotVoter(to));
        }
        self.transfer_to(to).await
    }

    async fn transfer_to(&self, to: MemberId) -> Result<(), TransferError> {
        let me = self.me;
        self.raft.trigger().transfer_leader(to).await?;
        let wait = self.raft.wait(Some(TRANSFER_TIMEOUT));
        let transferred =
            wait.metrics(|m| m.current_leader.is_some_and(|leader| leader != me), "leadership is transferred");
        transferred.await.map(drop).map_err(|_| TransferError::Timeout)
    }

    /// Asks openraft to transfer leadership to another voter, drained ones last, so that this member can be repaired.
    pub(crate) async fn transfer_before_repair(&self) {
        if let Some(to) = self.informed_transferee(DrainedVoters::LastResort).await {
            tracing::warn!(%to, "leadership is transferred before the repair");
            // Fails only when Raft has stopped.
            drop(self.raft.trigger().transfer_leader(to).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use openraft::vote::RaftLeaderId;
    use openraft::{LogId, Membership, StoredMembership};
    use palisade_engine::{MemberInfo, Role};

    use super::*;

    const ME: MemberId = MemberId(1);

    /// A leader's metrics: the voters after it, with the ends of their logs.
    fn metrics(voters: &[(u64, u64)]) -> RaftMetrics<TypeConfig> {
        let log_id = |index| LogId::new(RaftLeaderId::new(1, ME), index);
        let info = MemberInfo { name: "fw".to_owned(), address: "192.0.2.1:1".to_owned(), role: Role::Firewall };
        let ids: BTreeSet<MemberId> = voters.iter().map(|(id, _)| MemberId(*id)).chain([ME]).collect();
        let nodes: BTreeMap<MemberId, MemberInfo> = ids.iter().map(|id| (*id, info.clone())).collect();
        let membership = Membership::new(vec![ids], nodes).unwrap();
        RaftMetrics {
            membership_config: Arc::new(StoredMembership::new(None, membership)),
            replication: Some(voters.iter().map(|(id, index)| (MemberId(*id), Some(log_id(*index)))).collect()),
            ..RaftMetrics::new_initial(ME)
        }
    }

    #[test]
    fn transferee_accepts_leadership_and_has_the_longest_log_among_those() {
        let accepts = |declining: &'static [u64]| move |id: MemberId| Some(!declining.contains(&id.0));
        let three = metrics(&[(2, 90), (3, 100), (4, 80)]);
        for drained in [DrainedVoters::Excluded, DrainedVoters::LastResort] {
            assert_eq!(transferee(&three, ME, accepts(&[]), drained), Some(MemberId(3)));
            assert_eq!(transferee(&three, ME, accepts(&[3]), drained), Some(MemberId(2)), "3 is drained");
            assert_eq!(transferee(&three, ME, accepts(&[2, 3]), drained), Some(MemberId(4)));
        }
    }

    #[test]
    fn transferee_is_a_drained_voter_only_as_a_last_resort() {
        let drained = |_| Some(false);
        let two = metrics(&[(2, 90), (3, 100)]);
        assert_eq!(transferee(&two, ME, drained, DrainedVoters::Excluded), None);
        assert_eq!(transferee(&two, ME, drained, DrainedVoters::LastResort), Some(MemberId(3)));
        let answering = |id| (id == MemberId(2)).then_some(false);
        assert_eq!(transferee(&two, ME, answering, DrainedVoters::LastResort), Some(MemberId(2)), "3 does not answer");
        assert_eq!(transferee(&metrics(&[]), ME, drained, DrainedVoters::LastResort), None, "there is no other voter");
    }
}
