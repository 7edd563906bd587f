//! Timeouts: every state has its own, and exactly the sessions that have been idle for longer are reported.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::cluster::*;
use crate::event::Hint;
use crate::id::{Generation, MemberId, RuleId, SessionId};
use crate::parse::{Kind, Packet, Tcp};
use crate::replica::{Command, Outcome};
use crate::session::{Close, CloseCause, Establish, HandshakeState, SessionInfo};
use crate::table::wheel;
use crate::testing::{CLIENT, INSIDE, OUTSIDE, SERVER, end};
use crate::time::{Stamp17ms, Time};
use crate::timeouts::{Timeout, Timeouts};
use crate::tuple::{Direction, Protocol, Tuple};
use crate::verdict::{Reason, Verdict};

const FORWARD: Verdict = Verdict::Forward;
const SECOND: Duration = Duration::from_secs(1);

/// Maximum delay until an idle session is reported.
const RESOLUTION: Duration = wheel::UNIT.saturating_add(Stamp17ms::UNIT);

const ALL: &str = "zone outside, inside\naccept \"all\" from any to any: any -> any\n";

fn with(timeouts: &str) -> String {
    format!("{ALL}timeout {timeouts}\n")
}

/// The packet that opens a session of a protocol, and its reply.
fn packets(protocol: Protocol) -> (Packet, Packet) {
    let port = if protocol == Protocol::UDP { 53 } else { 0 };
    let tuple = Tuple { src: CLIENT, dst: SERVER, src_port: port, dst_port: port, protocol };
    match protocol {
        Protocol::UDP => (other(tuple, Kind::Udp), other(tuple.inverse(), Kind::Udp)),
        Protocol::ICMP => {
            let tuple = Tuple { src_port: 7, ..tuple };
            (other(tuple, Kind::EchoRequest), other(tuple.inverse(), Kind::EchoReply))
        }
        _ => (other(tuple, Kind::Other), other(tuple.inverse(), Kind::Other)),
    }
}

fn only(k: &Cluster) -> Option<SessionInfo> {
    let mut all = Vec::new();
    k.members[A].engine.sessions(k.now, &mut |info| {
        all.push(info.clone());
        true
    });
    assert!(all.len() <= 1);
    all.pop()
}

fn idle(k: &Cluster) -> Vec<SessionId> {
    let (mut all, mut found, mut more) = (Vec::new(), Vec::new(), true);
    while more {
        more = k.members[A].engine.idle(k.now, 1000, &mut found);
        all.append(&mut found);
    }
    all
}

/// Brings a connection into a state, by packets at the first member.
fn tcp(k: &mut Cluster, state: &str) {
    let c = Conn::new(1);
    let fin = Tcp::FIN | Tcp::ACK;
    let steps: &[(&str, &[Packet])] = &[
        ("SYN_SENT", &[c.syn()]),
        ("SYN_RECV", &[c.syn_ack()]),
        ("ESTABLISHED", &[c.ack()]),
        ("FIN_WAIT", &[c.of_client(fin, 0, 0, 0)]),
        ("CLOSE_WAIT", &[c.of_server(Tcp::ACK, 0, 1, 0)]),
        ("LAST_ACK", &[c.of_server(fin, 0, 1, 0)]),
        ("TIME_WAIT", &[]),
    ];
    for (step, packets) in steps {
        for packet in *packets {
            let verdict = k.pass(A, *packet);
            assert!(verdict == FORWARD || *step == "ESTABLISHED", "{step}: {verdict:?}");
        }
        if matches!(*step, "ESTABLISHED" | "TIME_WAIT") {
            k.settle();
        }
        if *step == state {
            return;
        }
    }
}

/// Brings a session of another protocol into a state.
fn generic(k: &mut Cluster, protocol: Protocol, state: &str) {
    let (ask, reply) = packets(protocol);
    assert_eq!(k.pass(A, ask), FORWARD);
    if state != "UNREPLIED" {
        assert_eq!(k.pass(A, reply), FORWARD);
    }
    if state == "ASSURED" {
        assert_eq!(k.pass(A, ask), FORWARD);
        assert_eq!(k.settle(), [Outcome::Accepted]);
    }
}

