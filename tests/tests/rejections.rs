//! What is refused is answered: the first datagram of a tuple, and both ends of a connection that is no more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use palisade_lab::guard::require_lab;
use palisade_lab::{Lab, Side};
use palisade_tests::members;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

/// What comes from inside could be the reply of a query: with the first of its packets the members have to wait for a hint.
const POLICY: &str = "\
zone outside, inside
default reject
accept \"web\" from outside to inside: any -> any tcp/7007
accept \"dns\" from outside to inside: any -> any udp/7053
";

/// Longer than any hold, shorter than a retransmission that would hide a lost answer.
const ANSWER: Duration = Duration::from_secs(20);

/// Longer than any hold, for a datagram that is sent again.
const DATAGRAM_ANSWER: Duration = Duration::from_secs(2);
/// Datagrams of one tuple: a member that does not renew its lease within the hold may not answer.
const DATAGRAMS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn denied_datagram_is_answered_and_counted_as_the_policy_says() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(2, BINARY), POLICY).await.unwrap();
    let result = datagrams(&lab).await;
    lab.or_keep(result).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_was_killed_or_revoked_is_reset_at_both_ends() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(2, BINARY), POLICY).await.unwrap();
    let result = connections(&lab).await;
    lab.or_keep(result).unwrap();
}

async fn dropped(lab: &Lab, verdict: &str, reason: &str) -> Result<f64> {
    let (verdict, reason) = (format!("verdict=\"{verdict}\""), format!("reason=\"{reason}\""));
    let mut sum = 0.0;
    for member in lab.members() {
        sum += member.metric("palisade_packets_total", &[&verdict, &reason]).await?;
    }
    Ok(sum)
}

/// Sends a datagram, and again until something comes back.
async fn send(lab: &Lab, side: Side, from: u16, to: u16) -> Result<std::io::Result<usize>> {
    let from = SocketAddr::new(side.v4(), from);
    let to = SocketAddr::new(side.opposite().v4(), to);
    let ask = async move {
        let socket = UdpSocket::bind(from).await?;
        socket.connect(to).await?;
        let mut answer = Err(ErrorKind::TimedOut.into());
        for _ in 0..DATAGRAMS {
            socket.send(b"query").await?;
            match timeout(DATAGRAM_ANSWER, socket.recv(&mut [0; 100])).await {
                Ok(came) => return came,
                Err(elapsed) => answer = Err(elapsed.into()),
            }
        }
        answer
    };
    lab.host(side).run(ask).await
}

async fn datagrams(lab: &Lab) -> Result<()> {
    // One that could be no reply, and one that could.
    for (count, (side, from, to)) in [(1.0, (Side::Client, 0, 7666)), (2.0, (Side::Server, 7053, 7777))] {
        let answer = send(lab, side, from, to).await?;
        ensure!(answer.as_ref().is_err_and(|e| e.kind() != ErrorKind::TimedOut), "{side:?}: no answer: {answer:?}");
        let [rejected, expired] = [("reject", "policy_reject"), ("drop", "hold_expired")];
        let rejected = dropped(lab, rejected.0, rejected.1).await?;
        let expired = dropped(lab, expired.0, expired.1).await?;
        ensure!((rejected, expired) == (count, 0.0), "{rejected} rejected, {expired} expired holds");
    }
    Ok(())
}

/// A connection: its client's and its server's end.
async fn connect(lab: &Lab, listener: &TcpListener) -> Result<[TcpStream; 2]> {
    let (from, to) = (SocketAddr::new(Side::Client.v4(), 0), SocketAddr::new(Side::Server.v4(), 7007));
    let connect = async move {
        let socket = TcpSocket::new_v4()?;
        socket.bind(from)?;
        socket.connect(to).await
    };
    let client = lab.client().run(connect).await??;
    let (mut server, _) = listener.accept().await?;
    let mut ends = [client, {
        server.write_all(b"hello").await?;
        server
    }];
    ends[0].read_exact(&mut [0; 5]).await?;
    Ok(ends)
}

/// An end sends, and learns that there is no connection any longer.
async fn learns(end: &mut TcpStream) -> Result<()> {
    end.write_all(b"are you there").await?;
    let answer = timeout(ANSWER, end.read(&mut [0; 1])).await.context("no answer")?;
    ensure!(answer.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset), "{answer:?}");
    Ok(())
}

async fn connections(lab: &Lab) -> Result<()> {
    let listener = lab.server().run(TcpListener::bind(SocketAddr::new(Side::Server.v4(), 7007))).await??;
    let mut killed = [connect(lab, &listener).await?, connect(lab, &listener).await?];
    lab.member(1).cli(&["session", "kill", "--all"]).await?;
    // Each end by itself: the RST goes to who has sent, so the other one's turn is its own next segment.
    learns(&mut killed[0][0]).await.context("the client of a killed connection")?;
    learns(&mut killed[1][1]).await.context("the server of a killed connection")?;
    learns(&mut killed[1][0]).await.context("its client")?;

    let mut revoked = [connect(lab, &listener).await?, connect(lab, &listener).await?];
    lab.apply_policy(2, &POLICY.replace("accept \"web\"", "reject \"web\"")).await?;
    learns(&mut revoked[0][0]).await.context("the client of a revoked connection")?;
    learns(&mut revoked[1][1]).await.context("the server of a revoked connection")
}
