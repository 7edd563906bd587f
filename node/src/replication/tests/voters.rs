//! More members than voters, and voters that die.

use super::*;

/// The names of those that vote, as `node` sees it.
fn voting(node: &Node) -> Vec<String> {
    node.run().status().members.iter().filter(|m| m.voter).map(|m| m.info.name.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn learner_takes_the_place_of_a_voter_that_is_dead() {
    let few = |n: &mut Node| n.settings = vec!["members.voters=3", "members.replace_after=5s"];
    let [first, second, third] = cluster_with(few).await;
    let mut fourth = Node::new("fw4");
    few(&mut fourth);
    let token = first.run().token(LONG).await.unwrap();
    join(&fourth.options, &token).await.unwrap();
    fourth.start().await;
    until("the fourth has a valid lease", || fourth.has_valid_lease()).await;
    let mut nodes = [first, second, third, fourth];
    tokio::time::sleep(Duration::from_secs(1)).await;
    let lead = leader(&nodes);
    assert_eq!(voting(&nodes[lead]), ["fw1", "fw2", "fw3"]);
    assert_eq!(nodes[3].role(), Some(RaftRole::Learner), "it stores and forwards, but does not vote");
    assert_eq!(nodes[3].run().command(command(1), LONG).await, Ok(Outcome::Accepted));

    // A voter dies. For a while nothing happens; then the learner votes, and the dead one does not, but is a member.
    let dead = (0..3).find(|n| *n != lead).unwrap();
    let died = clock::now();
    crash(&mut nodes[dead]);
    let name = nodes[dead].options.name.clone();
    until("the learner votes", || voting(&nodes[lead]).contains(&"fw4".to_owned())).await;
    let after = clock::now().since(died);
    println!("replaced after {after:?}");
    assert!(after > Duration::from_secs(4), "{after:?}");
    until("the dead one does not", || !voting(&nodes[lead]).contains(&name) && nodes[lead].settled()).await;
    let status = nodes[lead].run().status();
    assert_eq!((voting(&nodes[lead]).len(), status.members.len()), (3, 4), "{status:?}");
    assert_eq!(nodes[3].run().command(command(2), LONG).await, Ok(Outcome::Accepted));

    // It comes back: a learner, for there is no place.
    nodes[dead].start().await;
    until("it has a valid lease", || nodes[dead].has_valid_lease() && has(&nodes[dead], 2)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(nodes[dead].role(), Some(RaftRole::Learner));

    // The leader dies for good: another one leads, and the one that came back gets the place.
    crash(&mut nodes[lead]);
    let old = nodes[lead].options.name.clone();
    until("the one that came back votes", || {
        let votes = voting(&nodes[3]);
        votes.contains(&name) && !votes.contains(&old) && votes.len() == 3
    })
    .await;
    assert_eq!(nodes[dead].run().command(command(3), LONG).await, Ok(Outcome::Accepted));
}
