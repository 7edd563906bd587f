//! Every decoder of what comes from the log, from snapshots and from other members, fed with mutations of valid values: an error
//! or a value, never a panic, and memory that is bounded by what is really there.
//!
//! Some thousand mutations for each decoder. With ten million:
//! `PALISADE_MUTATIONS=10000000 cargo test --release -p palisade-proto --test decoders`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs, reason = "a test")]

#[path = "../../engine/tests/common/fuzzing.rs"]
mod fuzzing;

use palisade_engine::policy::PolicyHash;
use palisade_engine::replica::{Batch, Command, ExpireIdle, Join, MemberChange, PolicyChange, Replica, Withdraw};
use palisade_engine::{
    Capabilities, Close, CloseCause, Config, Direction, EndpointSnapshot, Engine, Establish, FragmentKey, Generation,
    HalfOpen, HandshakeState, Hint, Ip, JoinRequest, Level, MemberId, MemberInfo, PerDirection, Progress, Protocol,
    ProvisionalSegment, Role, RuleId, SessionId, SynParams, TcpSnapshot, Time, TrafficDelta, Tuple, UnconfirmedEdge,
    ZoneId,
};

use self::fuzzing::{BYTES_PER_BYTE, Random, counting, fuzz, mutations};

/// What a decoder may allocate whatever it is given: serde reserves at most 1 MiB for a length that is only claimed.
const BASE_BYTES: i64 = (1 << 20) + (1 << 18);
fn id(counter: u64) -> SessionId {
    SessionId { member: MemberId(1 + counter % 3), counter: 1 << 32 | counter }
}

fn tuple(n: u16) -> Tuple {
    let (src, dst) = (Ip::V4([10, 0, 1, 2]), Ip::V4([10, 0, 2, 3]));
    Tuple { src, dst, src_port: 1024 + n, dst_port: 80, protocol: Protocol::TCP }
}

fn syn(isn: u32) -> SynParams {
    SynParams { isn, window: 64240, wscale: Some(7), sack: true }
}

fn half_open(n: u16) -> HalfOpen {
    HalfOpen {
        id: id(n.into()),
        original: tuple(n),
        reply: tuple(n).inverse(),
        ingress: ZoneId(1),
        egress: ZoneId(2),
        generation: Generation(1),
        rule: RuleId(1),
        supersedes: Some(id(9)),
        challenge: Some(77),
        protocol: HandshakeState::Tcp { client: syn(1000), server: Some(syn(u32::MAX)) },
    }
}

fn establish(n: u16) -> Command {
    Command::Establish(Box::new(Establish { supersedes: None, ..Establish::from(&half_open(n)) }))
}

const POLICY: &str = "zone outside, inside\ndefault drop\naccept \"web\" from outside to inside: any -> any tcp/80\n";

fn policy() -> PolicyChange {
    PolicyChange::new(Generation(0), POLICY.to_owned(), "root".to_owned())
}

fn commands() -> Vec<Command> {
    let info = MemberInfo { name: "fw2".to_owned(), address: "192.0.2.1:7946".to_owned(), role: Role::Firewall };
    let policy = policy();
    let enact = policy.enactment();
    vec![
        Command::Member(MemberChange::Init { cluster_id: "c".to_owned(), member: info.clone(), level: Level::FIRST }),
        Command::Policy(Box::new(policy)),
        Command::Enact(Box::new(enact.clone())),
        Command::Withdraw(Withdraw { hash: PolicyHash([3; 32]), base: enact.base }),
        Command::Member(MemberChange::Token { secret_digest: vec![7; 32], expires_unix_ms: 1 << 41 }),
        Command::Member(MemberChange::Join(Box::new(Join {
            request: JoinRequest([9; 16]),
            secret_digest: vec![7; 32],
            member: MemberInfo { name: "fw3".to_owned(), address: "192.0.2.3:7946".to_owned(), ..info },
        }))),
        Command::Member(MemberChange::Update { member: MemberId(1), name: None, address: Some("h:1".to_owned()) }),
        Command::Member(MemberChange::Zones {
            member: MemberId(1),
            zones: vec!["inside".to_owned(), "dmz".to_owned()],
        }),
        Command::Member(MemberChange::Capabilities {
            member: MemberId(1),
            capabilities: Capabilities::of_program(1 << 20, "1.2.3"),
        }),
        establish(1),
        establish(2),
        establish(3),
        Command::Close(Close { id: id(1), cause: CloseCause::Fin }),
        Command::Refresh(vec![id(2)]),
        Command::ExpireIdle(ExpireIdle { resume_epoch: 0, sessions: vec![(id(2), 1), (id(3), 0)] }),
        Command::Expire(vec![id(3), id(99)]),
        Command::Revoke(vec![id(98)]),
        Command::Resume,
        Command::Level(Level(2)),
        Command::Member(MemberChange::Leave(MemberId(9))),
    ]
}

