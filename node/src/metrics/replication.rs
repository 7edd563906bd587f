//! Figures about the log, hints and the store.

use palisade_raft_store::Totals;

use super::Sheet;
use crate::replication::{Histogram, RaftRole, ReplicationMetrics, Status};

/// Writes the replication's figures.
pub fn write(sheet: &mut Sheet, m: &ReplicationMetrics) {
    histogram(
        sheet,
        "palisade_commit_seconds",
        "Time from a proposal to its application on this member",
        &m.commit_us,
        1e6,
    );
    histogram(
        sheet,
        "palisade_batch_commands",
        "Commands in a batch that this member proposed",
        &m.batch_commands,
        1.0,
    );
    sheet.counter(
        "palisade_batches_proposed_again",
        "Batches that had to be proposed once more",
        m.proposed_again.get(),
    );
    sheet.counters("palisade_outcomes", "Commands of this member, by what applying them did", |s| {
        for (outcome, n) in m.outcomes.all() {
            s.count([("outcome", outcome)], n);
        }
    });
    sheet.counters("palisade_proposals_dropped", "Proposals of the packet path that were given up, by reason", |s| {
        s.count([("reason", "lease_not_valid")], m.dropped_without_lease.get());
        s.count([("reason", "deadline")], m.dropped_deadline.get());
        s.count([("reason", "queue_full")], m.dropped_queue_full.get());
    });
    sheet.counter(
        "palisade_batches_refused",
        "Batches refused because this member did not lead",
        m.refused_not_leader.get(),
    );
    sheet.counters("palisade_hints", "Hints by what became of them", |s| {
        s.count([("result", "sent")], m.hints_sent.get());
        s.count([("result", "received")], m.hints_received.get());
        s.count([("result", "dropped")], m.hints_dropped.get());
        s.count([("result", "damaged")], m.hints_damaged.get());
    });
    sheet.counter("palisade_hint_streams", "Times that a stream of hints to a member was opened", m.hint_streams.get());
    sheet.counters("palisade_progress_sessions", "Sessions of whose progress members were told, by direction", |s| {
        s.count([("direction", "sent")], m.progress_told.get());
        s.count([("direction", "received")], m.progress_learned.get());
    });
    sheet.counter(
        "palisade_progress_dropped",
        "Messages about progress that a member was not sent: what they told is unknown there",
        m.progress_dropped.get(),
    );
    sheet.gauges("palisade_progress_lag_seconds", "Age of the oldest progress not yet told", |s| {
        s.number([], m.progress_lag_ms.get() as f64 / 1000.0);
    });
    sheet.gauge("palisade_members_silent", "Members that forward and were not heard lately", m.members_silent.get());
    sheet.counter("palisade_applied_batches", "Batches applied here, of all members", m.applied_batches.get());
    sheet.counter("palisade_applied_commands", "Commands applied here, of all members", m.applied_commands.get());
    sheet.counter(
        "palisade_sessions_established",
        "Sessions that the log has established, of all members, as applied here since the start",
        m.sessions_established.get(),
    );
    sheet.counter(
        "palisade_sessions_refreshed",
        "Sessions that a packet has kept alive while they were to end, of all members, as applied here since the start",
        m.sessions_refreshed.get(),
    );
    sheet.counters("palisade_lease_renewals", "Attempts to renew the lease, by result", |s| {
        s.count([("result", "renewed")], m.lease_renewals.get());
        s.count([("result", "failed")], m.lease_renewal_failures.get());
    });
    sheet.counters("palisade_snapshots", "Snapshots exchanged with other members", |s| {
        s.count([("direction", "sent")], m.snapshots_sent.get());
        s.count([("direction", "received")], m.snapshots_received.get());
    });
    sheet.counter(
        "palisade_misaddressed_requests",
        "Requests refused because they were for somebody else",
        m.misaddressed.get(),
    );
    sheet.counter(
        "palisade_strange_connections",
        "Connections to the member port closed because they did not speak its protocol",
        m.strangers.get(),
    );
    sheet.counter("palisade_raft_leader_changes", "Times that a new leader was seen", m.leader_changes.get());
    audits(sheet, m);
}

