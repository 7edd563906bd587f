//! The task that follows the grade: it logs what changes, and announces it by kernel routes.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::{Grade, Readiness};
use crate::clock;
use crate::daemon::Daemon;
use crate::datapath::announce::Announcement;

/// Interval at which the grade is computed, also while nobody asks.
const INTERVAL: Duration = Duration::from_millis(100);
/// Interval at which the routes are compared with the grade: others may have removed them, or the device was made again.
const ROUTE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Follows the readiness forever. Cancel-safe.
pub(crate) async fn follow(daemon: Arc<Daemon>) {
    let config = &daemon.config().readiness;
    let announcement = Announcement { table: config.table, destinations: config.routes.clone() };
    let announcement = (!announcement.destinations.is_empty()).then(|| Arc::new(announcement));
    let (mut last, mut checked, mut failed) = (None, clock::now(), false);
    loop {
        let Readiness { grade, reasons } = daemon.readiness();
        let (changed, now) = (last != Some(grade), clock::now());
        if changed {
            log(last, grade, &reasons);
            last = Some(grade);
        }
        if let Some(announcement) = &announcement
            && (changed || now.since(checked) >= ROUTE_CHECK_INTERVAL)
        {
            checked = now;
            let error = announce(&daemon, announcement, grade).await;
            if let Some(error) = error.as_ref().filter(|_| !failed) {
                tracing::error!(%error, "the routes that announce the readiness cannot be set: they are tried again");
            }
            failed = error.is_some();
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn log(before: Option<Grade>, now: Grade, reasons: &[String]) {
    let (grade, reasons) = (now.name(), reasons.join("; "));
    match before {
        Some(before) if now < before => tracing::warn!(grade, reasons, "readiness falls"),
        Some(_) => tracing::info!(grade, reasons, "readiness rises"),
        None => tracing::debug!(grade, reasons, "readiness"),
    }
}

/// Announces the grade. Without a datapath there is no device, and no route on it. Returns why it failed.
async fn announce(daemon: &Daemon, announcement: &Arc<Announcement>, grade: Grade) -> Option<std::io::Error> {
    let datapath = daemon.member()?.datapath()?;
    let announcement = announcement.clone();
    let set = spawn_blocking(move || datapath.announce(&announcement, grade.route_metric())).await;
    match set {
        Ok(set) => set.err(),
        Err(error) => Some(std::io::Error::other(error)),
    }
}
