//! Work that blocks, on a thread of its own.

use tokio::task::JoinError;

/// Runs `work` on a thread on which it may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(work).await
}
