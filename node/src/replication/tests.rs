//! Three real members in one process: real stores in temporary folders, real TCP on loopback.
#![allow(missing_docs, reason = "tests")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use palisade_engine::replica::{Assignment, Batch, PolicyChange};
use palisade_engine::{Close, CloseCause, Establish, Role};
use palisade_engine::{Generation, HoldKey, LeaseState, Protocol, SessionId, Time, Tuple, WorkerSet, ZoneId};
use palisade_engine::{HalfOpen, HandshakeState, SynParams};
use palisade_engine::{Ip, RuleId};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;
use crate::listen::SecondLock;
use crate::peer::connections::{Lane, MAX_MESSAGE_BYTES, Peers};

mod admission;
mod audits;
mod barrier;
mod breaks;
mod drain;
mod elections;
mod forbidden;
mod idle;
mod joining;
mod levels;
mod numbers;
mod policies;
mod progress;
mod quiet;
mod recover;
mod rolled_back;
mod settings;
mod snapshots;
mod voters;

/// The limit of every wait for something that will happen unless there is a mistake. No machine is too slow for it.
const LONG: Duration = Duration::from_secs(120);

/// What `Timing::default` has: without a sign of the leader for this long, a member asks for votes.
const ELECTION_TIMEOUT: Duration = Duration::from_millis(160);

#[derive(Clone, Default)]
struct Woken(Arc<AtomicU64>);

impl Wake for Woken {
    fn wake(&mut self, _: WorkerSet, _: HoldKey) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Node {
    dir: TempDir,
    options: Options,
    /// Those of the cluster that it makes.
    settings: Vec<&'static str>,
    running: Option<Running>,
}

struct Running {
    replication: Replication,
    hints: mpsc::Sender<Hint>,
    proposals: mpsc::Sender<Proposal>,
    lease: Arc<Lease>,
}

impl std::ops::Deref for Running {
    type Target = Replication;

    fn deref(&self) -> &Replication {
        &self.replication
    }
}

/// One that no connection of another test is given meanwhile: below those that the kernel gives.
fn free_port() -> SocketAddr {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let first = u64::from(std::process::id()) * 256;
    loop {
        let port = 15_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 16_384;
        if let Ok(free) = StdListener::bind((Ipv4Addr::LOCALHOST, port as u16)) {
            return free.local_addr().unwrap();
        }
    }
}

impl Node {
    /// Puts a policy in force.
    async fn policy(&self, base: Generation, text: &str) -> Generation {
        let change = PolicyChange::new(base, text.to_owned(), "test".to_owned());
        self.run().put_policy(change, LONG).await.unwrap().generation
    }

    fn new(name: &str) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let listen = free_port();
        let options = Options {
            data_dir: dir.path().join("data"),
            name: name.to_owned(),
            listen,
            interfaces: Vec::new(),
            second_lock: SecondLock::default(),
            advertise: listen.to_string(),
            role: Role::Firewall,
            engine: palisade_engine::Config {
                affordable_sessions: 3_000_000,
                ..palisade_engine::Config::new(MemberId(0), 0, 0)
            },
            timing: Timing::default(),
            log: LogSize::default(),
            progress_rate: 4_000_000,
            connection_log: crate::connection_log::ConnectionLog::default(),
        };
        Node { dir, options, settings: Vec::new(), running: None }
    }

    async fn start(&mut self) {
        let (hints, hint_rx) = mpsc::channel(1024);
        let (proposals, proposal_rx) = mpsc::channel(1024);
        let lease = Arc::new(Lease::default());
        self.released().await;
        let opened =
            Replication::open(self.options.clone(), hint_rx, proposal_rx, Woken::default(), lease.clone()).await;
        let replication = opened.unwrap_or_else(|e| panic!("{}: {e}", self.options.name));
        self.running = Some(Running { replication, hints, proposals, lease });
    }

