//! Why a member could not be started.

use openraft::errors::Fatal;
use palisade_raft_store::TypeConfig;

use crate::listen::ListenError;
use crate::membership::identity::IdentityError;
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
    /// The store, or Raft on it.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Start(#[from] RaftStartError),
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

/// Why a running member's replication ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum EndedError {
    /// One of its tasks ended: a defect.
    #[error("its task `{0}` ended")]
    Task(&'static str),
    /// Raft ended: a disk that fails, or a defect.
    #[error("Raft ended")]
    Raft(#[source] Box<Fatal<TypeConfig>>),
}
