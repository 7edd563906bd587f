//! openraft's storage for Palisade: the log on sled, snapshots as files, the state machine around the engine's replica.
//!
//! ```text
//! data folder/
//!   lock               held for the life of the process
//!   db/                sled: log tree, meta tree (vote, committed, purged, format, starts, owner)
//!   durable_watermark  how far the database was durable
//!   snapshots/         INDEX-TERM-MEMBER.snap, the last two
//! ```
//!
//! ```no_run
//! # fn example(replica: palisade_engine::replica::Replica, wake: Box<dyn palisade_engine::Wake + Send>)
//! # -> Result<(), palisade_raft_store::StoreError> {
//! use std::sync::Arc;
//! use palisade_raft_store::{Options, Setup, Store};
//! # fn now() -> palisade_engine::Time { palisade_engine::Time(0) }
//!
//! let store = Store::open("/var/lib/palisade".as_ref(), Options::new(Arc::new(now)))?;
//! let (start, owner) = (store.start(), store.owner().cloned());
//! let snapshots = store.snapshots();
//! let (log, machine) = store.into_parts(Setup { state: replica, wake, observer: Arc::new(()) })?;
//! // Raft::new(id, config, network, log, machine)
//! # Ok(())
//! # }
//! ```
//!
//! # Why nothing acknowledged is lost
//!
//! Raft needs two things of its storage: what was acknowledged is there after any crash, and what is there is what was
//! written, in the order in which it was written.
//!
//! 1. *One order.* Appends, votes, truncations, purges and commit indices go through one queue to one thread, which
//!    alone writes to sled, each record by itself, in the order of the queue.
//! 2. *A crash leaves a prefix.* sled is one log of its own, whose recovery stops at the first place that is torn. So
//!    after a crash there is a prefix of the writes of (1), never a later one without an earlier one. Every operation is
//!    laid out so that any prefix of its writes is a correct state:
//!    - *append*: entry after entry; of an entry that has several parts the first part last. An entry without its first
//!      part does not count and is removed at the next start. No hole.
//!    - *truncate*: from the end backward, the first part of each entry first. No hole.
//!    - *purge*: first the record that says up to where, then entry after entry from the beginning, in small slices
//!      between groups. Entries at or below that record are not seen by anybody.
//!    - *a vote after a truncation, an append after a vote*: never without what went before.
//! 3. *Durable before acknowledged.* What queued meanwhile is a group. After its last write the thread waits for
//!    sled's `flush` and then for `fdatasync` of the database file, since sled's flush is only a `sync_file_range`,
//!    which leaves out the file's size and extents and the disk's cache ([`DiskBarrier`]). Only then are its
//!    completions called, in order. The database's files and folders are synced when it is opened.
//! 4. *sled reuses space* two segments after it has moved what lay there; a group is shorter than one segment, so what
//!    is overwritten was moved by a group that is durable already.
//! 5. *An error is the end.* After a failed write or sync nothing is acknowledged any more.
//! 6. *The commit index* is written with the next group and needs no sync of its own: an older one only means that a
//!    restarted member waits for the leader to learn the rest.
//! 7. *Snapshots* are written aside, checked, synced and renamed, and the folder synced, before openraft hears of them;
//!    only then does it purge. At the start, a log whose purged part no good snapshot covers is damage
//!    ([`StoreError::Damaged`]): set it aside with [`quarantine`] and join as a new member.
//!
//! What lies here are types of this crate, not openraft's (`encoding.rs`): each kind of value has a version of its layout, and a
//! batch and a snapshot have the level that they were written at in front. What another version of Palisade wrote and this one
//! cannot read is no damage: [`StoreError::Unreadable`].
//!
//! Every record carries a version and a CRC over key and content, and all of them are checked at the start. sled takes a
//! byte that the disk has changed for the torn end of its log and leaves out the rest; the file `durable_watermark` gives that
//! away, because the database then ends before what is known to have been durable.

mod audit;
mod batch;
mod clock;
mod core;
mod db;
mod digests;
mod durable_watermark;
mod encoding;
mod error;
mod flush;
mod fs;
#[cfg(test)]
mod fuzz;
mod log;
mod log_meter;
mod memory;
mod metrics;
mod planner;
mod record;
mod recover;
mod snapshot;
mod state_machine;
mod store;
mod tail;
mod types;
mod unreadable;

pub use self::core::{Job, Observer, ReplicatedState, Restored, Setup, SnapshotReader};
pub use self::log::{LogReader, LogStore};
pub use audit::{ApplyPause, Auditor};
pub use batch::{LevelInForce, decode_batch};
pub use clock::Clock;
pub use db::{Barrier, DiskBarrier, flush};
pub use error::{StoreError, StoreOwner};
pub use memory::{MemoryDisk, MemoryLog};
pub use metrics::{SnapshotCounters, StoreCounters, StoreMetrics};
pub use planner::{LogLimits, Plan, Planner};
pub use recover::SurvivingState;
pub use snapshot::pace::{SlowDisk, TRANSFER_RATE, TokenBucket};
pub use snapshot::{LentLimits, SnapshotFile, SnapshotPin, SnapshotReceiver, Snapshots};
pub use state_machine::{Builder, Inspector, StateMachine};
pub use store::{Options, Store, quarantine};
pub use types::{Entry, LogId, Response, SnapshotMeta, StoredMembership, TypeConfig, Vote};
pub use unreadable::{Thing, Unknown, Unreadable};
