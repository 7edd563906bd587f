//! Members in this process: real stores in temporary folders, real TCP on loopback, no datapath.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use palisade_engine::replica::{Assignment, Command};
use palisade_engine::{
    Config, Establish, Generation, HandshakeState, HoldKey, Ip, LeaseState, MemberId, Protocol, Role, RuleId,
    SessionId, SynParams, Tuple, Wake, WorkerSet, ZoneId,
};
use palisade_lab::{WAIT, clock, wait_until};
use palisade_node::lease::Lease;
use palisade_node::replication::{LogSize, Options, RaftRole, Replication, Timing, init_with, join};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Nobody waits for what is applied.
#[derive(Clone)]
struct NoWake;

impl Wake for NoWake {
    fn wake(&mut self, _: WorkerSet, _: HoldKey) {}
}

pub(crate) struct Node {
    _dir: TempDir,
    pub(crate) options: Options,
    running: Option<Running>,
}

struct Running {
    replication: Replication,
    lease: Arc<Lease>,
    /// Kept open.
    _queues: (mpsc::Sender<palisade_engine::Hint>, mpsc::Sender<palisade_engine::Proposal>),
}

impl Node {
    pub(crate) fn new(name: &str) -> Result<Node> {
        let dir = tempfile::tempdir()?;
        let listen: SocketAddr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let options = Options {
            data_dir: dir.path().join("data"),
            name: name.to_owned(),
            listen,
            interfaces: Vec::new(),
            second_lock: palisade_node::SecondLock::default(),
            advertise: listen.to_string(),
            role: Role::Firewall,
            engine: Config::new(MemberId(0), 0, 0),
            timing: Timing::default(),
            log: LogSize::default(),
            progress_rate: 4_000_000,
            connection_log: palisade_node::connection_log::ConnectionLog::default(),
        };
        Ok(Node { _dir: dir, options, running: None })
    }

    pub(crate) async fn start(&mut self) -> Result<()> {
        let lease = Arc::new(Lease::new(Duration::from_secs(300)));
        let mut running = None;
        wait_until("the data folder to be free", async || {
            let (hints, hint_rx) = mpsc::channel(1024);
            let (proposals, proposal_rx) = mpsc::channel(1024);
            // The threads of one that was dropped hold it until they have ended.
            let open = Replication::open(self.options.clone(), hint_rx, proposal_rx, NoWake, Arc::clone(&lease));
            running = open.await.ok().map(|replication| Running {
                replication,
                lease: Arc::clone(&lease),
                _queues: (hints, proposals),
            });
            Ok(running.is_some())
        })
        .await?;
        self.running = Some(running.context("not opened")?);
        Ok(())
    }

    /// Ends it as a crash does, as far as that can be done within a process.
    pub(crate) fn crash(&mut self) {
        drop(self.running.take());
    }

    pub(crate) fn run(&self) -> Result<&Replication> {
        self.running.as_ref().map(|r| &r.replication).context("it does not run")
    }

    pub(crate) fn is_current(&self) -> bool {
        self.running.as_ref().is_some_and(|r| r.lease.state_at(clock::now()) == LeaseState::Valid)
    }

    pub(crate) fn leads(&self) -> bool {
        self.running.as_ref().is_some_and(|r| r.replication.status().role == RaftRole::Leader)
    }

    fn voters(&self) -> usize {
        self.running.as_ref().map_or(0, |r| r.replication.status().members.iter().filter(|m| m.voter).count())
    }

    pub(crate) async fn join(&mut self, inviter: &Node) -> Result<()> {
        let token = inviter.run()?.token(WAIT).await?;
        join(&self.options, &token).await?;
        self.start().await
    }
}

/// Waits until all have a valid lease and `voters` of them vote.
pub(crate) async fn whole(nodes: &[&Node], voters: usize) -> Result<()> {
    let is = || nodes.iter().all(|n| n.is_current() && n.voters() == voters) && nodes.iter().any(|n| n.leads());
    wait_until("the cluster to be whole", async || Ok(is())).await
}

pub(crate) async fn three(log: impl Fn() -> LogSize) -> Result<[Node; 3]> {
    let mut nodes = [Node::new("fw1")?, Node::new("fw2")?, Node::new("fw3")?];
    nodes.iter_mut().for_each(|node| node.options.log = log());
    init_with(&nodes[0].options, &Assignment::parse_all(["table.sessions=2097152"])?, "").await?;
    nodes[0].start().await?;
    let (first, rest) = nodes.split_at_mut(1);
    for node in rest {
        wait_until("the first member to have a valid lease", async || Ok(first[0].is_current())).await?;
        node.join(&first[0]).await?;
    }
    whole(&nodes.each_ref(), 3).await?;
    Ok(nodes)
}

/// The establishment of a session, another for each number.
pub(crate) fn establish(n: u32) -> Command {
    let [a, b, c, d] = n.to_be_bytes();
    let original = Tuple {
        protocol: Protocol::TCP,
        src: Ip::V4([10, a + 1, b, c]),
        dst: Ip::V4([10, 0, 0, 2]),
        src_port: 1024 + u16::from(d),
        dst_port: 80,
    };
    let end = SynParams { isn: 1, window: 1000, wscale: None, sack: false };
    Command::Establish(Box::new(Establish {
        id: SessionId { member: MemberId(9), counter: u64::from(n) },
        original,
        reply: original.inverse(),
        ingress: ZoneId(0),
        egress: ZoneId(0),
        generation: Generation(0),
        rule: RuleId(0),
        supersedes: None,
        #[cfg(feature = "next-level")]
        tag: 0,
        protocol: HandshakeState::Tcp { client: end, server: Some(end) },
    }))
}
