//! The session table, sharded by the symmetric hash of the tuple: both directions of a connection and its half-open
//! sessions are in one shard, under one lock.
//!
//! Locks: the lock of a shard is held for one packet, one command, or one bounded part of a scan. The locks of the id index
//! are leaves. No function holds the locks of two shards.
//!
//! Addresses are not translated, so the reply tuple is the inverse of the original one, and one index entry finds a session
//! by either tuple.

pub(crate) mod copy_on_write;
pub(crate) mod fragments;
pub(crate) mod half_open;
pub(crate) mod id_index;
pub(crate) mod peer_queries;
pub(crate) mod provisional;
pub(crate) mod rebuild;
mod scrub;
pub(crate) mod session;
pub(crate) mod slab;
pub(crate) mod source_sketch;
pub(crate) mod state_counts;
mod store;
mod tuple_index;
pub(crate) mod wheel;

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::quality::FixedState;
use parking_lot::{Mutex, MutexGuard};

use crate::event::Event;
use crate::id::SessionId;
use crate::reset::EndedConnections;
use crate::session::HalfOpen;
use crate::time::Time;
use crate::timeouts::Timeouts;
use crate::track::State;
use crate::tuple::Tuple;
use crate::types::{Config, Context};
use copy_on_write::{CopyOnWrite, ShardCopy};
use fragments::FragmentTable;
use half_open::{HalfOpenEntry, HalfOpenTable, same_ends};
use id_index::{IdIndex, SlotRef};
use peer_queries::PeerQueries;
use provisional::ProvisionalSegments;
use scrub::ShardScrub;
use session::{Session, SessionFlag};
use slab::Slab;
use source_sketch::SourceSketch;
use state_counts::StateCounts;
use tuple_index::TupleIndex;
use wheel::{Links, Wheel};

/// The bounds of the time until an idle session that still exists is reported again: otherwise a quarter of its timeout.
const IDLE_REPORT_RETRY: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// Shards: a power of two, at most 256 ([`SlotRef`]).
pub(crate) const SHARDS: usize = 256;

/// One member's table.
pub(crate) struct Table {
    shards: Box<[Mutex<Shard>]>,
    /// The index of the sessions.
    pub(crate) ids: IdIndex,
    /// The index of the half-open sessions.
    pub(crate) half_open_ids: IdIndex,
    /// The number of half-open sessions by source address.
    pub(crate) half_open_by_source: SourceSketch,
    /// A bit for each shard that has queries which were not yet sent to the peers.
    unsent_queries: [AtomicU64; SHARDS / 64],
    /// The copy for the snapshot that was started last.
    copy: Mutex<Option<Arc<CopyOnWrite>>>,
    /// Held while a shard is scrubbed.
    scrubbing: Mutex<()>,
    hasher: FixedState,
    /// The seed of `ids`.
    ids_seed: u64,
}

/// The part of the table that one lock protects. Aligned so that two locks never share a cache line.
#[repr(align(128))]
pub(crate) struct Shard {
    pub(crate) sessions: Sessions,
    pub(crate) half_open: HalfOpenTable,
    pub(crate) queries: PeerQueries,
    pub(crate) provisional: ProvisionalSegments,
    pub(crate) fragments: FragmentTable,
    /// Connections that have ended, whose segments may be answered.
    pub(crate) ended: EndedConnections,
    /// Sessions that have both FINs or a RST, with the time from which on a peer's close is overdue.
    pub(crate) finished: VecDeque<(Time, SessionId, u32)>,
    /// The number of half-open sessions that were evicted for lack of room.
    pub(crate) evicted: u64,
    /// How far the snapshot in the making has copied this shard.
    copy: ShardCopy,
    /// How far this shard is scrubbed.
    scrub: ShardScrub,
    /// The sum of the sessions' digests, updated with each command.
    digest: u64,
}

/// The result of [`Sessions::report_idle`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IdleReport {
    /// This session is idle.
    Idle(SessionId),
    /// A session was active again since it was found idle.
    ActiveAgain,
    /// No session is left.
    NoneLeft,
}

/// One shard's sessions.
#[derive(Default)]
pub(crate) struct Sessions {
    slab: Slab<Session>,
    index: TupleIndex,
    /// Sessions with progress that was not yet published, oldest first. The capacity suffices for all sessions.
    dirty: Vec<u32>,
    wheel: Wheel,
    counts: StateCounts,
    /// The state as which each session is counted, by slot.
    counted: Vec<State>,
}

