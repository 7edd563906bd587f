//! What the end-to-end tests share beside the lab ([`palisade_lab`]): policies, and real programs with their configuration.

pub mod program;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use palisade_lab::{Lab, Mode, Options};
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

/// Waits until so many members vote, as one of them says: those that join do so some moments after they are ready.
///
/// # Errors
/// They do not within 30 s.
pub async fn wait_voters(lab: &Lab, number: usize, voters: usize) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let status = lab.member(number).status().await?;
        let members = status["cluster"]["members"].as_array().cloned().unwrap_or_default();
        if members.iter().filter(|m| m["voter"] == true).count() == voters {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < end, "not {voters} voters: {status}");
        sleep(Duration::from_millis(100)).await;
    }
}
