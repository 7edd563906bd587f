//! What the end-to-end tests and the benchmark share beside the lab ([`palisade_lab`]): policies, load, scenarios of failure,
//! and real programs with their configuration.

pub mod ends;
pub mod figures;
pub mod load;
pub mod overload;
pub mod program;
pub mod release;
pub mod scenario;

use std::path::PathBuf;

use anyhow::{Context, Result};
use palisade_lab::{Lab, Mode, Options, wait_until};

/// A report of an error as one line: its lines are wrapped, and those after the first begin with a bar.
#[must_use]
pub fn unwrapped(report: &str) -> String {
    report.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ")
}

/// A lab of real members that run `binary`, which a test knows as `env!("CARGO_BIN_EXE_palisade-under-test")`; or another
/// one, such as an older version, that `PALISADE_BINARY` names.
#[must_use]
pub fn members(count: usize, binary: &str) -> Options {
    let binary = std::env::var_os("PALISADE_BINARY").map_or_else(|| PathBuf::from(binary), PathBuf::from);
    Options { members: count, binary, mode: Mode::Palisade }
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

/// Whether the long forms of tests were asked for (`PALISADE_LONG=1`), where a shorter one shows the same.
#[must_use]
pub fn long() -> bool {
    std::env::var_os("PALISADE_LONG").is_some_and(|v| v == "1")
}

/// Waits until a member has ended by itself; how, and what it said.
///
/// # Errors
/// It does not within [`palisade_lab::WAIT`].
pub async fn wait_ended(lab: &mut Lab, number: usize) -> Result<String> {
    let end = async {
        loop {
            if let Err(error) = lab.member_mut(number).check() {
                return unwrapped(&error.to_string());
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(palisade_lab::WAIT, end).await.with_context(|| format!("fw{number} did not end"))
}

/// Waits until this many members vote, as one of them says. A member that joins becomes a voter some moments after it is
/// ready.
///
/// # Errors
/// They do not within [`palisade_lab::WAIT`].
pub async fn wait_voters(lab: &Lab, number: usize, voters: usize) -> Result<()> {
    wait_until(&format!("{voters} voters"), async || {
        let status = lab.member(number).status().await?;
        let members = status["cluster"]["members"].as_array().cloned().unwrap_or_default();
        Ok(members.iter().filter(|m| m["voter"] == true).count() == voters)
    })
    .await
}
