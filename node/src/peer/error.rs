//! Errors of the communication with other members.

use std::error::Error;
use std::fmt;

use tonic::Status;

/// Another member's refusal, or why it could not be reached.
#[derive(Debug)]
pub(crate) struct PeerError(Status);

impl From<Status> for PeerError {
    fn from(status: Status) -> PeerError {
        PeerError(status)
    }
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the status itself: its text repeats code and metadata.
        f.write_str(self.0.message())
    }
}

impl Error for PeerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// A text that cannot be the id of a cluster.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no id of a cluster")]
pub struct ClusterIdError(pub(crate) String);