    async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.shutdown().await;
            drop(running);
            self.released().await;
        }
    }

    /// Waits until nothing holds the data folder any longer: the store's threads do until they have ended.
    async fn released(&self) {
        let locks = ["lock", "raft/lock"].map(|name| self.options.data_dir.join(name));
        until("the data folder is released", || {
            locks.iter().all(|lock| std::fs::File::open(lock).is_ok_and(|f| f.try_lock().is_ok()) || !lock.exists())
        })
        .await;
    }

    fn run(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    fn role(&self) -> Option<RaftRole> {
        self.running.as_ref().map(|r| r.status().role)
    }

    /// Is no change of the voters under way? While one is, the old majority is needed as well as the new one.
    fn settled(&self) -> bool {
        let metrics = self.run().replication.raft.metrics().borrow_watched().clone();
        let members = &metrics.membership_config;
        members.membership().get_joint_config().len() == 1
            && metrics.committed_membership_config.log_id() == members.log_id()
    }

    fn has_valid_lease(&self) -> bool {
        self.running.as_ref().is_some_and(|r| r.lease.state_at(clock::now()) == LeaseState::Valid)
    }
}

/// Ends a member as a crash does, as far as that is possible within a process: without a graceful shutdown; its connections
/// just break.
fn crash(node: &mut Node) {
    drop(node.running.take());
}

