//! Keys that workers hold unmatched packets for: who is to be woken when a hint or an apply brings what they wait for.
//!
//! A ring of fixed size per shard: a flood of unmatched packets overwrites the oldest key, whose packets then simply
//! expire in their workers' hold buffers.

use std::time::Duration;

use crate::event::{Event, Hint};
use crate::time::Time;
use crate::tuple::Tuple;
use crate::worker_set::WorkerSet;

/// Keys per shard.
const MAX_QUERIES: usize = 64;

/// For this long the hint that a packet waits for may well be under way. Then the others are asked.
pub(crate) const HINT_DELAY: Duration = Duration::from_millis(5);

/// After this time without an answer the others are asked again.
pub(crate) const QUERY_RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// For this time after an unanswered query, nobody is taken to know.
const UNANSWERED_TTL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
struct Entry {
    key: u64,
    workers: WorkerSet,
    /// Since when it is awaited, and the others are asked, or soon will be.
    sent: Time,
    /// What they are still to be asked about.
    query: Option<Tuple>,
}

/// What is known of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum QueryState {
    /// The others have not been asked lately.
    NotSent,
    /// They have been asked, and may still answer.
    Outstanding,
    /// They were asked, and nobody answered.
    Unanswered,
}

/// The ring.
#[derive(Default)]
pub(crate) struct PeerQueries {
    entries: Vec<Entry>,
    next: usize,
}

impl PeerQueries {
    pub(crate) fn state(&self, key: u64, now: Time) -> QueryState {
        match self.entries.iter().find(|e| e.key == key).map(|e| now.since(e.sent)) {
            Some(age) if age < QUERY_RETRY_INTERVAL => QueryState::Outstanding,
            Some(age) if age < UNANSWERED_TTL => QueryState::Unanswered,
            _ => QueryState::NotSent,
        }
    }

    /// `worker` waits for `key`; the others were asked already.
    pub(crate) fn await_reply(&mut self, key: u64, worker: u8, now: Time) {
        self.entry(key, now).workers.insert(worker);
    }

    /// `worker` waits for `key`; if it does so for longer than a hint is under way, the others are to be asked about `tuple`.
    pub(crate) fn await_hint(&mut self, key: u64, tuple: &Tuple, worker: u8, now: Time) {
        let new = self.state(key, now) != QueryState::Outstanding;
        let entry = self.entry(key, now);
        entry.workers.insert(worker);
        if new {
            (entry.sent, entry.query) = (now, Some(*tuple));
        }
    }

    /// `worker` waits for what the log is to bring. Is that to be proposed, for the first time or once more?
    pub(crate) fn await_commit(&mut self, key: u64, worker: u8, now: Time) -> bool {
        let propose = self.state(key, now) != QueryState::Outstanding;
        let entry = self.entry(key, now);
        entry.workers.insert(worker);
        if propose {
            entry.sent = now;
        }
        propose
    }

    fn entry(&mut self, key: u64, now: Time) -> &mut Entry {
        let place = match self.entries.iter().position(|e| e.key == key) {
            Some(place) => place,
            None => {
                let entry = Entry { key, workers: WorkerSet::EMPTY, sent: now, query: None };
                if self.entries.len() < MAX_QUERIES {
                    self.entries.push(entry);
                    self.entries.len() - 1
                } else {
                    let place = self.next;
                    self.entries[place] = entry;
                    self.next = (place + 1) % MAX_QUERIES;
                    place
                }
            }
        };
        &mut self.entries[place]
    }

    /// Asks the others what has been awaited for longer than a hint is under way. Is more to be asked later?
    pub(crate) fn send_due(&mut self, now: Time, events: &mut Vec<Event>) -> bool {
        let mut later = false;
        for entry in self.entries.iter_mut().filter(|e| e.query.is_some()) {
            if now.since(entry.sent) < HINT_DELAY {
                later = true;
            } else if let Some(tuple) = entry.query.take() {
                events.push(Event::Hint(Hint::Query(tuple)));
            }
        }
        later
    }

    /// The workers that wait for `key`. The key is removed.
    pub(crate) fn take(&mut self, key: u64) -> WorkerSet {
        let Some(at) = self.entries.iter().position(|e| e.key == key) else { return WorkerSet::EMPTY };
        self.next = 0;
        self.entries.swap_remove(at).workers
    }

    /// All keys. They are removed.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = (u64, WorkerSet)> {
        self.next = 0;
        std::mem::take(&mut self.entries).into_iter().map(|e| (e.key, e.workers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tuple;

    fn asks(queries: &mut PeerQueries, now: Time) -> usize {
        let mut events = Vec::new();
        queries.send_due(now, &mut events);
        events.len()
    }

    #[test]
    fn asks_once_and_remembers_workers() {
        let mut queries = PeerQueries::default();
        let (t, tuple) = (Time(1_000_000_000), tuple(1));
        assert_eq!(queries.state(5, t), QueryState::NotSent);
        queries.await_hint(5, &tuple, 0, t);
        queries.await_hint(5, &tuple, 3, t);
        assert_eq!(queries.state(5, t), QueryState::Outstanding);
        assert_eq!(asks(&mut queries, t + HINT_DELAY / 2), 0, "the hint may be under way");
        assert_eq!(asks(&mut queries, t + HINT_DELAY), 1);
        assert_eq!(asks(&mut queries, t + 2 * HINT_DELAY), 0);
        assert_eq!(queries.state(5, t + QUERY_RETRY_INTERVAL), QueryState::Unanswered);
        queries.await_hint(5, &tuple, 3, t + QUERY_RETRY_INTERVAL);
        assert_eq!(asks(&mut queries, t + QUERY_RETRY_INTERVAL + HINT_DELAY), 1);
        assert_eq!(queries.take(5), WorkerSet::from([0, 3]));
        assert_eq!(queries.take(5), WorkerSet::EMPTY);
        queries.await_reply(6, 1, t);
        assert_eq!(asks(&mut queries, t + HINT_DELAY), 0);
        // What came in time is not asked for.
        assert!(queries.await_commit(8, 1, t) && !queries.await_commit(8, 2, t + QUERY_RETRY_INTERVAL / 2));
        assert!(queries.await_commit(8, 2, t + QUERY_RETRY_INTERVAL), "the proposal may be lost");
        assert_eq!((asks(&mut queries, t + 2 * QUERY_RETRY_INTERVAL), queries.take(8)), (0, WorkerSet::from([1, 2])));
        queries.await_hint(7, &tuple, 1, t);
        assert_eq!(queries.take(7), WorkerSet::of(1));
        assert_eq!(asks(&mut queries, t + HINT_DELAY), 0);
    }

    #[test]
    fn a_flood_overwrites_the_oldest() {
        let mut queries = PeerQueries::default();
        for key in 0..=MAX_QUERIES as u64 {
            queries.await_hint(key, &tuple(1), 1, Time(1));
        }
        assert_eq!(queries.take(0), WorkerSet::EMPTY);
        assert_eq!(queries.take(MAX_QUERIES as u64), WorkerSet::of(1));
        assert_eq!(queries.take_all().count(), MAX_QUERIES - 1);
    }
}
