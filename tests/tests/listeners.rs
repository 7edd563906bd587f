//! Who reaches the member port and the HTTP port, and who can lock others out of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use palisade_lab::guard::require_lab;
use palisade_lab::http::Connection;
use palisade_lab::netlink::NextHop;
use palisade_lab::netns::Netns;
use palisade_lab::program::run;
use palisade_lab::{Lab, Side, Spawn, WAIT, addr};
use palisade_tests::{OPEN_POLICY, members};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

/// How long a SYN may go unanswered until nobody answers it: it is sent again after a second.
const SILENCE: Duration = Duration::from_secs(3);

/// What became of a SYN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    SynAck,
    Rst,
    None,
}

async fn syn(from: &Netns, to: SocketAddr) -> Result<Answer> {
    let answer = from.run(timeout(SILENCE, TcpStream::connect(to))).await?;
    Ok(match answer {
        Ok(Ok(_)) => Answer::SynAck,
        Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => Answer::Rst,
        Ok(Err(e)) => return Err(e).with_context(|| format!("a SYN to {to}")),
        Err(_) => Answer::None,
    })
}

/// Waits until a SYN is answered.
async fn reaches(from: &Netns, to: SocketAddr) -> Result<()> {
    let end = Instant::now() + WAIT;
    while syn(from, to).await? != Answer::SynAck {
        ensure!(Instant::now() < end, "{to} is not reached from {}", from.name());
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A route to member `number`'s cluster network by way of its address outside, as an attacker there would set it.
async fn attack_route(lab: &Lab, number: usize) -> Result<()> {
    let outside = lab.client().netlink();
    let ifindex = outside.index(&format!("fw{number}")).await?;
    let via = Side::Client.link(number, 2)[0].0;
    outside.replace_route((addr::fabric(number), 32), None, &[NextHop { via, ifindex }]).await
}

fn ports(number: usize) -> [SocketAddr; 2] {
    [addr::CLUSTER_PORT, addr::HTTP_PORT].map(|port| SocketAddr::new(addr::fabric(number), port))
}

/// Restarts a member with another `http.interfaces` (and `http.listen`).
async fn restart_with_http(lab: &mut Lab, number: usize, listen: &str, interfaces: &str) -> Result<()> {
    let member = lab.member_mut(number);
    member.terminate(WAIT).await?;
    write_http(member, listen, interfaces)?;
    member.start().await
}

fn write_http(member: &palisade_lab::Member, listen: &str, interfaces: &str) -> Result<()> {
    let text = std::fs::read_to_string(member.config())?;
    let mut table = "";
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            table = line;
        }
        match line.split(" = ").next() {
            Some("listen") if table == "[http]" => lines.push(format!("listen = \"{listen}\"")),
            Some("interfaces") if table == "[http]" => lines.push(interfaces.to_owned()),
            _ => lines.push(line.to_owned()),
        }
    }
    Ok(std::fs::write(member.config(), lines.join("\n"))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_answer_on_their_own_interfaces_only() {
    let Some(_turn) = require_lab(&["nft"]) else { return };
    let mut lab = Lab::with_cluster(members(1, BINARY), OPEN_POLICY).await.unwrap();
    let result = strangers(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn strangers(lab: &mut Lab) -> Result<()> {
    // A witness too: it has no gate. Here it also has an interface outside.
    let witness = lab.add_witness().await?;
    lab.member_mut(witness).start().await?;
    lab.member_mut(witness).wait_up(WAIT).await?;
    lab.join(witness).await?;
    let (outside, inner) = (lab.client().netlink(), lab.member(witness).netns().netlink());
    outside.add_veth("fw2", "eth-client", lab.member(witness).netns().file()).await?;
    for (end, name, host) in [(outside, "fw2", 1), (inner, "eth-client", 2)] {
        let (address, prefix) = Side::Client.link(witness, host)[0];
        end.add_address(name, address, prefix).await?;
        end.up(name).await?;
    }
    // The lab's routers ask for readiness by the data interfaces; here nobody does.
    let any = format!("0.0.0.0:{}", addr::HTTP_PORT);
    restart_with_http(lab, 1, &any, "interfaces = [\"eth-fabric\"]").await?;
    lab.member_mut(1).wait_ready(WAIT).await?;

    for number in [1, witness] {
        attack_route(lab, number).await?;
        let own = SocketAddr::new(Side::Client.link(number, 2)[0].0, addr::HTTP_PORT);
        for to in ports(number).into_iter().chain([own]) {
            assert_eq!(syn(lab.client(), to).await?, Answer::None, "from zone outside to {to} of fw{number}");
        }
        if number == 1 {
            second_lock(lab, number).await?;
        }
        for to in ports(number) {
            assert_eq!(syn(lab.fabric(), to).await?, Answer::SynAck, "from the cluster network to {to}");
        }
        // The machine's own programs: HTTP for whoever is logged in; nobody but members needs the member port.
        let [member, http] = ports(number);
        let here = lab.member(number).netns();
        assert_eq!(syn(here, http).await?, Answer::SynAck);
        assert_eq!(syn(here, member).await?, Answer::None);
        assert_eq!(syn(here, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), addr::HTTP_PORT)).await?, Answer::SynAck);
    }
    remade(lab, witness).await
}

/// The gate's table has both ports, each with its interface.
async fn second_lock(lab: &Lab, number: usize) -> Result<()> {
    let chain = ["list", "chain", "inet", "palisade_gate", "listeners"];
    let chain = run(lab.member(number).netns(), lab.dir(), WAIT, "nft", &chain).await?;
    for port in [addr::CLUSTER_PORT, addr::HTTP_PORT] {
        let rules: Vec<&str> = chain.lines().filter(|line| line.contains(&format!("tcp dport {port} "))).collect();
        let [accepts @ .., drop] = &rules[..] else { bail!("port {port}: {chain}") };
        let named = |rule: &&str| rule.ends_with("iif \"lo\" accept") || rule.ends_with("iif \"eth-fabric\" accept");
        assert!(accepts.iter().all(named) && accepts.iter().any(|rule| rule.contains("eth-fabric")), "{chain}");
        assert!(drop.contains(&format!("tcp dport {port} drop")), "{chain}");
    }
    Ok(())
}

/// The cluster interface of a member is removed and made again, as by `netplan apply`: it has another index then.
async fn remade(lab: &mut Lab, number: usize) -> Result<()> {
    let [member, http] = ports(number);
    let mut open = lab.fabric().run(Connection::open(http)).await??;
    assert_eq!(open.get("/healthz").await?.0, 200);
    let port = format!("fw{number}");
    let (fabric, inner) = (lab.fabric().netlink(), lab.member(number).netns().netlink());
    let before = inner.index("eth-fabric").await?;
    fabric.delete(&port).await?;
    fabric.add_veth(&port, "eth-fabric", lab.member(number).netns().file()).await?;
    fabric.enslave(&port, "bridge").await?;
    fabric.up(&port).await?;
    inner.add_address("eth-fabric", addr::fabric(number), 24).await?;
    inner.up("eth-fabric").await?;
    assert_ne!(inner.index("eth-fabric").await?, before);
    reaches(lab.fabric(), member).await?;
    reaches(lab.fabric(), http).await?;
    assert_eq!(syn(lab.client(), member).await?, Answer::None);
    // A connection of before goes on.
    let answer = timeout(WAIT, open.get("/healthz")).await.context("an open connection fell silent")?;
    assert_eq!(answer?.0, 200);
    lab.member_mut(number).wait_ready(WAIT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn port_on_a_loopback_address_has_the_interfaces_that_are_named() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(1, BINARY), OPEN_POLICY).await.unwrap();
    let result = loopback(&mut lab).await;
    lab.or_keep(result).unwrap();
}

async fn loopback(lab: &mut Lab) -> Result<()> {
    let address: IpAddr = Ipv4Addr::new(10, 255, 0, 1).into();
    let to = SocketAddr::new(address, addr::HTTP_PORT);
    lab.member(1).netns().netlink().add_address("lo", address, 32).await?;
    let fabric = lab.fabric().netlink();
    let ifindex = fabric.index("bridge").await?;
    fabric.replace_route((address, 32), None, &[NextHop { via: addr::fabric(1), ifindex }]).await?;
    let outside = lab.client().netlink();
    let ifindex = outside.index("fw1").await?;
    outside.replace_route((address, 32), None, &[NextHop { via: Side::Client.link(1, 2)[0].0, ifindex }]).await?;

    // Not named: the daemon does not start, and says what to do.
    restart_with_http(lab, 1, &to.to_string(), "").await?;
    let end = Instant::now() + WAIT;
    let error = loop {
        match lab.member_mut(1).check() {
            Err(error) => break error.to_string(),
            Ok(()) if Instant::now() > end => bail!("the daemon starts with an address on lo and no interface"),
            Ok(()) => sleep(Duration::from_millis(20)).await,
        }
    };
    assert!(error.contains("loopback") && error.contains("http.interfaces"), "{error}");

    write_http(lab.member(1), &to.to_string(), "")?;
    let text = std::fs::read_to_string(lab.member(1).config())?;
    let named =
        text.replace(&format!("listen = \"{to}\""), &format!("listen = \"{to}\"\ninterfaces = [\"eth-fabric\"]"));
    std::fs::write(lab.member(1).config(), named)?;
    lab.member_mut(1).start().await?;
    reaches(lab.member(1).netns(), to).await?;
    assert_eq!(syn(lab.fabric(), to).await?, Answer::SynAck);
    assert_eq!(syn(lab.client(), to).await?, Answer::None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_do_not_lock_a_router_out() {
    let Some(_turn) = require_lab(&[]) else { return };
    let mut lab = Lab::with_cluster(members(1, BINARY), OPEN_POLICY).await.unwrap();
    let result = silent(&lab).await;
    lab.or_keep(result).unwrap();
}

/// 64 connections that say nothing, each opened again when it is closed; a host that never asked before asks.
async fn silent(lab: &Lab) -> Result<()> {
    let fabric = lab.fabric();
    let to = addr::http(1);
    let asking: IpAddr = Ipv4Addr::new(10, 9, 0, 253).into();
    fabric.netlink().add_address("bridge", asking, 24).await?;
    let mut silent = Vec::new();
    for _ in 0..64 {
        let stream = fabric.run(TcpStream::connect(to)).await??;
        silent.push(fabric.spawn(async move {
            let mut stream = stream;
            loop {
                let mut byte = [0];
                // Closed by the member: again.
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut byte).await;
                match TcpStream::connect(to).await {
                    Ok(next) => stream = next,
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            }
        }));
    }
    let ask = move || async move {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(asking, 0))?;
        Connection::new(socket.connect(to).await?)?.get("/readyz").await
    };
    for n in 0..20 {
        let answer = fabric.run(ask()).await?;
        assert_eq!(answer.with_context(|| format!("request {n} beside 64 silent connections"))?.0, 200);
    }
    silent.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn name_service_that_hangs_stops_nobody_but_its_user() {
    let Some(_turn) = require_lab(&["unshare", "nsenter", "mount", "mkfifo"]) else { return };
    // A daemon in a mount namespace of its own.
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("palisade");
    let script = format!("#!/bin/sh\nexec unshare --mount --propagation private {BINARY} \"$@\"\n");
    std::fs::write(&binary, script).unwrap();
    std::fs::set_permissions(&binary, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut lab = Lab::with_cluster(members(1, &binary.to_string_lossy()), OPEN_POLICY).await.unwrap();
    let result = hanging_name_service(&lab).await;
    lab.or_keep(result).unwrap();
}

/// The file of groups becomes a pipe into which nobody writes: who looks a group up waits for ever. Eight users do, which is more
/// than the daemon has threads for its tasks.
async fn hanging_name_service(lab: &Lab) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let member = lab.member(1);
    let pipe = lab.dir().join("group").display().to_string();
    run(member.netns(), lab.dir(), WAIT, "mkfifo", &[&pipe]).await?;
    let pid = member.pid().context("no daemon")?.to_string();
    let mount = ["-t", &pid, "-m", "mount", "--bind", &pipe, "/etc/group"];
    run(member.netns(), lab.dir(), WAIT, "nsenter", &mount).await?;
    for open in [lab.dir().to_owned(), member.dir().to_owned(), member.socket()] {
        std::fs::set_permissions(open, PermissionsExt::from_mode(0o777))?;
    }
    let mut users = Vec::new();
    for n in 0..8 {
        let spawn = Spawn::new(BINARY, lab.dir().join(format!("user{n}"))).user(65_534, 65_534);
        let socket = member.socket();
        users.push(member.netns().start(spawn.args(["health", "--socket"]).arg(socket)).await?);
    }
    // A second for each to have connected.
    for _ in 0..10 {
        sleep(Duration::from_millis(500)).await;
        assert_eq!(member.http("/readyz").await?.0, 200);
        member.status().await?;
    }
    let waiting = member.metric("palisade_admin_connections", &["user=\"other\""]).await?;
    ensure!(waiting == 8.0, "{waiting} users wait");
    drop(users);
    Ok(())
}