#[test]
fn timeout_applies_to_every_state_of_every_protocol() {
    let mut cases: Vec<(Protocol, &str, Timeout)> = [
        ("SYN_SENT", Timeout::TcpSynSent),
        ("SYN_RECV", Timeout::TcpSynRecv),
        ("ESTABLISHED", Timeout::TcpEstablished),
        ("FIN_WAIT", Timeout::TcpFinWait),
        ("CLOSE_WAIT", Timeout::TcpCloseWait),
        ("LAST_ACK", Timeout::TcpLastAck),
        ("TIME_WAIT", Timeout::TcpTimeWait),
        ("CLOSE", Timeout::TcpClose),
    ]
    .map(|(state, timeout)| (Protocol::TCP, state, timeout))
    .into();
    for (protocol, new, assured) in [
        (Protocol::UDP, Timeout::UdpUnreplied, Timeout::UdpAssured),
        (Protocol::GRE, Timeout::GreUnreplied, Timeout::GreAssured),
        (Protocol::ICMP, Timeout::Icmp, Timeout::Icmp),
        (Protocol(132), Timeout::Generic, Timeout::Generic),
    ] {
        cases.extend([(protocol, "UNREPLIED", new), (protocol, "REPLIED", new), (protocol, "ASSURED", assured)]);
    }
    // None of them is the default.
    let seconds = |timeout: Timeout| 40 + 7 * timeout as u64;
    let all: Vec<_> = Timeout::ALL.iter().map(|t| format!("{} {}s", t.name(), seconds(*t))).collect();
    for (protocol, state, timeout) in cases {
        let mut k = Cluster::new();
        k.policy(&with(&all.join(", ")));
        match (protocol, state) {
            (Protocol::TCP, "CLOSE") => {
                tcp(&mut k, "ESTABLISHED");
                assert_eq!(k.pass(A, Conn::new(1).of_client(Tcp::RST, 0, 0, 0)), FORWARD);
                assert_eq!(only(&k).unwrap().state, "CLOSE", "as soon as the RST was accepted");
                k.settle();
            }
            (Protocol::TCP, _) => tcp(&mut k, state),
            _ => generic(&mut k, protocol, state),
        }
        let case = format!("{protocol} {state}");
        let timeout = Duration::from_secs(seconds(timeout));
        let shown = only(&k).unwrap();
        assert_eq!((shown.state, shown.timeout), (state, timeout), "{case}");
        k.now = k.now + 10 * SECOND;
        let shown = only(&k).unwrap();
        let rounded = shown.timeout.saturating_sub(timeout - 10 * SECOND);
        assert!(rounded <= Stamp17ms::UNIT, "{case}: {:?} of {timeout:?} are left", shown.timeout);
        k.now = k.now + (timeout - 10 * SECOND - MS);
        k.tick();
        assert!(only(&k).is_some() && idle(&k).is_empty(), "{case}: ended too early");
        k.now = k.now + MS + RESOLUTION;
        k.tick();
        match shown.half_open {
            true => assert!(only(&k).is_none(), "{case}: not ended"),
            false => assert_eq!(idle(&k), [shown.id], "{case}: not found"),
        }
    }
}

#[test]
fn timeout_deadline_follows_packets_hints_and_policies() {
    let mut k = Cluster::new();
    k.policy(&with("tcp.established 1h, tcp.fin_wait 2m"));
    let c = Conn::new(1);
    open(&mut k, &c);
    let id = only(&k).unwrap().id;
    let later = |k: &mut Cluster, by: Duration| {
        k.now = k.now + by;
        k.tick();
        idle(k)
    };
    assert!(later(&mut k, 3599 * SECOND).is_empty());
    assert_eq!(k.pass(A, c.data()), FORWARD);
    assert!(later(&mut k, 3599 * SECOND).is_empty(), "a packet was forwarded");
    // Another member saw a FIN a minute after that packet.
    k.now = k.now + SECOND / 2;
    assert_eq!(k.pass(A, c.data()), FORWARD);
    let hint = Hint::Fin { id, direction: Direction::Original, end: c.client.wrapping_add(502) };
    assert!(later(&mut k, 60 * SECOND).is_empty());
    k.members[A].engine.hint(k.now, MemberId(2), &hint, &mut Vec::new(), &mut Woken::default());
    assert!(later(&mut k, 59 * SECOND).is_empty());
    assert_eq!(later(&mut k, 2 * SECOND), [id]);
    // A policy with a longer timeout keeps the session alive; one with a shorter timeout does not.
    assert!(matches!(k.policy(&with("tcp.fin_wait 1h"))[..], [Outcome::Policy(_)]));
    let mut ids = vec![id];
    k.members[A].engine.confirm_idle(k.now, &mut ids);
    assert!(ids.is_empty());
    assert!(later(&mut k, 1800 * SECOND).is_empty());
    k.policy(&with("tcp.fin_wait 30m"));
    assert_eq!(later(&mut k, SECOND), [id]);
}

