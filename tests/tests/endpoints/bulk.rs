//! Much data: files whole, streams both ways at once, datagrams and echoes of which none is lost.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use palisade_lab::program::run;
use palisade_lab::random::Random;
use palisade_lab::{Lab, Side, WAIT};
use palisade_tests::long;
use palisade_tests::overload::lossless;
use palisade_tests::program::{iperf3, ping as pings, rsync};
use serde_json::Value;

use super::asymmetric_port;

const ECHOES: u32 = 1_000;
const SECONDS: u64 = 3;
const MIB: u64 = 1 << 20;

/// Nobody says goodbye to an echo's session, and nobody may miss one.
pub(crate) async fn ping(lab: &Lab, to: IpAddr) -> Result<String> {
    lossless(lab, async || {
        let outcome = pings::flood(lab.client(), lab.dir(), to, ECHOES).await?;
        ensure!(outcome.sent == ECHOES, "{}", outcome.text);
        Ok(u64::from(outcome.sent - outcome.received))
    })
    .await?;
    Ok(format!("{ECHOES} echoes, none lost"))
}

/// A UDP stream from the client and one from the server: after the first packets one direction only, through one member,
/// while the answers went through another.
pub(crate) async fn udp(lab: &Lab, to: IpAddr) -> Result<String> {
    let _server = iperf3::start(lab).await?;
    let port = asymmetric_port(lab, usize::from(to.is_ipv6()), 17, 5201).await?.to_string();
    let mut sent = 0.0;
    for direction in [&[][..], &["-R"]] {
        // 1,250 datagrams a second fit into a socket's buffer for a tenth of a second.
        let args = [&["-u", "-b", "10M", "-l", "1000", "--cport", &port], direction].concat();
        lossless(lab, async || {
            let report = iperf3::client(lab, to, SECONDS, &args).await?;
            sent += iperf3::number(&report, "/end/sum/packets")?;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
            let lost = iperf3::number(&report, "/end/sum/lost_packets")? as u64;
            Ok(lost)
        })
        .await?;
    }
    ensure!(sent > 1_000.0, "only {sent} datagrams");
    Ok(format!("{sent} datagrams of 1000 bytes, none lost"))
}

/// Streams in both directions at once, first one and then four each.
pub(crate) async fn both_ways(lab: &Lab, to: IpAddr) -> Result<String> {
    let _server = iperf3::start(lab).await?;
    let mut figures = Vec::new();
    for streams in [1, 4] {
        let (report, attempts) = agreed(lab, to, streams).await?;
        let ends = report.pointer("/end/streams").and_then(Value::as_array).context("no streams")?;
        for stream in ends {
            // What waits for a sender that is none, or stalls, does not reach this.
            let bytes = iperf3::number(stream, "/receiver/bytes")?;
            ensure!(bytes > 1e5, "{streams} streams each way: one has received {bytes} bytes\n{report:#}");
        }
        let received = |sum: &str| iperf3::number(&report, &format!("/end/{sum}/bytes"));
        let (there, back) = (received("sum_received")?, received("sum_received_bidir_reverse")?);
        figures.push(format!("{streams}: {:.0} and {:.0} MB, attempt {attempts}", there / 1e6, back / 1e6));
    }
    Ok(figures.join("; "))
}

/// A report of streams that both ends think of alike, and how many attempts that took. iperf3 opens its connections without
/// waiting for each other, and the server has the first ones that it accepts for those that the client sends on. But the last
/// packets of two handshakes may be held at two members, one for longer than the other: so the order may be another.
async fn agreed(lab: &Lab, to: IpAddr, streams: usize) -> Result<(Value, usize)> {
    const MOST: usize = 10;
    for attempt in 1..=MOST {
        let args = ["--bidir", "--get-server-output", "-P", &streams.to_string()];
        let report = iperf3::client(lab, to, SECONDS, &args).await?;
        let ports = report.pointer("/start/connected").and_then(Value::as_array).context("no connections")?;
        let client = ports.iter().filter_map(|c| c.get("local_port")?.as_u64());
        let server = report.pointer("/server_output_text").and_then(Value::as_str).context("no server output")?;
        let server = server.lines().filter(|l| l.contains(" connected to "));
        let server = server.filter_map(|l| l.rsplit_once(" port ")?.1.trim().parse().ok());
        let (client, server): (BTreeSet<u64>, BTreeSet<u64>) =
            (client.take(streams).collect(), server.take(streams).collect());
        ensure!(client.len() == streams && server.len() == streams, "{report:#}");
        if client == server {
            return Ok((report, attempt));
        }
    }
    bail!("both ends of iperf3 never agreed who sends")
}

/// A file to the server by IPv4, one a quarter as long back by IPv6.
pub(crate) async fn files(lab: &Lab) -> Result<String> {
    let dir = tempfile::tempdir_in(lab.dir())?;
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("served"))?;
    let _daemon = rsync::start(lab, &at("served")).await?;
    let length = if long() { 1024 * MIB } else { 256 * MIB };
    random_file(&at("there"), length)?;
    random_file(&at("served/back"), length / 4)?;
    rsync::send(lab, &at("there"), Side::Server.v4(), "there").await?;
    rsync::fetch(lab, Side::Server.v6(), "back", &at("back")).await?;
    for name in ["there", "back"] {
        let (one, other) = (at(name).display().to_string(), at("served").join(name).display().to_string());
        run(lab.client(), lab.dir(), WAIT, "cmp", &[&one, &other]).await?;
    }
    Ok(format!("{} MiB there and {} MiB back, each byte equal", length / MIB, length / 4 / MIB))
}

fn random_file(path: &Path, bytes: u64) -> Result<()> {
    let (mut random, mut file) = (Random(bytes), BufWriter::with_capacity(1 << 20, File::create(path)?));
    for _ in 0..bytes / 8 {
        file.write_all(&random.number().to_ne_bytes())?;
    }
    Ok(file.flush()?)
}
