//! Idle expiry: a session never expires if any member forwarded a packet of it within its timeout, for any order of the
//! leader's probes, the replies, packets and log entries.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::cluster::*;
use crate::engine::Engine;
use crate::event::Proposal;
use crate::id::{MemberId, SessionId};
use crate::idle::IdleProbe;
use crate::parse::Packet;
use crate::replica::{Batch, Command, ExpireIdle, Outcome, Replica};
use crate::time::Time;
use crate::types::{Config, LeaseState};
use crate::verdict::{HoldClass, Reason, Verdict};

const TIMEOUT: Duration = Duration::from_secs(3600);
const POLICY: &str = "zone outside, inside\naccept \"all\" from any to any: any -> any\n\
                      timeout tcp.established 1h\ntimeout udp.assured 1h\n";

/// An established session without a forwarded packet for longer than its timeout.
fn idle(udp: bool) -> (Cluster, Packet, SessionId) {
    let mut k = Cluster::new();
    k.policy(POLICY);
    let packet = if udp {
        let tuple =
            crate::tuple::Tuple { protocol: crate::tuple::Protocol::UDP, dst_port: 53, ..crate::testing::tuple(1) };
        let ask = other(tuple, crate::parse::Kind::Udp);
        assert_eq!(k.pass(A, ask), Verdict::Forward);
        k.deliver();
        assert_eq!(k.pass(B, other(tuple.inverse(), crate::parse::Kind::Udp)), Verdict::Forward);
        k.deliver();
        assert_eq!(k.pass(A, ask), Verdict::Forward);
        k.settle();
        ask
    } else {
        let conn = Conn::new(1);
        open(&mut k, &conn);
        conn.data()
    };
    k.hints.clear();
    k.members.iter_mut().for_each(|member| member.woken.0.clear());
    k.now = k.now + TIMEOUT + Duration::from_secs(1);
    let mut ids = Vec::new();
    k.members[A].engine.sessions(k.now, &mut |info| {
        ids.push(info.id);
        true
    });
    (k, packet, ids[0])
}

/// The leader A sends a probe; B and C confirm that the session is idle.
fn probe_and_confirm(k: &Cluster, id: SessionId) -> ExpireIdle {
    let probe = k.members[A].engine.probe_idle(k.now, &[id]);
    let mut ids: Vec<SessionId> = probe.ids().collect();
    for m in [B, C] {
        k.members[m].engine.confirm_idle(k.now, &mut ids);
    }
    let (mut open, closed) = probe.commands(|id| ids.contains(id), 10);
    assert!(closed.is_empty());
    open.remove(0)
}

fn known(k: &Cluster, at: usize, id: SessionId) -> bool {
    k.members[at].engine.session(k.now, id).is_some()
}

#[test]
fn idle_session_on_all_members_expires() {
    for udp in [false, true] {
        let (mut k, _, id) = idle(udp);
        let expire = probe_and_confirm(&k, id);
        k.append(A, vec![Command::ExpireIdle(expire)]);
        assert_eq!(k.apply_all(), [Outcome::Accepted]);
        assert!((A..=C).all(|m| !known(&k, m, id)));
    }
}

#[test]
fn idle_session_packet_after_confirmation_waits_for_refresh_and_prevents_expiry() {
    for udp in [false, true] {
        let (mut k, packet, id) = idle(udp);
        let expire = probe_and_confirm(&k, id);
        assert!(matches!(k.pass(C, packet), Verdict::Hold(_, HoldClass::Matched)));
        assert!(matches!(k.pass(C, packet), Verdict::Hold(_, HoldClass::Matched)));
        assert_eq!(k.proposals, [(C, Proposal::Refresh(id))], "proposed once");
        assert!(k.members[C].engine.session(k.now, id).unwrap().idle >= TIMEOUT, "the packet was not forwarded");
        k.settle();
        assert_eq!(k.members[C].woken.0.len(), 1);
        assert_eq!(k.pass(C, packet), Verdict::Forward);
        // The command that results from the probe is late and applied twice.
        k.append(A, vec![Command::ExpireIdle(expire.clone())]);
        k.append(A, vec![Command::ExpireIdle(expire)]);
        k.apply_all();
        assert!((A..=C).all(|m| known(&k, m, id)));
        // A new probe marks the session again.
        k.now = k.now + TIMEOUT + Duration::from_secs(1);
        let expire = probe_and_confirm(&k, id);
        k.append(A, vec![Command::ExpireIdle(expire)]);
        k.apply_all();
        assert!(!known(&k, C, id));
    }
}

