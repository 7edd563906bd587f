//! The snapshot query: how to resolve a segment that is too far from what this member knows.
//!
//! The packets before it may have passed at other members. So the segment is held, the peers are queried, and the segment is
//! judged by what all members know together. If no live member knows the numbers, the two directions of the connection
//! have to corroborate each other: an honest end answers what it receives, and names both numbers. Two segments of
//! opposite directions, each close to the numbers of the other one, are both genuine: to forge that, an attacker has to know the
//! numbers or to stand on both sides. Until then nothing is recorded. A segment that passes provisionally changes nothing, so
//! that a forged one cannot lock the real connection out.
//!
//! # States
//!
//! ```text
//!            a segment                    the last reachable peer has replied, or is silent
//!   Idle ───────────────> Outstanding ────────────────────────────────────────────────────────> Settled
//!            QueryPeers     │  ^   ^                                                            │   ^
//!                           │  │   └─────── a segment, 250 ms later, or of other numbers ───────┘   │ reply: live
//!                           │  │            QueryPeers                                              │
//!                           │  └─────────── a segment, 250 ms later ─────────────────────── Unanswered
//!                           │               QueryPeers                                              ^
//!                           └── a segment, 250 ms to 10 s later, and no number confirmed since ─────┘
//!                                           Provisional
//! ```
//!
//! The first row that applies decides on a segment. `tests::query_machine` enumerates states and events, and a new one does not
//! compile there without a decision. *Known*: the reachable members know together all that there is to know of the connection
//! ([`InconclusiveSegment::is_unknown`]).
//!
//! ```text
//!   no reachable peer, known                                     Strict          no change
//!   Idle                                                         QueryPeers      Outstanding
//!   Outstanding   query younger than 250 ms                      AwaitReplies    no change
//!                 younger than 10 s, no number confirmed since   Provisional     Unanswered
//!                 otherwise                                      QueryPeers      Outstanding, a new query
//!   Settled,      younger than 250 ms, unknown                   Provisional     no change
//!   Unanswered    younger than 250 ms, known, the same numbers   Strict          no change
//!                 otherwise                                      QueryPeers      Outstanding, a new query
//! ```
//!
//! Without a reachable peer there is nobody to query: where the table has QueryPeers, the segment is Provisional, and the query
//! is Settled at once. A reply counts in every state. It moves Outstanding to Settled if it is the last one, and Unanswered
//! to Settled if its sender sees the connection; otherwise it changes only the [`Evidence`].

use std::time::Duration;

use super::{SegmentOutcome, Track, WindowCheck};
use crate::event::{ProvisionalSegment, TcpSnapshot};
use crate::parse::Tcp;
use crate::session::SynParams;
use crate::time::{Stamp4ms, Stamp17ms, Time};
use crate::tuple::{Direction, PerDirection};

/// How long peers have to reply: as long as a packet is held.
const REPLY_TIMEOUT: Duration = Duration::from_millis(250);

/// How long an unanswered query shows that the knowledge of the peers is lost.
const UNANSWERED_TTL: Duration = Duration::from_secs(10);

/// What to do with a segment that is too far from what this member knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resolution {
    /// Query the peers, and hold the segment.
    QueryPeers,
    /// Hold the segment: the peers have been queried.
    AwaitReplies,
    /// Apply [`WindowCheck::Strict`]: this member has learned all that the members know.
    Strict,
    /// No live member knows: [`Track::corroborate`] the segment, or let it pass provisionally.
    Provisional,
}

/// The state of the query about a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SnapshotQueryState {
    /// No query was sent. Replies to the queries of other members still count.
    Idle(Evidence),
    /// A query was sent, and not all reachable peers have replied.
    Outstanding(Evidence),
    /// All reachable peers have replied. That stays so if another peer becomes reachable later.
    Settled(Evidence),
    /// The query timed out. The knowledge of the peers is taken for lost.
    Unanswered,
}

/// What the replies show, the strongest one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Evidence {
    /// Every peer that replied has a complete history, or none replied.
    Complete,
    /// A peer that replied may have missed packets, and does not see the connection now.
    Incomplete,
    /// A peer that replied sees the connection now.
    Live,
}

