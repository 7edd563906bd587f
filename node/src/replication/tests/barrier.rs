//! Reads with a barrier.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_barrier_sees_what_was_acknowledged_and_adds_nothing_to_the_log() {
    let mut nodes = cluster().await;
    for n in 0..12_u16 {
        let (on, elsewhere) = (usize::from(n) % 3, (usize::from(n) + 1) % 3);
        assert_eq!(nodes[on].run().command(command(n), LONG).await, Ok(Outcome::Accepted));
        nodes[elsewhere].run().read_barrier(LONG).await.unwrap();
        assert!(has(&nodes[elsewhere], n), "session {n}, acknowledged before the barrier, is missing after it");
    }
    let last_log = nodes[leader(&nodes)].run().status().last_log;
    for node in &nodes {
        for _ in 0..5 {
            node.run().read_barrier(LONG).await.unwrap();
        }
    }
    assert_eq!(nodes[leader(&nodes)].run().status().last_log, last_log);

    // Without a majority there is no barrier.
    let left = (0..3).find(|n| *n != leader(&nodes)).unwrap();
    for other in (0..3).filter(|n| *n != left) {
        crash(&mut nodes[other]);
    }
    assert!(nodes[left].run().read_barrier(Duration::from_millis(500)).await.is_err());
}