#[test]
fn idle_session_packet_after_expiry_is_judged_as_new() {
    let (mut k, packet, id) = idle(false);
    let expire = probe_and_confirm(&k, id);
    k.append(A, vec![Command::ExpireIdle(expire)]);
    assert!(k.pass(C, packet).held().is_some());
    k.settle();
    assert!(!known(&k, C, id), "the refresh follows the expiry in the log");
    assert_eq!(k.members[C].woken.0.len(), 1);
    assert!(matches!(k.pass(C, packet), Verdict::Hold(_, HoldClass::Unmatched)), "the session is gone on all members");
}

#[test]
fn idle_session_is_not_refreshed_without_valid_lease() {
    let (mut k, packet, id) = idle(false);
    let _ = probe_and_confirm(&k, id);
    k.members[C].lease = LeaseState::Grace;
    assert_eq!(k.pass(C, packet), Verdict::Drop(Reason::LeaseGrace));
    assert!(k.proposals.is_empty());
}

#[test]
fn idle_session_is_not_refreshed_by_forged_packet() {
    let (mut k, _, id) = idle(false);
    let _ = probe_and_confirm(&k, id);
    let forged = Conn::new(1).of_client(crate::parse::Tcp::ACK, 1 << 30, 0, 500);
    let verdict = k.pass(C, forged);
    assert!(!matches!(verdict, Verdict::Forward | Verdict::Hold(_, HoldClass::Matched)), "{verdict:?}");
    assert!(k.proposals.is_empty());
}

#[test]
fn idle_probe_does_not_delay_end_of_closed_session() {
    use crate::session::{Close, CloseCause};
    let (mut k, _, id) = idle(false);
    let expire = probe_and_confirm(&k, id);
    k.append(B, vec![Command::Close(Close { id, cause: CloseCause::Fin })]);
    k.append(A, vec![Command::ExpireIdle(expire)]);
    k.apply_all();
    assert_eq!(k.states(A), ["TIME_WAIT"]);
    k.now = k.now + Duration::from_secs(200);
    let probe = k.members[A].engine.probe_idle(k.now, &[id]);
    let (open, closed) = probe.commands(|_| true, 10);
    assert_eq!((open.len(), closed), (0, vec![vec![id]]));
}

/// A step of an interleaving. Numbers are members, or indices into lists, modulo their length.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// A packet arrives at a member.
    Packet(usize),
    /// A member that is leader, or believes to be, begins a probe.
    Probe(usize),
    /// A member replies to a probe.
    Answer(usize, usize),
    /// A probe with replies from all members results in a command, which stays in flight.
    Decide(usize),
    /// A command in flight is appended to the log; a copy of it stays in flight.
    Commit(usize),
    /// The members' proposals are appended to the log.
    Propose,
    /// A member applies the log.
    Apply(usize),
    /// A member restarts: it loses its marks, and resumes before it forwards packets.
    Restart(usize),
    Step(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let member = 0_usize..3;
    prop_oneof![
        5 => member.clone().prop_map(Op::Packet),
        3 => member.clone().prop_map(Op::Probe),
        8 => (0_usize..4, member.clone()).prop_map(|(probe, by)| Op::Answer(probe, by)),
        4 => (0_usize..4).prop_map(Op::Decide),
        4 => (0_usize..4).prop_map(Op::Commit),
        2 => Just(Op::Propose),
        5 => member.clone().prop_map(Op::Apply),
        1 => member.prop_map(Op::Restart),
        3 => prop_oneof![Just(1), Just(1800), Just(3700)].prop_map(Op::Step),
    ]
}

struct ProbeState {
    by: usize,
    probe: IdleProbe,
    /// The number of log entries that the leader had applied.
    applied: usize,
    answered: BTreeSet<usize>,
    idle: bool,
}

struct World {
    k: Cluster,
    packet: Packet,
    id: SessionId,
    /// A replica that has applied the whole log.
    committed: Replica,
    applied_by_log: usize,
    /// When any member last forwarded a packet.
    passed: Time,
    ended: bool,
    probes: Vec<ProbeState>,
    in_flight: Vec<(usize, ExpireIdle)>,
}

impl World {
    fn new(udp: bool) -> World {
        let (k, packet, id) = idle(udp);
        let passed = Time(k.now.0 - TIMEOUT.as_nanos() as u64 - 1_000_000_000);
        let committed = Replica::new(Engine::new(Config::new(MemberId(9), 1, 3)));
        let mut world = World {
            k,
            packet,
            id,
            committed,
            applied_by_log: 0,
            passed,
            ended: false,
            probes: Vec::new(),
            in_flight: Vec::new(),
        };
        world.commit();
        world
    }

