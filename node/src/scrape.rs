//! The HTTP pages from the daemon's state.

use palisade_metrics::{MetricFamilies, MetricGroup};

use crate::connection_log::ConnectionLogMetrics;
use crate::daemon::{Daemon, Outside};
use crate::http::HttpState;
use crate::metrics;
use crate::readiness::Readiness;

impl HttpState for Daemon {
    fn metrics(&self) -> MetricFamilies {
        collect(self)
    }

    fn stuck(&self) -> Vec<String> {
        self.stuck_threads()
    }

    fn readiness(&self) -> Readiness {
        Daemon::readiness(self)
    }
}

/// Everything that the daemon counts, now.
fn collect(daemon: &Daemon) -> MetricFamilies {
    let mut families = MetricFamilies::default();
    metrics::process::collect(&mut families);
    daemon.admin_limits().collect(&mut families);
    let member = daemon.member();
    let passing = daemon.draining().map(|drain| drain.packets);
    let removed = matches!(daemon.outside(), Some(Outside::Removed(_)));
    metrics::member_state(&mut families, daemon.readiness().grade, member.is_some(), removed, passing);
    let Some(member) = member else { return families };
    let affords = member.engine.affordable_sessions();
    metrics::sessions::table(&mut families, &member.engine.counts(), &member.engine.settings(), affords);
    metrics::sessions::takeovers(&mut families, member.engine.takeover_counts());
    metrics::sessions::cluster(
        &mut families,
        member.lease_state(),
        member.engine.generation(),
        &member.engine.cluster_state(),
    );
    metrics::raft::collect(&mut families, &member.replication.status());
    if let Some(datapath) = member.datapath() {
        metrics::gate(&mut families, &datapath.status().gate);
    }
    metrics::counted(
        &mut families,
        &member.replication.metrics(),
        &member.replication.store_metrics(),
        member.datapath().map(|datapath| datapath.metrics()).as_deref(),
    );
    if let Some(log) = member.connection_log.metrics() {
        ConnectionLogMetrics::collect(&[log], &mut families);
    }
    let (_, hits) = member.engine.rule_hits(metrics::sessions::MAX_RULE_SERIES);
    let beyond = member.engine.rule_hits_beyond(metrics::sessions::MAX_RULE_SERIES);
    metrics::sessions::rule_hits(&mut families, &hits, beyond);
    families
}
