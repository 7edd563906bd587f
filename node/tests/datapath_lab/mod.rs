//! A small lab: a client, a member and a server in network namespaces of their own.
//!
//! ```text
//!  client c0 10.1.0.2 ── 10.1.0.1 f0 [member] f1 10.2.0.1 ── 10.2.0.2 s0 server        (IPv6: fd00:1::, fd00:2::)
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use palisade_engine::parse::Packet;
use palisade_engine::{Context, Event, Generation, HoldClass, HoldKey, Reason, Verdict, ZoneId};
use palisade_node::clock;
use palisade_node::datapath::{self, Datapath, Interface, Judge, Options, Sinks, StartError, WorkerWake};
use palisade_node::standing::StandingCell;
use pnet::datalink::{self, Channel, DataLinkSender};

/// May this test run here? If not, it says so, or fails where the lab is required.
pub fn possible(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("PALISADE_REQUIRE_LAB").is_none(), "{test} needs root, and PALISADE_REQUIRE_LAB is set");
    eprintln!("SKIPPED: {test} needs root for network namespaces");
    false
}

/// Runs a program and returns what it prints; it must succeed.
pub fn run(line: &str) -> String {
    try_run(line).unwrap_or_else(|e| panic!("{line}: {e}"))
}

pub fn try_run(line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().map_err(|e| e.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Waits until something becomes true.
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let begin = clock::now();
    while !is() {
        assert!(clock::now().since(begin) < Duration::from_secs(5), "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A named network namespace, deleted with this value.
pub struct Ns(pub String);

impl Ns {
    pub fn new(role: &str) -> Ns {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pal{}-{}{role}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run(&format!("ip netns add {name}"));
        let ns = Ns(name);
        ns.ip("link set lo up");
        // Link-local addresses are to be there at once, or the first neighbour discoveries fail.
        ns.exec("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0");
        ns
    }

    /// Runs `ip` in it.
    pub fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.0))
    }

    /// Runs a program in it.
    pub fn exec(&self, line: &str) -> String {
        run(&format!("ip netns exec {} {line}", self.0))
    }

    /// Calls a function in it, on a thread of its own.
    pub fn call<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(f).join().unwrap()
    }

    pub fn spawn<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let name = self.0.clone();
        thread::spawn(move || {
            enter(&name);
            f()
        })
    }
}

/// Moves the calling thread into a namespace.
pub fn enter(name: &str) {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = try_run(&format!("ip netns del {}", self.0));
    }
}

/// The three of them.
pub struct Lab {
    pub client: Ns,
    pub member: Ns,
    pub server: Ns,
}

impl Lab {
    pub fn new() -> Lab {
        let lab = Lab { client: Ns::new("c"), member: Ns::new("m"), server: Ns::new("s") };
        let Lab { client, member, server } = &lab;
        for (end, inner, peer, outer, net) in [(client, "c0", "f0", 1, 1), (server, "s0", "f1", 1, 2)] {
            let member = &member.0;
            end.ip(&format!("link add {inner} type veth peer name {peer} netns {member}"));
            end.ip(&format!("addr add 10.{net}.0.2/24 dev {inner}"));
            end.ip(&format!("addr add fd00:{net}::2/64 dev {inner} nodad"));
            end.ip(&format!("link set {inner} up"));
            run(&format!("ip -n {member} addr add 10.{net}.0.{outer}/24 dev {peer}"));
            run(&format!("ip -n {member} addr add fd00:{net}::{outer}/64 dev {peer} nodad"));
            run(&format!("ip -n {member} link set {peer} up"));
            end.ip(&format!("route add default via 10.{net}.0.{outer}"));
            end.ip(&format!("-6 route add default via fd00:{net}::{outer}"));
        }
        member.exec("sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv4.ip_forward=1");
        lab
    }

