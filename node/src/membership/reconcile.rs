//! Reconciliation: the leader makes openraft's membership match the register of members, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, RaftMetrics, ServerState};
use palisade_engine::ClusterState;
use palisade_engine::MemberInfo;
use palisade_engine::{Engine, MemberId, Time};
use palisade_raft_store::TypeConfig;

use crate::clock;
use crate::raft::config::PalisadeRaft;
use crate::raft::contact::LastContact;
use crate::raft::handle::matched_index;
use crate::raft::voters::{VoterChange, VoterView};

/// A learner that is at most this many entries behind has caught up.
const MAX_LEARNER_LAG: u64 = 256;
/// Time between two steps.
const RECONCILE_INTERVAL: Duration = Duration::from_millis(250);
/// How long a step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// The leader's task that changes openraft's membership.
pub(crate) struct Reconciler {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) engine: Arc<Engine>,
    pub(crate) contact: LastContact,
}

/// One step towards the register.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    /// Finishes a change of the voters that an earlier leader left half done.
    LeaveJoint,
    AddLearner(MemberId, MemberInfo),
    /// Its name or its address has changed.
    Update(MemberId, MemberInfo),
    Promote(MemberId),
    Demote(MemberId),
    Remove(MemberId),
}

/// The next step, if openraft's membership does not match the register yet. `seen` makes the view of the voters from the
/// voters and the learners that have caught up.
fn step(
    metrics: &RaftMetrics<TypeConfig>,
    cluster: &ClusterState,
    seen: impl FnOnce(BTreeSet<MemberId>, BTreeSet<MemberId>) -> VoterView,
) -> Option<Step> {
    let stored = &metrics.membership_config;
    // Not while a change is under way, and not before everything that led to the last one is applied here: the register
    // would be older than the membership, and members that have just joined would be removed.
    let applied = metrics.committed_membership_config.log_id() == stored.log_id()
        && metrics.last_applied.as_ref() >= stored.log_id().as_ref();
    if !applied || cluster.cluster_id.is_empty() {
        return None;
    }
    // A leader waits for each of its steps, so an earlier leader left this one half done.
    if stored.membership().get_joint_config().len() > 1 {
        return Some(Step::LeaveJoint);
    }
    let voters: BTreeSet<MemberId> = stored.voter_ids().collect();
    let known: BTreeSet<MemberId> = stored.nodes().map(|(id, _)| *id).collect();
    // Never the last voter: no member could undo that.
    let gone = known.iter().find(|id| !cluster.members.contains_key(id) && (voters.len() > 1 || !voters.contains(id)));
    if let Some(id) = gone {
        return Some(Step::Remove(*id));
    }
    if let Some((id, info)) = cluster.members.iter().find(|(id, _)| !known.contains(id)) {
        return Some(Step::AddLearner(*id, info.clone()));
    }
    let changed =
        stored.nodes().find_map(|(id, node)| Some((id, cluster.members.get(id).filter(|info| *info != node)?)));
    if let Some((id, info)) = changed {
        return Some(Step::Update(*id, info.clone()));
    }
    let last = metrics.last_log_index.unwrap_or(0);
    let ready =
        |id: &&MemberId| matched_index(metrics, **id).is_some_and(|m| m.saturating_add(MAX_LEARNER_LAG) >= last);
    let caught_up = known.difference(&voters).filter(ready).copied().collect();
    seen(voters, caught_up).change(cluster.settings.values.max_voters()).map(|change| match change {
        VoterChange::Promote(id) => Step::Promote(id),
        VoterChange::Demote(id) => Step::Demote(id),
    })
}

impl Reconciler {
    /// Takes steps while this member leads.
    pub(crate) async fn run(self) {
        let mut leads_since = (clock::now(), 0);
        loop {
            tokio::time::sleep(RECONCILE_INTERVAL).await;
            let metrics = self.raft.metrics().borrow_watched().clone();
            if metrics.state != ServerState::Leader {
                continue;
            }
            if leads_since.1 != metrics.current_term {
                leads_since = (clock::now(), metrics.current_term);
            }
            let seen = |voters, caught_up| self.seen(voters, caught_up, metrics.current_term, leads_since.0);
            let Some(step) = step(&metrics, &self.engine.cluster_state(), seen) else { continue };
            tracing::info!(?step, "changing the membership");
            match tokio::time::timeout(STEP_TIMEOUT, self.take(&step)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(?step, %error, "the membership could not be changed; trying again"),
                Err(_) => tracing::warn!(?step, "the membership did not change in time; trying again"),
            }
        }
    }

    /// Which members answer, and which have not for so long that they count as dead.
    fn seen(
        &self,
        voters: BTreeSet<MemberId>,
        caught_up: BTreeSet<MemberId>,
        term: u64,
        leads_since: Time,
    ) -> VoterView {
        let all = voters.iter().chain(&caught_up);
        let answers = |id: &&MemberId| **id == self.me || self.contact.accepts_leadership(**id, term).is_some();
        let answering = all.clone().filter(answers).copied().collect();
        let silent = |id: &MemberId| clock::now().since(self.contact.since(*id, leads_since));
        let replace_after = self.engine.settings().replace_after();
        let dead = all.copied().filter(|id| *id != self.me && silent(id) > replace_after).collect();
        VoterView { me: self.me, voters, caught_up, answering, dead }
    }

    async fn take(&self, step: &Step) -> Result<(), Box<RaftError<TypeConfig, ClientWriteError<TypeConfig>>>> {
        let changed = match step {
            // An empty change leaves the joint configuration. Members that it makes learners are removed in steps of their own.
            Step::LeaveJoint => self.raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), true).await,
            Step::AddLearner(id, info) => self.raft.add_learner(*id, info.clone(), false).await,
            // Two members with one address would be one to openraft; here each request names its addressee.
            Step::Update(id, info) => {
                let nodes = BTreeMap::from([(*id, info.clone())]);
                self.raft.change_membership(ChangeMembers::SetNodes(nodes), true).await
            }
            Step::Promote(id) => {
                self.raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::from([*id])), true).await
            }
            Step::Demote(id) => {
                // It stays, as a learner.
                self.raft.change_membership(ChangeMembers::RemoveVoters(BTreeSet::from([*id])), true).await
            }
            Step::Remove(id) => {
                let voter = self.raft.metrics().borrow_watched().membership_config.voter_ids().any(|v| v == *id);
                let ids = BTreeSet::from([*id]);
                let change = if voter { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
                self.raft.change_membership(change, false).await
            }
        };
        changed.map(drop).map_err(Box::new)
    }
}
