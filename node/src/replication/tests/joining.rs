//! A member joins a cluster with very many sessions.

use std::pin::pin;
use std::sync::atomic::AtomicBool;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::*;

/// Commands in a batch.
const BATCH: u32 = 256;
/// Sources of batches that are under way at the same time.
const SOURCES: u32 = 8;
/// Between two commands: a steady stream of new connections.
const EVERY: Duration = Duration::from_millis(2);
const BEFORE: Duration = Duration::from_secs(4);

/// `PALISADE_SESSIONS` of them; or a million where the long forms of tests are asked for, and fewer otherwise.
fn sessions() -> u32 {
    let usual = if std::env::var_os("PALISADE_LONG").is_some() { 1_000_000 } else { 200_000 };
    std::env::var("PALISADE_SESSIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

fn many(n: u32) -> Command {
    let mut establish = establish(0);
    establish.id = SessionId { member: MemberId(9), counter: u64::from(n) };
    let [a, b, c, d] = n.to_be_bytes();
    establish.original.src = Ip::V4([10, a + 1, b, c]);
    establish.original.src_port = 1024 + u16::from(d);
    establish.reply = establish.original.inverse();
    Command::Establish(Box::new(establish))
}

/// Puts them into the log, through the leader: on a busy machine it may change.
async fn fill(nodes: &[Node], count: u32) {
    let source = async |number: u32| {
        let mut first = 0;
        for n in (number * BATCH..count).step_by((SOURCES * BATCH) as usize) {
            let commands: Vec<Command> = (n..count.min(n + BATCH)).map(many).collect();
            let next = first + commands.len() as u64;
            let proposer = MemberId(100 + u64::from(number));
            let batch = Batch { proposer, first_serial: first, lowest_outstanding: first, unix_ms: 0, commands };
            let written = timeout(LONG, async {
                let leads = |n: &&Node| n.role() == Some(RaftRole::Leader);
                loop {
                    if let Some(node) = nodes.iter().find(leads)
                        && node.run().replication.raft.client_write(batch.clone()).await.is_ok()
                    {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
            assert!(written.await.is_ok(), "nobody took a batch");
            first = next;
        }
    };
    futures::future::join_all((0..SOURCES).map(source)).await;
}

/// Orders commands at a steady pace, from `next` on, until `end`; how long each took.
async fn orders(node: &Node, next: &mut u32, end: impl Future<Output = ()>) -> Vec<Duration> {
    let order = async |n: u32| {
        let asked = clock::now();
        assert_eq!(node.run().command(many(n), LONG).await, Ok(Outcome::Accepted));
        clock::now().since(asked)
    };
    let (mut end, mut flying, mut times) = (pin!(end), FuturesUnordered::new(), Vec::new());
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            biased;
            () = &mut end => break,
            Some(took) = flying.next() => times.push(took),
            _ = ticks.tick() => {
                flying.push(order(*next));
                *next += 1;
            }
        }
    }
    while let Some(took) = flying.next().await {
        times.push(took);
    }
    times.sort_unstable();
    times
}

/// The longest time for which a member applied nothing, since it was asked last.
struct Pauses {
    longest: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Pauses {
    fn watch(node: &Node) -> Pauses {
        let pauses = Pauses { longest: Arc::default(), stop: Arc::default() };
        let (longest, stop, metrics) = (pauses.longest.clone(), pauses.stop.clone(), node.run().metrics());
        std::thread::spawn(move || {
            let (mut count, mut since) = (0, clock::now());
            while !stop.load(Ordering::Relaxed) {
                let (now, applied) = (clock::now(), metrics.applied_commands.get());
                if applied != count {
                    (count, since) = (applied, now);
                }
                longest.fetch_max(now.since(since).as_nanos() as u64, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        pauses
    }

    fn reset(&self) {
        self.longest.store(0, Ordering::Relaxed);
    }

    fn take(&self) -> Duration {
        Duration::from_nanos(self.longest.swap(0, Ordering::Relaxed))
    }
}

impl Drop for Pauses {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100) - 1]
}

// Four members share these threads; on machines of their own each has its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn member_joins_a_cluster_with_many_sessions() {
    let _alone = elections::ALONE.lock().await;
    // Batches are large here, and there are few: so that the new member gets a snapshot, as it would of a long log.
    let roomy = |node: &mut Node| {
        node.settings = vec!["table.sessions=2097152"];
        node.options.log = LogSize::every(1 << 20);
    };
    let nodes = cluster_with(roomy).await;
    let mut next = sessions();
    let begun = clock::now();
    fill(&nodes, next).await;
    until("all have them", || {
        let count = |n: &Node| n.run().engine().counts().sessions.iter().map(|(.., n)| *n).sum::<u64>();
        nodes.iter().all(|n| count(n) == u64::from(next))
    })
    .await;
    println!("{next} sessions were established in {:?}", clock::now().since(begun));

    until("one leads", || nodes.iter().any(|n| n.role() == Some(RaftRole::Leader))).await;
    let follower = (leader(&nodes) + 1) % 3;
    let pauses: Vec<Pauses> = nodes.iter().map(Pauses::watch).collect();
    let before = orders(&nodes[follower], &mut next, async {
        tokio::time::sleep(BEFORE / 2).await;
        pauses.iter().for_each(Pauses::reset);
        tokio::time::sleep(BEFORE / 2).await;
    })
    .await;
    let usual = pauses.iter().map(Pauses::take).max().unwrap();

    let token = nodes[0].run().token(LONG).await.unwrap();
    let mut late = Node::new("fw4");
    roomy(&mut late);
    let (mut current, mut voter) = (Duration::ZERO, Duration::ZERO);
    pauses.iter().for_each(Pauses::reset);
    let meanwhile = orders(&nodes[follower], &mut next, async {
        join(&late.options, &token).await.unwrap();
        let begun = clock::now();
        late.start().await;
        until("it has a valid lease", || late.has_valid_lease()).await;
        current = clock::now().since(begun);
        until("it votes", || late.run().status().members.iter().filter(|m| m.voter).count() == 4).await;
        voter = clock::now().since(begun);
    })
    .await;
    let longest = pauses.iter().map(Pauses::take).max().unwrap();
    let [p50, p99] = [50, 99].map(|p| (percentile(&before, p), percentile(&meanwhile, p)));
    println!(
        "caught up after {current:?}, a voter after {voter:?}; longest time without an apply {longest:?} (before: {usual:?}); setup \
         before and meanwhile: p50 {p50:?}, p99 {p99:?}, longest {:?}; {} and {} commands",
        (before.last(), meanwhile.last()),
        before.len(),
        meanwhile.len()
    );
    assert!(late.run().metrics().snapshots.received.get() >= 1);
    // Every command was accepted (see `orders`), before and meanwhile; and the new member has all of them.
    until("it has all sessions", || {
        let count = |n: &Node| n.run().engine().counts().sessions.iter().map(|(.., n)| *n).sum::<u64>();
        count(&late) == u64::from(next) && nodes.iter().all(|n| count(n) == u64::from(next))
    })
    .await;
}
