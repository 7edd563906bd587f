//! Audits: do all members have the same state, and does each have the one that it believes to have?
//!
//! ```text
//!  leader ── Digests(indices) ─> every member       every 2 s: the last index applied, and the last marks before it
//!         <─ digests ───────────                    judged: who differs from what a majority of all members has
//!         ── Differs(index, digest) ─> who differs  if that is the leader itself, it hands the lead over first
//!  member ── Snapshot(index) ─> leader              holds applying, and replaces its state between two entries
//!  every member: scrubs its own table, part by part
//! ```
//!
//! A digest is compared at equal indices only, so members need not stand still for it. A member that is behind by seconds is
//! compared at a mark (every 4096th index) once it gets there. While a member's state is known to be wrong it is not
//! current: it admits nothing new, and after `limits.cut_off_limit` nothing at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver;
use openraft::{RaftMetrics, ServerState};
use palisade_engine::replica::{MemberInfo, Replica};
use palisade_engine::{Engine, MemberId};
use palisade_proto::member::v1 as wire;
use palisade_raft_store::{Auditor, Snapshots, TypeConfig};
use tokio::sync::{mpsc, watch};
use tonic::Status;

use crate::clock;
use crate::peer::route::{Lane, Peers};
use crate::raft::snapshot;
use crate::replication::PalisadeRaft;
use crate::replication_metrics::ReplicationMetrics;
use crate::standing::StandingCell;
use crate::sync::propose::Lead;

/// Between two comparisons. With a scrub in between, a difference is found and repaired within 10 s.
const EVERY: Duration = Duration::from_secs(2);
/// A member that is not so far by then is compared next time.
const REACH: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_secs(1);
/// The whole table is scrubbed in 256 times this, about …
const SCRUB_EVERY: Duration = Duration::from_millis(20);
/// … or, where a part takes long, with so many times its time between two parts.
const SCRUB_SHARE: u32 = 8;
/// After a repair that failed.
const AGAIN: Duration = Duration::from_secs(1);
/// For how long a repair may keep this member from applying.
const HOLD: Duration = Duration::from_secs(60);
/// For how long this member's log may take to reach the snapshot.
const COMMIT: Duration = Duration::from_secs(10);
/// Differences that wait. One repair ends them all.
const DIFFERENCES: usize = 4;
/// Indices in one question: more than are asked about, so that another version may ask about more.
const MOST_INDICES: usize = 64;

/// What was found wrong with this member's state.
#[derive(Clone, Debug)]
pub(crate) enum Difference {
    /// Its digest at this index is not the majority's.
    Digest { index: u64, right: u64 },
    /// A part of its table is not what commands have put there.
    Table { part: u8 },
}

/// What the member port needs for audits.
pub(crate) struct Desk {
    raft: PalisadeRaft,
    auditor: Auditor<Replica>,
    standing: Arc<StandingCell>,
    differences: mpsc::Sender<Difference>,
}

pub(crate) struct Audits {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) engine: Arc<Engine>,
    pub(crate) auditor: Auditor<Replica>,
    pub(crate) snapshots: Snapshots,
    pub(crate) peers: Peers,
    pub(crate) lead: watch::Receiver<Lead>,
    pub(crate) standing: Arc<StandingCell>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
    pub(crate) differences: mpsc::Sender<Difference>,
}

/// Where differences come to be repaired.
pub(crate) fn differences() -> (mpsc::Sender<Difference>, mpsc::Receiver<Difference>) {
    mpsc::channel(DIFFERENCES)
}

/// A member's digests, by index.
type Digests = BTreeMap<u64, u64>;

/// What a comparison says.
#[derive(Default, PartialEq, Eq, Debug)]
struct Judgement {
    /// Who differs: the index, its digest, the majority's.
    differ: BTreeMap<MemberId, (u64, u64, u64)>,
    /// Who has what the majority has.
    right: BTreeSet<MemberId>,
    /// Members differ at this index, and none of their digests is a majority's.
    undecided: Option<u64>,
    /// The newest index at which all members were found equal.
    equal: Option<u64>,
}

