//! A session in the table: its replicated part and this member's local state.

use std::time::Duration;

use super::wheel::Links;
use crate::id::{Generation, SessionId, ZoneId};
use crate::replicated::Replicated;
use crate::session::{HandshakeState, SessionInfo};
use crate::time::{Stamp17ms, Time};
use crate::timeouts::{Timeout, Timeouts};
use crate::track::State;
use crate::track::tcp::Track;
use crate::traffic::{Traffic, TrafficDelta};
use crate::tuple::{Direction, PerDirection, Tuple};

/// One session. At most 256 bytes including its share of the indices, which a test asserts.
#[derive(Debug)]
pub(crate) struct Session {
    /// Only the table's [`SessionStore`](crate::replicated::SessionStore) hands it out to be changed.
    replicated: Replicated,
    pub(crate) local: Local,
}

/// This member's state of a session.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) flags: SessionFlags,
    /// The lowest 24 bits of the policy generation that the flags `…Passes` are about.
    checked_generation: [u8; 3],
    /// The topology ([`Routes::topology`](crate::types::Routes::topology)) that they are about. 0: none.
    checked_topology: u16,
    /// The zone of the flags `…PassesElsewhere`.
    other_zone: ZoneId,
    /// The zone that a packet of each direction last passed to.
    pub(crate) egress: PerDirection<ZoneId>,
    /// When a packet of the session last passed, or its replicated part last changed. Rounded up, so that the session is never
    /// taken for idle too early.
    pub(crate) last_active: Stamp17ms,
    /// The position in the timing wheel.
    pub(crate) links: Links,
    /// TCP only.
    pub(crate) track: Option<Track>,
    /// The traffic of all members, as far as this one knows.
    traffic: PerDirection<PackedTraffic>,
    /// The part of it that passed here and was not yet published to the peers.
    unpublished: PerDirection<TrafficDelta>,
}

/// A boolean property of a session on this member.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SessionFlag {
    /// Half-open sessions of the same tuple may exist. They are matched first.
    Contested = 1,
    /// This member reported the session as idle, so no packet of it passes here until a `Refresh` is applied. Only a command
    /// clears the flag, because the command that removes the session may be in flight for any time.
    Expiring = 2,
    /// The session is in the list of its shard's sessions with unpublished progress.
    Dirty = 4,
    /// Packets of the original direction from the session's ingress zone pass here.
    OriginalPasses = 8,
    /// Packets of the reply direction from the session's egress zone pass here.
    ReplyPasses = 16,
    /// Packets of the original direction from another zone pass here: see `Local::other_zone`.
    OriginalPassesElsewhere = 32,
    /// Packets of the reply direction from another zone pass here.
    ReplyPassesElsewhere = 64,
    /// The other zone counts only for interfaces whose sources are not checked.
    ElsewhereUnchecked = 128,
}

impl SessionFlag {
    fn passes(direction: Direction) -> SessionFlag {
        match direction {
            Direction::Original => SessionFlag::OriginalPasses,
            Direction::Reply => SessionFlag::ReplyPasses,
        }
    }

    fn passes_elsewhere(direction: Direction) -> SessionFlag {
        match direction {
            Direction::Original => SessionFlag::OriginalPassesElsewhere,
            Direction::Reply => SessionFlag::ReplyPassesElsewhere,
        }
    }
}

/// What a packet was found to pass by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Passed {
    /// The policy.
    pub(crate) generation: Generation,
    /// The routes.
    pub(crate) topology: u16,
    /// The zone that it came in by.
    pub(crate) ingress: ZoneId,
    /// Whether the sources of packets that come in there are checked.
    pub(crate) antispoof: bool,
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

/// A saturating counter of 48 bits: up to 281 terabytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Count([u16; 3]);

impl Count {
    const MAX: u64 = (1 << 48) - 1;

    fn get(self) -> u64 {
        let [a, b, c] = self.0.map(u64::from);
        a | b << 16 | c << 32
    }

