//! Programs of this machine, run in namespaces.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::{Netns, Process, Spawn, WAIT};
use anyhow::{Context, Result, bail};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// A program's path.
///
/// # Errors
/// It is not installed.
pub fn path(name: &str) -> Result<PathBuf> {
    find_program(name).with_context(|| format!("there is no {name} on this machine"))
}

/// Runs a program in a namespace to its end and returns what it printed, on standard output and error together.
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
/// It cannot be started, or takes longer than `limit`.
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
    let end = Instant::now() + WAIT;
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

/// Where a program is: in `PATH`, in the folders that only root has there, or where Debian hides PostgreSQL's.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let postgres = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let postgres = postgres.map(|version| version.path().join("bin"));
    env::split_paths(&path).chain(usual).chain(postgres).map(|dir| dir.join(name)).find(|p| is_file(p))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file())
}
