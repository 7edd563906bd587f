//! Members that differ in everything that is local (node.toml, seed, start, clock) have equal states.

use std::time::Duration;

use super::snapshots::written;
use super::*;
use crate::level::Capabilities;

const COMMANDS: usize = 100_000;
const BATCH: usize = 40;
/// Batches between two exchanges of snapshots.
const EXCHANGE: usize = 250;

struct Random(u64, u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    /// The id of a session that was opened lately, or of none.
    fn id(&mut self) -> SessionId {
        id(self.1.saturating_sub(self.below(600)))
    }

    fn ids(&mut self) -> Vec<SessionId> {
        (0..=self.below(4)).map(|_| self.id()).collect()
    }
}

/// A command that may be accepted or refused, as members propose them.
fn command(random: &mut Random, engine: &Engine) -> Command {
    let cluster = engine.cluster_state();
    match random.below(100) {
        0..45 => {
            random.1 += u64::from(random.below(10) > 0);
            let (counter, port) = (random.1, random.below(1500) as u16);
            let old = random.below(20) == 0;
            let generation = Generation(engine.generation().0.saturating_sub(u64::from(old)));
            let supersedes = (random.below(3) == 0).then(|| random.id());
            add(Establish { generation, supersedes, ..establish(counter, port) })
        }
        45..65 => Command::Close(Close { id: random.id(), cause: CloseCause::Fin }),
        65..73 => Command::Expire(random.ids()),
        73..76 => Command::Revoke(random.ids()),
        76..82 => Command::Refresh(random.ids()),
        82..86 => {
            let sessions = random.ids().into_iter().map(|id| (id, random.below(2) as u16)).collect();
            let resume_epoch = engine.resume_epoch.load(Ordering::Acquire) - random.below(10) / 9;
            Command::ExpireIdle(ExpireIdle { resume_epoch, sessions })
        }
        86 => Command::Resume,
        87 => {
            let zone = random.below(8);
            let text = format!("zone outside, inside, z{zone}\naccept \"all\" from any to any: any -> any\n");
            let base = Generation(engine.generation().0.saturating_sub(random.below(10) / 9));
            match (&cluster.candidate, random.below(3)) {
                (Some(candidate), 0) => Command::Withdraw(Withdraw { hash: candidate.hash, base }),
                (Some(candidate), 1) => {
                    Command::Enact(Box::new(Enact { hash: candidate.hash, base, without: vec![MemberId(2)] }))
                }
                _ => Command::Policy(Box::new(PolicyChange::new(base, text, "a".to_owned()))),
            }
        }
        88..95 => {
            let base = cluster.settings.revision.saturating_sub(random.below(10) / 9);
            let key = SettingKey::ALL[random.below(SettingKey::ALL.len() as u64) as usize];
            let value = match key {
                SettingKey::TableSessions => 300 + random.below(1200),
                _ => random.below(600_000),
            };
            let without = if random.below(2) == 0 { vec![MemberId(2)] } else { Vec::new() };
            let values = vec![(key.tag(), value)];
            Command::Settings(Box::new(SettingsChange { base, values, without, author: "b".to_owned() }))
        }
        _ => Command::Member(member_change(random)),
    }
}

fn member_change(random: &mut Random) -> MemberChange {
    let member = MemberId(1 + random.below(6));
    match random.below(6) {
        0 => join(random.below(99) as u8, random.below(9) as u8, &format!("fw{}", random.below(6))),
        5 => MemberChange::Update { member, name: Some(format!("fw{}", random.below(9))), address: None },
        1 if member != MemberId(1) => MemberChange::Leave(member),
        2 => MemberChange::Zones { member, zones: vec![format!("y{}", random.below(5))] },
        3 => MemberChange::Capabilities { member, capabilities: Capabilities::of_program(random.below(1 << 21), "1") },
        _ => MemberChange::Token { secret_digest: vec![random.below(99) as u8], expires_unix_ms: random.below(2000) },
    }
}

/// A copy of a member's replicated state at another member.
fn copy(from: &mut Replica, config: Config) -> Replica {
    let bytes = written(from.begin_snapshot());
    let mut replica = Replica::new(Engine::new(config));
    replica.restore(NOW, &mut &bytes[..], &mut ()).unwrap();
    assert_eq!(replica.digest(), from.digest());
    replica
}

#[test]
fn members_that_differ_in_all_that_is_local_have_equal_states_after_100_000_commands() {
    let config =
        |n: u64| Config { affordable_sessions: 10_000_000 * n, ..Config::new(MemberId(n), n as u32 * 3, 7 * n + 1) };
    let mut random = Random(0x9e37_79b9_7f4a_7c15, 0);
    let (mut a, mut b) = (Replica::new(Engine::new(config(1))), Replica::new(Engine::new(config(2))));
    let first = MemberInfo { name: "fw0".to_owned(), ..MemberInfo::default() };
    let init = MemberChange::Init { cluster_id: "c".to_owned(), member: first, level: Level::FIRST };
    let policy = PolicyChange::new(Generation(0), POLICY.to_owned(), String::new());
    let enact = Command::Enact(Box::new(policy.enactment()));
    let mut next = vec![Command::Member(init), Command::Policy(Box::new(policy)), Command::Resume];
    let (mut serial, mut accepted) = (0, 0);
    for round in 0..COMMANDS / BATCH {
        let batch = batch(serial, serial, std::mem::take(&mut next));
        serial += batch.commands.len() as u64;
        // Their clocks differ, and one applies later.
        let here = a.apply(NOW + Duration::from_millis(round as u64), &batch, &mut ());
        let there = b.apply(NOW + Duration::from_secs(3600 + 2 * round as u64), &batch, &mut ());
        // What has passed there is local.
        let outcomes = (Applied::outcomes(&here), Applied::outcomes(&there));
        assert_eq!(outcomes.0, outcomes.1, "{:?}", batch.commands);
        assert_eq!(a.digest(), b.digest(), "{:?}", batch.commands);
        accepted += here.iter().filter(|applied| applied.changed).count();
        // One compiles now and then, the other never.
        if round % 7 == 0 {
            a.engine().compile_policies();
        }
        if round == 0 {
            next.push(enact.clone());
        }
        next.extend((0..BATCH).map(|_| command(&mut random, a.engine())));
        if round % EXCHANGE == EXCHANGE - 1 {
            (a, b) = (copy(&mut b, config(1)), copy(&mut a, config(2)));
        }
    }
    let settings = a.engine().cluster_state().settings.clone();
    let (revision, sessions) = (settings.revision, a.state.sessions());
    println!("{accepted} of {COMMANDS} changed something; {sessions} sessions, revision {revision}");
    assert!(accepted > COMMANDS / 20 && revision > 100 && sessions > 100);
}
