//! RSTs to both ends of a connection that an administrator ends (`palisade session kill --reset`).
//!
//! An end accepts a RST only if it carries exactly the number that the end expects next (RFC 5961 section 3.2).
//!
//! ```text
//!   member that got the command            the others
//!   Revoke is applied: edges kept          Revoke is applied: edges kept
//!   Hint::Reset ─────────────────────────> segments of the tuple are answered from now on
//!   edges merged <───────────── Hint::Ended
//!   a RST to each end
//! ```
//!
//! The *edges* are, for each direction, what its receiver has acknowledged and what was sent to it, as far as a member has seen
//! packets of the connection. Nothing passes any more, so with the edges of all members one of the two is what the receiver
//! expects, unless a segment was lost. In that case, and if a member does not answer, the end ignores the RST or answers it with
//! a challenge ACK. Whatever it still sends names what it expects, and the member that gets it answers with exactly
//! that, whatever the policy says of strays.
//!
//! Each RST is caused by one command or by one segment, which is with one member. So no two members send the same one.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::event::{Event, Hint};
use crate::parse::{Tcp, rejection};
use crate::time::Time;
use crate::track::tcp::seq_diff;
use crate::tuple::{Direction, PerDirection, Protocol, Tuple};

/// How long segments of an ended connection are answered.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The connections that a shard remembers.
const MAX_REMEMBERED: usize = 64;

/// A RST to one end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reset {
    /// From the other end to this one.
    pub tuple: Tuple,
    /// The number that the end is taken to expect.
    pub seq: u32,
}

impl Reset {
    /// Writes it into `out`, as a whole IP packet. Returns its length.
    #[must_use]
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        rejection::rst(&self.tuple, self.seq, 0, Tcp::RST, out)
    }
}

/// What the receiver of one direction may expect next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Edges {
    /// What it has acknowledged.
    pub acknowledged: u32,
    /// All that was sent to it.
    pub sent: u32,
}

impl Edges {
    fn merge(&mut self, other: Edges) {
        let later = |a: u32, b: u32| if seq_diff(b, a) > 0 { b } else { a };
        self.acknowledged = later(self.acknowledged, other.acknowledged);
        self.sent = later(self.sent, other.sent);
    }
}

/// The edges of both directions. `None`: nothing is known of a direction.
pub type BothEdges = PerDirection<Option<Edges>>;

/// A TCP connection that has ended while it was open.
#[derive(Clone, Copy)]
struct EndedConnection {
    hash: u64,
    /// Client to server.
    original: Tuple,
    edges: BothEdges,
    /// Until when its segments are answered. `None`: nobody has asked for that.
    answered_until: Option<Time>,
    /// Whether the edges are still to be told to the member that asked.
    asked: bool,
}

/// The connections of one shard that have ended last.
#[derive(Default)]
pub(crate) struct EndedConnections(VecDeque<EndedConnection>);

impl EndedConnections {
    /// Records a connection that was removed while it was open.
    pub(crate) fn record(&mut self, hash: u64, original: Tuple, edges: BothEdges) {
        if let Some(known) = self.find(hash, &original) {
            known.original = original;
            known.merge(&edges);
            return;
        }
        self.push(EndedConnection { hash, original, edges, answered_until: None, asked: false });
    }

    /// Has its segments answered. `asks`: another member, which is to be told the edges. False if too many are.
    fn answer(&mut self, hash: u64, tuple: &Tuple, now: Time, asks: bool) -> bool {
        let answered_until = Some(now + REMEMBERED);
        self.0.retain(|ended| ended.answered_until.is_none_or(|until| now < until));
        if let Some(known) = self.find(hash, tuple) {
            known.answered_until = answered_until;
            known.asked |= asks;
            return true;
        }
        // The log has not come that far here.
        let edges = PerDirection::default();
        self.push(EndedConnection { hash, original: *tuple, edges, answered_until, asked: asks })
    }