    /// Does a datagram from the client reach the server within this time?
    pub fn passes(&self, v6: bool, wait: Duration) -> bool {
        let receiver = self.listen(v6, 7000, wait);
        let address = receiver.local_addr().unwrap();
        self.client.call(move || {
            let socket = UdpSocket::bind(if v6 { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
            let _ = socket.send_to(b"does it pass?", address);
        });
        receiver.recv(&mut [0; 64]).is_ok()
    }

    /// A socket of the server.
    pub fn listen(&self, v6: bool, port: u16, wait: Duration) -> UdpSocket {
        let address = if v6 { format!("[fd00:2::2]:{port}") } else { format!("10.2.0.2:{port}") };
        // A child that another thread has just forked holds the last socket of this port until it executes its program.
        let bind = move || {
            let end = clock::now() + Duration::from_secs(2);
            loop {
                match UdpSocket::bind(&address) {
                    Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && clock::now() < end => {
                        thread::sleep(Duration::from_millis(5));
                    }
                    bound => return bound.unwrap(),
                }
            }
        };
        let socket = self.server.call(bind);
        socket.set_read_timeout(Some(wait)).unwrap();
        socket
    }

    /// Does an address answer to somebody in this namespace? (A closed port does, by a RST.)
    pub fn answers(&self, from: &Ns, to: &str) -> bool {
        let address = SocketAddr::new(to.parse().unwrap(), 9);
        // More than once: on a link that has just come up, neighbour discovery takes its time.
        (0..6).any(|_| {
            let error = from.call(move || TcpStream::connect_timeout(&address, Duration::from_millis(500)).err());
            error.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        })
    }

    /// A raw sender on the client's link.
    pub fn frames(&self) -> Box<dyn DataLinkSender> {
        self.client.call(|| {
            let interface = datalink::interfaces().into_iter().find(|i| i.name == "c0").unwrap();
            match datalink::channel(&interface, datalink::Config::default()).unwrap() {
                Channel::Ethernet(sender, _) => sender,
                _ => panic!("no Ethernet channel"),
            }
        })
    }

    /// The MAC address of an interface.
    pub fn mac(&self, ns: &Ns, interface: &str) -> [u8; 6] {
        let text = ns.ip(&format!("-br link show {interface}"));
        let mac = text.split_whitespace().find(|w| w.matches(':').count() == 5).unwrap();
        let bytes: Vec<u8> = mac.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    pub fn options() -> Options {
        let interface = |name: &str, zone: &str| Interface { name: name.into(), zone: zone.into(), antispoof: true };
        Options { interfaces: vec![interface("f0", "outside"), interface("f1", "inside")], ..Options::default() }
    }

    /// Starts a datapath in the member.
    pub fn start(&self, options: Options, judge: &Arc<Fixed>) -> Result<Running, StartError> {
        let judge = Arc::clone(judge);
        self.member.call(move || Running::start(options, judge))
    }
}

/// Sends for some time over one TCP connection from the client to the server; Gbit/s. The bytes are compared.
pub fn bulk(lab: &Lab, address: &'static str, time: Duration) -> f64 {
    let listener = lab.server.call(move || TcpListener::bind(address).unwrap());
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 20];
        let (mut total, begin) = (0u64, clock::now());
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => break,
                n => {
                    total += n as u64;
                    assert!(buffer[..n].iter().all(|b| *b == 0x5a), "the bytes changed on their way");
                }
            }
        }
        total as f64 * 8.0 / clock::now().since(begin).as_nanos() as f64
    });
    lab.client.call(move || {
        let mut stream =
            TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(2)).expect("a connection");
        let (data, begin) = (vec![0x5a; 1 << 18], clock::now());
        while clock::now().since(begin) < time {
            stream.write_all(&data).unwrap();
        }
    });
    receiver.join().unwrap()
}

/// A datapath and what keeps it going.
pub struct Running {
    pub datapath: Datapath,
    pub wake: WorkerWake,
    /// Kept, so that the queues stay open.
    _receivers:
        (tokio::sync::mpsc::Receiver<palisade_engine::Hint>, tokio::sync::mpsc::Receiver<palisade_engine::Proposal>),
}

impl Running {
    pub fn start(options: Options, judge: Arc<Fixed>) -> Result<Running, StartError> {
        let standing = Arc::new(StandingCell::new(Duration::from_secs(3600)));
        standing.prove(clock::now());
        let (hints, hints_received) = tokio::sync::mpsc::channel(16);
        let (proposals, proposals_received) = tokio::sync::mpsc::channel(16);
        let wake = WorkerWake::new(options.workers).unwrap();
        let sinks = Sinks { hints, proposals };
        let datapath = datapath::start_with(options, judge, standing, wake.clone(), sinks)?;
        Ok(Running { datapath, wake, _receivers: (hints_received, proposals_received) })
    }
}

/// A judge that says the same to everything.
#[derive(Default)]
pub struct Fixed(AtomicU8);

pub const KEY: HoldKey = HoldKey(42);

impl Fixed {
    pub fn forward() -> Arc<Fixed> {
        Arc::default()
    }

    /// 0 forward, 1 drop, 2 hold, 3 reject, 4 forward if there is a route to a known zone, 5 panic.
    pub fn say(&self, what: u8) {
        self.0.store(what, Ordering::SeqCst);
    }
}

impl Judge for Fixed {
    fn judge(&self, packet: &Packet, context: &mut Context<'_>, _: &mut Vec<Event>) -> Verdict {
        match self.0.load(Ordering::Relaxed) {
            0 => Verdict::Forward,
            1 => Verdict::Drop(Reason::Policy),
            2 => Verdict::Hold(KEY, HoldClass::Matched),
            3 => Verdict::Reject(Reason::PolicyReject),
            5 => panic!("a judge that fails, as this test wants it"),
            _ => match context.routes.zone(packet.tuple.dst) {
                // f0 is zone 1, f1 zone 2: the two ends must lie on different sides.
                Some(zone) if zone != ZoneId::UNKNOWN && zone != context.ingress => Verdict::Forward,
                Some(_) => Verdict::Drop(Reason::WrongZone),
                None => Verdict::Drop(Reason::NoRoute),
            },
        }
    }

    fn generation(&self) -> Generation {
        Generation(1)
    }

    fn zone(&self, name: &str) -> ZoneId {
        match name {
            "outside" => ZoneId(1),
            "inside" => ZoneId(2),
            _ => ZoneId::UNKNOWN,
        }
    }
}