fn batch(first_serial: u64, commands: Vec<Command>) -> Batch {
    Batch { proposer: MemberId(1), first_serial, lowest_outstanding: first_serial, unix_ms: 1 << 40, commands }
}

#[test]
fn decoder_of_batches_survives_mutations() {
    let mut values: Vec<Vec<u8>> =
        commands().into_iter().map(|one| batch(5, vec![one]).encode(Level::FIRST).unwrap()).collect();
    values.push(batch(1 << 33, commands()).encode(Level::FIRST).unwrap());
    fuzz("batches", &values, |bytes| match Batch::decode(bytes) {
        // What was decoded is encoded again, and is then the same.
        Ok(batch) => batch.encode(Level::FIRST).is_ok_and(|bytes| Batch::decode(&bytes) == Ok(batch)),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    });
}

#[test]
fn decoder_of_hints_survives_mutations() {
    let key =
        FragmentKey { src: tuple(1).src, dst: tuple(1).dst, protocol: Protocol::UDP, id: 70_000, ingress: ZoneId(1) };
    let hints = [
        Hint::HalfOpen(Box::new(half_open(1))),
        Hint::Abort(id(1)),
        Hint::Fin { id: id(1), direction: Direction::Reply, end: u32::MAX },
        Hint::Rst { id: id(2) },
        Hint::Query(tuple(4)),
        Hint::Progress {
            id: id(3),
            snapshot: snapshot(),
            provisional: vec![(Direction::Reply, ProvisionalSegment { seq_end: 1, ack: 2, age_ms: 3 }); 3],
        },
        Hint::FirstFragment { datagram: key, end: 1480, egress: ZoneId(2) },
        Hint::FragmentQuery(key),
    ];
    let values: Vec<Vec<u8>> = hints.iter().map(|hint| hint.encode(Level::FIRST).unwrap()).collect();
    fuzz("hints", &values, |bytes| Hint::decode(Level::FIRST, bytes).is_ok());
}

#[test]
fn decoder_of_progress_survives_mutations() {
    let mut values = Vec::new();
    for count in 1..4 {
        let mut bytes = Vec::new();
        for n in 0..count {
            progress(n).encode(Level::FIRST, &mut bytes).unwrap();
        }
        values.push(bytes);
    }
    fuzz("progress", &values, |bytes| Progress::decode(Level::FIRST, bytes).all(|one| one.is_ok()));
}

fn snapshot() -> TcpSnapshot {
    let endpoint = EndpointSnapshot {
        seq_end: u32::MAX,
        snd_una: 7,
        window_end: 70_000,
        max_window: 512,
        age_ms: Some(1),
        fin_end: Some(0),
    };
    TcpSnapshot {
        endpoints: PerDirection { original: endpoint, reply: endpoint },
        unconfirmed: Some(UnconfirmedEdge { of: Direction::Original, by: Direction::Reply, seq_end: 9 }),
        live: true,
        history_incomplete: false,
    }
}

