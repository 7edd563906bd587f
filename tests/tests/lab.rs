//! The lab itself, with plain kernels in the middle: what it says about the ways of connections is true.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use palisade_lab::guard::require_lab;
use palisade_lab::traffic::Traffic;
use palisade_lab::{Flow, Lab, Side};
use palisade_tests::kernels;
use palisade_tests::scenario::web::flat_out;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;

/// Connects from a port chosen beforehand: only then does the kernel choose the way by the hash.
async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(Side::Client.hosts()[usize::from(to.is_ipv6())], 0))?;
    socket.connect(to).await
}

/// Packets that the members have sent towards a side.
async fn sent(lab: &Lab, side: Side) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for member in lab.members() {
        all.push(member.netns().netlink().sent(side.interface()).await?.0);
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn lab_tells_the_ways_that_connections_go() {
    let Some(_turn) = require_lab(&[]) else { return };
    let lab = Lab::with_cluster(kernels(3), "").await.unwrap();
    for host in Side::Server.hosts() {
        let to = SocketAddr::new(host, 9000);
        let listener = lab.server().run(TcpListener::bind(to)).await.unwrap().unwrap();
        lab.server().spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
                });
            }
        });
        let mut ways = Vec::new();
        for _ in 0..12 {
            let mut stream = lab.client().run(connect(to)).await.unwrap().unwrap();
            stream.set_nodelay(true).unwrap();
            let from = stream.local_addr().unwrap();
            let flow = Flow { protocol: 6, src: from.ip(), sport: from.port(), dst: to.ip(), dport: to.port() };
            let [there, back] = lab.path(flow).await.unwrap();
            let before = (sent(&lab, Side::Server).await.unwrap(), sent(&lab, Side::Client).await.unwrap());
            for _ in 0..200 {
                let mut byte = [1];
                stream.write_all(&byte).await.unwrap();
                stream.read_exact(&mut byte).await.unwrap();
            }
            let after = (sent(&lab, Side::Server).await.unwrap(), sent(&lab, Side::Client).await.unwrap());
            for number in 1..=3 {
                let to_server = after.0[number - 1] - before.0[number - 1];
                let to_client = after.1[number - 1] - before.1[number - 1];
                // The routers' questions and neighbour discovery are a few packets, these are 200.
                assert_eq!(to_server >= 200, number == there, "fw{number}: {to_server} of {flow:?} via {there}");
                assert_eq!(to_client >= 200, number == back, "fw{number}: {to_client} of {flow:?} via {back}");
            }
            ways.push([there, back]);
        }
        assert!(ways.iter().all(|[there, back]| there != back), "{ways:?}");
        ways.sort_unstable();
        ways.dedup();
        assert!(ways.len() > 1, "all went the same way: {ways:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lab_routers_take_a_dead_member_out_and_back_in() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(kernels(3), "").await.unwrap();
    let traffic = Traffic::start(&lab, 60).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    lab.member_mut(2).kill().await.unwrap();
    lab.wait_live(&[1, 3]).await.unwrap();
    assert!(traffic.ways().await.iter().flatten().all(|n| *n != 2));
    sleep(Duration::from_secs(2)).await;
    lab.member_mut(2).start().await.unwrap();
    lab.wait_live(&[1, 2, 3]).await.unwrap();
    let ways = traffic.ways().await;
    assert_eq!(ways.len(), 60);
    assert!(ways.iter().any(|[there, _]| *there == 2), "{ways:?}");
    traffic.finish().await;
    let counts = traffic.counts();
    assert_eq!(counts.lost.load(Ordering::Relaxed), 0, "{:?}", counts.problems());
    assert_eq!(counts.failed.load(Ordering::Relaxed), 0, "{:?}", counts.problems());
    // Plain routers keep nothing out: the trap works.
    assert!(counts.forbidden_passed.load(Ordering::Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_forwarding_answers_every_request() {
    let Some(_turn) = require_lab(&["nginx", "wrk"]) else { return };
    let mut lab = Lab::with_cluster(kernels(3), "").await.unwrap();
    let result = flat_out(&lab, 3).await;
    let fast = lab.or_keep(result).unwrap();
    eprintln!("plain forwarding: {:.0} connections/s", fast.per_second);
    assert!(fast.errors.is_empty() && fast.requests > 0, "{}", fast.text);
}
