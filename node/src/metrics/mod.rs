//! `/metrics`: collects the metrics of all parts of the daemon at the moment of the scrape.
//!
//! A metric is declared where it is counted, with [`palisade_metrics::metrics!`]: `datapath/metrics.rs`,
//! `replication/metrics.rs`, the store. The files here declare those that nobody counts, because they are read from a state
//! at the scrape: [`process`], [`sessions`], [`raft`]. [`exposition`] turns them into text.
//!
//! Names begin with `palisade_`, units are base units (seconds, bytes), counters end in `_total`. No label is ever an
//! address, a port or anything else that traffic chooses: an attacker must not be able to make series.

pub mod exposition;
mod process;
mod raft;
mod sessions;

use palisade_metrics::{MetricFamilies, MetricGroup};
use palisade_raft_store::{StoreCounters, StoreMetrics};

use crate::datapath::DatapathMetrics;
use crate::node::Daemon;
use crate::replication::ReplicationMetrics;

/// Everything that the daemon counts, now.
pub(crate) fn collect(daemon: &Daemon) -> MetricFamilies {
    let mut families = MetricFamilies::default();
    process::collect(&mut families);
    let member = daemon.member();
    let passing = daemon.drain.now().map(|drain| drain.passing);
    member_state(&mut families, daemon.not_ready().is_empty(), member.is_some(), passing);
    let Some(member) = member else { return families };
    let limits = &daemon.config.limits;
    sessions::table(&mut families, &member.engine.counts(), limits.max_sessions, limits.max_half_open);
    sessions::takeovers(&mut families, member.engine.taken_over());
    sessions::cluster(&mut families, member.standing(), member.engine.generation(), &member.engine.view());
    raft::collect(&mut families, &member.replication.status());
    let (replication, store) = (member.replication.metrics(), member.replication.store_metrics());
    counted(&mut families, &replication, &store, member.datapath().map(|datapath| datapath.metrics()).as_deref());
    families
}

/// Adds the metrics of the parts that count.
fn counted(
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

/// Whether the member may be given traffic. `passing`: packets in the last second, if it is drained.
fn member_state(families: &mut MetricFamilies, ready: bool, in_cluster: bool, passing: Option<u64>) {
    families.gauge("palisade_ready", "Whether this member may be given traffic.", ready);
    families.gauge("palisade_in_cluster", "Whether this machine is a member of a cluster.", in_cluster);
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
