//! A connection that echoes and a socket for datagrams, at both ends of a lab.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use palisade_lab::{Lab, Side, WAIT, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

/// The client's ends, and the server's socket for datagrams.
#[derive(Debug)]
pub struct Ends {
    /// The connection, at the client.
    pub stream: TcpStream,
    /// The client's socket, connected to the server's.
    pub client: UdpSocket,
    /// The server's, not connected before [`Ends::assure`].
    pub server: UdpSocket,
}

impl Ends {
    /// Connects. The datagrams go to this port of the server.
    ///
    /// # Errors
    /// The connection is not established, or a port is taken.
    pub async fn open(lab: &Lab, port: u16) -> Result<Ends> {
        let to = SocketAddr::new(Side::Server.v4(), 7000);
        let listener = lab.server().run(TcpListener::bind(to)).await??;
        lab.server().spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
                });
            }
        });
        let stream = lab.client().run(TcpStream::connect(to)).await??;
        stream.set_nodelay(true)?;
        let server = lab.server().run(UdpSocket::bind(SocketAddr::new(Side::Server.v4(), port))).await??;
        let client = lab.client().run(UdpSocket::bind(SocketAddr::new(Side::Client.v4(), 0))).await??;
        client.connect(SocketAddr::new(Side::Server.v4(), port)).await?;
        Ok(Ends { stream, client, server })
    }

    /// A byte of the connection there and back. Whether it came in time.
    pub async fn echo(&mut self, limit: Duration) -> bool {
        let mut byte = [7];
        let exchange = async {
            self.stream.write_all(&byte).await?;
            self.stream.read_exact(&mut byte).await
        };
        timeout(limit, exchange).await.is_ok_and(|r| r.is_ok())
    }

    /// Datagrams there and back, until their session is assured.
    ///
    /// # Errors
    /// They do not pass.
    pub async fn assure(&self) -> Result<()> {
        self.server.connect(self.client.local_addr()?).await?;
        for _ in 0..3 {
            pass(&self.client, &self.server, b"there").await?;
            pass(&self.server, &self.client, b"back").await?;
        }
        self.take_in().await;
        Ok(())
    }

    /// Takes in what was sent more than once.
    async fn take_in(&self) {
        arrived(&self.client).await;
        arrived(&self.server).await;
    }

    /// A datagram and a byte of the connection, there and back.
    ///
    /// # Errors
    /// One does not pass.
    pub async fn pass(&mut self) -> Result<()> {
        pass(&self.client, &self.server, b"there").await?;
        pass(&self.server, &self.client, b"back").await?;
        self.take_in().await;
        ensure!(self.echo(WAIT).await, "the connection does not go on");
        Ok(())
    }
}

/// Sends a datagram between connected sockets until one arrives: a machine that is late drops what it held for too long.
///
/// # Errors
/// None arrives.
pub async fn pass(from: &UdpSocket, to: &UdpSocket, text: &[u8]) -> Result<()> {
    let mut buffer = [0; 64];
    wait_until("a datagram to pass", async || {
        from.send(text).await?;
        Ok(timeout(Duration::from_secs(1), to.recv(&mut buffer)).await.is_ok_and(|r| r.is_ok()))
    })
    .await
}

/// What arrives until nothing comes for half a second.
pub async fn arrived(socket: &UdpSocket) -> Vec<String> {
    let mut all = Vec::new();
    let mut buffer = [0; 2048];
    while let Ok(Ok(length)) = timeout(Duration::from_millis(500), socket.recv(&mut buffer)).await {
        all.push(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned());
    }
    all
}
