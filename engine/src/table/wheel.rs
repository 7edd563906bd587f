//! The timers of the sessions: a hierarchical timing wheel (Varghese and Lauck, *Hashed and Hierarchical Timing Wheels*, 1987)
//! for each shard. Its lists are linked through the sessions themselves.
//!
//! ```text
//!   level 0   64 buckets of 268 ms    what is due within 17 seconds
//!   level 1   64 buckets of 17 s      … 18 minutes
//!   level 2   64 buckets of 18 min    … 19 hours
//!   level 3   64 buckets of 19 h      … 51 days
//! ```
//!
//! A packet only stamps its session and does not touch the wheel. When a bucket is due, each of its sessions is processed:
//! it moves to the bucket of its current deadline, or, if that is over, to the bucket of idle sessions that are reported to
//! the leader. So a session is processed at most four times within its timeout, independently of its packets; a session that
//! is not due costs nothing; and an idle session is found at most one unit (268 ms) after its deadline, never before.

#[cfg(test)]
use std::time::Duration;

use super::session::Session;
use super::slab::Slab;
use crate::time::Time;

/// The unit is 2^28 ns.
const UNIT_SHIFT: u32 = 28;

/// The wheel's resolution.
#[cfg(test)]
pub(crate) const UNIT: Duration = Duration::from_nanos(1 << UNIT_SHIFT);

const LEVELS: usize = 4;
/// Each level has 2^6 buckets.
const LEVEL_BITS: u32 = 6;
const BUCKETS_PER_LEVEL: usize = 1 << LEVEL_BITS;
/// The horizon of the wheel. A session with a later deadline is processed at the horizon, and armed again.
const MAX_UNITS_AHEAD: u64 = (BUCKETS_PER_LEVEL as u64 - 1) << (LEVEL_BITS * (LEVELS as u32 - 1));

/// The bucket of idle sessions, behind the buckets of the wheel.
const IDLE_BUCKET: usize = LEVELS * BUCKETS_PER_LEVEL;

const NONE: u32 = u32::MAX;
/// The bit of `prev` that marks a bucket instead of a session. Slots are below 2^24.
const BUCKET_TAG: u32 = 1 << 31;

/// A session's neighbours in its bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Links {
    next: u32,
    /// The previous session, or the bucket if this is its first session.
    prev: u32,
}

impl Links {
    /// The links of a session that is in no bucket.
    pub(crate) const NONE: Links = Links { next: NONE, prev: NONE };
}

/// One shard's wheel.
pub(crate) struct Wheel {
    /// The first unit whose buckets have not been processed.
    at: u64,
    heads: [u32; IDLE_BUCKET + 1],
    /// The buckets of each level that are not empty.
    occupied: [u64; LEVELS],
}

impl Default for Wheel {
    fn default() -> Wheel {
        Wheel { at: 0, heads: [NONE; IDLE_BUCKET + 1], occupied: [0; LEVELS] }
    }
}

/// The level for a deadline that is `distance` units away.
fn level(distance: u64) -> u32 {
    (distance | 1).ilog2() / LEVEL_BITS
}

impl Wheel {
    /// Arms the timer of a session: it fires as soon as `due` is over.
    pub(crate) fn arm(&mut self, sessions: &mut Slab<Session>, slot: u32, now: Time, due: Time) {
        self.unlink(sessions, slot);
        let unit = self.unit(now, due);
        self.link(sessions, slot, Wheel::bucket(unit, level(unit - self.at)));
    }

    /// Arms the timer of a session coarsely: it may fire later, at most at twice the time to `due`, but is processed only once.
    pub(crate) fn arm_coarse(&mut self, sessions: &mut Slab<Session>, slot: u32, now: Time, due: Time) {
        self.unlink(sessions, slot);
        let unit = self.unit(now, due);
        let step = 1 << (LEVEL_BITS * level(unit - self.at));
        let unit = unit.next_multiple_of(step).min(self.at + MAX_UNITS_AHEAD);
        self.link(sessions, slot, Wheel::bucket(unit, level(unit - self.at)));
    }

