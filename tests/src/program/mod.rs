//! Real programs in the lab's namespaces, each with configuration and files in a folder of its own.

pub mod dns;
pub mod h2load;
pub mod iperf3;
pub mod nginx;
pub mod ping;
pub mod postgres;
pub mod prometheus;
pub mod rsync;
pub mod traceroute;
pub mod wrk;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use palisade_cli::lab::{Netns, Process, Spawn};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::guard::find_program;

/// A program's path.
///
/// # Errors
/// It is not installed.
pub fn path(name: &str) -> Result<PathBuf> {
    find_program(name).with_context(|| format!("there is no {name} on this machine"))
}

/// Runs a program in a namespace to its end and answers what it said, on standard output and error together.
///
/// # Errors
/// It fails, with what it said, or takes longer than `limit`.
pub async fn run(netns: &Netns, dir: &Path, limit: Duration, program: &str, args: &[&str]) -> Result<String> {
    match output(netns, dir, limit, program, args).await? {
        (status, output) if status.success() => Ok(output),
        (status, output) => bail!("{program} {}: {status}\n{output}", args.join(" ")),
    }
}

/// As [`run`], for a program whose failure is what is wanted, or part of the answer.
///
/// # Errors
/// It can not be started, or takes longer than `limit`.
pub async fn output(
    netns: &Netns,
    dir: &Path,
    limit: Duration,
    program: &str,
    args: &[&str],
) -> Result<(ExitStatus, String)> {
    let log = tempfile::Builder::new().prefix(program).suffix(".out").tempfile_in(dir)?.into_temp_path();
    let mut process = netns.start(Spawn::new(path(program)?, log.to_path_buf()).args(args)).await?;
    let status = process.wait(limit).await;
    let output = process.output();
    match status {
        Ok(status) => Ok((status, output)),
        Err(e) => Err(e.context(format!("{program} {}\n{output}", args.join(" ")))),
    }
}

/// Waits until somebody listens on a port of this machine's own address in the namespace.
///
/// # Errors
/// Nobody does, or the program has ended.
pub async fn wait_port(netns: &Netns, process: &mut Process, port: u16) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(status) = process.ended()? {
            bail!("it has ended: {status}\n{}", process.output());
        }
        if netns.run(TcpStream::connect(("127.0.0.1", port))).await?.is_ok() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("nobody listens on port {port}\n{}", process.output());
        }
        sleep(Duration::from_millis(20)).await;
    }
}
