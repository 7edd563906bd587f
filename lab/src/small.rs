//! A client, one router and a server, for tests of a datapath in this process. Everything here blocks, and panics where the
//! network cannot be made: a test without its network has failed.
//!
//! ```text
//!  client c0 10.1.0.2 ── 10.1.0.1 f0 [member] f1 10.2.0.1 ── 10.2.0.2 s0 server        (IPv6: fd00:1::, fd00:2::)
//! ```

use std::fmt::Display;
use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::clock;
use crate::frames::{self, Wire};
use crate::lab::no_address_detection;
use crate::netlink::NextHop;
use crate::netns::Netns;
use crate::wait::WAIT;

/// After this a datagram that has not arrived is sent again, where it may take longer.
const SEND_AGAIN: Duration = Duration::from_millis(500);

/// How long a test waits for a datagram to pass, sent again and again: longer than anything takes on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(60);

/// Waits until something becomes true.
///
/// # Panics
/// It does not within [`WAIT`].
#[track_caller]
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let begin = clock::now();
    while !is() {
        assert!(clock::now().since(begin) < WAIT, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a line as a program of the calling thread's namespace and returns what it prints.
///
/// # Errors
/// What it said on standard error, if it fails.
pub fn try_run(line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap_or_default()).args(words).output().map_err(|e| e.to_string())?;
    let said = if output.status.success() { &output.stdout } else { &output.stderr };
    let said = String::from_utf8_lossy(said).into_owned();
    if output.status.success() { Ok(said) } else { Err(said) }
}

/// As [`try_run`], for a program that must succeed.
///
/// # Panics
/// It fails.
#[track_caller]
pub fn run(line: &str) -> String {
    must(line, try_run(line))
}

#[track_caller]
#[allow(clippy::panic, reason = "a test whose network cannot be made has failed")]
fn must<T, E: Display>(what: &str, result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| panic!("{what}: {e:#}"))
}

/// A namespace, for callers without a runtime.
#[derive(Clone, Debug)]
pub struct BlockingNetns(Netns);

impl BlockingNetns {
    /// Makes a namespace in which IPv6 addresses are usable at once.
    #[must_use]
    pub fn new(name: &str) -> BlockingNetns {
        let made = async {
            let netns = Netns::new(name).await?;
            no_address_detection(&netns).await?;
            anyhow::Ok(netns)
        };
        BlockingNetns(wait(name, made))
    }

    /// A path that `ip link set … netns` and `nsenter --net=` understand.
    #[must_use]
    pub fn path(&self) -> String {
        self.0.path()
    }

    /// Runs a line as a program inside and returns what it prints.
    ///
    /// # Errors
    /// What it said on standard error, if it fails.
    pub fn try_exec(&self, line: &str) -> Result<String, String> {
        let line = line.to_owned();
        self.call(move || try_run(&line))
    }

    /// As [`BlockingNetns::try_exec`], for a program that must succeed.
    #[track_caller]
    pub fn exec(&self, line: &str) -> String {
        must(line, self.try_exec(line))
    }

    /// Runs `ip` inside.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        self.exec(&format!("ip {arguments}"))
    }

    /// Calls a function inside, on a thread of its own; its panic is the caller's.
    pub fn call<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(f).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a function inside, on a thread of its own.
    pub fn spawn<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let netns = self.0.clone();
        thread::spawn(move || {
            must("entering the namespace", setns(netns.file(), CloneFlags::CLONE_NEWNET));
            f()
        })
    }

    /// Opens an interface for frames.
    #[must_use]
    pub fn wire(&self, interface: &str) -> Wire {
        wait(interface, Wire::open(&self.0, interface))
    }

    /// The MAC address of an interface.
    #[must_use]
    pub fn mac(&self, interface: &str) -> [u8; 6] {
        wait(interface, frames::mac(&self.0, interface)).octets()
    }
}

#[track_caller]
fn wait<T>(what: &str, task: impl Future<Output = anyhow::Result<T>>) -> T {
    must(what, futures::executor::block_on(task))
}

/// The three of them.
#[derive(Debug)]
pub struct SmallLab {
    /// Host in zone `outside`.
    pub client: BlockingNetns,
    /// The router between them.
    pub member: BlockingNetns,
    /// Host in zone `inside`.
    pub server: BlockingNetns,
}

impl SmallLab {
    /// Makes the network; the kernel of the middle forwards.
    #[must_use]
    pub fn new() -> SmallLab {
        let [client, member, server] = ["client", "member", "server"].map(BlockingNetns::new);
        let lab = SmallLab { client, member, server };
        for (host, inner, outer, net) in [(&lab.client, "c0", "f0", 1), (&lab.server, "s0", "f1", 2)] {
            wait("the small lab", link(&host.0, inner, &lab.member.0, outer, net));
        }
        lab.member.exec("sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv4.ip_forward=1");
        lab
    }