    /// Removes a session whose timer has fired.
    pub(crate) fn pop_due(&mut self, sessions: &mut Slab<Session>, now: Time) -> Option<u32> {
        let now = now.0 >> UNIT_SHIFT;
        let Some((unit, bucket)) = self.next().filter(|(unit, _)| *unit <= now) else {
            self.at = self.at.max(now + 1);
            return None;
        };
        self.at = unit;
        self.pop(sessions, bucket)
    }

    /// Removes a session from the bucket of idle sessions.
    pub(crate) fn pop_idle(&mut self, sessions: &mut Slab<Session>) -> Option<u32> {
        self.pop(sessions, IDLE_BUCKET)
    }

    /// Whether the bucket of idle sessions has any.
    pub(crate) fn has_idle(&self) -> bool {
        self.heads[IDLE_BUCKET] != NONE
    }

    /// Moves a session to the bucket of idle sessions.
    pub(crate) fn link_idle(&mut self, sessions: &mut Slab<Session>, slot: u32) {
        self.unlink(sessions, slot);
        self.link(sessions, slot, IDLE_BUCKET);
    }

    /// Removes a session from its bucket.
    pub(crate) fn unlink(&mut self, sessions: &mut Slab<Session>, slot: u32) {
        let Some(session) = sessions.get_mut(slot) else { return };
        let Links { next, prev } = std::mem::replace(&mut session.local.links, Links::NONE);
        if prev == NONE {
            return;
        }
        if prev & BUCKET_TAG == 0 {
            if let Some(before) = sessions.get_mut(prev) {
                before.local.links.next = next;
            }
        } else {
            let bucket = (prev & !BUCKET_TAG) as usize;
            self.heads[bucket] = next;
            if next == NONE && bucket < IDLE_BUCKET {
                self.occupied[bucket / BUCKETS_PER_LEVEL] &= !(1 << (bucket % BUCKETS_PER_LEVEL));
            }
        }
        if let Some(after) = sessions.get_mut(next) {
            after.local.links.prev = prev;
        }
    }

    /// The unit in which `due` is over, or the nearest one that has a bucket.
    fn unit(&mut self, now: Time, due: Time) -> u64 {
        if self.occupied == [0; LEVELS] {
            // The wheel was empty, so no unit until now has anything to process.
            self.at = self.at.max(now.0 >> UNIT_SHIFT);
        }
        due.0.div_ceil(1 << UNIT_SHIFT).clamp(self.at, self.at + MAX_UNITS_AHEAD)
    }

    fn bucket(unit: u64, level: u32) -> usize {
        level as usize * BUCKETS_PER_LEVEL + (unit >> (LEVEL_BITS * level)) as usize % BUCKETS_PER_LEVEL
    }

    /// The next bucket to process, with its unit. A bucket of a higher level is processed at the first of its units.
    fn next(&self) -> Option<(u64, usize)> {
        let levels = (0..).zip(self.occupied).filter(|(_, occupied)| *occupied != 0);
        let first = |(level, occupied): (u32, u64)| {
            let shift = LEVEL_BITS * level;
            // Rounded up: the bucket that contains `at` was processed at its first unit.
            let from = (self.at + (1 << shift) - 1) >> shift;
            let ahead = occupied.rotate_right(from as u32 % BUCKETS_PER_LEVEL as u32).trailing_zeros();
            let unit = (from + u64::from(ahead)) << shift;
            (unit, Wheel::bucket(unit, level))
        };
        levels.map(first).min()
    }

    fn link(&mut self, sessions: &mut Slab<Session>, slot: u32, bucket: usize) {
        let next = std::mem::replace(&mut self.heads[bucket], slot);
        if let Some(after) = sessions.get_mut(next) {
            after.local.links.prev = slot;
        }
        if let Some(session) = sessions.get_mut(slot) {
            session.local.links = Links { next, prev: BUCKET_TAG | bucket as u32 };
        }
        if bucket < IDLE_BUCKET {
            self.occupied[bucket / BUCKETS_PER_LEVEL] |= 1 << (bucket % BUCKETS_PER_LEVEL);
        }
    }

    fn pop(&mut self, sessions: &mut Slab<Session>, bucket: usize) -> Option<u32> {
        let slot = self.heads[bucket];
        self.unlink(sessions, slot);
        (slot != NONE).then_some(slot)
    }
}
