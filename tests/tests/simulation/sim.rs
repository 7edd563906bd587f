//! A run: three members, their network, the traffic through them, the faults, and the invariants that watch.

use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use palisade_engine::packet_loop::PacketOutcome;
use palisade_engine::replica::{Assignment, Command, Outcome, PolicyChange};
use palisade_engine::{Engine, Generation, LeaseState, Role};
use palisade_lab::random::Random;
use palisade_node::lease::Lease;
use palisade_node::replication::{self, LogSize, Options, RaftRole, Replication, Timing};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::faults::{self, Fault, RunPlan};
use crate::host::{Host, Power, address};
use crate::invariants::{Invariant, all};
use crate::network::{MEMBERS, MS, Nanos, Network, SECOND, STEP};
use crate::traffic::{ALTERNATE, Segment, Traffic};
use crate::worker::{Break, HintFaults, ObservedPacket, Port, Waker, Worker};

/// How long a cluster may take to be made, or an administrator's command.
const ADMIN_TIMEOUT: Nanos = 60 * SECOND;
/// How long routers send packets to a member that takes none any longer.
const ROUTER_FAILOVER_TIME: Nanos = 300 * MS;
/// Members are looked at so often.
const SAMPLE_INTERVAL: Nanos = 20 * MS;
/// Most half-open sessions, small so that a flood reaches it.
pub(crate) const MAX_HALF_OPEN: usize = 2048;

/// The policies: of two generations after each other one allows [`ALTERNATE`], the other does not.
fn policy(with_alternate: bool) -> String {
    let alternate = format!("accept \"alternate\" from outside to inside: any -> any tcp/{ALTERNATE}\n");
    format!(
        "zone outside, inside\n\ndefault drop\n\naccept \"web\" from outside to inside: any -> any tcp/80\n{}",
        if with_alternate { &alternate } else { "" }
    )
}

/// Does the policy of this generation allow [`ALTERNATE`]?
pub(crate) fn allows_alternate(generation: Generation) -> bool {
    generation.0 % 2 == 1
}

struct Live {
    replication: Arc<Replication>,
    engine: Arc<Engine>,
    lease: Arc<Lease>,
}

/// One member and its host.
pub(crate) struct Member {
    pub(crate) host: Arc<Host>,
    options: Options,
    power: Option<Power>,
    /// Stands still since then.
    pub(crate) stalled: Option<Nanos>,
    pub(crate) port: Arc<Port>,
    live: Arc<Mutex<Option<Live>>>,
    hint_faults: Arc<Mutex<HintFaults>>,
    broken: Arc<Mutex<Option<Break>>>,
    /// Routers may not use it since then.
    unfit: Option<Nanos>,
    applied: Arc<Mutex<u64>>,
    _folder: TempDir,
}

impl Member {
    pub(crate) fn is_on(&self) -> bool {
        self.power.is_some()
    }

    fn lease_state(&self, now: Nanos) -> LeaseState {
        self.live.lock().as_ref().map_or(LeaseState::Expired, |live| live.lease.state_at(self.host.time(now)))
    }

    /// A member that has joined resumes before its first lease, as it knows itself: nobody asks it before whether sessions are idle.
    fn check_has_come(&self, now: Nanos) {
        let live = self.live.lock();
        let Some(live) = live.as_ref().filter(|live| live.lease.state_at(self.host.time(now)) != LeaseState::Expired)
        else {
            return;
        };
        let id = live.replication.identity().member;
        let joining = live.engine.cluster_state().joining.contains_key(&id);
        assert!(!joining, "member {id} has a lease and has not resumed");
    }
}

/// A member as it is seen from outside, between two steps.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) applied: u64,
    pub(crate) digest: u64,
    pub(crate) generation: Generation,
    pub(crate) half_open: u64,
}

