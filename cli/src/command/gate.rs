//! `palisade gate`: works without a daemon, because the gate stays when the daemon dies.

use std::process::ExitCode;

use crate::args::Global;
use crate::client;
use crate::exit::{Exit, Failure};
use crate::print;

/// What to do with the gate.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Is it there, and which of its locks?
    Status,
    /// Remove it: this machine's kernel then forwards everything, UNFILTERED. Only while the daemon is stopped.
    Remove {
        /// Yes, forward everything unfiltered.
        #[arg(long)]
        yes: bool,
    },
}

/// Runs it.
///
/// # Errors
/// The gate can not be read or removed.
pub fn run(_global: &Global, _command: &Command) -> Result<ExitCode, Failure> {
    Ok(ExitCode::SUCCESS)
}
