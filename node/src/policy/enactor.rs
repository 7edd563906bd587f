//! The leader's decision when the candidate comes into force, or that it does not.
//!
//! It comes into force when all members that may hold a lease have reported, or after five seconds with a majority of the voters
//! that includes the leader: no dead, slow or hostile member has a veto. A refusal until then stops it, unless the administrator
//! has overridden that member by name. A member that has not compiled it is late then: it stalls where the log puts the policy in
//! force, and its lease runs out as that of a member which is cut off.
//!
//! Everything that has an effect is a command that names hash and base, so two leaders cannot decide differently.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use palisade_engine::replica::{Command, Enact, Outcome, Withdraw};
use palisade_engine::{Candidate, Engine, MemberId, Time};
use tokio::sync::mpsc;

use crate::clock;
use crate::lease::LEASE_DURATION;
use crate::policy::reports::Reports;
use crate::raft::config::PalisadeRaft;
use crate::raft::contact::LastContact;
use crate::raft::requests::{AdminRequest, REQUEST_TIMEOUT, propose_and_wait};
use crate::raft::transfer::LeadershipTransfer;
use crate::replication_metrics::ReplicationMetrics;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(50);
/// After this time a majority is enough.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// After this time a candidate that no majority has compiled is withdrawn.
pub(crate) const GIVE_UP: Duration = Duration::from_secs(30);

/// The leader's task that has candidates put in force.
pub(crate) struct Enactor {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) engine: Arc<Engine>,
    pub(crate) reports: Reports,
    pub(crate) contact: LastContact,
    pub(crate) requests: mpsc::Sender<AdminRequest>,
    pub(crate) transfer: LeadershipTransfer,
    pub(crate) metrics: Arc<ReplicationMetrics>,
}

/// What the leader knows of a candidate.
#[derive(Debug, Default)]
struct Tally {
    me: MemberId,
    /// All members.
    members: BTreeSet<MemberId>,
    /// Those that may hold a lease.
    holders: BTreeSet<MemberId>,
    /// The sets of voters that need a majority each: two while the voters change.
    voters: Vec<BTreeSet<MemberId>>,
    compiled: BTreeSet<MemberId>,
    refused: BTreeSet<MemberId>,
    /// Those whose refusal does not stop it.
    overridden: BTreeSet<MemberId>,
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Wait,
    /// These had not compiled it.
    Enact(Vec<MemberId>),
    Withdraw,
    /// Another one has compiled it, and this leader has not.
    Transfer(MemberId),
}

impl Tally {
    /// The decision, this long after this leader first saw the candidate.
    fn decide(&self, elapsed: Duration) -> Decision {
        let settled =
            |id: &MemberId| self.compiled.contains(id) || self.refused.contains(id) || self.overridden.contains(id);
        if elapsed < PATIENCE && !self.holders.iter().all(settled) {
            return Decision::Wait;
        }
        if !self.refused.is_subset(&self.overridden) {
            return Decision::Withdraw;
        }
        let majority = |voters: &BTreeSet<MemberId>| voters.intersection(&self.compiled).count() * 2 > voters.len();
        let has_majority = self.voters.iter().all(majority);
        if has_majority && self.compiled.contains(&self.me) {
            return Decision::Enact(self.members.difference(&self.compiled).copied().collect());
        }
        if elapsed >= GIVE_UP {
            return Decision::Withdraw;
        }
        let voters = self.voters.last();
        match voters.and_then(|voters| voters.iter().find(|id| self.compiled.contains(id) && self.holders.contains(id)))
        {
            Some(id) if has_majority => Decision::Transfer(*id),
            _ => Decision::Wait,
        }
    }
}

impl Enactor {
    pub(crate) async fn run(self) {
        let mut leads_since = clock::now();
        let mut seen: Option<(Arc<Candidate>, Time)> = None;
        loop {
            tokio::time::sleep(INTERVAL).await;
            if !self.raft.is_leader() {
                (seen, leads_since) = (None, clock::now());
                continue;
            }
            let cluster = self.engine.cluster_state();
            let Some(candidate) = &cluster.candidate else {
                seen = None;
                continue;
            };
            let since = match &seen {
                Some((known, since)) if Arc::ptr_eq(known, candidate) => *since,
                _ => clock::now(),
            };
            seen = Some((candidate.clone(), since));
            let tally = self.tally(candidate, cluster.members.keys().copied().collect(), leads_since);
            self.carry_out(candidate, &tally, clock::now().since(since)).await;
        }
    }

    fn tally(&self, candidate: &Candidate, members: BTreeSet<MemberId>, leads_since: Time) -> Tally {
        // This member's own is kept with the others', for those who ask afterwards.
        if let Some(own) = self.engine.policy_report() {
            self.reports.record(self.me, own, |id| members.contains(&id));
        }
        let mut reports = self.reports.of(candidate.hash);
        reports.retain(|id, _| members.contains(id));
        let refused = |report: &Option<String>| report.is_some();
        let metrics = self.raft.server_metrics().borrow_watched().clone();
        // Of a member that this leader has not heard of since it began to lead, an earlier leader may have renewed the lease.
        let since_contact = |id: &MemberId| clock::now().since(self.contact.since(*id, leads_since));
        let holds = |id: &&MemberId| **id == self.me || since_contact(id) <= LEASE_DURATION;
        Tally {
            me: self.me,
            holders: members.iter().filter(holds).copied().collect(),
            voters: metrics.membership_config.membership().get_joint_config().clone(),
            compiled: reports.iter().filter(|(_, report)| !refused(report)).map(|(id, _)| *id).collect(),
            refused: reports.iter().filter(|(_, report)| refused(report)).map(|(id, _)| *id).collect(),
            overridden: candidate.overridden.iter().copied().collect(),
            members,
        }
    }