    fn add(&mut self, more: u64) {
        let sum = self.get().saturating_add(more).min(Count::MAX);
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

fn low_bits(generation: Generation) -> [u8; 3] {
    let [a, b, c, ..] = generation.0.to_le_bytes();
    [a, b, c]
}

impl Local {
    /// Counts a packet that passes.
    pub(crate) fn account(&mut self, direction: Direction, bytes: u32, now: Time) {
        self.traffic[direction].add(1, bytes);
        self.unpublished[direction].add_packet(bytes);
        self.last_active = Stamp17ms::rounded_up(now);
    }

    /// Restores the state before a packet that is held after all. Positions in lists stay.
    pub(crate) fn rewind(&mut self, before: Local) {
        let Local { links, flags, checked_generation, checked_topology, other_zone, egress, .. } = *self;
        *self = Local { links, flags, checked_generation, checked_topology, other_zone, egress, ..before };
    }

    /// Whether any member has forwarded a packet of the session, as far as this one knows.
    pub(crate) fn has_passed(&self) -> bool {
        self.traffic.iter().any(|traffic| traffic.packets.get() > 0)
    }

    /// The traffic of all members, as far as this one knows.
    pub(crate) fn traffic(&self) -> PerDirection<Traffic> {
        self.traffic.map(PackedTraffic::unpacked)
    }

    /// Adds the traffic of a peer.
    pub(crate) fn add_traffic(&mut self, more: &PerDirection<TrafficDelta>) {
        for direction in [Direction::Original, Direction::Reply] {
            self.traffic[direction].add(more[direction].packets, more[direction].bytes);
        }
    }

    /// Takes the traffic that was not yet published.
    pub(crate) fn take_unpublished_traffic(&mut self) -> PerDirection<TrafficDelta> {
        std::mem::take(&mut self.unpublished)
    }

    /// How long the session has been idle.
    pub(crate) fn idle(&self, now: Time) -> Duration {
        self.last_active.age(now).unwrap_or_default()
    }
}

impl Session {
    /// A session whose half-open entry on this member, if any, last made progress at `seen`.
    pub(super) fn new(replicated: Replicated, now: Time, seen: Option<Time>) -> Session {
        let track = replicated.syn_params().map(|syns| Track::new(&syns, seen));
        let local = Local {
            flags: SessionFlags::default(),
            checked_generation: low_bits(replicated.generation()),
            checked_topology: 0,
            other_zone: ZoneId::UNKNOWN,
            egress: PerDirection::default(),
            last_active: Stamp17ms::rounded_up(now),
            links: Links::NONE,
            track,
            traffic: PerDirection::default(),
            unpublished: PerDirection::default(),
        };
        Session { replicated, local }
    }

    pub(crate) fn replicated(&self) -> &Replicated {
        &self.replicated
    }

    /// Only the [`SessionStore`](crate::replicated::SessionStore) may use it.
    pub(super) fn replicated_mut(&mut self) -> &mut Replicated {
        &mut self.replicated
    }

    pub(crate) fn id(&self) -> SessionId {
        self.replicated.id()
    }

    /// The tuple of the direction from client to server.
    pub(crate) fn original(&self) -> &Tuple {
        self.replicated.original()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.replicated.is_open()
    }

    /// The direction of a packet with this tuple, if it belongs to this session.
    pub(crate) fn direction(&self, tuple: &Tuple) -> Option<Direction> {
        if self.original() == tuple {
            Some(Direction::Original)
        } else if self.replicated.reply() == *tuple {
            Some(Direction::Reply)
        } else {
            None
        }
    }

    /// The zone that packets of a direction come from.
    pub(crate) fn zone(&self, direction: Direction) -> ZoneId {
        self.replicated.zone(direction)
    }

    /// Whether packets of this direction were found to pass from where this one comes in, by this policy and these routes.
    pub(crate) fn passed_before(&self, direction: Direction, passed: &Passed) -> bool {
        self.is_checked(passed) && self.comes_from(direction, passed.ingress, passed.antispoof)
    }

    /// Whether packets of this direction were last found to pass from this zone.
    pub(crate) fn comes_from(&self, direction: Direction, ingress: ZoneId, antispoof: bool) -> bool {
        let flags = self.local.flags;
        flags.has(SessionFlag::passes(direction)) && ingress == self.zone(direction)
            || flags.has(SessionFlag::passes_elsewhere(direction))
                && ingress == self.local.other_zone
                && !(antispoof && flags.has(SessionFlag::ElsewhereUnchecked))
    }

    fn is_checked(&self, passed: &Passed) -> bool {
        self.local.checked_topology == passed.topology && self.local.checked_generation == low_bits(passed.generation)
    }

    /// Remembers that a packet of this direction passed. One zone besides the session's own is remembered.
    pub(crate) fn remember_passed(&mut self, direction: Direction, passed: &Passed) {
        let (own, is_checked) = (passed.ingress == self.zone(direction), self.is_checked(passed));
        let Local { flags, checked_generation, checked_topology, other_zone, .. } = &mut self.local;
        let unchecked = flags.has(SessionFlag::ElsewhereUnchecked);
        let new_zone = !own && (*other_zone != passed.ingress || unchecked && passed.antispoof);
        for each in [Direction::Original, Direction::Reply] {
            if !is_checked {
                flags.set(SessionFlag::passes(each), false);
            }
            if !is_checked || new_zone {
                flags.set(SessionFlag::passes_elsewhere(each), false);
            }
        }
        (*checked_generation, *checked_topology) = (low_bits(passed.generation), passed.topology);
        if own {
            flags.set(SessionFlag::passes(direction), true);
        } else {
            *other_zone = passed.ingress;
            flags.set(SessionFlag::ElsewhereUnchecked, !passed.antispoof);
            flags.set(SessionFlag::passes_elsewhere(direction), true);
        }
    }

    pub(crate) fn handshake_state(&self) -> HandshakeState {
        self.replicated.handshake_state()
    }

    pub(crate) fn state(&self) -> State {
        self.local.track.as_ref().map_or(State::Assured, |track| track.state(self.replicated.closed()))
    }

    /// The idle timeout in the current state.
    pub(crate) fn timeout(&self, timeouts: &Timeouts) -> Duration {
        timeouts.get(Timeout::for_state(self.state(), self.original().protocol))
    }

    /// The remaining time until the session has been idle for its timeout. Zero if it has.
    pub(crate) fn remaining(&self, now: Time, timeouts: &Timeouts) -> Duration {
        self.timeout(timeouts).saturating_sub(self.local.idle(now))
    }

    pub(crate) fn is_idle(&self, now: Time, timeouts: &Timeouts) -> bool {
        self.remaining(now, timeouts).is_zero()
    }

    /// The session as an administrator sees it.
    pub(crate) fn info(&self, now: Time, timeouts: &Timeouts) -> SessionInfo {
        let session = &self.replicated;
        SessionInfo {
            id: session.id(),
            original: *session.original(),
            reply: session.reply(),
            zones: session.zones(),
            rule: (session.generation(), session.rule()),
            state: self.state().name(),
            half_open: false,
            idle: self.local.idle(now),
            timeout: self.remaining(now, timeouts),
            traffic: self.local.traffic(),
        }
    }
}
