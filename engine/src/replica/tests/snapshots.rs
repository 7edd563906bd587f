//! Snapshots: writing, restoring, and refusal of damaged ones.

use super::*;

fn filled(sessions: u64) -> Fixture {
    let mut b = Fixture::new();
    b.one(Command::Member(MemberChange::Init {
        cluster_id: "c".to_owned(),
        member: MemberInfo::default(),
        level: Level::FIRST,
    }));
    for n in 0..sessions {
        b.one(add(establish(n, n as u16)));
    }
    for n in 0..sessions / 3 {
        b.one(close(n));
    }
    b.one(Command::Expire((0..sessions / 10).map(id).collect()));
    b
}

pub(super) fn written(job: SnapshotJob) -> Vec<u8> {
    let mut bytes = Vec::new();
    job.write(&mut bytes).unwrap();
    bytes
}

fn restored(bytes: &[u8]) -> Result<Fixture, RestoreError> {
    let mut replica = Replica::new(Engine::new(Config::new(MemberId(2), 1, 1234)));
    replica.restore(NOW, &mut &bytes[..], &mut NoWaiters)?;
    replica.engine.compile_policies();
    Ok(Fixture { replica, next: 0 })
}

#[test]
fn snapshot_restores_the_state() {
    let mut b = filled(2000);
    let bytes = written(b.replica.begin_snapshot());
    let mut again = restored(&bytes).unwrap();
    assert_eq!(again.replica.digest(), b.replica.digest());
    assert_eq!(again.sessions(), b.sessions());
    assert_eq!(again.replica.engine.generation(), Generation(1));
    assert_eq!(again.replica.engine.zone("inside"), INSIDE);
    assert_eq!(again.replica.engine.cluster_state().cluster_id, "c");
    assert_eq!(written(again.replica.begin_snapshot()).len(), bytes.len());
    // Further commands have the same effect on both.
    again.next = b.next;
    for command in [add(establish(5000, 3)), close(900), add(establish(1, 5001)), add(establish(5001, 5001))] {
        assert_eq!(b.one(command.clone()), again.one(command));
    }
    assert_eq!(again.replica.digest(), b.replica.digest());
}

#[test]
fn snapshot_is_exact_at_its_index_while_apply_continues() {
    let mut b = filled(2000);
    let (digest, sessions) = (b.replica.digest(), b.sessions());
    let job = b.replica.begin_snapshot();
    let (first, second) = (1000..1500, 3000..3500);
    for n in first {
        b.one(close(n));
    }
    let writer = std::thread::spawn(move || written(job));
    for n in second {
        b.one(add(establish(n, n as u16)));
        b.one(Command::Revoke(vec![id(n - 1500)]));
    }
    let again = restored(&writer.join().unwrap()).unwrap();
    assert_ne!(b.replica.digest(), digest);
    assert_eq!(again.replica.digest(), digest);
    assert_eq!(again.sessions(), sessions);
}

