//! Fragments: those that follow share the fate of the first, which alone has ports.
//!
//! A datagram is known by source, destination, protocol and identification (RFC 791 section 3.2, RFC 8200 section 4.5),
//! in a ring of fixed size per shard, for at most 30 seconds. A following fragment whose first one is not known here is
//! dropped: reassembly at the receiver could never tell whose it is.
//!
//! A fragment that overlaps what passed before is dropped (RFC 1858, RFC 5722): no two versions of a byte ever reach the
//! receiver. So is an exact copy, which the receiver does not miss. Fragments that are too small for their headers do not
//! get here: see [`parse`](crate::parse).

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::time::Duration;

use crate::engine::{Context, Engine};
use crate::parse::{Fragment, Packet};
use crate::time::Time;
use crate::tuple::Tuple;
use crate::verdict::{Reason, Verdict};

/// Datagrams per shard.
const RING: usize = 32;

/// Longest time between a datagram's fragments (RFC 791: reassembly timers are 15 s; Linux: 30 s).
const LIFE: Duration = Duration::from_secs(30);

/// Pieces of one datagram that do not touch each other: gaps that reordering leaves.
const PIECES: usize = 8;

/// What passed of a datagram.
#[derive(Clone, Copy)]
struct Datagram {
    key: u64,
    began: Time,
    /// Begin and end of what passed, in bytes; those that are equal are free.
    pieces: [(u32, u32); PIECES],
    /// Where the datagram ends, as soon as that is known.
    end: Option<u32>,
}

impl Datagram {
    /// Takes in a fragment, if it overlaps nothing, ends no later than the datagram, and leaves few enough gaps.
    fn take(&mut self, begin: u32, end: u32, last: bool) -> bool {
        let used = || self.pieces.iter().filter(|(begin, end)| begin < end);
        let overlaps = used().any(|&(b, e)| b < end && begin < e);
        let beyond = match (self.end, last) {
            (Some(known), true) => end != known,
            (Some(known), false) => end > known,
            (None, true) => used().any(|&(_, e)| e > end),
            (None, false) => false,
        };
        if overlaps || beyond || begin >= end {
            return false;
        }
        // Joined with its neighbours.
        let (mut all, mut joined) = (self.pieces, (begin, end));
        for piece in all.iter_mut().filter(|(b, e)| b < e && (*e == begin || *b == end)) {
            joined = (joined.0.min(piece.0), joined.1.max(piece.1));
            *piece = (0, 0);
        }
        let Some(free) = all.iter_mut().find(|(b, e)| b == e) else { return false };
        *free = joined;
        self.pieces = all;
        if last {
            self.end = Some(end);
        }
        true
    }

    fn is_whole(&self) -> bool {
        self.end.is_some_and(|end| self.pieces.contains(&(0, end)))
    }
}

/// Datagrams whose first fragment was forwarded, and whose last ones were not yet.
#[derive(Default)]
pub(crate) struct Datagrams {
    /// The oldest one first.
    ring: VecDeque<Datagram>,
}

impl Datagrams {
    /// The first fragment, which ends at `end`. False: another one of this datagram passed already.
    fn first(&mut self, key: u64, end: u32, now: Time) -> bool {
        let mut pieces = [(0, 0); PIECES];
        pieces[0] = (0, end);
        let datagram = Datagram { key, began: now, pieces, end: None };
        if let Some(known) = self.ring.iter_mut().find(|known| known.key == key) {
            let over = now.since(known.began) > LIFE;
            if over {
                *known = datagram;
            }
            return over;
        }
        if self.ring.len() >= RING {
            self.ring.pop_front();
        }
        self.ring.push_back(datagram);
        true
    }

    /// Another fragment. May it pass?
    fn follows(&mut self, key: u64, begin: u32, end: u32, last: bool, now: Time) -> bool {
        let Some(place) = self.ring.iter().position(|known| known.key == key) else { return false };
        let known = &mut self.ring[place];
        let passes = now.since(known.began) <= LIFE && known.take(begin, end, last);
        if known.is_whole() {
            self.ring.remove(place);
        }
        passes
    }
}

