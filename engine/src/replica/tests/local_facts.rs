//! Local facts of a member (sizes, seeds, clocks, what its own packets did, which policies it has compiled) have no influence on
//! what is replicated: two replicas that have nothing in common but the log have the same digest after each batch.

use super::*;
use crate::cluster_state::Role;
use crate::level::Capabilities;
use crate::policy::PolicyHash;
use crate::replicated::{Assignment, ExpireIdle, SettingsChange};
use crate::time::Time;
use crate::tuple::Protocol;

/// Commands of a whole run.
const COMMANDS: u64 = 100_000;

/// A small random number generator (splitmix64).
struct Random {
    state: u64,
    /// The lowest number of a session. It rises, because the id of a session that has ended does not come back.
    lowest: u64,
    /// The revision of the settings.
    settings: u64,
    /// The hash of the candidate.
    candidate: Option<PolicyHash>,
}

impl Random {
    fn new(state: u64) -> Random {
        Random { state, lowest: 0, settings: 0, candidate: None }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }

    fn ids(&mut self) -> Vec<SessionId> {
        (0..=self.below(4)).map(|_| id(self.session())).collect()
    }

    /// The number of a session.
    fn session(&mut self) -> u64 {
        self.lowest + self.below(400)
    }

    fn member(&mut self) -> MemberId {
        MemberId(self.below(24))
    }
}

/// Makes commands: most of them with an effect, some refused, some copies of earlier ones.
struct Commands {
    random: Random,
    /// The next serial number of each proposer.
    next: [u64; 4],
    sent: Vec<Batch>,
    unix_ms: u64,
}

impl Commands {
    fn new(seed: u64) -> Commands {
        Commands { random: Random::new(seed), next: [0; 4], sent: Vec::new(), unix_ms: 1 << 41 }
    }

    fn batch(&mut self, generation: u64) -> Batch {
        let random = &mut self.random;
        self.unix_ms += random.below(2000);
        random.lowest += random.below(2);
        if random.below(20) == 0 && !self.sent.is_empty() {
            return random.one_of(&self.sent).clone();
        }
        let commands: Vec<Command> = (0..=random.below(3)).map(|_| command(random, generation)).collect();
        let proposer = random.below(4) as usize;
        let first_serial = self.next[proposer];
        self.next[proposer] += commands.len() as u64 + random.below(2);
        let lowest_outstanding = first_serial - random.below(20).min(first_serial);
        let batch = Batch {
            proposer: MemberId(proposer as u64 + 1),
            first_serial,
            lowest_outstanding,
            unix_ms: self.unix_ms,
            commands,
        };
        self.sent.push(batch.clone());
        if self.sent.len() > 64 {
            self.sent.swap_remove(0);
        }
        batch
    }
}

