//! Metrics of the replication.
use std::time::Duration;

use palisade_engine::replica::Outcome;
use palisade_metrics::{Counter, DurationGauge, DurationHistogram, Gauge, Histogram, labelled, metrics};

const COMMIT_BUCKETS: &[Duration] = &[
    Duration::from_micros(100),
    Duration::from_micros(200),
    Duration::from_micros(300),
    Duration::from_micros(400),
    Duration::from_micros(600),
    Duration::from_micros(800),
    Duration::from_micros(1000),
    Duration::from_micros(1500),
    Duration::from_millis(2),
    Duration::from_millis(3),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2500),
];
const APPLY_BUCKETS: &[Duration] = &[
    Duration::from_micros(10),
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(100),
    Duration::from_secs(1),
];
const BATCH_BUCKETS: &[u64] = &[1, 2, 4, 8, 16, 32, 64];

metrics! {

/// What the replication counts.
pub struct ReplicationMetrics {
    /// Time from a proposal to its application on this member.
    pub commit: DurationHistogram = "palisade_commit_seconds" buckets COMMIT_BUCKETS,
    /// Commands in a batch that this member proposed.
    pub batch_commands: Histogram = "palisade_batch_commands" buckets BATCH_BUCKETS,
    /// Batches that this member proposed more than once, each time.
    pub batches_retransmitted: Counter = "palisade_batches_retransmitted_total",
    /// Batches of other members refused because this member does not lead.
    pub batches_refused: Counter = "palisade_batches_refused_total",
    /// Commands of this member, by what applying them did.
    pub outcomes: Outcomes = "palisade_command_outcomes_total",
    /// Proposals of the packet path that were given up, by reason.
    pub proposals_dropped: ProposalsDropped = "palisade_proposals_dropped_total",
    /// Hints sent, counted once for each receiver.
    pub hints_sent: Counter = "palisade_hints_sent_total",
    /// Hints received.
    pub hints_received: Counter = "palisade_hints_received_total",
    /// Hints dropped because the queue to a member was full.
    pub hints_dropped: Counter = "palisade_hints_dropped_total",
    /// Hints received that could not be decoded.
    pub hints_invalid: Counter = "palisade_hints_invalid_total",
    /// Streams of hints opened to other members.
    pub hint_streams: Counter = "palisade_hint_streams_opened_total",
    /// Sessions in progress messages, by direction.
    pub progress_sessions: Directions = "palisade_progress_sessions_total",
    /// Sessions in progress messages received that could not be decoded.
    pub progress_invalid: Counter = "palisade_progress_invalid_total",
    /// Progress messages dropped because the queue to a member was full.
    pub progress_dropped: Counter = "palisade_progress_messages_dropped_total",
    /// Age of the oldest progress not yet sent to other members.
    pub progress_lag: DurationGauge = "palisade_progress_lag_seconds",
    /// Other members that forward and were not heard from lately.
    pub members_silent: Gauge = "palisade_members_silent",
    /// Batches of all members applied here.
    pub applied_batches: Counter = "palisade_applied_batches_total",
    /// Commands of all members applied here.
    pub applied_commands: Counter = "palisade_applied_commands_total",
    /// Time that applying an entry of the log took: nothing else is applied meanwhile.
    pub apply: DurationHistogram = "palisade_apply_seconds" buckets APPLY_BUCKETS,
    /// Policies that this member compiled, by result.
    pub policies_compiled: PoliciesCompiled = "palisade_policies_compiled_total",
    /// How long compiling the last policy took.
    pub policy_compile_time: DurationGauge = "palisade_policy_compile_seconds",
    /// Whether nothing is applied here because the policy that comes into force is not compiled yet.
    pub policy_awaited: Gauge = "palisade_policy_awaited",
    /// On the leader, policies that it decided on, by result.
    pub candidates: Candidates = "palisade_policy_candidates_total",
    /// Sessions established by all members, as applied here.
    pub sessions_established: Counter = "palisade_sessions_established_total",
    /// Idle sessions of all members that a packet kept alive, as applied here.
    pub sessions_refreshed: Counter = "palisade_sessions_refreshed_total",
    /// RSTs to the ends of connections that were killed here with `--reset`, and connections left out.
    pub kill_resets: KillResets = "palisade_kill_resets_total",
    /// Sessions of all members that a new policy ended, as applied here.
    pub sessions_forbidden: Counter = "palisade_sessions_forbidden_total",
    /// On the leader, sweeps of the sessions after a change of the policy or of the leader, by result.
    pub policy_sweeps: PolicySweeps = "palisade_policy_sweeps_total",
    /// On the leader, sessions of older policies that sweeps judged.
    pub policy_sweep_judged: Counter = "palisade_policy_sweep_judged_total",
    /// On the leader, the duration of the last completed sweep, until its last revocation was applied.
    pub policy_sweep_time: DurationGauge = "palisade_policy_sweep_seconds",
    /// Renewals of this member's lease, by result.
    pub lease_renewals: LeaseRenewals = "palisade_lease_renewals_total",
    /// Snapshots exchanged with other members completely, by direction.
    pub snapshots: Directions = "palisade_snapshots_total",
    /// Snapshots that another member began to take, and did not take completely.
    pub snapshot_sends_failed: Counter = "palisade_snapshot_sends_failed_total",
    /// On the leader, members that did not take the last snapshot sent to them: the next attempt waits.
    pub snapshot_receivers_failing: Gauge = "palisade_snapshot_receivers_failing",
    /// Requests refused because they were for another member or cluster.
    pub wrong_destination_requests: Counter = "palisade_wrong_destination_requests_total",
    /// Packets to the member port that the kernel dropped: from an interface that is not in `cluster.interfaces`, or for lack
    /// of room. Read every ten seconds.
    pub port_dropped: Counter = "palisade_member_port_dropped_total",
    /// Connections to the member port closed because they did not speak its protocol.
    pub rejected_connections: Counter = "palisade_rejected_connections_total",
    /// Times that a new leader was seen.
    pub leader_changes: Counter = "palisade_raft_leader_changes_total",
    /// On the leader, comparisons of members' states with the majority's, by result.
    pub audits: Audits = "palisade_audits_total",
    /// On the leader, the last log index at which the states of all members were found equal.
    pub audited_index: Gauge = "palisade_audited_index",
    /// 256ths of this member's session table compared with what commands made of it, by result.
    pub scrubs: Scrubs = "palisade_scrubs_total",
    /// On the leader, answers of members that cannot read an entry or a snapshot.
    pub unreadable_refusals: Counter = "palisade_unreadable_refusals_total",
    /// Whether this member's state is known to be wrong.
    pub state_suspect: Gauge = "palisade_state_suspect",
    /// Replacements of this member's state by a snapshot of the leader, by result.
    pub repairs: Repairs = "palisade_repairs_total",
}
}

