//! A session: the part that all members have in common, and this member's own, in one entry.

use std::time::Duration;

use super::wheel::Links;
use crate::engine::SessionInfo;
use crate::event::{Opening, TcpEnd};
use crate::id::{Generation, RuleId, SessionId, ZoneId};
use crate::replica::{CloseCause, Establish};
use crate::time::{Coarse, Time};
use crate::timeouts::{Timeout, Timeouts};
use crate::track::State;
use crate::track::tcp::Track;
use crate::tuple::{Direction, Tuple};

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
    /// When a packet of it last passed here, or when it came into its present replicated state. Rounded up: it must not
    /// look idle before it is.
    pub(crate) seen: Coarse,
    /// Its place in the timing wheel.
    pub(crate) links: Links,
    /// TCP only.
    pub(crate) track: Option<Track>,
    /// Packets and bytes forwarded here, by direction.
    pub(crate) counters: [(u64, u64); 2],
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
            seen: Coarse::up(now),
            links: Links::NONE,
            track,
            counters: [(0, 0); 2],
        }
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
        timeouts.get(Timeout::of(self.state(), self.original.protocol))
    }

    /// How long it has been idle.
    pub(crate) fn idle(&self, now: Time) -> Duration {
        self.seen.age(now).unwrap_or_default()
    }

    /// How long it may still be idle; zero: it has been for too long.
    pub(crate) fn remaining(&self, now: Time, timeouts: &Timeouts) -> Duration {
        self.timeout(timeouts).saturating_sub(self.idle(now))
    }

    pub(crate) fn is_idle(&self, now: Time, timeouts: &Timeouts) -> bool {
        self.remaining(now, timeouts).is_zero()
    }

    pub(crate) fn state(&self) -> State {
        self.track.as_ref().map_or(State::Assured, |track| track.state(self.closed))
    }

    /// For people.
    pub(crate) fn info(&self, now: Time, timeouts: &Timeouts) -> SessionInfo {
        SessionInfo {
            id: self.id,
            original: self.original,
            reply: self.reply(),
            zones: (self.ingress, self.egress),
            rule: (self.generation, self.rule),
            state: self.state().name(),
            half_open: false,
            idle: self.idle(now),
            timeout: self.remaining(now, timeouts),
            counters: self.counters,
        }
    }
}