fn command(random: &mut Random, generation: u64) -> Command {
    match random.below(100) {
        0..50 => {
            let (n, port) = (random.session(), random.below(300) as u16);
            let old = random.below(12) == 0;
            let mut establish = Establish {
                generation: Generation(generation.saturating_sub(old.into())),
                rule: RuleId(random.below(4) as u32),
                supersedes: (random.below(4) == 0).then(|| id(random.session())),
                ..establish(n, port)
            };
            match random.below(10) {
                0 => establish.reply = tuple(port),
                1 => establish.protocol = HandshakeState::Generic { replied: true },
                2 => {
                    establish.original.protocol = Protocol::UDP;
                    establish.reply = establish.original.inverse();
                    establish.protocol = HandshakeState::Generic { replied: random.below(2) == 0 };
                }
                _ => {}
            }
            add(establish)
        }
        50..65 => close(random.session()),
        65..73 => Command::Expire(random.ids()),
        73..77 => Command::Revoke(random.ids()),
        77..82 => Command::Refresh(random.ids()),
        82..88 => {
            let sessions = random.ids().into_iter().map(|id| (id, random.below(3) as u16)).collect();
            Command::ExpireIdle(ExpireIdle { resume_epoch: random.below(40), sessions })
        }
        88 if random.below(4) == 0 => {
            let generation = Generation(generation - random.below(2).min(generation));
            Command::RevokeForbidden(ForbiddenSessions { generation, sessions: random.ids() })
        }
        88 => Command::Resume,
        89 => Command::Level(Level(random.below(4) as u16)),
        92 => {
            let settings = [
                format!("table.sessions={}", random.below(200) + 100),
                format!("table.half_open={}", random.below(400) + 100),
                format!("table.half_open_per_source={}", random.below(5)),
                format!("lease.grace={}s", random.below(3000)),
                format!("takeover.rate={}", random.below(1000)),
                format!("members.voters={}", random.below(12)),
                format!("members.replace_after={}s", random.below(300)),
                format!("level.raise=after {}s", random.below(300)),
            ];
            let assignments = [random.one_of(&settings), random.one_of(&settings)];
            let assignments: Vec<Assignment> =
                assignments.iter().filter_map(|text| Assignment::parse(text).ok()).collect();
            let without = (0..random.below(3)).map(|_| random.member()).collect();
            Command::Settings(Box::new(SettingsChange::new(
                random.settings + random.below(2),
                &assignments,
                without,
                "somebody".to_owned(),
            )))
        }
        90 | 91 => {
            let text = *random.one_of(&[POLICY, "zone dmz, inside\ndefault reject\n", "this is none", "zone x\n"]);
            let base = Generation(generation - random.below(2).min(generation));
            let change = PolicyChange::new(base, format!("{text}# {}\n", random.below(3)), "somebody".to_owned());
            match (random.candidate, random.below(8)) {
                (Some(hash), 0) => Command::Withdraw(Withdraw { hash, base }),
                (Some(hash), 1..4) => Command::Enact(Box::new(Enact { hash, base, without: vec![random.member()] })),
                (_, 4) => Command::Enact(Box::new(change.enactment())),
                _ => Command::Policy(Box::new(change)),
            }
        }
        _ => Command::Member(member_change(random)),
    }
}

fn member_change(random: &mut Random) -> MemberChange {
    match random.below(16) {
        0 => MemberChange::Init { cluster_id: "c".to_owned(), member: MemberInfo::default(), level: Level::FIRST },
        1..4 => {
            let role = *random.one_of(&[Role::Firewall, Role::Witness]);
            let (name, address) = (format!("fw{}", random.below(9)), format!("192.0.2.{}:1", random.below(12)));
            let request = JoinRequest([random.below(30) as u8; 16]);
            let secret_digest = vec![random.below(4) as u8];
            MemberChange::Join(Box::new(Join { request, secret_digest, member: MemberInfo { name, address, role } }))
        }
        4 => MemberChange::Leave(MemberId(random.below(9) + 4)),
        5..9 => {
            let zones = (0..random.below(4)).map(|_| format!("z{}", random.below(40))).collect();
            MemberChange::Zones { member: random.member(), zones }
        }
        9..14 => {
            let (lowest, highest) = (Level::FIRST, Level(random.below(Level::HIGHEST.0.into()) as u16 + 1));
            let capabilities = Capabilities {
                lowest,
                highest,
                max_sessions: 1000 + random.below(1 << 30),
                program: "1.2.3".to_owned(),
            };
            MemberChange::Capabilities { member: random.member(), capabilities }
        }
        14 => MemberChange::Update {
            member: random.member(),
            name: (random.below(2) == 0).then(|| format!("fw{}", random.below(9))),
            address: (random.below(2) == 0).then(|| format!("192.0.2.{}:1", random.below(12))),
        },
        _ => token(random.below(4) as u8, (1 << 41) + random.below(1 << 27)),
    }
}

/// Two members with as little in common as can be.
fn different() -> [Config; 2] {
    let first = Config::new(MemberId(1), 1, 9);
    let affordable_sessions = 100_000_000;
    [first, Config { member: MemberId(7), start: 99, seed: 0xdead_beef_0000_0001, affordable_sessions }]
}

/// What a member's own packets do, which no other member knows of.
fn local_life(replica: &Replica, now: Time, random: &mut Random) {
    let engine = &replica.engine;
    let mut events = Vec::new();
    engine.tick(now, &mut events);
    let open = crate::testing::half_open(tuple(random.below(300) as u16), 1 << 40 | random.below(400));
    let hash = engine.table.hash(&open.original);
    let mut shard = engine.table.shard_for(hash);
    engine.table.insert_half_open(&mut shard, hash, open, now);
}

