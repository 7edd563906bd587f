//! `palisade completions`.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::exit::Failure;

/// Arguments of `palisade completions`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints them, as in `palisade completions bash > /etc/bash_completion.d/palisade`.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    // Into memory first: clap_complete panics if its writer fails.
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "palisade", &mut text);
    crate::print::out(|out| out.write_all(&text))?;
    Ok(ExitCode::SUCCESS)
}
