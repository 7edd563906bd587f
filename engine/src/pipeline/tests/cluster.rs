//! The test harness: a cluster of three members without a network.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use crate::addr::Ip;
use crate::engine::Engine;
use crate::event::{Event, Hint, LoggedDecision, Proposal};
use crate::id::{Generation, MemberId, ZoneId};
use crate::parse::{IpOptions, Kind, Packet, RoutingClass, Tcp};
use crate::replica::{Applied, Assignment, Batch, Command, Outcome, PolicyChange, Replica, SettingsChange};
use crate::table::peer_queries::HINT_DELAY;
use crate::testing::{CLIENT, INSIDE, OUTSIDE, POLICY, SERVER, tuple};
use crate::time::Time;
use crate::tuple::Tuple;
use crate::types::{Config, Context, LeaseState, Routes, Wake};
use crate::verdict::{HoldKey, Verdict};
use crate::worker_set::WorkerSet;

pub(crate) const MS: Duration = Duration::from_millis(1);

/// 10.0.1.0/24 is outside, 10.0.2.0/24 inside.
pub(crate) struct Net;

impl Routes for Net {
    fn zone(&mut self, destination: Ip) -> Option<ZoneId> {
        match destination {
            Ip::V4([10, 0, 1, _]) => Some(OUTSIDE),
            Ip::V4([10, 0, 2, _]) => Some(INSIDE),
            _ => None,
        }
    }
}

/// The same, with the zone that a verdict was about.
#[derive(Default)]
struct NetWithEgress(Cell<Option<ZoneId>>);

impl Routes for NetWithEgress {
    fn zone(&mut self, destination: Ip) -> Option<ZoneId> {
        Net.zone(destination)
    }

    fn set_egress(&self, zone: ZoneId) {
        self.0.set(Some(zone));
    }

    fn egress(&self) -> Option<ZoneId> {
        self.0.get()
    }
}

#[derive(Default)]
pub(crate) struct Woken(pub(crate) Vec<(WorkerSet, HoldKey)>);

impl Wake for Woken {
    fn wake(&mut self, workers: WorkerSet, key: HoldKey) {
        self.0.push((workers, key));
    }
}

pub(crate) struct Member {
    pub(crate) engine: Arc<Engine>,
    pub(crate) replica: Replica,
    pub(crate) lease: LeaseState,
    pub(crate) woken: Woken,
    /// When a packet was last held.
    held: Time,
    /// The number of applied log entries.
    applied: usize,
    next: u64,
}

pub(crate) struct Cluster {
    pub(crate) now: Time,
    pub(crate) members: Vec<Member>,
    /// Hints in flight: from, to, hint.
    pub(crate) hints: Vec<(usize, usize, Hint)>,
    /// Proposals not yet committed, each with its proposer.
    pub(crate) proposals: Vec<(usize, Proposal)>,
    pub(crate) log: Vec<Batch>,
    /// Decisions for the connection log, each with its member.
    pub(crate) logged: Vec<(usize, LoggedDecision)>,
}

pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;
pub(crate) const C: usize = 2;

impl Cluster {
    pub(crate) fn new() -> Cluster {
        Cluster::with(&[])
    }

    /// A cluster with these settings.
    pub(crate) fn with(settings: &[&str]) -> Cluster {
        let member = |n: u64| {
            let engine = Engine::new(Config::new(MemberId(n), 1, 40 + n));
            Member {
                replica: Replica::new(engine.clone()),
                engine,
                lease: LeaseState::Valid,
                woken: Woken::default(),
                held: Time::ZERO,
                applied: 0,
                next: 0,
            }
        };
        let mut cluster = Cluster {
            now: Time(1_000_000_000),
            members: (1..=3).map(member).collect(),
            hints: Vec::new(),
            proposals: Vec::new(),
            log: Vec::new(),
            logged: Vec::new(),
        };
        if !settings.is_empty() {
            let values = Assignment::parse_all(settings.iter().copied()).unwrap();
            let change = SettingsChange::new(0, &values, Vec::new(), "test".to_owned());
            cluster.append(A, vec![Command::Settings(Box::new(change))]);
            assert_eq!(cluster.apply_all(), [Outcome::Accepted]);
        }
        assert_eq!(cluster.policy(POLICY), [Outcome::Policy(Generation(1))]);
        cluster
    }

    /// Activates a policy on all members.
    pub(crate) fn policy(&mut self, text: &str) -> Vec<Outcome> {
        let base = self.members[A].engine.generation();
        self.append_policy(base, text);
        self.apply_all()
    }

