//! Errors of changes of the membership.

use palisade_engine::replica::Outcome;

use crate::affordable::UnaffordableError;
use crate::membership::identity::IdentityError;
use crate::membership::level::RaiseError;
use crate::membership::token::TokenError;
use crate::peer::error::ClusterIdError;
use crate::raft::requests::ProposeError;
use crate::raft::start::RaftStartError;
use crate::raft::transfer::TransferError;
use crate::random::RandomError;

/// Why the membership could not be changed.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum MembershipError {
    /// The data folder.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Identity(#[from] IdentityError),
    /// The store, or starting Raft on it.
    #[error(transparent)]
    Start(#[from] Box<RaftStartError>),
    /// The settings ask for more than this machine affords.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Unaffordable(#[from] UnaffordableError),
    /// The token.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Token(#[from] TokenError),
    /// The command was not confirmed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Propose(#[from] ProposeError),
    /// The token names no member.
    #[error("the join token names no address")]
    NoAddress,
    /// The cluster refused.
    #[error("the cluster refused: {0}")]
    Refused(String),
    /// A new cluster's Raft.
    #[error("the cluster was not made: Raft failed")]
    Raft(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The cluster's id.
    #[error(transparent)]
    ClusterId(#[from] ClusterIdError),
    /// A name that no member has.
    #[error("no member is named `{0}`")]
    #[diagnostic(help("`palisade cluster members` lists them"))]
    NoSuchMember(String),
    /// A member was to remove itself.
    #[error("`{0}` is this member itself")]
    #[diagnostic(help("use `palisade cluster leave`"))]
    CannotRemoveSelf(String),
    /// The last member was to leave.
    #[error("this is the cluster's last member: there is nothing to leave")]
    #[diagnostic(help("stop it and delete its data folder instead"))]
    LastMember,
    /// The others would have no majority.
    #[error(
        "without this member the others are no majority: {silent} does not answer, so nothing could be decided any longer"
    )]
    #[diagnostic(help("start {silent}, or remove it first if it is gone for good (`palisade cluster remove`)"))]
    QuorumAtRisk {
        /// The voters that do not answer.
        silent: String,
    },
    /// The level in force was not raised.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Raise(#[from] RaiseError),
    /// The transfer of leadership.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Transfer(#[from] TransferError),
    /// It took too long.
    #[error("{0} did not happen in time; it may still happen")]
    #[diagnostic(help("look first whether it has happened (`palisade cluster members`), then try again"))]
    Timeout(&'static str),
    /// Random numbers.
    #[error(transparent)]
    Random(#[from] RandomError),
}

impl From<RaftStartError> for MembershipError {
    fn from(error: RaftStartError) -> MembershipError {
        MembershipError::Start(Box::new(error))
    }
}

/// Whether the register took a change.
pub(crate) fn accepted(outcome: Outcome) -> Result<(), MembershipError> {
    match outcome {
        Outcome::Accepted | Outcome::Member(_) => Ok(()),
        Outcome::Invalid(why) => Err(MembershipError::Refused(why.to_string())),
        other => Err(MembershipError::Refused(format!("{other:?}"))),
    }
}