labelled! {

/// Commands by outcome.
pub struct Outcomes: Counter, "outcome" { accepted, stale, conflict, full, invalid, serial_expired }
}

labelled! {
    /// Dropped proposals by reason.
    pub struct ProposalsDropped: Counter, "reason" { lease_not_valid, deadline, queue_full }
}

labelled! {
    /// RSTs of `session kill --reset` that were handed to the datapath; connections for which there were none: too many waited,
    /// nothing was known of them, or another one had begun with the tuple.
    pub struct KillResets: Counter, "result" { sent, left_out }
}

labelled! {
    /// Exchanged items by direction.
    pub struct Directions: Counter, "direction" { sent, received }
}

labelled! {
    /// Compiled policies by result.
    pub struct PoliciesCompiled: Counter, "result" { compiled, refused }
}

labelled! {
    /// Candidates by the leader's decision.
    pub struct Candidates: Counter, "result" { enacted, withdrawn }
}

labelled! {
    /// Sweeps by result.
    pub struct PolicySweeps: Counter, "result" { completed, abandoned }
}

labelled! {
    /// Lease renewals by result.
    pub struct LeaseRenewals: Counter, "result" { renewed, failed }
}

labelled! {
    /// Audits by result.
    pub struct Audits: Counter, "result" { matching, divergent, inconclusive }
}

labelled! {
    /// Scrubs by result.
    pub struct Scrubs: Counter, "result" { intact, damaged }
}

labelled! {
    /// Repairs by result.
    pub struct Repairs: Counter, "result" { done, failed }
}

impl Outcomes {
    pub(crate) fn count(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Accepted | Outcome::Policy(_) | Outcome::Member(_) => &self.accepted,
            Outcome::Stale(_) => &self.stale,
            Outcome::Conflict => &self.conflict,
            Outcome::Full => &self.full,
            Outcome::Invalid(_) => &self.invalid,
            Outcome::SerialExpired => &self.serial_expired,
        };
        counter.inc();
    }
}
