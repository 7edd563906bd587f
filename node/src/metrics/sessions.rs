//! Metrics of the session table and the replicated state, read from the engine.

use palisade_engine::replica::Settings;
use palisade_engine::{ClusterState, Counts, Generation, LeaseState, Role, RuleHits, TakeoverCounts};
use palisade_metrics::MetricFamilies;

/// The rules, the default included, that have series of their own.
pub(crate) const MAX_RULE_SERIES: usize = 513;

/// Adds the hits of the rules, by name. `beyond` is the sum of all further rules.
pub(crate) fn rule_hits(families: &mut MetricFamilies, hits: &[RuleHits], beyond: u64) {
    families.counters(
        "palisade_rule_hits_total",
        "Connections that a rule of the active policy opened or denied on this member, by name.",
        |samples| {
            for rule in hits.iter().filter(|rule| rule.rule.0 != 0) {
                samples.with("default", "false").with("rule", &rule.name).integer(rule.hits);
            }
            let default = hits.iter().find(|rule| rule.rule.0 == 0).map_or(0, |rule| rule.hits);
            samples.with("default", "true").with("rule", "").integer(default);
            if beyond > 0 {
                samples.with("default", "false").with("rule", "").integer(beyond);
            }
        },
    );
}

/// Adds those of the session table.
pub(crate) fn table(families: &mut MetricFamilies, counts: &Counts, settings: &Settings, affordable: u64) {
    let (max_sessions, max_half_open) = (settings.max_sessions(), settings.max_half_open());
    families.gauges("palisade_sessions", "Sessions in the replicated state, by protocol and state.", |samples| {
        for (protocol, state, n) in &counts.sessions {
            samples.with("protocol", &protocol.to_string()).with("state", state).integer(*n);
        }
    });
    families.gauge("palisade_sessions_limit", "Maximum number of sessions.", max_sessions as u64);
    families.gauge("palisade_sessions_affordable", "Sessions for which this member has memory.", affordable);
    families.gauge("palisade_half_open_sessions", "Half-open sessions.", counts.half_open);
    families.gauge("palisade_half_open_sessions_limit", "Maximum number of half-open sessions.", max_half_open as u64);
    families.counter(
        "palisade_half_open_sessions_evicted_total",
        "Half-open sessions evicted to make room for newer ones.",
        counts.half_open_evicted,
    );
}

/// Adds the packets that passed although no live member confirmed their sequence numbers.
pub(crate) fn takeovers(families: &mut MetricFamilies, counts: TakeoverCounts) {
    families.counters(
        "palisade_takeover_packets_total",
        "Packets of sessions that a lost member carried, by why they were accepted.",
        |samples| {
            samples.with("by", "bound").integer(counts.within_bound);
            samples.with("by", "provisional").integer(counts.provisional);
        },
    );
}

/// Adds what the member may do, and what the cluster has agreed on.
pub(crate) fn cluster(
    families: &mut MetricFamilies,
    lease: LeaseState,
    generation: Generation,
    cluster: &ClusterState,
) {
    families.gauges("palisade_lease_state", "Whether this member's lease is in the state.", |samples| {
        let all = [("valid", LeaseState::Valid), ("grace", LeaseState::Grace), ("expired", LeaseState::Expired)];
        all.into_iter().for_each(|(name, state)| samples.with("state", name).integer((lease == state).into()));
    });
    families.gauge("palisade_policy_generation", "The policy generation in force here.", generation.0);
    families.gauge("palisade_level", "The level in force, as applied here.", u64::from(cluster.level.0));
    let possible = u64::from(cluster.possible_level().0);
    families.gauge("palisade_possible_level", "The highest level that every member's program knows.", possible);
    families.gauges("palisade_members", "Members of the cluster, by role.", |samples| {
        for (name, role) in [("firewall", Role::Firewall), ("witness", Role::Witness)] {
            let count = cluster.members.values().filter(|m| m.role == role).count();
            samples.with("role", name).integer(count as u64);
        }
    });
}
