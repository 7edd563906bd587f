//! The web: connections that are kept, one request at a time or many at once.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use palisade_lab::Lab;
use palisade_lab::counters::kernel;
use palisade_tests::program::{h2load, nginx, wrk};

const FILE: usize = 64 << 10;
const STREAMS: u32 = 2_000;

/// HTTP/1.1: many requests in few connections.
pub(crate) async fn keep_alive(lab: &Lab, to: IpAddr) -> Result<String> {
    let _nginx = nginx::start_with_tls(lab, FILE).await?;
    let opened = kernel(lab.client(), "Tcp", "ActiveOpens").await?;
    let outcome = wrk::keep_alive(lab, SocketAddr::new(to, nginx::PORT), 16, 3).await?;
    let opened = kernel(lab.client(), "Tcp", "ActiveOpens").await? - opened;
    ensure!(outcome.errors.is_empty(), "{}", outcome.text);
    // nginx ends a connection after 1,000 requests.
    ensure!(outcome.requests > opened * 20, "{opened} connections for {} requests", outcome.requests);
    Ok(format!("{} requests in {opened} connections", outcome.requests))
}

/// HTTP/2 over TLS: 10 files at once in each connection.
pub(crate) async fn streams(lab: &Lab, to: IpAddr) -> Result<String> {
    let _nginx = nginx::start_with_tls(lab, FILE).await?;
    let answered = h2load::run(lab, SocketAddr::new(to, nginx::TLS_PORT), 8, STREAMS).await?;
    ensure!(answered == STREAMS, "{answered} of {STREAMS} files");
    Ok(format!("{STREAMS} files of 64 KiB in 8 connections"))
}
