//! Keys that workers hold unmatched packets for: who is to be woken when a hint or an apply brings what they wait for.
//!
//! A ring of fixed size per shard: a flood of unmatched packets overwrites the oldest key, whose packets then simply
//! expire in their workers' hold buffers.

use std::time::Duration;

use crate::time::Time;

/// Keys per shard.
const RING: usize = 64;

/// After this time without an answer the others are asked again.
pub(crate) const ASK_AGAIN: Duration = Duration::from_millis(250);

/// For this time after an unanswered question, nobody is taken to know.
const UNANSWERED: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
struct Entry {
    key: u64,
    workers: u64,
    asked: Time,
}

/// What is known of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    /// The others have not been asked lately.
    No,
    /// They have been asked, and may still answer.
    Now,
    /// They were asked, and nobody answered.
    InVain,
}

/// The ring.
#[derive(Default)]
pub(crate) struct Awaited {
    entries: Vec<Entry>,
    next: usize,
}

impl Awaited {
    pub(crate) fn asked(&self, key: u64, now: Time) -> Asked {
        match self.entries.iter().find(|e| e.key == key).map(|e| now.since(e.asked)) {
            Some(age) if age < ASK_AGAIN => Asked::Now,
            Some(age) if age < UNANSWERED => Asked::InVain,
            _ => Asked::No,
        }
    }

    /// `worker` waits for `key`. Returns whether the others are to be asked.
    pub(crate) fn wait(&mut self, key: u64, worker: u8, now: Time) -> bool {
        let workers = 1 << (worker & 63);
        if let Some(entry) = self.entries.iter_mut().find(|e| e.key == key) {
            entry.workers |= workers;
            let ask = now.since(entry.asked) >= ASK_AGAIN;
            if ask {
                entry.asked = now;
            }
            return ask;
        }
        let entry = Entry { key, workers, asked: now };
        if self.entries.len() < RING {
            self.entries.push(entry);
        } else {
            self.entries[self.next] = entry;
            self.next = (self.next + 1) % RING;
        }
        true
    }

    /// The workers that wait for `key`, which then is no longer awaited.
    pub(crate) fn take(&mut self, key: u64) -> u64 {
        let Some(at) = self.entries.iter().position(|e| e.key == key) else { return 0 };
        self.next = 0;
        self.entries.swap_remove(at).workers
    }

    /// All keys, which then are no longer awaited.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = (u64, u64)> {
        self.next = 0;
        std::mem::take(&mut self.entries).into_iter().map(|e| (e.key, e.workers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_once_and_remembers_workers() {
        let mut awaited = Awaited::default();
        let t = Time(1_000_000_000);
        assert_eq!(awaited.asked(5, t), Asked::No);
        assert!(awaited.wait(5, 0, t));
        assert!(!awaited.wait(5, 3, t));
        assert_eq!(awaited.asked(5, t), Asked::Now);
        assert_eq!(awaited.asked(5, t + ASK_AGAIN), Asked::InVain);
        assert!(awaited.wait(5, 3, t + ASK_AGAIN));
        assert_eq!(awaited.take(5), 0b1001);
        assert_eq!(awaited.take(5), 0);
    }

    #[test]
    fn a_flood_overwrites_the_oldest() {
        let mut awaited = Awaited::default();
        for key in 0..=RING as u64 {
            awaited.wait(key, 1, Time(1));
        }
        assert_eq!(awaited.take(0), 0);
        assert_eq!(awaited.take(RING as u64), 2);
        assert_eq!(awaited.take_all().count(), RING - 1);
    }
}
