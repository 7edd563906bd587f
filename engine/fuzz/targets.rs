//! The fuzz targets, also replayed by `engine/tests/fuzz.rs`: each takes arbitrary bytes and checks the invariants.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "fails by panicking"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Member, settings_change};
use palisade_engine::parse::{
    Checksum, Embedded, Fragment, IpOption, Kind, Packet, RoutingClass, Tcp, frame, rejection,
};
use palisade_engine::policy::Policy;
use palisade_engine::replica::{Command, Enact, Outcome, PolicyChange, Replica, Withdraw};
use palisade_engine::{
    Close, CloseCause, Config, Context, Direction, Engine, Event, FragmentKey, Generation, HalfOpen, HandshakeState,
    Hint, Ip, LeaseState, MemberId, Proposal, Protocol, Routes, RuleId, SessionId, SynParams, Time, Tuple, Verdict,
    ZoneId,
};

/// Parses a packet: with its checksums verified, with them ignored (most are wrong), and with a corrected IPv4 header
/// checksum.
pub fn parse(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else { return };
    if let Ok(frame) = frame(bytes) {
        assert!(frame.offset <= bytes.len());
    }
    let mut bytes = bytes.to_vec();
    if how & 1 == 0 {
        header_checksum(&mut bytes);
    }
    let checksum = [Checksum::Complete, Checksum::Verified, Checksum::Partial][usize::from(how >> 1) % 3];
    let Ok(packet) = palisade_engine::parse::parse(&bytes, checksum) else { return };
    assert!(packet.length as usize <= bytes.len());
    assert!(u32::from(packet.transport) <= packet.length);
    assert_ne!(packet.tuple.src, packet.tuple.dst);
    assert!(packet.tuple.src.is_v4() || packet.options.is_empty());
    if let Kind::Fragment(part) = packet.kind {
        assert!(part.offset > 0 && part.length > 0 && packet.fragment.is_none());
    }
    if let Kind::Tcp(tcp) = packet.kind {
        assert!(tcp.payload < packet.length && tcp.wscale.is_none_or(|shift| shift <= 14));
    }
    // Padding after the packet has no effect.
    bytes.extend([0; 7]);
    assert_eq!(palisade_engine::parse::parse(&bytes, checksum), Ok(packet));
    // The reply to a packet is a valid packet.
    let mut out = [0; 1500];
    if let Some(length) = rejection::build(&bytes, &packet, None, &mut out) {
        let answer = palisade_engine::parse::parse(&out[..length], Checksum::Complete).expect("an answer is valid");
        assert_eq!(answer.tuple.dst, packet.tuple.src);
    }
}

fn header_checksum(bytes: &mut [u8]) {
    let Some(&first) = bytes.first() else { return };
    let length = usize::from(first & 15) * 4;
    if first >> 4 != 4 || length < 20 || length > bytes.len() {
        return;
    }
    bytes[10..12].fill(0);
    let mut sum: u32 = bytes[..length].chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    bytes[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// Parses a policy text.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let policy = match Policy::parse("fuzz", text) {
        Ok(policy) => policy,
        Err(error) => {
            assert!(!error.problems().is_empty());
            assert!(error.render().starts_with("fuzz:"));
            return;
        }
    };
    let canonical = policy.to_string();
    let again = Policy::parse("fuzz", &canonical).expect("the canonical form is a policy");
    assert_eq!(policy, again);
    assert_eq!(canonical, again.to_string());
    let warnings = policy.warnings();
    assert!(warnings.iter().all(|warning| !warning.to_string().is_empty()));
    let mut zones = 0;
    let compiled = policy.compile(&mut |_| {
        zones += 1;
        ZoneId(zones)
    });
    for tuple in [tuple(0), tuple(1), tuple(4), tuple(5)] {
        let decision = compiled.decide(ZoneId(1), ZoneId(2), &tuple);
        assert!(decision.rule.0 as usize <= policy.rules().len());
        assert!(!compiled.rule_name(decision.rule).is_empty());
    }
}

const POLICIES: [&str; 3] = [
    "zone outside, inside\nip-options router-alert, lsrr\naccept \"all\" from outside to any: any -> any\n",
    "zone outside, inside\nreject \"none\" from any to any: any -> any tcp/80\naccept \"udp\" from any to any: any -> any udp\n",
    "zone outside, inside\ntimeout tcp.established 2s, tcp.fin_wait 1s, udp.assured 1s\n",
];

const STEPS: [u64; 8] =
    [1, 1_000_000, 250_000_000, 2_000_000_000, 10_000_000_000, 31_000_000_000, 121_000_000_000, 1 << 49];

struct Net;

impl Routes for Net {
    fn zone(&mut self, destination: Ip) -> Option<ZoneId> {
        match destination {
            Ip::V4([10, 0, 1, _]) => Some(ZoneId(1)),
            Ip::V4([10, 0, 2, _]) => Some(ZoneId(2)),
            Ip::V6([.., last]) => Some(ZoneId(u16::from(last) % 3)),
            Ip::V4(_) => None,
        }
    }
}