#[test]
fn idle_session_is_reported_again_until_it_expires() {
    let mut k = Cluster::new();
    k.policy(&with("udp.assured 2m"));
    generic(&mut k, Protocol::UDP, "ASSURED");
    let id = only(&k).unwrap().id;
    k.now = k.now + 121 * SECOND;
    // The member is not the leader yet, so it keeps the report until it is.
    for _ in 0..100 {
        k.tick();
        k.now = k.now + SECOND;
    }
    assert_eq!(idle(&k), [id]);
    let mut reported = Vec::new();
    for second in 1..=240 {
        k.now = k.now + SECOND;
        k.tick();
        if idle(&k) == [id] {
            reported.push(second);
        }
    }
    assert!((4..=8).contains(&reported.len()), "every 30 to 60 seconds: {reported:?}");
    assert!(
        reported[0] >= 30 && reported.windows(2).all(|pair| (30..=60).contains(&(pair[1] - pair[0]))),
        "{reported:?}"
    );
    // After another packet it is not reported any more.
    assert_eq!(k.pass(A, packets(Protocol::UDP).0), FORWARD);
    for _ in 0..119 {
        k.now = k.now + SECOND;
        k.tick();
        assert!(idle(&k).is_empty());
    }
}

#[test]
fn timeout_reduction_is_applied_to_many_sessions_in_batches() {
    const SESSIONS: u32 = 40_000;
    let mut k = Cluster::new();
    k.policy(ALL);
    let commands = (0..SESSIONS).map(|n| Command::Establish(Box::new(establish(n, Protocol::TCP, Generation(2)))));
    k.append(A, commands.collect());
    assert!(k.apply(A).iter().all(|outcome| *outcome == Outcome::Accepted));
    k.now = k.now + 600 * SECOND;
    k.tick();
    assert!(idle(&k).is_empty());
    k.append(A, Vec::new());
    k.append_policy(Generation(2), &with("tcp.established 5m"));
    k.apply(A);
    let (mut found, mut ticks) = (0, 0);
    while found < SESSIONS as usize {
        ticks += 1;
        assert!(ticks < 20, "{found} after {ticks} ticks");
        k.now = k.now + 100 * MS;
        k.members[A].engine.tick(k.now, &mut Vec::new());
        let some = idle(&k).len();
        assert!(some <= 1 << 14, "{some} in one tick");
        found += some;
    }
    assert_eq!(found, SESSIONS as usize);
    assert!(ticks >= 3, "in batches");
}

#[test]
fn timeout_after_snapshot_restore_counts_from_last_local_activity() {
    let mut k = Cluster::new();
    k.policy(&with("tcp.established 1h"));
    let commands = (0..100).map(|n| Command::Establish(Box::new(establish(n, Protocol::TCP, Generation(2)))));
    k.append(A, commands.collect());
    k.apply(A);
    let mut snapshot = Vec::new();
    k.members[A].replica.begin_snapshot().write(&mut snapshot).unwrap();
    // B has an older state, A has the same.
    for at in [B, A] {
        k.now = k.now + 60 * SECOND;
        let member = &mut k.members[at];
        member.replica.restore(k.now, &mut snapshot.as_slice(), &mut member.woken).unwrap();
    }
    let found = |k: &Cluster, at: usize| {
        let mut found = Vec::new();
        k.members[at].engine.tick(k.now, &mut Vec::new());
        k.members[at].engine.idle(k.now, 1000, &mut found);
        found.len()
    };
    k.now = k.now + 3479 * SECOND;
    assert_eq!((found(&k, A), found(&k, B)), (0, 0));
    k.now = k.now + 2 * SECOND;
    assert_eq!((found(&k, A), found(&k, B)), (100, 0), "local activity is preserved");
    k.now = k.now + 60 * SECOND;
    assert_eq!(found(&k, B), 100);
}