impl Engine {
    /// The verdict on a fragment that is not the first.
    pub(super) fn fragment(&self, packet: &Packet, fragment: &Fragment, context: &Context<'_>) -> Verdict {
        let (shard, key) = self.datagram(packet, fragment, context);
        let begin = u32::from(fragment.offset);
        let end = begin + data(packet);
        verdict(self.table.of(shard).fragments.follows(key, begin, end, !fragment.more, context.now))
    }

    /// A first fragment would be forwarded.
    pub(super) fn first_fragment(&self, packet: &Packet, fragment: &Fragment, context: &Context<'_>) -> Verdict {
        let (shard, key) = self.datagram(packet, fragment, context);
        verdict(self.table.of(shard).fragments.first(key, data(packet), context.now))
    }

    fn datagram(&self, packet: &Packet, fragment: &Fragment, context: &Context<'_>) -> (u64, u64) {
        let addresses = Tuple { src_port: 0, dst_port: 0, ..packet.tuple };
        let key = self.table.hasher().hash_one((addresses, fragment.id, context.ingress));
        (self.table.hash(&addresses), key)
    }
}

/// Bytes behind the headers. Of an IPv6 first fragment with extension headers behind the fragment header it is too few: that
/// leaves a gap in what is known, and no more.
fn data(packet: &Packet) -> u32 {
    packet.length.saturating_sub(packet.transport.into())
}

fn verdict(passes: bool) -> Verdict {
    if passes { Verdict::Forward } else { Verdict::Drop(Reason::Fragment) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Time = Time(1);

    fn begun() -> Datagrams {
        let mut all = Datagrams::default();
        assert!(all.first(1, 80, NOW));
        all
    }

    #[test]
    fn any_order_passes_once() {
        let mut all = begun();
        let mut follows = |begin, end, last| all.follows(1, begin, end, last, NOW);
        assert!(follows(160, 240, false));
        assert!(follows(320, 400, true));
        assert!(follows(80, 160, false));
        assert!(!follows(80, 160, false), "a copy");
        assert!(follows(240, 320, false));
        assert!(!follows(240, 320, false), "the datagram is whole, and forgotten");
        assert!(all.ring.is_empty());
    }

    #[test]
    fn nothing_overlaps() {
        let mut all = begun();
        assert!(!all.first(1, 80, NOW), "a second first one");
        let mut follows = |begin, end, last| all.follows(1, begin, end, last, NOW);
        assert!(!follows(72, 160, false));
        assert!(follows(160, 240, false));
        for (begin, end) in [(160, 240), (152, 248), (168, 176), (80, 168), (232, 248), (8, 16)] {
            assert!(!follows(begin, end, false), "{begin}..{end}");
        }
        assert!(!follows(80, 160, true), "more was seen behind this end");
        assert!(follows(240, 250, true));
        assert!(!follows(250, 260, true), "it ends twice");
        assert!(!follows(256, 264, false), "behind the end");
        assert!(!follows(100, 100, false), "empty");
    }

    #[test]
    fn sizes_and_times_are_bounded() {
        let mut all = begun();
        let gaps = (1..20).filter(|n| all.follows(1, n * 160, n * 160 + 80, false, NOW)).count();
        assert_eq!(gaps, PIECES - 1);
        let late = NOW + LIFE + Duration::from_nanos(1);
        assert!(!all.follows(1, 80, 160, false, late));
        assert!(all.first(1, 80, late), "the identification may be used again");
        for key in 2..100 {
            assert!(all.first(key, 80, late));
        }
        assert_eq!(all.ring.len(), RING);
        assert!(!all.follows(1, 80, 160, false, late), "the oldest made room");
        assert!(all.follows(99, 80, 160, true, late));
        assert_eq!(all.ring.len(), RING - 1);
    }
}
