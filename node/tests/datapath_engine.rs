//! The datapath with the real engine, and a log of one member that takes its time.
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

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use datapath_member::{PROGRAMS, two_interfaces};
use palisade_engine::replica::{Batch, Command, Outcome, PolicyChange, Replica};
use palisade_engine::{Config, Engine, Generation, MemberId, Proposal, Reason, Wake};
use palisade_lab::guard::can_run;
use palisade_lab::small::{SmallLab, eventually};
use palisade_node::clock;
use palisade_node::datapath::{self, Sinks, WorkerWake};
use palisade_node::lease::Lease;

const POLICY: &str = "zone outside, inside\n\
    default drop\n\
    accept \"bulk\" from outside to inside: any -> any tcp/7001\n\
    reject \"telnet\" from outside to inside: any -> any tcp/23\n";

/// How long a commit takes in this log.
const COMMIT: Duration = Duration::from_millis(20);

fn apply(replica: &mut Replica, number: u64, command: Command, wake: &mut dyn Wake) -> Outcome {
    let batch = Batch {
        proposer: MemberId(1),
        first_serial: number,
        lowest_outstanding: number,
        unix_ms: 0,
        commands: vec![command],
    };
    replica.apply(clock::now(), &batch, wake).remove(0).outcome
}

#[test]
fn connection_is_held_until_it_is_committed_and_then_runs() {
    if !can_run("a_connection_is_held", PROGRAMS) {
        return;
    }
    let lab = SmallLab::new();
    let engine = Engine::new(Config::new(MemberId(1), 1, 7));
    let mut replica = Replica::new(Arc::clone(&engine));
    let mut wake = WorkerWake::new(1).unwrap();
    let change = PolicyChange::new(Generation(0), POLICY.to_owned(), "lab".to_owned());
    let enact = Command::Enact(Box::new(change.enactment()));
    apply(&mut replica, 0, Command::Policy(Box::new(change)), &mut wake);
    engine.compile_policies();
    let outcome = apply(&mut replica, 1, enact, &mut wake);
    assert!(matches!(outcome, Outcome::Policy(_)), "{outcome:?}");

    let lease = Arc::new(Lease::new(Duration::from_secs(60)));
    let (hints, _hints) = tokio::sync::mpsc::channel(1024);
    let (proposals, mut proposed) = tokio::sync::mpsc::channel(1024);
    let (cell, member_engine, workers) = (Arc::clone(&lease), Arc::clone(&engine), wake.clone());
    let datapath = lab.member.call(move || {
        datapath::start(two_interfaces(), member_engine, cell, workers, Sinks { hints, proposals }).unwrap()
    });
    let log = std::thread::spawn(move || {
        let mut number = 1;
        while let Some(proposal) = proposed.blocking_recv() {
            std::thread::sleep(COMMIT);
            number += 1;
            let command = match proposal {
                Proposal::Establish(establish) => Command::Establish(establish),
                Proposal::Close(close) => Command::Close(close),
                Proposal::Refresh(id) => Command::Refresh(vec![id]),
            };
            apply(&mut replica, number, command, &mut wake);
        }
        number
    });

    let connect = |address: &'static str| {
        lab.client.call(move || {
            let begin = clock::now();
            let result = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_millis(800));
            (result.map(drop).map_err(|e| e.kind()), clock::now().since(begin))
        })
    };
    // No valid lease: nothing new is admitted.
    let metrics = datapath.metrics();
    eventually("a connection without a lease", || {
        assert!(connect("10.2.0.2:7001").0.is_err());
        metrics.dropped(Reason::LeaseExpired) + metrics.dropped(Reason::LeaseGrace) > 0
    });

    let keep_current = Arc::clone(&lease);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let prover = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            keep_current.renew(clock::now());
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    std::thread::sleep(Duration::from_millis(100));
    for address in ["10.2.0.2:7001", "[fd00:2::2]:7001"] {
        let holds = || metrics.total(|worker| worker.hold.count());
        let out_of_window = || metrics.dropped(Reason::TcpWindow);
        let (holds_before, out_of_window_before) = (holds(), out_of_window());
        let rate = lab.bulk(address, Duration::from_secs(1));
        println!("engine {address}: {rate:.1} Gbit/s");
        assert!(holds() > holds_before, "the handshake's end was not held for its commit: {metrics:?}");
        assert_eq!(out_of_window(), out_of_window_before);
        assert!(metrics.workers.iter().map(|worker| worker.hold.sum()).sum::<Duration>() >= COMMIT);
    }
    let rejected = lab.client.call(|| {
        TcpStream::connect_timeout(&"10.2.0.2:23".parse().unwrap(), Duration::from_secs(60)).unwrap_err().kind()
    });
    assert_eq!(rejected, std::io::ErrorKind::ConnectionRefused);
    let policy = metrics.dropped(Reason::Policy);
    assert_eq!(connect("10.2.0.2:22").0, Err(std::io::ErrorKind::TimedOut));
    assert!(metrics.dropped(Reason::Policy) > policy);

    datapath.stop();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    prover.join().unwrap();
    assert!(log.join().unwrap() >= 3, "an establishment for each connection");
}
