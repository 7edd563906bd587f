//! Figures about the session table and the member's place in the cluster.

use palisade_engine::engine::{Counts, View};
use palisade_engine::id::Generation;
use palisade_engine::replica::Role;
use palisade_engine::{Standing, TakeoverCounts};

use super::Sheet;

/// Writes the session table's figures.
pub fn sessions(sheet: &mut Sheet, counts: &Counts, limits: (usize, usize)) {
    sheet.gauges("palisade_sessions", "Sessions in the log, by protocol and state, as applied here", |s| {
        for (protocol, state, n) in &counts.sessions {
            s.count([("protocol", &protocol.to_string()), ("state", state)], *n);
        }
    });
    sheet.gauge("palisade_sessions_limit", "Most sessions", limits.0 as u64);
    sheet.gauge("palisade_half_open_sessions", "Half-open sessions now", counts.half_open);
    sheet.gauge("palisade_half_open_sessions_limit", "Most half-open sessions", limits.1 as u64);
    sheet.counter(
        "palisade_half_open_sessions_evicted",
        "Half-open sessions that made room for newer ones",
        counts.half_open_evicted,
    );
}

/// Writes how many packets passed although no live member confirmed their sequence numbers.
pub fn takeovers(sheet: &mut Sheet, counts: TakeoverCounts) {
    sheet.counters(
        "palisade_takeover_packets",
        "Packets of connections that other members carried, by why they passed",
        |s| {
            s.count([("by", "bound")], counts.within_bound);
            s.count([("by", "provisional")], counts.provisional);
        },
    );
}

/// Writes what the member is allowed to do, and what the cluster has agreed on.
pub fn cluster(sheet: &mut Sheet, standing: Option<Standing>, generation: Generation, view: &View) {
    let current = standing == Some(Standing::Current);
    sheet.gauge(
        "palisade_current",
        "1 if this member has lately proved that it applied everything committed",
        current.into(),
    );
    sheet.gauges("palisade_standing", "1 for how far this member may act on what it has applied", |s| {
        let each = [("current", Standing::Current), ("cut_off", Standing::CutOff), ("expired", Standing::Expired)];
        each.into_iter().for_each(|(name, is)| s.count([("standing", name)], (standing == Some(is)).into()));
    });
    sheet.gauge("palisade_policy_generation", "The policy generation in force here", generation.0);
    sheet.gauges("palisade_members", "Members of the cluster by role", |s| {
        for (name, role) in [("firewall", Role::Firewall), ("witness", Role::Witness)] {
            s.count([("role", name)], view.members.values().filter(|m| m.role == role).count() as u64);
        }
    });
}
