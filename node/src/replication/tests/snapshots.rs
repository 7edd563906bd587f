//! Snapshots beside everything else: receivers that fail, and slow disks.

use std::os::unix::fs::symlink;
use std::sync::atomic::AtomicBool;

use palisade_raft_store::{LentLimits, LogLimits, SlowDisk};

use super::*;

/// Snapshots of small logs, and little kept for receivers.
fn small() -> LogSize {
    let mut log = LogSize::every(2 << 10);
    log.limits.lent = LentLimits { bytes: 16 << 10, time: Duration::from_secs(600) };
    log
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receiver_that_always_fails_is_left_alone_and_the_log_stays_short() {
    let nodes = cluster_with(|node| node.options.log = small()).await;
    let lead = leader(&nodes);
    for n in 0..100 {
        assert_eq!(nodes[lead].run().command(command(n), LONG).await, Ok(Outcome::Accepted));
    }
    until("the log has lost its beginning", || nodes[lead].run().status().purged > Some(50)).await;

    let mut late = Node::new("fw4");
    late.options.log = small();
    let token = nodes[lead].run().token(LONG).await.unwrap();
    join(&late.options, &token).await.unwrap();
    // Nothing can be created there, not even by root.
    let snapshots = late.options.data_dir.join("raft/snapshots");
    std::fs::remove_dir(&snapshots).unwrap();
    symlink("/sys/kernel", &snapshots).unwrap();
    late.start().await;
    let sender = nodes[lead].run();
    let failed = || sender.metrics().snapshot_sends_failed.get();
    until("it has failed once", || failed() > 0).await;
    let begun = tokio::time::Instant::now();
    let mut n = 100;
    while failed() < 4 {
        for _ in 0..50 {
            assert_eq!(sender.command(command(n), LONG).await, Ok(Outcome::Accepted));
            n += 1;
        }
        let status = sender.status();
        // What is kept for receivers, before the snapshot, until it is made, and until the purge; 150 bytes each.
        let kept = status.last_log.unwrap() - status.purged.unwrap();
        assert!(kept < 500, "{kept} entries are kept: {status:?}");
    }
    assert!(begun.elapsed() >= Duration::from_secs(3), "four attempts within {:?}", begun.elapsed());
    assert_eq!(sender.metrics().snapshot_receivers_failing.get(), 1);

    std::fs::remove_file(&snapshots).unwrap();
    std::fs::create_dir(&snapshots).unwrap();
    until("it has a valid lease", || late.has_valid_lease()).await;
    assert!((0..n).all(|n| has(&late, n)));
    until("no receiver fails any longer", || sender.metrics().snapshot_receivers_failing.get() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_on_a_slow_disk_disturb_nobody() {
    let limits = LogLimits { interval: Duration::from_secs(3600), ..LogSize::every(4 << 10).limits };
    let nodes = cluster_with(|node| {
        node.options.log = LogSize { limits, disk: SlowDisk::limited(2_000_000, Arc::new(clock::now)) };
    })
    .await;
    let counted = |node: &Node| {
        let run = node.run();
        (run.store_metrics().snapshots.written.get(), run.metrics().leader_changes.get())
    };
    let before: Vec<_> = nodes.iter().map(counted).collect();
    for n in 0..400 {
        assert_eq!(nodes[usize::from(n) % 3].run().command(command(n), LONG).await, Ok(Outcome::Accepted));
    }
    let done = |(node, before): (&Node, &(u64, u64))| counted(node).0 >= before.0 + 3;
    until("each has made snapshots", || nodes.iter().zip(&before).all(done)).await;
    until("each has applied everything", || nodes.iter().all(|node| (0..400).all(|n| has(node, n)))).await;
    for (node, (_, changes)) in nodes.iter().zip(before) {
        assert_eq!(counted(node).1, changes, "the leader has changed");
        assert!(node.run().store_metrics().snapshots.shard_locked.get() > Duration::ZERO);
        assert!(node.run().store_metrics().snapshots.bytes.get() > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follower_that_is_always_too_slow_does_not_keep_the_log() {
    let flags: [Arc<AtomicBool>; 3] = Default::default();
    let nodes = cluster_with(|node| {
        let slow = flags[usize::from(node.options.name.as_bytes()[2] - b'1')].clone();
        let disk = SlowDisk::limited(10_000, Arc::new(clock::now)).0.unwrap();
        let sometimes = move |bytes| {
            if slow.load(Ordering::Relaxed) {
                disk(bytes)
            }
        };
        node.options.log = LogSize { disk: SlowDisk(Some(Arc::new(sometimes))), ..small() };
    })
    .await;
    let lead = leader(&nodes);
    let slow = (lead + 1) % 3;
    flags[slow].store(true, Ordering::Relaxed);
    let mut n = 0;
    // As many as its disk has no time for, several times over.
    while n < 1500 {
        for _ in 0..50 {
            assert_eq!(nodes[lead].run().command(command(n), LONG).await, Ok(Outcome::Accepted));
            n += 1;
        }
        until("the leader purges its log", || {
            let status = nodes[lead].run().status();
            status.last_log.unwrap() - status.purged.unwrap_or(0) < 300
        })
        .await;
    }
    flags[slow].store(false, Ordering::Relaxed);
    until("it has everything", || (0..n).all(|n| has(&nodes[slow], n))).await;
    assert!(nodes[slow].run().metrics().snapshots.received.get() > 0);
}