/// What invariants hear of.
pub(crate) enum Fact<'a> {
    Packet(&'a ObservedPacket),
    /// Something is about to happen.
    Fault,
    Sample(&'a Sample),
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) plan: RunPlan,
    /// Who is broken, and how.
    pub(crate) broken: Option<(Option<usize>, Break)>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Of what became of every packet, and when.
    pub(crate) hash: u64,
    /// Invariant and what was seen.
    pub(crate) violations: Vec<(&'static str, String)>,
    pub(crate) packets: u64,
    pub(crate) held: u64,
    pub(crate) completed: usize,
    pub(crate) connections: usize,
    pub(crate) log: usize,
    pub(crate) simulated: Nanos,
}

/// The world of one seed.
pub(crate) struct Sim {
    pub(crate) now: Nanos,
    network: Arc<Network>,
    pub(crate) members: Vec<Member>,
    pub(crate) traffic: Traffic,
    random: Random,
    /// Packets that arrive at members, and at endpoints; at the same time in any order, but always the same.
    inward: BTreeMap<(Nanos, u64), (usize, Segment)>,
    outward: BTreeMap<(Nanos, u64), Segment>,
    seed: u64,
    pub(crate) packet_faults: faults::PacketFaults,
    invariants: Vec<Box<dyn Invariant>>,
    report: Report,
    /// What happens is printed.
    traced: bool,
    /// When all was well for the last time it began to be.
    pub(crate) calm_since: Option<Nanos>,
    /// The one member that is slow, while all else is well.
    pub(crate) slow: Option<usize>,
    /// The traffic began then.
    pub(crate) began: Nanos,
    /// The last fault was repaired then.
    pub(crate) healed: Nanos,
}

impl Sim {
    fn new(config: &Config) -> Sim {
        let mut random = Random(config.seed);
        let slowest = MS + random.number() % (4 * MS);
        let network = Arc::new(Network::new(random.number(), (STEP, STEP + slowest)));
        let members = (0..MEMBERS).map(|index| Member::new(index, &network, &mut random, config)).collect();
        Sim {
            now: 0,
            network,
            members,
            traffic: Traffic::new(Random(random.number())),
            random,
            inward: BTreeMap::new(),
            outward: BTreeMap::new(),
            seed: config.seed,
            packet_faults: faults::PacketFaults::default(),
            invariants: all(),
            report: Report::default(),
            traced: std::env::var_os("PALISADE_TRACE").is_some(),
            calm_since: None,
            slow: None,
            began: 0,
            healed: 0,
        }
    }

    /// Runs a plan to its end.
    pub(crate) fn run(config: &Config) -> Report {
        let mut sim = Sim::new(config);
        sim.make_cluster();
        sim.began = sim.now;
        sim.calm_since = Some(sim.now);
        for (member, how) in sim.broken(config) {
            *sim.members[member].broken.lock() = Some(how);
        }
        let mut faults = config.plan.faults(&mut sim.random, sim.now);
        let (end, opens) = config.plan.times(sim.now);
        config.plan.connections(&mut sim.traffic, &mut sim.random, sim.now, opens);
        while sim.now < end {
            while let Some(first) = faults.first_entry()
                && first.key().0 <= sim.now
            {
                let fault = first.remove();
                sim.strike(fault);
            }
            sim.step();
        }
        sim.finish()
    }

    fn broken(&self, config: &Config) -> Vec<(usize, Break)> {
        let Some((who, how)) = config.broken else { return Vec::new() };
        (0..MEMBERS).filter(|n| who.is_none_or(|who| who == *n)).map(|n| (n, how)).collect()
    }

    fn make_cluster(&mut self) {
        for index in 0..MEMBERS {
            let options = self.members[index].options.clone();
            self.members[index].power = Some(Power::on(self.members[index].host.clone()));
            if index == 0 {
                let half_open = format!("table.half_open={MAX_HALF_OPEN}");
                let settings = ["table.sessions=4096", &half_open, "table.half_open_per_source=2048"];
                let settings = Assignment::parse_all(settings).expect("these are settings");
                self.call(0, async move {
                    replication::init_with(&options, &settings, "").await.expect("a cluster is made")
                });
            } else {
                let token =
                    self.ask(0, |live| async move { live.token(Duration::from_secs(60)).await }).expect("a token");
                self.call(index, async move { replication::join(&options, &token).await.expect("a member joins") });
            }
            self.start(index);
            self.wait("the member is current", |sim| sim.members[index].lease_state(sim.now) == LeaseState::Valid);
        }
        self.wait("all vote and reach each other", |sim| {
            sim.members.iter().all(|member| {
                let live = member.live.lock();
                let status = live.as_ref().map(|live| live.replication.status());
                status.is_some_and(|s| s.members.len() == MEMBERS && s.members.iter().all(|m| m.voter && m.reachable))
            })
        });
        self.apply_policy(0);
        self.wait("all have the policy", |sim| {
            sim.members.iter().all(|m| m.live.lock().as_ref().is_some_and(|l| l.engine.generation() == Generation(1)))
        });
        // Until members have told each other long enough to be sure of what they know.
        let until = self.now + 500 * MS;
        while self.now < until {
            self.step();
        }
    }

    /// Has a task run on a host, and waits for what it returns.
    fn call<T: Send + 'static>(&mut self, on: usize, task: impl Future<Output = T> + Send + 'static) -> T {
        let slot = Arc::new(Mutex::new(None));
        let done = slot.clone();
        let power = self.members[on].power.as_ref().expect("the host is on");
        power.spawn(async move {
            let result = task.await;
            *done.lock() = Some(result);
        });
        self.wait("a task ends", |_| slot.lock().is_some());
        let result = slot.lock().take();
        result.expect("it has ended")
    }

    /// As [`Sim::call`], of the member's replication.
    fn ask<T, F>(&mut self, on: usize, ask: impl FnOnce(Arc<Replication>) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let live = self.members[on].live.clone();
        let replication = live.lock().as_ref().map(|live| live.replication.clone());
        self.call(on, ask(replication.expect("the member runs")))
    }

    /// An administrator changes the policy at a member; whether it succeeds shows in what the members apply.
    fn apply_policy(&mut self, at: usize) {
        let member = &self.members[at];
        let (Some(power), Some(live)) = (&member.power, &*member.live.lock()) else { return };
        let base = live.engine.generation();
        let text = policy(allows_alternate(Generation(base.0 + 1)));
        let change = PolicyChange::new(base, text, "admin".to_owned());
        let replication = live.replication.clone();
        power.spawn(async move {
            let done = replication.command(Command::Policy(Box::new(change)), Duration::from_secs(2)).await;
            if let Ok(Outcome::Invalid(why)) = done {
                panic!("the simulation's own policy is invalid: {why}");
            }
        });
    }

    fn wait(&mut self, what: &str, done: impl Fn(&Sim) -> bool) {
        let until = self.now + ADMIN_TIMEOUT;
        while !done(self) {
            assert!(self.now < until, "waited in vain in simulated time: {what}");
            self.step();
        }
    }

    /// Starts the member's program.
    fn start(&mut self, index: usize) {
        let all: Vec<_> = self.members.iter().map(|member| member.applied.clone()).collect();
        let member = &mut self.members[index];
        let Some(power) = &member.power else { return };
        let (host, port) = (member.host.clone(), member.port.clone());
        let (live, options, faults) = (member.live.clone(), member.options.clone(), member.hint_faults.clone());
        let broken = member.broken.clone();
        let all_applied = Arc::new(move || {
            let here = *all[index].lock();
            all.iter().all(|applied| *applied.lock() >= here)
        });
        power.spawn(async move {
            let (hints, to_send) = mpsc::channel(8192);
            let (proposals, to_propose) = mpsc::channel(8192);
            let lease = Arc::new(Lease::new(Duration::from_secs(300)));
            let wake = Waker(port.clone());
            let opened = Replication::open(options, to_send, to_propose, wake, lease.clone()).await;
            let replication = Arc::new(opened.expect("a member starts"));
            let engine = replication.engine();
            *live.lock() = Some(Live { replication, engine: engine.clone(), lease: lease.clone() });
            Worker { host, port, engine, lease, hints, proposals, faults, broken, all_applied }.run().await;
        });
    }

    /// One step of everything.
    fn step(&mut self) {
        let now = self.now;
        self.network.advance(now);
        self.deliver();
        for index in 0..MEMBERS {
            if self.members[index].stalled.is_none()
                && let Some(power) = &self.members[index].power
            {
                power.step();
            }
            if self.began == 0 {
                self.members[index].check_has_come(self.now);
            }
            self.collect(index);
        }
        self.now += STEP;
        if self.now.is_multiple_of(SAMPLE_INTERVAL) {
            self.sample();
        }
    }

    /// What arrives at members and endpoints.
    fn deliver(&mut self) {
        while let Some(first) = self.inward.first_entry()
            && first.key().0 <= self.now
        {
            let ((at, _), (member, segment)) = first.remove_entry();
            let member = &self.members[member];
            if member.is_on() {
                member.port.receive(member.host.time(at), segment);
            }
        }
        while let Some(first) = self.outward.first_entry()
            && first.key().0 <= self.now
        {
            let segment = first.remove();
            self.traffic.hear(&segment, self.now);
        }
        self.traffic.advance(self.now);
        for segment in std::mem::take(&mut self.traffic.out) {
            self.route(segment);
        }
    }

    /// A router sends a packet to any member that it holds for fit; now and then to any at all.
    fn route(&mut self, segment: Segment) {
        let mut dice = self.dice(&segment, self.now);
        let mut happens = |of_thousand: usize| of_thousand > 0 && dice.below(1000) < of_thousand;
        if happens(self.packet_faults.lost) {
            return;
        }
        let stray = happens(self.packet_faults.stray);
        let copies = 1 + usize::from(happens(self.packet_faults.copied));
        let fit: Vec<usize> = (0..MEMBERS)
            .filter(|n| stray || self.members[*n].unfit.is_none_or(|since| self.now < since + ROUTER_FAILOVER_TIME))
            .collect();
        if fit.is_empty() {
            return;
        }
        for _ in 0..copies {
            let member = fit[dice.below(fit.len())];
            let at = self.now + MS + dice.number() % (MS + self.packet_faults.delay);
            self.inward.insert((at, dice.number()), (member, segment.clone()));
        }
    }

    /// What happens to a packet depends on the packet and the time only, so that it is the same when tasks of a host take
    /// turns in another order.
    fn dice(&self, segment: &Segment, now: Nanos) -> Random {
        let Segment { kind, connection, from, header, .. } = segment;
        let mut hasher = DefaultHasher::new();
        (self.seed, kind, connection, from, header.seq, header.ack, header.flags, now / MS).hash(&mut hasher);
        Random(hasher.finish())
    }

    /// What a member did with packets.
    fn collect(&mut self, index: usize) {
        let seen = std::mem::take(&mut *self.members[index].port.observed.lock());
        for seen in seen {
            let Segment { kind, connection, from, header, .. } = &seen.segment;
            let outcome = match seen.outcome {
                PacketOutcome::Forwarded => 0,
                PacketOutcome::Held => 1,
                PacketOutcome::Dropped(reason) | PacketOutcome::Rejected(reason) => 2 + reason as u64,
            };
            if seen.outcome != PacketOutcome::Held {
                // In any order within a step: how tasks of one host take turns is tokio's own chance.
                let mut hasher = DefaultHasher::new();
                (seen.at, seen.member, kind, connection, from, header.seq, header.flags, outcome).hash(&mut hasher);
                self.report.hash = self.report.hash.wrapping_add(hasher.finish());
            }
            if self.traced
                && let Some(number) = connection
            {
                let who = format!("{:?} connection {number} member {}", Duration::from_nanos(seen.at), seen.member);
                let what = format!("{kind:?} from {from} {}", self.traffic.relative(&seen.segment));
                println!("{who}: {what} flags {:#04x} {:?}", header.flags, seen.outcome);
            }
            self.report.packets += 1;
            self.report.held += u64::from(seen.outcome == PacketOutcome::Held);
            self.tell(&Fact::Packet(&seen));
            if seen.outcome == PacketOutcome::Forwarded {
                let mut dice = self.dice(&seen.segment, seen.at);
                if dice.below(1000) >= self.packet_faults.lost {
                    let at = seen.at + MS + dice.number() % MS;
                    self.outward.insert((at, dice.number()), seen.segment);
                }
            }
        }
    }

    /// Looks at the members.
    fn sample(&mut self) {
        for index in 0..MEMBERS {
            let member = &mut self.members[index];
            let fit = member.is_on() && member.stalled.is_none() && member.lease_state(self.now) == LeaseState::Valid;
            match member.unfit {
                None if !fit => member.unfit = Some(self.now),
                Some(_) if fit => member.unfit = None,
                _ => {}
            }
            let Some(inspector) = member.host.inspector() else { continue };
            let (applied, digest) =
                inspector.look(|replica, applied| (applied.map_or(0, |id| id.index), replica.digest()));
            *member.applied.lock() = applied;
            let live = member.live.lock();
            let Some(Live { engine, .. }) = &*live else { continue };
            let generation = engine.cluster_state().policies.last().map_or(Generation(0), |policy| policy.generation);
            let sample = Sample { applied, digest, generation, half_open: engine.counts().half_open };
            drop(live);
            self.tell(&Fact::Sample(&sample));
        }
    }

    fn tell(&mut self, fact: &Fact<'_>) {
        let mut invariants = std::mem::take(&mut self.invariants);
        for invariant in &mut invariants {
            if let Err(what) = invariant.hear(fact, self) {
                let at = Duration::from_nanos(self.now);
                if self.traced {
                    println!("{at:?} {} is violated", invariant.name());
                }
                self.report.violations.push((invariant.name(), format!("at {at:?}: {what}")));
            }
        }
        self.invariants = invariants;
    }

    /// Lets something happen.
    fn strike(&mut self, fault: Fault) {
        if self.traced && !matches!(fault, Fault::Forge(_)) {
            println!("{:?} {fault:?}", Duration::from_nanos(self.now));
        }
        self.tell(&Fact::Fault);
        if !matches!(fault, Fault::Forge(_)) {
            (self.calm_since, self.slow) = (None, None);
        }
        match &fault {
            Fault::Healed => self.healed = self.now,
            Fault::SlowFollower { stalls } => self.slow_follower(*stalls),
            Fault::Rot(index) => self.members[*index].host.storage().rot(|entry| {
                if let openraft::EntryPayload::Normal(batch) = &mut entry.payload {
                    for command in &mut batch.commands {
                        if let Command::Policy(change) = command {
                            **change = PolicyChange::new(change.base, policy(true), change.author.clone());
                        }
                    }
                }
            }),
            Fault::Calm => self.calm_since = Some(self.now),
            Fault::Link { from, to, change } => self.network.set_link(*from, *to, |link| change.apply(link)),
            Fault::Crash { member, killed } => self.crash(*member, *killed),
            Fault::Start(index) => {
                if !self.members[*index].is_on() {
                    self.members[*index].power = Some(Power::on(self.members[*index].host.clone()));
                    self.start(*index);
                }
            }
            Fault::Stall(index) if self.members[*index].is_on() => {
                self.members[*index].stalled.get_or_insert(self.now);
            }
            Fault::Stall(_) => {}
            Fault::Wake { member, monotonic_too } => {
                let member = &mut self.members[*member];
                if let (Some(since), Some(power)) = (member.stalled.take(), &member.power) {
                    power.overslept(self.now - since, *monotonic_too);
                }
            }
            Fault::Disk { member, flush } => {
                let (shortest, longest) = *flush;
                self.members[*member].host.flushes(shortest, longest);
            }
            Fault::Jump { member, by } => self.members[*member].host.jump(*by),
            Fault::Policy(member) => self.apply_policy(*member),
            Fault::Hints(faults) => self.members.iter().for_each(|member| *member.hint_faults.lock() = *faults),
            Fault::Packets(faults) => self.packet_faults = *faults,
            Fault::Forge(kind) => self.traffic.forge(*kind),
            Fault::Flood(kind, count) => self.traffic.flood(*kind, *count),
            Fault::Lie(index) => self.members[*index].host.storage().lie(),
        }
    }

    /// One member that does not lead becomes slow.
    fn slow_follower(&mut self, stalls: bool) {
        let leads = |member: &Member| {
            let live = member.live.lock();
            live.as_ref().is_some_and(|live| live.replication.status().role == RaftRole::Leader)
        };
        let Some(slow) = self.members.iter().position(|member| !leads(member)) else { return };
        if stalls {
            self.members[slow].stalled.get_or_insert(self.now);
            // Routers have noticed.
            self.members[slow].unfit = Some(0);
        } else {
            self.members[slow].host.storage().slow(|| Duration::from_millis(400));
        }
        self.slow = Some(slow);
    }

    fn crash(&mut self, index: usize, killed: bool) {
        let member = &mut self.members[index];
        let Some(power) = member.power.take() else { return };
        member.stalled = None;
        power.off(killed);
        drop(member.live.lock().take());
        let port = Arc::<Port>::default();
        member.port = port;
    }

    /// Whether this member reaches a majority, as far as the network and the hosts are concerned.
    pub(crate) fn has_majority(&self, index: usize) -> bool {
        let up = |n: usize| self.members[n].is_on() && self.members[n].stalled.is_none();
        // A lease counts from its question. If that reached a majority, the answers may come later: a cut link keeps them.
        let reaches = |n: usize| !self.network.link(index, n).cut;
        let others = (0..MEMBERS).filter(|n| *n != index && up(*n) && reaches(*n)).count();
        up(index) && others + 1 > MEMBERS / 2
    }

    /// The members on whose disks, durably, the log has a command that `found` wants.
    pub(crate) fn durable(&self, found: impl Fn(&Command) -> bool) -> Vec<usize> {
        let has = |member: &usize| {
            let mut has = false;
            self.members[*member].host.storage().entries(&mut |entry| has |= commands(entry).any(&found));
            has
        };
        (0..MEMBERS).filter(has).collect()
    }

    /// Has this member applied a command that `found` wants?
    pub(crate) fn applied(&self, member: usize, found: impl Fn(&Command) -> bool) -> bool {
        let Some(inspector) = self.members[member].host.inspector() else { return false };
        let applied = inspector.look(|_, applied| applied.map_or(0, |id| id.index));
        let mut has = false;
        for member in &self.members {
            let mut each = |entry: &palisade_raft_store::Entry| {
                has |= entry.log_id.index <= applied && commands(entry).any(&found);
            };
            member.host.storage().entries(&mut each);
        }
        has
    }

    fn finish(mut self) -> Report {
        let mut invariants = std::mem::take(&mut self.invariants);
        for invariant in &mut invariants {
            for what in invariant.end(&self) {
                self.report.violations.push((invariant.name(), what));
            }
        }
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| member.is_on()) {
            if member.live.lock().is_none() {
                self.report.violations.push(("every member runs", format!("member {index} did not start again")));
            }
        }
        let mut log = 0;
        self.members[0].host.storage().entries(&mut |_| log += 1);
        for index in 0..MEMBERS {
            self.crash(index, false);
        }
        Report {
            completed: self.traffic.connections.iter().filter(|c| c.completed.is_some()).count(),
            connections: self.traffic.connections.len(),
            simulated: self.now,
            log,
            ..self.report
        }
    }
}