    /// Applies the log to `committed`: an entry counts as effective when appended, whenever members apply it.
    fn commit(&mut self) {
        let entries: Vec<Batch> = self.k.log[self.applied_by_log..].to_vec();
        for batch in &entries {
            self.committed.apply(self.k.now, batch, &mut Woken::default());
        }
        self.applied_by_log = self.k.log.len();
        let there = self.committed.engine().session(self.k.now, self.id).is_some();
        if !there && !self.ended {
            self.ended = true;
            let idle = self.k.now.since(self.passed);
            assert!(idle >= TIMEOUT, "it ended although a packet was forwarded {idle:?} before");
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Packet(at) => {
                let known = known(&self.k, at, self.id);
                let verdict = self.k.pass(at, self.packet);
                // After the end, the packet may open another session.
                if verdict == Verdict::Forward && known {
                    assert!(!self.ended, "it was forwarded although the session has ended");
                    self.passed = self.k.now;
                }
                self.k.hints.clear();
            }
            Op::Probe(by) => {
                let probe = self.k.members[by].engine.probe_idle(self.k.now, &[self.id]);
                if probe.ids().next().is_some() {
                    let (applied, answered) = (self.k.applied(by), BTreeSet::from([by]));
                    self.probes.push(ProbeState { by, probe, applied, answered, idle: true });
                }
            }
            Op::Answer(probe, by) if !self.probes.is_empty() => {
                let n = self.probes.len();
                let state = &mut self.probes[probe % n];
                // A member that lags behind the leader does not reply.
                if self.k.applied(by) >= state.applied && state.answered.insert(by) {
                    let mut ids = vec![self.id];
                    self.k.members[by].engine.confirm_idle(self.k.now, &mut ids);
                    state.idle &= !ids.is_empty();
                }
            }
            Op::Decide(probe) if !self.probes.is_empty() => {
                let at = probe % self.probes.len();
                if self.probes[at].answered.len() == 3 {
                    let state = self.probes.swap_remove(at);
                    let (open, _) = state.probe.commands(|_| state.idle, 10);
                    self.in_flight.extend(open.into_iter().map(|expire| (state.by, expire)));
                }
            }
            Op::Commit(which) if !self.in_flight.is_empty() => {
                let (by, expire) = self.in_flight[which % self.in_flight.len()].clone();
                self.k.append(by, vec![Command::ExpireIdle(expire)]);
                self.commit();
            }
            Op::Propose => {
                self.k.proposals.retain(|(_, proposal)| matches!(proposal, Proposal::Refresh(_)));
                self.k.commit();
                self.commit();
            }
            Op::Apply(at) => drop(self.k.apply(at)),
            Op::Restart(at) => {
                self.k.restart(at);
                self.k.append(at, vec![Command::Resume]);
                self.commit();
                // Its lease is valid once it has applied its `Resume`.
                self.k.apply(at);
            }
            Op::Step(seconds) => self.k.now = self.k.now + Duration::from_secs(seconds),
            Op::Answer(..) | Op::Decide(_) | Op::Commit(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn idle_session_never_expires_after_a_recent_packet(udp: bool, ops in prop::collection::vec(op(), 1..120)) {
        let mut world = World::new(udp);
        for op in ops {
            world.step(op);
        }
        // At the end all members agree.
        for at in [A, B, C] {
            world.k.apply(at);
            prop_assert_eq!(world.k.members[at].replica.digest(), world.committed.digest());
        }
    }
}

/// Exhaustive: every order of the steps between the replies and the end, up to a length.
#[test]
fn idle_session_never_expires_within_timeout_in_any_short_interleaving() {
    const STEPS: [Op; 7] =
        [Op::Packet(B), Op::Packet(C), Op::Answer(0, C), Op::Commit(0), Op::Propose, Op::Apply(C), Op::Restart(C)];
    const LENGTH: u32 = 4;
    let mut ended = 0;
    for number in 0..STEPS.len().pow(LENGTH) {
        let mut world = World::new(false);
        world.step(Op::Probe(A));
        world.step(Op::Answer(0, B));
        for place in 0..LENGTH {
            world.step(STEPS[number / STEPS.len().pow(place) % STEPS.len()]);
            world.step(Op::Decide(0));
        }
        ended += u32::from(world.ended);
    }
    println!("{} orders, the session ended in {ended}", STEPS.len().pow(LENGTH));
    assert!(ended > 0, "it never ended, so the test shows nothing");
}