    /// Adds both steps of a policy to the log, and has all members compile it in between.
    pub(crate) fn append_policy(&mut self, base: Generation, text: &str) {
        let change = PolicyChange::new(base, text.to_owned(), "test".to_owned());
        let enact = Command::Enact(Box::new(change.enactment()));
        self.append(A, vec![Command::Policy(Box::new(change))]);
        self.append(A, vec![enact]);
    }

    pub(crate) fn append(&mut self, by: usize, commands: Vec<Command>) {
        let member = &mut self.members[by];
        let first = member.next;
        member.next += commands.len() as u64;
        let proposer = MemberId(by as u64 + 1);
        self.log.push(Batch { proposer, first_serial: first, lowest_outstanding: first, unix_ms: 0, commands });
    }

    /// Commits the proposals, in order.
    pub(crate) fn commit(&mut self) {
        for (by, proposal) in std::mem::take(&mut self.proposals) {
            let command = match proposal {
                Proposal::Establish(e) => Command::Establish(e),
                Proposal::Close(c) => Command::Close(c),
                Proposal::Refresh(id) => Command::Refresh(vec![id]),
            };
            self.append(by, vec![command]);
        }
    }

    /// Applies the rest of the log at one member and returns the outcomes.
    pub(crate) fn apply(&mut self, at: usize) -> Vec<Outcome> {
        let member = &mut self.members[at];
        let mut outcomes = Vec::new();
        for batch in &self.log[member.applied..] {
            let answers = member.replica.apply(self.now, batch, &mut member.woken);
            let has_policy = batch.commands.iter().any(|command| matches!(command, Command::Policy(_)));
            if has_policy && answers.iter().all(|answer| answer.outcome == Outcome::Accepted) {
                member.engine.compile_policies();
                continue;
            }
            outcomes.extend(Applied::outcomes(&answers));
        }
        member.applied = self.log.len();
        outcomes
    }

    /// The number of log entries that a member has applied.
    pub(crate) fn applied(&self, at: usize) -> usize {
        self.members[at].applied
    }

    /// Restarts a member: it keeps the replicated state that it had applied, and loses all local state.
    pub(crate) fn restart(&mut self, at: usize) {
        let config = self.members[at].engine.config.clone();
        let engine = Engine::new(Config { start: config.start + 1, ..config });
        let member = &mut self.members[at];
        (member.replica, member.engine) = (Replica::new(engine.clone()), engine);
        for batch in &self.log[..member.applied] {
            member.replica.apply(self.now, batch, &mut Woken::default());
        }
        member.engine.compile_policies();
    }

    /// Applies the log at all members and returns the outcomes at the first one.
    pub(crate) fn apply_all(&mut self) -> Vec<Outcome> {
        let all: Vec<_> = (0..self.members.len()).map(|m| self.apply(m)).collect();
        // Some members may have applied a part before.
        assert!(all.iter().all(|o| o.ends_with(&all[0]) || all[0].ends_with(o)), "members disagree: {all:?}");
        let digests: Vec<u64> = self.members.iter().map(|m| m.replica.digest()).collect();
        assert!(digests.iter().all(|d| *d == digests[0]));
        all[0].clone()
    }

    /// Commits the proposals and applies the log at all members.
    pub(crate) fn settle(&mut self) -> Vec<Outcome> {
        self.commit();
        self.apply_all()
    }

    /// Delivers the hints in flight and those that result from them, and sends the queries that are due.
    pub(crate) fn deliver(&mut self) {
        self.deliver_all();
        self.ask();
        self.deliver_all();
    }

    fn deliver_all(&mut self) {
        while !self.hints.is_empty() {
            self.deliver_one();
        }
    }

    /// Delivers the first hint in flight.
    pub(crate) fn deliver_one(&mut self) {
        let (from, to, hint) = self.hints.remove(0);
        let mut events = Vec::new();
        let member = &mut self.members[to];
        member.engine.hint(self.now, MemberId(from as u64 + 1), &hint, &mut events, &mut member.woken);
        self.consequences(to, events);
    }

