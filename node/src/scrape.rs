//! The HTTP pages from the daemon's state.

use crate::daemon::Daemon;
use crate::http::Pages;
use crate::metrics::{self, Sheet};

impl Pages for Daemon {
    fn metrics(&self) -> Sheet {
        collect(self)
    }

    fn stuck(&self) -> Vec<String> {
        self.stuck_threads()
    }

    fn not_ready(&self) -> Vec<String> {
        Daemon::not_ready(self)
    }
}

/// Everything that the daemon counts, now.
fn collect(daemon: &Daemon) -> Sheet {
    let mut sheet = Sheet::default();
    metrics::process::write(&mut sheet);
    let member = daemon.member();
    let drained = daemon.draining().map(|d| d.packets);
    metrics::member_state(&mut sheet, daemon.not_ready().is_empty(), member.is_some(), drained);
    let Some(member) = member else { return sheet };
    let limits = &daemon.config().limits;
    let view = member.engine.view();
    metrics::engine::sessions(&mut sheet, &member.engine.counts(), (limits.max_sessions, limits.max_half_open));
    metrics::engine::takeovers(&mut sheet, member.engine.takeover_counts());
    metrics::engine::cluster(&mut sheet, Some(member.standing()), member.engine.generation(), &view);
    metrics::replication::raft(&mut sheet, &member.replication.status());
    metrics::replication::write(&mut sheet, &member.replication.metrics());
    metrics::replication::store(&mut sheet, &member.replication.store_metrics().totals());
    let datapath = member.datapath();
    metrics::packets(&mut sheet, datapath.map(|datapath| datapath.metrics().snapshot()).as_ref());
    sheet
}
