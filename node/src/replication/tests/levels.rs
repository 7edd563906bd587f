//! What another version of Palisade wrote: who checks it, who stops, and that the others go on.

use openraft::async_runtime::WatchReceiver;
use palisade_engine::replica::MemberChange;
use palisade_engine::{Capabilities, Level, Levels};
use palisade_proto::member::v1 as proto;
use palisade_raft_store::{LogId, Thing, Unknown};

use super::*;

/// A batch as a program of another level, or with another command, would write it.
fn batches() -> [(&'static str, Vec<u8>); 3] {
    let batch = Batch {
        proposer: MemberId(1),
        first_serial: 0,
        lowest_outstanding: 0,
        unix_ms: 0,
        commands: vec![Command::Resume],
    };
    let bytes = batch.encode(Level::FIRST).unwrap();
    let (mut level, mut command, mut longer) = (bytes.clone(), bytes.clone(), bytes);
    level[0] = 77;
    *command.last_mut().unwrap() = 0x7f;
    longer.extend_from_slice(&[1, 8]);
    [("another level", level), ("another command", command), ("another length", longer)]
}

/// The last entry that a member has applied, which is the last one of its log here.
fn last(node: &Node) -> LogId {
    node.run().replication.raft.metrics().borrow_watched().last_applied.unwrap()
}

/// Sends one append to a member, as the leader of a later term would. What it answers.
async fn append(to: &Node, leader: MemberId, entry: proto::Entry) -> tonic::Status {
    let last = last(to);
    let term = to.run().status().term + 1;
    let request = proto::AppendRequest {
        vote: Some(proto::Vote { term, member: leader.0, committed: true }),
        previous: Some(proto::LogId { term: last.leader_id.term, member: last.leader_id.node_id.0, index: last.index }),
        entries: vec![entry],
        commit: None,
    };
    let identity = to.run().identity();
    let peers = Peers::new(&identity.cluster, leader).unwrap();
    let mut client = peers.client(identity.member, &to.options.advertise, Lane::Raft).unwrap();
    let mut answers = client.append(futures::stream::iter([request])).await.unwrap().into_inner();
    answers.message().await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follower_that_cannot_read_an_entry_stores_nothing_says_so_and_stops() {
    let mut nodes = cluster().await;
    let victim = (leader(&nodes) + 1) % 3;
    let leader = nodes[(victim + 2) % 3].run().identity().member;
    for other in (0..3).filter(|i| *i != victim) {
        nodes[other].stop().await;
    }
    let payloads = batches().map(|(what, bytes)| (what, Some(proto::entry::Payload::Batch(bytes.into()))));
    for (what, payload) in payloads.into_iter().chain([("another kind of entry", None)]) {
        let node = &mut nodes[victim];
        let before = last(node);
        let index = before.index + 1;
        let ended = tokio::spawn(node.run().failed());
        let id = proto::LogId { term: node.run().status().term + 1, member: leader.0, index };
        let refused = append(node, leader, proto::Entry { id: Some(id), payload }).await;
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{what}: {refused}");
        for part in [format!("entry {index}"), Levels::PROGRAM.to_string()] {
            assert!(refused.message().contains(&part), "{what}: {}", refused.message());
        }
        let ended = timeout(LONG, ended).await.unwrap().unwrap();
        let Some(EndedError::Unreadable(unreadable)) = ended else { panic!("{what}: {ended:?}") };
        assert_eq!(unreadable.thing, Thing::Entry(index), "{what}");
        assert_eq!(matches!(unreadable.unknown, Unknown::Level(Level(77))), what == "another level", "{unreadable}");
        // Nothing of it is on the disk: the next start is one as any other.
        node.stop().await;
        node.start().await;
        until("its log is read", || node.run().status().last_log.is_some()).await;
        assert_eq!(node.run().status().last_log, Some(before.index), "{what}");
    }
}

/// An append of a leader that was deposed is refused, but it stops nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deposed_leader_stops_nobody() {
    let nodes = cluster().await;
    let lead = leader(&nodes);
    let (victim, old) = ((lead + 1) % 3, (lead + 2) % 3);
    let old = nodes[old].run().identity().member;
    let index = last(&nodes[victim]).index + 1;
    let request = proto::AppendRequest {
        vote: Some(proto::Vote { term: 0, member: old.0, committed: true }),
        previous: None,
        entries: vec![proto::Entry { id: Some(proto::LogId { term: 0, member: old.0, index }), payload: None }],
        commit: None,
    };
    let identity = nodes[victim].run().identity();
    let peers = Peers::new(&identity.cluster, old).unwrap();
    let mut client = peers.client(identity.member, &nodes[victim].options.advertise, Lane::Raft).unwrap();
    let mut answers = client.append(futures::stream::iter([request])).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), tonic::Code::FailedPrecondition);
    let ended = timeout(Duration::from_secs(1), nodes[victim].run().failed()).await;
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(nodes[victim].run().command(command(1), LONG).await.unwrap(), Outcome::Accepted);
}

