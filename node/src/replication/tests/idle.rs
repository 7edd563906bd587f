//! Idle sessions end on all members, unless a packet of one comes while they are asked.

use palisade_engine::{Event, Verdict};
use palisade_lab::lateness::Lateness;

use super::breaks::segment_events;
use super::*;

const POLICY: &str = "zone outside, inside\naccept \"all\" from any to any: any -> any\ntimeout tcp.established 2s\n";

async fn two_seconds(nodes: &[Node]) {
    nodes[0].policy(Generation(0), POLICY).await;
    until("all have it", || nodes.iter().all(|n| n.run().engine().generation() == Generation(1))).await;
}

fn of_the_policy(n: u16) -> Command {
    Command::Establish(Box::new(Establish { generation: Generation(1), ..establish(n) }))
}

/// Passes a packet as a worker does; false: it is held, for a refresh that is proposed.
async fn pass(node: &Node, n: u16) -> bool {
    let (verdict, events) = segment_events(node, n, 2, 500);
    for event in events {
        if let Event::Propose(proposal) = event {
            assert_eq!(proposal, Proposal::Refresh(session(n)));
            node.run().proposals.send(proposal).await.unwrap();
        }
    }
    assert!(verdict == Verdict::Forward || verdict.held().is_some(), "{verdict:?}");
    verdict == Verdict::Forward
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_session_ends_but_not_one_whose_packet_comes_just_then() {
    let mut nodes = cluster().await;
    two_seconds(&nodes).await;
    for n in [1, 2] {
        assert_eq!(nodes[0].run().command(of_the_policy(n), LONG).await, Ok(Outcome::Accepted));
    }
    until("all have them", || nodes.iter().all(|n| has(n, 1) && has(n, 2))).await;
    let lead = leader(&nodes);
    let (user, silent) = ((lead + 1) % 3, (lead + 2) % 3);
    let mut events = nodes[user].run().subscribe();

    // The leader's questions reach one member only, so nothing ends; that member has said that both are idle.
    nodes[silent].stop().await;
    let answered = timeout(LONG, async {
        // A packet that passes, because nobody has asked yet, is one more use: so not too often.
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            if segment_events(&nodes[user], 1, 2, 500).0.held().is_some() {
                return;
            }
        }
    });
    answered.await.unwrap();
    // Asked again a quarter of a second later: the first proposal was not sent.
    until("a packet waits for a refresh", || {
        let (_, events) = segment_events(&nodes[user], 1, 2, 500);
        let proposals = events.into_iter().filter_map(|event| match event {
            Event::Propose(proposal) => Some(proposal),
            _ => None,
        });
        proposals.map(|p| nodes[user].run().proposals.try_send(p)).any(|sent| sent.is_ok())
    })
    .await;
    let refreshed = |n: &Node| n.run().metrics().sessions_refreshed.get() >= 1;
    until("it is refreshed", || refreshed(&nodes[lead]) && refreshed(&nodes[user])).await;
    let late = Lateness::watch(nodes[0].dir.path()).unwrap();
    assert!(pass(&nodes[user], 1).await || late.excuses(Duration::from_secs(2)).is_some());

    nodes[silent].start().await;
    timeout(LONG, async {
        // In use at one member; the others hear of it by its progress, or by refreshes.
        while nodes.iter().any(|n| has(n, 2)) {
            pass(&nodes[user], 1).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    assert!(nodes.iter().all(|n| has(n, 1)) || late.excuses(Duration::from_secs(2)).is_some(), "it was in use");
    let ended = timeout(LONG, async {
        loop {
            if let SessionChange::Expired(id) = &events.recv().await.unwrap().change
                && *id == session(2)
            {
                return;
            }
        }
    });
    ended.await.unwrap();
    until("it ends when nobody uses it any longer", || nodes.iter().all(|n| !has(n, 1))).await;
}
