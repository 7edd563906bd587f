//! A web server behind the members: a new connection for every request.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::program::wrk;
use crate::program::{nginx, wrk::Outcome};
use palisade_lab::counters::{kernel, syn_retransmits};
use palisade_lab::{Lab, Side};

/// A steady run: wrk's own outcome, and what the client's kernel counted.
#[derive(Clone, Debug)]
pub struct Steady {
    /// What wrk found.
    pub outcome: Outcome,
    /// Connections that the client's kernel opened.
    pub opened: u64,
    /// SYNs that it sent again.
    pub syn_retransmits: u64,
}

/// About 500 new connections a second for some seconds, to a server that runs already: 54 connections at once that each
/// wait 100 ms before their request.
///
/// # Errors
/// wrk fails.
pub async fn steady(lab: &Lab, to: SocketAddr, seconds: u64) -> Result<Steady> {
    let before = syn_retransmits(lab.client()).await?;
    let opened = kernel(lab.client(), "Tcp", "ActiveOpens").await?;
    let outcome = wrk::run(lab, to, 54, seconds, Duration::from_millis(100)).await?;
    let opened = kernel(lab.client(), "Tcp", "ActiveOpens").await? - opened;
    Ok(Steady { outcome, opened, syn_retransmits: syn_retransmits(lab.client()).await? - before })
}

/// New connections as fast as they go, 64 at once.
///
/// # Errors
/// A program fails.
pub async fn flat_out(lab: &Lab, seconds: u64) -> Result<Outcome> {
    let _nginx = nginx::start(lab).await?;
    let to = SocketAddr::new(Side::Server.v4(), nginx::PORT);
    wrk::run(lab, to, 64, seconds, Duration::ZERO).await
}