impl Sessions {
    pub(crate) fn find(&self, hash: u64, tuple: &Tuple) -> Option<u32> {
        let is_it = |slot: &u32| self.slab.get(*slot).is_some_and(|s| s.direction(tuple).is_some());
        self.index.candidates(hash).find(is_it)
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&Session> {
        self.slab.get(slot)
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Session> {
        self.slab.get_mut(slot)
    }

    /// The number of slots, used or not: the end of a scan.
    pub(crate) fn slots(&self) -> u32 {
        self.slab.slots()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.slab.iter()
    }

    /// The number of sessions by protocol and state. A session whose state changed is counted in the new one from its next
    /// packet or timer on.
    pub(crate) fn counts(&self) -> &StateCounts {
        &self.counts
    }

    /// Counts a session in its present state.
    pub(crate) fn recount(&mut self, slot: u32) {
        if let (Some(session), Some(counted)) = (self.slab.get(slot), self.counted.get_mut(slot as usize)) {
            let state = session.state();
            if state != *counted {
                let protocol = session.original().protocol;
                self.counts.remove(protocol, *counted);
                self.counts.add(protocol, state);
                *counted = state;
            }
        }
    }

    /// Records that a packet of the session passed.
    pub(crate) fn mark_dirty(&mut self, slot: u32) {
        self.recount(slot);
        if let Some(session) = self.slab.get_mut(slot)
            && !session.local.flags.has(SessionFlag::Dirty)
            && self.dirty.len() < self.dirty.capacity()
        {
            session.local.flags.set(SessionFlag::Dirty, true);
            self.dirty.push(slot);
        }
    }

    /// Takes the list of dirty sessions and leaves `empty` in its place.
    pub(crate) fn take_dirty(&mut self, mut empty: Vec<u32>) -> Vec<u32> {
        empty.clear();
        empty.reserve(self.slab.len());
        std::mem::replace(&mut self.dirty, empty)
    }

    fn insert(&mut self, hash: u64, session: Session) -> u32 {
        let (state, protocol) = (session.state(), session.original().protocol);
        let slot = self.slab.insert(session);
        self.counts.add(protocol, state);
        if self.counted.len() <= slot as usize {
            self.counted.resize(self.slab.slots() as usize, state);
        }
        self.counted[slot as usize] = state;
        // Reserved here, so that no packet has to allocate.
        self.dirty.reserve(self.slab.len().saturating_sub(self.dirty.len()));
        self.index.insert(hash, slot);
        slot
    }

    fn remove(&mut self, hash: u64, slot: u32) -> Option<Session> {
        self.wheel.unlink(&mut self.slab, slot);
        self.index.remove(hash, slot);
        let session = self.slab.remove(slot)?;
        if let Some(counted) = self.counted.get(slot as usize) {
            self.counts.remove(session.original().protocol, *counted);
        }
        Some(session)
    }

    /// Arms the timer of a session, or queues the session for [`Sessions::report_idle`] if its timeout is over. To be called
    /// when the session may expire earlier than before.
    pub(crate) fn arm(&mut self, slot: u32, now: Time, timeouts: &Timeouts) {
        self.recount(slot);
        match self.slab.get(slot).map(|session| session.remaining(now, timeouts)) {
            Some(Duration::ZERO) => self.wheel.link_idle(&mut self.slab, slot),
            Some(remaining) => self.wheel.arm(&mut self.slab, slot, now, now + remaining),
            None => {}
        }
    }

    /// Processes one session whose timer has fired. Returns whether there was one.
    pub(crate) fn process_due(&mut self, now: Time, timeouts: &Timeouts) -> bool {
        let due = self.wheel.pop_due(&mut self.slab, now);
        due.inspect(|&slot| self.arm(slot, now, timeouts)).is_some()
    }

    /// Whether [`Sessions::report_idle`] has a session to report.
    pub(crate) fn has_idle(&self) -> bool {
        self.wheel.has_idle()
    }

    /// Takes one session from the queue of idle sessions, and arms its timer again.
    pub(crate) fn report_idle(&mut self, now: Time, timeouts: &Timeouts) -> IdleReport {
        let Some(slot) = self.wheel.pop_idle(&mut self.slab) else { return IdleReport::NoneLeft };
        let idle = self.slab.get(slot).filter(|s| s.is_idle(now, timeouts)).map(|s| (s.id(), s.timeout(timeouts)));
        let Some((id, timeout)) = idle else {
            self.arm(slot, now, timeouts);
            return IdleReport::ActiveAgain;
        };
        // The session stays if a peer has seen it recently, or does not reply.
        let retry = (timeout / 4).clamp(*IDLE_REPORT_RETRY.start(), *IDLE_REPORT_RETRY.end());
        self.wheel.arm_coarse(&mut self.slab, slot, now, now + retry);
        IdleReport::Idle(id)
    }
}

impl Table {
    pub(crate) fn new(config: &Config) -> Table {
        Table {
            shards: (0..SHARDS)
                .map(|_| {
                    Mutex::new(Shard {
                        sessions: Sessions::default(),
                        half_open: HalfOpenTable::default(),
                        queries: PeerQueries::default(),
                        provisional: ProvisionalSegments::default(),
                        fragments: FragmentTable::default(),
                        ended: EndedConnections::default(),
                        finished: VecDeque::new(),
                        evicted: 0,
                        copy: ShardCopy::default(),
                        scrub: ShardScrub::default(),
                        digest: 0,
                    })
                })
                .collect(),
            ids: IdIndex::new(config.seed),
            half_open_ids: IdIndex::new(config.seed.wrapping_add(1)),
            half_open_by_source: SourceSketch::new(config.seed.wrapping_add(2)),
            unsent_queries: Default::default(),
            copy: Mutex::default(),
            scrubbing: Mutex::default(),
            ids_seed: config.seed,
            hasher: FixedState::with_seed(config.seed),
        }
    }

    /// Sets the maximum number of half-open sessions; rounded up to a multiple of 256, because each shard has its own share. A
    /// shard that has more shrinks with the next ones that it gets.
    pub(crate) fn set_max_half_open(&self, max: usize) {
        let share = max.div_ceil(SHARDS).max(1);
        for number in self.numbers() {
            self.shard(number).half_open.set_max_entries(share);
        }
    }

    /// The hash of a tuple. It selects the shard and the index entry, and is the key that held packets wait for.
    pub(crate) fn hash(&self, tuple: &Tuple) -> u64 {
        tuple.symmetric_hash(&self.hasher)
    }

    pub(crate) fn hasher(&self) -> &FixedState {
        &self.hasher
    }

    /// The number of a tuple's shard, from bits that the index of the shard does not use.
    pub(crate) fn number(hash: u64) -> u8 {
        (hash >> 40) as u8
    }

    pub(crate) fn shard(&self, number: u8) -> MutexGuard<'_, Shard> {
        self.shards[usize::from(number)].lock()
    }

    pub(crate) fn shard_for(&self, hash: u64) -> MutexGuard<'_, Shard> {
        self.shard(Self::number(hash))
    }

