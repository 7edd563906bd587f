//! rsync, as a daemon on the server's side and a client that copies either way.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use palisade_lab::program;
use palisade_lab::{Lab, Process, Spawn, WAIT};

use palisade_lab::program::{path, wait_port};

const PORT: u16 = 8730;

/// Starts the daemon, which serves `files` to everybody, to read and to write.
///
/// # Errors
/// It does not start.
pub async fn start(lab: &Lab, files: &Path) -> Result<Process> {
    let config = lab.dir().join("rsyncd.conf");
    let text = format!(
        "pid file = {}\nuse chroot = no\nuid = root\ngid = root\n[files]\npath = {}\nread only = no\n",
        lab.dir().join("rsyncd.pid").display(),
        files.display()
    );
    std::fs::write(&config, text)?;
    let spawn = Spawn::new(path("rsync")?, lab.dir().join("rsyncd.log"))
        .args(["--daemon", "--no-detach", "--log-file=/dev/stderr", "--config"])
        .arg(&config)
        .arg(format!("--port={PORT}"));
    let mut process = lab.server().start(spawn).await?;
    wait_port(lab.server(), &mut process, PORT).await.context("rsync --daemon")?;
    Ok(process)
}

/// Copies a file to the daemon.
///
/// # Errors
/// It fails.
pub async fn send(lab: &Lab, file: &Path, to: IpAddr, name: &str) -> Result<()> {
    copy(lab, &file.display().to_string(), &url(to, name)).await
}

/// Copies a file from the daemon.
///
/// # Errors
/// It fails.
pub async fn fetch(lab: &Lab, from: IpAddr, name: &str, file: &Path) -> Result<()> {
    copy(lab, &url(from, name), &file.display().to_string()).await
}

fn url(host: IpAddr, name: &str) -> String {
    match host {
        IpAddr::V4(host) => format!("rsync://{host}:{PORT}/files/{name}"),
        IpAddr::V6(host) => format!("rsync://[{host}]:{PORT}/files/{name}"),
    }
}

async fn copy(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let args = ["--whole-file", "--inplace", "--timeout=100", from, to];
    program::run(lab.client(), lab.dir(), 5 * WAIT, "rsync", &args).await.map(drop)
}
