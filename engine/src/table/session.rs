//! A session: the part that all members have in common, and this member's own, in one entry.

use std::time::Duration;

use crate::engine::{SessionInfo, Timeouts};
use crate::event::{Opening, TcpEnd};
use crate::id::{Generation, RuleId, SessionId, ZoneId};
use crate::replica::{CloseCause, Establish};
use crate::time::Time;
use crate::track::tcp::Track;
use crate::tuple::{Direction, Protocol, Tuple};

/// One session. At most 256 bytes, its share of the indices included (asserted by a test).
#[derive(Clone, Debug)]
pub(crate) struct Session {
    // Replicated: changed by apply only, equal on all members.
    pub(crate) id: SessionId,
    pub(crate) original: Tuple,
    pub(crate) generation: Generation,
    pub(crate) rule: RuleId,
    pub(crate) ingress: ZoneId,
    pub(crate) egress: ZoneId,
    pub(crate) closed: Option<CloseCause>,
    pub(crate) opening: Opening,
    // Local.
    /// Half-open sessions of the same tuple may exist: they are asked first.
    pub(crate) contested: bool,
    /// The last policy that it was judged by here.
    pub(crate) judged: Generation,
    /// When a packet of it last passed here, or when it came into its present replicated state.
    pub(crate) seen: Time,
    /// TCP only.
    pub(crate) track: Option<Track>,
    /// Packets and bytes forwarded by all members, by direction, as far as this one knows.
    pub(crate) counters: [(u64, u64); 2],
    /// Of these, what passed here and the others have not been told of.
    pub(crate) untold: [Untold; 2],
    /// It is in its shard's list of sessions of which the others are to be told.
    pub(crate) busy: bool,
}

/// Packets and bytes of which the others have not been told.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(Rust, packed(4))]
pub(crate) struct Untold {
    pub(crate) bytes: u64,
    pub(crate) packets: u32,
}

impl Session {
    /// `seen`: when this member last heard of its half-open session, if it did.
    pub(crate) fn new(e: &Establish, now: Time, seen: Option<Time>) -> Session {
        let track = match &e.protocol {
            Opening::Tcp { client, server: Some(server) } => Some(Track::new(client, server, seen)),
            _ => None,
        };
        Session {
            id: e.id,
            original: e.original,
            generation: e.generation,
            rule: e.rule,
            ingress: e.ingress,
            egress: e.egress,
            closed: None,
            opening: e.protocol,
            contested: false,
            judged: e.generation,
            seen: now,
            track,
            counters: [(0, 0); 2],
            untold: Default::default(),
            busy: false,
        }
    }

    /// A packet of it passes.
    pub(crate) fn account(&mut self, direction: Direction, bytes: u32, now: Time) {
        let at = match direction {
            Direction::Original => 0,
            Direction::Reply => 1,
        };
        let (packets, all) = &mut self.counters[at];
        *packets += 1;
        *all += u64::from(bytes);
        let untold = &mut self.untold[at];
        untold.packets = untold.packets.saturating_add(1);
        untold.bytes += u64::from(bytes);
        self.seen = now;
    }

    /// The tuple of the packets from the server. It is the inverse until there is address translation.
    pub(crate) fn reply(&self) -> Tuple {
        self.original.inverse()
    }

    /// Which way a packet with this tuple goes; `None`: it is not of this session.
    pub(crate) fn direction(&self, tuple: &Tuple) -> Option<Direction> {
        if self.original == *tuple {
            Some(Direction::Original)
        } else if self.reply() == *tuple {
            Some(Direction::Reply)
        } else {
            None
        }
    }

    /// Where packets of a direction come from.
    pub(crate) fn zone(&self, direction: Direction) -> ZoneId {
        match direction {
            Direction::Original => self.ingress,
            Direction::Reply => self.egress,
        }
    }

    /// The two ends of a TCP connection.
    pub(crate) fn talk(&self) -> Option<(TcpEnd, TcpEnd)> {
        match self.opening {
            Opening::Tcp { client, server: Some(server) } => Some((client, server)),
            _ => None,
        }
    }

    /// The command that would make it: what a snapshot keeps.
    pub(crate) fn establish(&self) -> Establish {
        Establish {
            id: self.id,
            original: self.original,
            reply: self.reply(),
            ingress: self.ingress,
            egress: self.egress,
            generation: self.generation,
            rule: self.rule,
            supersedes: None,
            protocol: self.opening,
        }
    }

    /// How long it may be idle.
    pub(crate) fn timeout(&self, timeouts: &Timeouts) -> Duration {
        match self.closed {
            Some(CloseCause::Fin) => return timeouts.time_wait,
            Some(CloseCause::Rst) => return timeouts.close,
            None => {}
        }
        match (self.track, self.original.protocol) {
            (Some(track), _) if track.ending() => timeouts.half_closed,
            (Some(_), _) => timeouts.established,
            (None, Protocol::UDP) => timeouts.udp,
            (None, Protocol::ICMP | Protocol::ICMPV6) => timeouts.icmp,
            (None, _) => timeouts.generic,
        }
    }

    /// The state as conntrack(8) names it.
    pub(crate) fn state(&self) -> &'static str {
        self.track.map_or("ASSURED", |track| track.state(self.closed))
    }

    /// For people.
    pub(crate) fn info(&self, now: Time, timeouts: &Timeouts) -> SessionInfo {
        let (idle, timeout) = (now.since(self.seen), self.timeout(timeouts));
        SessionInfo {
            id: self.id,
            original: self.original,
            reply: self.reply(),
            zones: (self.ingress, self.egress),
            rule: (self.generation, self.rule),
            state: self.state(),
            half_open: false,
            idle,
            timeout: timeout.saturating_sub(idle),
            counters: self.counters,
        }
    }
}