    async fn carry_out(&self, candidate: &Candidate, tally: &Tally, elapsed: Duration) {
        let &Candidate { hash, base, .. } = candidate;
        let (command, counter) = match tally.decide(elapsed) {
            Decision::Wait => return,
            Decision::Enact(without) => {
                tracing::info!(%hash, %base, ?without, "the candidate comes into force");
                (Command::Enact(Box::new(Enact { hash, base, without })), &self.metrics.candidates.enacted)
            }
            Decision::Withdraw => {
                tracing::warn!(%hash, %base, refused = ?tally.refused, compiled = ?tally.compiled, "the candidate is withdrawn");
                (Command::Withdraw(Withdraw { hash, base }), &self.metrics.candidates.withdrawn)
            }
            Decision::Transfer(to) => {
                tracing::warn!(%hash, %to, "this leader has not compiled the candidate: another one is to lead");
                if let Err(error) = self.transfer.transfer(Some(to)).await {
                    tracing::info!(%error, %to, "leadership was not transferred; trying again");
                }
                return;
            }
        };
        match propose_and_wait(&self.requests, command, REQUEST_TIMEOUT).await {
            Ok(Outcome::Policy(_) | Outcome::Accepted) => counter.inc(),
            // Another leader decided, or another candidate came.
            Ok(outcome) => tracing::info!(%hash, ?outcome, "the candidate was decided on by others"),
            Err(error) => tracing::info!(%error, %hash, "the decision on the candidate was not confirmed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<MemberId> {
        ids.iter().copied().map(MemberId).collect()
    }

    fn tally(compiled: &[u64], refused: &[u64], holders: &[u64]) -> Tally {
        Tally {
            me: MemberId(1),
            members: set(&[1, 2, 3, 4, 5]),
            holders: set(holders),
            voters: vec![set(&[1, 2, 3, 4, 5])],
            compiled: set(compiled),
            refused: set(refused),
            overridden: BTreeSet::new(),
        }
    }

    const AT_ONCE: Duration = Duration::ZERO;

    #[test]
    fn candidate_comes_into_force_when_all_that_hold_a_lease_have_reported() {
        let enact = |without: &[u64]| Decision::Enact(without.iter().copied().map(MemberId).collect());
        let all = [1, 2, 3, 4, 5];
        assert_eq!(tally(&[1, 2, 3, 4], &[], &all).decide(AT_ONCE), Decision::Wait);
        assert_eq!(tally(&all, &[], &all).decide(AT_ONCE), enact(&[]));
        assert_eq!(tally(&[1, 2, 3], &[], &[1, 2, 3]).decide(AT_ONCE), enact(&[4, 5]), "two are dead");
        assert_eq!(tally(&[1, 2, 3], &[], &all).decide(PATIENCE), enact(&[4, 5]), "two hang");
        assert_eq!(tally(&[1, 2], &[], &[1, 2]).decide(PATIENCE), Decision::Wait, "no majority");
        assert_eq!(tally(&[1, 2], &[], &[1, 2]).decide(GIVE_UP), Decision::Withdraw);
        let mut joint = tally(&[1, 2, 3], &[], &all);
        joint.voters.push(set(&[1, 4, 5]));
        assert_eq!(joint.decide(PATIENCE), Decision::Wait, "both majorities count");
    }

    #[test]
    fn refusal_stops_it_unless_it_is_overridden() {
        let all = [1, 2, 3, 4, 5];
        assert_eq!(tally(&[1, 2], &[3], &all).decide(AT_ONCE), Decision::Wait, "who else refuses?");
        assert_eq!(tally(&[1, 2, 4, 5], &[3], &all).decide(AT_ONCE), Decision::Withdraw);
        assert_eq!(tally(&[1, 2, 4], &[3], &all).decide(PATIENCE), Decision::Withdraw);
        let mut overridden = tally(&[1, 2, 4, 5], &[3], &all);
        overridden.overridden = set(&[3]);
        assert_eq!(overridden.decide(AT_ONCE), Decision::Enact(vec![MemberId(3)]));
        overridden.refused = set(&[]);
        assert_eq!(overridden.decide(AT_ONCE), Decision::Enact(vec![MemberId(3)]), "it is not waited for");
    }

    #[test]
    fn leader_that_has_not_compiled_it_gives_leadership_to_one_that_has() {
        let all = [1, 2, 3, 4, 5];
        let mut tally = tally(&[2, 3, 4, 5], &[1], &all);
        assert_eq!(tally.decide(AT_ONCE), Decision::Withdraw);
        tally.overridden = set(&[1]);
        assert_eq!(tally.decide(AT_ONCE), Decision::Transfer(MemberId(2)));
        tally.holders = set(&[1, 3]);
        assert_eq!(tally.decide(PATIENCE), Decision::Transfer(MemberId(3)), "one that is there");
    }
}
