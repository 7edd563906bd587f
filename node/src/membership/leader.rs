//! What the leader does besides leading: it makes openraft's membership what the register of members says, and ends
//! sessions that are idle everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver;
use openraft::{ChangeMembers, RaftMetrics, ServerState};
use palisade_engine::engine::View;
use palisade_engine::replica::{Command, MemberInfo, Replica};
use palisade_engine::{Engine, MemberId, SessionId, Time};
use palisade_proto::member::v1 as wire;
use palisade_raft_store::{Auditor, TypeConfig};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::mpsc;

use crate::clock;
use crate::membership::change::order;
use crate::peer::route::{Lane, Peers};
use crate::raft::voters::{Change, Seen, Voters};
use crate::replication::PalisadeRaft;
use crate::replication::service::MOST_IDLE;
use crate::sync::propose::Order;

/// A learner that is at most so many entries behind has caught up.
const CAUGHT_UP: u64 = 256;
const MEMBERSHIP_EVERY: Duration = Duration::from_millis(250);
const IDLE_EVERY: Duration = Duration::from_secs(1);
const IDLE_SOON: Duration = Duration::from_millis(20);
/// A member that does not say within this time whether a session is idle there keeps it alive.
const IDLE_ANSWER: Duration = Duration::from_secs(1);
/// Clocks of machines need not run equally fast, and since when this member leads is known to [`IDLE_EVERY`] only.
const MARGIN: Duration = Duration::from_secs(2);
/// Session ids in one command.
const IDS: usize = 256;
/// Members ask four times a second whether they are current.
const LATELY: Duration = Duration::from_secs(1);
const CHANGE: Duration = Duration::from_secs(5);

pub(crate) struct Duties {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) engine: Arc<Engine>,
    pub(crate) peers: Peers,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) auditor: Auditor<Replica>,
    pub(crate) heard: Heard,
    pub(crate) cut_off_limit: Duration,
    pub(crate) voters: Voters,
}

/// When each member last asked this one, while it led, whether it is current. Without that a member's standing runs out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard(Arc<Mutex<BTreeMap<MemberId, Asked>>>);

#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Time,
    /// This member led in this term.
    term: u64,
    wants_lead: bool,
}

impl Heard {
    pub(crate) fn from(&self, member: MemberId, term: u64, wants_lead: bool) {
        self.0.lock().insert(member, Asked { at: clock::now(), term, wants_lead });
    }

    fn since(&self, member: MemberId, begin: Time) -> Time {
        self.0.lock().get(&member).map_or(begin, |asked| begin.max(asked.at))
    }

    /// Whether a member wants the lead; `None`: it has not asked lately, and in this term.
    pub(crate) fn wants_lead(&self, member: MemberId, term: u64) -> Option<bool> {
        let asked = self.0.lock().get(&member).copied();
        let asked = asked.filter(|asked| asked.term == term && clock::now().since(asked.at) < LATELY);
        asked.map(|asked| asked.wants_lead)
    }
}

/// One step towards the register.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    /// Finish a change of the voters that was left half done: by a leader that was lost, or led too little to go on.
    Settle,
    Learn(MemberId, MemberInfo),
    Promote(MemberId),
    Demote(MemberId),
    Drop(MemberId),
}

/// The next step, if openraft's membership is not yet what the register says. `seen` says who answers.
fn step(
    metrics: &RaftMetrics<TypeConfig>,
    view: &View,
    most: usize,
    seen: impl FnOnce(BTreeSet<MemberId>, BTreeSet<MemberId>) -> Seen,
) -> Option<Step> {
    let stored = &metrics.membership_config;
    // Not while a change is under way, and not before everything that led to the last one is applied here: the register
    // would be older than the membership, and members would be dropped that have just joined.
    let applied = metrics.committed_membership_config.log_id() == stored.log_id()
        && metrics.last_applied.as_ref() >= stored.log_id().as_ref();
    if !applied || view.cluster.is_empty() {
        return None;
    }
    // Whoever takes steps waits for each, so what is half done now nobody does.
    if stored.membership().get_joint_config().len() > 1 {
        return Some(Step::Settle);
    }
    let voters: BTreeSet<MemberId> = stored.voter_ids().collect();
    let known: BTreeSet<MemberId> = stored.nodes().map(|(id, _)| *id).collect();
    // Never the last voter: nobody could take it back.
    let gone = known.iter().find(|id| !view.members.contains_key(id) && (voters.len() > 1 || !voters.contains(id)));
    if let Some(id) = gone {
        return Some(Step::Drop(*id));
    }
    if let Some((id, info)) = view.members.iter().find(|(id, _)| !known.contains(id)) {
        return Some(Step::Learn(*id, info.clone()));
    }
    let last = metrics.last_log_index.unwrap_or(0);
    let matched = |id: &MemberId| metrics.replication.as_ref().and_then(|r| r.get(id).copied().flatten());
    let ready = |id: &&MemberId| matched(id).is_some_and(|m| m.index.saturating_add(CAUGHT_UP) >= last);
    let caught_up = known.difference(&voters).filter(ready).copied().collect();
    seen(voters, caught_up).change(most).map(|change| match change {
        Change::Promote(id) => Step::Promote(id),
        Change::Demote(id) => Step::Demote(id),
    })
}

