//! Progress: what members tell each other of live sessions, and what follows when one of them falls silent.
//!
//! Each session of which a packet passed here is told of once, however many they were; what one telling has no room for,
//! the next one begins with. So each telling is complete up to a moment, which goes with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::engine::{Engine, Wake};
use crate::event::Progress;
use crate::id::MemberId;
use crate::table::SHARDS;
use crate::table::session::{Session, SessionFlag};
use crate::time::{Coarse, Time};
use crate::track::tcp::Track;
use crate::verdict::HoldKey;

/// Sessions that are told of under one lock, for which packets may wait.
const LOCK_BATCH: usize = 256;

/// How far the telling is.
pub(crate) struct Telling {
    shard: u8,
    /// What is left of that shard's list.
    rest: Vec<u32>,
    /// Up to when each shard has been told of.
    until: [Time; SHARDS],
    /// When the present shard's list was taken.
    taken: Time,
}

impl Default for Telling {
    fn default() -> Telling {
        Telling { shard: 0, rest: Vec::new(), until: [Time::ZERO; SHARDS], taken: Time::ZERO }
    }
}

/// What became of packets whose member was lost.
#[derive(Default, Debug)]
pub(crate) struct TakeoverCounters {
    /// Packets that were accepted beyond what is near, within what may have passed unseen.
    pub(crate) moved: AtomicU64,
    /// Packets that were taken at their word, because nobody alive knows.
    pub(crate) adopted: AtomicU64,
}

impl Engine {
    /// Tells of the sessions that passed packets here since they were last told of: the longest waiting first, at most `most`,
    /// `full` with their traffic. Yields the time up to which everything has been told.
    pub fn progress(&self, now: Time, most: usize, full: bool, each: &mut dyn FnMut(&Progress)) -> Time {
        let mut telling = self.telling.lock();
        let telling = &mut *telling;
        let mut left = most;
        let mut told = Vec::with_capacity(LOCK_BATCH.min(most));
        for _ in 0..=SHARDS {
            if telling.rest.is_empty() {
                telling.taken = now;
                let empty = std::mem::take(&mut telling.rest);
                telling.rest = self.table.shard(telling.shard).sessions.take_dirty(empty);
            }
            while left > 0 && !telling.rest.is_empty() {
                let piece = telling.rest.len().saturating_sub(LOCK_BATCH.min(left));
                {
                    let mut shard = self.table.shard(telling.shard);
                    for slot in telling.rest.drain(piece..) {
                        let session = shard.sessions.get_mut(slot).filter(|s| s.flags.has(SessionFlag::Dirty));
                        told.extend(session.map(|session| session.tell(now, full)));
                    }
                }
                left = left.saturating_sub(told.len());
                told.drain(..).for_each(|progress| each(&progress));
            }
            if !telling.rest.is_empty() {
                break;
            }
            telling.until[usize::from(telling.shard)] = telling.taken;
            telling.shard = telling.shard.wrapping_add(1);
        }
        telling.until.iter().copied().min().unwrap_or(Time::ZERO)
    }

    /// Takes in what another member tells of a session.
    pub fn learn(&self, now: Time, from: MemberId, progress: &Progress) {
        if from == self.config.member {
            return;
        }
        let Some((mut shard, slot)) = self.table.locate(progress.id) else { return };
        let Some(session) = shard.sessions.get_mut(slot) else { return };
        let seen = Coarse::up(now - Duration::from_millis(progress.idle.into()));
        if seen.is_after(session.seen) {
            session.seen = seen;
        }
        if let (Some(track), Some(known)) = (&mut session.track, &progress.known) {
            track.learn(known, now);
        }
        if let Some(traffic) = &progress.traffic {
            session.add_traffic(traffic);
        }
    }

    /// What another member passed between `from` and `until` is not known here.
    pub fn lost(&self, from: Time, until: Time) {
        self.unsure_until.fetch_max(until.0, Ordering::Relaxed);
        self.unsure.rcu(|known| {
            let mut unsure = **known;
            unsure.add(from, until);
            Arc::new(unsure)
        });
    }

    /// So many of the other members are silent: they are not asked. Where that is news, those who wait for their answers are
    /// to judge without them.
    pub fn silent(&self, members: u32, wake: &mut dyn Wake) {
        if self.silent.swap(members, Ordering::Relaxed) == members {
            return;
        }
        for number in self.table.numbers() {
            let waiting: Vec<_> = self.table.shard(number).queries.take_all().collect();
            for (key, workers) in waiting {
                wake.wake(workers, HoldKey(key));
            }
        }
    }

    /// Packets that were accepted within what may have passed unseen after a member was lost, and those that were taken at
    /// their word.
    #[must_use]
    pub fn taken_over(&self) -> (u64, u64) {
        (self.counters.moved.load(Ordering::Relaxed), self.counters.adopted.load(Ordering::Relaxed))
    }

    /// May this connection's numbers have moved unseen: at a member that was lost, or here before a restart?
    pub(crate) fn is_unsure(&self, track: &Track, now: Time) -> bool {
        if track.has_gap() {
            return true;
        }
        // Nearly always nothing has been lost since the last packet.
        let since = now.since(Time(self.unsure_until.load(Ordering::Relaxed)));
        let ages = track.ages(now);
        ages.iter().any(|age| age.is_none_or(|age| age + Coarse::UNIT >= since)) && self.moved(ages, now) != [0; 2]
    }

    /// How far two ends may have moved unseen, in bytes, by the ages of what is known of them.
    pub(crate) fn moved(&self, ages: [Option<Duration>; 2], now: Time) -> [i64; 2] {
        let unsure = self.unsure.load();
        // Ages are too long by up to one unit: what was seen just after a span must not count as seen in it.
        let age = |age: Option<Duration>| age.map(|age| age.saturating_sub(Coarse::UNIT));
        ages.map(|of| unsure.bound(age(of), self.config.takeover_rate, now))
    }
}

impl Session {
    /// What the others are to be told, and no longer.
    fn tell(&mut self, now: Time, full: bool) -> Progress {
        self.flags.set(SessionFlag::Dirty, false);
        let traffic = full.then(|| self.take_untold());
        let idle = self.idle(now).as_millis();
        Progress {
            id: self.id,
            idle: u32::try_from(idle).unwrap_or(u32::MAX),
            known: self.track.as_ref().map(|track| track.progress(now, true)),
            traffic,
        }
    }
}
