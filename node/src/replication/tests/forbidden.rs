//! Sessions that a new policy forbids end on all members.

use palisade_lab::lateness::Lateness;

use super::*;

const ALL: &str = "zone outside, inside\naccept \"all\" from any to any: any -> any\n";
const BLOCKED: &str = "zone outside, inside\ndrop \"web\" from any to any: any -> any tcp/80\n\
                       accept \"all\" from any to any: any -> any\n";

async fn apply(node: &Node, base: u64, text: &str) -> Generation {
    node.policy(Generation(base), text).await
}

fn to_port(n: u16, port: u16, generation: Generation) -> Command {
    let mut establish = Establish { generation, rule: RuleId(1), ..establish(n) };
    establish.original.dst_port = port;
    establish.reply = establish.original.inverse();
    Command::Establish(Box::new(establish))
}

fn sweeps(node: &Node) -> u64 {
    node.run().metrics().policy_sweeps.completed.get()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forbidden_session_ends_on_all_members_and_does_not_come_back() {
    let nodes = cluster().await;
    let first = apply(&nodes[0], 0, ALL).await;
    for (n, port) in [(1, 80), (2, 443)] {
        assert_eq!(nodes[0].run().command(to_port(n, port, first), LONG).await, Ok(Outcome::Accepted));
    }
    until("all have both", || nodes.iter().all(|node| has(node, 1) && has(node, 2))).await;
    let mut events = nodes[(leader(&nodes) + 1) % 3].run().subscribe();
    let second = apply(&nodes[1], 1, BLOCKED).await;
    until("the forbidden session is gone", || nodes.iter().all(|node| !has(node, 1))).await;
    // Watchers are told why.
    let event = timeout(LONG, events.recv()).await.unwrap().unwrap();
    assert_eq!(event.change, SessionChange::Forbidden(session(1), second));
    let third = apply(&nodes[2], 2, ALL).await;
    assert_eq!(nodes[0].run().command(to_port(3, 80, third), LONG).await, Ok(Outcome::Accepted));
    // Two by the second policy, one by the third.
    let judged = || nodes.iter().map(|node| node.run().metrics().policy_sweep_judged.get()).sum::<u64>();
    until("the leader has judged them by each policy", || judged() >= 3).await;
    until("all have the new one", || nodes.iter().all(|node| has(node, 3))).await;
    assert!(nodes.iter().all(|node| !has(node, 1) && has(node, 2)));
    assert!(nodes.iter().all(|node| node.run().metrics().sessions_forbidden.get() == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_leader_sweeps_anew() {
    let mut nodes = cluster().await;
    let first = apply(&nodes[0], 0, ALL).await;
    assert_eq!(nodes[0].run().command(to_port(1, 80, first), LONG).await, Ok(Outcome::Accepted));
    // The leader goes as soon as the policy is in force: whether it has begun a sweep does not matter.
    let old = leader(&nodes);
    apply(&nodes[old], 1, BLOCKED).await;
    crash(&mut nodes[old]);
    let rest = [(old + 1) % 3, (old + 2) % 3];
    until("a new leader has swept", || rest.iter().any(|&n| sweeps(&nodes[n]) > 0)).await;
    until("the forbidden session is gone", || rest.iter().all(|&n| !has(&nodes[n], 1))).await;
}

/// A session of a million, in a debug build of fewer: each with an address of its own.
fn one_of_many(n: u32) -> Command {
    let mut establish = Establish { generation: Generation(1), rule: RuleId(1), ..establish(1) };
    establish.id.counter = u64::from(n);
    let [_, a, b, c] = n.to_be_bytes();
    establish.original.src = Ip::V4([10, a, b, c]);
    // One in all that is forbidden.
    establish.original.dst_port = if n == 0 { 80 } else { 443 };
    establish.reply = establish.original.inverse();
    Command::Establish(Box::new(establish))
}

/// In a release build it shows what was promised: `cargo test --release -p palisade-node forbidden_session_of_a_million`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forbidden_session_of_a_million_is_gone_from_all_members_within_a_second() {
    const BATCH: u32 = 200;
    let sessions: u32 = if cfg!(debug_assertions) { 5_000 } else { 1_000_000 };
    let nodes = cluster_with(|node| node.settings = vec!["table.sessions=1100000"]).await;
    apply(&nodes[0], 0, ALL).await;
    let lead = &nodes[leader(&nodes)];
    for first in (0..sessions).step_by(BATCH as usize) {
        let commands = (first..sessions.min(first + BATCH)).map(one_of_many).collect();
        let serial = u64::from(first);
        let batch =
            Batch { proposer: MemberId(9), first_serial: serial, lowest_outstanding: serial, unix_ms: 0, commands };
        write(lead, &batch).await;
    }
    let count = |node: &Node| node.run().engine().counts().sessions.iter().map(|(.., n)| *n).sum::<u64>();
    until("all have all sessions", || nodes.iter().all(|node| count(node) == u64::from(sessions))).await;
    let late = Lateness::watch(nodes[0].dir.path()).unwrap();
    let began = clock::now();
    apply(lead, 1, BLOCKED).await;
    until("the forbidden session is gone", || nodes.iter().all(|node| !has(node, 0))).await;
    let took = clock::now().since(began);
    until("the sweep is complete", || lead.run().metrics().policy_sweep_time.get() > Duration::ZERO).await;
    println!("{sessions} sessions: the forbidden one was gone from all members after {took:?}");
    let promised = Duration::from_secs(1);
    assert!(cfg!(debug_assertions) || took <= promised || late.excuses(promised).is_some(), "{took:?}");
    assert!(nodes.iter().all(|node| count(node) == u64::from(sessions) - 1));
}