/// The age of a query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum QueryAge {
    /// Younger than [`REPLY_TIMEOUT`].
    Current,
    /// Younger than [`UNANSWERED_TTL`].
    Overdue,
    Old,
}

/// What a segment does to a query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transition {
    /// The query stays as it is.
    Stay(Resolution),
    /// The query is Unanswered.
    TimeOut,
    /// A new query begins.
    Restart,
}

/// A segment for which the relaxed check was inconclusive, and what is known besides the query.
#[derive(Clone, Copy, Debug)]
pub(super) struct InconclusiveSegment {
    /// A digest of both its numbers: acknowledgements without data all have the same sequence number.
    pub(super) digest: u32,
    /// How many other members that are not silent may know the connection.
    pub(super) reachable_peers: u32,
    /// Whether silent members may know more than all others.
    pub(super) lost_with_silent_peers: bool,
    /// Whether this member may have missed packets.
    pub(super) history_incomplete: bool,
    /// How long ago the last of the connection's numbers was confirmed.
    pub(super) confirmed: Option<Duration>,
}

impl InconclusiveSegment {
    /// Whether the members that can be reached do not know all of the connection: silent ones may know more, or those that
    /// replied (or this one) may have missed packets, and none of them sees the connection now.
    fn is_unknown(&self, evidence: Evidence) -> bool {
        let history_lost = match evidence {
            Evidence::Complete => self.history_incomplete,
            Evidence::Incomplete => true,
            Evidence::Live => false,
        };
        self.lost_with_silent_peers || history_lost
    }
}

impl SnapshotQueryState {
    fn evidence(self) -> Evidence {
        match self {
            SnapshotQueryState::Idle(evidence)
            | SnapshotQueryState::Outstanding(evidence)
            | SnapshotQueryState::Settled(evidence) => evidence,
            SnapshotQueryState::Unanswered => Evidence::Incomplete,
        }
    }

    /// The state after a reply.
    fn after_reply(self, reply: Evidence) -> SnapshotQueryState {
        match self {
            SnapshotQueryState::Idle(evidence) => SnapshotQueryState::Idle(evidence.max(reply)),
            SnapshotQueryState::Outstanding(evidence) => SnapshotQueryState::Outstanding(evidence.max(reply)),
            SnapshotQueryState::Settled(evidence) => SnapshotQueryState::Settled(evidence.max(reply)),
            SnapshotQueryState::Unanswered if reply == Evidence::Live => SnapshotQueryState::Settled(Evidence::Live),
            SnapshotQueryState::Unanswered => SnapshotQueryState::Unanswered,
        }
    }

    /// The state once all reachable peers have replied.
    fn after_all_replied(self) -> SnapshotQueryState {
        match self {
            SnapshotQueryState::Outstanding(evidence) => SnapshotQueryState::Settled(evidence),
            SnapshotQueryState::Idle(_) | SnapshotQueryState::Settled(_) | SnapshotQueryState::Unanswered => self,
        }
    }

    /// What a segment does. `age`: that of the query. `same_numbers`: whether the query was about this segment.
    /// `confirmed_since`: whether a number of the connection was confirmed since the query.
    fn on_segment(self, age: QueryAge, unknown: bool, same_numbers: bool, confirmed_since: bool) -> Transition {
        match (self, age) {
            (SnapshotQueryState::Idle(_), _) => Transition::Restart,
            (SnapshotQueryState::Outstanding(_), QueryAge::Current) => Transition::Stay(Resolution::AwaitReplies),
            (SnapshotQueryState::Outstanding(_), QueryAge::Overdue) if !confirmed_since => Transition::TimeOut,
            (SnapshotQueryState::Outstanding(_), QueryAge::Overdue | QueryAge::Old) => Transition::Restart,
            (SnapshotQueryState::Settled(_) | SnapshotQueryState::Unanswered, QueryAge::Current) => {
                if unknown {
                    Transition::Stay(Resolution::Provisional)
                } else if same_numbers {
                    Transition::Stay(Resolution::Strict)
                } else {
                    Transition::Restart
                }
            }
            (SnapshotQueryState::Settled(_) | SnapshotQueryState::Unanswered, QueryAge::Overdue | QueryAge::Old) => {
                Transition::Restart
            }
        }
    }
}

