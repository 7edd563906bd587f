//! Segments that passed provisionally: evidence of a connection's sequence numbers where no live member knows them.
//!
//! A ring of fixed size per shard. If very many connections have lost every member that knew them, the oldest entries are
//! overwritten, and their connections wait for their next segments.

use std::time::Duration;

use crate::event::ProvisionalSegment;
use crate::id::SessionId;
use crate::time::Time;
use crate::tuple::Direction;

/// Segments per shard.
const SEGMENTS_PER_SHARD: usize = 64;

/// Segments kept of each direction of a session, the newest ones. More than one, because forged segments must not displace
/// the genuine one before the opposite direction answers it.
const MAX_PER_DIRECTION: usize = 8;

/// How long a segment counts as evidence. An honest end answers what it receives at once, or retransmits within seconds.
const PROVISIONAL_TTL: Duration = Duration::from_secs(10);

struct Entry {
    session: SessionId,
    direction: Direction,
    segment: ProvisionalSegment,
    passed_at: Time,
}

impl Entry {
    fn is_of(&self, session: SessionId, direction: Direction) -> bool {
        self.session == session && self.direction == direction
    }
}

/// One shard's ring.
#[derive(Default)]
pub(crate) struct ProvisionalSegments {
    entries: Vec<Entry>,
    /// The entry that is overwritten next once the ring is full.
    next: usize,
}

impl ProvisionalSegments {
    /// Adds a segment, or renews the time of one with the same numbers.
    pub(crate) fn record(&mut self, session: SessionId, direction: Direction, segment: ProvisionalSegment, now: Time) {
        let passed_at = now - Duration::from_millis(segment.age_ms.into());
        let same_numbers = |e: &Entry| (e.segment.seq_end, e.segment.ack) == (segment.seq_end, segment.ack);
        if let Some(known) = self.entries.iter_mut().find(|e| e.is_of(session, direction) && same_numbers(e)) {
            known.passed_at = known.passed_at.max(passed_at);
            return;
        }
        let entry = Entry { session, direction, segment, passed_at };
        if self.entries.iter().filter(|e| e.is_of(session, direction)).count() >= MAX_PER_DIRECTION {
            let same_direction = self.entries.iter_mut().filter(|e| e.is_of(session, direction));
            if let Some(oldest) = same_direction.min_by_key(|e| e.passed_at)
                && oldest.passed_at < passed_at
            {
                *oldest = entry;
            }
        } else if self.entries.len() < SEGMENTS_PER_SHARD {
            self.entries.reserve_exact(SEGMENTS_PER_SHARD - self.entries.len());
            self.entries.push(entry);
        } else {
            self.entries[self.next] = entry;
            self.next = (self.next + 1) % SEGMENTS_PER_SHARD;
        }
    }

    /// The segments of both directions of a session that have not expired.
    pub(crate) fn for_session(
        &self,
        session: SessionId,
        now: Time,
    ) -> impl Iterator<Item = (Direction, ProvisionalSegment)> {
        let valid = move |e: &&Entry| e.session == session && now.since(e.passed_at) < PROVISIONAL_TTL;
        self.entries.iter().filter(valid).map(move |e| {
            let age_ms = u32::try_from(now.since(e.passed_at).as_millis()).unwrap_or(u32::MAX);
            (e.direction, ProvisionalSegment { age_ms, ..e.segment })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::MemberId;

    const S: Duration = Duration::from_secs(1);

    fn id(counter: u64) -> SessionId {
        SessionId { member: MemberId(1), counter }
    }

    fn segment(seq_end: u32, age_ms: u32) -> ProvisionalSegment {
        ProvisionalSegment { seq_end, ack: 7, age_ms }
    }

    /// Direction, end and age of a session's segments, the original direction first.
    fn sorted(segments: &ProvisionalSegments, id: SessionId, now: Time) -> Vec<(Direction, u32, u32)> {
        let mut all: Vec<_> =
            segments.for_session(id, now).map(|(direction, s)| (direction, s.seq_end, s.age_ms)).collect();
        all.sort_unstable_by_key(|(direction, end, _)| (*direction == Direction::Reply, *end));
        all
    }

    #[test]
    fn provisional_segments_keep_the_newest_of_each_direction_for_some_seconds() {
        use Direction::{Original, Reply};
        let mut segments = ProvisionalSegments::default();
        let now = Time::ZERO + 100 * S;
        segments.record(id(1), Original, segment(5, 0), now);
        segments.record(id(1), Original, segment(5, 500), now);
        segments.record(id(1), Reply, segment(6, 500), now);
        segments.record(id(2), Reply, segment(9, 0), now);
        assert_eq!(sorted(&segments, id(1), now + S), [(Original, 5, 1000), (Reply, 6, 1500)]);
        assert_eq!(sorted(&segments, id(1), now + PROVISIONAL_TTL - S / 2), [(Original, 5, 9500)]);
        for n in 10..100 {
            segments.record(id(1), Original, segment(n, 0), now + S * n / 100);
        }
        let left: Vec<u32> = sorted(&segments, id(1), now + S).iter().map(|(_, end, _)| *end).collect();
        assert_eq!(left, [92, 93, 94, 95, 96, 97, 98, 99, 6]);
        segments.record(id(1), Original, segment(1, 9000), now + S);
        assert_eq!(sorted(&segments, id(1), now + S)[0].1, 92, "an old segment displaces no newer ones");
        assert_eq!(sorted(&segments, id(3), now), []);
    }

    #[test]
    fn provisional_segments_overwrite_the_oldest_when_full() {
        let mut segments = ProvisionalSegments::default();
        for n in 0..=SEGMENTS_PER_SHARD as u64 {
            segments.record(id(n), Direction::Original, segment(1, 0), Time(1));
        }
        assert_eq!(sorted(&segments, id(0), Time(1)), []);
        assert_eq!(sorted(&segments, id(1), Time(1)).len(), 1);
        assert_eq!(segments.entries.len(), SEGMENTS_PER_SHARD);
    }
}