#[test]
fn half_open_eviction_is_oldest_first_across_timeouts() {
    let mut k = Cluster::with(&["table.half_open=256", "table.half_open_per_source=256"]);
    k.policy(&with("generic 1h, tcp.syn_sent 1m, udp.unreplied 1s"));
    let mut opened = Vec::new();
    let kinds = [(Protocol::UDP, Kind::Udp), (Protocol(132), Kind::Other), (Protocol::TCP, Conn::new(0).syn().kind)];
    for n in 0..6000_u32 {
        let (protocol, kind) = kinds[n as usize % 3];
        let [_, _, a, b] = n.to_be_bytes();
        let src = crate::addr::Ip::V4([10, 0, 1, b]);
        let dst = crate::addr::Ip::V4([10, 0, 2, a]);
        let tuple = Tuple { src, dst, src_port: 9, dst_port: 9, protocol };
        assert_eq!(k.pass(A, Packet { tuple, kind, ..other(tuple, kind) }), FORWARD);
        k.now = k.now + Duration::from_nanos(1);
        opened.push(tuple);
    }
    // Each shard keeps one: its newest.
    let mut newest = HashMap::new();
    for tuple in &opened {
        let hash = k.members[A].engine.table.hash(tuple);
        newest.insert(crate::table::Table::number(hash), *tuple);
    }
    let mut left = Vec::new();
    k.members[A].engine.half_opens(&mut |half| left.push(half.original));
    let mut expected: Vec<Tuple> = newest.into_values().collect();
    left.sort_unstable();
    expected.sort_unstable();
    assert_eq!(left, expected);
}

#[test]
fn half_open_table_is_not_exhausted_by_one_source() {
    const TABLE: u32 = 4096;
    const SHARE: u32 = 512;
    let settings = [format!("table.half_open={TABLE}"), format!("table.half_open_per_source={SHARE}")];
    let mut k = Cluster::with(&settings.each_ref().map(String::as_str));
    let from = |src: [u8; 4], n: u32| {
        let tuple = Tuple { src: crate::addr::Ip::V4(src), src_port: n as u16, ..Conn::new(0).tuple };
        Conn { tuple, ..Conn::new(0) }
    };
    let mut dropped = 0;
    let mut opened = 0;
    for n in 0..10 * TABLE {
        match k.pass(A, from([10, 0, 1, 66], 1024 + n).syn()) {
            FORWARD => opened += 1,
            verdict => {
                assert_eq!(verdict, Verdict::Drop(Reason::HalfOpenFull));
                dropped += 1;
            }
        }
        // Meanwhile other sources open connections, and none of theirs is evicted.
        if n % 64 == 0 {
            let c = from([10, 0, 1, 100 + (n / 64 % 100) as u8], 1024 + n);
            assert_eq!(k.pass(A, c.syn()), FORWARD);
            assert_eq!(k.pass(A, c.syn_ack()), FORWARD);
            assert!(matches!(k.pass(A, c.ack()), Verdict::Hold(..)));
            assert!(k.settle().iter().all(|outcome| *outcome == Outcome::Accepted));
            assert_eq!(k.pass(A, c.ack()), FORWARD);
        }
        k.hints.clear();
    }
    assert_eq!((opened, dropped), (SHARE, 10 * TABLE - SHARE));
    assert_eq!(k.members[A].engine.counts().half_open_evicted, 0);
}

