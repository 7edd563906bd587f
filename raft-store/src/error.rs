//! What can go wrong when a store is opened.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use palisade_engine::MemberId;

use crate::unreadable::Unreadable;

/// Why a store cannot be opened or used. Each text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("{} is in use by another process: is a member already running with this data folder?", dir.display())]
    Locked {
        /// The data folder.
        dir: PathBuf,
    },
    /// It cannot be trusted any longer. A member whose log is damaged may have forgotten what it promised, so it must
    /// not go on under its id.
    #[error(
        "{} is damaged: {what}. Set it aside (quarantine it) and join this machine again: it comes back as a new \
         member, and the old one is to be removed",
        dir.display()
    )]
    Damaged {
        /// The data folder.
        dir: PathBuf,
        /// What was found.
        what: String,
        /// The error that showed it, if there was one.
        source: Option<io::Error>,
    },
    /// It was written by another version.
    #[error(
        "{} has storage format {found}, this program knows format {known}: use the version of Palisade that wrote it",
        dir.display()
    )]
    Version {
        /// The data folder.
        dir: PathBuf,
        /// The format found.
        found: u32,
        /// The format that this program reads and writes.
        known: u32,
    },
    /// Another version of Palisade wrote something in it that this one cannot read.
    #[error("{} cannot be read by this program: {unreadable}", dir.display())]
    Unreadable {
        /// The data folder.
        dir: PathBuf,
        /// What cannot be read.
        unreadable: Unreadable,
    },
    /// The settings in its snapshot ask for room for more sessions than this member affords.
    #[error("the cluster's settings ask for room for {needed} sessions, and this member affords {affords}")]
    Unaffordable {
        /// Number of sessions that a table may have.
        needed: u64,
        /// Number of sessions that this member affords.
        affords: u64,
    },
    /// It belongs to another member or cluster.
    #[error(
        "{} belongs to member {} of cluster {}, not to member {} of cluster {}",
        dir.display(), have.member, have.cluster, wanted.member, wanted.cluster
    )]
    OtherOwner {
        /// The data folder.
        dir: PathBuf,
        /// Whose it is.
        have: Box<StoreOwner>,
        /// Whose it was to be.
        wanted: Box<StoreOwner>,
    },
    /// The machine does not let us.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The owner of a store: written once, when the member has its id, and never changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreOwner {
    /// The cluster's id.
    pub cluster: String,
    /// The member's id.
    pub member: MemberId,
}

impl StoreError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.to_owned();
        move |source| StoreError::Io { doing, path, source }
    }

    pub(crate) fn damaged(dir: &Path, what: impl Into<String>) -> StoreError {
        StoreError::Damaged { dir: dir.to_owned(), what: what.into(), source: None }
    }

    /// Damage to `what` that shows in an error; or what another version wrote there.
    pub(crate) fn damaged_by(dir: &Path, what: &str, source: io::Error) -> StoreError {
        if let Some(unreadable) = Unreadable::find(&source) {
            return StoreError::Unreadable { dir: dir.to_owned(), unreadable: unreadable.clone() };
        }
        StoreError::Damaged { dir: dir.to_owned(), what: format!("{what}: {source}"), source: Some(source) }
    }
}

/// Why the log accepts nothing more: the first error of a write or sync.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the log cannot be written: {0}")]
pub(crate) struct WriteFailed(#[source] Arc<io::Error>);

impl WriteFailed {
    pub(crate) fn new(error: io::Error) -> WriteFailed {
        WriteFailed(Arc::new(error))
    }
}

impl From<&WriteFailed> for io::Error {
    fn from(failed: &WriteFailed) -> io::Error {
        io::Error::new(failed.0.kind(), failed.clone())
    }
}

/// sled's error as the system's, which is what openraft wants.
pub(crate) fn sled_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        sled::Error::Corruption { .. } => io::Error::new(io::ErrorKind::InvalidData, error),
        other => io::Error::other(other),
    }
}