#[test]
fn snapshot_in_progress_is_interrupted_by_a_second_one() {
    let mut b = filled(10);
    let first = b.replica.begin_snapshot();
    let second = b.replica.begin_snapshot();
    let error = first.write(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    b.one(add(establish(100, 100)));
    assert_eq!(restored(&written(second)).unwrap().sessions(), 9);
}

#[test]
fn restore_refuses_damaged_snapshot_without_effect() {
    let mut source = filled(300);
    let bytes = written(source.replica.begin_snapshot());
    let mut b = filled(20);
    let before = b.replica.digest();
    let mut refused = |bytes: &[u8]| {
        let result = b.replica.restore(NOW, &mut &bytes[..], &mut NoWaiters);
        assert!(result.is_err());
        assert_eq!(b.replica.digest(), before);
        assert_eq!(b.replica.engine.cluster_state().zones.len(), 3);
    };
    for at in (0..bytes.len()).step_by(17) {
        refused(&bytes[..at]);
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        refused(&flipped);
    }
    refused(b"PALSNAP5\x01\x00\x01\xff\xff\xff\xff0000");
    refused(b"PALSNAP5\x01\x00\x01\x00\x00\x80\x000000");
    assert_eq!(b.sessions(), 18);
    b.replica.restore(NOW, &mut &bytes[..], &mut NoWaiters).unwrap();
    assert_eq!(b.replica.digest(), source.replica.digest());
}

#[test]
fn restore_keeps_half_open_sessions_and_wakes_established_ones() {
    struct Count(usize);
    impl Wake for Count {
        fn wake(&mut self, _: WorkerSet, _: HoldKey) {
            self.0 += 1;
        }
    }
    let mut source = filled(30);
    let bytes = written(source.replica.begin_snapshot());
    let mut b = Fixture::new();
    let engine: Arc<Engine> = b.replica.engine.clone();
    for counter in [25, 500] {
        let open = crate::session::HalfOpen { id: id(counter), ..crate::testing::half_open(tuple(counter as u16), 0) };
        let hash = engine.table.hash(&open.original);
        let mut shard = engine.table.shard_for(hash);
        let slot = engine.table.insert_half_open(&mut shard, hash, open, NOW);
        shard.half_open.get_mut(slot).unwrap().waiters = WorkerSet::of(0);
    }
    let mut count = Count(0);
    b.replica.restore(NOW, &mut &bytes[..], &mut count).unwrap();
    assert_eq!(count.0, 1);
    assert_eq!(engine.counts().half_open, 1);
    assert!(engine.session(NOW, id(25)).is_some_and(|s| !s.half_open));
    assert!(engine.session(NOW, id(500)).is_some_and(|s| s.half_open));
}

/// The sessions of a copy, piece by piece, with `between` called before each piece.
fn copied(b: &mut Fixture, mut between: impl FnMut(&mut Fixture)) -> Vec<String> {
    let engine = b.replica.engine.clone();
    let copy = engine.table.begin_copy();
    let mut copied = Vec::new();
    for number in engine.table.numbers() {
        let mut more = true;
        while more {
            between(b);
            more = engine.table.copy_piece(&copy, number, &mut copied, &mut || NOW).unwrap().0;
        }
    }
    assert_eq!(engine.table.kept_sessions(), 0, "what was kept was taken");
    engine.table.drop_copy(&copy);
    sorted(copied.iter())
}

fn sorted<'a>(sessions: impl Iterator<Item = &'a crate::replicated::Replicated>) -> Vec<String> {
    let mut sessions: Vec<String> = sessions.map(|session| format!("{session:?}")).collect();
    sessions.sort_unstable();
    sessions
}

fn present(b: &Fixture) -> Vec<String> {
    let table = &b.replica.engine.table;
    let shards: Vec<_> = table.numbers().map(|number| table.shard(number)).collect();
    sorted(shards.iter().flat_map(|shard| shard.sessions.iter().map(|session| session.replicated())))
}

#[test]
fn snapshot_is_exact_with_commands_between_any_two_pieces() {
    const SESSIONS: u64 = 20_000;
    for seed in 1..=4_u64 {
        let mut b = Fixture::new();
        for n in 0..SESSIONS {
            b.one(add(establish(n, n as u16)));
        }
        let (before, mut state, mut next) = (present(&b), seed, SESSIONS);
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut commands = 0;
        let copied = copied(&mut b, |b| {
            for _ in 0..random(8) {
                commands += 1;
                let old = random(SESSIONS);
                match random(5) {
                    // In the slot of one that was removed, or in a new block.
                    0 => {
                        b.one(add(establish(next, next as u16)));
                        next += 1;
                    }
                    1 => drop(b.one(close(old))),
                    2 => drop(b.one(Command::Revoke(vec![id(old), id(random(SESSIONS))]))),
                    3 => drop(b.one(Command::Refresh(vec![id(old)]))),
                    _ => {
                        b.one(close(old));
                        let again = Establish { supersedes: Some(id(old)), ..establish(next, old as u16) };
                        b.one(add(again));
                        next += 1;
                    }
                }
            }
        });
        assert!(commands > 1000, "{commands} commands");
        assert_ne!(present(&b), before);
        assert!(copied == before, "seed {seed}");
    }
}

#[test]
fn snapshot_keeps_only_the_block_that_a_command_changes() {
    let mut b = Fixture::new();
    for n in 0..20_000 {
        b.one(add(establish(n, n as u16)));
    }
    let engine = b.replica.engine.clone();
    let job = b.replica.begin_snapshot();
    b.one(close(7));
    let kept = engine.table.kept_sessions();
    assert!((1..=8).contains(&kept), "a command kept {kept} sessions");
    b.one(Command::Refresh(vec![id(7)]));
    b.one(Command::Revoke(vec![id(7)]));
    assert_eq!(engine.table.kept_sessions(), kept, "once");
    drop(job);
    assert_eq!(engine.table.kept_sessions(), 0);
}

