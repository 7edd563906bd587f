//! Who is to lead: a member that is drained, leaves or stops gives the lead away and does not ask for it.
//!
//! A member says with each question about being current whether it wants the lead ([`crate::raft::current`]), so the leader
//! knows to whom to hand it. Where nobody else can lead, a drained member still does: it stands for election after all
//! the others ([`crate::raft::election`]), and hands over as soon as somebody is there.

use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use palisade_engine::MemberId;
use tokio::sync::watch;

use crate::membership::change::MembershipError;
use crate::membership::leader::Heard;
use crate::replication::PalisadeRaft;

/// How long a change of the lead may take.
const CHANGE: Duration = Duration::from_secs(5);
/// How often a member that does not want to lead looks whether it does.
const EVERY: Duration = Duration::from_millis(100);

/// How much a member wants the lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Candidacy {
    /// As any other.
    #[default]
    Normal,
    /// Drained: only if nobody else can lead.
    LastResort,
    /// It leaves or stops: not at all; drained members may have it.
    Withdrawn,
}

/// Gives the lead away.
#[derive(Clone)]
pub(crate) struct HandOver {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) heard: Heard,
    pub(crate) candidacy: watch::Receiver<Candidacy>,
}

impl HandOver {
    /// Gives the lead away whenever this member has it and does not want it.
    pub(crate) async fn run(mut self) {
        loop {
            // Fails only when the replication is gone; this task is aborted then.
            let Ok(wish) = self.candidacy.wait_for(|c| *c != Candidacy::Normal).await.map(|c| *c) else { return };
            if self.leads()
                && let Some(to) = self.successor(wish)
                && let Err(error) = self.transfer(to).await
            {
                tracing::info!(%error, %to, "the lead could not be handed over; trying again");
            }
            // A change of mind is looked at at once.
            drop(tokio::time::timeout(EVERY, self.candidacy.changed()).await);
        }
    }

    /// Does this member lead?
    pub(crate) fn leads(&self) -> bool {
        self.raft.server_metrics().borrow_watched().state == ServerState::Leader
    }

    /// Is there another voter at all?
    pub(crate) fn has_peers(&self) -> bool {
        let members = self.raft.server_metrics().borrow_watched().membership_config.clone();
        members.voter_ids().any(|id| id != self.me)
    }

    /// The best voter to hand the lead to: one that answers and wants it, with the longest log among those.
    fn successor(&self, wish: Candidacy) -> Option<MemberId> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let matched = |id: &MemberId| metrics.replication.as_ref().and_then(|r| r.get(id).copied().flatten());
        let others = metrics.membership_config.voter_ids().filter(|id| *id != self.me);
        let rank = |id: &MemberId| (self.heard.wants_lead(*id, metrics.current_term), matched(id));
        let (wants, best) = others.map(|id| (rank(&id), id)).max().map(|((wants, _), id)| (wants, id))?;
        // Between drained members the lead would go back and forth.
        (wants.is_some_and(|wants| wants) || wish == Candidacy::Withdrawn).then_some(best)
    }

    /// Hands the lead over, to `to` or to the best voter. Does nothing if this member does not lead and no one is named.
    pub(crate) async fn to(&self, to: Option<MemberId>) -> Result<(), MembershipError> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        if metrics.state != ServerState::Leader {
            let leader = metrics.current_leader.map_or("unknown".to_owned(), |id| format!("member {id}"));
            return if to.is_none() { Ok(()) } else { Err(MembershipError::NotLeader(leader)) };
        }
        let to = to.or_else(|| self.successor(Candidacy::Withdrawn)).ok_or(MembershipError::Last)?;
        if !metrics.membership_config.voter_ids().any(|id| id == to) {
            return Err(MembershipError::Refused(format!("member {to} does not vote")));
        }
        self.transfer(to).await
    }

    async fn transfer(&self, to: MemberId) -> Result<(), MembershipError> {
        let me = self.me;
        let triggered = self.raft.trigger().transfer_leader(to).await;
        triggered.map_err(|e| MembershipError::Refused(e.to_string()))?;
        let wait = self.raft.wait(Some(CHANGE));
        let changed = wait.metrics(|m| m.current_leader.is_some_and(|leader| leader != me), "the lead was handed over");
        changed.await.map(drop).map_err(|_| MembershipError::Late("handing the lead over"))
    }
}