/// One of a few tuples, so that later steps meet the state of earlier ones.
fn tuple(n: u8) -> Tuple {
    let (client, server) = match n >> 2 & 1 {
        0 => (Ip::V4([10, 0, 1, 2 + (n >> 3 & 1)]), Ip::V4([10, 0, 2, 3])),
        _ => (
            Ip::V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            Ip::V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]),
        ),
    };
    let (protocol, dst_port) = match n >> 4 & 3 {
        0 | 1 => (Protocol::TCP, 80),
        2 if n & 0x40 != 0 => (Protocol::SCTP, 53),
        2 => (Protocol::UDP, 53),
        _ => (if client.is_v4() { Protocol::ICMP } else { Protocol::ICMPV6 }, 0),
    };
    let tuple = Tuple { src: client, dst: server, src_port: 1000 + u16::from(n & 1), dst_port, protocol };
    if n & 2 == 0 { tuple } else { tuple.inverse() }
}

/// A sequence number near a relevant boundary.
fn number(n: u8) -> u32 {
    const BASES: [u32; 8] = [999, 1000, 1001, 0xffff_fff0, 5000, 5001, 1 << 31, 70_000];
    BASES[usize::from(n & 7)].wrapping_add(u32::from(n >> 3) * if n & 4 == 0 { 1 } else { 1000 })
}

/// Runs a history of one member: packets, hints, log entries, time. Every 8 bytes are one step.
pub fn pipeline(data: &[u8]) {
    const MAX_HALF_OPEN: usize = 256;
    let mut member = Member::new(Config::new(MemberId(1), 1, 7));
    let engine = member.engine.clone();
    let (mut now, mut lease) = (Time(1), LeaseState::Valid);
    let mut events: Vec<Event> = Vec::new();
    let settings = ["table.sessions=8", "table.half_open=256", "table.half_open_per_source=256"];
    let mut commands = vec![settings_change(0, &settings), policy_number(0, 0)];
    let mut generation = 0;
    let mut hints: Vec<Hint> = Vec::new();
    for step in data.chunks_exact(8).take(256) {
        let &[what, which, kind, a, b, flags, c, d] = step else { return };
        match what & 15 {
            0..=8 => {
                let packet = packet(which, kind, a, b, flags, c, d);
                let ingress = ZoneId(u16::from(what >> 4) % 3);
                let ingress = if what & 0x80 == 0 { Net.zone(packet.tuple.src).unwrap_or(ingress) } else { ingress };
                let antispoof = what & 0x40 == 0;
                let mut context = Context { now, worker: which & 63, ingress, antispoof, lease, routes: &mut Net };
                let verdict = engine.process(&packet, &mut context, &mut events);
                assert!(lease != LeaseState::Expired || matches!(verdict, Verdict::Drop(_)));
            }
            9 => now = Time(now.0 + STEPS[usize::from(which) % 8]),
            10 => engine.tick(now, &mut events),
            11 => {
                member.now = now;
                let outcomes = member.apply(std::mem::take(&mut commands));
                generation += outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Policy(_))).count() as u64;
                if which & 1 == 0 {
                    engine.compile_policies();
                }
                if let Some(candidate) = &engine.cluster_state().candidate {
                    let (hash, base) = (candidate.hash, candidate.base);
                    commands.push(match which & 6 {
                        6 => Command::Withdraw(Withdraw { hash, base }),
                        _ => Command::Enact(Box::new(Enact { hash, base, without: vec![MemberId(u64::from(which))] })),
                    });
                }
            }
            12 => {
                // A hint of this member comes back from another one, possibly changed, or a hint that it never sent.
                let hint = match (which & 1, hints.len()) {
                    (0, 1..) => hints[usize::from(kind) % hints.len()].clone(),
                    _ => hint(which, kind, a, b, flags),
                };
                engine.hint(now, MemberId(2), &hint, &mut events, &mut ());
            }
            13 => {
                lease = [LeaseState::Valid, LeaseState::Valid, LeaseState::Grace, LeaseState::Expired]
                    [usize::from(which & 3)]
            }
            14 => match which & 3 {
                0 => commands.push(policy_number(generation, kind)),
                1 => commands.push(Command::Expire(vec![id(kind)])),
                2 => commands.push(Command::Close(Close { id: id(kind), cause: CloseCause::Rst })),
                _ => {
                    let mut idle = Vec::new();
                    engine.idle(now, 10, &mut idle);
                    let over =
                        |id: &SessionId| engine.session(now, *id).is_some_and(|session| session.timeout.is_zero());
                    assert!(idle.iter().all(over));
                    let probe = engine.probe_idle(now, &idle);
                    engine.confirm_idle(now, &mut idle);
                    let (open, closed) = probe.commands(|id| idle.contains(id), 3);
                    commands.extend(open.into_iter().map(Command::ExpireIdle));
                    commands.extend(closed.into_iter().map(Command::Expire));
                }
            },
            _ => {
                let mut snapshot = Vec::new();
                member.replica.begin_snapshot().write(&mut snapshot).expect("memory takes everything");
                let other = Engine::new(Config::new(MemberId(3), 1, 9));
                let mut copy = Replica::new(other);
                copy.restore(now, &mut snapshot.as_slice(), &mut ()).expect("a snapshot is whole");
                assert_eq!(copy.digest(), member.replica.digest());
            }
        }
        for event in events.drain(..) {
            match event {
                Event::Hint(hint) => hints.push(hint),
                Event::Propose(Proposal::Establish(establish)) => commands.push(Command::Establish(establish)),
                Event::Propose(Proposal::Close(close)) => commands.push(Command::Close(close)),
                Event::Propose(Proposal::Refresh(id)) => commands.push(Command::Refresh(vec![id])),
                Event::Wake { workers, .. } => assert!(!workers.is_empty()),
                Event::Log(_) => {}
            }
        }
        hints.drain(..hints.len().saturating_sub(16));
    }
    let counts = engine.counts();
    assert!(counts.half_open <= MAX_HALF_OPEN as u64);
    assert!(counts.sessions.iter().map(|(_, _, n)| n).sum::<u64>() <= 8);
}

