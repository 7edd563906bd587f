//! `palisade gate`: works without a daemon, because the gate stays when the daemon dies.

use std::path::PathBuf;
use std::process::ExitCode;

use palisade_node::config::{Config, INJECT_DEVICE};
use palisade_node::datapath::Gate;

use crate::args::Global;
use crate::exit::{Exit, Failure};
use crate::print;

/// What to do with the gate.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Is it there, and which of its locks? Exit code 1 if a lock that could be there is not.
    Status {
        /// The member's configuration file: which interfaces are exempt (`unfiltered`).
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Remove it: this machine's kernel then forwards everything, UNFILTERED. Only while the daemon is stopped.
    Remove {
        /// Yes, forward everything unfiltered.
        #[arg(long)]
        yes: bool,
    },
}

const ROOT: &str = "run this as root, in the network namespace of the daemon";

/// Runs it.
///
/// # Errors
/// The gate can not be read or removed, or the daemon still runs.
pub fn run(global: &Global, command: &Command) -> Result<ExitCode, Failure> {
    crate::logging::start(global, "warn")?;
    match command {
        Command::Status { config } => {
            let unfiltered = match config {
                Some(file) => {
                    Config::load(file).map_err(|e| Failure::diagnostic(Exit::Failure, e))?.datapath.unfiltered
                }
                None => Vec::new(),
            };
            let status = Gate::new(INJECT_DEVICE, &unfiltered)
                .status()
                .map_err(|e| Failure::new(Exit::Failure, format!("the gate can not be looked at: {e}"), Some(ROOT)))?;
            let whole = print::gate::status(global.output, &status)?;
            Ok(if whole { ExitCode::SUCCESS } else { Exit::Failure.into() })
        }
        Command::Remove { yes } => {
            if !yes {
                let help = "if that is what you want: `palisade gate remove --yes`";
                return Err(Failure::new(
                    Exit::Refused,
                    "without the gate this machine forwards everything unfiltered",
                    Some(help),
                ));
            }
            if std::os::unix::net::UnixStream::connect(&global.socket).is_ok() {
                let help = "stop the daemon first (`systemctl stop palisade`): it would put the gate back at once";
                return Err(Failure::new(Exit::Refused, "the daemon is running", Some(help)));
            }
            Gate::remove()
                .map_err(|e| Failure::new(Exit::Failure, format!("the gate can not be removed: {e}"), Some(ROOT)))?;
            print::gate::removed(global.output)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
