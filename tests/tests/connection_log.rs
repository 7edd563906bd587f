//! The connection log: what `log` in a rule writes, by exactly one of three members, to each output.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use palisade_lab::guard::require_lab;
use palisade_lab::{Lab, Side, addr, wait_until};
use palisade_tests::members;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");

const POLICY: &str = "\
# The comments of an applied policy are kept.
zone outside, inside

default drop log
accept \"echo\"   from outside to inside: any -> any tcp/7007 log   # and its columns
accept \"quiet\"  from outside to inside: any -> any tcp/7008
accept \"dns\"    from outside to inside: any -> any udp/7053 log
reject \"telnet\" from outside to inside: any -> any tcp/23, udp/23 log
";

const SYSLOG_PORT: u16 = 5514;

fn log_file(lab: &Lab, number: usize) -> std::path::PathBuf {
    lab.member(number).dir().join("connections")
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_log_has_each_event_once_at_every_output() {
    let Some(_turn) = require_lab(&[]) else { return };
    let extra = |member: &palisade_lab::Member| {
        let file = member.dir().join("connections");
        let syslog = SocketAddr::new(addr::fabric(254), SYSLOG_PORT);
        format!("\n[log]\nfile = {file:?}\nsyslog = \"{syslog}\"\n")
    };
    let mut lab = Lab::with_config(members(3, BINARY), POLICY, extra).await.unwrap();
    let result = each_event(&lab).await;
    lab.or_keep(result).unwrap();
}

/// The events in all members' files, in any order.
fn events(lab: &Lab) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for number in 1..=3 {
        let text = std::fs::read_to_string(log_file(lab, number)).unwrap_or_default();
        for line in text.lines() {
            let event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            ensure!(event["member"] == format!("fw{number}"), "{event}");
            all.push(event);
        }
    }
    Ok(all)
}

fn of<'a>(events: &'a [Value], rule: &str, event: &str) -> Vec<&'a Value> {
    events.iter().filter(|e| e["rule"] == rule && e["event"] == event).collect()
}

/// Connections that are answered with what they send.
async fn serve(lab: &Lab) -> Result<()> {
    for port in [7007, 7008] {
        let to = SocketAddr::new(Side::Server.v4(), port);
        let listener = lab.server().run(TcpListener::bind(to)).await??;
        lab.server().spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut block = [0; 1000];
                    while let Ok(length @ 1..) = stream.read(&mut block).await {
                        if stream.write_all(&block[..length]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
    }
    let socket = lab.server().run(UdpSocket::bind(SocketAddr::new(Side::Server.v4(), 7053))).await??;
    lab.server().spawn(async move {
        let mut datagram = [0; 100];
        while let Ok((length, from)) = socket.recv_from(&mut datagram).await {
            let _ = socket.send_to(&datagram[..length], from).await;
        }
    });
    Ok(())
}

/// Sends a block, and waits for it to come back.
async fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[7; 1000]).await?;
    timeout(palisade_lab::WAIT, stream.read_exact(&mut [0; 1000])).await??;
    Ok(())
}

async fn connect(lab: &Lab, port: u16) -> Result<std::io::Result<TcpStream>> {
    let (from, to) = (SocketAddr::new(Side::Client.v4(), 0), SocketAddr::new(Side::Server.v4(), port));
    let connect = async move {
        let socket = TcpSocket::new_v4()?;
        socket.bind(from)?;
        socket.connect(to).await
    };
    lab.client().run(connect).await
}

async fn echo(lab: &Lab, port: u16) -> Result<u16> {
    let mut stream = connect(lab, port).await??;
    exchange(&mut stream).await?;
    Ok(stream.local_addr()?.port())
}

/// Sends a datagram; the answer, or the error that came.
async fn ask(lab: &Lab, port: u16) -> Result<std::io::Result<usize>> {
    let (from, to) = (SocketAddr::new(Side::Client.v4(), 0), SocketAddr::new(Side::Server.v4(), port));
    let ask = async move {
        let socket = UdpSocket::bind(from).await?;
        socket.connect(to).await?;
        socket.send(b"query").await?;
        timeout(Duration::from_secs(5), socket.recv(&mut [0; 100])).await?
    };
    lab.client().run(ask).await
}

