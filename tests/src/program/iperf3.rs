//! iperf3: TCP streams as fast as they go, and UDP at a given rate.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use palisade_lab::program;
use palisade_lab::{Lab, Process, Spawn, WAIT};
use serde_json::Value;

use palisade_lab::program::{path, wait_port};

const PORT: &str = "5201";

/// Sends for some seconds from the client to the server at `to`; answers bits in a second, as received.
///
/// # Errors
/// It fails.
pub async fn run(lab: &Lab, to: IpAddr, seconds: u64) -> Result<f64> {
    let _server = start(lab).await?;
    let report = client(lab, to, seconds, &[]).await?;
    number(&report, "/end/sum_received/bits_per_second")
}

/// Starts the server.
///
/// # Errors
/// It does not start.
pub async fn start(lab: &Lab) -> Result<Process> {
    let spawn = Spawn::new(path("iperf3")?, lab.dir().join("iperf3.server")).args(["-s", "-p", PORT]);
    let mut server = lab.server().start(spawn).await?;
    wait_port(lab.server(), &mut server, PORT.parse()?).await.context("iperf3 -s")?;
    // The server needs a moment to notice that the connection that found the port was none of its clients'.
    tokio::time::sleep(Duration::from_millis(300)).await;
    Ok(server)
}

/// Runs a client with these further arguments for some seconds, and answers its report.
///
/// # Errors
/// It fails, or says that something went wrong.
pub async fn client(lab: &Lab, to: IpAddr, seconds: u64, more: &[&str]) -> Result<Value> {
    let (to, time) = (to.to_string(), seconds.to_string());
    let args = [&["-c", &to, "-p", PORT, "-t", &time, "-J"], more].concat();
    let text = program::run(lab.client(), lab.dir(), Duration::from_secs(seconds) + WAIT, "iperf3", &args).await?;
    let json: Value = serde_json::from_str(&text).with_context(|| format!("iperf3 said:\n{text}"))?;
    match json.get("error") {
        Some(error) => bail!("iperf3 {}: {error}", args.join(" ")),
        None => Ok(json),
    }
}

/// A number of a report, by its path in the JSON.
///
/// # Errors
/// There is none.
pub fn number(report: &Value, pointer: &str) -> Result<f64> {
    let number = report.pointer(pointer).and_then(Value::as_f64);
    number.with_context(|| format!("no {pointer} in what iperf3 said:\n{report:#}"))
}