fn policy_number(base: u64, n: u8) -> Command {
    let text = POLICIES[usize::from(n) % POLICIES.len()].to_owned();
    Command::Policy(Box::new(PolicyChange::new(Generation(base), text, String::new())))
}

fn id(n: u8) -> SessionId {
    SessionId { member: MemberId(u64::from(n >> 6) % 2 + 1), counter: 1 << 32 | u64::from(n & 15) }
}

fn hint(which: u8, kind: u8, a: u8, b: u8, flags: u8) -> Hint {
    let original = tuple(kind);
    let end = |n| SynParams { isn: number(n), window: 1000, wscale: Some(7), sack: true };
    match which >> 1 & 7 {
        0..=2 => Hint::HalfOpen(Box::new(HalfOpen {
            id: id(flags),
            original,
            reply: original.inverse(),
            ingress: ZoneId(1 + u16::from(kind >> 1 & 1)),
            egress: ZoneId(2 - u16::from(kind >> 1 & 1)),
            generation: Generation(u64::from(flags >> 4)),
            rule: RuleId(1),
            supersedes: None,
            challenge: (which & 0x20 != 0).then(|| number(b)),
            protocol: match original.protocol {
                Protocol::TCP => HandshakeState::Tcp { client: end(a), server: (which & 0x10 != 0).then(|| end(b)) },
                _ => HandshakeState::Generic { replied: which & 0x10 != 0 },
            },
        })),
        3 => Hint::Abort(id(flags)),
        4 => Hint::Fin {
            id: id(flags),
            direction: if a & 1 == 0 { Direction::Original } else { Direction::Reply },
            end: number(b),
        },
        5 => Hint::Rst { id: id(flags) },
        6 => Hint::Query(original),
        _ => {
            let Tuple { src, dst, protocol, .. } = original;
            let protocol = if src.is_v4() { protocol } else { Protocol::IPV6_FRAG };
            let datagram =
                FragmentKey { src, dst, protocol, id: u32::from(b & 3), ingress: ZoneId(1 + u16::from(a & 1)) };
            match flags & 1 {
                0 => Hint::FirstFragment { datagram, end: u16::from(a) * 8, egress: ZoneId(2) },
                _ => Hint::FragmentQuery(datagram),
            }
        }
    }
}

fn packet(which: u8, kind: u8, a: u8, b: u8, flags: u8, c: u8, d: u8) -> Packet {
    let mut tuple = tuple(which);
    let length = u16::from(a) * 8;
    let part = Fragment { id: u32::from(c & 3), offset: u16::from(d) * 8, length, more: c & 4 != 0 };
    let mut fragment = (kind & 0xc0 == 0xc0 && part.more).then_some(Fragment { offset: 0, ..part });
    let kind = match (kind >> 3 & 7, tuple.protocol) {
        (6, _) => {
            fragment = None;
            let about = tuple.inverse();
            tuple = Tuple { src_port: 0, dst_port: 0, protocol: Protocol::ICMP, ..tuple };
            Kind::IcmpError(Embedded { tuple: about, seq: (about.protocol == Protocol::TCP).then(|| number(a)) })
        }
        (7, _) if part.offset > 0 => {
            fragment = None;
            tuple = Tuple { src_port: 0, dst_port: 0, ..tuple };
            Kind::Fragment(part)
        }
        (_, Protocol::TCP) => Kind::Tcp(Tcp {
            seq: number(a),
            ack: number(b),
            flags: flags & 0x3f,
            window: u16::from(c) * 257,
            payload: u32::from(d) * 10,
            wscale: (c & 1 != 0).then_some(d % 15),
            sack_permitted: c & 2 != 0,
        }),
        (_, Protocol::UDP) => Kind::Udp,
        (_, Protocol::SCTP) => Kind::Sctp,
        _ if tuple.dst_port == 0 => Kind::EchoRequest,
        _ => Kind::EchoReply,
    };
    let options = IpOption::ALL.get(usize::from(b)).copied().filter(|_| flags & 0x40 != 0).into_iter().collect();
    Packet {
        tuple,
        length: 40 + u32::from(d) * 10,
        transport: 20,
        kind,
        fragment,
        options,
        class: RoutingClass::default(),
    }
}
