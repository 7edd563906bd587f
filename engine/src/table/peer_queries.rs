//! Queries to the peers about unmatched packets: the key that the packets are held for, and the workers to wake when a hint or
//! an applied command resolves it.
//!
//! A ring of fixed size per shard. A flood of unmatched packets overwrites the oldest key, whose packets then expire in the
//! hold buffers of their workers.

use std::time::Duration;

use crate::event::{Event, Hint};
use crate::time::Time;
use crate::tuple::Tuple;
use crate::worker_set::WorkerSet;

/// Maximum number of keys per shard.
const MAX_QUERIES: usize = 64;

/// The time in which the hint that a packet waits for usually arrives. The query is sent after it.
pub(crate) const HINT_DELAY: Duration = Duration::from_millis(5);

/// The time without a reply after which a query is sent again.
pub(crate) const QUERY_RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// The time after an unanswered query in which no peer is assumed to know the key.
const UNANSWERED_TTL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
struct Entry {
    key: u64,
    workers: WorkerSet,
    /// When the wait started. The query is sent then, or [`HINT_DELAY`] later.
    sent: Time,
    /// The tuple of the query, until it is sent.
    query: Option<Tuple>,
}

/// The state of the query for a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum QueryState {
    /// No query was sent recently.
    NotSent,
    /// A query was sent, and a reply may still arrive.
    Outstanding,
    /// A query was sent, and no peer replied.
    Unanswered,
}

/// The ring of one shard.
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

    /// Registers a worker that waits for `key`. The query was already sent.
    pub(crate) fn await_reply(&mut self, key: u64, worker: u8, now: Time) {
        self.entry(key, now).workers.insert(worker);
    }

    /// Registers a worker that waits for `key`. A query about `tuple` follows if the wait is longer than [`HINT_DELAY`].
    pub(crate) fn await_hint(&mut self, key: u64, tuple: &Tuple, worker: u8, now: Time) {
        let state = self.state(key, now);
        let entry = self.entry(key, now);
        entry.workers.insert(worker);
        if state != QueryState::Outstanding {
            (entry.sent, entry.query) = (now, Some(*tuple));
        }
    }

    /// Registers a worker that waits for a command. Returns whether the command must be proposed, for the first time or again.
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

    /// Sends the queries that have waited for [`HINT_DELAY`]. Returns whether others are still to be sent.
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

    /// Removes `key`. Returns the workers that wait for it.
    pub(crate) fn take(&mut self, key: u64) -> WorkerSet {
        let Some(at) = self.entries.iter().position(|e| e.key == key) else { return WorkerSet::EMPTY };
        self.next = 0;
        self.entries.swap_remove(at).workers
    }

    /// Removes all keys. Returns them with their workers.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = (u64, WorkerSet)> {
        self.next = 0;
        std::mem::take(&mut self.entries).into_iter().map(|e| (e.key, e.workers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tuple;

    fn sent(queries: &mut PeerQueries, now: Time) -> usize {
        let mut events = Vec::new();
        queries.send_due(now, &mut events);
        events.len()
    }

    #[test]
    fn peer_query_is_sent_once_and_remembers_workers() {
        let mut queries = PeerQueries::default();
        let (t, tuple) = (Time(1_000_000_000), tuple(1));
        assert_eq!(queries.state(5, t), QueryState::NotSent);
        queries.await_hint(5, &tuple, 0, t);
        queries.await_hint(5, &tuple, 3, t);
        assert_eq!(queries.state(5, t), QueryState::Outstanding);
        assert_eq!(sent(&mut queries, t + HINT_DELAY / 2), 0, "the hint may be under way");
        assert_eq!(sent(&mut queries, t + HINT_DELAY), 1);
        assert_eq!(sent(&mut queries, t + 2 * HINT_DELAY), 0);
        assert_eq!(queries.state(5, t + QUERY_RETRY_INTERVAL), QueryState::Unanswered);
        queries.await_hint(5, &tuple, 3, t + QUERY_RETRY_INTERVAL);
        assert_eq!(sent(&mut queries, t + QUERY_RETRY_INTERVAL + HINT_DELAY), 1);
        assert_eq!(queries.take(5), WorkerSet::from([0, 3]));
        assert_eq!(queries.take(5), WorkerSet::EMPTY);
        queries.await_reply(6, 1, t);
        assert_eq!(sent(&mut queries, t + HINT_DELAY), 0);
        // What came in time is not asked for.
        assert!(queries.await_commit(8, 1, t) && !queries.await_commit(8, 2, t + QUERY_RETRY_INTERVAL / 2));
        assert!(queries.await_commit(8, 2, t + QUERY_RETRY_INTERVAL), "the proposal may be lost");
        assert_eq!((sent(&mut queries, t + 2 * QUERY_RETRY_INTERVAL), queries.take(8)), (0, WorkerSet::from([1, 2])));
        queries.await_hint(7, &tuple, 1, t);
        assert_eq!(queries.take(7), WorkerSet::of(1));
        assert_eq!(sent(&mut queries, t + HINT_DELAY), 0);
    }

    #[test]
    fn peer_queries_overwrite_the_oldest_in_a_flood() {
        let mut queries = PeerQueries::default();
        for key in 0..=MAX_QUERIES as u64 {
            queries.await_hint(key, &tuple(1), 1, Time(1));
        }
        assert_eq!(queries.take(0), WorkerSet::EMPTY);
        assert_eq!(queries.take(MAX_QUERIES as u64), WorkerSet::of(1));
        assert_eq!(queries.take_all().count(), MAX_QUERIES - 1);
    }
}
