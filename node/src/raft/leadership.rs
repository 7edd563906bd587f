//! Who leads, as openraft's metrics say.

use std::sync::Arc;

use openraft::async_runtime::WatchReceiver;
use palisade_engine::MemberId;
use tokio::sync::watch;

use crate::peer::connections::{Members, Peers};
use crate::raft::config::PalisadeRaft;
use crate::replication_metrics::ReplicationMetrics;

/// The term, and who leads in it, if known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Leadership {
    pub(crate) term: u64,
    pub(crate) leader: Option<LeaderInfo>,
}

/// A leader.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LeaderInfo {
    pub(crate) id: MemberId,
    pub(crate) address: String,
}

/// Keeps up to date who leads and who is a member.
pub(crate) async fn follow(
    raft: PalisadeRaft,
    leadership: watch::Sender<Leadership>,
    members: watch::Sender<Members>,
    peers: Peers,
    metrics: Arc<ReplicationMetrics>,
) {
    let mut seen = raft.server_metrics();
    loop {
        let now = seen.borrow_and_update().clone();
        let nodes: Members = now.membership_config.nodes().map(|(id, info)| (*id, info.clone())).collect();
        let leader =
            now.current_leader.and_then(|id| Some(LeaderInfo { id, address: nodes.get(&id)?.address.clone() }));
        let new = Leadership { term: now.vote.leader_id.term, leader };
        leadership.send_if_modified(|old| {
            let changed = *old != new;
            if changed {
                tracing::info!(term = new.term, leader = ?new.leader, "the leader changed");
                metrics.leader_changes.add(1);
                *old = new;
            }
            changed
        });
        members.send_if_modified(|old| {
            let changed = *old != nodes;
            if changed {
                peers.keep(|id| nodes.contains_key(&id));
                *old = nodes;
            }
            changed
        });
        if seen.changed().await.is_err() {
            return;
        }
    }
}