/// The commands of an entry.
pub(crate) fn commands(entry: &palisade_raft_store::Entry) -> impl Iterator<Item = &Command> {
    let batch = match &entry.payload {
        openraft::EntryPayload::Normal(batch) => Some(batch),
        _ => None,
    };
    batch.into_iter().flat_map(|batch| &batch.commands)
}

impl Member {
    fn new(index: usize, network: &Arc<Network>, random: &mut Random, config: &Config) -> Member {
        let host = Host::new(index, network.clone(), Random(random.number()));
        host.flushes(config.plan.flush.0, config.plan.flush.1);
        // In memory, where there is such a folder: its files are synced for every start.
        let shared = std::path::Path::new("/dev/shm");
        let folder = if shared.is_dir() { TempDir::new_in(shared) } else { TempDir::new() };
        let folder = folder.expect("a temporary folder");
        let engine = palisade_engine::Config::new(palisade_engine::MemberId(0), 0, 0);
        let options = Options {
            data_dir: folder.path().to_owned(),
            name: format!("fw{}", index + 1),
            listen: address(index),
            interfaces: Vec::new(),
            second_lock: palisade_node::SecondLock::default(),
            advertise: address(index).to_string(),
            role: Role::Firewall,
            engine,
            timing: Timing::default(),
            log: LogSize::default(),
            progress_rate: 4_000_000,
            connection_log: palisade_node::connection_log::ConnectionLog::default(),
        };
        Member {
            host,
            options,
            power: None,
            stalled: None,
            port: Arc::default(),
            live: Arc::default(),
            hint_faults: Arc::default(),
            broken: Arc::default(),
            unfit: None,
            applied: Arc::default(),
            _folder: folder,
        }
    }
}