/// A member that cannot read stops; this one does not, as if it were started again at once each time: the worst for its leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_asks_a_member_that_cannot_read_with_pauses_and_the_others_go_on() {
    let nodes = cluster().await;
    let lead = leader(&nodes);
    let (victim, other) = ((lead + 1) % 3, (lead + 2) % 3);
    let foreign = nodes[victim].run().replication.foreign.clone();
    let ended = tokio::spawn(nodes[victim].run().failed());
    let begin = clock::now();
    foreign.set(Some(last(&nodes[lead]).index + 1));
    let mut sessions = 0;
    while clock::now().since(begin) < Duration::from_secs(6) {
        let outcome = nodes[other].run().command(command(sessions), LONG).await;
        assert_eq!(outcome, Ok(Outcome::Accepted), "session {sessions}");
        sessions += 1;
    }
    let (asked, took) = (foreign.refused(), clock::now().since(begin));
    println!("{sessions} sessions in {took:?}; asked {asked} times what it cannot read");
    assert!(asked > 0 && sessions > 0);
    // Before each further question a pause, twice as long as the last one.
    let pauses = (1..asked).map(|n| Duration::from_millis(250 << (n - 1).min(10)).min(Duration::from_secs(5)));
    assert!(pauses.sum::<Duration>() <= took, "asked {asked} times in {took:?}");

    let ended = timeout(LONG, ended).await.unwrap().unwrap();
    assert!(matches!(ended, Some(EndedError::Unreadable(_))), "{ended:?}");
    let victim_id = nodes[victim].run().identity().member;
    let status = nodes[lead].run().status();
    for member in &status.members {
        let cannot_read = member.cannot_read.as_deref().unwrap_or_default();
        assert_eq!(cannot_read.contains("entry"), member.id == victim_id, "{:?}: {cannot_read}", member.info.name);
    }
    assert_eq!(nodes[lead].run().metrics().unreadable_refusals.get(), asked);
    assert!(nodes[other].run().status().members.iter().all(|m| m.cannot_read.is_none()), "it leads nobody");

    // Its program is updated.
    foreign.set(None);
    until("it has all of it", || (0..sessions).all(|n| has(&nodes[victim], n))).await;
    until("its leader knows", || nodes[lead].run().status().members.iter().all(|m| m.cannot_read.is_none())).await;
}