/// The query about a connection, in 12 bytes: a session has no room for more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SnapshotQuery {
    /// When the query was sent, or timed out, to 4 ms: a packet that is judged again after [`REPLY_TIMEOUT`] never comes too
    /// early. If it wraps, one query is left out, once. Never: the state is Idle.
    pub(super) since: Stamp4ms,
    /// [`InconclusiveSegment::digest`] of the segment that it is about.
    pub(super) about: u32,
    /// From bit 0: a set of the peers that replied; the directions of which a segment has passed provisionally since the
    /// query; the state.
    pub(super) packed: u32,
}

/// Bits of [`SnapshotQuery::packed`] for the peers that replied.
const PEER_BITS: u32 = 27;
const PEERS: u32 = (1 << PEER_BITS) - 1;
/// The first bit for the directions.
const DIRECTION_SHIFT: u32 = PEER_BITS;
/// The first bit for the state.
const STATE_SHIFT: u32 = DIRECTION_SHIFT + 2;
const STATE_UNANSWERED: u32 = 6;

impl SnapshotQuery {
    /// No query was sent.
    pub(super) const NONE: SnapshotQuery = SnapshotQuery { since: Stamp4ms::NEVER, about: 0, packed: 0 };

    pub(super) fn state(&self) -> SnapshotQueryState {
        let code = self.packed >> STATE_SHIFT;
        let evidence = match code % 3 {
            0 => Evidence::Complete,
            1 => Evidence::Incomplete,
            _ => Evidence::Live,
        };
        match code {
            _ if self.since == Stamp4ms::NEVER => SnapshotQueryState::Idle(evidence),
            0..3 => SnapshotQueryState::Outstanding(evidence),
            3..6 => SnapshotQueryState::Settled(evidence),
            _ => SnapshotQueryState::Unanswered,
        }
    }

    pub(super) fn set_state(&mut self, state: SnapshotQueryState) {
        let code = match state {
            // `since` tells the two apart.
            SnapshotQueryState::Idle(evidence) | SnapshotQueryState::Outstanding(evidence) => evidence as u32,
            SnapshotQueryState::Settled(evidence) => 3 + evidence as u32,
            SnapshotQueryState::Unanswered => STATE_UNANSWERED,
        };
        self.packed = self.packed & ((1 << STATE_SHIFT) - 1) | code << STATE_SHIFT;
    }

    /// How many different peers have replied.
    fn replies(&self) -> u32 {
        (self.packed & PEERS).count_ones()
    }

    fn settle_if_complete(&mut self, reachable_peers: u32) {
        if self.replies() >= reachable_peers {
            self.set_state(self.state().after_all_replied());
        }
    }

    pub(super) fn resolve(&mut self, segment: &InconclusiveSegment, now: Time) -> Resolution {
        let unknown = segment.is_unknown(self.state().evidence());
        if segment.reachable_peers == 0 && !unknown {
            return Resolution::Strict;
        }
        self.settle_if_complete(segment.reachable_peers);
        let age = self.since.age(now).unwrap_or(Duration::MAX);
        let class = match age {
            _ if age < REPLY_TIMEOUT => QueryAge::Current,
            _ if age < UNANSWERED_TTL => QueryAge::Overdue,
            _ => QueryAge::Old,
        };
        let same_numbers = self.about == segment.digest;
        let confirmed_since = segment.confirmed.is_some_and(|confirmed| confirmed < age);
        match self.state().on_segment(class, unknown, same_numbers, confirmed_since) {
            Transition::Stay(resolution) => resolution,
            Transition::TimeOut => {
                // For one more timeout the connection counts as unknown, so that the opposite direction can be resolved, too.
                *self = SnapshotQuery { since: Stamp4ms::new(now), about: self.about, packed: 0 };
                self.set_state(SnapshotQueryState::Unanswered);
                Resolution::Provisional
            }
            Transition::Restart => {
                *self = SnapshotQuery { since: Stamp4ms::new(now), about: segment.digest, packed: 0 };
                self.set_state(SnapshotQueryState::Outstanding(Evidence::Complete));
                self.settle_if_complete(segment.reachable_peers);
                if segment.reachable_peers == 0 { Resolution::Provisional } else { Resolution::QueryPeers }
            }
        }
    }