fn establish(n: u32, protocol: Protocol, generation: Generation) -> Establish {
    let [a, b, c, d] = n.to_be_bytes();
    let port = if matches!(protocol, Protocol::TCP | Protocol::UDP) { 80 } else { 0 };
    let original = Tuple {
        src: crate::addr::Ip::V4([10, 0, 1, d]),
        dst: crate::addr::Ip::V4([10, 0, 2, c]),
        src_port: if port == 0 { 0 } else { u16::from_be_bytes([a, b]) },
        dst_port: port,
        protocol,
    };
    let (client, server) = (Conn::new(0).client, Conn::new(0).server);
    Establish {
        id: SessionId { member: MemberId(7), counter: n.into() },
        original,
        reply: original.inverse(),
        ingress: OUTSIDE,
        egress: INSIDE,
        generation,
        rule: RuleId(1),
        supersedes: None,
        #[cfg(feature = "next-level")]
        tag: 0,
        protocol: match protocol {
            Protocol::TCP => HandshakeState::Tcp { client: end(client), server: Some(end(server)) },
            _ => HandshakeState::Generic { replied: true },
        },
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Add(Protocol),
    /// A packet of the client is forwarded by this member.
    Packet(usize),
    /// Another member saw a FIN.
    Fin(usize, Direction),
    /// Another member saw a RST.
    Rst(usize),
    Close(usize, CloseCause),
    Expire(usize),
    Policy(usize),
    Step(Duration),
    Idle,
}

const POLICIES: [&str; 4] = [
    "icmp 31s",
    "tcp.established 1s, tcp.fin_wait 2s, tcp.last_ack 3s, tcp.time_wait 5s, udp.assured 17s, icmp 18s, generic 40s",
    "tcp.established 30d, udp.assured 30d, gre.assured 1d, tcp.close 20h",
    "tcp.established 2h, tcp.time_wait 1h, udp.assured 4h, generic 20m",
];

fn op() -> impl Strategy<Value = Op> {
    let protocol =
        prop::sample::select(vec![Protocol::TCP, Protocol::UDP, Protocol::ICMP, Protocol::GRE, Protocol(132)]);
    let direction = prop::sample::select(vec![Direction::Original, Direction::Reply]);
    let cause = prop::sample::select(vec![CloseCause::Fin, CloseCause::Rst]);
    let step = prop::sample::select(vec![
        1,
        16,
        50,
        100,
        268,
        269,
        1000,
        5000,
        17_000,
        30_000,
        61_000,
        121_000,
        600_000,
        3_600_000,
        70_000_000,
        432_000_000,
        3_000_000_000_u64,
    ]);
    prop_oneof![
        6 => protocol.prop_map(Op::Add),
        6 => (0..40_usize).prop_map(Op::Packet),
        2 => (0..40_usize, direction).prop_map(|(n, direction)| Op::Fin(n, direction)),
        1 => (0..40_usize).prop_map(Op::Rst),
        1 => (0..40_usize, cause).prop_map(|(n, cause)| Op::Close(n, cause)),
        2 => (0..40_usize).prop_map(Op::Expire),
        1 => (0..POLICIES.len()).prop_map(Op::Policy),
        8 => step.prop_map(|ms| Op::Step(Duration::from_millis(ms))),
        4 => Just(Op::Idle),
    ]
}

/// The expected state of a session.
#[derive(Clone, Copy, Debug)]
struct Model {
    n: u32,
    protocol: Protocol,
    fins: [bool; 2],
    reset: bool,
    closed: Option<CloseCause>,
    seen: Time,
    /// After a report: the time until which another report is not required.
    quiet: Time,
}

impl Model {
    fn timeout(&self, timeouts: &Timeouts) -> Duration {
        timeouts.get(match (self.protocol, self.closed, self.reset, self.fins) {
            (Protocol::TCP, Some(CloseCause::Fin), ..) => Timeout::TcpTimeWait,
            (Protocol::TCP, Some(CloseCause::Rst), ..) | (Protocol::TCP, None, true, _) => Timeout::TcpClose,
            (Protocol::TCP, None, false, [false, false]) => Timeout::TcpEstablished,
            (Protocol::TCP, None, false, [true, true]) => Timeout::TcpLastAck,
            (Protocol::TCP, None, false, _) => Timeout::TcpFinWait,
            (Protocol::UDP, ..) => Timeout::UdpAssured,
            (Protocol::GRE, ..) => Timeout::GreAssured,
            (Protocol::ICMP, ..) => Timeout::Icmp,
            _ => Timeout::Generic,
        })
    }

    /// A hint may have shortened the timeout, so a report is required again.
    fn changed(&mut self, now: Time) {
        if self.closed.is_none() && !self.reset {
            self.quiet = now;
        }
    }

    fn id(&self) -> SessionId {
        SessionId { member: MemberId(7), counter: self.n.into() }
    }

    fn packet(&self) -> Packet {
        let tuple = establish(self.n, self.protocol, Generation(0)).original;
        match self.protocol {
            Protocol::TCP => Conn { tuple, ..Conn::new(0) }.ack(),
            Protocol::UDP => other(tuple, Kind::Udp),
            Protocol::ICMP => other(tuple, Kind::EchoRequest),
            _ => other(tuple, Kind::Other),
        }
    }
}

struct Pair {
    k: Cluster,
    model: Vec<Model>,
    timeouts: Timeouts,
    next: u32,
}

impl Pair {
    fn new() -> Pair {
        let mut pair = Pair { k: Cluster::new(), model: Vec::new(), timeouts: Timeouts::DEFAULT, next: 0 };
        pair.policy(0);
        pair
    }

    fn apply(&mut self, command: Command) -> Outcome {
        self.k.append(A, vec![command]);
        self.k.apply(A).remove(0)
    }

    fn policy(&mut self, which: usize) {
        let text = with(POLICIES[which]);
        self.timeouts = *crate::policy::Policy::parse("p", &text).unwrap().timeouts();
        let base = self.k.members[A].engine.generation();
        self.k.append_policy(base, &text);
        assert!(matches!(self.k.apply(A)[..], [Outcome::Policy(_)]));
    }

    fn hint(&mut self, hint: &Hint) {
        let now = self.k.now;
        self.k.members[A].engine.hint(now, MemberId(2), hint, &mut Vec::new(), &mut Woken::default());
    }

    fn step(&mut self, op: Op) -> Result<(), TestCaseError> {
        let now = self.k.now;
        let tcp = |model: &Model| model.protocol == Protocol::TCP;
        match op {
            Op::Add(protocol) => {
                let generation = self.k.members[A].engine.generation();
                let outcome = self.apply(Command::Establish(Box::new(establish(self.next, protocol, generation))));
                prop_assert_eq!(outcome, Outcome::Accepted);
                let n = self.next;
                let model = Model { n, protocol, fins: [false; 2], reset: false, closed: None, seen: now, quiet: now };
                self.model.push(model);
                self.next += 1;
            }
            Op::Packet(n) if n < self.model.len() => {
                let packet = self.model[n].packet();
                if self.k.pass(A, packet) == FORWARD {
                    self.model[n].seen = now;
                }
                self.k.hints.clear();
            }
            Op::Fin(n, direction) if self.model.get(n).is_some_and(tcp) => {
                let c = Conn::new(0);
                let first = if direction == Direction::Original { c.client } else { c.server };
                self.hint(&Hint::Fin { id: self.model[n].id(), direction, end: first.wrapping_add(2) });
                self.model[n].fins[usize::from(direction == Direction::Reply)] = true;
                self.model[n].changed(now);
            }
            Op::Rst(n) if self.model.get(n).is_some_and(tcp) => {
                self.hint(&Hint::Rst { id: self.model[n].id() });
                self.model[n].changed(now);
                self.model[n].reset = true;
            }
            Op::Close(n, cause) if self.model.get(n).is_some_and(|m| tcp(m) && m.closed.is_none()) => {
                self.apply(Command::Close(Close { id: self.model[n].id(), cause }));
                self.model[n].closed = Some(cause);
                (self.model[n].seen, self.model[n].quiet) = (now, now);
            }
            Op::Expire(n) if n < self.model.len() => {
                let ids = vec![self.model.swap_remove(n).id()];
                self.apply(Command::Expire(ids));
            }
            Op::Policy(which) => {
                self.policy(which);
                self.model.iter_mut().for_each(|model| model.quiet = model.quiet.max(now));
            }
            Op::Step(by) => {
                self.k.now = now + by;
                self.k.tick();
                self.k.proposals.clear();
            }
            Op::Idle => {
                self.k.tick();
                self.k.proposals.clear();
                self.compare()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Compares the reported sessions with those of the model, within the resolution.
    fn compare(&mut self) -> Result<(), TestCaseError> {
        let now = self.k.now;
        let found = idle(&self.k);
        for (at, id) in found.iter().enumerate() {
            prop_assert!(!found[..at].contains(id), "twice");
            prop_assert!(self.model.iter().any(|model| model.id() == *id), "unknown");
        }
        for model in &mut self.model {
            let (idle, timeout) = (now.since(model.seen), model.timeout(&self.timeouts));
            let shown = self.k.members[A].engine.session(now, model.id());
            let left = timeout.saturating_sub(idle);
            let shown = shown.map(|info| info.timeout).unwrap_or_default();
            prop_assert!(
                (left..=left + Stamp17ms::UNIT).contains(&shown),
                "{model:?} shows {shown:?} in place of {left:?}"
            );
            if found.contains(&model.id()) {
                prop_assert!(idle >= timeout, "{model:?} is not idle, {idle:?} of {timeout:?}");
                let again = (timeout / 4).clamp(SECOND, 3600 * SECOND);
                model.quiet = now + 2 * again + RESOLUTION;
            } else {
                let must = idle >= timeout + RESOLUTION && now >= model.quiet + RESOLUTION;
                prop_assert!(!must, "{model:?} is idle for {idle:?}, more than {timeout:?}, and was not found");
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn idle_sessions_match_the_reference_model(ops in prop::collection::vec(op(), 1..300)) {
        let mut pair = Pair::new();
        for op in ops {
            pair.step(op)?;
        }
        pair.step(Op::Idle)?;
    }
}
