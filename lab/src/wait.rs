//! Waiting for a condition.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{Instant, sleep};

/// The limit of every wait for something that will happen unless there is a mistake. No machine is too slow for it.
pub const WAIT: Duration = Duration::from_secs(240);

/// Asks again and again until a condition holds.
///
/// # Errors
/// It does not hold within [`WAIT`], or cannot be asked for.
pub async fn wait_until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + WAIT;
    while !holds().await? {
        ensure!(Instant::now() < end, "waited {WAIT:?} for {what}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
