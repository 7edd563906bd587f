//! `palisade demo`: a whole cluster in network namespaces, with real traffic and real failures.

use std::process::ExitCode;

/// Arguments of `palisade demo`.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Runs the demo. Called before any thread was started, so that it may enter a user namespace.
///
/// # Errors
/// What kept the demo from running; a run whose promises failed is not an error but exit code 1.
pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("the demo is not part of this build")
}