#[test]
fn snapshot_is_read_beside_the_state_and_installed_in_parts() {
    let mut source = filled(3000);
    let bytes = written(source.replica.begin_snapshot());
    let mut b = filled(2000);
    let (digest, sessions) = (b.replica.digest(), present(&b));
    let restorer = b.replica.restorer();
    let read = |bytes: &[u8]| restorer.read(NOW, &mut &bytes[..]);
    assert!(read(&bytes[..bytes.len() - 1]).is_err());
    // One that is read, and thrown away.
    drop(read(&bytes).unwrap());
    let mut restored = read(&bytes).unwrap();
    assert_eq!((b.replica.digest(), present(&b)), (digest, sessions.clone()), "nothing has changed");
    assert!((700..2000).all(|n| b.replica.engine.session(NOW, id(n)).is_some()));
    b.one(add(establish(9000, 9000)));
    let digest = b.replica.digest();
    let mut parts = 1;
    while b.replica.install(NOW, &mut restored, &mut NoWaiters) {
        assert_eq!(b.replica.digest(), digest, "the state is the old one until the last part");
        parts += 1;
    }
    assert_eq!(parts, 256);
    assert_eq!(b.replica.digest(), source.replica.digest());
    assert_eq!(present(&b), present(&source));
    // Each is found by its id, and what is gone is not.
    assert_eq!(b.sessions(), source.sessions());
    assert!((300..3000).all(|n| b.replica.engine.session(NOW, id(n)).is_some()));
    assert!(b.replica.engine.session(NOW, id(9000)).is_none());
    b.next = source.next;
    for command in [add(establish(9000, 3)), close(900), add(establish(1, 5001)), Command::Revoke(vec![id(950)])] {
        assert_eq!(b.one(command.clone()), source.one(command));
    }
    assert_eq!(b.replica.digest(), source.replica.digest());
}

/// A chunk, as [`crate::replicated`] writes it.
fn chunk(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_le_bytes();
    let mut crc = crc32fast::Hasher::new();
    [&[kind][..], &length, content].into_iter().for_each(|part| crc.update(part));
    [&[kind][..], &length, &crc.finalize().to_le_bytes(), content].concat()
}

#[test]
fn restore_refuses_an_unknown_level_and_an_unknown_chunk_unless_it_is_optional() {
    let mut source = filled(50);
    let bytes = written(source.replica.begin_snapshot());
    let mut b = filled(20);
    let before = b.replica.digest();
    // Behind magic and level, the register and the settings; the place of other chunks does not matter.
    let behind = |at: usize| at + 9 + u32::from_le_bytes(bytes[at + 1..at + 5].try_into().unwrap()) as usize;
    let place = behind(behind(10));
    let with = |added: &[u8]| [&bytes[..place], added, &bytes[place..]].concat();
    let restore = |b: &mut Fixture, bytes: &[u8]| b.replica.restore(NOW, &mut &bytes[..], &mut NoWaiters);

    let error = restore(&mut b, &with(&chunk(0x1f, b"what nobody knows yet"))).unwrap_err();
    assert!(matches!(error, RestoreError::Kind(0x1f)), "{error:?}");
    let mut later = bytes.clone();
    later[8..10].copy_from_slice(&Level::HIGHEST.next().0.to_le_bytes());
    let error = restore(&mut b, &later).unwrap_err();
    assert!(matches!(error, RestoreError::Level(unknown) if unknown.level == Level::HIGHEST.next()), "{error:?}");
    assert_eq!(b.replica.digest(), before, "the old state is still there");
    assert_eq!(b.sessions(), 18);

    restore(&mut b, &with(&chunk(0x9f, b"what nobody knows yet"))).unwrap();
    assert_eq!(b.replica.digest(), source.replica.digest());
}

#[test]
fn session_id_of_full_width_survives_log_table_and_snapshot() {
    let mut b = filled(0);
    let wide = SessionId { member: MemberId((1 << 48) - 1), counter: u64::MAX - 1 };
    let batch = batch(b.next, b.next, vec![add(Establish { id: wide, ..establish(1, 1) })]);
    let decoded = Batch::decode(&batch.encode(Level::FIRST).unwrap()).unwrap();
    assert_eq!(decoded, batch);
    b.next += 1;
    assert_eq!(b.apply(&decoded), [Outcome::Accepted]);
    let mut again = restored(&written(b.replica.begin_snapshot())).unwrap();
    again.next = b.next;
    for known in [&b, &again] {
        assert_eq!(known.replica.engine.session(NOW, wide).map(|info| info.id), Some(wide));
        assert_eq!(wide.to_string().parse(), Ok(wide));
    }
    assert_eq!(again.one(Command::Revoke(vec![wide])), Outcome::Accepted);
    assert_eq!(again.sessions(), 0);
}
