//! Nobody but the daemon has a queue of the device for re-injection, and nobody keeps it from starting.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test; the lab that it shares has more than it uses"
)]

mod datapath_member;

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use datapath_member::{Fixed, PROGRAMS, start, two_interfaces};
use palisade_engine::parse::build;
use palisade_engine::{Protocol, Tuple};
use palisade_lab::guard::can_run;
use palisade_lab::small::{BlockingNetns, SOON, SmallLab};
use palisade_node::datapath::Options;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

/// Where a child finds its `/dev/net/tun`, which anybody may open on most distributions.
const CONTROL: &str = "PALISADE_LAB_TUN";
/// What a child does.
const TASK: &str = "PALISADE_LAB_STRANGER";

/// Attaches a fresh descriptor to a queue of a TUN device.
#[allow(unsafe_code, reason = "no crate here has this ioctl")]
fn attach(device: &str) -> io::Result<OwnedFd> {
    let control = std::env::var(CONTROL).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(control)?;
    // SAFETY: `ifreq` is plain integers and bytes, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE) as libc::c_short;
    // SAFETY: the request reads and writes one `ifreq`.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done == 0 { Ok(file.into()) } else { Err(io::Error::last_os_error()) }
}

/// The name of the interface in a notification.
fn name_of(message: &[u8]) -> Option<String> {
    let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    if kind != libc::RTM_NEWLINK {
        return None;
    }
    let mut attributes = message.get(32..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let attribute = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        if attribute == libc::IFLA_IFNAME {
            return Some(String::from_utf8_lossy(attributes.get(4..length)?).trim_end_matches('\0').to_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// A packet that nobody judged, as the device takes it.
fn spoofed() -> Vec<u8> {
    let tuple = Tuple {
        src: Ipv4Addr::new(10, 1, 0, 99).into(),
        dst: Ipv4Addr::new(10, 2, 0, 2).into(),
        src_port: 5000,
        dst_port: 7000,
        protocol: Protocol::UDP,
    };
    [vec![0; 10], build::udp(&tuple, b"past the gate").unwrap()].concat()
}

/// Not a test of its own: another process of the machine. It says what it did, one line each, until its standard input ends.
#[test]
fn child_stranger() {
    let Ok(task) = std::env::var(TASK) else { return };
    println!();
    let ends = |held: Vec<OwnedFd>| {
        let _ = io::stdin().read(&mut [0]);
        drop(held);
    };
    match task.as_str() {
        "attach" => {
            let queue = match attach("palisade0") {
                Ok(queue) => queue,
                Err(error) => return println!("> refused {error}"),
            };
            println!("> attached");
            for _ in 0..20 {
                let _ = nix::unistd::write(&queue, &spoofed());
                std::thread::sleep(Duration::from_millis(10));
            }
            ends(vec![queue]);
        }
        "race" => {
            let mut news = Socket::new(NETLINK_ROUTE).unwrap();
            news.bind(&SocketAddr::new(0, 1)).unwrap();
            let timeout = nix::sys::time::TimeVal::new(0, 1000);
            nix::sys::socket::setsockopt(&news.as_fd(), nix::sys::socket::sockopt::ReceiveTimeout, &timeout).unwrap();
            println!("> ready");
            nix::fcntl::fcntl(io::stdin(), nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
            let (mut held, mut tried, mut buffer) = (Vec::new(), 0, vec![0; 1 << 16]);
            while !matches!(io::stdin().read(&mut [0]), Ok(0)) {
                let Ok(length) =
                    nix::sys::socket::recv(news.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::empty())
                else {
                    continue;
                };
                if let Some(name) = name_of(&buffer[..length]).filter(|name| name.starts_with("pal")) {
                    tried += 1;
                    held.extend(attach(&name));
                }
            }
            println!("> tried {tried} attached {}", held.len());
        }
        _ => unreachable!("{task}"),
    }
}

/// Another process of the member.
struct Stranger {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Stranger {
    /// Starts it, as root or as nobody without any capability.
    fn start(member: &BlockingNetns, control: &std::path::Path, task: &str, root: bool) -> Stranger {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new("setpriv");
        if !root {
            command.args("--reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all".split(' '));
        }
        command.arg("--no-new-privs").arg(program).args(["--exact", "child_stranger", "--nocapture"]);
        command.env(TASK, task).env(CONTROL, control).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = member.call(move || command.spawn().unwrap());
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Stranger { child, input, output }
    }

    /// What it says next.
    fn says(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "it ended without a word");
            if let Some(said) = line.strip_prefix("> ") {
                return said.trim().to_owned();
            }
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `/dev/net/tun` that anybody may open.
fn public_control(folder: &std::path::Path) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("tun");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(&path, nix::sys::stat::SFlag::S_IFCHR, mode, nix::sys::stat::makedev(10, 200)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Whether root's TUN devices, and nodes for them, are to be had here.
fn possible(test: &str) -> bool {
    if !can_run(test, &[PROGRAMS, &["setpriv"]].concat()) {
        return false;
    }
    let folder = tempfile::tempdir().unwrap();
    let node = folder.path().join("tun");
    let device = nix::sys::stat::makedev(10, 200);
    let made = nix::sys::stat::mknod(&node, nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::S_IRWXU, device);
    let open = made.is_ok() && OpenOptions::new().write(true).read(true).open(node).is_ok();
    if !open {
        eprintln!("SKIPPED: {test}: no /dev/net/tun to be made here");
    }
    open
}

/// What `ip` says of the device.
fn details(lab: &SmallLab) -> String {
    lab.member.ip("-d link show palisade0")
}

#[test]
fn tun_device_takes_no_queue_of_a_process_without_capabilities() {
    if !possible("tun_device_takes_no_queue") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let control = public_control(folder.path());
    let lab = SmallLab::new();
    let judge = Fixed::forward();
    let running = start(&lab, Options { workers: 2, ..two_interfaces() }, &judge).unwrap();
    assert!(lab.passes(false, SOON));
    judge.say(1);
    let wire = lab.listen(false, 7000, Duration::from_secs(1));
    let mut stranger = Stranger::start(&lab.member, &control, "attach", false);
    let said = stranger.says();
    assert!(wire.recv(&mut [0; 64]).is_err(), "a packet that nobody judged is on the wire; the stranger: {said}");
    assert!(said.starts_with("refused") && said.contains("ot permitted"), "{said}");
    assert!(details(&lab).contains("numqueues 2 "), "{}", details(&lab));
    assert!(details(&lab).contains("user root"), "{}", details(&lab));
    running.datapath.stop();
}

#[test]
fn tun_device_has_no_foreign_queue_however_fast_a_stranger_is() {
    if !possible("tun_device_has_no_foreign_queue") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let control = public_control(folder.path());
    let lab = SmallLab::new();
    let mut stranger = Stranger::start(&lab.member, &control, "race", false);
    assert_eq!(stranger.says(), "ready");
    for round in 0..40 {
        let options = Options { workers: 2, ..two_interfaces() };
        let running = start(&lab, options, &Fixed::forward()).unwrap_or_else(|e| panic!("round {round}: {e:?}"));
        let details = details(&lab);
        assert!(details.contains("numqueues 2 ") && details.contains("numdisabled 0"), "round {round}: {details}");
        assert!(details.contains("persist off") && details.contains("user root"), "round {round}: {details}");
        running.datapath.stop();
    }
    drop(stranger.input.take());
    let said = stranger.says();
    println!("the stranger: {said}");
    assert!(!said.starts_with("tried 0 "), "it did not take part");
}

#[test]
fn queue_that_a_stranger_holds_does_not_block_the_start() {
    if !possible("queue_that_a_stranger_holds") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let control = public_control(folder.path());
    let lab = SmallLab::new();
    // A device that somebody else made, without an owner, and a stranger who attached to it.
    let mut maker = Stranger::start(&lab.member, &control, "attach", true);
    assert_eq!(maker.says(), "attached");
    let mut stranger = Stranger::start(&lab.member, &control, "attach", false);
    assert_eq!(stranger.says(), "attached");
    drop(maker);
    assert!(details(&lab).contains("numqueues 1 "), "{}", details(&lab));
    let running = start(&lab, two_interfaces(), &Fixed::forward()).unwrap_or_else(|e| panic!("it is blocked: {e:?}"));
    assert!(lab.passes(false, SOON));
    assert!(details(&lab).contains("numqueues 1 ") && details(&lab).contains("user root"), "{}", details(&lab));
    running.datapath.stop();
    drop(stranger);
}
