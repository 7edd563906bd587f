//! How many sessions this member affords: from the memory that its node.toml gives it.

use palisade_engine::Engine;

/// Memory of one session, with everything that may come with it: 264 bytes in the table, once more while a state is restored
/// beside the present one, 150 for its record in the snapshot meanwhile; and 256 for a half-open session, of which there may be as
/// many as `table.half_open` says, at most as many as there are sessions that a member affords.
const BYTES_PER_SESSION: u64 = 1024;

/// The `limits.memory` that is enough for this number of sessions.
pub(crate) fn bytes_for(sessions: u64) -> u64 {
    sessions.saturating_mul(BYTES_PER_SESSION)
}

/// The number of sessions that this much memory is enough for. It depends on the program only.
pub(crate) fn sessions(bytes: u64) -> u64 {
    bytes / BYTES_PER_SESSION
}

/// The cluster's settings ask for more sessions than this member has memory for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error, miette::Diagnostic)]
#[error("the cluster's settings ask for room for {needed} sessions, and this member affords {affords}")]
#[diagnostic(help(
    "set `limits.memory` in its node.toml to {} bytes or more, and start it again",
    bytes_for(*needed)
))]
pub struct UnaffordableError {
    /// The number of sessions that a table may have: the larger of `table.sessions` and `table.half_open`.
    pub needed: u64,
    /// The number of sessions that this member affords.
    pub affords: u64,
}

impl UnaffordableError {
    /// Whether a member affords the settings in force, as applied there.
    pub(crate) fn check(engine: &Engine) -> Result<(), UnaffordableError> {
        let (needed, affords) = (engine.settings().affordable_sessions(), engine.affordable_sessions());
        if needed <= affords { Ok(()) } else { Err(UnaffordableError { needed, affords }) }
    }
}
