//! Elections: a lost leader is replaced, and a live one is left alone.
//!
//! How soon a lost leader is replaced is measured by `cargo bench -p palisade-tests -- commit`.

use std::sync::atomic::AtomicBool;

use palisade_lab::lateness::Lateness;

use super::*;

/// A busy machine is one test's subject, not another's surroundings.
pub(super) static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn term(node: &Node) -> u64 {
    node.run().status().term
}

/// The longest round trip between two tasks of this runtime over loopback: a heartbeat and its answer are as late at least.
struct RoundTrips {
    worst: Arc<AtomicU64>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl RoundTrips {
    async fn watch() -> RoundTrips {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let to = listener.local_addr().unwrap();
        let echo = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while let Ok(byte) = stream.read_u8().await {
                stream.write_u8(byte).await.unwrap();
            }
        });
        let worst = Arc::new(AtomicU64::new(0));
        let shared = worst.clone();
        let ask = tokio::spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
            stream.set_nodelay(true).unwrap();
            loop {
                let begun = clock::now();
                tokio::time::sleep(Duration::from_millis(10)).await;
                stream.write_u8(7).await.unwrap();
                stream.read_u8().await.unwrap();
                shared.fetch_max(clock::now().since(begun).as_nanos() as u64, Ordering::Relaxed);
            }
        });
        RoundTrips { worst, tasks: [echo, ask] }
    }

    fn worst(&self) -> Duration {
        Duration::from_nanos(self.worst.load(Ordering::Relaxed)).saturating_sub(Duration::from_millis(10))
    }
}

impl Drop for RoundTrips {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// The leader and the term are still these; unless the machine itself was late by an election timeout.
fn undisturbed(nodes: &[Node], lead: usize, before: u64, late: &Lateness) {
    let terms: Vec<u64> = nodes.iter().map(term).collect();
    if let Some(excuse) = late.excuses(ELECTION_TIMEOUT) {
        println!("terms {terms:?}, {before} before; {excuse}");
        return;
    }
    assert_eq!((leader(nodes), terms), (lead, vec![before; nodes.len()]), "the leader changed without a fault");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn election_replaces_a_lost_leader_and_its_members_keep_their_lease() {
    const TIMES: u16 = 6;
    let _alone = ALONE.lock().await;
    let mut nodes = cluster().await;
    for n in 0..TIMES {
        let lead = leader(&nodes);
        let rest: Vec<usize> = (0..3).filter(|i| *i != lead).collect();
        // At another time since the last heartbeat each time, asked from each of the others in turn.
        tokio::time::sleep(Duration::from_millis(u64::from(n) * 17 % 40)).await;
        crash(&mut nodes[lead]);
        let lost = clock::now();
        let asked = nodes[rest[usize::from(n) % 2]].run();
        assert_eq!(asked.command(command(n), LONG).await, Ok(Outcome::Accepted));
        let took = clock::now().since(lost);
        println!("a new leader has committed after {took:?}");
        // Nobody may notice an election that was quick: both had a valid lease all the time.
        let quick = crate::lease::LEASE_DURATION / 2;
        let current = |i: &usize| nodes[*i].run().lease.state_at(lost + quick) == LeaseState::Valid;
        assert!(took >= quick || rest.iter().all(current));
        nodes[lead].start().await;
        until("all have valid leases", || nodes.iter().all(Node::has_valid_lease)).await;
    }
}

/// Beside busy threads nothing may be lost. Whether the leader stays is the scheduler's business as well: if heartbeats come
/// later than an election timeout, the members are right to elect another one. So the leader has to stay only where the
/// machine was measured to be in time; that a member's own lateness is no silence of its leader, `raft::election` tests with
/// times of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_stays_on_a_busy_machine_that_is_not_late() {
    let _alone = ALONE.lock().await;
    let busy_for = Duration::from_secs(if std::env::var_os("PALISADE_LONG").is_some() { 20 } else { 8 });
    let nodes = cluster().await;
    let (lead, before) = (leader(&nodes), term(&nodes[0]));
    let (late, trips) = (Lateness::watch(nodes[lead].dir.path()).unwrap(), RoundTrips::watch().await);
    let over = Arc::new(AtomicBool::new(false));
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let busy: Vec<_> = (0..2 * cores)
        .map(|_| {
            let over = over.clone();
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let end = clock::now() + busy_for;
    let mut n = 0;
    while clock::now() < end {
        assert_eq!(nodes[n % 3].run().command(command(n as u16), LONG).await, Ok(Outcome::Accepted));
        n += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    over.store(true, Ordering::Relaxed);
    busy.into_iter().for_each(|thread| thread.join().unwrap());
    println!(
        "{n} commits in {busy_for:?} beside {} busy threads on {cores} cores; a step was late by {:?} at most, a round trip by {:?}",
        2 * cores,
        late.longest(),
        trips.worst()
    );
    let all = |node: &Node| (0..n as u16).all(|s| has(node, s));
    until("all have all commits", || nodes.iter().all(all)).await;
    // Busy is what the machine was to be: only what was late counts here.
    if late.longest().max(trips.worst()) < ELECTION_TIMEOUT / 4 {
        assert_eq!(
            (leader(&nodes), nodes.each_ref().map(term)),
            (lead, [before; 3]),
            "the leader changed without a fault"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candidate_that_cannot_hear_its_leader_disturbs_nobody() {
    let nodes = cluster().await;
    let late = Lateness::watch(nodes[0].dir.path()).unwrap();
    let (lead, before) = (leader(&nodes), term(&nodes[0]));
    let deaf = &nodes[(lead + 1) % 3].run().replication;
    // It asks as often as it can, all the time.
    for _ in 0..300 {
        deaf.raft.trigger().elect(true).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    undisturbed(&nodes, lead, before, &late);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_that_was_away_disturbs_nobody() {
    let mut nodes = cluster().await;
    let late = Lateness::watch(nodes[0].dir.path()).unwrap();
    let (lead, before) = (leader(&nodes), term(&nodes[0]));
    let away = (lead + 1) % 3;
    for n in 0..3 {
        crash(&mut nodes[away]);
        assert_eq!(nodes[lead].run().command(command(n), LONG).await, Ok(Outcome::Accepted));
        nodes[away].start().await;
        until("it has a valid lease", || nodes[away].has_valid_lease()).await;
    }
    undisturbed(&nodes, lead, before, &late);
}
