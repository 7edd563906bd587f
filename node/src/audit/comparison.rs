//! Comparison: the leader compares the digests of all members, and reports to those that diverge from the majority.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use palisade_engine::replica::Replica;
use palisade_engine::{Engine, MemberId};
use palisade_proto::member::v1 as wire;
use palisade_raft_store::Auditor;
use tokio::sync::mpsc;

use crate::audit::{Divergence, report};
use crate::peer::connections::{Lane, Members, Peers};
use crate::raft::config::PalisadeRaft;
use crate::raft::handle::RaftHandle;
use crate::replication_metrics::ReplicationMetrics;

/// Time between two comparisons. With a scrub in between, a divergence is found and repaired within 10 s.
const COMPARISON_INTERVAL: Duration = Duration::from_secs(2);
/// How long a member may take to answer.
const DIGESTS_TIMEOUT: Duration = Duration::from_secs(1);

/// A member's digests, by index.
type Digests = BTreeMap<u64, u64>;

/// A member's digest that is not the majority's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Divergent {
    index: u64,
    digest: u64,
    majority: u64,
}

/// The result of a comparison.
#[derive(Default, PartialEq, Eq, Debug)]
struct Comparison {
    /// The members that diverge.
    divergent: BTreeMap<MemberId, Divergent>,
    /// The members that have what the majority has.
    matching: BTreeSet<MemberId>,
    /// The newest index at which members differ without a majority.
    inconclusive: Option<u64>,
    /// The newest index at which all members are equal.
    equal: Option<u64>,
}

/// Compares the members' answers; `members` is the number of all members, also those without an answer. Each member is
/// compared at the newest index of its answer at which a majority agrees.
fn compare(answers: &BTreeMap<MemberId, Digests>, members: usize) -> Comparison {
    let mut comparison = Comparison::default();
    let indices: BTreeSet<u64> = answers.values().flat_map(Digests::keys).copied().collect();
    for index in indices.into_iter().rev() {
        let at: BTreeMap<MemberId, u64> =
            answers.iter().filter_map(|(id, digests)| Some((*id, *digests.get(&index)?))).collect();
        let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
        at.values().for_each(|digest| *votes.entry(*digest).or_default() += 1);
        let Some((&majority, &count)) = votes.iter().find(|(_, count)| **count * 2 > members) else {
            if votes.len() > 1 {
                comparison.inconclusive = comparison.inconclusive.max(Some(index));
            }
            continue;
        };
        if count == members {
            comparison.equal = comparison.equal.max(Some(index));
        }
        for (member, digest) in at {
            if comparison.divergent.contains_key(&member) || comparison.matching.contains(&member) {
                continue;
            }
            if digest == majority {
                comparison.matching.insert(member);
            } else {
                comparison.divergent.insert(member, Divergent { index, digest, majority });
            }
        }
    }
    comparison
}

/// The leader's task that compares all members.
pub(crate) struct Comparer {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) engine: Arc<Engine>,
    pub(crate) auditor: Auditor<Replica>,
    pub(crate) peers: Peers,
    pub(crate) metrics: Arc<ReplicationMetrics>,
    pub(crate) divergences: mpsc::Sender<Divergence>,
}

impl Comparer {
    /// Compares while this member leads.
    pub(crate) async fn run(self) {
        loop {
            tokio::time::sleep(COMPARISON_INTERVAL).await;
            if !self.raft.is_leader() {
                continue;
            }
            let mut members = self.raft.members();
            // One that has never come has no state.
            let joining = &self.engine.cluster_state().joining;
            members.retain(|id, _| !joining.contains_key(id));
            let answers = self.ask(&members).await;
            let comparison = compare(&answers, members.len());
            self.count(&comparison);
            for (member, divergent) in &comparison.divergent {
                let Divergent { index, digest, majority } = divergent;
                tracing::error!(
                    member = %member, index, digest = format_args!("{digest:#018x}"),
                    majority = format_args!("{majority:#018x}"),
                    "the state of a member differs from the majority's: it is to be repaired"
                );
                self.report(*member, &members, divergent).await;
            }
            if let Some(index) = comparison.inconclusive {
                tracing::error!(index, ?answers, "members' states differ, and no majority agrees on one");
            }
        }
    }

