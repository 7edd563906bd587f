//! A machine joins although answers are lost, and comes in once; one that never comes is in nobody's way.

use palisade_engine::{ClusterState, JoinRequest};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::membership::identity::DataDir;
use crate::membership::join::{admission, mark_store};

/// Names in the register, as a member has applied it.
fn names(node: &Node) -> Vec<String> {
    let cluster: Arc<ClusterState> = node.run().engine().cluster_state();
    cluster.members.values().map(|info| info.name.clone()).collect()
}

/// A way to a member that loses the answer to the first request that registers `name` there: nothing comes back any longer once the
/// member has applied it.
async fn lossy(to: &Node, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (address, target, engine) = (listener.local_addr().unwrap(), to.options.listen, to.run().engine());
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(target).await.unwrap();
            let ((mut from_near, mut to_near), (mut from_far, mut to_far)) = (near.into_split(), far.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut from_near, &mut to_far).await });
            let engine = engine.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = from_far.read(&mut buffer).await {
                    if engine.cluster_state().members.values().any(|info| info.name == name) {
                        return;
                    }
                    to_near.write_all(&buffer[..n]).await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn join_whose_answer_is_lost_gets_the_same_id_when_it_is_repeated() {
    let nodes = cluster().await;
    let lead = &nodes[leader(&nodes)];
    let token: Token = lead.run().token(LONG).await.unwrap().parse().unwrap();
    let near = lossy(lead, "fw4").await;
    let addresses = vec![near.to_string(), lead.options.advertise.clone()];
    let token = Token::new(token.cluster.clone(), addresses, token.secret().try_into().unwrap());

    let mut late = Node::new("fw4");
    let identity = join(&late.options, &token.to_string()).await.unwrap();
    assert_eq!(identity.member, MemberId(4));
    late.start().await;
    until("it has a valid lease", || late.has_valid_lease()).await;
    assert_eq!(names(&late), ["fw1", "fw2", "fw3", "fw4"], "once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_that_never_came_keeps_no_idle_session() {
    let nodes = cluster().await;
    let text = "zone outside, inside\naccept \"all\" from any to any: any -> any\ntimeout tcp.established 2s\n";
    assert_eq!(nodes[0].policy(Generation(0), text).await, Generation(1));
    until("all have it", || nodes.iter().all(|n| n.run().engine().generation() == Generation(1))).await;
    let token = nodes[0].run().token(LONG).await.unwrap();
    let ghost = Node::new("ghost");
    join(&ghost.options, &token).await.unwrap();
    until("all know it", || nodes.iter().all(|n| n.run().status().members.len() == 4)).await;

    let establish = Establish { generation: Generation(1), ..establish(1) };
    assert_eq!(nodes[0].run().command(Command::Establish(Box::new(establish)), LONG).await, Ok(Outcome::Accepted));
    let mut events = nodes[1].run().subscribe();
    // The grace of this cluster is five minutes: so long a leader waits for a member that it has not heard of.
    let ended = timeout(LONG, async {
        loop {
            if let SessionChange::Expired(id) = &events.recv().await.unwrap().change
                && *id == session(1)
            {
                return;
            }
        }
    });
    assert!(ended.await.is_ok(), "the idle session did not end");

    let seen = |n: &Node| n.run().status().members.iter().find(|m| m.info.name == "ghost").map(|m| m.joining);
    assert!(nodes.iter().all(|n| seen(n) == Some(true)));
    assert_eq!(nodes[0].run().remove("ghost", false).await.unwrap(), Removal::Removed(MemberId(4)));
    until("it is gone", || nodes.iter().all(|n| seen(n).is_none() && n.settled())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn join_that_was_interrupted_anywhere_is_repeated_and_comes_in_once() {
    let nodes = cluster().await;
    let text = nodes[0].run().token(LONG).await.unwrap();
    let token: Token = text.parse().unwrap();
    let mut last = None;
    for step in 0..5_u8 {
        let late = Node::new(&format!("late{step}"));
        {
            let data_dir = DataDir::lock(&late.options.data_dir).unwrap();
            let number = data_dir.join_request(&token.cluster, JoinRequest([step; 16])).unwrap();
            assert_eq!(number, JoinRequest([step; 16]));
            if step >= 1 {
                let admitted = admission(&late.options, &data_dir, &token).await.unwrap();
                let member = MemberId(admitted.member);
                if step >= 2 {
                    data_dir.ensure_unused().unwrap();
                }
                if step >= 3 {
                    mark_store(&data_dir, &token.cluster, member).await.unwrap();
                }
                if step >= 4 {
                    data_dir.write_identity(&token.cluster, member, &late.options.name).unwrap();
                }
            }
        }
        late.released().await;
        let identity = join(&late.options, &text).await.unwrap_or_else(|e| panic!("after step {step}: {e}"));
        assert_eq!(identity.member, MemberId(4 + u64::from(step)), "after step {step}");
        assert!(!late.options.data_dir.join("join.toml").exists(), "after step {step}");
        last = Some(late);
    }
    let mut last = last.unwrap();
    last.start().await;
    until("it has a valid lease", || last.has_valid_lease()).await;
    assert_eq!(names(&last), ["fw1", "fw2", "fw3", "late0", "late1", "late2", "late3", "late4"], "each once");
    // A machine that is a member, and has run, does not join once more.
    last.stop().await;
    let again = join(&last.options, &text).await;
    assert!(matches!(again, Err(MembershipError::Identity(IdentityError::Taken { .. }))), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_moves_to_another_address_and_gets_another_name() {
    let mut nodes = cluster().await;
    // A follower, then the leader: whoever leads then.
    for round in 0..2 {
        let lead = leader(&nodes);
        let mover = if round == 0 { (lead + 1) % 3 } else { lead };
        let id = nodes[mover].run().identity().member;
        nodes[mover].stop().await;
        let listen = free_port();
        nodes[mover].options.listen = listen;
        nodes[mover].options.advertise = listen.to_string();
        nodes[mover].start().await;
        // Nobody reaches it, so it does not know who leads; but it reaches the others.
        let info = nodes[mover].options.info();
        assert_ne!(nodes[mover].run().registered_otherwise(&info), None);
        // If it led, the others would have no leases.
        until("another leads, and both others have leases", || {
            let leads = |n: usize| nodes[n].role() == Some(RaftRole::Leader);
            let others = [(mover + 1) % 3, (mover + 2) % 3];
            !leads(mover) && others.into_iter().any(leads) && others.into_iter().all(|n| nodes[n].has_valid_lease())
        })
        .await;
        let updated = nodes[mover].run().update(None, None, Some(listen.to_string())).await.unwrap();
        assert_eq!(updated, id);
        until("all reach it there, and openraft knows it too", || {
            nodes.iter().all(|n| {
                let status = n.run().status();
                let node = n.run().replication.raft.metrics().borrow_watched().clone();
                let node =
                    node.membership_config.nodes().find(|(i, _)| **i == id).map(|(_, info)| info.address.clone());
                n.has_valid_lease()
                    && node == Some(listen.to_string())
                    && status.members.iter().any(|m| m.id == id && m.reachable && m.info.address == listen.to_string())
            })
        })
        .await;
        assert_eq!(nodes[mover].run().registered_otherwise(&info), None);
        assert_eq!(nodes[mover].run().command(command(round), LONG).await, Ok(Outcome::Accepted));
        until("all have it", || nodes.iter().all(|n| has(n, round))).await;
    }
    // From another member, by name; and what is taken.
    nodes[0].run().update(Some("fw3"), Some("edge".to_owned()), None).await.unwrap();
    until("all know it", || nodes.iter().all(|n| names(n) == ["fw1", "fw2", "edge"])).await;
    assert_eq!(nodes[2].run().status().name, "edge");
    let taken = nodes[2].run().update(None, Some("fw1".to_owned()), None).await.unwrap_err().to_string();
    assert!(taken.contains("a member named `fw1` exists"), "{taken}");
    let there = nodes[1].options.advertise.clone();
    let taken = nodes[2].run().update(None, None, Some(there.clone())).await.unwrap_err().to_string();
    assert!(taken.contains(&format!("member `fw2` has the address {there}")), "{taken}");
    assert!(matches!(nodes[0].run().update(Some("nobody"), None, None).await, Err(MembershipError::NoSuchMember(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_that_was_removed_is_not_recovered_and_joins_again() {
    let mut nodes = cluster().await;
    let lead = leader(&nodes);
    let gone = (lead + 1) % 3;
    let name = nodes[gone].options.name.clone();
    let token = nodes[lead].run().token(LONG).await.unwrap();
    nodes[lead].run().remove(&name, true).await.unwrap();
    timeout(LONG, nodes[gone].run().removed()).await.unwrap();
    nodes[gone].run().mark_removed().unwrap();
    nodes[gone].stop().await;
    let refused = Recovery::prepare(&nodes[gone].options).await.map(drop);
    assert!(matches!(refused, Err(RecoverError::Removed)), "{refused:?}");
    // As a new member, with all that the cluster has.
    let identity = join(&nodes[gone].options, &token).await.unwrap();
    assert_eq!(identity.member, MemberId(4));
    nodes[gone].start().await;
    until("it has a valid lease", || nodes[gone].has_valid_lease()).await;
}
