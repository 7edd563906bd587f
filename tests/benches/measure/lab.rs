//! What is measured in the lab: three members, both hosts and all load on this machine.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::Result;
use palisade_lab::frames::{self, Wire};
use palisade_lab::packets::{IPV4, ethernet, syn, udp_packet};
use palisade_lab::{Lab, Options, Side, clock, wait_until};
use palisade_tests::figures::{Table, ms, percentile};
use palisade_tests::load::Load;
use palisade_tests::scenario::kill::{Plan, each_member};
use palisade_tests::scenario::{bulk as stream, share, stop as hang, web as http, without};
use palisade_tests::{OPEN_POLICY, kernels, members};
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-under-test");
const SERVER: &str = env!("CARGO_BIN_EXE_echo-server");

/// Runs in a lab of its own; on failure its files are kept.
async fn in_lab<T>(options: Options, policy: &str, work: impl AsyncFnOnce(&mut Lab) -> Result<T>) -> Result<T> {
    let mut lab = Lab::with_cluster(options, policy).await?;
    let result = work(&mut lab).await;
    lab.or_keep(result)
}

async fn palisade<T>(count: usize, work: impl AsyncFnOnce(&mut Lab) -> Result<T>) -> Result<T> {
    in_lab(members(count, BINARY), OPEN_POLICY, work).await
}

fn percentiles(times: &mut [Duration]) -> [String; 3] {
    [50, 99, 100].map(|p| ms(percentile(times, p)))
}

pub(crate) async fn setup() -> Result<Table> {
    let mut table = Table::new(
        "Setup of new connections beside 240 long-lived ones, three members, asymmetric",
        &["new connections/s", "connections", "connect(2) p50", "p99", "longest", "first answer p50", "p99", "longest"],
    );
    palisade(3, async |lab| {
        let mut load = Load::start(lab, SERVER, share(240)).await?;
        for rate in [100, 500, 1000].map(share) {
            load.open(rate);
            sleep(Duration::from_secs(2)).await;
            let from = clock::now();
            sleep(Duration::from_secs(10)).await;
            let until = clock::now();
            load.settle(until).await?;
            let (mut setups, mut answers) = (load.setups(from, until), load.answers(from, until));
            let cells = [rate.to_string(), setups.len().to_string()];
            table.row(cells.into_iter().chain(percentiles(&mut setups)).chain(percentiles(&mut answers)));
        }
        load.finish().await?;
        eprintln!("{}", load.summary());
        Ok(())
    })
    .await?;
    Ok(table)
}

pub(crate) async fn kill() -> Result<Table> {
    let mut table = Table::new(
        "kill -9 of each member under 10,000 live connections with a block a second, and 50 new ones a second. The stall is what a \
         block waited after the routers had moved",
        &[
            "killed",
            "routers moved after",
            "blocks under way",
            "stall p50",
            "p99",
            "longest",
            "longest setup of a new connection",
            "of one begun before the routers moved",
        ],
    );
    palisade(3, async |lab| {
        let plan = Plan { long_lived: share(10_000), new: 50, window: Duration::from_secs(3) };
        let (killed, load) = each_member(lab, SERVER, plan).await?;
        for mut one in killed {
            let name = format!("fw{}{}", one.number, if one.led { ", the leader" } else { "" });
            let cells = [name, ms(one.reroute), one.under_way.len().to_string()];
            let longest = [&mut one.setups, &mut one.early_setups].map(|times| ms(percentile(times, 100)));
            table.row(cells.into_iter().chain(percentiles(&mut one.under_way)).chain(longest));
        }
        eprintln!("{}", load.summary());
        Ok(())
    })
    .await?;
    Ok(table)
}