fn copy(of: &mut Replica, config: Config, now: Time) -> Replica {
    let mut bytes = Vec::new();
    of.begin_snapshot().write(&mut bytes).unwrap();
    let mut copy = Replica::new(Engine::new(config));
    copy.restore(now, &mut &bytes[..], &mut ()).unwrap();
    assert_eq!(copy.digest(), of.digest(), "a snapshot restores the whole state, whatever the member");
    copy
}

/// Applies the same log to both. Returns the number of commands after which their states or outcomes differed. `meddle` may
/// change what the second one applies.
fn first_difference(seed: u64, commands: u64, meddle: impl Fn(u64, &mut Batch)) -> Option<u64> {
    let configs = different();
    let mut replicas = configs.clone().map(|config| Replica::new(Engine::new(config)));
    let (mut log, mut life) = (Commands::new(seed), Random::new(!seed));
    let mut clocks = [NOW, Time(7 * NOW.0)];
    let (mut applied, mut next_copy) = (0, commands / 10);
    let (mut withdrawn, mut only_one_compiled) = (0, false);
    while applied < commands {
        let cluster = replicas[0].engine.cluster_state();
        log.random.settings = cluster.settings.revision;
        log.random.candidate = cluster.candidate.as_ref().map(|candidate| candidate.hash);
        let batch = log.batch(replicas[0].engine.generation().0);
        let mut other = batch.clone();
        meddle(applied, &mut other);
        clocks[0].0 += life.below(50_000_000);
        clocks[1].0 += life.below(400_000_000);
        if life.below(4) == 0 {
            local_life(&replicas[1], clocks[1], &mut life);
        }
        let [first, second] = &mut replicas;
        let outcomes = first.apply(clocks[0], &batch, &mut ());
        let others = second.apply(clocks[1], &other, &mut ());
        applied += batch.commands.len() as u64;
        if first.digest() != second.digest() || Applied::outcomes(&outcomes) != Applied::outcomes(&others) {
            return Some(applied);
        }
        let had_effect = |(command, of): &(&Command, &Applied)| matches!(command, Command::Withdraw(_)) && of.changed;
        withdrawn += batch.commands.iter().zip(&outcomes).filter(had_effect).count();
        // The other one never does: what it puts in force drops everything there.
        if life.below(7) == 0 {
            replicas[0].engine.compile_policies();
            only_one_compiled |= replicas.each_ref().map(|r| r.engine.is_policy_compiled()) == [true, false];
        }
        let [first, second] = &mut replicas;
        // Each goes on from the other one's snapshot.
        if applied >= next_copy {
            next_copy += commands / 10;
            let copies = [copy(second, configs[0].clone(), clocks[0]), copy(first, configs[1].clone(), clocks[1])];
            replicas = copies;
        }
    }
    let shards = |replica: &Replica| (0..=u8::MAX).all(|shard| replica.engine.scrub(shard));
    assert!(replicas.iter().all(shards), "the digests are those of the tables");
    let cluster = replicas[0].engine.cluster_state();
    assert!(replicas[0].state.sessions() > 50, "{}", replicas[0].state.sessions());
    assert!(cluster.members.len() > 3, "{}", cluster.members.len());
    assert!(cluster.settings.revision > 20, "{}", cluster.settings.revision);
    assert!(cluster.policies.len() > 20, "{}", cluster.policies.len());
    assert!(withdrawn > 5 && only_one_compiled, "{withdrawn}");
    assert!(!cluster.capabilities.is_empty() && !cluster.member_zones.is_empty());
    None
}

#[test]
fn local_facts_have_no_influence_on_the_replicated_state() {
    assert_eq!(first_difference(1, COMMANDS, |_, _| {}), None);
}

/// The comparison above can fail: the smallest difference shows at the batch that makes it.
#[test]
fn local_facts_comparison_finds_a_difference_at_its_batch() {
    let clock = |applied, batch: &mut Batch| {
        if applied >= 5000 {
            batch.unix_ms += 100;
        }
    };
    let found = first_difference(1, 20_000, clock).unwrap();
    assert!((5000..6000).contains(&found), "{found}");
    let lost = |applied, batch: &mut Batch| {
        if applied >= 5000 {
            batch.commands.retain(|command| !matches!(command, Command::Resume));
        }
    };
    assert!(first_difference(1, 20_000, lost).is_some());
}
