//! Members tell each other of live sessions, and notice who falls silent.

use super::breaks::pass_segment;
use super::*;
use crate::sync::liveness::SUSPECT_AFTER;
use palisade_engine::{TakeoverCounts, Traffic, Verdict};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_of_a_lost_member_is_bounded_and_what_it_may_have_passed_is_accepted() {
    let mut nodes = cluster().await;
    assert_eq!(nodes[0].run().command(command(1), LONG).await, Ok(Outcome::Accepted));
    until("all have it", || nodes.iter().all(|n| has(n, 1))).await;
    let shown = |node: &Node| node.run().engine().session(clock::now(), session(1)).map(|s| s.traffic.original);
    // Told twice: what came before the first time cannot be what is missing after the second.
    let passed = clock::now();
    for (first, last) in [(0, 50), (50, 100)] {
        for n in first..last {
            assert_eq!(pass_segment(&nodes[0], 1, 2 + n * 500, 500), Verdict::Forward);
        }
        let all = Traffic { packets: last.into(), bytes: u64::from(last) * 540 };
        until("all were told", || nodes.iter().all(|n| shown(n) == Some(all))).await;
    }
    let next = 2 + 100 * 500;
    assert_eq!(pass_segment(&nodes[1], 1, next, 500), Verdict::Forward, "what was told is known");
    let silent = |node: &Node| node.run().metrics().members_silent.get();
    assert_eq!((silent(&nodes[1]), silent(&nodes[2])), (0, 0));

    crash(&mut nodes[0]);
    // 20 MB on, more than any window of this connection.
    let unseen = next + 20_000_000;
    // Nothing is known to be missing yet, unless this machine took so long for these lines that its silence was noticed.
    let early = pass_segment(&nodes[2], 1, unseen, 500).held().is_none();
    assert!(!early || clock::now().since(passed) >= SUSPECT_AFTER);
    until("its silence is noticed", || nodes[1..].iter().all(|n| silent(n) == 1)).await;
    assert_eq!(pass_segment(&nodes[2], 1, unseen, 500), Verdict::Forward);
    assert_eq!(
        nodes[2].run().engine().takeover_counts(),
        TakeoverCounts { within_bound: 1 + u64::from(early), provisional: 0 }
    );

    nodes[0].start().await;
    until("it is heard again", || nodes[1..].iter().all(|n| silent(n) == 0)).await;
}
