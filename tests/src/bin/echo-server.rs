//! The server of many connections, in a process of its own: a process may have only so many open files.
//!
//! `echo-server PORT`: sends back what comes in blocks of [`BLOCK`] bytes, until one that begins with [`LAST`]; then it
//! closes first, so that the client's port is free again.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use palisade_tests::{ECHO_BLOCK as BLOCK, ECHO_LAST as LAST};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let port = std::env::args().nth(1).ok_or("no port")?.parse()?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(IpAddr::from([0_u16; 8]), port))?;
    serve(socket.listen(4096)?).await
}

async fn serve(listener: TcpListener) -> Result<(), Box<dyn Error>> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(answer(stream))),
            // The client sees that nobody answers.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn answer(mut stream: TcpStream) {
    let mut block = [0; BLOCK];
    while stream.read_exact(&mut block).await.is_ok() {
        if stream.write_all(&block).await.is_err() || block[0] == LAST {
            return;
        }
    }
}
