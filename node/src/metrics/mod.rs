//! The metrics of `/metrics`, collected at the moment of the scrape (`scrape.rs`).
//!
//! A metric is declared where it is counted, with [`palisade_metrics::metrics!`]: `datapath/metrics.rs`,
//! `replication_metrics.rs`, `raft-store/src/metrics.rs`. The files here declare those that are not counted, but read from a
//! state at the scrape: [`process`], [`sessions`], [`raft`]. [`exposition`] turns them into text.
//!
//! Names begin with `palisade_`, units are base units (seconds, bytes), counters end in `_total`. No label is ever an
//! address, a port or anything else that traffic chooses: an attacker must not be able to make series.

pub mod exposition;
pub(crate) mod process;
pub(crate) mod raft;
pub(crate) mod sessions;

use palisade_metrics::{MetricFamilies, MetricGroup};
use palisade_raft_store::{StoreCounters, StoreMetrics};

use crate::datapath::{DatapathMetrics, GateStatus, Nft};
use crate::readiness::Grade;
use crate::replication::ReplicationMetrics;

/// Adds the metrics of the parts that count.
pub(crate) fn counted(
    families: &mut MetricFamilies,
    replication: &ReplicationMetrics,
    store: &StoreMetrics,
    datapath: Option<&DatapathMetrics>,
) {
    ReplicationMetrics::collect(&[replication], families);
    StoreCounters::collect(&[store], families);
    families.gauge("palisade_datapath_running", "Whether packets are captured.", datapath.is_some());
    if let Some(datapath) = datapath {
        datapath.collect(families);
    }
}

/// Which locks of the gate are in place.
pub(crate) fn gate(families: &mut MetricFamilies, gate: &GateStatus) {
    families.gauges("palisade_gate_lock", "Whether the lock of the gate is in place.", |samples| {
        samples.with("lock", "rules").integer(gate.rules.into());
        samples.with("lock", "nftables").integer((gate.nft == Nft::Installed).into());
    });
}

/// How much traffic the member should be given. `passing`: packets in the last second, if it is drained.
pub(crate) fn member_state(
    families: &mut MetricFamilies,
    grade: Grade,
    in_cluster: bool,
    removed: bool,
    passing: Option<u64>,
) {
    families.gauge("palisade_ready", "Whether this member's readiness is full.", grade == Grade::Full);
    families.gauges("palisade_readiness", "Whether this member announces the grade of readiness.", |samples| {
        Grade::ALL.iter().for_each(|g| samples.with("grade", g.name()).integer((*g == grade).into()));
    });
    families.gauge("palisade_in_cluster", "Whether this machine is a member of a cluster.", in_cluster);
    families.gauge("palisade_removed", "Whether its cluster has removed this machine.", removed);
    families.gauge("palisade_drained", "Whether this member turns traffic away.", passing.is_some());
    families.gauge(
        "palisade_drain_passing_packets",
        "Packets forwarded in the last second although the member is drained.",
        passing.unwrap_or(0),
    );
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::check;