/// Puts a batch into the log. A leader that a majority has not answered lately refuses it for the moment.
async fn write(node: &Node, batch: &Batch) {
    let written = timeout(LONG, async {
        while let Err(error) = node.run().replication.raft.client_write(batch.clone()).await {
            println!("{}: {error}", node.options.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(written.await.is_ok(), "{} took no batch", node.options.name);
}

/// Waits until `what` holds.
async fn until(why: &str, mut what: impl FnMut() -> bool) {
    let waited = timeout(LONG, async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain: {why}");
}

async fn cluster() -> [Node; 3] {
    cluster_with(|_| {}).await
}

async fn cluster_with(change: impl Fn(&mut Node)) -> [Node; 3] {
    let mut nodes = [Node::new("fw1"), Node::new("fw2"), Node::new("fw3")];
    nodes.iter_mut().for_each(change);
    let settings = Assignment::parse_all(nodes[0].settings.iter().copied()).unwrap();
    let identity = init_with(&nodes[0].options, &settings, "test").await.unwrap();
    assert_eq!(identity.member, MemberId(1));
    nodes[0].start().await;
    for i in 1..3 {
        until("the first member has a valid lease", || nodes[0].has_valid_lease()).await;
        let token = nodes[0].run().token(Duration::from_secs(60)).await.unwrap();
        let identity = join(&nodes[i].options, &token).await.unwrap();
        assert_eq!(identity.member, MemberId(i as u64 + 1));
        nodes[i].start().await;
    }
    until("all vote and have valid leases", || {
        nodes.iter().all(|n| {
            let status = n.run().status();
            n.has_valid_lease()
                && n.settled()
                && status.members.len() == 3
                && status.members.iter().all(|m| m.voter && m.reachable)
        })
    })
    .await;
    nodes
}

fn leader(nodes: &[Node]) -> usize {
    nodes.iter().position(|n| n.role() == Some(RaftRole::Leader)).unwrap()
}

fn session(n: u16) -> SessionId {
    SessionId { member: MemberId(9), counter: u64::from(n) }
}

fn establish(n: u16) -> Establish {
    let tuple = |source: u8, source_port, destination: u8, destination_port| Tuple {
        protocol: Protocol::TCP,
        src: Ip::V4([10, 0, 0, source]),
        dst: Ip::V4([10, 0, 0, destination]),
        src_port: source_port,
        dst_port: destination_port,
    };
    let end = SynParams { isn: 1, window: 1000, wscale: None, sack: false };
    Establish {
        id: session(n),
        original: tuple(1, n, 2, 80),
        reply: tuple(2, 80, 1, n),
        ingress: ZoneId(1),
        egress: ZoneId(1),
        generation: Generation(0),
        rule: RuleId(0),
        supersedes: None,
        #[cfg(feature = "next-level")]
        tag: 0,
        protocol: HandshakeState::Tcp { client: end, server: Some(end) },
    }
}

fn has(node: &Node, n: u16) -> bool {
    node.run().engine().session(clock::now(), session(n)).is_some_and(|s| !s.half_open)
}

fn command(n: u16) -> Command {
    Command::Establish(Box::new(establish(n)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_is_seen_by_all_and_survives_the_leader_and_restarts() {
    let mut nodes = cluster().await;
    // From each member, leader or not.
    for (i, node) in nodes.iter().enumerate() {
        let outcome = node.run().command(command(i as u16), LONG).await.unwrap();
        assert_eq!(outcome, Outcome::Accepted, "from {}", node.options.name);
    }
    until("all have all sessions", || nodes.iter().all(|n| (0..3).all(|s| has(n, s)))).await;

    // A session that is proposed by a worker, watched on another member.
    let mut events = nodes[2].run().subscribe();
    nodes[1].run().proposals.send(Proposal::Establish(Box::new(establish(100)))).await.unwrap();
    let event = timeout(LONG, events.recv()).await.unwrap().unwrap();
    assert_eq!(event.change, SessionChange::Established(Box::new(establish(100))));
    until("its proposer counts it", || nodes[1].run().metrics().outcomes.accepted.get() >= 2).await;

    // The leader goes; the others go on within their leases.
    let old = leader(&nodes);
    nodes[old].stop().await;
    let rest: Vec<usize> = (0..3).filter(|i| *i != old).collect();
    until("another leads", || rest.iter().any(|i| nodes[*i].role() == Some(RaftRole::Leader))).await;
    let outcome = nodes[rest[0]].run().command(command(10), LONG).await.unwrap();
    assert_eq!(outcome, Outcome::Accepted);
    nodes[old].start().await;
    until("the old leader has caught up and has a valid lease", || {
        nodes[old].has_valid_lease() && has(&nodes[old], 10)
    })
    .await;
    assert_eq!(nodes[old].run().identity().starts, 2);

    // All at once.
    for node in &mut nodes {
        node.stop().await;
    }
    for node in &mut nodes {
        node.start().await;
    }
    until("all have valid leases again", || nodes.iter().all(Node::has_valid_lease)).await;
    assert!(nodes.iter().all(|n| (0..3).all(|s| has(n, s)) && has(n, 10)));
    let close = Command::Close(Close { id: session(10), cause: CloseCause::Fin });
    assert_eq!(nodes[0].run().command(close, LONG).await.unwrap(), Outcome::Accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_ends_without_a_majority() {
    let mut nodes = cluster().await;
    let gone = leader(&nodes);
    let other = (gone + 1) % 3;
    let left = (gone + 2) % 3;
    nodes[gone].stop().await;
    nodes[other].stop().await;
    // Whatever it was told, it was told before: nothing is proven for longer than a lease from now on.
    let alone = clock::now();
    until("the one that is left is cut off", || nodes[left].run().lease.state_at(clock::now()) == LeaseState::Grace)
        .await;
    let past = alone + crate::lease::LEASE_DURATION + Duration::from_millis(1);
    assert_eq!(nodes[left].run().lease.state_at(past), LeaseState::Grace);
    // It proposes nothing and confirms nothing.
    nodes[left].run().proposals.send(Proposal::Establish(Box::new(establish(1)))).await.unwrap();
    until("the proposal is dropped", || nodes[left].run().metrics().proposals_dropped.lease_not_valid.get() == 1).await;
    let refused = nodes[left].run().command(command(2), Duration::from_millis(500)).await;
    assert!(matches!(refused, Err(ProposeError::Timeout | ProposeError::NotSent)), "{refused:?}");
    nodes[gone].start().await;
    until("two are a majority", || nodes[left].has_valid_lease() && nodes[gone].has_valid_lease()).await;
    assert!(!has(&nodes[left], 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_leaves_and_is_removed() {
    let mut nodes = cluster().await;
    // The leader itself leaves.
    let left = leader(&nodes);
    nodes[left].run().leave().await.unwrap();
    nodes[left].stop().await;
    let rest: Vec<usize> = (0..3).filter(|i| *i != left).collect();
    until("two are left", || {
        rest.iter().all(|i| nodes[*i].run().status().members.len() == 2 && nodes[*i].has_valid_lease())
    })
    .await;
    assert!(matches!(
        Replication::open(
            nodes[left].options.clone(),
            mpsc::channel(1).1,
            mpsc::channel(1).1,
            Woken::default(),
            Arc::new(Lease::new(LONG)),
        )
        .await
        .map(drop),
        Err(OpenError::NotMember)
    ));
    // It may come back, as another member.
    let token = nodes[rest[0]].run().token(Duration::from_secs(60)).await.unwrap();
    let identity = join(&nodes[left].options, &token).await.unwrap();
    assert_eq!(identity.member, MemberId(4));
    nodes[left].start().await;
    until("it votes", || {
        let status = nodes[left].run().status();
        nodes[left].has_valid_lease() && status.members.iter().filter(|m| m.voter).count() == 3
    })
    .await;

    // A dead one is removed; its name is then free.
    let dead = (0..3).find(|i| nodes[*i].role() != Some(RaftRole::Leader)).unwrap();
    let name = nodes[dead].options.name.clone();
    nodes[dead].stop().await;
    let survivor = (dead + 1) % 3;
    nodes[survivor].run().remove(&name, false).await.unwrap();
    assert!(matches!(nodes[survivor].run().remove(&name, false).await, Err(MembershipError::NoSuchMember(_))));
    let myself = nodes[survivor].options.name.clone();
    assert!(matches!(nodes[survivor].run().remove(&myself, false).await, Err(MembershipError::CannotRemoveSelf(_))));
    until("it is removed", || nodes[survivor].run().status().members.iter().filter(|m| m.voter).count() == 2).await;
    assert_eq!(nodes[survivor].run().command(command(1), LONG).await.unwrap(), Outcome::Accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_that_is_expired_or_forged_lets_nobody_in() {
    let mut first = Node::new("fw1");
    init(&first.options).await.unwrap();
    assert!(matches!(init(&first.options).await, Err(MembershipError::Identity(IdentityError::Taken { .. }))));
    first.start().await;
    until("it has a valid lease", || first.has_valid_lease()).await;
    let expired = first.run().token(Duration::ZERO).await.unwrap();
    let good: Token = first.run().token(LONG).await.unwrap().parse().unwrap();
    let forged = Token::new(good.cluster.clone(), good.addresses.clone(), [0; 32]).to_string();
    let other = Node::new("fw2");
    for token in [expired, forged] {
        let refused = join(&other.options, &token).await;
        assert!(matches!(&refused, Err(MembershipError::Refused(why)) if why.contains("expired")), "{refused:?}");
    }
    let namesake = Node::new("fw1");
    let refused = join(&namesake.options, &good.to_string()).await;
    assert!(matches!(&refused, Err(MembershipError::Refused(why)) if why.contains("exists")), "{refused:?}");
    assert!(matches!(first.run().leave().await, Err(MembershipError::LastMember)));
    join(&other.options, &good.to_string()).await.unwrap();
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_for_another_member_is_refused_and_garbage_does_not_hurt() {
    let nodes = cluster().await;
    let status = nodes[0].run().status();
    let request = || palisade_proto::member::v1::VoteRequest {
        vote: Some(palisade_proto::member::v1::Vote { term: 99, member: 3, committed: false }),
        last: None,
        leadership_transfer: true,
    };
    let address = &nodes[0].options.advertise;
    // Another addressee; another cluster.
    for (cluster, to) in [(status.cluster.as_str(), 2), ("c0ffee", 1)] {
        let peers = Peers::new(cluster, MemberId(3)).unwrap();
        let mut client = peers.client(MemberId(to), address, Lane::Raft).unwrap();
        let refused = client.vote(request()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    }
    assert_eq!(nodes[0].run().metrics().wrong_destination_requests.get(), 2);

    for byte in 0..50_u8 {
        let mut stream = tokio::net::TcpStream::connect(nodes[0].options.listen).await.unwrap();
        let garbage: Vec<u8> = (0..2000_u32).map(|i| (i as u8).wrapping_mul(byte)).collect();
        // It may be closed while we write.
        let _ = stream.write_all(&garbage).await;
        let _ = timeout(Duration::from_millis(20), stream.read(&mut [0; 64])).await;
    }
    assert_eq!(nodes[1].run().command(command(1), LONG).await.unwrap(), Outcome::Accepted);
    until("it is applied there too", || has(&nodes[0], 1)).await;
    assert!(nodes[0].run().status().term < 99);
    assert!(
        nodes[0].run().metrics().rejected_connections.get() >= 40,
        "{}",
        nodes[0].run().metrics().rejected_connections.get()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_follower_delays_no_commit() {
    let mut nodes = cluster().await;
    let lead = leader(&nodes);
    let stalled = (lead + 1) % 3;
    let quick = (lead + 2) % 3;
    let listen = nodes[stalled].options.listen;
    nodes[stalled].stop().await;
    let mut next = 0..200;
    let mut commits = async |nodes: &[Node]| {
        let mut times = Vec::new();
        for n in next.by_ref().take(100) {
            let asked = clock::now();
            let outcome = nodes[quick].run().command(command(n), LONG).await;
            let status = || (nodes[lead].run().status(), nodes[quick].run().status());
            assert_eq!(outcome, Ok(Outcome::Accepted), "{n}: {:#?}", status());
            times.push(clock::now().since(asked));
        }
        times.sort_unstable();
        times
    };
    let before = commits(&nodes).await;
    // Takes connections and bytes, answers nothing: as a machine that hangs.
    let hole = tokio::net::TcpListener::bind(listen).await.unwrap();
    let hole = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = hole.accept().await {
            kept.push(stream);
        }
    });
    let times = commits(&nodes).await;
    println!("commit with a stalled follower: p50 {:?}, p90 {:?}, max {:?}", times[50], times[90], times[99]);
    println!("and without it: p50 {:?}, p90 {:?}, max {:?}", before[50], before[90], before[99]);
    // A leader that waited for it would do so each time.
    assert!(times[50] < 10 * before[50] + Duration::from_millis(100), "{times:?}, without it {before:?}");
    hole.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hint_reaches_all_others() {
    let mut nodes = cluster().await;
    let end = SynParams { isn: 1, window: 1000, wscale: None, sack: false };
    let e = establish(7);
    let half_open = HalfOpen {
        id: SessionId { member: MemberId(1), counter: 77 },
        original: e.original,
        reply: e.reply,
        ingress: e.ingress,
        egress: e.egress,
        generation: e.generation,
        rule: e.rule,
        supersedes: None,
        challenge: None,
        protocol: HandshakeState::Tcp { client: end, server: None },
    };
    nodes[0].run().hints.send(Hint::HalfOpen(Box::new(half_open))).await.unwrap();
    let knows = |node: &Node| {
        let mut found = false;
        node.run().engine().half_opens(&mut |h| found |= h.id == half_open.id);
        found
    };
    until("the others know it", || knows(&nodes[1]) && knows(&nodes[2])).await;
    assert_eq!(nodes[0].run().metrics().hints_sent.get(), 2);

    // A member that was away gets the hints of all live half-open sessions when it is back.
    nodes[2].stop().await;
    nodes[2].start().await;
    until("it knows it again", || knows(&nodes[2])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_that_is_proposed_again_is_applied_once() {
    let nodes = cluster().await;
    let lead = leader(&nodes);
    let follower = (lead + 1) % 3;
    assert_eq!(nodes[follower].run().command(command(1), LONG).await.unwrap(), Outcome::Accepted);
    let me = nodes[follower].run().identity().clone();
    // The same batch once more, as after a lost answer: it must not establish the session a second time, also not after
    // the session has ended.
    let revoke = Command::Revoke(vec![session(1)]);
    assert_eq!(nodes[lead].run().command(revoke, LONG).await.unwrap(), Outcome::Accepted);
    let first = u64::from(me.starts) << 40;
    let copy = Batch {
        proposer: me.member,
        first_serial: first,
        lowest_outstanding: first,
        unix_ms: 0,
        commands: vec![command(1)],
    };
    let before = nodes[lead].run().metrics().applied_batches.get();
    write(&nodes[lead], &copy).await;
    until("the copy is applied", || nodes[lead].run().metrics().applied_batches.get() > before).await;
    assert!(!has(&nodes[lead], 1), "a copy resurrected the session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_without_its_log_is_refused() {
    let mut node = Node::new("fw1");
    init(&node.options).await.unwrap();
    node.start().await;
    until("it has a valid lease", || node.has_valid_lease()).await;
    node.stop().await;
    std::fs::remove_dir_all(node.dir.path().join("data/raft")).unwrap();
    let opened = Replication::open(
        node.options.clone(),
        mpsc::channel(1).1,
        mpsc::channel(1).1,
        Woken::default(),
        Arc::new(Lease::new(LONG)),
    );
    assert!(matches!(opened.await.map(drop), Err(OpenError::Start(RaftStartError::LostLog(MemberId(1))))));
    assert_ne!(clock::now(), Time::ZERO);
}