    fn consequences(&mut self, at: usize, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Hint(hint) => {
                    let others = (0..self.members.len()).filter(|m| *m != at);
                    self.hints.extend(others.map(|to| (at, to, hint.clone())));
                }
                Event::Propose(proposal) => self.proposals.push((at, proposal)),
                Event::Wake { workers, key } => self.members[at].woken.0.push((workers, key)),
                Event::Log(decision) => self.logged.push((at, decision)),
            }
        }
    }

    /// Makes all members send their due queries, as after the hint delay, without advancing the clock.
    pub(crate) fn ask(&mut self) {
        for at in 0..self.members.len() {
            let mut events = Vec::new();
            self.members[at].engine.send_queries(self.now + HINT_DELAY, &mut events);
            self.consequences(at, events);
        }
    }

    pub(crate) fn tick(&mut self) {
        for at in 0..self.members.len() {
            let mut events = Vec::new();
            self.members[at].engine.tick(self.now, &mut events);
            self.consequences(at, events);
        }
    }

    pub(crate) fn process(&mut self, at: usize, worker: u8, ingress: ZoneId, packet: &Packet) -> Verdict {
        let member = &self.members[at];
        let mut routes = NetWithEgress::default();
        let mut context =
            Context { now: self.now, worker, ingress, antispoof: true, lease: member.lease, routes: &mut routes };
        let mut events = Vec::new();
        let verdict = member.engine.process(packet, &mut context, &mut events);
        if verdict == Verdict::Forward {
            // Whatever the packet is: it leaves by the zone that the verdict was about.
            assert_eq!(routes.egress(), Net.zone(packet.tuple.dst), "{packet:?}");
        }
        if verdict.held().is_some() {
            self.members[at].held = self.now;
        }
        self.consequences(at, events);
        verdict
    }

    /// Judges the packet that was held last, as its hold is over.
    pub(crate) fn expire(&mut self, at: usize, packet: Packet) -> Option<Verdict> {
        let ingress = Net.zone(packet.tuple.src).unwrap_or(OUTSIDE);
        let member = &self.members[at];
        let mut context =
            Context { now: self.now, worker: 5, ingress, antispoof: true, lease: member.lease, routes: &mut Net };
        let mut events = Vec::new();
        let verdict = member.engine.process_expired(&packet, member.held, &mut context, &mut events);
        self.consequences(at, events);
        verdict
    }

    /// Processes a packet with this member's own routes.
    pub(crate) fn process_by(
        &mut self,
        at: usize,
        (ingress, antispoof): (ZoneId, bool),
        routes: &mut dyn Routes,
        packet: &Packet,
    ) -> Verdict {
        let member = &self.members[at];
        let mut context = Context { now: self.now, worker: 0, ingress, antispoof, lease: member.lease, routes };
        let mut events = Vec::new();
        let verdict = member.engine.process(packet, &mut context, &mut events);
        self.consequences(at, events);
        verdict
    }

    /// Processes a packet from its sender's zone, at worker 5.
    pub(crate) fn pass(&mut self, at: usize, packet: Packet) -> Verdict {
        let ingress = Net.zone(packet.tuple.src).unwrap_or(OUTSIDE);
        self.process(at, 5, ingress, &packet)
    }

    /// The states of all sessions at a member.
    pub(crate) fn states(&self, at: usize) -> Vec<&'static str> {
        let mut states = Vec::new();
        self.members[at].engine.sessions(self.now, &mut |info| {
            states.push(info.state);
            true
        });
        self.check_counts(at);
        states.sort_unstable();
        states
    }

    /// The counts, which are kept as sessions change, are those of a walk over all sessions.
    fn check_counts(&self, at: usize) {
        let mut walked = std::collections::BTreeMap::<_, u64>::new();
        self.members[at].engine.sessions(self.now, &mut |info| {
            if !info.half_open {
                *walked.entry((info.original.protocol, info.state)).or_default() += 1;
            }
            true
        });
        let walked: Vec<_> = walked.into_iter().map(|((protocol, state), n)| (protocol, state, n)).collect();
        assert_eq!(self.members[at].engine.counts().sessions, walked);
    }

    /// Registers the three members, so that they query each other.
    pub(crate) fn register(&mut self) {
        use crate::cluster_state::{JoinRequest, MemberInfo, Role};
        use crate::replica::{Join, MemberChange};
        let info =
            |name: &str| MemberInfo { name: name.to_owned(), address: format!("{name}:1"), role: Role::Firewall };
        let init =
            MemberChange::Init { cluster_id: "c".to_owned(), member: info("a"), level: crate::level::Level::FIRST };
        let token = MemberChange::Token { secret_digest: vec![1], expires_unix_ms: u64::MAX };
        let join = |n, name| {
            MemberChange::Join(Box::new(Join {
                request: JoinRequest([n; 16]),
                secret_digest: vec![1],
                member: info(name),
            }))
        };
        let commands = [init, token, join(1, "b"), join(2, "c")];
        self.append(A, commands.map(Command::Member).into());
        self.apply_all();
        // Before that nobody expects them to have forwarded anything.
        for member in [B, C] {
            self.append(member, vec![Command::Resume]);
        }
        self.apply_all();
        assert!(self.members.iter().all(|m| m.engine.reachable_peers() == 2));
    }

    pub(crate) fn asks(&self) -> usize {
        self.hints.iter().filter(|(_, _, hint)| matches!(hint, Hint::Query(_))).count() / 2
    }
}

