//! Palisade's lab for tests: real kernels, real programs, real failures.
//!
//! The lab itself is [`palisade_cli::lab`], which the demo uses too; here is what only tests need: the guard that skips
//! or serialises them, and the real programs.

pub mod beyond;
pub mod drops;
pub mod figures;
pub mod frames;
pub mod guard;
pub mod lateness;
pub mod load;
pub mod overload;
pub mod packets;
pub mod program;
pub mod scenario;

pub use palisade_cli::lab;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use lab::{Lab, Mode, Options};
use tokio::time::{Instant, sleep};

/// A lab of real members that run `binary`, which a test knows as `env!("CARGO_BIN_EXE_palisade-under-test")`.
#[must_use]
pub fn members(count: usize, binary: &str) -> Options {
    Options { members: count, binary: PathBuf::from(binary), mode: Mode::Palisade }
}

/// A lab in whose middle plain kernels forward: what the machine can do at this moment.
#[must_use]
pub fn kernels(count: usize) -> Options {
    Options { members: count, binary: PathBuf::from("none"), mode: Mode::Baseline }
}

/// Everything from the client's side to the server's is allowed; nothing else.
pub const OPEN_POLICY: &str = "\
zone outside, inside
default drop
accept \"all\" from outside to inside: any -> any
";

/// What the program `echo-server` sends back at once, in bytes.
pub const ECHO_BLOCK: usize = 256;

/// The first byte of a block after which it closes.
pub const ECHO_LAST: u8 = 1;

/// The limit of every wait for something that will happen unless there is a mistake. No machine is too slow for it.
pub const WAIT: Duration = Duration::from_secs(120);

/// Whether the long forms of tests were asked for (`PALISADE_LONG=1`), where a shorter one shows the same.
#[must_use]
pub fn long() -> bool {
    std::env::var_os("PALISADE_LONG").is_some_and(|v| v == "1")
}

/// Asks again and again until a condition holds.
///
/// # Errors
/// It does not hold within `limit`, or cannot be asked for.
pub async fn wait_until(what: &str, limit: Duration, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !holds().await? {
        anyhow::ensure!(Instant::now() < end, "waited {limit:?} for {what}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Waits until this many members vote, as one of them says. A member that joins becomes a voter some moments after it is
/// ready.
///
/// # Errors
/// They do not within [`WAIT`].
pub async fn wait_voters(lab: &Lab, number: usize, voters: usize) -> Result<()> {
    wait_until(&format!("{voters} voters"), WAIT, async || {
        let status = lab.member(number).status().await?;
        let members = status["cluster"]["members"].as_array().cloned().unwrap_or_default();
        Ok(members.iter().filter(|m| m["voter"] == true).count() == voters)
    })
    .await
}
