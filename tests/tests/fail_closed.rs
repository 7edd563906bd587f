//! A member without its daemon forwards nothing, and is still a machine that answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use palisade_lab::frames::{self, Wire};
use palisade_lab::guard::require_lab;
use palisade_lab::netlink::NextHop;
use palisade_lab::packets::{IPV4, VLAN, ethernet, tagged, udp_packet};
use palisade_lab::{Lab, Netns, Side, WAIT, wait_until};
use palisade_tests::ends::{Ends, arrived, pass};
use palisade_tests::{OPEN_POLICY, members};
use pnet::datalink::MacAddr;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

const UDP_PORT: u16 = 7100;

async fn one_member() -> Lab {
    Lab::with_cluster(members(1, BINARY), OPEN_POLICY).await.unwrap()
}

/// The machine itself answers: its kernel refuses a connection to a port where nobody listens.
async fn box_answers(lab: &Lab) -> Result<()> {
    let to = SocketAddr::new(Side::Client.link(1, 2)[0].0, 9);
    let e = lab.client().run(timeout(WAIT, TcpStream::connect(to))).await??.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ConnectionRefused);
    Ok(())
}

/// Nothing in transit passes, neither new nor established.
async fn nothing_passes(lab: &Lab, ends: &mut Ends) -> Result<()> {
    arrived(&ends.server).await;
    ends.client.send(b"transit").await?;
    assert_eq!(arrived(&ends.server).await, Vec::<String>::new());
    assert!(!ends.echo(Duration::from_secs(1)).await, "an established connection passes");
    let to = SocketAddr::new(Side::Server.v4(), 7000);
    let new = lab.client().run(timeout(Duration::from_secs(2), TcpStream::connect(to))).await?;
    assert!(!matches!(new, Ok(Ok(_))), "a new connection passes");
    box_answers(lab).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_daemon_leaves_a_machine_that_forwards_nothing() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = one_member().await;
    let result = killed(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn killed(lab: &mut Lab) -> Result<()> {
    let mut ends = Ends::open(lab, UDP_PORT).await?;
    ends.assure().await?;
    assert!(ends.echo(WAIT).await);
    lab.member_mut(1).kill().await?;
    nothing_passes(lab, &mut ends).await?;
    lab.member_mut(1).start().await?;
    lab.member_mut(1).wait_ready(WAIT).await?;
    // The byte that was stuck, and those after it, on the very same connection.
    assert!(ends.echo(WAIT).await, "traffic does not resume");
    arrived(&ends.server).await;
    ends.assure().await
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_daemon_forwards_nothing_and_later_nothing_stale() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = one_member().await;
    let result = stopped(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn stopped(lab: &mut Lab) -> Result<()> {
    let mut ends = Ends::open(lab, UDP_PORT).await?;
    ends.assure().await?;
    assert!(ends.echo(WAIT).await);
    lab.member_mut(1).signal(Signal::SIGSTOP)?;
    nothing_passes(lab, &mut ends).await?;
    for number in 0..50 {
        ends.client.send(format!("stale {number}").as_bytes()).await?;
    }
    sleep(Duration::from_secs(2)).await;
    lab.member_mut(1).signal(Signal::SIGCONT)?;
    lab.member_mut(1).wait_ready(WAIT).await?;
    assert_eq!(arrived(&ends.server).await, Vec::<String>::new(), "stale packets were sent");
    pass(&ends.client, &ends.server, b"fresh").await?;
    assert!(arrived(&ends.server).await.iter().all(|text| text == "fresh"), "stale packets were sent");
    assert!(ends.echo(WAIT).await, "traffic does not resume");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_for_others_or_on_unknown_interfaces_are_not_forwarded() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = one_member().await;
    let result = async {
        foreign_frames(&lab).await?;
        late_interface(&lab).await
    };
    let result = result.await;
    lab.or_keep(result).unwrap();
}

async fn foreign_frames(lab: &Lab) -> Result<()> {
    let ends = Ends::open(lab, UDP_PORT).await?;
    let mut wire = Wire::open(lab.client(), "fw1").await?;
    let member = frames::mac(lab.member(1).netns(), Side::Client.interface()).await?;
    let from = wire.mac();
    let mut sport = 5000;
    let mut packet = |what: &str| {
        sport += 1;
        let to = SocketAddrV4::new(Ipv4Addr::new(10, 20, 0, 1), UDP_PORT);
        udp_packet(SocketAddrV4::new(Ipv4Addr::new(10, 10, 0, 1), sport), to, what.as_bytes())
    };
    // So that the rest of the test can fail: the same, addressed as it should be, passes.
    wait_until("a frame that is addressed as it should be to pass", async || {
        wire.send(&ethernet(member, from, IPV4, &packet("right")))?;
        Ok(arrived(&ends.server).await == ["right"])
    })
    .await?;
    let multicast = MacAddr::new(0x01, 0x00, 0x5e, 0, 0, 1);
    for (what, to) in [
        ("foreign", MacAddr::new(0x02, 0, 0, 0xaa, 0xbb, 0xcc)),
        ("broadcast", MacAddr::broadcast()),
        ("multicast", multicast),
    ] {
        wire.send(&ethernet(to, from, IPV4, &packet(what)))?;
    }
    wire.send(&ethernet(member, from, VLAN, &tagged(7, IPV4, &packet("VLAN 7"))))?;
    wire.send(&ethernet(member, from, VLAN, &tagged(0, IPV4, &packet("priority"))))?;
    let arrived = arrived(&ends.server).await;
    assert!(arrived.iter().all(|a| a == "priority"), "{arrived:?} were forwarded");
    Ok(())
}

/// An interface that appears while the daemon runs, and is none of its own: what comes in there goes nowhere.
async fn late_interface(lab: &Lab) -> Result<()> {
    // The port of the other test's socket is still taken.
    let server = lab.server().run(UdpSocket::bind(SocketAddr::new(Side::Server.v4(), UDP_PORT + 1))).await??;
    let late = Netns::new("late").await?;
    let member = lab.member(1).netns();
    late.netlink().add_veth("late", "eth-late", member.file()).await?;
    let (here, there) = (IpAddr::from([10, 3, 0, 1]), IpAddr::from([10, 3, 0, 2]));
    late.netlink().add_address("late", here, 30).await?;
    member.netlink().add_address("eth-late", there, 30).await?;
    late.netlink().up("late").await?;
    member.netlink().up("eth-late").await?;
    member.sysctl("net/ipv4/conf/eth-late/forwarding", "1").await?;
    let ifindex = late.netlink().index("late").await?;
    late.netlink().replace_route((Side::Server.networks()[0].0, 24), None, &[NextHop { via: there, ifindex }]).await?;
    // The machine itself is reached by it: the link works.
    let refused = late.run(timeout(WAIT, TcpStream::connect((there, 9)))).await??.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let socket = late.run(UdpSocket::bind(SocketAddr::new(here, 0))).await??;
    for _ in 0..3 {
        socket.send_to(b"late", SocketAddr::new(Side::Server.v4(), UDP_PORT + 1)).await?;
    }
    assert_eq!(arrived(&server).await, Vec::<String>::new(), "forwarded past the gate");
    Ok(())
}

/// Runs `ip` on a member's machine.
async fn ip(lab: &Lab, arguments: &str) -> Result<()> {
    let mut command = tokio::process::Command::new("ip");
    command.args(arguments.split(' '));
    let output = lab.member(1).netns().run(async move { command.output().await }).await??;
    anyhow::ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// It votes and leads, is not ready and says why, and forwards when the interface appears.
#[tokio::test(flavor = "multi_thread")]
async fn missing_interface_ends_nothing() {
    let Some(_turn) = require_lab(&["ip"]) else { return };
    let mut lab = one_member().await;
    let result = missing(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn missing(lab: &mut Lab) -> Result<()> {
    let name = Side::Server.interface();
    lab.member_mut(1).terminate(WAIT).await?;
    ip(lab, &format!("link set {name} down")).await?;
    ip(lab, &format!("link set {name} name later")).await?;
    lab.member_mut(1).start().await?;
    lab.member_mut(1).wait_up(WAIT).await?;
    for (change, reason) in [
        (None, format!("the interface {name} is missing")),
        (Some(format!("link set later name {name}")), format!("the interface {name} is down")),
    ] {
        if let Some(change) = change {
            ip(lab, &change).await?;
        }
        wait_until(&reason, async || {
            lab.member_mut(1).check()?;
            let (status, body) = lab.member(1).http("/readyz").await?;
            Ok(status == 503 && body.contains(&reason))
        })
        .await?;
        assert_eq!(lab.leader().await?, 1, "it votes and leads");
        assert_eq!(lab.member(1).metric("palisade_interface_up", &[&format!("interface=\"{name}\"")]).await?, 0.0);
    }
    ip(lab, &format!("link set {name} up")).await?;
    lab.member_mut(1).wait_ready(WAIT).await
}

/// Tasks and threads of the daemon, of each kind: its own, of the member, of its replication, of its datapath, of its log, of its
/// ports.
const MORTAL: [&str; 14] = [
    "http",
    "readiness",
    "proposals",
    "hints",
    "peer stream",
    "lease",
    "tick",
    "resets",
    "connection-log",
    "packets-0",
    "exits",
    "watch",
    "http-interfaces",
    "cluster-interfaces",
];

#[tokio::test(flavor = "multi_thread")]
async fn task_or_thread_that_dies_ends_the_daemon_with_its_name() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(2, BINARY), OPEN_POLICY).await.unwrap();
    let result = deaths(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn deaths(lab: &mut Lab) -> Result<()> {
    let mut unseen = Vec::new();
    for name in MORTAL {
        let member = lab.member_mut(2);
        member.terminate(WAIT).await?;
        member.write_config(&format!("\n[lab]\npanic = \"{name}\"\n"))?;
        member.start().await?;
        let mut why = None;
        let end = wait_until("the daemon to end", async || {
            why = member.check().err();
            Ok(why.is_some())
        });
        if end.await.is_err() {
            unseen.push(format!("{name}: the daemon goes on"));
            continue;
        }
        let why = why.map(|why| why.to_string()).unwrap_or_default();
        // What died, or the task that cannot go on without it.
        let named = match name {
            "peer stream" => ["`hints`", "`progress`"],
            "http-interfaces" => ["`http`"; 2],
            "cluster-interfaces" => ["`member port`"; 2],
            name => [name; 2],
        };
        let says =
            |line: &str| named.iter().any(|n| line.contains(n)) && (line.contains("ended") || line.contains(" died"));
        if !why.lines().any(says) {
            unseen.push(format!("{name}: {why}"));
        }
        member.write_config("")?;
        member.start().await?;
        member.wait_ready(WAIT).await?;
    }
    assert!(unseen.is_empty(), "{}", unseen.join("\n"));
    Ok(())
}
