//! Has snapshots made, and the log purged: when, the store plans; openraft carries it out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use palisade_engine::replica::Replica;
use palisade_raft_store::{LogLimits, Planner};

use crate::raft::config::PalisadeRaft;

/// Time between two plans.
const PLAN_INTERVAL: Duration = Duration::from_millis(100);
/// Time after which openraft is asked again to purge: meanwhile it sends what is to be purged.
const PURGE_RETRY: u32 = 10;

/// The task that keeps the log short.
pub(crate) struct LogKeeper {
    pub(crate) raft: PalisadeRaft,
    pub(crate) planner: Planner<Replica>,
    pub(crate) limits: LogLimits,
    pub(crate) cut: CutBelow,
}

/// The entry below which the leader sends no entries any longer: a member that is further behind, though it answers, would keep the
/// log for ever. It gets a snapshot.
#[derive(Clone, Debug, Default)]
pub(crate) struct CutBelow(Arc<AtomicU64>);

impl CutBelow {
    fn raise(&self, index: u64) {
        self.0.fetch_max(index, Ordering::AcqRel);
    }

    /// Whether a member that has confirmed so much is too far behind.
    pub(crate) fn is_below(&self, confirmed: Option<u64>) -> bool {
        confirmed.unwrap_or(0) < self.0.load(Ordering::Acquire)
    }
}

impl LogKeeper {
    pub(crate) async fn run(self) {
        let (mut asked, mut patience) = (None, 0);
        loop {
            tokio::time::sleep(PLAN_INTERVAL).await;
            let plan = self.planner.plan(&self.limits);
            if plan.snapshot {
                // It says only that Raft has stopped, of which others hear too. A snapshot under way is not disturbed.
                drop(self.raft.trigger().snapshot().await);
            }
            let purged = self.raft.metrics().borrow_watched().purged.map(|id| id.index);
            let Some(purge) = plan.purge.filter(|purge| Some(*purge) > purged) else { continue };
            patience = if asked == Some(purge) { patience + 1 } else { 0 };
            if patience % PURGE_RETRY == 0 {
                asked = Some(purge);
                drop(self.raft.trigger().purge_log(purge).await);
            }
            // Only after openraft knows what is to be purged: it sends no entries below that again.
            if let Some(cut) = plan.cut {
                self.cut.raise(cut);
            }
        }
    }
}