impl Duties {
    /// Keeps the membership what the register says.
    pub(crate) async fn membership(self: Arc<Self>) {
        let mut leads_since = (clock::now(), 0);
        loop {
            tokio::time::sleep(MEMBERSHIP_EVERY).await;
            let metrics = self.raft.metrics().borrow_watched().clone();
            if metrics.state != ServerState::Leader {
                continue;
            }
            if leads_since.1 != metrics.current_term {
                leads_since = (clock::now(), metrics.current_term);
            }
            let seen = |voters, caught_up| self.seen(voters, caught_up, metrics.current_term, leads_since.0);
            let Some(step) = step(&metrics, &self.engine.view(), self.voters.most, seen) else { continue };
            tracing::info!(?step, "changing the membership");
            match tokio::time::timeout(CHANGE, self.take(&step)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(?step, %error, "the membership could not be changed; trying again"),
                Err(_) => tracing::warn!(?step, "the membership did not change in time; trying again"),
            }
        }
    }

    /// Who answers, and who has not for so long that it counts as dead.
    fn seen(&self, voters: BTreeSet<MemberId>, caught_up: BTreeSet<MemberId>, term: u64, leads_since: Time) -> Seen {
        let all = voters.iter().chain(&caught_up);
        let answers = |id: &&MemberId| **id == self.me || self.heard.wants_lead(**id, term).is_some();
        let answering = all.clone().filter(answers).copied().collect();
        let silent = |id: &MemberId| clock::now().since(self.heard.since(*id, leads_since));
        let dead = all.copied().filter(|id| *id != self.me && silent(id) > self.voters.replace_after).collect();
        Seen { me: self.me, voters, caught_up, answering, dead }
    }

    async fn take(&self, step: &Step) -> Result<(), String> {
        let changed = match step {
            // No change to the later voters makes them the only ones. Who is struck off by that goes in a step of its own.
            Step::Settle => self.raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), true).await,
            Step::Learn(id, info) => self.raft.add_learner(*id, info.clone(), false).await,
            Step::Promote(id) => {
                self.raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::from([*id])), true).await
            }
            Step::Demote(id) => {
                // It stays, as a learner.
                self.raft.change_membership(ChangeMembers::RemoveVoters(BTreeSet::from([*id])), true).await
            }
            Step::Drop(id) => {
                let voter = self.raft.metrics().borrow_watched().membership_config.voter_ids().any(|v| v == *id);
                let ids = BTreeSet::from([*id]);
                let change = if voter { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
                self.raft.change_membership(change, false).await
            }
        };
        changed.map(drop).map_err(|e| e.to_string())
    }

    /// Ends sessions that are idle on all members (`palisade_engine::idle` says how). Those that are not ended, because one of them is in use elsewhere, or a
    /// member does not answer, or the command is lost, the engine offers again.
    pub(crate) async fn idle(self: Arc<Self>) {
        let mut found = Vec::new();
        let mut leads_since = clock::now();
        let mut pause = IDLE_EVERY;
        loop {
            tokio::time::sleep(pause).await;
            let metrics = self.raft.server_metrics().borrow_watched().clone();
            pause = IDLE_EVERY;
            if metrics.state != ServerState::Leader {
                leads_since = clock::now();
                continue;
            }
            found.clear();
            if self.engine.idle(clock::now(), MOST_IDLE, &mut found) {
                pause = IDLE_SOON;
            }
            if found.is_empty() {
                continue;
            }
            let others: Vec<_> = metrics
                .membership_config
                .nodes()
                .filter(|(id, _)| **id != self.me)
                .map(|(id, info)| (*id, info.clone()))
                .collect();
            let inquiry = self.engine.inquiry(clock::now(), &found);
            let asked: Vec<SessionId> = inquiry.ids().collect();
            let Some(idle) = self.ask(&others, &asked, leads_since).await else { continue };
            let (open, closed) = inquiry.end(|id| idle.contains(id), IDS);
            let commands = open.into_iter().map(Command::ExpireIdle).chain(closed.into_iter().map(Command::Expire));
            for command in commands {
                if let Err(error) = order(&self.orders, command, CHANGE).await {
                    tracing::info!(%error, "idle sessions could not be ended; trying again");
                    break;
                }
            }
        }
    }

    /// Those of `ids` that are idle at all `members` too; `None` if one of them did not say. A member that has not even
    /// asked for so long that nothing passes there any longer need not say: otherwise one dead member would keep all
    /// sessions alive, until the table is full.
    async fn ask(
        &self,
        members: &[(MemberId, MemberInfo)],
        ids: &[SessionId],
        leads_since: Time,
    ) -> Option<BTreeSet<SessionId>> {
        // What the others do not know then has ended.
        let applied = self.auditor.applied().map_or(0, |id| id.index);
        let silent = self.cut_off_limit + MARGIN;
        let expired = |id: &MemberId| clock::now().since(self.heard.since(*id, leads_since)) > silent;
        let questions: FuturesUnordered<_> = members
            .iter()
            .filter(|(id, _)| !expired(id))
            .map(|(id, info)| async move {
                let mut client = self.peers.client(*id, &info.address, Lane::Control).ok()?;
                let question = client.still_idle(wire::Sessions { applied, ..wire::Sessions::from(ids) });
                match tokio::time::timeout(IDLE_ANSWER, question).await {
                    Ok(Ok(answer)) => Some(BTreeSet::from_iter(Vec::<SessionId>::from(answer.into_inner()))),
                    Ok(Err(status)) => {
                        tracing::debug!(member = %id, %status, "it is not known whether sessions are idle there");
                        None
                    }
                    Err(_) => None,
                }
            })
            .collect();
        let answers: Vec<Option<BTreeSet<SessionId>>> = questions.collect().await;
        let answers: Vec<BTreeSet<SessionId>> = answers.into_iter().collect::<Option<_>>()?;
        Some(ids.iter().filter(|id| answers.iter().all(|idle| idle.contains(id))).copied().collect())
    }
}
