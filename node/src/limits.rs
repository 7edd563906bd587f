//! How many connections to the admin socket, and watches, there may be.

use std::sync::Arc;

use palisade_metrics::{Counter, MetricFamilies, MetricGroup, labelled, metrics};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of root and the daemon's own user, which others cannot take; and of all others.
pub(crate) const MAX_CONNECTIONS: usize = 32;
/// Watches of sessions, each of which remembers up to a million.
pub(crate) const MAX_WATCHES: usize = 16;

labelled! {
    /// What was refused.
    pub(crate) struct Refused: Counter, "what" { connection, watch }
}

metrics! {
    /// What the administration refused.
    pub(crate) struct AdminMetrics {
        /// Connections to the admin socket, and watches, refused because there were too many.
        pub(crate) refused: Refused = "palisade_admin_refused_total",
    }
}

/// The bounds of the administration.
#[derive(Debug)]
pub(crate) struct AdminLimits {
    root: Arc<Semaphore>,
    others: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    metrics: AdminMetrics,
}

impl Default for AdminLimits {
    fn default() -> AdminLimits {
        let [root, others] = [MAX_CONNECTIONS; 2].map(|n| Arc::new(Semaphore::new(n)));
        AdminLimits { root, others, watches: Arc::new(Semaphore::new(MAX_WATCHES)), metrics: AdminMetrics::default() }
    }
}

impl AdminLimits {
    /// A place for a connection, until it is dropped; `None`: there is none left.
    pub(crate) fn connection(&self, root: bool) -> Option<OwnedSemaphorePermit> {
        let places = if root { &self.root } else { &self.others };
        take(places, &self.metrics.refused.connection)
    }

    /// A place for a watch, until it is dropped; `None`: there is none left.
    pub(crate) fn watch(&self) -> Option<OwnedSemaphorePermit> {
        take(&self.watches, &self.metrics.refused.watch)
    }

    /// Adds the metrics.
    pub(crate) fn collect(&self, families: &mut MetricFamilies) {
        families.gauges("palisade_admin_connections", "Connections to the admin socket, by user.", |samples| {
            for (user, places) in [("root", &self.root), ("other", &self.others)] {
                samples.with("user", user).integer((MAX_CONNECTIONS - places.available_permits()) as u64);
            }
        });
        let watches = MAX_WATCHES - self.watches.available_permits();
        families.gauge("palisade_admin_watches", "Watches of sessions (`palisade session watch`).", watches as u64);
        AdminMetrics::collect(&[&self.metrics], families);
    }
}

fn take(places: &Arc<Semaphore>, refused: &Counter) -> Option<OwnedSemaphorePermit> {
    let place = places.clone().try_acquire_owned().ok();
    if place.is_none() {
        refused.inc();
    }
    place
}
