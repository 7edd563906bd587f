//! Malformed packets and garbage on every port: counted, and nothing more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use palisade_lab::frames::{self, Wire};
use palisade_lab::guard::require_lab;
use palisade_lab::packets::{ethernet, garbage};
use palisade_lab::random::Random;
use palisade_lab::traffic::{POLICY, Traffic};
use palisade_lab::{Lab, Side, addr};
use palisade_tests::members;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::time::{sleep, timeout};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

const PACKETS: usize = 100_000;

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_counted_and_hurts_nobody() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = attack(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn attack(lab: &mut Lab) -> Result<()> {
    opens(lab).await?;
    let pids: Vec<Option<u32>> = lab.members().iter().map(|m| m.pid()).collect();
    let drops = dropped(lab, 1).await?;
    let missed = missed(lab, 1).await?;
    let traffic = Traffic::start(lab, 60).await?;
    packets(lab).await?;
    for number in 1..=3 {
        ports(lab, number).await?;
    }
    let counts = traffic.counts();
    counts.wait_opened(20).await?;
    traffic.finish().await;
    assert_eq!(counts.lost.load(Ordering::Relaxed), 0, "{:?}", counts.problems());
    assert_eq!(counts.forbidden_passed.load(Ordering::Relaxed), 0, "{:?}", counts.problems());
    drop(traffic);

    for member in lab.members_mut() {
        member.check()?;
        let log = std::fs::read_to_string(member.log())?;
        assert!(!log.contains("panicked"), "{}: {log}", member.name());
    }
    let after_pids: Vec<Option<u32>> = lab.members().iter().map(|m| m.pid()).collect();
    assert_eq!(pids, after_pids);
    // Nearly all of it is dropped by Palisade; some the kernel's capture already refuses, and some a full ring has no place for.
    let most = PACKETS as f64 * 0.5;
    let counted = dropped(lab, 1).await? - drops;
    let missed = self::missed(lab, 1).await? - missed;
    assert!(counted + missed >= most, "only {counted} drops were counted, and {missed} frames missed");
    opens(lab).await
}

/// Packets that a member has dropped, for whatever reason.
async fn dropped(lab: &Lab, number: usize) -> Result<f64> {
    lab.member(number).metric("palisade_packets_total", &["verdict=\"drop\""]).await
}

/// Frames for which a member's capture ring had no place.
async fn missed(lab: &Lab, number: usize) -> Result<f64> {
    lab.member(number).metric("palisade_capture_dropped_total", &[]).await
}

/// New connections open, all of them.
async fn opens(lab: &Lab) -> Result<()> {
    let traffic = Traffic::start(lab, 10).await?;
    traffic.counts().wait_opened(100).await?;
    traffic.finish().await;
    assert_eq!(traffic.counts().failed.load(Ordering::Relaxed), 0, "{:?}", traffic.counts().problems());
    Ok(())
}

async fn packets(lab: &Lab) -> Result<()> {
    let mut wire = Wire::open(lab.client(), "fw1").await?;
    let to = frames::mac(lab.member(1).netns(), Side::Client.interface()).await?;
    let mut random = Random(2026);
    let (from, server) = ("10.10.0.1:4000".parse()?, "10.20.0.1:7007".parse()?);
    for number in 0..PACKETS {
        let (ether_type, payload) = garbage(&mut random, from, server);
        let mut frame = ethernet(to, wire.mac(), ether_type, &payload);
        // Shorter ones the sender's kernel does not take.
        frame.resize(frame.len().max(14 + 1), 0);
        wire.send(&frame)?;
        if number % 500 == 0 {
            // Faster than a legitimate sender, slower than the wire: what is under test is parsing, not the ring.
            sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(())
}

/// Noise to each port that a member listens on.
async fn ports(lab: &Lab, number: usize) -> Result<()> {
    let socket = lab.member(number).socket();
    let attacks = async move {
        let mut random = Random(number as u64);
        for _ in 0..100 {
            for port in [addr::HTTP_PORT, addr::CLUSTER_PORT] {
                let to = SocketAddr::new(addr::fabric(number), port);
                if let Ok(stream) = TcpStream::connect(to).await {
                    noise(stream, &mut random).await;
                }
                let udp = UdpSocket::bind("0.0.0.0:0").await?;
                // Nobody listens there, and the kernel says so to the second.
                let _ = udp.send_to(&random.block(1200), to).await;
            }
            if let Ok(stream) = UnixStream::connect(&socket).await {
                noise(stream, &mut random).await;
            }
        }
        Ok::<_, std::io::Error>(())
    };
    lab.fabric().run(attacks).await??;
    // A proper request is answered.
    assert_eq!(lab.member(number).http("/healthz").await?.0, 200);
    lab.member(number).status().await.map(drop)
}

/// Writes noise, half the time after a beginning that looks right, and hangs up.
async fn noise<S: AsyncReadExt + AsyncWriteExt + Unpin>(mut stream: S, random: &mut Random) {
    let openings: [&[u8]; 4] =
        [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /metrics HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00"];
    let opening = openings[random.below(openings.len())];
    let mut answer = [0; 512];
    // What it answers, if anything, and whether it hangs up first, is up to it.
    let _ = stream.write_all(opening).await;
    let _ = stream.write_all(&random.block(4096)).await;
    let _ = timeout(Duration::from_millis(5), stream.read(&mut answer)).await;
}