    /// Notes the reply of the peer with this number. Returns whether all reachable peers have replied.
    pub(super) fn record_reply(&mut self, peer: usize, reply: Evidence, reachable_peers: u32) -> bool {
        self.packed |= 1 << (peer % PEER_BITS as usize);
        self.set_state(self.state().after_reply(reply));
        self.settle_if_complete(reachable_peers);
        self.replies() >= reachable_peers
    }

    /// Whether a segment of this direction may pass provisionally: one after each query.
    pub(super) fn allow_provisional(&mut self, direction: Direction) -> bool {
        let bit = match direction {
            Direction::Original => 1 << DIRECTION_SHIFT,
            Direction::Reply => 2 << DIRECTION_SHIFT,
        };
        let is_first = self.packed & bit == 0;
        self.packed |= bit;
        is_first
    }
}

impl Track {
    /// What to do with a segment for which the relaxed check was inconclusive. `reachable_peers`: how many other members that
    /// are not silent may know the connection. `lost_with_silent_peers`: whether silent members may know more than all others.
    pub(crate) fn resolve(
        &mut self,
        tcp: &Tcp,
        reachable_peers: u32,
        lost_with_silent_peers: bool,
        now: Time,
    ) -> Resolution {
        let segment = InconclusiveSegment {
            digest: tcp.seq ^ tcp.ack.rotate_left(16),
            reachable_peers,
            lost_with_silent_peers,
            history_incomplete: self.history_incomplete,
            confirmed: self.confirmation_ages(now).iter().flatten().min().copied(),
        };
        self.query.resolve(&segment, now)
    }

    /// Merges a peer's reply; `peer`: its number among the members. Returns whether to judge held segments again. What a peer
    /// that sees the connection knows may show that a segment belongs. That it does not belong, only all peers together show.
    pub(crate) fn record_reply(
        &mut self,
        peer: usize,
        snapshot: &TcpSnapshot,
        reachable_peers: u32,
        now: Time,
    ) -> bool {
        self.merge_snapshot(snapshot, now);
        let reply = match (snapshot.live, snapshot.history_incomplete) {
            (true, _) => Evidence::Live,
            (false, true) => Evidence::Incomplete,
            (false, false) => Evidence::Complete,
        };
        let all_replied = self.query.record_reply(peer, reply, reachable_peers);
        snapshot.live || all_replied
    }

    /// Whether a segment of this direction may pass provisionally: one after each query.
    pub(crate) fn allow_provisional(&mut self, direction: Direction) -> bool {
        self.query.allow_provisional(direction)
    }

    /// Checks a segment against a provisional segment of the opposite direction, where no live member knows the numbers. If the
    /// two agree, both are genuine, and the numbers are known from now on. Otherwise the outcome is inconclusive, and nothing
    /// changes.
    pub(crate) fn corroborate(
        &mut self,
        syns: &PerDirection<SynParams>,
        direction: Direction,
        tcp: &Tcp,
        opposite: &ProvisionalSegment,
        now: Time,
    ) -> SegmentOutcome {
        // After a FIN a RST need not be exact. Against numbers that no member knows it must be.
        if tcp.has(Tcp::RST) && tcp.seq != opposite.ack {
            return SegmentOutcome::Inconclusive;
        }
        let before = *self;
        for (of, seq_end) in [(direction, opposite.ack), (direction.flip(), opposite.seq_end)] {
            let state = &mut self.directions[of];
            state.seq_end = seq_end;
            state.snd_una = seq_end;
            state.window_end = seq_end;
            state.confirmed_at = Stamp17ms::new(now);
        }
        self.clear_jump();
        let outcome = self.check_segment(syns, direction, tcp, None, WindowCheck::Relaxed, now);
        if !outcome.belongs() {
            *self = before;
            return SegmentOutcome::Inconclusive;
        }
        self.history_incomplete = false;
        outcome
    }
}