async fn each_event(lab: &Lab) -> Result<()> {
    let collector = SocketAddr::new(addr::fabric(254), SYSLOG_PORT);
    let collector = lab.fabric().run(UdpSocket::bind(collector)).await??;
    serve(lab).await?;
    // Where no member sees the connection's events first, they come from all three.
    let follower = lab.member(2).netns().clone();
    let follow = {
        let (binary, socket) = (BINARY, lab.member(2).socket());
        let mut command = tokio::process::Command::new(binary);
        command.args(["log", "-n", "6", "-o", "json", "--socket"]).arg(socket).kill_on_drop(true);
        command.stdout(std::process::Stdio::piped());
        follower.run(async move { command.spawn() }).await??
    };
    // It follows each of the others, each of which has a follower then.
    let mut lines = tokio::io::BufReader::new(follow.stdout.context("no output")?);
    let mut next = async || -> Result<Value> {
        let mut line = String::new();
        timeout(palisade_lab::WAIT, tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut line)).await??;
        serde_json::from_str(&line).with_context(|| line.clone())
    };
    let mut followed =
        [next().await?, next().await?].map(|line| line["member"].as_str().unwrap_or_default().to_owned());
    followed.sort();
    ensure!(followed == ["fw1", "fw3"], "{followed:?}");

    let ports = [echo(lab, 7007).await?, echo(lab, 7008).await?];
    ensure!(ask(lab, 7053).await?? == 5, "the query is answered");
    ensure!(connect(lab, 23).await?.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused), "telnet");
    // The first datagram of a tuple is answered, and without the delay of a hold.
    let refused = ask(lab, 23).await?;
    ensure!(refused.as_ref().is_err_and(|e| e.kind() != std::io::ErrorKind::TimedOut), "no answer to UDP: {refused:?}");
    ensure!(ask(lab, 7666).await?.is_err_and(|e| e.kind() == std::io::ErrorKind::TimedOut), "a datagram is dropped");

    wait_until("the connection's end in a file", async || Ok(!of(&events(lab)?, "echo", "closed").is_empty())).await?;
    let all = events(lab)?;
    for (rule, event, count) in [
        ("echo", "opened", 1),
        ("echo", "closed", 1),
        ("dns", "opened", 1),
        ("telnet", "denied", 2),
        ("default", "denied", 1),
    ] {
        ensure!(of(&all, rule, event).len() == count, "{rule} {event}: {all:#?}");
    }
    ensure!(all.len() == 6, "{all:#?}");
    let (opened, closed) = (of(&all, "echo", "opened")[0], of(&all, "echo", "closed")[0]);
    for event in [opened, closed] {
        ensure!(event["src_port"] == ports[0] && event["dst"] == Side::Server.v4().to_string(), "{event}");
        ensure!(
            event["ingress"] == "outside" && event["egress"] == "inside" && event["verdict"] == "accept",
            "{event}"
        );
    }
    ensure!(opened["session"] == closed["session"] && closed["cause"] == "fin", "{opened} {closed}");
    // SYN, ACK, data, FIN at the least; the data and two headers.
    for side in ["original", "reply"] {
        let figure = |name: &str| closed[format!("{side}_{name}")].as_u64().unwrap_or_default();
        ensure!((2..20).contains(&figure("packets")) && figure("bytes") >= 1080, "{closed}");
    }
    let denied = of(&all, "default", "denied")[0];
    ensure!(denied["reason"] == "policy" && denied["verdict"] == "drop" && denied["protocol"] == "udp", "{denied}");
    for event in of(&all, "telnet", "denied") {
        ensure!(event["verdict"] == "reject" && event["reason"] == "policy_reject", "{event}");
    }

    // The same events at the other outputs.
    let mut messages = Vec::new();
    while messages.len() < all.len() {
        let mut datagram = [0; 2000];
        let length = timeout(palisade_lab::WAIT, collector.recv(&mut datagram)).await??;
        let text = std::str::from_utf8(&datagram[..length])?.to_owned();
        ensure!(text.starts_with("<134>1 "), "{text}");
        messages.push(serde_json::from_str::<Value>(text.split_once(" - ").context("no text")?.1)?);
    }
    let mut followed = Vec::new();
    for _ in 0..all.len() {
        followed.push(next().await?);
    }
    for event in &all {
        ensure!(messages.contains(event), "syslog lacks {event}");
        let same = |line: &&Value| ["member", "event", "rule", "src_port"].iter().all(|key| line[key] == event[key]);
        ensure!(followed.iter().filter(same).count() == 1, "`palisade log` lacks {event}: {followed:#?}");
    }
    let logs: Vec<String> = (1..=3).map(|n| std::fs::read_to_string(lab.member(n).log())).collect::<Result<_, _>>()?;
    let lines = logs.iter().flat_map(|log| log.lines()).filter(|line| line.contains("palisade::connections")).count();
    ensure!(lines == all.len(), "{lines} lines in the daemons' logs");

    hits(lab).await?;
    // The author's text, comments included, and beside it the canonical form.
    ensure!(lab.member(3).cli(&["policy", "show"]).await? == POLICY);
    let canonical = lab.member(3).cli(&["policy", "show", "--canonical"]).await?;
    ensure!(canonical.contains("any tcp/7007 log\n") && !canonical.contains('#'), "{canonical}");
    Ok(())
}

