//! Progress of live sessions: what members publish of them to each other, and what follows when a member falls silent.
//!
//! Each session that forwarded packets here is published once per round, however many packets they were. What does not fit
//! into one batch is the beginning of the next one. So each batch is complete up to a moment, which is sent with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::engine::Engine;
use crate::event::Progress;
use crate::id::MemberId;
use crate::table::SHARDS;
use crate::table::session::{Session, SessionFlag};
use crate::time::{Stamp17ms, Time};
use crate::track::tcp::Track;
use crate::tuple::PerDirection;
use crate::types::Wake;
use crate::verdict::HoldKey;

/// Sessions that are read under one lock, for which packets may wait.
const SESSIONS_PER_LOCK: usize = 256;

/// Where the publication of progress goes on.
pub(crate) struct ProgressCursor {
    /// The shard in progress.
    shard: u8,
    /// Slots of this shard's dirty sessions that are not published yet.
    remaining: Vec<u32>,
    /// When the list of this shard's dirty sessions was taken.
    taken_at: Time,
    /// Up to when each shard's progress is published.
    published_until: [Time; SHARDS],
}

impl Default for ProgressCursor {
    fn default() -> ProgressCursor {
        ProgressCursor { shard: 0, remaining: Vec::new(), taken_at: Time::ZERO, published_until: [Time::ZERO; SHARDS] }
    }
}

/// Packets that passed although no live member confirmed their sequence numbers, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TakeoverCounts {
    /// Accepted within the takeover bound.
    pub within_bound: u64,
    /// Accepted provisionally.
    pub provisional: u64,
}

/// [`TakeoverCounts`] as the packet path counts them.
#[derive(Default, Debug)]
pub(crate) struct TakeoverCounters {
    pub(crate) within_bound: AtomicU64,
    pub(crate) provisional: AtomicU64,
}

impl Engine {
    /// Hands out the progress of sessions that forwarded packets here since their last publication, at most `max` of them,
    /// those that have waited longest first. Returns the time up to which all progress has been handed out. `with_traffic`:
    /// whether their packet and byte counts are included.
    pub fn collect_progress(&self, now: Time, max: usize, with_traffic: bool, each: &mut dyn FnMut(&Progress)) -> Time {
        let mut cursor = self.progress_cursor.lock();
        let cursor = &mut *cursor;
        let mut left = max;
        let mut batch = Vec::with_capacity(SESSIONS_PER_LOCK.min(max));
        for _ in 0..=SHARDS {
            if cursor.remaining.is_empty() {
                cursor.taken_at = now;
                let empty = std::mem::take(&mut cursor.remaining);
                cursor.remaining = self.table.shard(cursor.shard).sessions.take_dirty(empty);
            }
            while left > 0 && !cursor.remaining.is_empty() {
                let first = cursor.remaining.len().saturating_sub(SESSIONS_PER_LOCK.min(left));
                {
                    let mut shard = self.table.shard(cursor.shard);
                    for slot in cursor.remaining.drain(first..) {
                        let session = shard.sessions.get_mut(slot).filter(|s| s.local.flags.has(SessionFlag::Dirty));
                        batch.extend(session.map(|session| session.take_progress(now, with_traffic)));
                    }
                }
                left = left.saturating_sub(batch.len());
                batch.drain(..).for_each(|progress| each(&progress));
            }
            if !cursor.remaining.is_empty() {
                break;
            }
            cursor.published_until[usize::from(cursor.shard)] = cursor.taken_at;
            cursor.shard = cursor.shard.wrapping_add(1);
        }
        cursor.published_until.iter().copied().min().unwrap_or(Time::ZERO)
    }

    /// Merges the progress of a session at another member.
    pub fn merge_progress(&self, now: Time, from: MemberId, progress: &Progress) {
        if from == self.config.member {
            return;
        }
        let Some((mut shard, slot)) = self.table.locate(progress.id) else { return };
        let Some(session) = shard.sessions.get_mut(slot) else { return };
        let seen = Stamp17ms::rounded_up(now - Duration::from_millis(progress.idle_ms.into()));
        if seen.is_after(session.local.last_active) {
            session.local.last_active = seen;
        }
        if let (Some(track), Some(snapshot)) = (&mut session.local.track, &progress.tcp) {
            track.merge_snapshot(snapshot, now);
        }
        if let Some(traffic) = &progress.traffic {
            session.local.add_traffic(traffic);
        }
        shard.sessions.recount(slot);
    }

    /// Notes that the traffic of another member between `from` and `until` is unknown here.
    pub fn mark_blind(&self, from: Time, until: Time) {
        self.blind_until.fetch_max(until.0, Ordering::Relaxed);
        self.blind_intervals.rcu(|known| {
            let mut blind = **known;
            blind.insert(from, until);
            Arc::new(blind)
        });
    }

    /// Sets how many of the other members are silent and are not queried. If that changes, the packets that wait for
    /// replies are judged again.
    pub fn set_silent_peers(&self, members: u32, wake: &mut dyn Wake) {
        if self.silent_peers.swap(members, Ordering::Relaxed) == members {
            return;
        }
        for number in self.table.numbers() {
            let waiting: Vec<_> = self.table.shard(number).queries.take_all().collect();
            for (key, workers) in waiting {
                wake.wake(workers, HoldKey(key));
            }
        }
    }

    /// How many packets have passed although no live member confirmed their sequence numbers.
    #[must_use]
    pub fn takeover_counts(&self) -> TakeoverCounts {
        TakeoverCounts {
            within_bound: self.takeover_counters.within_bound.load(Ordering::Relaxed),
            provisional: self.takeover_counters.provisional.load(Ordering::Relaxed),
        }
    }

    /// Whether this connection's sequence numbers may have moved unseen: at a silent member, or here before a restart.
    pub(crate) fn may_have_moved_unseen(&self, track: &Track, now: Time) -> bool {
        if track.has_incomplete_history() {
            return true;
        }
        // Nearly always there was no blind interval at all, or none since the last packet.
        let blind_until = Time(self.blind_until.load(Ordering::Relaxed));
        if blind_until == Time::ZERO {
            return false;
        }
        let since_blind = now.since(blind_until);
        let ages = track.confirmation_ages(now);
        let confirmed_before = |age: Option<Duration>| age.is_none_or(|age| age + Stamp17ms::UNIT >= since_blind);
        ages.iter().copied().any(confirmed_before) && self.max_unseen_bytes(ages, now) != PerDirection::default()
    }

    /// How many bytes each end may have sent unseen, by the time since its number was last confirmed.
    pub(crate) fn max_unseen_bytes(&self, ages: PerDirection<Option<Duration>>, now: Time) -> PerDirection<i64> {
        let blind = self.blind_intervals.load();
        // Ages are too long by up to one unit. A confirmation just after an interval must not count as one within it.
        let shortened = |age: Option<Duration>| age.map(|age| age.saturating_sub(Stamp17ms::UNIT));
        ages.map(|age| blind.max_unseen_bytes(shortened(age), self.limits.takeover_rate(), now))
    }
}

impl Session {
    /// What is to be published of this session, which then counts as published.
    fn take_progress(&mut self, now: Time, with_traffic: bool) -> Progress {
        self.local.flags.set(SessionFlag::Dirty, false);
        let traffic = with_traffic.then(|| self.local.take_unpublished_traffic());
        Progress {
            id: self.id(),
            idle_ms: u32::try_from(self.local.idle(now).as_millis()).unwrap_or(u32::MAX),
            tcp: self.local.track.as_ref().map(|track| track.snapshot(now, true)),
            traffic,
        }
    }
}