    /// Adds one, in the place of the oldest of those that nobody has asked for.
    fn push(&mut self, ended: EndedConnection) -> bool {
        if self.0.len() >= MAX_REMEMBERED {
            let Some(oldest) = self.0.iter().position(|known| known.answered_until.is_none()) else { return false };
            self.0.remove(oldest);
        }
        self.0.push_back(ended);
        true
    }

    fn find(&mut self, hash: u64, tuple: &Tuple) -> Option<&mut EndedConnection> {
        self.0.iter_mut().find(|ended| ended.is(hash, tuple))
    }

    /// Another connection begins with the tuple.
    pub(crate) fn forget(&mut self, hash: u64) {
        if !self.0.is_empty() {
            self.0.retain(|ended| ended.hash != hash);
        }
    }

    /// Tells the edges that another member has asked for.
    pub(crate) fn tell(&mut self, events: &mut Vec<Event>) {
        for ended in self.0.iter_mut().filter(|ended| ended.asked && ended.edges.iter().any(Option::is_some)) {
            ended.asked = false;
            events.push(Event::Hint(Hint::Ended { original: ended.original, edges: ended.edges }));
        }
    }
}

impl EndedConnection {
    fn is(&self, hash: u64, tuple: &Tuple) -> bool {
        self.hash == hash && (self.original == *tuple || self.original.inverse() == *tuple)
    }

    fn merge(&mut self, edges: &BothEdges) {
        for direction in [Direction::Original, Direction::Reply] {
            match (&mut self.edges[direction], edges[direction]) {
                (Some(known), Some(other)) => known.merge(other),
                (known @ None, other) => *known = other,
                (Some(_), None) => {}
            }
        }
    }
}

impl Engine {
    /// Has segments answered by RSTs that still come of a TCP connection which was ended here. False if too many connections
    /// are answered already, or it is not TCP.
    pub fn answer_with_resets(&self, now: Time, original: &Tuple) -> bool {
        self.answer_ended(now, original, false)
    }

    pub(crate) fn answer_ended(&self, now: Time, original: &Tuple, asks: bool) -> bool {
        let hash = self.table.hash(original);
        original.protocol == Protocol::TCP && self.table.shard_for(hash).ended.answer(hash, original, now, asks)
    }

    /// Takes what another member has seen of an ended connection.
    pub(crate) fn merge_edges(&self, original: &Tuple, edges: &BothEdges) {
        let hash = self.table.hash(original);
        if let Some(ended) = self.table.shard_for(hash).ended.find(hash, original)
            && ended.original == *original
        {
            ended.merge(edges);
        }
    }

    /// The RSTs that end a connection whose segments are answered, at most two to each end: by what this member knows now.
    /// None, if another connection has begun with the tuple.
    pub fn resets(&self, original: &Tuple, each: &mut dyn FnMut(Reset)) {
        let hash = self.table.hash(original);
        let mut shard = self.table.shard_for(hash);
        if shard.sessions.find(hash, original).is_some() || shard.half_open.lookup(hash, original).next().is_some() {
            return;
        }
        let Some(ended) = shard.ended.find(hash, original).filter(|ended| ended.answered_until.is_some()) else {
            return;
        };
        for (direction, tuple) in [(Direction::Original, *original), (Direction::Reply, original.inverse())] {
            let Some(Edges { acknowledged, sent }) = ended.edges[direction] else { continue };
            each(Reset { tuple, seq: sent });
            if acknowledged != sent {
                each(Reset { tuple, seq: acknowledged });
            }
        }
    }

    /// Whether segments of this tuple are those of an ended connection, to be answered by RSTs.
    pub(crate) fn is_to_be_reset(&self, tuple: &Tuple, now: Time) -> bool {
        let hash = self.table.hash(tuple);
        let mut shard = self.table.shard_for(hash);
        shard.ended.find(hash, tuple).is_some_and(|ended| ended.answered_until.is_some_and(|until| now < until))
    }
}
