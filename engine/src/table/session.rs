//! A session: the part that all members have in common, and this member's own, in one entry.

use std::time::Duration;

use super::wheel::Links;
use crate::id::{Generation, RuleId, SessionId, ZoneId, ZonePair};
use crate::session::{CloseCause, Establish, HandshakeState, SessionInfo, SynParams};
use crate::time::{Stamp17ms, Time};
use crate::timeouts::{Timeout, Timeouts};
use crate::track::State;
use crate::track::tcp::Track;
use crate::traffic::{Traffic, TrafficDelta};
use crate::tuple::{Direction, PerDirection, Tuple};

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
    /// How often a packet that came while it was to end has kept it alive.
    pub(crate) refreshes: u16,
    handshake: CompactHandshake,
    // Local.
    pub(crate) flags: SessionFlags,
    /// The last policy that it was judged by here: the lower half of its generation.
    judged: u32,
    /// When a packet of it last passed here, or when it came into its present replicated state. Rounded up: it must not
    /// look idle before it is.
    pub(crate) seen: Stamp17ms,
    /// Its place in the timing wheel.
    pub(crate) links: Links,
    /// TCP only.
    pub(crate) track: Option<Track>,
    /// What all members forwarded, as far as this one knows.
    traffic: PerDirection<PackedTraffic>,
    /// Of these, what passed here and the others have not been told of.
    unpublished: PerDirection<TrafficDelta>,
}

/// What a session is to this member.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SessionFlag {
    /// Half-open sessions of the same tuple may exist: they are asked first.
    Contested = 1,
    /// This member has said that it is idle: no packet of it passes here before a `Refresh` is applied. Only the log ends that:
    /// the command that ends the session may be under way for any time.
    Expiring = 2,
    /// It is in its shard's list of sessions of which the others are to be told.
    Dirty = 4,
}

/// A set of [`SessionFlag`]s, in one byte.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct SessionFlags(u8);

impl SessionFlags {
    pub(crate) fn has(self, flag: SessionFlag) -> bool {
        self.0 & flag as u8 != 0
    }

    pub(crate) fn set(&mut self, flag: SessionFlag, on: bool) {
        self.0 = if on { self.0 | flag as u8 } else { self.0 & !(flag as u8) };
    }
}

/// [`HandshakeState`], in less space.
#[derive(Clone, Copy, Debug)]
enum CompactHandshake {
    Tcp([Syn; 2]),
    Generic { replied: bool },
}

/// [`SynParams`], in less space.
#[derive(Clone, Copy, Debug)]
struct Syn {
    isn: u32,
    window: u16,
    /// [`Syn::UNSCALED`]: there is none.
    wscale: u8,
    sack: bool,
}

impl Syn {
    const UNSCALED: u8 = u8::MAX;

    fn new(end: &SynParams) -> Syn {
        Syn { isn: end.isn, window: end.window, wscale: end.wscale.unwrap_or(Syn::UNSCALED), sack: end.sack }
    }

    fn end(&self) -> SynParams {
        let wscale = (self.wscale != Syn::UNSCALED).then_some(self.wscale);
        SynParams { isn: self.isn, window: self.window, wscale, sack: self.sack }
    }
}

impl CompactHandshake {
    fn new(opening: &HandshakeState) -> CompactHandshake {
        match opening {
            HandshakeState::Tcp { client, server: Some(server) } => {
                CompactHandshake::Tcp([Syn::new(client), Syn::new(server)])
            }
            // Without a server it is never established.
            HandshakeState::Tcp { client, server: None } => CompactHandshake::Tcp([Syn::new(client); 2]),
            HandshakeState::Generic { replied } => CompactHandshake::Generic { replied: *replied },
        }
    }
}

/// A count that stops at 2^48 − 1: 281 terabytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Count([u16; 3]);

impl Count {
    const MOST: u64 = (1 << 48) - 1;

    fn get(self) -> u64 {
        let [a, b, c] = self.0.map(u64::from);
        a | b << 16 | c << 32
    }

    fn add(&mut self, more: u64) {
        let sum = self.get().saturating_add(more).min(Count::MOST);
        self.0 = [sum as u16, (sum >> 16) as u16, (sum >> 32) as u16];
    }
}

