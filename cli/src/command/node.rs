//! `palisade node`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use palisade_node::Node;
use palisade_node::boot::close_gate;
use palisade_node::config::Config;

use crate::args::Global;
use crate::exit::{Exit, Failure};
use crate::logging;

/// Arguments of `palisade node`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The member's configuration file (docs/config.md).
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Runs a member until SIGTERM or SIGINT.
///
/// # Errors
/// The configuration is not valid, or the member could not start or go on.
pub fn run(global: &Global, args: &Args) -> Result<ExitCode, Failure> {
    // openraft warns of each attempt to reach a member that is down, thousands of times a second.
    logging::start(global, "info,openraft=error")?;
    let config = Config::load(&args.config).map_err(|e| {
        close_gate(&args.config);
        Failure::diagnostic(Exit::Failure, e)
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("palisade-async").build()?;
    let result = runtime.block_on(Node::run(config));
    // Blocking tasks that hang (a dead disk) must not keep a stopped daemon alive.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    result.map_err(|e| Failure::error(if e.is_unreadable() { Exit::Unreadable } else { Exit::Failure }, &e))?;
    Ok(ExitCode::SUCCESS)
}
