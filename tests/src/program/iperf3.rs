//! iperf3: one TCP stream as fast as it goes.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use palisade_cli::lab::{Lab, Spawn};
use serde_json::Value;

use super::{path, wait_port};

/// Sends for some seconds from the client to the server at `to`; answers bits in a second, as received.
///
/// # Errors
/// It fails.
pub async fn run(lab: &Lab, to: IpAddr, seconds: u64) -> Result<f64> {
    let spawn = Spawn::new(path("iperf3")?, lab.dir().join("iperf3.server")).args(["-s", "-p", "5201"]);
    let mut server = lab.server().start(spawn).await?;
    wait_port(lab.server(), &mut server, 5201).await.context("iperf3 -s")?;
    // The server needs a moment to notice that the connection that found the port was none of its clients'.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (to, time) = (to.to_string(), seconds.to_string());
    let args = ["-c", &to, "-p", "5201", "-t", &time, "-J"];
    let text = super::run(lab.client(), lab.dir(), Duration::from_secs(seconds + 15), "iperf3", &args).await?;
    let json: Value = serde_json::from_str(&text).with_context(|| format!("iperf3 said:\n{text}"))?;
    let rate = json.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    rate.with_context(|| format!("iperf3 said:\n{text}"))
}