fn progress(n: u64) -> Progress {
    let traffic = TrafficDelta { packets: 1, bytes: u32::MAX };
    Progress {
        id: id(n),
        idle_ms: 250,
        tcp: (n > 0).then(snapshot),
        traffic: (n > 1).then_some(PerDirection { original: traffic, reply: traffic }),
    }
}

/// The chunks of a snapshot: kind and content.
fn chunks(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut chunks = Vec::new();
    while let [kind, l0, l1, l2, l3, _, _, _, _, rest @ ..] = bytes {
        let (content, after) = rest.split_at(u32::from_le_bytes([*l0, *l1, *l2, *l3]) as usize);
        chunks.push((*kind, content.to_vec()));
        bytes = after;
    }
    chunks
}

/// Puts chunks together with right lengths and checksums, so that the decoder gets to the content.
fn sealed(head: &[u8], chunks: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = head.to_vec();
    for (kind, content) in chunks {
        let length = (content.len() as u32).to_le_bytes();
        let mut crc = crc32fast::Hasher::new();
        [&[*kind][..], &length, content].into_iter().for_each(|part| crc.update(part));
        bytes.extend([&[*kind][..], &length, &crc.finalize().to_le_bytes(), content].concat());
    }
    bytes
}

/// Magic and level.
const SNAPSHOT_HEAD: usize = 10;

#[test]
fn decoder_of_snapshots_survives_mutations() {
    let config = || Config::new(MemberId(1), 1, 7);
    let mut replica = Replica::new(Engine::new(config()));
    replica.apply(Time(1), &batch(0, commands()), &mut ());
    replica.apply(Time(1), &batch(99, vec![Command::Enact(Box::new(policy().enactment()))]), &mut ());
    replica.apply(Time(1), &batch(100, (10..40).map(establish).collect()), &mut ());
    let mut whole = Vec::new();
    replica.begin_snapshot().write(&mut whole).unwrap();
    let parts = chunks(&whole[SNAPSHOT_HEAD..]);
    assert_eq!(sealed(&whole[..SNAPSHOT_HEAD], &parts), whole);
    let contents: Vec<Vec<u8>> = parts.iter().map(|(_, content)| content.clone()).collect();

    let mut target = Replica::new(Engine::new(config()));
    let mut random = Random(11);
    let (mut restored, mut highest) = (0_u64, 0);
    for n in 0..mutations() {
        let mut mutated = parts.clone();
        for _ in 0..=random.below(2) {
            let at = random.below(mutated.len());
            match random.below(8) {
                0 => drop(mutated.remove(at)),
                1 => mutated.push(parts[random.below(parts.len())].clone()),
                2 => mutated[at].0 = random.next() as u8,
                3 => {
                    let other = random.below(mutated.len());
                    mutated.swap(at, other);
                }
                _ => random.mutate(&mut mutated[at].1, &contents),
            }
            if mutated.is_empty() {
                break;
            }
        }
        let mut bytes = sealed(&whole[..SNAPSHOT_HEAD], &mutated);
        // One in eight keeps a wrong checksum or length.
        if random.below(8) == 0 {
            random.mutate(&mut bytes, &contents);
        }
        let before = target.digest();
        let mut done = Ok(false);
        let peak = counting::peak(|| {
            let restore = || target.restore(Time(2), &mut &bytes[..], &mut ()).is_ok();
            done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(restore));
        });
        let Ok(done) = done else { panic!("snapshots, {n}: {bytes:?}") };
        restored += u64::from(done);
        highest = highest.max(peak);
        assert!(done || target.digest() == before, "a refused snapshot has changed the state");
        // A restored one makes room in the table, too.
        let most = if done { 8 * BASE_BYTES } else { BASE_BYTES + BYTES_PER_BYTE * bytes.len() as i64 };
        assert!(peak <= most, "snapshots, {n}: {peak} bytes for {bytes:?}");
    }
    assert!(restored > 0 && restored < mutations(), "{restored}");
    println!("snapshots: {} mutations, {restored} restored, at most {highest} bytes", mutations());
}
