//! Scrubbing: each member looks for damage in its own table.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::Engine;
use tokio::sync::mpsc;

use crate::audit::{Divergence, report};
use crate::clock;
use crate::replication_metrics::ReplicationMetrics;
use tokio::task::spawn_blocking;

/// Time between two of the table's 256 parts …
const PART_INTERVAL: Duration = Duration::from_millis(20);
/// … or, where a part takes long, this multiple of the time that it took.
const PART_INTERVAL_FACTOR: u32 = 8;

/// The task that scrubs the table.
pub(crate) struct Scrubber {
    pub(crate) engine: Arc<Engine>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
    pub(crate) divergences: mpsc::Sender<Divergence>,
}

impl Scrubber {
    /// Scrubs part after part, without end.
    pub(crate) async fn run(self) {
        let mut part = 0_u8;
        loop {
            let (engine, began) = (self.engine.clone(), clock::now());
            // A part of a large table takes a while; the other tasks go on meanwhile.
            let Ok(sound) = spawn_blocking(move || engine.scrub(part)).await else { return };
            if sound {
                self.metrics.scrubs.intact.add(1);
            } else {
                self.metrics.scrubs.damaged.add(1);
                report(&self.divergences, Divergence::Table { part });
            }
            part = part.wrapping_add(1);
            tokio::time::sleep(PART_INTERVAL.max(PART_INTERVAL_FACTOR * clock::now().since(began))).await;
        }
    }
}
