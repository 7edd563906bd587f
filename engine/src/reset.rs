//! RSTs to both ends of a connection that an administrator ends (`palisade session kill --reset`).
//!
//! An end accepts a RST only if it carries exactly the number that the end expects next (RFC 5961 section 3.2). That is known for
//! sure only to the end itself. So there are two steps:
//!
//! 1. The member that got the command sends each end a RST with what that end has acknowledged, as far as this member knows,
//!    and another one with all that was sent to it, where that is more. Between segments the two are equal, and exact.
//! 2. If neither is what the end expects (a segment was lost, or passed at another member a moment ago), the end answers with a
//!    challenge ACK, or goes on with its own segments. They name what it expects, and whichever member gets one answers it by
//!    a RST with this number, whatever the policy says of strays: all members are told the tuple by a hint, and remember it for
//!    [`REMEMBERED`], or until another connection begins with it.
//!
//! Each RST answers one command or one segment, which is with one member. So no two members send the same one.

use std::collections::VecDeque;
use std::time::Duration;

use crate::engine::Engine;
use crate::id::SessionId;
use crate::parse::{Tcp, rejection};
use crate::time::Time;
use crate::tuple::{Direction, Tuple};

/// How long segments of an ended connection are answered.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The tuples that a shard remembers. The oldest is forgotten for another one.
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

/// What ends a connection at both ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectionResets {
    /// The connection's tuple, client to server.
    pub original: Tuple,
    /// At most two to each end. None to an end of which this member does not know what was sent to it.
    pub resets: Vec<Reset>,
}

/// The connections of one shard whose segments are answered by RSTs.
#[derive(Default)]
pub(crate) struct EndedTuples(VecDeque<(u64, Time)>);

impl EndedTuples {
    fn insert(&mut self, hash: u64, now: Time) {
        self.forget(hash);
        if self.0.len() >= MAX_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((hash, now + REMEMBERED));
    }

    /// Another connection begins with the tuple.
    pub(crate) fn forget(&mut self, hash: u64) {
        if !self.0.is_empty() {
            self.0.retain(|(ended, _)| *ended != hash);
        }
    }

    fn contains(&self, hash: u64, now: Time) -> bool {
        self.0.iter().any(|(ended, until)| *ended == hash && now < *until)
    }
}

impl Engine {
    /// The RSTs that end an open TCP connection, as far as this member knows its numbers.
    #[must_use]
    pub fn connection_resets(&self, id: SessionId) -> Option<ConnectionResets> {
        let (shard, slot) = self.table.locate(id)?;
        let session = shard.sessions.get(slot).filter(|session| session.is_open())?;
        let track = session.local.track.as_ref()?;
        let original = *session.original();
        let resets = [(Direction::Original, original), (Direction::Reply, original.inverse())]
            .into_iter()
            .flat_map(|(direction, tuple)| track.expected_next(direction).map(move |seq| Reset { tuple, seq }))
            .collect();
        Some(ConnectionResets { original, resets })
    }

    /// Has segments that still come of an ended TCP connection answered by RSTs.
    pub fn answer_with_resets(&self, now: Time, tuple: &Tuple) {
        let hash = self.table.hash(tuple);
        self.table.shard_for(hash).ended.insert(hash, now);
    }

    /// Whether a session or half-open session has this tuple.
    #[must_use]
    pub fn is_known(&self, tuple: &Tuple) -> bool {
        let hash = self.table.hash(tuple);
        let shard = self.table.shard_for(hash);
        shard.sessions.find(hash, tuple).is_some() || shard.half_open.lookup(hash, tuple).next().is_some()
    }

    /// Whether segments of this tuple are those of an ended connection, to be answered by RSTs.
    pub(crate) fn is_to_be_reset(&self, tuple: &Tuple, now: Time) -> bool {
        let hash = self.table.hash(tuple);
        self.table.shard_for(hash).ended.contains(hash, now)
    }
}
