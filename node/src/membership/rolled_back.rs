//! Is the data folder older than what this member has promised? A folder that was restored from a backup, or a machine
//! from its image, looks whole from inside.
//!
//! Before the member port answers anybody, the leader is asked. It knows how far this member's log was durable, for as long as
//! it has led; a log that is shorter has forgotten entries that were counted as being here. Nothing can make it shorter but
//! a later leader, and the leader answers only after a majority has confirmed that there is none.
//!
//! What happened before the leader's time nobody knows, nor what happened without entries. So this finds most such
//! accidents, not all: no copy of a data folder is ever to be started.

use std::time::Duration;

use futures::future::join_all;
use openraft::async_runtime::WatchReceiver;
use palisade_engine::MemberId;
use palisade_proto::member::v1 as wire;

use crate::peer::route::{Lane, Peers};
use crate::replication::OpenError;
use crate::replication::PalisadeRaft;

/// How long the leader may take; longer than an election would only make every start slower.
const ANSWER: Duration = Duration::from_secs(1);

/// Fails if the leader knows of entries that this member has had and has no longer. Nobody there: nothing to be found.
pub(crate) async fn check(raft: &PalisadeRaft, peers: &Peers, me: MemberId) -> Result<(), OpenError> {
    // openraft answers this once it has read its state; before, its metrics say nothing.
    raft.with_raft_state(|_| ()).await.map_err(|e| OpenError::Raft(e.to_string()))?;
    let metrics = raft.metrics().borrow_watched().clone();
    let others = metrics.membership_config.nodes().filter(|(id, _)| **id != me);
    let questions = others.map(|(id, info)| async {
        let mut client = peers.client(*id, &info.address, Lane::Control).ok()?;
        let question = client.read_index(wire::ReadIndexRequest { shuns_lead: true });
        // Whoever does not lead refuses.
        tokio::time::timeout(ANSWER, question).await.ok()?.ok()?.into_inner().durable
    });
    let there = join_all(questions).await.into_iter().flatten().max();
    let here = metrics.last_log_index.unwrap_or(0);
    match there {
        Some(there) if there > here => Err(OpenError::RolledBack { member: me, here, there }),
        _ => Ok(()),
    }
}