    async fn ask(&self, members: &Members) -> BTreeMap<MemberId, Digests> {
        let points = self.auditor.points();
        let indices: Vec<u64> = points.iter().map(|(index, _)| *index).collect();
        let answers = self.peers.fan_out(members, Lane::Control, DIGESTS_TIMEOUT, |mut client| {
            let question = wire::DigestsRequest { indices: indices.clone() };
            async move { client.digests(question).await }
        });
        let digests = answers.filter_map(async |(id, answer)| {
            let digests = answer.ok()?.digests;
            Some((id, digests.iter().map(|d| (d.index, d.digest)).collect()))
        });
        let mut digests: BTreeMap<MemberId, Digests> = digests.collect().await;
        digests.insert(self.me, points.into_iter().collect());
        digests
    }

    fn count(&self, comparison: &Comparison) {
        self.metrics.audits.divergent.add(comparison.divergent.len() as u64);
        self.metrics.audits.matching.add(comparison.matching.len() as u64);
        self.metrics.audits.inconclusive.add(comparison.inconclusive.is_some().into());
        if let Some(index) = comparison.equal {
            self.metrics.audited_index.set(index);
        }
    }

    async fn report(&self, member: MemberId, members: &Members, divergent: &Divergent) {
        let Divergent { index, majority, .. } = *divergent;
        if member == self.me {
            report(&self.divergences, Divergence::Digest { index, majority });
            return;
        }
        let only = members.iter().filter(|(id, _)| **id == member);
        let request = wire::ReportDivergenceRequest { index, digest: majority };
        let reported = self.peers.fan_out(only, Lane::Control, DIGESTS_TIMEOUT, |mut client| async move {
            client.report_divergence(request).await
        });
        if !reported.all(async |(_, answer)| answer.is_ok()).await {
            tracing::warn!(%member, "a member did not learn that it diverges; trying again");
        }
    }
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
    fn comparison_of_equal_members_names_newest_common_index() {
        let compared = compare(&answers(&[(A, &[(9, 90), (4, 40)]), (B, &[(9, 90), (4, 40)]), (C, &[(4, 40)])]), 3);
        assert_eq!(compared.equal, Some(4));
        assert!(compared.divergent.is_empty() && compared.inconclusive.is_none() && compared.matching.len() == 3);
    }

    #[test]
    fn comparison_finds_the_divergent_member() {
        for odd in [A, B, C] {
            let digest = |id| if id == odd { 1 } else { 90 };
            let compared =
                compare(&answers(&[(A, &[(9, digest(A))]), (B, &[(9, digest(B))]), (C, &[(9, digest(C))])]), 3);
            assert_eq!(compared.divergent, BTreeMap::from([(odd, Divergent { index: 9, digest: 1, majority: 90 })]));
            assert_eq!((compared.matching.len(), compared.equal, compared.inconclusive), (2, None, None));
        }
    }

    #[test]
    fn comparison_without_majority_is_inconclusive() {
        let two = compare(&answers(&[(A, &[(9, 1)]), (B, &[(9, 2)])]), 3);
        assert_eq!((two.inconclusive, two.divergent.len(), two.equal), (Some(9), 0, None));
        let silent = compare(&answers(&[(A, &[(9, 1)])]), 3);
        assert_eq!(silent, Comparison::default());
        // Two of four are no majority.
        let d = MemberId(4);
        let four = compare(&answers(&[(A, &[(9, 1)]), (B, &[(9, 1)]), (C, &[(9, 2)]), (d, &[(9, 3)])]), 4);
        assert_eq!((four.inconclusive, four.divergent.len()), (Some(9), 0));
    }

    #[test]
    fn comparison_uses_newest_index_of_each_member() {
        // It was repaired, or has become wrong, since.
        let compared =
            compare(&answers(&[(A, &[(9, 90), (4, 40)]), (B, &[(9, 90), (4, 40)]), (C, &[(9, 90), (4, 1)])]), 3);
        assert!(compared.divergent.is_empty());
        let compared =
            compare(&answers(&[(A, &[(9, 90), (4, 40)]), (B, &[(9, 90), (4, 40)]), (C, &[(9, 1), (4, 40)])]), 3);
        assert_eq!(compared.divergent, BTreeMap::from([(C, Divergent { index: 9, digest: 1, majority: 90 })]));
    }
}