/// [`Traffic`] in 12 bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct PackedTraffic {
    packets: Count,
    bytes: Count,
}

impl PackedTraffic {
    fn add(&mut self, packets: u32, bytes: u32) {
        self.packets.add(packets.into());
        self.bytes.add(bytes.into());
    }

    fn unpacked(self) -> Traffic {
        Traffic { packets: self.packets.get(), bytes: self.bytes.get() }
    }
}

impl Session {
    /// `seen`: when this member last heard of its half-open session, if it did.
    pub(crate) fn new(e: &Establish, now: Time, seen: Option<Time>) -> Session {
        let track = match &e.protocol {
            HandshakeState::Tcp { client, server: Some(server) } => {
                Some(Track::new(&PerDirection { original: *client, reply: *server }, seen))
            }
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
            refreshes: 0,
            handshake: CompactHandshake::new(&e.protocol),
            flags: SessionFlags::default(),
            judged: e.generation.0 as u32,
            seen: Stamp17ms::rounded_up(now),
            links: Links::NONE,
            track,
            traffic: PerDirection::default(),
            unpublished: PerDirection::default(),
        }
    }

    /// A packet of it passes.
    pub(crate) fn account(&mut self, direction: Direction, bytes: u32, now: Time) {
        self.traffic[direction].add(1, bytes);
        self.unpublished[direction].add_packet(bytes);
        self.seen = Stamp17ms::rounded_up(now);
    }

    /// Takes back what a packet changed that does not pass after all. Its places in lists stay.
    pub(crate) fn rewind(&mut self, before: Session) {
        *self = Session { links: self.links, flags: self.flags, judged: self.judged, ..before };
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

    /// What the two ends said in the handshake.
    pub(crate) fn handshake_state(&self) -> HandshakeState {
        match &self.handshake {
            CompactHandshake::Tcp([client, server]) => {
                HandshakeState::Tcp { client: client.end(), server: Some(server.end()) }
            }
            CompactHandshake::Generic { replied } => HandshakeState::Generic { replied: *replied },
        }
    }

    /// The two ends of a TCP connection.
    pub(crate) fn syn_params(&self) -> Option<PerDirection<SynParams>> {
        match &self.handshake {
            CompactHandshake::Tcp([client, server]) => {
                Some(PerDirection { original: client.end(), reply: server.end() })
            }
            CompactHandshake::Generic { .. } => None,
        }
    }

    /// Is this the policy that it was last judged by here?
    pub(crate) fn was_judged_by(&self, generation: Generation) -> bool {
        self.judged == generation.0 as u32
    }

    /// This policy allows it.
    pub(crate) fn allowed_by(&mut self, generation: Generation) {
        self.judged = generation.0 as u32;
    }

    /// Has this member forwarded, or heard of, a packet of it?
    pub(crate) fn has_passed(&self) -> bool {
        self.traffic.iter().any(|traffic| traffic.packets.get() > 0)
    }

    /// Adds what another member forwarded.
    pub(crate) fn add_traffic(&mut self, more: &PerDirection<TrafficDelta>) {
        for direction in [Direction::Original, Direction::Reply] {
            self.traffic[direction].add(more[direction].packets, more[direction].bytes);
        }
    }

    /// What passed here of which the others have not been told, and are told now.
    pub(crate) fn take_unpublished_traffic(&mut self) -> PerDirection<TrafficDelta> {
        std::mem::take(&mut self.unpublished)
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
            protocol: self.handshake_state(),
        }
    }

    /// How long it may be idle.
    pub(crate) fn timeout(&self, timeouts: &Timeouts) -> Duration {
        timeouts.get(Timeout::for_state(self.state(), self.original.protocol))
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
            zones: ZonePair { ingress: self.ingress, egress: self.egress },
            rule: (self.generation, self.rule),
            state: self.state().name(),
            half_open: false,
            idle: self.idle(now),
            timeout: self.remaining(now, timeouts),
            traffic: self.traffic.map(PackedTraffic::unpacked),
        }
    }
}