/// The hits of all members, at any of them.
async fn hits(lab: &Lab) -> Result<()> {
    for number in 1..=3 {
        let hits: Value =
            serde_json::from_str(&lab.member(number).cli(&["policy", "show", "--hits", "-o", "json"]).await?)?;
        let of: Vec<(&str, u64, bool)> = (hits["rules"].as_array().context("no rules")?.iter())
            .map(|r| (r["name"].as_str().unwrap_or_default(), r["hits"].as_u64().unwrap_or(99), r["last"].is_string()))
            .collect();
        let expected =
            [("echo", 1, true), ("quiet", 1, true), ("dns", 1, true), ("telnet", 2, true), ("default", 1, true)];
        ensure!(of == expected && hits["missing_members"] == serde_json::json!([]), "fw{number}: {hits:#}");
    }
    let mut sum = 0.0;
    for member in lab.members() {
        sum += member.metric("palisade_rule_hits_total", &["rule=\"telnet\""]).await?;
    }
    ensure!(sum == 2.0, "{sum}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_a_new_policy_forbids_ends_and_its_log_says_why() {
    let Some(_turn) = require_lab(&[]) else { return };
    let extra = |member: &palisade_lab::Member| format!("\n[log]\nfile = {:?}\n", member.dir().join("connections"));
    let mut lab = Lab::with_config(members(3, BINARY), POLICY, extra).await.unwrap();
    let result = forbidden(&lab).await;
    lab.or_keep(result).unwrap();
}

/// Waits until each member knows this many sessions.
async fn wait_sessions(lab: &Lab, sessions: u64) -> Result<()> {
    for member in lab.members() {
        wait_until("the sessions of a member", async || {
            let counted: Value = serde_json::from_str(&member.cli(&["session", "count", "-o", "json"]).await?)?;
            Ok(counted["sessions"] == sessions)
        })
        .await?;
    }
    Ok(())
}

async fn forbidden(lab: &Lab) -> Result<()> {
    serve(lab).await?;
    let [mut echo, mut quiet] = [connect(lab, 7007).await??, connect(lab, 7008).await??];
    exchange(&mut echo).await?;
    exchange(&mut quiet).await?;
    wait_sessions(lab, 2).await?;
    lab.apply_policy(1, &POLICY.replace("accept \"echo\"", "drop \"echo\"")).await?;
    wait_sessions(lab, 1).await?;
    wait_until("the connection's end in a file", async || Ok(!of(&events(lab)?, "echo", "closed").is_empty())).await?;
    let all = events(lab)?;
    let [closed] = of(&all, "echo", "closed")[..] else { anyhow::bail!("{all:#?}") };
    ensure!(closed["cause"] == "policy" && closed["forbidden_by"] == 2 && closed["generation"] == 1, "{closed}");
    // It does not come back with a later policy. Others go on.
    lab.apply_policy(2, POLICY).await?;
    exchange(&mut quiet).await?;
    echo.write_all(&[7; 1000]).await?;
    let answer = timeout(Duration::from_secs(2), echo.read(&mut [0; 1000])).await;
    ensure!(!matches!(answer, Ok(Ok(1..))), "the connection goes on");
    exchange(&mut connect(lab, 7007).await??).await
}
