//! Why a member could not be started.

use openraft::errors::Fatal;
use palisade_engine::MemberId;
use palisade_raft_store::{StoreError, TypeConfig, Unreadable};

use crate::affordable::UnaffordableError;
use crate::listen::ListenError;
use crate::membership::identity::{DataDir, Identity, IdentityError};
use crate::membership::rollback_check::RollbackError;
use crate::peer::error::ClusterIdError;
use crate::raft::start::RaftStartError;

/// Why a member's replication could not be started.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum OpenError {
    /// The data folder.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Identity(#[from] IdentityError),
    /// It is no member yet.
    #[error("this machine is no member of a cluster yet")]
    #[diagnostic(help(
        "create a cluster with `palisade cluster init`, or join one with `palisade cluster join TOKEN`"
    ))]
    NotMember,
    /// It was a member, and the cluster removed it.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Removed(#[from] RemovedError),
    /// The store, or Raft on it.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Start(RaftStartError),
    /// The settings ask for more than this machine affords.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Unaffordable(#[from] UnaffordableError),
    /// The data folder is older than what the member has acknowledged.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Rollback(#[from] RollbackError),
    /// The member port.
    #[error("the member port cannot be opened")]
    #[diagnostic(transparent)]
    Listen(#[from] ListenError),
    /// The cluster's id.
    #[error(transparent)]
    ClusterId(#[from] ClusterIdError),
}

impl From<RaftStartError> for OpenError {
    fn from(error: RaftStartError) -> OpenError {
        match error {
            RaftStartError::Store(StoreError::Unaffordable { needed, affords }) => {
                UnaffordableError { needed, affords }.into()
            }
            error => OpenError::Start(error),
        }
    }
}

impl OpenError {
    /// Why a folder without identity has none.
    pub(crate) fn no_member(data_dir: &DataDir) -> OpenError {
        match data_dir.removed_identity() {
            Ok(Some(removed)) => OpenError::Removed(RemovedError::from(&removed)),
            Ok(None) => OpenError::NotMember,
            Err(error) => error.into(),
        }
    }
}

/// This machine was removed from its cluster.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, miette::Diagnostic)]
#[error("this machine was removed from cluster {cluster}, in which it was member {member}: nothing passes it")]
#[diagnostic(help(
    "to come back as a new member: `palisade cluster token` on a member, then `palisade cluster join TOKEN` here; no folder has to be emptied"
))]
pub struct RemovedError {
    /// The cluster.
    pub cluster: String,
    /// The member that it was.
    pub member: MemberId,
}

impl From<&Identity> for RemovedError {
    fn from(identity: &Identity) -> RemovedError {
        RemovedError { cluster: identity.cluster.clone(), member: identity.member }
    }
}

/// Why a running member's replication ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum EndedError {
    /// One of its tasks ended: a defect.
    #[error("its task `{0}` ended")]
    Task(&'static str),
    /// It cannot read an entry or a snapshot: another version wrote it.
    #[error("it cannot read what the others write")]
    Unreadable(#[source] Unreadable),
    /// Raft ended: a disk that fails, or a defect.
    #[error("Raft ended")]
    Raft(#[source] Box<Fatal<TypeConfig>>),
}
