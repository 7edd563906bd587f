//! `palisade man`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::args::Cli;
use crate::exit::{Exit, Failure};

/// Arguments of `palisade man`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The folder to write palisade.1, palisade-cluster.1, … to; it must exist.
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
}

/// Writes one page per command.
///
/// # Errors
/// The folder cannot be written to.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    clap_mangen::generate_to(Cli::command(), &args.folder).map_err(|e| {
        let message = format!("man pages could not be written to {}: {e}", args.folder.display());
        Failure::new(Exit::Failure, message, Some("give an existing folder that you may write to"))
    })?;
    Ok(ExitCode::SUCCESS)
}
