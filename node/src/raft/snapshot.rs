//! Transfer of snapshots between members: the file in chunks. It carries its own checksums.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::type_config::alias::VoteOf;
use palisade_engine::MemberId;
use palisade_proto::convert::level;
use palisade_proto::member::v1 as wire;
use palisade_raft_store::{
    SnapshotFile, SnapshotReceiver, Snapshots, TRANSFER_RATE, Thing, TokenBucket, TypeConfig, Unknown, Unreadable,
};
use tonic::{Status, Streaming};

use crate::clock;
use crate::raft::unreadable::refusal;
use crate::raft::wire::{vote_in, vote_out};
use tokio::task::spawn_blocking;

/// Bytes in one chunk.
const CHUNK_BYTES: usize = 256 << 10;
/// The largest snapshot: some ten million sessions.
const MAX_SNAPSHOT_BYTES: u64 = 4 << 30;

/// The chunks of a snapshot, with the vote of the leader that has it installed. If reading fails, the stream ends early and
/// the receiver refuses the incomplete snapshot.
pub(crate) fn chunks(
    vote: Option<VoteOf<TypeConfig>>,
    snapshot: SnapshotFile,
) -> impl Stream<Item = wire::SnapshotChunk> + Send + 'static {
    let snapshot = Arc::new(snapshot);
    let bucket = TokenBucket::new(TRANSFER_RATE, CHUNK_BYTES as u64);
    let start = (snapshot, Some(0), vote.as_ref().map(vote_out), bucket);
    futures::stream::unfold(start, |(snapshot, offset, vote, mut bucket)| async move {
        let offset: u64 = offset?;
        // From the disk of the log.
        let wait = bucket.take(clock::now(), CHUNK_BYTES as u64);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let file = snapshot.clone();
        let read = spawn_blocking(move || file.chunk(offset, CHUNK_BYTES)).await;
        let data = match read {
            Ok(Ok(data)) => data,
            Ok(Err(error)) => {
                tracing::error!(%error, "a snapshot cannot be read");
                return None;
            }
            Err(error) => {
                tracing::error!(%error, "a snapshot was not read");
                return None;
            }
        };
        let next = offset + data.len() as u64;
        let last = next >= snapshot.len();
        let level = if offset == 0 { snapshot.level().0.into() } else { 0 };
        let chunk = wire::SnapshotChunk { vote, offset, data: data.into(), last, level };
        Some((chunk, (snapshot, (!last).then_some(next), None, bucket)))
    })
}

/// A snapshot that came in whole and undamaged; or what of it this program cannot read.
type Received = Result<SnapshotFile, Unreadable>;

/// Receives a snapshot that a leader has installed; the vote and the file are checked.
pub(crate) async fn receive(
    snapshots: &Snapshots,
    mut chunks: Streaming<wire::SnapshotChunk>,
    check: impl Fn(MemberId) -> Result<(), Status>,
) -> Result<(VoteOf<TypeConfig>, Received), Status> {
    let first = next(&mut chunks).await?;
    let vote = vote_in(first.vote)?;
    check(vote.leader_id.node_id)?;
    Ok((vote, assemble(snapshots, first, chunks).await?))
}

/// Receives a snapshot that was asked for; the file is checked.
pub(crate) async fn fetch(
    snapshots: &Snapshots,
    mut chunks: Streaming<wire::SnapshotChunk>,
) -> Result<SnapshotFile, Status> {
    let first = next(&mut chunks).await?;
    assemble(snapshots, first, chunks).await?.map_err(|unreadable| refusal(&unreadable))
}

async fn next(chunks: &mut Streaming<wire::SnapshotChunk>) -> Result<wire::SnapshotChunk, Status> {
    chunks.next().await.unwrap_or_else(|| Err(Status::invalid_argument("the snapshot is not complete")))
}

/// Checks the level of the first chunk before it takes the rest.
async fn assemble(
    snapshots: &Snapshots,
    first: wire::SnapshotChunk,
    mut chunks: Streaming<wire::SnapshotChunk>,
) -> Result<Received, Status> {
    if let Err(unknown) = level(first.level).check() {
        let unknown = Unknown::Level(unknown.level);
        return Ok(Err(Unreadable { thing: Thing::Snapshot(None), unknown }));
    }
    let mut receiver = snapshots.receive(MAX_SNAPSHOT_BYTES).map_err(|error| disk(&error))?;
    let (mut expected, mut first) = (0, Some(first));
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
        receiver = write(move || {
            receiver.write(&chunk.data)?;
            Ok(receiver)
        })
        .await?
        .map_err(|error| disk(&error))?;
        if last {
            let finished = write(move || SnapshotReceiver::finish(receiver)).await?;
            return match finished {
                Ok(file) => Ok(Ok(file)),
                Err(error) => Unreadable::find(&error).cloned().map(Err).ok_or_else(|| disk(&error)),
            };
        }
    }
}

/// Does what blocks on the disk.
async fn write<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<std::io::Result<T>, Status> {
    spawn_blocking(work).await.map_err(|e| Status::internal(format!("a snapshot was not written: {e}")))
}

fn disk(error: &std::io::Error) -> Status {
    if error.kind() == std::io::ErrorKind::InvalidData {
        Status::data_loss(error.to_string())
    } else {
        Status::internal(format!("a snapshot cannot be written: {error}"))
    }
}
