//! `palisade config`.

use std::path::PathBuf;
use std::process::ExitCode;

use palisade_node::config::Config;

use crate::args::Global;
use crate::exit::{Exit, Failure};
use crate::print;

/// What to do with a configuration.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Read a node.toml as the daemon would, and report every error at once.
    Check {
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Runs it.
///
/// # Errors
/// The file is not valid.
pub fn run(global: &Global, command: &Command) -> Result<ExitCode, Failure> {
    let Command::Check { file } = command;
    let config = Config::load(file).map_err(|e| Failure::diagnostic(Exit::Failure, e))?;
    print::config::checked(global.output, file, &config)?;
    Ok(ExitCode::SUCCESS)
}
