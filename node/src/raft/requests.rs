//! Requests of administrators and of this member's own tasks: commands that are proposed, with a caller that waits for the
//! outcome.

use std::time::Duration;

use palisade_engine::Time;
use palisade_engine::replica::{Command, Outcome};
use tokio::sync::{mpsc, oneshot};

use crate::clock;

/// How long a change of the membership, or another command of an administrator, may take.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests that wait for the proposer.
pub(crate) const REQUEST_QUEUE: usize = 256;
/// How much longer than its deadline a request waits for a proposer that hangs.
const PROPOSER_HANGS: Duration = Duration::from_millis(500);

/// Why a command was not carried out, as far as this member knows.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, miette::Diagnostic)]
pub enum ProposeError {
    /// No answer in time.
    #[error("the cluster did not confirm the change in time; it may still happen")]
    #[diagnostic(help(
        "look first whether it has happened, then try again; `palisade cluster status` shows whether there is a quorum"
    ))]
    Timeout,
    /// No leader was known in time.
    #[error("no leader was known in time: nothing was changed")]
    #[diagnostic(help("see `palisade cluster status`; with `--wait 30s` the command waits for a quorum"))]
    NotSent,
    /// The replication is being shut down.
    #[error("this member is shutting down")]
    Stopped,
}

/// The receiver of a command's outcome.
pub(crate) type Reply = oneshot::Sender<Result<Outcome, ProposeError>>;

/// The place of a command among those that wait for a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Precedence {
    /// In the order of arrival.
    Ordinary,
    /// Behind all ordinary ones.
    Background,
}

/// A command with somebody who waits for its outcome.
pub(crate) struct AdminRequest {
    pub(crate) command: Command,
    pub(crate) precedence: Precedence,
    pub(crate) deadline: Time,
    pub(crate) reply: Reply,
}

/// Has a command committed, and returns what applying it here did.
pub(crate) async fn propose_and_wait(
    requests: &mpsc::Sender<AdminRequest>,
    command: Command,
    timeout: Duration,
) -> Result<Outcome, ProposeError> {
    propose(requests, command, Precedence::Ordinary, timeout).await
}

/// The same, for a command that nobody waits for: handshakes go first.
pub(crate) async fn propose_in_background(
    requests: &mpsc::Sender<AdminRequest>,
    command: Command,
    timeout: Duration,
) -> Result<Outcome, ProposeError> {
    propose(requests, command, Precedence::Background, timeout).await
}

async fn propose(
    requests: &mpsc::Sender<AdminRequest>,
    command: Command,
    precedence: Precedence,
    timeout: Duration,
) -> Result<Outcome, ProposeError> {
    let (reply, outcome) = oneshot::channel();
    let deadline = clock::now() + timeout;
    let done = async {
        requests
            .send(AdminRequest { command, precedence, deadline, reply })
            .await
            .map_err(|_| ProposeError::Stopped)?;
        outcome.await.map_err(|_| ProposeError::Stopped)?
    };
    // The proposer keeps the deadline, and knows whether the command has left this member.
    tokio::time::timeout(timeout + PROPOSER_HANGS, done).await.unwrap_or(Err(ProposeError::Timeout))
}