/// Progress that another version wrote does not make its sender silent, and what else is in the message counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_progress_and_hints_are_counted_and_end_nothing() {
    let mut nodes = cluster().await;
    nodes[2].stop().await;
    let (from, identity) = (MemberId(3), nodes[0].run().identity());
    let peers = Peers::new(&identity.cluster, from).unwrap();
    let mut client = peers.client(identity.member, &nodes[0].options.advertise, Lane::Progress).unwrap();
    assert_eq!(nodes[0].run().command(command(1), LONG).await.unwrap(), Outcome::Accepted);

    let known = palisade_engine::Progress { id: session(1), idle_ms: 0, tcp: None, traffic: None };
    let mut sessions = vec![3, 0xff, 0xff, 0xff];
    known.encode(Level::FIRST, &mut sessions).unwrap();
    let message = |level: u32, number: u64| {
        let time = number * 1_000_000;
        proto::ProgressBatch { sent: time, from: time - 1, until: time, sessions: sessions.clone().into(), level }
    };
    let (before, silent) = (nodes[0].run().metrics(), || nodes[0].run().metrics().members_silent.get());
    let before = before.progress_sessions.received.get();
    until("the one that was stopped is silent", || silent() == 1).await;
    let (messages, queue) = mpsc::channel(1);
    let stream = tokio::spawn(async move {
        let messages = futures::stream::unfold(queue, |mut queue: mpsc::Receiver<_>| async move {
            queue.recv().await.map(|message| (message, queue))
        });
        client.progress(messages).await
    });
    let mut number = 1;
    let heard = async {
        while silent() > 0 {
            messages.send(message(1, number)).await.unwrap();
            number += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(LONG, heard).await.is_ok(), "it is heard");
    messages.send(message(77, number)).await.unwrap();
    drop(messages);
    stream.await.unwrap().unwrap();
    let metrics = nodes[0].run().metrics();
    // One of each message, and both of the last one.
    assert_eq!(metrics.progress_invalid.get(), number - 1 + 2);
    assert!(metrics.progress_sessions.received.get() >= before + number - 1);

    let mut client = peers.client(identity.member, &nodes[0].options.advertise, Lane::Hints).unwrap();
    let hint = Hint::Abort(session(9)).encode(Level::FIRST).unwrap();
    let hints = |level| proto::HintBatch { hints: vec![vec![0x7f].into(), hint.clone().into()], level };
    client.hints(futures::stream::iter([hints(1), hints(77)])).await.unwrap();
    assert_eq!((metrics.hints_invalid.get(), metrics.hints_received.get()), (3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machine_whose_program_does_not_know_the_level_in_force_is_not_admitted() {
    use palisade_proto::member::v1::admission_client::AdmissionClient;

    let mut first = Node::new("fw1");
    init(&first.options).await.unwrap();
    first.start().await;
    until("it has a valid lease", || first.has_valid_lease()).await;
    let token: Token = first.run().token(LONG).await.unwrap().parse().unwrap();
    let mut client = AdmissionClient::connect(format!("http://{}", first.options.advertise)).await.unwrap();
    let in_force = u32::from(first.run().engine().cluster_state().level.0);
    for (levels, says) in [
        (Some(proto::Levels { lowest: in_force + 1, highest: in_force + 3 }), "raise the level"),
        (Some(proto::Levels { lowest: 0, highest: in_force - 1 }), "install the version"),
        (None, "knows no level"),
    ] {
        let member = proto::MemberInfo { name: "fw2".into(), address: "192.0.2.1:7946".into(), role: 1 };
        let secret = token.secret().to_vec().into();
        let affordable_sessions = first.options.engine.affordable_sessions;
        let request = vec![7; 16].into();
        let request = proto::JoinRequest { secret, member: Some(member), request, levels, affordable_sessions };
        let refused = client.join(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(says), "{}", refused.message());
    }
    assert_eq!(first.run().engine().cluster_state().members.len(), 1);
}

/// Nobody but the setting raises the level. That it is raised, to a level that this program does not know, is seen from the
/// member's end: as long as one runs that cannot read it any longer, it says so and stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_raises_the_level_after_the_time_of_the_setting_and_not_before() {
    let mut node = Node::new("fw1");
    node.settings = vec!["level.raise=after 1m"];
    let settings = Assignment::parse_all(node.settings.iter().copied()).unwrap();
    init_with(&node.options, &settings, "test").await.unwrap();
    node.start().await;
    until("it has a valid lease", || node.has_valid_lease()).await;
    let state = || node.run().engine().cluster_state();
    assert_eq!((state().level, state().possible_level()), (Level::HIGHEST, Level::HIGHEST));

    let begin = clock::now();
    let next = Level::HIGHEST.next();
    let capabilities = Capabilities { highest: next, ..Capabilities::of_program(3_000_000, "2") };
    let registered = Command::Member(MemberChange::Capabilities { member: MemberId(1), capabilities });
    assert_eq!(node.run().command(registered, LONG).await, Ok(Outcome::Accepted));
    let ended = timeout(Duration::from_secs(60) + LONG, node.run().failed()).await.unwrap();
    assert!(clock::now().since(begin) >= Duration::from_secs(60), "too early");
    let Some(EndedError::Unreadable(unreadable)) = &ended else { panic!("{ended:?}") };
    assert!(matches!(unreadable.unknown, Unknown::Level(level) if level == next), "{unreadable}");
    assert_eq!(state().level, next);
}