pub(crate) async fn stop() -> Result<Table> {
    let mut table = Table::new(
        "SIGSTOP of a member under 1,000 new connections a second: setup p99 in windows of 2 s, the median of four",
        &["stopped", "routers moved after", "before", "meanwhile", "ratio", "the noise of those before"],
    );
    palisade(3, async |lab| {
        let mut load = Load::start(lab, SERVER, share(100)).await?;
        load.open(share(1000));
        sleep(Duration::from_secs(2)).await;
        let leader = lab.wait_leader().await?;
        for (number, name) in [(without(leader)[0], "a follower"), (leader, "the leader")] {
            let mut seen = hang::compare(lab, &load, number, 4, Duration::from_secs(2)).await?;
            let (usual, noise) = (percentile(&mut seen.before, 50), percentile(&mut seen.before, 100));
            let now = percentile(&mut seen.meanwhile, 50);
            let ratio = |of: Duration| format!("{:.2}", of.as_secs_f64() / usual.as_secs_f64().max(1e-9));
            table.row([name.to_owned(), ms(seen.reroute), ms(usual), ms(now), ratio(now), ratio(noise)]);
        }
        load.finish().await?;
        eprintln!("{}", load.summary());
        Ok(())
    })
    .await?;
    Ok(table)
}

pub(crate) async fn web() -> Result<Table> {
    let mut table = Table::new(
        "New connections/s (nginx, wrk with 64 connections, `Connection: close`, 10 s)",
        &["three members", "plain forwarding by the kernel", "ratio", "errors"],
    );
    for _ in 0..3 {
        let kernel = in_lab(kernels(3), "", async |lab| http::flat_out(lab, 10).await).await?;
        let ours = palisade(3, async |lab| http::flat_out(lab, 10).await).await?;
        let ratio = format!("{:.2}", ours.per_second / kernel.per_second.max(1.0));
        let rates = [ours.per_second, kernel.per_second].map(|rate| format!("{rate:.0}"));
        table.row(rates.into_iter().chain([ratio, ours.errors.join("; ")]));
    }
    Ok(table)
}

/// Everything that is denied is logged.
const LOGGED_POLICY: &str = "\
zone outside, inside
default drop log
accept \"echo\" from outside to inside: any -> any tcp/7007
";

pub(crate) async fn denied() -> Result<Table> {
    const RATE: usize = 5000;
    const TIME: Duration = Duration::from_secs(10);
    let mut table = Table::new(
        "Setup of 200 new connections/s for 10 s, three members, without and with 5,000 denied and logged packets/s at one member",
        &["denied packets", "connect(2) p50", "p99", "longest", "events logged", "left out by the rate", "dropped"],
    );
    in_lab(members(3, BINARY), LOGGED_POLICY, async |lab| {
        let mut load = Load::start(lab, SERVER, share(240)).await?;
        load.open(share(200));
        sleep(Duration::from_secs(2)).await;
        for flooded in [false, true] {
            let figures = async || -> Result<[f64; 4]> {
                let mut sums = [0.0; 4];
                for member in lab.members() {
                    for (sum, (name, labels)) in sums.iter_mut().zip([
                        ("palisade_packets_total", &["reason=\"policy\""][..]),
                        ("palisade_connection_log_events_total", &[]),
                        ("palisade_connection_log_limited_total", &[]),
                        ("palisade_connection_log_dropped_total", &[]),
                    ]) {
                        *sum += member.metric(name, labels).await?;
                    }
                }
                Ok(sums)
            };
            let before = figures().await?;
            let from = clock::now();
            match flooded {
                true => deny(lab, share(RATE), TIME).await?,
                false => sleep(TIME).await,
            }
            let until = clock::now();
            load.settle(until).await?;
            let after = figures().await?;
            let [denied, logged, limited, dropped] = [0, 1, 2, 3].map(|n| format!("{:.0}", after[n] - before[n]));
            let times = percentiles(&mut load.setups(from, until));
            table.row([denied].into_iter().chain(times).chain([logged, limited, dropped]));
        }
        load.finish().await?;
        eprintln!("{}", load.summary());
        Ok(())
    })
    .await?;
    Ok(table)
}