/// What the audits found.
fn audits(sheet: &mut Sheet, m: &ReplicationMetrics) {
    sheet.counters("palisade_audits", "On the leader: comparisons of members' states, by result", |s| {
        s.count([("result", "equal")], m.audits_equal.get());
        s.count([("result", "different")], m.audits_different.get());
        s.count([("result", "undecided")], m.audits_undecided.get());
    });
    sheet.gauge(
        "palisade_audited_index",
        "On the leader: the last entry at which all members' states were found equal",
        m.audited_index.get(),
    );
    sheet.counters("palisade_scrubs", "Parts of this member's table compared with their digest, by result", |s| {
        s.count([("result", "sound")], m.scrubs_sound.get());
        s.count([("result", "damaged")], m.scrubs_damaged.get());
    });
    sheet.gauge("palisade_state_suspect", "1 while this member's state is known to be wrong", m.state_suspect.get());
    sheet.counters("palisade_repairs", "Repairs of this member's state by a snapshot of the leader, by result", |s| {
        s.count([("result", "done")], m.repairs_done.get());
        s.count([("result", "failed")], m.repairs_failed.get());
    });
}

/// Writes Raft's own figures.
pub fn raft(sheet: &mut Sheet, s: &Status) {
    sheet.gauges("palisade_raft_role", "1 for what this member is in Raft", |m| {
        let all = [RaftRole::Leader, RaftRole::Follower, RaftRole::Learner, RaftRole::Candidate, RaftRole::Stopped];
        all.into_iter().for_each(|role| m.count([("role", role.label())], (role == s.role).into()));
    });
    sheet.gauge("palisade_member_id", "This member's id", s.member.0);
    sheet.gauge("palisade_raft_term", "Raft's term", s.term);
    sheet.gauge("palisade_raft_leader_known", "1 if this member knows who leads", s.leader.is_some().into());
    sheet.gauge("palisade_raft_leader_id", "The leader's id, 0 if none is known", s.leader.map_or(0, |id| id.0));
    sheet.gauge("palisade_raft_last_log_index", "The last entry in this member's log", s.last_log.unwrap_or(0));
    sheet.gauge("palisade_raft_committed_index", "The last entry known to be committed", s.committed.unwrap_or(0));
    sheet.gauge("palisade_raft_applied_index", "The last entry applied here", s.applied.unwrap_or(0));
    sheet.gauge("palisade_raft_snapshot_index", "The entry that the last snapshot reaches", s.snapshot.unwrap_or(0));
    sheet.gauge("palisade_raft_purged_index", "The entry up to which the log was purged", s.purged.unwrap_or(0));
    sheet.gauge("palisade_raft_voters", "Members that vote", s.members.iter().filter(|m| m.voter).count() as u64);
    // Labels by member: few, and chosen by the operator, not by traffic.
    sheet.gauges("palisade_raft_lag_entries", "On the leader: entries that a member has not confirmed yet", |m| {
        for (member, lag) in s.members.iter().filter_map(|m| Some((m, m.lag?))) {
            m.count([("member", &member.info.name)], lag);
        }
    });
    sheet.gauges("palisade_member_reachable", "1 if this member reaches the other one", |m| {
        for member in s.members.iter().filter(|m| m.id != s.member) {
            m.count([("member", &member.info.name)], member.reachable.into());
        }
    });
}

/// Writes the store's figures.
pub fn store(sheet: &mut Sheet, t: &Totals) {
    sheet.counter("palisade_store_flushes", "Groups of writes made durable", t.flushes);
    sheet.counters("palisade_store_flush_seconds", "Time spent in making them durable", |m| {
        m.number([], t.flush_time.as_secs_f64());
    });
    sheet.counter("palisade_store_operations", "Writes in these groups", t.operations);
    sheet.counter("palisade_store_entries", "Log entries in these groups", t.entries);
    sheet.counter("palisade_store_bytes", "Bytes of these entries", t.bytes);
    sheet.counter("palisade_store_cold_reads", "Log entries that had to be read from the disk", t.cold_reads);
}

/// `per_unit`: how many of what the histogram counts make one of the metric's units. By division, because 800 × 1e-6 is
/// not 0.0008 in binary, and the bound is a label.
fn histogram(sheet: &mut Sheet, name: &'static str, help: &'static str, h: &Histogram, per_unit: f64) {
    let counts = h.counts();
    let count = counts.iter().sum();
    let buckets = h.bounds().iter().map(|b| *b as f64 / per_unit).zip(counts);
    sheet.histogram(name, help, h.sum() as f64 / per_unit, count, buckets);
}
