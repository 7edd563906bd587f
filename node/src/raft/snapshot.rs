//! Snapshots on their way between members: the file as it is, in chunks. It carries its own checksums.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::type_config::alias::VoteOf;
use palisade_engine::MemberId;
use palisade_proto::member::v1 as wire;
use palisade_raft_store::{SnapshotFile, SnapshotReceiver, Snapshots, TypeConfig};
use tonic::{Status, Streaming};

use crate::raft::wire::{vote_in, vote_out};

const CHUNK: usize = 256 << 10;
/// No snapshot is longer: some ten million sessions.
const LONGEST: u64 = 4 << 30;

/// A snapshot as what is sent, with the vote of the leader that has it installed. Should reading fail, the stream ends early
/// and the receiver refuses what it got.
pub(crate) fn chunks(
    vote: Option<VoteOf<TypeConfig>>,
    snapshot: SnapshotFile,
) -> impl Stream<Item = wire::SnapshotChunk> + Send + 'static {
    let snapshot = Arc::new(snapshot);
    let start = (snapshot, Some(0), vote.as_ref().map(vote_out));
    futures::stream::unfold(start, |(snapshot, offset, vote)| async move {
        let offset: u64 = offset?;
        let file = snapshot.clone();
        let read = tokio::task::spawn_blocking(move || file.chunk(offset, CHUNK)).await;
        let data = match read {
            Ok(Ok(data)) => data,
            Ok(Err(error)) => {
                tracing::error!(%error, "a snapshot can not be read");
                return None;
            }
            Err(error) => {
                tracing::error!(%error, "a snapshot was not read");
                return None;
            }
        };
        let next = offset + data.len() as u64;
        let last = next >= snapshot.len();
        let chunk = wire::SnapshotChunk { vote, offset, data: data.into(), last };
        Some((chunk, (snapshot, (!last).then_some(next), None)))
    })
}

/// Takes a snapshot in, checked: the sender's vote and the file.
pub(crate) async fn receive(
    snapshots: &Snapshots,
    mut chunks: Streaming<wire::SnapshotChunk>,
    check: impl Fn(MemberId) -> Result<(), Status>,
) -> Result<(VoteOf<TypeConfig>, SnapshotFile), Status> {
    let first = next(&mut chunks).await?;
    let vote = vote_in(first.vote)?;
    check(vote.leader_id.node_id)?;
    Ok((vote, assemble(snapshots, Some(first), chunks).await?))
}

/// Takes a snapshot in that was asked for, checked.
pub(crate) async fn fetched(
    snapshots: &Snapshots,
    chunks: Streaming<wire::SnapshotChunk>,
) -> Result<SnapshotFile, Status> {
    assemble(snapshots, None, chunks).await
}

async fn next(chunks: &mut Streaming<wire::SnapshotChunk>) -> Result<wire::SnapshotChunk, Status> {
    chunks.next().await.unwrap_or_else(|| Err(Status::invalid_argument("the snapshot is not complete")))
}

async fn assemble(
    snapshots: &Snapshots,
    mut first: Option<wire::SnapshotChunk>,
    mut chunks: Streaming<wire::SnapshotChunk>,
) -> Result<SnapshotFile, Status> {
    let mut receiver = snapshots.receive(LONGEST).map_err(disk)?;
    let mut expected = 0;
    loop {
        let chunk = match first.take() {
            Some(first) => first,
            None => next(&mut chunks).await?,
        };
        if chunk.offset != expected {
            return Err(Status::invalid_argument("the chunks of the snapshot do not follow each other"));
        }
        expected += chunk.data.len() as u64;
        let last = chunk.last;
        receiver = blocking(move || {
            receiver.write(&chunk.data)?;
            Ok(receiver)
        })
        .await?;
        if last {
            return blocking(move || SnapshotReceiver::finish(receiver)).await;
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Status::internal(format!("a snapshot was not written: {e}")))?.map_err(disk)
}

fn disk(error: std::io::Error) -> Status {
    if error.kind() == std::io::ErrorKind::InvalidData {
        Status::data_loss(error.to_string())
    } else {
        Status::internal(format!("a snapshot can not be written: {error}"))
    }
}