/// Compares what members answered; `members`: how many there are, also those that did not answer. Each is judged by the
/// newest index at which a majority agrees.
fn judge(answers: &BTreeMap<MemberId, Digests>, members: usize) -> Judgement {
    let mut judgement = Judgement::default();
    let indices: BTreeSet<u64> = answers.values().flat_map(Digests::keys).copied().collect();
    for index in indices.into_iter().rev() {
        let at: BTreeMap<MemberId, u64> =
            answers.iter().filter_map(|(id, digests)| Some((*id, *digests.get(&index)?))).collect();
        let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
        at.values().for_each(|digest| *votes.entry(*digest).or_default() += 1);
        let Some((&right, &count)) = votes.iter().find(|(_, count)| **count * 2 > members) else {
            if votes.len() > 1 {
                judgement.undecided = judgement.undecided.max(Some(index));
            }
            continue;
        };
        if count == members {
            judgement.equal = judgement.equal.max(Some(index));
        }
        for (member, digest) in at {
            if judgement.differ.contains_key(&member) || judgement.right.contains(&member) {
                continue;
            }
            if digest == right {
                judgement.right.insert(member);
            } else {
                judgement.differ.insert(member, (index, digest, right));
            }
        }
    }
    judgement
}

/// Why a repair did not succeed.
#[derive(Debug, thiserror::Error)]
enum Unrepaired {
    #[error("no other member leads yet")]
    NoLeader,
    #[error("the leader did not send a snapshot: {0}")]
    Leader(#[from] Status),
    #[error("the snapshot can not be used: {0}")]
    Snapshot(#[from] std::io::Error),
    #[error("it took too long")]
    Late,
}

impl Desk {
    pub(crate) fn new(audits: &Audits) -> Desk {
        Desk {
            raft: audits.raft.clone(),
            auditor: audits.auditor.clone(),
            standing: audits.standing.clone(),
            differences: audits.differences.clone(),
        }
    }

    /// Answers with the digests here.
    pub(crate) async fn digests(&self, indices: &[u64]) -> Result<wire::DigestsResponse, Status> {
        if indices.len() > MOST_INDICES {
            return Err(Status::invalid_argument(format!("at most {MOST_INDICES} indices at a time")));
        }
        // Without it, what is known of the others is an answer too.
        let wait = self.raft.wait(Some(REACH));
        drop(wait.applied_index_at_least(indices.first().copied(), "an audit").await);
        let known = |index: &u64| {
            let digest = self.auditor.digest_at(*index)?;
            Some(wire::digests_response::Digest { index: *index, digest })
        };
        Ok(wire::DigestsResponse { digests: indices.iter().filter_map(known).collect() })
    }

    /// Somebody found that this member differs.
    pub(crate) fn differs(&self, index: u64, right: u64) {
        // Full: a repair is under way, or it is told again.
        drop(self.differences.try_send(Difference::Digest { index, right }));
    }

    /// A snapshot that repairs another member.
    pub(crate) async fn snapshot(&self, index: u64) -> Result<palisade_raft_store::SnapshotFile, Status> {
        if self.raft.server_metrics().borrow_watched().state != ServerState::Leader {
            return Err(Status::failed_precondition("this member does not lead"));
        }
        if self.standing.is_suspect() {
            return Err(Status::unavailable("this member's own state is to be repaired"));
        }
        let reached = self.raft.wait(Some(ANSWER)).applied_index_at_least(Some(index), "a repair").await;
        reached.map_err(|e| Status::unavailable(e.to_string()))?;
        self.auditor.snapshot().await.map_err(|e| Status::internal(format!("no snapshot could be made: {e}")))
    }
}

impl Audits {
    /// The leader's part: compares all members.
    pub(crate) async fn compare(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EVERY).await;
            let metrics = self.raft.server_metrics().borrow_watched().clone();
            if metrics.state != ServerState::Leader {
                continue;
            }
            let members: BTreeMap<MemberId, MemberInfo> =
                metrics.membership_config.nodes().map(|(id, info)| (*id, info.clone())).collect();
            let answers = self.ask(&members).await;
            let judgement = judge(&answers, members.len());
            self.count(&judgement);
            for (member, (index, digest, right)) in &judgement.differ {
                tracing::error!(
                    member = %member, index, digest = format_args!("{digest:#018x}"), right = format_args!("{right:#018x}"),
                    "the state of a member differs from the majority's: it is to be repaired"
                );
                self.tell(*member, members.get(member), *index, *right).await;
            }
            if let Some(index) = judgement.undecided {
                tracing::error!(index, ?answers, "members' states differ, and no majority agrees on one");
            }
        }
    }

