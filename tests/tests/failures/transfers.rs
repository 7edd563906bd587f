//! A bulk transfer and a database through ten random kills in a row.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use palisade_lab::guard::require_lab;
use palisade_lab::random::Random;
use palisade_lab::{Lab, Side};
use palisade_tests::members;
use palisade_tests::program::postgres::{self, Postgres};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::{BINARY, POLICY, back, kill, seconds};

const PORT: u16 = 7008;
const KILLS: usize = 10;
const SEED: u64 = 4;
const CLIENTS: u32 = 10;
const PIECE: usize = 64 * 1024;
/// Between two pieces: some 30 Mbyte/s, so that the machine has something left for the failures.
const PAUSE: Duration = Duration::from_millis(2);
const LOST: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_and_a_database_survive_ten_kills() {
    let Some(_turn) = require_lab(&["postgres", "initdb", "pgbench"]) else { return };
    let mut lab = Lab::with_cluster(members(3, BINARY), POLICY).await.unwrap();
    let result = survive(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn survive(lab: &mut Lab) -> Result<()> {
    let database = Postgres::start(lab).await?;
    postgres::prepare(lab, Side::Server.v4()).await?;
    let before = database.connections();
    let to = SocketAddr::new(Side::Server.v6(), PORT);
    let listener = lab.server().run(TcpListener::bind(to)).await??;
    let threads = (lab.client().thread("transfer")?, lab.server().thread("transfer")?);
    let receiver = threads.1.spawn(receive(listener));
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    let sender = threads.0.spawn(transmit(to, stop.clone(), sent.clone()));
    let run = postgres::Run::start(lab, Side::Server.v4(), CLIENTS, 50).await?;
    seconds(1.0).await;

    let mut random = Random(SEED);
    let mut killed = Vec::new();
    for _ in 0..KILLS {
        let number = 1 + random.below(3);
        kill(lab, number).await?;
        seconds(0.2 + random.below(800) as f64 / 1000.0).await;
        back(lab, number).await?;
        killed.push(number);
        seconds(0.5).await;
    }
    let outcome = run.wait().await?;
    stop.store(true, Ordering::Relaxed);
    let digest = sender.await??;
    let (length, received) = receiver.await??;
    eprintln!(
        "killed: {killed:?} (seed {SEED}); {length} bytes arrived, CRC-32 {received:08x} at both ends; {} transactions, {} failed",
        outcome.transactions, outcome.failed
    );
    ensure!(length == sent.load(Ordering::Relaxed) && received == digest, "the transfer is damaged");
    ensure!(length > 100 << 20, "only {length} bytes were sent");
    ensure!(outcome.failed == 0 && outcome.transactions > 500, "{}", outcome.text);
    let connections = database.connections() - before;
    let clients = usize::try_from(CLIENTS)?;
    ensure!((clients..=clients + 1).contains(&connections), "{connections} connections for {clients} clients");
    Ok(())
}

/// Sends until it is told to stop; the CRC-32 of all.
async fn transmit(to: SocketAddr, stop: Arc<AtomicBool>, sent: Arc<AtomicU64>) -> Result<u32> {
    let mut stream = TcpStream::connect(to).await?;
    let mut hasher = crc32fast::Hasher::new();
    let mut random = Random(7);
    while !stop.load(Ordering::Relaxed) {
        let mut piece = vec![0; PIECE];
        for word in piece.chunks_mut(8) {
            word.copy_from_slice(&random.number().to_be_bytes());
        }
        hasher.update(&piece);
        timeout(LOST, stream.write_all(&piece)).await??;
        sent.fetch_add(PIECE as u64, Ordering::Relaxed);
        sleep(PAUSE).await;
    }
    stream.shutdown().await?;
    // The other end's FIN: all has arrived.
    timeout(LOST, stream.read(&mut [0; 1])).await??;
    Ok(hasher.finalize())
}

/// How much arrived until the other end closed, and its CRC-32.
async fn receive(listener: TcpListener) -> Result<(u64, u32)> {
    let (mut stream, _) = listener.accept().await?;
    let (mut hasher, mut length, mut buffer) = (crc32fast::Hasher::new(), 0, vec![0; 1 << 18]);
    loop {
        match timeout(LOST, stream.read(&mut buffer)).await?? {
            0 => return Ok((length, hasher.finalize())),
            n => {
                hasher.update(&buffer[..n]);
                length += n as u64;
            }
        }
    }
}
