//! A data folder that was restored from a backup.

use std::fs;
use std::path::Path;

use palisade_lab::lateness::Lateness;

use super::*;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_folder_that_was_rolled_back_is_refused() {
    let mut nodes = cluster().await;
    let late = Lateness::watch(nodes[0].dir.path()).unwrap();
    let lead = leader(&nodes);
    let other = (lead + 1) % 3;
    let data = nodes[other].options.data_dir.clone();
    let (backup, newest) = (nodes[other].dir.path().join("backup"), nodes[other].dir.path().join("newest"));
    nodes[other].stop().await;
    copy(&data, &backup);
    // Of the same run as the backup, as far as the folder can tell.
    nodes[other].start().await;
    for n in 0..50 {
        assert_eq!(nodes[other].run().command(command(n), LONG).await, Ok(Outcome::Accepted));
    }
    let member = nodes[other].run().identity().member;
    let durable = || nodes[lead].run().status().members.iter().find(|m| m.id == member).and_then(|m| m.matched);
    until("the leader knows that it has them", || durable() == nodes[lead].run().status().last_log).await;
    let there = durable().unwrap();
    nodes[other].stop().await;
    fs::rename(&data, &newest).unwrap();
    copy(&backup, &data);

    let opened = Replication::open(
        nodes[other].options.clone(),
        mpsc::channel(1).1,
        mpsc::channel(1).1,
        Woken::default(),
        Arc::new(Lease::new(LONG)),
    );
    match opened.await.map(drop) {
        Err(OpenError::Rollback(RollbackError::RolledBack { member: id, here, there: known })) => {
            println!("its log ends at {here}, the leader knows that it had {known}");
            assert_eq!((id, known), (member, there));
            assert!(here + 50 <= there, "{here}, {there}");
        }
        other => panic!("{other:?}"),
    }
    if late.excuses(ELECTION_TIMEOUT).is_none() {
        assert_eq!(leader(&nodes[..]), lead, "nobody was disturbed");
    }
    assert_eq!(nodes[lead].run().command(command(60), LONG).await, Ok(Outcome::Accepted));

    // What was not rolled back starts.
    nodes[other].released().await;
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&newest, &data).unwrap();
    nodes[other].start().await;
    until("it has a valid lease", || nodes[other].has_valid_lease() && has(&nodes[other], 60)).await;
}