/// SYNs to a port that is not allowed, at a steady rate.
async fn deny(lab: &Lab, per_second: usize, time: Duration) -> Result<()> {
    let mut wire = Wire::open(lab.client(), "fw1").await?;
    let to = frames::mac(lab.member(1).netns(), Side::Client.interface()).await?;
    let server = SocketAddrV4::new([10, 20, 0, 1].into(), 7666);
    let begun = clock::now();
    let mut sent = 0_u32;
    while clock::now().since(begun) < time {
        let due = (clock::now().since(begun).as_secs_f64() * per_second as f64) as u32;
        while sent < due {
            let from = SocketAddrV4::new([10, 10, 0, 1].into(), 10_000 + (sent % 50_000) as u16);
            wire.send(&ethernet(to, wire.mac(), IPV4, &syn(from, server, sent)))?;
            sent += 1;
        }
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

pub(crate) async fn bulk() -> Result<Table> {
    let mut table = Table::new(
        "One TCP stream (iperf3, 5 s) through one member",
        &["Palisade", "plain forwarding by the kernel", "ratio", "bytes a frame, Palisade"],
    );
    for _ in 0..3 {
        let kernel = in_lab(kernels(1), "", async |lab| stream::stream(lab, 5).await).await?;
        let ours = palisade(1, async |lab| stream::stream(lab, 5).await).await?;
        let rates = [ours, kernel].map(|s| s.gigabits_per_second);
        let ratio = format!("{:.2}", rates[0] / rates[1].max(1e-9));
        let cells = rates.map(|rate| format!("{rate:.2} Gbit/s"));
        table.row(cells.into_iter().chain([ratio, ours.bytes_per_frame.to_string()]));
    }
    Ok(table)
}

pub(crate) async fn packets() -> Result<Table> {
    let mut table = Table::new(
        "Datagrams of 18 bytes of one session through one member, sent as fast as one thread can, 3 s; as they arrive at the \
         server's link",
        &["Palisade", "plain forwarding by the kernel", "ratio"],
    );
    for _ in 0..3 {
        let kernel = in_lab(kernels(1), "", async |lab| flood(lab).await).await?;
        let ours = palisade(1, async |lab| flood(lab).await).await?;
        let rates = [ours, kernel].map(|rate| format!("{rate:.3} Mpps"));
        table.row(rates.into_iter().chain([format!("{:.2}", ours / kernel.max(1e-9))]));
    }
    Ok(table)
}

/// Millions of packets a second.
async fn flood(lab: &Lab) -> Result<f64> {
    const TIME: Duration = Duration::from_secs(3);
    let server = lab.server().run(UdpSocket::bind("10.20.0.1:7009")).await??;
    let mut wire = Wire::open(lab.client(), "fw1").await?;
    let to = frames::mac(lab.member(1).netns(), Side::Client.interface()).await?;
    let ends = (SocketAddrV4::new([10, 10, 0, 1].into(), 7009), SocketAddrV4::new([10, 20, 0, 1].into(), 7009));
    let frame = ethernet(to, wire.mac(), IPV4, &udp_packet(ends.0, ends.1, &[0; 18]));
    // The session is established first.
    wait_until("a datagram to arrive", async || {
        wire.send(&frame)?;
        Ok(timeout(Duration::from_secs(1), server.recv(&mut [0; 64])).await.is_ok())
    })
    .await?;
    let out = Side::Server.interface();
    let netlink = lab.member(1).netns().netlink();
    let (before, begun) = (netlink.sent(out).await?.0, clock::now());
    let sender = move || {
        while clock::now().since(begun) < TIME {
            for _ in 0..64 {
                // The link may be full for a moment.
                let _ = wire.send(&frame);
            }
        }
    };
    tokio::task::spawn_blocking(sender).await?;
    let took = clock::now().since(begun).as_secs_f64();
    Ok((netlink.sent(out).await?.0 - before) as f64 / took / 1e6)
}