/// The two endpoints of a TCP connection, as far as tests need them to build packets.
#[derive(Clone, Copy)]
pub(crate) struct Conn {
    pub(crate) tuple: Tuple,
    pub(crate) client: u32,
    pub(crate) server: u32,
}

impl Conn {
    pub(crate) fn new(port: u16) -> Conn {
        Conn { tuple: tuple(port), client: 5000, server: 9_000_000 }
    }

    fn packet(&self, client: bool, flags: u8, seq: u32, ack: u32, payload: u32) -> Packet {
        let tcp = Tcp { seq, ack, flags, window: 64240, payload, wscale: Some(7), sack_permitted: true };
        Packet {
            tuple: if client { self.tuple } else { self.tuple.inverse() },
            length: 40 + payload,
            transport: 20,
            kind: Kind::Tcp(tcp),
            fragment: None,
            options: IpOptions::NONE,
            class: RoutingClass::default(),
        }
    }

    /// `seq` and `ack` count from the first byte of data.
    pub(crate) fn of_client(&self, flags: u8, seq: u32, ack: u32, payload: u32) -> Packet {
        self.packet(true, flags, self.client.wrapping_add(seq + 1), self.server.wrapping_add(ack + 1), payload)
    }

    pub(crate) fn of_server(&self, flags: u8, seq: u32, ack: u32, payload: u32) -> Packet {
        self.packet(false, flags, self.server.wrapping_add(seq + 1), self.client.wrapping_add(ack + 1), payload)
    }

    pub(crate) fn syn(&self) -> Packet {
        self.packet(true, Tcp::SYN, self.client, 0, 0)
    }

    pub(crate) fn syn_ack(&self) -> Packet {
        self.packet(false, Tcp::SYN | Tcp::ACK, self.server, self.client.wrapping_add(1), 0)
    }

    pub(crate) fn ack(&self) -> Packet {
        self.of_client(Tcp::ACK, 0, 0, 0)
    }

    pub(crate) fn data(&self) -> Packet {
        self.of_client(Tcp::ACK, 0, 0, 500)
    }
}

/// A packet of another protocol.
pub(crate) fn other(tuple: Tuple, kind: Kind) -> Packet {
    Packet {
        tuple,
        length: 60,
        transport: 20,
        kind,
        fragment: None,
        options: IpOptions::NONE,
        class: RoutingClass::default(),
    }
}

/// Establishes a connection through all three members.
pub(crate) fn established(port: u16) -> (Cluster, Conn) {
    let mut cluster = Cluster::new();
    let conn = Conn::new(port);
    open(&mut cluster, &conn);
    (cluster, conn)
}

pub(crate) fn open(cluster: &mut Cluster, conn: &Conn) {
    assert_eq!(cluster.pass(A, conn.syn()), Verdict::Forward);
    cluster.deliver();
    assert_eq!(cluster.pass(B, conn.syn_ack()), Verdict::Forward);
    cluster.deliver();
    assert!(matches!(cluster.pass(C, conn.ack()), Verdict::Hold(..)));
    assert!(cluster.settle().iter().all(|o| *o == Outcome::Accepted));
    assert_eq!(cluster.pass(C, conn.ack()), Verdict::Forward);
    cluster.deliver();
}

#[test]
fn cluster_zones_match_the_policy() {
    let cluster = Cluster::new();
    let engine = &cluster.members[A].engine;
    assert_eq!((engine.zone("outside"), engine.zone("inside"), engine.zone("dmz")), (OUTSIDE, INSIDE, ZoneId::UNKNOWN));
    assert_eq!((Net.zone(CLIENT), Net.zone(SERVER)), (Some(OUTSIDE), Some(INSIDE)));
}