    async fn ask(&self, members: &BTreeMap<MemberId, MemberInfo>) -> BTreeMap<MemberId, Digests> {
        let points = self.auditor.points();
        let indices: Vec<u64> = points.iter().map(|(index, _)| *index).collect();
        let questions: FuturesUnordered<_> = members
            .iter()
            .filter(|(id, _)| **id != self.me)
            .map(|(id, info)| {
                let indices = indices.clone();
                async move {
                    let mut client = self.peers.client(*id, &info.address, Lane::Control).ok()?;
                    let question = client.digests(wire::DigestsRequest { indices });
                    let answer = tokio::time::timeout(ANSWER, question).await.ok()?;
                    let answer =
                        answer.inspect_err(|status| tracing::debug!(member = %id, %status, "no digests")).ok()?;
                    Some((*id, answer.into_inner().digests.iter().map(|d| (d.index, d.digest)).collect()))
                }
            })
            .collect();
        let mut answers: BTreeMap<MemberId, Digests> = questions.filter_map(std::future::ready).collect().await;
        answers.insert(self.me, points.into_iter().collect());
        answers
    }

    fn count(&self, judgement: &Judgement) {
        let differ = judgement.differ.len() as u64;
        self.metrics.audits_different.add(differ);
        self.metrics.audits_equal.add(judgement.right.len() as u64);
        self.metrics.audits_undecided.add(judgement.undecided.is_some().into());
        if let Some(index) = judgement.equal {
            self.metrics.audited_index.set(index);
        }
    }

    async fn tell(&self, member: MemberId, info: Option<&MemberInfo>, index: u64, right: u64) {
        if member == self.me {
            drop(self.differences.try_send(Difference::Digest { index, right }));
            return;
        }
        let Some(Ok(mut client)) = info.map(|info| self.peers.client(member, &info.address, Lane::Control)) else {
            return;
        };
        let told = tokio::time::timeout(ANSWER, client.differs(wire::DiffersRequest { index, digest: right })).await;
        if !matches!(told, Ok(Ok(_))) {
            tracing::warn!(%member, "it could not be told that it differs; trying again");
        }
    }

    /// Looks through this member's own table, again and again.
    pub(crate) async fn scrub(self: Arc<Self>) {
        let mut part = 0_u8;
        loop {
            let (engine, began) = (self.engine.clone(), clock::now());
            // A part of a large table takes a while; the other tasks go on meanwhile.
            let Ok(sound) = tokio::task::spawn_blocking(move || engine.scrub(part)).await else { return };
            if sound {
                self.metrics.scrubs_sound.add(1);
            } else {
                self.metrics.scrubs_damaged.add(1);
                drop(self.differences.try_send(Difference::Table { part }));
            }
            part = part.wrapping_add(1);
            tokio::time::sleep(SCRUB_EVERY.max(SCRUB_SHARE * clock::now().since(began))).await;
        }
    }

    /// Repairs this member's state when it is found wrong. Ends, and with it the member, if there is nobody to repair it from:
    /// then it begins anew from its own log.
    pub(crate) async fn repair(self: Arc<Self>, mut differences: mpsc::Receiver<Difference>) {
        while let Some(difference) = differences.recv().await {
            if !self.stands(&difference) {
                continue;
            }
            self.suspect(true);
            tracing::error!(?difference, "this member's state is wrong: it is repaired from a snapshot of the leader");
            while let Err(error) = self.repair_once().await {
                self.metrics.repairs_failed.add(1);
                tracing::error!(%error, "this member's state could not be repaired; trying again");
                if self.raft.server_metrics().borrow_watched().membership_config.nodes().all(|(id, _)| *id == self.me) {
                    tracing::error!("there is no other member to repair this one from: it begins anew from its log");
                    return;
                }
                tokio::time::sleep(AGAIN).await;
            }
            self.suspect(false);
            self.metrics.repairs_done.add(1);
        }
    }

    /// Is it (still) so? What a repair has replaced does not count.
    fn stands(&self, difference: &Difference) -> bool {
        match difference {
            Difference::Digest { index, right } => self.auditor.digest_at(*index).is_some_and(|d| d != *right),
            Difference::Table { part } => !self.engine.scrub(*part),
        }
    }

    fn suspect(&self, suspect: bool) {
        self.standing.suspect(suspect);
        self.metrics.state_suspect.set(suspect.into());
    }

