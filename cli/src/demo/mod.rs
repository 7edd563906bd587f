//! `palisade demo`: a whole cluster in network namespaces, with real traffic and real failures.

mod dashboard;
mod report;
mod run;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use palisade_lab::Mode;
use palisade_lab::privilege::{self, Privilege};

pub use self::report::{Report, Verdict};

/// Arguments of `palisade demo`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// How many members to begin with; one more joins later.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=7))]
    pub members: u8,

    /// How long the traffic flows, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(10..=3600))]
    pub seconds: u64,

    /// Print the report as one JSON object.
    #[arg(long)]
    pub json: bool,

    /// Leave the cluster up afterwards, to play with, until Ctrl-C.
    #[arg(long)]
    pub keep: bool,

    /// Break something on purpose: the demo must then fail.
    #[arg(long = "break", value_name = "WHAT", hide = true)]
    pub break_what: Option<Break>,

    /// Plain kernel forwarding in place of Palisade, for comparison.
    #[arg(long, hide = true, conflicts_with = "break_what")]
    pub baseline: bool,

    /// The executable that the members run; this one by default.
    #[arg(long, hide = true)]
    pub binary: Option<std::path::PathBuf>,
}

/// What can be broken.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Break {
    /// Hints and commits are cut off.
    Replication,
}

/// Runs the demo. Called before any thread was started, so that it may enter a user namespace.
///
/// # Errors
/// What kept the demo from running; a run whose promises failed is not an error but exit code 1.
pub fn run(args: Args) -> Result<ExitCode> {
    let privilege = privilege::acquire()?;
    if privilege == Privilege::UserNamespace {
        eprintln!(
            "Not root: everything runs in a user namespace, where members use veth pairs in place of /dev/net/tun."
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("a runtime")?;
    let done = runtime.block_on(async {
        tokio::select! {
            done = run::run(&args) => done.map(Some),
            signal = tokio::signal::ctrl_c() => signal.map(|()| None).context("Ctrl-C"),
        }
    });
    // Namespaces and processes are already gone; tasks that wait for them need not be waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let Some(report) = done? else {
        eprintln!("Interrupted; everything is cleaned up.");
        return Ok(ExitCode::from(130));
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(if report.verdict == Verdict::Pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Args {
    fn mode(&self) -> Mode {
        match (self.break_what, self.baseline) {
            (Some(Break::Replication), _) => Mode::CutReplication,
            (None, true) => Mode::Baseline,
            (None, false) => Mode::Palisade,
        }
    }

    fn lab(&self) -> Result<palisade_lab::Options> {
        let binary = match &self.binary {
            Some(path) => path.clone(),
            None => std::env::current_exe().context("the path of this executable")?,
        };
        Ok(palisade_lab::Options { members: self.members.into(), binary, mode: self.mode() })
    }
}
