//! What goes wrong: leaders lost in mid-flight, members that come late, that are gone, that should not be there.

use std::collections::BTreeMap;

use palisade_engine::parse::{IpOptions, Kind, Packet, Tcp};
use palisade_engine::{Context, Event, Routes, Verdict};
use palisade_lab::lateness::Lateness;
use palisade_proto::member::v1 as proto;
use tokio::sync::broadcast::error::RecvError;

use super::*;

/// How often each session was established, as a watcher sees it, until `last` was.
async fn watch(mut events: broadcast::Receiver<Arc<SessionEvent>>, last: u16) -> BTreeMap<u64, u32> {
    let mut seen = BTreeMap::new();
    loop {
        match timeout(LONG, events.recv()).await.unwrap() {
            Ok(event) => {
                if let SessionChange::Established(e) = &event.change {
                    *seen.entry(e.id.counter).or_default() += 1;
                    if e.id == session(last) {
                        return seen;
                    }
                }
            }
            Err(RecvError::Lagged(n)) => panic!("{n} events were lost"),
            Err(RecvError::Closed) => panic!("no more events"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposal_in_flight_when_the_leader_is_lost_is_applied_once() {
    const MANY: u16 = 400;
    let mut nodes = cluster().await;
    let lead = leader(&nodes);
    let (proposer, witness) = ((lead + 1) % 3, (lead + 2) % 3);
    let watched = tokio::spawn(watch(nodes[witness].run().subscribe(), MANY));
    let metrics = nodes[proposer].run().metrics();
    let accepted = metrics.outcomes.accepted.get();
    let outcomes = {
        let run = nodes[proposer].running.take().unwrap();
        let requests = run.replication.requests.clone();
        let all = (0..MANY).map(|n| {
            let requests = requests.clone();
            async move {
                // Spread, so that some are before, some in and some after the loss.
                tokio::time::sleep(Duration::from_micros(u64::from(n) * 250)).await;
                propose_and_wait(&requests, command(n), LONG).await
            }
        });
        let all = tokio::spawn(futures::future::join_all(all));
        tokio::time::sleep(Duration::from_millis(30)).await;
        crash(&mut nodes[lead]);
        nodes[proposer].running = Some(run);
        all.await.unwrap()
    };
    assert!(outcomes.iter().all(|o| *o == Ok(Outcome::Accepted)), "{outcomes:?}");
    assert_eq!(metrics.outcomes.accepted.get() - accepted, u64::from(MANY));
    assert!(metrics.batches_retransmitted.get() > 0, "nothing was in flight when the leader was lost");
    assert_eq!(nodes[proposer].run().command(command(MANY), LONG).await, Ok(Outcome::Accepted));
    let seen = watched.await.unwrap();
    assert_eq!(seen.len(), usize::from(MANY) + 1);
    assert!(seen.values().all(|n| *n == 1), "{seen:?}");

    nodes[lead].start().await;
    until("the old leader knows all of them", || {
        nodes[lead].has_valid_lease()
            && (0..=MANY).all(|n| has(&nodes[lead], n))
            && nodes[lead].role() != Some(RaftRole::Leader)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_brings_everything_to_a_member_that_joins_late() {
    const MANY: u16 = 200;
    let small = |node: &mut Node| node.options.log = LogSize::every(2 << 10);
    let nodes = cluster_with(small).await;
    let node = &nodes[0];
    let base = nodes[0].run().engine().generation();
    let generation = node.policy(base, "zone inside, outside\ndefault drop\n").await;
    for n in 0..MANY {
        let establish = Establish { generation, ..establish(n) };
        let outcome = node.run().command(Command::Establish(Box::new(establish)), LONG).await;
        assert_eq!(outcome, Ok(Outcome::Accepted), "{n}");
    }
    let lead = leader(&nodes);
    until("the leader's log has lost its beginning", || nodes[lead].run().status().purged > Some(100)).await;

    let mut late = Node::new("fw4");
    small(&mut late);
    let token = nodes[1].run().token(LONG).await.unwrap();
    assert_eq!(join(&late.options, &token).await.unwrap().member, MemberId(4));
    late.start().await;
    until("it has a valid lease and votes", || {
        late.has_valid_lease() && late.run().status().members.iter().filter(|m| m.voter).count() == 4
    })
    .await;
    assert!(late.run().metrics().snapshots.received.get() >= 1);
    assert!((0..MANY).all(|n| has(&late, n)));
    let (theirs, its) = (nodes[0].run().engine().cluster_state(), late.run().engine().cluster_state());
    assert_eq!(late.run().engine().generation(), generation);
    assert_eq!(theirs.members, its.members);
    assert_eq!((&theirs.cluster_id, &theirs.tokens), (&its.cluster_id, &its.tokens));
    let texts = |v: &palisade_engine::ClusterState| v.policies.iter().map(|p| p.text.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&theirs), texts(&its));

    // What came by snapshot is durable, and it goes on from there.
    late.stop().await;
    late.start().await;
    until("its lease is valid again", || late.has_valid_lease()).await;
    assert!((0..MANY).all(|n| has(&late, n)));
    let more = Establish { generation, ..establish(MANY) };
    let outcome = late.run().command(Command::Establish(Box::new(more)), LONG).await;
    assert_eq!(outcome, Ok(Outcome::Accepted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_a_batch_are_reported_once_also_after_a_snapshot() {
    let small = |node: &mut Node| node.options.log = LogSize::every(2 << 10);
    let nodes = cluster_with(small).await;
    let lead = leader(&nodes);
    let watched = tokio::spawn(watch(nodes[lead].run().subscribe(), 301));
    let established = nodes[lead].run().metrics().sessions_established.get();
    // Far above what its proposer itself numbers in this test, and within its window.
    let floor = u64::from(nodes[lead].run().identity().starts) << 40;
    let batch = |n: u16| {
        let (proposer, first) = (nodes[lead].run().identity().member, floor + 1000 + u64::from(n));
        Batch { proposer, first_serial: first, lowest_outstanding: floor, unix_ms: 0, commands: vec![command(n)] }
    };
    // In the log twice, by two batches that say the same under two numbers, and as a copy of the first.
    for copy in [batch(0), batch(1), batch(0), Batch { commands: vec![command(0)], ..batch(2) }] {
        write(&nodes[lead], &copy).await;
    }
    for n in 0..100 {
        let revoke = Command::Revoke(vec![session(1000 + n)]);
        assert_eq!(nodes[lead].run().command(revoke, LONG).await, Ok(Outcome::Accepted));
    }
    until("the log has lost its beginning", || nodes[lead].run().status().purged > Some(50)).await;

    // One that knows of the batches by a snapshot alone: they were not told of there, and their copies are no news.
    let mut late = Node::new("fw4");
    small(&mut late);
    let token = nodes[lead].run().token(LONG).await.unwrap();
    join(&late.options, &token).await.unwrap();
    late.start().await;
    until("it has the sessions", || late.has_valid_lease() && has(&late, 0) && has(&late, 1)).await;
    assert!(late.run().metrics().snapshots.received.get() >= 1);
    let late_watched = tokio::spawn(watch(late.run().subscribe(), 301));
    for copy in [batch(0), batch(1), batch(300)] {
        write(&nodes[lead], &copy).await;
    }
    assert_eq!(nodes[lead].run().command(command(301), LONG).await, Ok(Outcome::Accepted));
    assert_eq!(late_watched.await.unwrap(), BTreeMap::from([(300, 1), (301, 1)]));
    assert_eq!(watched.await.unwrap(), BTreeMap::from([(0, 1), (1, 1), (300, 1), (301, 1)]));
    assert_eq!(nodes[lead].run().metrics().sessions_established.get() - established, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_can_join_at_once() {
    let mut nodes = [Node::new("fw1"), Node::new("fw2"), Node::new("fw3"), Node::new("fw4")];
    init(&nodes[0].options).await.unwrap();
    nodes[0].start().await;
    until("it has a valid lease", || nodes[0].has_valid_lease()).await;
    let token = nodes[0].run().token(LONG).await.unwrap();
    let (a, b, c) =
        tokio::join!(join(&nodes[1].options, &token), join(&nodes[2].options, &token), join(&nodes[3].options, &token));
    let mut ids = [a.unwrap().member, b.unwrap().member, c.unwrap().member];
    ids.sort_unstable();
    assert_eq!(ids, [MemberId(2), MemberId(3), MemberId(4)]);
    for node in &mut nodes[1..] {
        node.start().await;
    }
    until("all vote and have valid leases", || {
        nodes.iter().all(|n| n.has_valid_lease() && n.run().status().members.iter().filter(|m| m.voter).count() == 4)
    })
    .await;

    // One that is removed does not get its id back, nor does anybody else; and it does not act as a member any longer.
    let gone = (0..4).find(|i| nodes[*i].role() != Some(RaftRole::Leader)).unwrap();
    let (name, id) = (nodes[gone].options.name.clone(), nodes[gone].run().identity().member);
    let other = (gone + 1) % 4;
    assert_eq!(nodes[other].run().remove(&name, false).await.unwrap(), Removal::Alive(id), "it can leave by itself");
    assert!(nodes[other].run().status().members.iter().any(|m| m.id == id), "nothing was changed");
    assert_eq!(nodes[other].run().remove(&name, true).await.unwrap(), Removal::Removed(id));
    until("the removed one learns of it", || *nodes[gone].run().replication.removed.borrow()).await;
    until("the removed one has no valid lease", || !nodes[gone].has_valid_lease()).await;
    // Also one that was stopped meanwhile, whom nobody sends the log any longer.
    nodes[gone].stop().await;
    nodes[gone].start().await;
    until("it learns of it again", || *nodes[gone].run().replication.removed.borrow()).await;
    let peers = Peers::new(&nodes[other].run().identity().cluster, id).unwrap();
    let to = nodes[other].run().identity().member;
    let mut client = peers.client(to, &nodes[other].options.advertise, Lane::Control).unwrap();
    let hints = futures::stream::iter([proto::HintBatch { hints: Vec::new(), level: 1 }]);
    assert_eq!(client.hints(hints).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    let batch = Batch { proposer: id, first_serial: 0, lowest_outstanding: 0, unix_ms: 0, commands: vec![command(1)] };
    let batch = batch.encode(palisade_engine::Level::FIRST).unwrap().into();
    let proposals = futures::stream::iter([proto::Proposal { batch }]);
    let mut refusals = client.propose(proposals).await.unwrap().into_inner();
    assert_eq!(refusals.message().await.unwrap_err().code(), tonic::Code::PermissionDenied);
    let mut new = Node::new("fw5");
    assert_eq!(join(&new.options, &token).await.unwrap().member, MemberId(5));
    new.start().await;
    until("the new one has a valid lease", || new.has_valid_lease()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voter_change_that_was_left_half_done_is_finished() {
    let nodes = cluster().await;
    let lead = &nodes[leader(&nodes)].run().replication;
    let metrics = lead.raft.metrics().borrow_watched().clone();
    let members: BTreeMap<_, _> = metrics.membership_config.nodes().map(|(id, info)| (*id, info.clone())).collect();
    // As a leader leaves it that is lost after the first of the two steps.
    let all: std::collections::BTreeSet<_> = members.keys().copied().collect();
    let fewer = all.iter().copied().filter(|id| *id != MemberId(3)).collect();
    let joint = openraft::Membership::new(vec![all, fewer], members).unwrap();
    let joint = loop {
        // As in `write`.
        match lead.raft.append_membership(joint.clone(), openraft::EntryPayload::Blank, []).await {
            Ok(written) => break written.log_id,
            Err(error) => println!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let later = |n: &Node| n.run().raft.metrics().borrow_watched().membership_config.log_id() > &Some(joint);
    until("all vote again", || {
        nodes
            .iter()
            .all(|n| later(n) && n.settled() && n.run().status().members.iter().filter(|m| m.voter).count() == 3)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_expires_though_it_was_used() {
    let mut first = Node::new("fw1");
    init(&first.options).await.unwrap();
    first.start().await;
    until("it has a valid lease", || first.has_valid_lease()).await;
    let valid = Duration::from_secs(5);
    let begun = clock::now();
    let token = first.run().token(valid).await.unwrap();
    let joined = join(&Node::new("fw2").options, &token).await;
    assert!(joined.is_ok() || clock::now().since(begun) > valid, "{joined:?}");
    tokio::time::sleep(valid).await;
    let refused = join(&Node::new("fw3").options, &token).await;
    assert!(matches!(&refused, Err(MembershipError::Refused(why)) if why.contains("expired")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_forged_or_garbled_change_nothing() {
    let nodes = cluster().await;
    let lead = leader(&nodes);
    let (node, from) = ((lead + 1) % 3, nodes[(lead + 2) % 3].run().identity().member);
    let to = nodes[node].run().identity().member;
    let peers = Peers::new(&nodes[0].run().identity().cluster, from).unwrap();
    let mut client = peers.client(to, &nodes[node].options.advertise, Lane::Raft).unwrap();
    let before = nodes[node].run().status().term;
    let vote = |member: u64| proto::Vote { term: before + 50, member, committed: true };
    let code = |status: tonic::Status| status.code();

    // In another member's name.
    let request = proto::VoteRequest { vote: Some(vote(77)), last: None, leadership_transfer: true };
    assert_eq!(code(client.vote(request).await.unwrap_err()), tonic::Code::InvalidArgument);
    assert_eq!(code(client.pre_vote(request).await.unwrap_err()), tonic::Code::InvalidArgument);
    let transfer = proto::TransferLeaderRequest { from: Some(vote(77)), to: to.0, last: None };
    assert_eq!(code(client.transfer_leader(transfer).await.unwrap_err()), tonic::Code::InvalidArgument);
    let append = proto::AppendRequest { vote: Some(vote(77)), previous: None, entries: Vec::new(), commit: None };
    let mut answers = client.append(futures::stream::iter([append])).await.unwrap().into_inner();
    assert_eq!(code(answers.message().await.unwrap_err()), tonic::Code::InvalidArgument);
    let chunk =
        proto::SnapshotChunk { vote: Some(vote(77)), offset: 0, data: Vec::new().into(), last: false, level: 1 };
    let sent = client.install_snapshot(futures::stream::iter([chunk])).await;
    assert_eq!(code(sent.unwrap_err()), tonic::Code::InvalidArgument);
    // In its own, but it is no snapshot.
    let chunk =
        proto::SnapshotChunk { vote: Some(vote(from.0)), offset: 0, data: vec![7; 1000].into(), last: true, level: 1 };
    let sent = client.install_snapshot(futures::stream::iter([chunk])).await;
    assert_eq!(code(sent.unwrap_err()), tonic::Code::DataLoss);
    // Incomplete, empty, garbled.
    let empty = proto::VoteRequest { vote: None, last: None, leadership_transfer: false };
    assert_eq!(code(client.vote(empty).await.unwrap_err()), tonic::Code::InvalidArgument);
    let mut refusals = client
        .propose(futures::stream::iter([proto::Proposal { batch: vec![0xff; 9].into() }]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(code(refusals.message().await.unwrap_err()), tonic::Code::FailedPrecondition, "its level is unknown");
    let garbled = proto::HintBatch { hints: vec![vec![0xff; 9].into()], level: 1 };
    client.hints(futures::stream::iter([garbled])).await.unwrap();
    assert_eq!(nodes[node].run().metrics().hints_invalid.get(), 1);
    // Larger than any message may be.
    let huge = proto::HintBatch { hints: vec![vec![0; MAX_MESSAGE_BYTES].into()], level: 1 };
    let mut client = client.max_encoding_message_size(usize::MAX);
    assert_eq!(code(client.hints(futures::stream::iter([huge])).await.unwrap_err()), tonic::Code::OutOfRange);

    assert_eq!(nodes[node].run().status().term, before);
    assert_eq!(leader(&nodes), lead);
    assert_eq!(nodes[node].run().command(command(1), LONG).await, Ok(Outcome::Accepted));
    assert!(!has(&nodes[node], 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reachability_of_members_is_known() {
    let mut nodes = cluster().await;
    let gone = (leader(&nodes) + 1) % 3;
    let id = nodes[gone].run().identity().member;
    let reaches = |node: &Node| node.run().status().members.iter().any(|m| m.id == id && m.reachable);
    let rest: Vec<usize> = (0..3).filter(|i| *i != gone).collect();
    nodes[gone].stop().await;
    until("it is not reachable", || rest.iter().all(|i| !reaches(&nodes[*i]))).await;
    let streams = nodes[rest[0]].run().metrics().hint_streams.get();
    nodes[gone].start().await;
    until("it is reachable again", || rest.iter().all(|i| reaches(&nodes[*i]))).await;
    assert!(nodes[rest[0]].run().metrics().hint_streams.get() > streams);
}

/// What a node says of a segment of session `n`, from the client.
pub(super) fn pass_segment(node: &Node, n: u16, seq: u32, payload: u32) -> Verdict {
    segment_events(node, n, seq, payload).0
}

/// The same, with what it leads to.
pub(super) fn segment_events(node: &Node, n: u16, seq: u32, payload: u32) -> (Verdict, Vec<Event>) {
    struct OneZone;

    impl Routes for OneZone {
        fn zone(&mut self, _: Ip) -> Option<ZoneId> {
            Some(ZoneId(1))
        }
    }

    let tcp = Tcp { seq, ack: 2, flags: Tcp::ACK, window: 1000, payload, wscale: None, sack_permitted: false };
    let tuple = establish(n).original;
    let packet = Packet {
        tuple,
        length: 40 + payload,
        transport: 20,
        kind: Kind::Tcp(tcp),
        fragment: None,
        options: IpOptions::NONE,
        class: palisade_engine::parse::RoutingClass::default(),
    };
    let mut context = Context {
        now: clock::now(),
        worker: 0,
        ingress: ZoneId(1),
        antispoof: false,
        lease: LeaseState::Valid,
        routes: &mut OneZone,
    };
    let mut events = Vec::new();
    let verdict = node.run().engine().process(&packet, &mut context, &mut events);
    (verdict, events)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_ends_that_is_idle_everywhere() {
    let brief = Duration::from_secs(2);
    let mut nodes = cluster_with(|node| node.settings = vec!["lease.grace=4s"]).await;
    if leader(&nodes) == 2 {
        nodes[2].run().transfer_leadership(None).await.unwrap();
        until("another one leads", || nodes[..2].iter().any(|n| n.role() == Some(RaftRole::Leader))).await;
    }
    assert_eq!(nodes[0].run().command(command(1), LONG).await, Ok(Outcome::Accepted));
    until("all have it", || nodes.iter().all(|n| has(n, 1))).await;
    // A policy changes the timeout of a session that is there.
    let text = "accept \"all\" from any to any: any -> any\ntimeout tcp.established 2s\n";
    nodes[0].policy(Generation(0), text).await;
    until("all have the policy", || nodes.iter().all(|n| n.run().engine().generation() == Generation(1))).await;

    // While it is used at one member, which does not lead, it stays; unless the machine stands still for as long as its timeout.
    let late = Lateness::watch(nodes[0].dir.path()).unwrap();
    let busy = clock::now();
    while clock::now().since(busy) < brief * 3 {
        if segment_events(&nodes[2], 1, 2, 0).0 != Verdict::Forward || !nodes.iter().all(|n| has(n, 1)) {
            assert!(late.excuses(brief).is_some(), "it ended while it was used");
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Idle everywhere, it ends, everywhere.
    until("it ends", || nodes.iter().all(|n| !has(n, 1))).await;

    // A member that does not answer keeps it alive, but not for longer than anything passes there.
    let lead = leader(&nodes);
    let gone = (lead + 1) % 3;
    let second = Command::Establish(Box::new(Establish { generation: Generation(1), ..establish(2) }));
    assert_eq!(nodes[lead].run().command(second, LONG).await, Ok(Outcome::Accepted));
    let silent = clock::now();
    nodes[gone].stop().await;
    until("it ends", || !has(&nodes[lead], 2)).await;
    let ended = clock::now().since(silent);
    assert!(
        ended >= Duration::from_secs(4),
        "it ended after {ended:?} though a member did not say that it is idle there"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn task_that_ends_is_noticed() {
    let mut node = Node::new("fw1");
    init(&node.options).await.unwrap();
    node.start().await;
    until("it has a valid lease", || node.has_valid_lease()).await;
    let shut = node.run().failed();
    let failed = node.run().failed();
    assert!(timeout(Duration::from_millis(100), node.run().failed()).await.is_err(), "nothing has failed");
    node.run().replication.tasks.abort("proposals");
    let why = timeout(LONG, failed).await.unwrap().unwrap();
    assert!(matches!(why, EndedError::Task("proposals")), "{why}");
    node.stop().await;
    drop(shut);

    let mut node = Node::new("fw2");
    init(&node.options).await.unwrap();
    node.start().await;
    let failed = node.run().failed();
    node.stop().await;
    assert!(timeout(LONG, failed).await.unwrap().is_none(), "a shutdown is no failure");
}
