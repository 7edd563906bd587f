//! Rollback check: is the data folder older than what this member has acknowledged? A folder that was restored from a
//! backup, or a machine from its image, looks whole from inside.
//!
//! Before the member port answers any request, the leader is asked. It knows how far this member's log was durable in its
//! term. A log that is shorter has lost entries that were counted as being here. Only a later leader could have shortened
//! it, and the leader answers only after a majority has confirmed that there is none.
//!
//! What happened before the leader's term, or without entries, is not known to it. So this check finds most such accidents,
//! not all: no copy of a data folder may ever be started.

use std::time::Duration;

use futures::StreamExt;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::Fatal;
use palisade_engine::MemberId;
use palisade_proto::member::v1 as wire;
use palisade_raft_store::TypeConfig;

use crate::peer::connections::{Lane, Peers};
use crate::raft::config::PalisadeRaft;
use crate::raft::handle::RaftHandle;

/// How long the leader may take; longer than an election would only make every start slower.
const DURABLE_INDEX_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a member must not start on its data folder.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum RollbackError {
    /// It lost entries that it has acknowledged.
    #[error(
        "the data folder of member {member} is older than what that member has acknowledged: its log ends at entry {here}, \
         but it once had entry {there}"
    )]
    #[diagnostic(help(
        "was it restored from a backup? Then move the data folder away, join again under a new id (`palisade cluster join`), and remove the old member (`palisade cluster remove`)"
    ))]
    RolledBack {
        /// The member.
        member: MemberId,
        /// The last entry that is here.
        here: u64,
        /// An entry that the leader knows to have been here.
        there: u64,
    },
    /// Raft has stopped.
    #[error("Raft did not start")]
    Raft(#[from] Fatal<TypeConfig>),
}

/// Fails if the leader knows of entries that this member once had and does not have now. Without a leader nothing is found.
pub(crate) async fn check(raft: &PalisadeRaft, peers: &Peers) -> Result<(), RollbackError> {
    // openraft answers this once it has read its state; before that its metrics say nothing.
    raft.read_state(|_| ()).await?;
    let metrics = raft.metrics().borrow_watched().clone();
    let members = raft.members();
    // Only the leader answers.
    let answers = peers.fan_out(&members, Lane::Control, DURABLE_INDEX_TIMEOUT, |mut client| async move {
        client.read_index(wire::ReadIndexRequest { declines_leadership: true, policy: None }).await
    });
    let durable: Vec<Option<u64>> = answers.map(|(_, answer)| answer.ok()?.durable).collect().await;
    let there = durable.into_iter().flatten().max();
    let here = metrics.last_log_index.unwrap_or(0);
    match there {
        Some(there) if there > here => Err(RollbackError::RolledBack { member: peers.me(), here, there }),
        _ => Ok(()),
    }
}
