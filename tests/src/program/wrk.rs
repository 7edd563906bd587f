//! wrk, with a new connection for every request or with connections that stay.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use palisade_lab::program;
use palisade_lab::{Lab, WAIT};

/// What it found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Requests that were answered.
    pub requests: u64,
    /// The same in a second.
    pub per_second: f64,
    /// Complaints: socket errors, statuses other than 2xx and 3xx.
    pub errors: Vec<String>,
    /// All it said.
    pub text: String,
}

/// Runs it on the client's side, over `connections` at once; each pauses for `pause` before its request, which paces the
/// whole.
///
/// # Errors
/// It fails.
pub async fn run(lab: &Lab, to: SocketAddr, connections: u32, seconds: u64, pause: Duration) -> Result<Outcome> {
    let mut script = String::from("wrk.headers[\"Connection\"] = \"close\"\n");
    if !pause.is_zero() {
        writeln!(script, "function delay() return {} end", pause.as_millis())?;
    }
    let file = lab.dir().join("wrk.lua");
    std::fs::write(&file, script)?;
    wrk(lab, to, connections, seconds, &["-s", &file.display().to_string()]).await
}

/// Runs it on the client's side, over `connections` that are kept (HTTP/1.1, RFC 9112 section 9.3), one request after the
/// other on each.
///
/// # Errors
/// It fails.
pub async fn keep_alive(lab: &Lab, to: SocketAddr, connections: u32, seconds: u64) -> Result<Outcome> {
    wrk(lab, to, connections, seconds, &[]).await
}

async fn wrk(lab: &Lab, to: SocketAddr, connections: u32, seconds: u64, more: &[&str]) -> Result<Outcome> {
    let (connections, duration, url) = (connections.to_string(), format!("{seconds}s"), format!("http://{to}/"));
    let args = [&["-t", "1", "-c", &connections, "-d", &duration, "--timeout", "60s"], more, &[&url]].concat();
    let limit = Duration::from_secs(seconds) + WAIT;
    let text = program::run(lab.client(), lab.dir(), limit, "wrk", &args).await?;
    parse(text)
}

fn parse(text: String) -> Result<Outcome> {
    let lines = || text.lines().map(str::trim);
    let requests = lines().find_map(|l| l.split_once(" requests in ")?.0.parse().ok());
    let per_second = lines().find_map(|l| l.strip_prefix("Requests/sec:")?.trim().parse().ok());
    let bad = |l: &&str| l.starts_with("Socket errors:") || l.starts_with("Non-2xx");
    let errors = lines().filter(bad).map(str::to_owned).collect();
    let requests = requests.with_context(|| format!("wrk said:\n{text}"))?;
    Ok(Outcome { requests, per_second: per_second.unwrap_or(0.0), errors, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_words_are_understood() {
        let text = "Running 1s test @ http://x/\n  1 threads and 2 connections\n  5046 requests in 1.01s, 0.8MB read\n  \
                    Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec:   4995.1\n";
        let outcome = parse(text.to_owned()).unwrap();
        assert_eq!(outcome.requests, 5046);
        assert!((outcome.per_second - 4995.1).abs() < 0.01);
        assert_eq!(outcome.errors.len(), 1);
        assert!(parse("unable to connect".to_owned()).is_err());
    }
}
