//! Palisade's one executable, as a library: the tests build it a second time.
//!
//! A command goes: [`args`] (clap) → one file per noun in [`command`] → its member over [`client`] (gRPC on the unix
//! socket) → a printer in [`print`]. Errors are [`exit::Failure`]s: what was expected, where, what to do next, and a
//! stable exit code.
//!
//! [`run`] starts no thread before it has called the command: the demo may have to enter a user namespace, which only a
//! process with one thread can.

pub mod args;
pub mod client;
pub mod command;
#[cfg(feature = "demo")]
pub mod demo;
pub mod exit;
pub mod logging;
pub mod print;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::exit::Failure;

/// Runs the command line of this process.
#[must_use]
pub fn run() -> ExitCode {
    // clap answers wrong usage itself, with exit code 2.
    let cli = Cli::parse();
    let output = cli.global.output;
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => {
            failure.report(output);
            failure.exit().into()
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let global = cli.global;
    match cli.command {
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::run(args).map_err(|e| Failure::new(exit::Exit::Failure, format!("{e:#}"), None)),
        Command::Node(args) => command::node::run(&global, &args),
        Command::Config(c) => command::config::run(&global, &c),
        Command::Cluster(c) => command::cluster::run(&global, c),
        Command::Policy(c) => command::policy::run(&global, c),
        Command::Session(c) => command::session::run(&global, c),
        Command::Log(args) => command::log::run(&global, &args),
        Command::Drain(args) => command::drain::drain(&global, &args),
        Command::Undrain => command::drain::undrain(&global),
        Command::Health(args) => command::health::run(&global, &args),
        Command::Audit(args) => command::audit::run(&global, &args),
        Command::Gate(c) => command::gate::run(&global, &c),
        Command::Completions(args) => command::completions::run(&args),
        Command::Man(args) => command::man::run(&args),
    }
}
