//! Has snapshots made, and the log purged: when, the store plans; openraft carries it out.

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
        }
    }
}
