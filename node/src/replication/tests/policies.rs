//! Policies in two steps, in a cluster.

use super::*;
use crate::policy::enactor::PATIENCE;

const OPEN: &str = "zone outside, inside\naccept \"all\" from any to any: any -> any\n";

fn change(base: u64, text: &str) -> PolicyChange {
    PolicyChange::new(Generation(base), text.to_owned(), "test".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_that_a_member_refuses_is_withdrawn_and_says_who_and_why() {
    let nodes = cluster().await;
    assert_eq!(nodes[0].policy(Generation(0), OPEN).await, Generation(1));
    // As from a program whose grammar has more: this one refuses it, and says so.
    let broken = change(1, "zone outside\nfuture \"x\"\n");
    let error = nodes[1].run().put_policy(broken, LONG).await.unwrap_err();
    let PutError::Withdrawn(reports) = error else { panic!("{error:?}") };
    assert!(reports.refused.values().all(|why| why.contains("line 2")), "{reports:?}");
    assert!(!reports.refused.is_empty() && reports.compiled.is_empty(), "{reports:?}");
    until("nobody has a candidate", || {
        nodes.iter().all(|node| node.run().engine().cluster_state().candidate.is_none())
    })
    .await;
    assert!(nodes.iter().all(|node| node.run().engine().generation() == Generation(1)));
    assert!(nodes.iter().all(Node::has_valid_lease), "nothing waited for it");
    // Another one comes into force as if nothing had been.
    assert_eq!(nodes[2].policy(Generation(1), "zone outside\n").await, Generation(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_member_does_not_stop_a_policy_and_compiles_only_the_last_one_afterwards() {
    let mut nodes = cluster().await;
    let gone = (leader(&nodes) + 1) % 3;
    let here = (leader(&nodes) + 2) % 3;
    nodes[gone].stop().await;
    for n in 0..5 {
        let begin = clock::now();
        let done = nodes[here].run().put_policy(change(n, &format!("{OPEN}# {n}\n")), LONG).await.unwrap();
        assert_eq!(done.generation, Generation(n + 1));
        assert_eq!(done.without, [MemberId(gone as u64 + 1)]);
        // Only the first one may have to wait until the dead member's lease is over.
        assert!(n == 0 || clock::now().since(begin) < PATIENCE, "{:?}", clock::now().since(begin));
    }
    nodes[gone].start().await;
    until("it is current", || nodes[gone].has_valid_lease()).await;
    assert_eq!(nodes[gone].run().engine().generation(), Generation(5));
    assert!(nodes[gone].run().engine().is_policy_compiled());
    let compiled = nodes[gone].run().metrics().policies_compiled.compiled.get();
    // It may look while it catches up.
    assert!((1..=5).contains(&compiled), "{compiled}");
    // What it has in its log now needs one compilation at the next start.
    nodes[gone].stop().await;
    nodes[gone].start().await;
    until("it is current again", || nodes[gone].has_valid_lease()).await;
    assert_eq!(nodes[gone].run().metrics().policies_compiled.compiled.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_policies_at_once_one_is_superseded() {
    let nodes = cluster().await;
    let (first, second) = (change(0, OPEN), change(0, "zone outside, inside\n"));
    let (first, second) = tokio::join!(nodes[0].run().put_policy(first, LONG), nodes[1].run().put_policy(second, LONG));
    let done = [first.is_ok(), second.is_ok()];
    assert!(done.contains(&true), "{first:?} {second:?}");
    for failed in [first, second].into_iter().filter_map(Result::err) {
        let superseded = matches!(failed, PutError::Superseded { .. } | PutError::Refused(Outcome::Stale(_)));
        assert!(superseded, "{failed:?}");
    }
}
