//! Connections on which nothing is said for longer than any short timeout lasts (UDP, FIN_WAIT and TIME_WAIT: 120 s).

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{SinkExt, StreamExt};
use nix::sys::socket::{setsockopt, sockopt};
use palisade_lab::counters::kernel;
use palisade_lab::{Lab, Side, WAIT};
use palisade_tests::long;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use super::asymmetric_port;

/// Longer than any timeout but that of an established TCP session: those of [`SHORT_TIMEOUTS`], or the defaults (120 s).
fn idle_time() -> Duration {
    Duration::from_secs(if long() { 150 } else { 50 })
}

/// What a policy needs so that a shorter idle time shows the same.
pub(crate) const SHORT_TIMEOUTS: &str = "timeout tcp.syn_sent 30s, tcp.syn_recv 30s, tcp.fin_wait 30s, tcp.close_wait 30s, \
    tcp.last_ack 30s, tcp.time_wait 30s, udp.assured 30s\n";

/// Idle this long, a connection like ssh's has its kernel ask whether the other end is alive.
const KEEP_ALIVE: u32 = 10;

/// Idle connections, two of each family; each has its two directions at different members.
pub(crate) struct Idle {
    websockets: Vec<[WebSocketStream<TcpStream>; 2]>,
    kept_alive: Vec<[TcpStream; 2]>,
    since: Instant,
    probes: u64,
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} websockets, {} connections kept alive", self.websockets.len(), self.kept_alive.len())
    }
}

impl Idle {
    /// Opens them, and uses each once.
    pub(crate) async fn open(lab: &Lab) -> Result<Idle> {
        let probes = kernel(lab.client(), "TcpExt", "TCPKeepAlive").await?;
        let mut idle = Idle { websockets: Vec::new(), kept_alive: Vec::new(), since: Instant::now(), probes };
        for family in [0, 1] {
            let [client, server] = connection(lab, family, 7100).await?;
            let url = format!("ws://{}/", server.local_addr()?);
            let (client, server) = tokio::join!(client_async(url, client), accept_async(server));
            idle.websockets.push([client?.0, server?]);
            let [client, server] = connection(lab, family, 7200).await?;
            setsockopt(&client.as_fd(), sockopt::KeepAlive, &true)?;
            setsockopt(&client.as_fd(), sockopt::TcpKeepIdle, &KEEP_ALIVE)?;
            setsockopt(&client.as_fd(), sockopt::TcpKeepInterval, &KEEP_ALIVE)?;
            idle.kept_alive.push([client, server]);
        }
        idle.talk().await?;
        idle.since = Instant::now();
        Ok(idle)
    }

    /// Waits until they were idle for long enough, and uses them again.
    pub(crate) async fn use_again(mut self, lab: &Lab) -> Result<String> {
        sleep_until(self.since + idle_time()).await;
        let probes = kernel(lab.client(), "TcpExt", "TCPKeepAlive").await? - self.probes;
        // Half of those that a kernel sends in time.
        let least = idle_time().as_secs() / u64::from(KEEP_ALIVE);
        ensure!(probes >= least, "only {probes} keep-alive probes");
        let idle = self.since.elapsed().as_secs();
        self.talk().await?;
        Ok(format!("{self}, all in use again after {idle} s and {probes} probes"))
    }

    /// A message each way. Over IPv4 the client begins, over IPv6 the server.
    async fn talk(&mut self) -> Result<()> {
        for (family, [client, server]) in self.websockets.iter_mut().enumerate() {
            let order = if family == 0 { [(0, "client"), (1, "server")] } else { [(1, "server"), (0, "client")] };
            for (from, text) in order {
                let (sender, receiver) =
                    if from == 0 { (&mut *client, &mut *server) } else { (&mut *server, &mut *client) };
                sender.send(Message::text(text)).await?;
                let got = timeout(WAIT, receiver.next()).await;
                let got = got.with_context(|| format!("what the {text} said does not come"))?.context("closed")??;
                ensure!(got == Message::text(text), "{got} instead of {text}");
            }
        }
        for (family, [client, server]) in self.kept_alive.iter_mut().enumerate() {
            let (first, second) = if family == 0 { (client, server) } else { (server, client) };
            byte(first, second).await?;
            byte(second, first).await?;
        }
        Ok(())
    }
}

async fn byte(sender: &mut TcpStream, receiver: &mut TcpStream) -> Result<()> {
    sender.write_all(b"x").await?;
    let mut got = [0];
    timeout(WAIT, receiver.read_exact(&mut got)).await.context("a byte does not come")??;
    Ok(())
}

/// Both ends of a new connection.
async fn connection(lab: &Lab, family: usize, port: u16) -> Result<[TcpStream; 2]> {
    let from = SocketAddr::new(Side::Client.hosts()[family], asymmetric_port(lab, family, 6, port).await?);
    let to = SocketAddr::new(Side::Server.hosts()[family], port);
    let listener = lab.server().run(TcpListener::bind(to)).await??;
    let accept = lab.server().spawn(async move { listener.accept().await });
    let client = lab.client().run(connect(from, to)).await??;
    Ok([client, accept.await??.0])
}

async fn connect(from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(from)?;
    let stream = timeout(WAIT, socket.connect(to)).await.context("it does not connect")??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
