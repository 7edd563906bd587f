//! Metrics of Raft, read from its status.

use palisade_metrics::MetricFamilies;

use crate::replication::{RaftRole, Status};

/// Adds them.
pub(crate) fn collect(families: &mut MetricFamilies, s: &Status) {
    families.gauges("palisade_raft_role", "Whether this member has the role in Raft.", |samples| {
        let all = [RaftRole::Leader, RaftRole::Follower, RaftRole::Learner, RaftRole::Candidate, RaftRole::Stopped];
        all.into_iter().for_each(|role| samples.with("role", role.label()).integer((role == s.role).into()));
    });
    families.gauge("palisade_member_id", "This member's id.", s.member.0);
    families.gauge("palisade_raft_term", "Raft's term.", s.term);
    families.gauge(
        "palisade_raft_leader_known",
        "Whether this member knows a leader that a majority follows.",
        s.leader.is_some(),
    );
    families.gauge("palisade_raft_leader_id", "The leader's id; 0 if none is known.", s.leader.map_or(0, |id| id.0));
    families.gauge("palisade_raft_last_log_index", "The last entry in this member's log.", s.last_log.unwrap_or(0));
    families.gauge(
        "palisade_raft_committed_index",
        "The last entry that this member knows to be committed.",
        s.committed.unwrap_or(0),
    );
    families.gauge("palisade_raft_applied_index", "The last entry applied here.", s.applied.unwrap_or(0));
    families.gauge("palisade_raft_snapshot_index", "The last entry in the newest snapshot.", s.snapshot.unwrap_or(0));
    families.gauge("palisade_raft_purged_index", "The last entry purged from the log.", s.purged.unwrap_or(0));
    families.gauge("palisade_raft_voters", "Members that vote.", s.quorum.voters as u64);
    families.gauge(
        "palisade_quorum",
        "Whether a majority was seen behind the leader in the last second.",
        s.quorum.held,
    );
    families.gauge(
        "palisade_voters_answering",
        "Voters that answer this member, itself included.",
        s.quorum.answering as u64,
    );
    // Labels by member: few, and chosen by the operator, not by traffic.
    families.gauges(
        "palisade_raft_lag_entries",
        "On the leader, entries that a member has not confirmed yet.",
        |samples| {
            for (member, lag) in s.members.iter().filter_map(|m| Some((m, m.lag?))) {
                samples.with("member", &member.info.name).integer(lag);
            }
        },
    );
    families.gauges(
        "palisade_member_cannot_read",
        "On the leader, whether a member answered that it cannot read an entry or a snapshot.",
        |samples| {
            for member in s.members.iter().filter(|m| m.id != s.member && s.role == RaftRole::Leader) {
                samples.with("member", &member.info.name).integer(member.cannot_read.is_some().into());
            }
        },
    );
    families.gauges("palisade_member_reachable", "Whether this member reaches the other one.", |samples| {
        for member in s.members.iter().filter(|m| m.id != s.member) {
            samples.with("member", &member.info.name).integer(member.reachable.into());
        }
    });
    families.gauges(
        "palisade_member_draining",
        "Whether the other member turns traffic away, as it says.",
        |samples| {
            for member in s.members.iter().filter(|m| m.id != s.member) {
                samples.with("member", &member.info.name).integer(member.draining.into());
            }
        },
    );
}
