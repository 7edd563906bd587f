//! Keys that workers hold unmatched packets for: who is to be woken when a hint or an apply brings what they wait for.
//!
//! A ring of fixed size per shard: a flood of unmatched packets overwrites the oldest key, whose packets then simply
//! expire in their workers' hold buffers.

use std::time::Duration;

use crate::event::{Event, Hint};
use crate::time::Time;
use crate::tuple::Tuple;

/// Keys per shard.
const RING: usize = 64;

/// For this long the hint that a packet waits for may well be under way. Then the others are asked.
pub(crate) const UNDER_WAY: Duration = Duration::from_millis(5);

/// After this time without an answer the others are asked again.
pub(crate) const ASK_AGAIN: Duration = Duration::from_millis(250);

/// For this time after an unanswered question, nobody is taken to know.
const UNANSWERED: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
struct Entry {
    key: u64,
    workers: u64,
    /// Since when it is awaited, and the others are asked, or soon will be.
    asked: Time,
    /// What they are still to be asked about.
    question: Option<Tuple>,
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

    /// `worker` waits for `key`; the others were asked already.
    pub(crate) fn wait_for_answer(&mut self, key: u64, worker: u8, now: Time) {
        self.entry(key, now).workers |= 1 << (worker & 63);
    }

    /// `worker` waits for `key`; if it does so for longer than a hint is under way, the others are to be asked about `tuple`.
    pub(crate) fn wait(&mut self, key: u64, tuple: &Tuple, worker: u8, now: Time) {
        let new = self.asked(key, now) != Asked::Now;
        let entry = self.entry(key, now);
        entry.workers |= 1 << (worker & 63);
        if new {
            (entry.asked, entry.question) = (now, Some(*tuple));
        }
    }

    /// `worker` waits for what the log is to bring. Is that to be proposed, for the first time or once more?
    pub(crate) fn wait_for_log(&mut self, key: u64, worker: u8, now: Time) -> bool {
        let propose = self.asked(key, now) != Asked::Now;
        let entry = self.entry(key, now);
        entry.workers |= 1 << (worker & 63);
        if propose {
            entry.asked = now;
        }
        propose
    }

    fn entry(&mut self, key: u64, now: Time) -> &mut Entry {
        let place = match self.entries.iter().position(|e| e.key == key) {
            Some(place) => place,
            None => {
                let entry = Entry { key, workers: 0, asked: now, question: None };
                if self.entries.len() < RING {
                    self.entries.push(entry);
                    self.entries.len() - 1
                } else {
                    let place = self.next;
                    self.entries[place] = entry;
                    self.next = (place + 1) % RING;
                    place
                }
            }
        };
        &mut self.entries[place]
    }

    /// Asks the others what has been awaited for longer than a hint is under way. Is more to be asked later?
    pub(crate) fn ask(&mut self, now: Time, events: &mut Vec<Event>) -> bool {
        let mut later = false;
        for entry in self.entries.iter_mut().filter(|e| e.question.is_some()) {
            if now.since(entry.asked) < UNDER_WAY {
                later = true;
            } else if let Some(tuple) = entry.question.take() {
                events.push(Event::Hint(Hint::Ask(tuple)));
            }
        }
        later
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
    use crate::testing::tuple;

    fn asks(awaited: &mut Awaited, now: Time) -> usize {
        let mut events = Vec::new();
        awaited.ask(now, &mut events);
        events.len()
    }

    #[test]
    fn asks_once_and_remembers_workers() {
        let mut awaited = Awaited::default();
        let (t, tuple) = (Time(1_000_000_000), tuple(1));
        assert_eq!(awaited.asked(5, t), Asked::No);
        awaited.wait(5, &tuple, 0, t);
        awaited.wait(5, &tuple, 3, t);
        assert_eq!(awaited.asked(5, t), Asked::Now);
        assert_eq!(asks(&mut awaited, t + UNDER_WAY / 2), 0, "the hint may be under way");
        assert_eq!(asks(&mut awaited, t + UNDER_WAY), 1);
        assert_eq!(asks(&mut awaited, t + 2 * UNDER_WAY), 0);
        assert_eq!(awaited.asked(5, t + ASK_AGAIN), Asked::InVain);
        awaited.wait(5, &tuple, 3, t + ASK_AGAIN);
        assert_eq!(asks(&mut awaited, t + ASK_AGAIN + UNDER_WAY), 1);
        assert_eq!(awaited.take(5), 0b1001);
        assert_eq!(awaited.take(5), 0);
        awaited.wait_for_answer(6, 1, t);
        assert_eq!(asks(&mut awaited, t + UNDER_WAY), 0);
        // What came in time is not asked for.
        assert!(awaited.wait_for_log(8, 1, t) && !awaited.wait_for_log(8, 2, t + ASK_AGAIN / 2));
        assert!(awaited.wait_for_log(8, 2, t + ASK_AGAIN), "the proposal may be lost");
        assert_eq!((asks(&mut awaited, t + 2 * ASK_AGAIN), awaited.take(8)), (0, 0b110));
        awaited.wait(7, &tuple, 1, t);
        assert_eq!(awaited.take(7), 2);
        assert_eq!(asks(&mut awaited, t + UNDER_WAY), 0);
    }

    #[test]
    fn a_flood_overwrites_the_oldest() {
        let mut awaited = Awaited::default();
        for key in 0..=RING as u64 {
            awaited.wait(key, &tuple(1), 1, Time(1));
        }
        assert_eq!(awaited.take(0), 0);
        assert_eq!(awaited.take(RING as u64), 2);
        assert_eq!(awaited.take_all().count(), RING - 1);
    }
}