    /// Whether a datagram from the client reaches the server within this time. It is sent again from time to time: a datapath
    /// that was late drops what has become too old.
    #[must_use]
    pub fn passes(&self, v6: bool, limit: Duration) -> bool {
        let receiver = self.listen(v6, 7000, limit.min(SEND_AGAIN));
        let address = must("the server's address", receiver.local_addr());
        let bind = move || must("a UDP socket", UdpSocket::bind(if v6 { "[::]:0" } else { "0.0.0.0:0" }));
        let sender = self.client.call(bind);
        let end = clock::now() + limit;
        loop {
            // May be refused on the way: that is an answer, too.
            let _ = sender.send_to(b"does it pass?", address);
            if receiver.recv(&mut [0; 64]).is_ok() {
                return true;
            }
            if clock::now() >= end {
                return false;
            }
        }
    }

    /// A UDP socket of the server, with a read timeout.
    #[must_use]
    pub fn listen(&self, v6: bool, port: u16, limit: Duration) -> UdpSocket {
        let address = addresses(2, 2)[usize::from(v6)].0;
        // A child that another thread has just forked holds the last socket of this port until it executes its program.
        let bind = move || {
            let end = clock::now() + WAIT;
            loop {
                match UdpSocket::bind((address, port)) {
                    Err(e) if e.kind() == ErrorKind::AddrInUse && clock::now() < end => {
                        thread::sleep(Duration::from_millis(5));
                    }
                    bound => return must("a UDP port of the server", bound),
                }
            }
        };
        let socket = self.server.call(bind);
        must("a read timeout", socket.set_read_timeout(Some(limit)));
        socket
    }

    /// Whether an address answers to this namespace. (A closed port does, with a RST.)
    #[must_use]
    pub fn answers(&self, from: &BlockingNetns, to: &str) -> bool {
        let address = SocketAddr::new(must(to, to.parse()), 9);
        // More than once: on a link that has just come up, neighbour discovery takes its time.
        (0..60).any(|_| {
            let error = from.call(move || TcpStream::connect_timeout(&address, Duration::from_millis(500)).err());
            error.is_some_and(|e| e.kind() == ErrorKind::ConnectionRefused)
        })
    }

    /// Sends over one TCP connection from the client to the server for some time, compares the bytes, and returns Gbit/s.
    #[must_use]
    pub fn bulk(&self, address: &str, time: Duration) -> f64 {
        let address: SocketAddr = must(address, address.parse());
        let listener = self.server.call(move || must("a listener", TcpListener::bind(address)));
        let receiver = thread::spawn(move || {
            let (mut stream, _) = must("accept", listener.accept());
            let mut buffer = vec![0; 1 << 20];
            let (mut total, begin) = (0u64, clock::now());
            loop {
                match must("receiving", stream.read(&mut buffer)) {
                    0 => break,
                    n => {
                        total += n as u64;
                        assert!(buffer[..n].iter().all(|b| *b == 0x5a), "the bytes changed on their way");
                    }
                }
            }
            total as f64 * 8.0 / clock::now().since(begin).as_nanos() as f64
        });
        self.client.call(move || {
            let stream = TcpStream::connect_timeout(&address, WAIT);
            let mut stream = must("a connection", stream);
            let (data, begin) = (vec![0x5a; 1 << 18], clock::now());
            while clock::now().since(begin) < time {
                must("sending", stream.write_all(&data));
            }
        });
        receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Default for SmallLab {
    fn default() -> SmallLab {
        SmallLab::new()
    }
}

/// The addresses of a host (2) or the member (1) in a network, and their prefix lengths.
fn addresses(network: u8, host: u8) -> [(IpAddr, u8); 2] {
    let v6 = Ipv6Addr::new(0xfd00, network.into(), 0, 0, 0, 0, 0, host.into());
    [(Ipv4Addr::new(10, network, 0, host).into(), 24), (v6.into(), 64)]
}

/// A link between a host (.2) and the member (.1), and the host's default routes.
async fn link(host: &Netns, inner: &str, member: &Netns, outer: &str, network: u8) -> anyhow::Result<()> {
    host.netlink().add_veth(inner, outer, member.file()).await?;
    for (netns, interface, n) in [(host, inner, 2), (member, outer, 1)] {
        for (address, prefix) in addresses(network, n) {
            netns.netlink().add_address(interface, address, prefix).await?;
        }
        netns.netlink().up(interface).await?;
    }
    let ifindex = host.netlink().index(inner).await?;
    let everything = [(Ipv4Addr::UNSPECIFIED.into(), 0), (Ipv6Addr::UNSPECIFIED.into(), 0)];
    for (everywhere, (via, _)) in everything.into_iter().zip(addresses(network, 1)) {
        host.netlink().replace_route(everywhere, None, &[NextHop { via, ifindex }]).await?;
    }
    Ok(())
}