    pub(crate) fn numbers(&self) -> impl Iterator<Item = u8> + use<> {
        0..=u8::MAX
    }

    /// Adds a session to its shard, which the caller has locked.
    fn insert(&self, shard: &mut Shard, hash: u64, mut session: Session, now: Time, timeouts: &Timeouts) -> u32 {
        let id = session.id();
        // The links are those of an earlier slot, if any.
        session.local.links = Links::NONE;
        let dirty = session.local.flags.has(SessionFlag::Dirty);
        session.local.flags.set(SessionFlag::Dirty, false);
        let slot = shard.sessions.insert(hash, session);
        shard.sessions.arm(slot, now, timeouts);
        if dirty {
            shard.sessions.mark_dirty(slot);
        }
        self.ids.insert(id, SlotRef::new(Self::number(hash), slot));
        slot
    }

    /// Removes a session from its shard, which the caller has locked.
    fn remove(&self, shard: &mut Shard, hash: u64, slot: u32) -> Option<Session> {
        let session = shard.sessions.remove(hash, slot)?;
        self.ids.remove(session.id(), SlotRef::new(Self::number(hash), slot));
        Some(session)
    }

    /// Damages a session as failing memory would: its rule changes, its digest does not. Returns whether the session exists.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn damage(&self, id: SessionId) -> bool {
        let Some((mut shard, slot)) = self.locate(id) else { return false };
        shard.sessions.get_mut(slot).map(|session| session.replicated_mut().damage()).is_some()
    }

    /// Adds a half-open session to its shard, which the caller has locked. Evicts the oldest one of the same tuple if that
    /// has [`half_open::MAX_PER_TUPLE`], and the oldest one of all if the shard is full.
    ///
    /// An entry of the same handshake that was reset is removed: its reset does not apply to the new handshake.
    pub(crate) fn insert_half_open(&self, shard: &mut Shard, hash: u64, open: HalfOpen, now: Time) -> u32 {
        let was_reset = |slot: &u32| {
            let same =
                |h: &HalfOpenEntry| h.open.original == open.original && same_ends(&h.open.protocol, &open.protocol);
            shard.half_open.get(*slot).is_some_and(|half| half.aborted && same(half))
        };
        let reset: Vec<u32> = shard.half_open.lookup(hash, &open.original).filter(was_reset).collect();
        for slot in reset {
            self.remove_half_open(shard, slot);
        }
        let of_tuple = || shard.half_open.lookup(hash, &open.original);
        if of_tuple().count() >= half_open::MAX_PER_TUPLE {
            let oldest = of_tuple().min_by_key(|&slot| shard.half_open.get(slot).map(|h| h.last));
            if let Some(slot) = oldest {
                self.remove_half_open(shard, slot);
            }
        }
        // Two, so that a table whose maximum was lowered shrinks, and no packet pays for it all.
        for _ in 0..2 {
            if shard.half_open.is_full()
                && let Some(slot) = shard.half_open.oldest()
            {
                shard.evicted += 1;
                self.remove_half_open(shard, slot);
            }
        }
        if let Some(slot) = shard.sessions.find(hash, &open.original)
            && let Some(session) = shard.sessions.get_mut(slot)
        {
            session.local.flags.set(SessionFlag::Contested, true);
        }
        shard.ended.forget(hash);
        let id = open.id;
        self.half_open_by_source.add(open.original.src);
        let slot = shard.half_open.insert(hash, open, now);
        self.half_open_ids.insert(id, SlotRef::new(Self::number(hash), slot));
        slot
    }

    /// Removes a half-open session from its shard, which the caller has locked.
    pub(crate) fn remove_half_open(&self, shard: &mut Shard, slot: u32) -> Option<HalfOpenEntry> {
        let half = shard.half_open.remove(slot)?;
        self.half_open_by_source.remove(half.source());
        self.half_open_ids.remove(half.open.id, SlotRef::new(Self::number(half.hash()), slot));
        Some(half)
    }

    /// Registers a worker that waits for a hint about a tuple. The caller has locked the shard of the tuple.
    pub(crate) fn await_hint(&self, shard: &mut Shard, hash: u64, tuple: &Tuple, context: &Context<'_>) {
        shard.queries.await_hint(hash, tuple, context.worker, context.now);
        let number = usize::from(Self::number(hash));
        // The bit is set and cleared under the lock of the shard.
        self.unsent_queries[number / 64].fetch_or(1 << (number % 64), Ordering::Relaxed);
    }

    /// Sends the queries that are due to the peers. Its cost is proportional to the shards with unsent queries.
    pub(crate) fn send_queries(&self, now: Time, events: &mut Vec<Event>) {
        for (word, bits) in self.unsent_queries.iter().enumerate() {
            let mut left = bits.load(Ordering::Relaxed);
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                let mut shard = self.shard((word as u32 * 64 + bit) as u8);
                if !shard.queries.send_due(now, events) {
                    bits.fetch_and(!(1 << bit), Ordering::Relaxed);
                }
            }
        }
    }

    /// Changes the id of a half-open session.
    pub(crate) fn rename_half_open(&self, shard: &mut Shard, slot: u32, id: SessionId) {
        if let Some(half) = shard.half_open.get_mut(slot) {
            let at = SlotRef::new(Self::number(half.hash()), slot);
            self.half_open_ids.remove(half.open.id, at);
            half.open.id = id;
            self.half_open_ids.insert(id, at);
        }
    }

    /// Locks the shard of the session with this id. Returns the shard and the slot of the session.
    pub(crate) fn locate(&self, id: SessionId) -> Option<(MutexGuard<'_, Shard>, u32)> {
        self.ids.candidates(id).find_map(|at| {
            let shard = self.shard(at.shard());
            let here = shard.sessions.get(at.slot()).is_some_and(|s| s.id() == id);
            here.then_some((shard, at.slot()))
        })
    }

    /// The same as [`Table::locate`] for half-open sessions.
    pub(crate) fn locate_half_open(&self, id: SessionId) -> Option<(MutexGuard<'_, Shard>, u32)> {
        self.half_open_ids.candidates(id).find_map(|at| {
            let shard = self.shard(at.shard());
            let here = shard.half_open.get(at.slot()).is_some_and(|h| h.open.id == id);
            here.then_some((shard, at.slot()))
        })
    }
}
