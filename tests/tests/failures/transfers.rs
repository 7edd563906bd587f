//! A bulk transfer and a database through ten random kills in a row.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use palisade_lab::guard::require_lab;
use palisade_lab::random::Random;
use palisade_lab::{Lab, Side};
use palisade_lab::{WAIT, wait_until};
use palisade_tests::members;
use palisade_tests::program::postgres::{self, Postgres};
use palisade_tests::scenario::{back, kill};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::{BINARY, POLICY};

const PORT: u16 = 7008;
const KILLS: usize = 10;
const SEED: u64 = 4;
const CLIENTS: u32 = 10;
const BLOCK: usize = 64 * 1024;
/// Between two blocks: some 30 Mbyte/s, so that the machine has something left for the failures.
const BLOCK_INTERVAL: Duration = Duration::from_millis(2);
/// The least that is transferred, and the fewest transactions, with which the test says something.
const ENOUGH_BYTES: u64 = 100 << 20;
const ENOUGH_TRANSACTIONS: u64 = 500;

#[tokio::test(flavor = "multi_thread")]
async fn transfer_and_database_survive_ten_kills() {
    let Some(_turn) = require_lab(postgres::PROGRAMS) else { return };
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
    let run = postgres::Run::start(lab, Side::Server.v4(), CLIENTS).await?;
    run.transact(1).await?;

    let mut random = Random(SEED);
    let mut killed = Vec::new();
    for _ in 0..KILLS {
        let number = 1 + random.below(3);
        kill(lab, number).await?;
        sleep(Duration::from_millis(200 + random.below(800) as u64)).await;
        back(lab, number).await?;
        killed.push(number);
        sleep(Duration::from_millis(500)).await;
    }
    run.transact(ENOUGH_TRANSACTIONS).await?;
    wait_until("enough bytes", async || Ok(sent.load(Ordering::Relaxed) > ENOUGH_BYTES)).await?;
    let outcome = run.finish().await?;
    stop.store(true, Ordering::Relaxed);
    let digest = sender.await??;
    let (length, received) = receiver.await??;
    eprintln!(
        "killed: {killed:?} (seed {SEED}); {length} bytes arrived, CRC-32 {received:08x} at both ends; {} transactions, {} failed",
        outcome.transactions, outcome.failed
    );
    ensure!(length == sent.load(Ordering::Relaxed) && received == digest, "the transfer is damaged");
    ensure!(length > ENOUGH_BYTES, "only {length} bytes were sent");
    ensure!(outcome.failed == 0 && outcome.transactions > ENOUGH_TRANSACTIONS, "{}", outcome.text);
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
        let mut block = vec![0; BLOCK];
        for word in block.chunks_mut(8) {
            word.copy_from_slice(&random.number().to_be_bytes());
        }
        hasher.update(&block);
        timeout(WAIT, stream.write_all(&block)).await??;
        sent.fetch_add(BLOCK as u64, Ordering::Relaxed);
        sleep(BLOCK_INTERVAL).await;
    }
    stream.shutdown().await?;
    // The other end's FIN: all has arrived.
    timeout(WAIT, stream.read(&mut [0; 1])).await??;
    Ok(hasher.finalize())
}

/// How much arrived until the other end closed, and its CRC-32.
async fn receive(listener: TcpListener) -> Result<(u64, u32)> {
    let (mut stream, _) = listener.accept().await?;
    let (mut hasher, mut length, mut buffer) = (crc32fast::Hasher::new(), 0, vec![0; 1 << 18]);
    loop {
        match timeout(WAIT, stream.read(&mut buffer)).await?? {
            0 => return Ok((length, hasher.finalize())),
            n => {
                hasher.update(&buffer[..n]);
                length += n as u64;
            }
        }
    }
}