    async fn repair_once(&self) -> Result<(), Unrepaired> {
        let leader = self.lead.borrow().leader.clone().ok_or(Unrepaired::NoLeader)?;
        if leader.id == self.me {
            let metrics = self.raft.metrics().borrow_watched().clone();
            if let Some(heir) = heir(&metrics, self.me) {
                tracing::warn!(to = %heir, "handing the lead over before the repair");
                drop(self.raft.trigger().transfer_leader(heir).await);
            }
            return Err(Unrepaired::NoLeader);
        }
        tokio::time::timeout(HOLD, async {
            let held = self.auditor.hold().await;
            let index = held.applied().map_or(0, |id| id.index);
            let mut client = self.peers.client(leader.id, &leader.address, Lane::Snapshot)?;
            let chunks = client.snapshot(wire::SnapshotRequest { index }).await?.into_inner();
            let file = snapshot::fetched(&self.snapshots, chunks).await?;
            let last = file.meta().last_log_id;
            // Nothing may be applied here that is not in this member's log.
            let committed = self.raft.wait(Some(COMMIT)).metrics(|m| m.local_committed >= last, "a repair").await;
            committed.map_err(|_| Unrepaired::Late)?;
            self.standing.replace();
            held.replace(file).await?;
            tracing::info!(index = last.map_or(0, |id| id.index), "this member's state was replaced by the leader's");
            Ok(())
        })
        .await
        .unwrap_or(Err(Unrepaired::Late))
    }
}

/// Who is to lead instead of `me`: the voter that is most up to date.
fn heir(metrics: &RaftMetrics<TypeConfig>, me: MemberId) -> Option<MemberId> {
    let matched = |id: &MemberId| metrics.replication.as_ref().and_then(|r| r.get(id).copied().flatten());
    metrics.membership_config.voter_ids().filter(|id| *id != me).max_by_key(matched)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MemberId = MemberId(1);
    const B: MemberId = MemberId(2);
    const C: MemberId = MemberId(3);

    fn answers(all: &[(MemberId, &[(u64, u64)])]) -> BTreeMap<MemberId, Digests> {
        all.iter().map(|(id, digests)| (*id, digests.iter().copied().collect())).collect()
    }

    #[test]
    fn equal_members_are_equal_at_the_newest_index_that_all_have() {
        let judged = judge(&answers(&[(A, &[(9, 90), (4, 40)]), (B, &[(9, 90), (4, 40)]), (C, &[(4, 40)])]), 3);
        assert_eq!(judged.equal, Some(4));
        assert!(judged.differ.is_empty() && judged.undecided.is_none() && judged.right.len() == 3);
    }

    #[test]
    fn the_odd_one_differs_whoever_it_is() {
        for odd in [A, B, C] {
            let digest = |id| if id == odd { 1 } else { 90 };
            let judged = judge(&answers(&[(A, &[(9, digest(A))]), (B, &[(9, digest(B))]), (C, &[(9, digest(C))])]), 3);
            assert_eq!(judged.differ, BTreeMap::from([(odd, (9, 1, 90))]));
            assert_eq!((judged.right.len(), judged.equal, judged.undecided), (2, None, None));
        }
    }

    #[test]
    fn without_a_majority_nobody_is_called_wrong() {
        let two = judge(&answers(&[(A, &[(9, 1)]), (B, &[(9, 2)])]), 3);
        assert_eq!((two.undecided, two.differ.len(), two.equal), (Some(9), 0, None));
        let silent = judge(&answers(&[(A, &[(9, 1)])]), 3);
        assert_eq!(silent, Judgement::default());
        // Two of four are no majority.
        let d = MemberId(4);
        let four = judge(&answers(&[(A, &[(9, 1)]), (B, &[(9, 1)]), (C, &[(9, 2)]), (d, &[(9, 3)])]), 4);
        assert_eq!((four.undecided, four.differ.len()), (Some(9), 0));
    }

    #[test]
    fn a_member_is_judged_by_its_newest_index() {
        // It was repaired, or has become wrong, since.
        let judged = judge(&answers(&[(A, &[(9, 90), (4, 40)]), (B, &[(9, 90), (4, 40)]), (C, &[(9, 90), (4, 1)])]), 3);
        assert!(judged.differ.is_empty());
        let judged = judge(&answers(&[(A, &[(9, 90), (4, 40)]), (B, &[(9, 90), (4, 40)]), (C, &[(9, 1), (4, 40)])]), 3);
        assert_eq!(judged.differ, BTreeMap::from([(C, (9, 1, 90))]));
    }
}
