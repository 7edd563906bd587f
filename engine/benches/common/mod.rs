//! The common parts of the benches: an engine with a policy, connections, and the packets of their handshakes as bytes.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    reason = "shared by benches, which fail by panicking"
)]

#[path = "../../tests/common/mod.rs"]
mod member;

use std::fmt::Write as _;

pub use member::Member;
use palisade_engine::parse::{Checksum, Tcp, build, parse};
use palisade_engine::replica::Command;
use palisade_engine::{Context, Event, Ip, LeaseState, Proposal, Protocol, Routes, Tuple, Verdict, ZoneId};

pub const OUTSIDE: ZoneId = ZoneId(1);
pub const INSIDE: ZoneId = ZoneId(2);

/// Number of rules of the large policy.
pub const MANY: u32 = 10_000;

/// A route lookup without cost, so that the benches measure only the engine.
pub struct Net;

impl Routes for Net {
    fn zone(&mut self, destination: Ip) -> Option<ZoneId> {
        match destination {
            Ip::V4([10, ..]) => Some(OUTSIDE),
            Ip::V4([172, ..]) => Some(INSIDE),
            _ => None,
        }
    }
}

/// A policy of `count` rules that accepts every [`Connection`]. With 10, each rule accepts a part of the ports; with
/// [`MANY`], one client network, one server and one port.
pub fn policy(count: u32) -> String {
    let mut text = "zone outside, inside\ndefault drop\n".to_owned();
    for n in 0..count {
        let (a, b) = (n >> 8, n & 255);
        let _ = if count < MANY {
            writeln!(text, "accept \"{n}\" from outside to inside: 10.0.0.0/8 -> 172.16.0.0/12 tcp/{}", n + 1)
        } else {
            let port = n % 10 + 1;
            writeln!(text, "accept \"{n}\" from outside to inside: 10.{a}.{b}.0/24 -> 172.16.{a}.{b} tcp/{port}")
        };
    }
    text
}

/// The packets of one connection's handshake, as received from a network.
pub struct Connection {
    pub tuple: Tuple,
    pub syn: Vec<u8>,
    pub syn_ack: Vec<u8>,
    pub ack: Vec<u8>,
    /// A segment with 100 bytes of the client's data.
    pub data: Vec<u8>,
}

impl Connection {
    /// The connection number `n`, in an order without locality.
    pub fn new(n: u32) -> Connection {
        let rule = (u64::from(n) * 7_919 % u64::from(MANY)) as u32;
        let (a, b) = ((rule >> 8) as u8, (rule & 255) as u8);
        let tuple = Tuple {
            src: Ip::V4([10, a, b, (n % 251) as u8 + 1]),
            dst: Ip::V4([172, 16, a, b]),
            src_port: 1024 + (n % 60_000) as u16,
            dst_port: (rule % 10 + 1) as u16,
            protocol: Protocol::TCP,
        };
        let tcp = |flags, seq, ack, syn: bool| Tcp {
            seq,
            ack,
            flags,
            window: 64240,
            payload: 0,
            wscale: syn.then_some(7),
            sack_permitted: syn,
        };
        let (client, server) = (n, !n);
        let bytes = |tuple: &Tuple, tcp: Tcp, payload: &[u8]| build::tcp(tuple, &tcp, payload).unwrap();
        let (seq, ack) = (client.wrapping_add(1), server.wrapping_add(1));
        Connection {
            tuple,
            syn: bytes(&tuple, tcp(Tcp::SYN, client, 0, true), b""),
            syn_ack: bytes(&tuple.inverse(), tcp(Tcp::SYN | Tcp::ACK, server, seq, true), b""),
            ack: bytes(&tuple, tcp(Tcp::ACK, seq, ack, false), b""),
            data: bytes(&tuple, tcp(Tcp::ACK | Tcp::PSH, seq, ack, false), &[7; 100]),
        }
    }
}

impl Member {
    /// A member with a policy of `rules` rules and capacity for `max_half_open` half-open sessions.
    pub fn with_rules(rules: u32, max_half_open: usize) -> Member {
        let settings = [
            "table.sessions=2000000".to_owned(),
            format!("table.half_open={max_half_open}"),
            format!("table.half_open_per_source={}", max_half_open.min(1 << 13)),
        ];
        Member::with_settings(&settings.each_ref().map(String::as_str), policy(rules))
    }

    /// Parses and judges a packet.
    pub fn packet(&mut self, ingress: ZoneId, bytes: &[u8]) -> Verdict {
        let packet = parse(bytes, Checksum::Complete).unwrap();
        let mut context =
            Context { now: self.now, worker: 0, ingress, antispoof: true, lease: LeaseState::Valid, routes: &mut Net };
        self.engine.process(&packet, &mut context, &mut self.events)
    }

    /// Opens a connection, up to the proposal that its last packet causes. The events stay in `events`.
    pub fn handshake(&mut self, connection: &Connection) {
        assert_eq!(self.packet(OUTSIDE, &connection.syn), Verdict::Forward);
        assert_eq!(self.packet(INSIDE, &connection.syn_ack), Verdict::Forward);
        assert!(self.packet(OUTSIDE, &connection.ack).held().is_some());
    }

    /// Takes the commands proposed since the last call, and discards the hints.
    pub fn proposed(&mut self) -> Vec<Command> {
        let command = |event| match event {
            Event::Propose(Proposal::Establish(establish)) => Some(Command::Establish(establish)),
            Event::Propose(Proposal::Close(close)) => Some(Command::Close(close)),
            Event::Propose(Proposal::Refresh(id)) => Some(Command::Refresh(vec![id])),
            Event::Hint(_) | Event::Wake { .. } | Event::Log(_) => None,
        };
        self.events.drain(..).filter_map(command).collect()
    }

    /// Establishes connections, all in one batch.
    pub fn establish(&mut self, connections: &[Connection]) {
        connections.iter().for_each(|connection| self.handshake(connection));
        let commands = self.proposed();
        assert_eq!(commands.len(), connections.len());
        self.accept(commands);
    }

    /// Ends all established sessions.
    pub fn clear(&mut self) {
        let mut ids = Vec::new();
        self.engine.sessions(self.now, &mut |info| {
            ids.push(info.id);
            true
        });
        self.apply(vec![Command::Expire(ids)]);
    }
}

/// The first `count` connections.
pub fn connections(count: u32) -> Vec<Connection> {
    (0..count).map(Connection::new).collect()
}
