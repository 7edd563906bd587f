//! Fragmented datagrams: those whose first fragment was forwarded, and those whose fragments wait for the first one.
//!
//! Two queues of fixed size per shard. A new forwarded first fragment evicts the oldest one; later fragments of the evicted
//! datagram wait, and the peers are queried. A new pending datagram evicts the oldest one only if that has waited for long, so
//! a flood of fragments that belong to no datagram evicts nothing.

use std::collections::VecDeque;
use std::time::Duration;

use crate::event::{Event, FragmentKey, Hint};
use crate::id::ZoneId;
use crate::parse::Fragment;
use crate::time::Time;
use crate::worker_set::WorkerSet;

/// Maximum number of datagrams per shard whose first fragment was forwarded.
pub(crate) const MAX_FORWARDED_FIRSTS: usize = 64;
/// Maximum number of datagrams per shard that wait for their first fragment.
pub(crate) const MAX_PENDING: usize = 32;

/// Maximum time between the fragments of a datagram (reassembly timers: RFC 791: 15 s; Linux: 30 s).
pub(crate) const FORWARDED_FIRST_TTL: Duration = Duration::from_secs(30);

/// Maximum number of runs of a datagram: contiguous ranges of bytes, separated by the gaps that reordering leaves.
pub(crate) const MAX_RUNS: usize = 8;

/// The time without a reply after which a pending datagram may be evicted.
const PENDING_EVICTABLE_AFTER: Duration = Duration::from_millis(250);
/// The lifetime of a pending datagram. No hold is longer.
const PENDING_TTL: Duration = Duration::from_secs(2);
/// The time in which the hint about a first fragment usually arrives. The query is sent after it.
const FIRST_HINT_DELAY: Duration = Duration::from_millis(20);

/// What the later fragments must know of the first one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FirstFragment {
    /// Where its data end.
    pub(crate) end: u16,
    /// The zone that it was forwarded to.
    pub(crate) egress: ZoneId,
}

/// A datagram whose first fragment was forwarded.
#[derive(Clone, Copy)]
struct ForwardedFirst {
    key: u64,
    forwarded_at: Time,
    /// Whether the first fragment passed here. Otherwise it passed at a peer.
    here: bool,
    /// The end of the first fragment.
    first_end: u16,
    /// The zone that it was forwarded to.
    egress: ZoneId,
    /// Start and end, in bytes, of the runs that passed, including the first fragment. An unused entry is empty.
    runs: [(u16, u16); MAX_RUNS],
    /// The end of the datagram, once the last fragment has passed.
    end: Option<u16>,
}

impl ForwardedFirst {
    fn new(key: u64, first: FirstFragment, here: bool, forwarded_at: Time) -> ForwardedFirst {
        let FirstFragment { end: first_end, egress } = first;
        let mut runs = [(0, 0); MAX_RUNS];
        runs[0] = (0, first_end);
        ForwardedFirst { key, forwarded_at, here, first_end, egress, runs, end: None }
    }

    /// Adds a fragment if it overlaps no other one, does not exceed the datagram, and leaves at most [`MAX_RUNS`] runs. Returns
    /// whether it was added.
    fn add(&mut self, fragment: &Fragment) -> bool {
        let begin = fragment.offset;
        let Some(end) = begin.checked_add(fragment.length) else { return false };
        let used = || self.runs.iter().filter(|(begin, end)| begin < end);
        let overlaps = used().any(|&(b, e)| b < end && begin < e);
        let beyond = match (self.end, fragment.more) {
            (Some(known), false) => end != known,
            (Some(known), true) => end > known,
            (None, false) => used().any(|&(_, e)| e > end),
            (None, true) => false,
        };
        if overlaps || beyond || begin >= end {
            return false;
        }
        // Joined with the adjacent runs.
        let (mut all, mut joined) = (self.runs, (begin, end));
        for run in all.iter_mut().filter(|(b, e)| b < e && (*e == begin || *b == end)) {
            joined = (joined.0.min(run.0), joined.1.max(run.1));
            *run = (0, 0);
        }
        let Some(free) = all.iter_mut().find(|(b, e)| b == e) else { return false };
        *free = joined;
        self.runs = all;
        if !fragment.more {
            self.end = Some(end);
        }
        true
    }

    fn is_whole(&self) -> bool {
        self.end.is_some_and(|end| self.runs.contains(&(0, end)))
    }
}

/// A datagram whose fragments wait for the first one, or whose first one was dropped.
#[derive(Clone, Copy)]
struct PendingFragments {
    key: u64,
    datagram: FragmentKey,
    /// The workers that hold fragments of it.
    workers: WorkerSet,
    since: Time,
    /// Whether the query was sent.
    query_sent: bool,
    /// Whether the first fragment was dropped here.
    first_dropped: bool,
}

/// The result for a fragment that is not the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FragmentOutcome {
    /// It may pass, to the zone that the first one was forwarded to.
    Pass(ZoneId),
    /// It overlaps another one, exceeds the datagram, or leaves too many gaps.
    Invalid,
    /// The first one passed at a peer, and hints are not trusted now.
    FirstElsewhere,
    /// The first one is not known.
    FirstUnknown,
}

/// The result of [`FragmentTable::wait`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WaitOutcome {
    /// The worker will be woken.
    Registered,
    /// The first fragment was dropped.
    FirstDropped,
    /// There is no room.
    Full,
}

/// One shard's fragmented datagrams.
#[derive(Default)]
pub(crate) struct FragmentTable {
    /// Oldest first.
    forwarded: VecDeque<ForwardedFirst>,
    /// Oldest first.
    pending: VecDeque<PendingFragments>,
}

impl FragmentTable {
    /// Records that the first fragment passes here. Returns false if a first fragment of this datagram has already passed.
    pub(crate) fn record_first(&mut self, key: u64, first: FirstFragment, now: Time) -> bool {
        self.record(ForwardedFirst::new(key, first, true, now))
    }

    /// Records that the first fragment passed at a peer.
    pub(crate) fn record_peer_first(&mut self, key: u64, first: FirstFragment, now: Time) {
        self.record(ForwardedFirst::new(key, first, false, now));
    }

    fn record(&mut self, new: ForwardedFirst) -> bool {
        if let Some(known) = self.forwarded.iter_mut().rev().find(|known| known.key == new.key) {
            let expired = new.forwarded_at.since(known.forwarded_at) > FORWARDED_FIRST_TTL;
            if expired {
                *known = new;
            }
            return expired;
        }
        if self.forwarded.len() >= MAX_FORWARDED_FIRSTS {
            self.forwarded.pop_front();
        }
        self.forwarded.push_back(new);
        true
    }

    /// Judges a later fragment. `trust_hints`: whether a first fragment that passed at a peer counts.
    pub(crate) fn judge_later(
        &mut self,
        key: u64,
        fragment: &Fragment,
        trust_hints: bool,
        now: Time,
    ) -> FragmentOutcome {
        let index = self
            .forwarded
            .iter()
            .rposition(|known| known.key == key && now.since(known.forwarded_at) <= FORWARDED_FIRST_TTL);
        let Some((index, known)) = index.and_then(|index| Some((index, self.forwarded.get_mut(index)?))) else {
            return FragmentOutcome::FirstUnknown;
        };
        if !known.here && !trust_hints {
            return FragmentOutcome::FirstElsewhere;
        }
        let (passes, egress) = (known.add(fragment), known.egress);
        if known.is_whole() {
            self.forwarded.remove(index);
        }
        if passes { FragmentOutcome::Pass(egress) } else { FragmentOutcome::Invalid }
    }

    /// The first fragment of a datagram, if it passed.
    pub(crate) fn first(&self, key: u64, now: Time) -> Option<FirstFragment> {
        let known = self.forwarded.iter().rev().find(|known| known.key == key)?;
        let first = FirstFragment { end: known.first_end, egress: known.egress };
        (now.since(known.forwarded_at) <= FORWARDED_FIRST_TTL).then_some(first)
    }

    /// Registers a worker that holds a fragment of a datagram whose first fragment is not known.
    pub(crate) fn wait(&mut self, key: u64, datagram: &FragmentKey, worker: u8, now: Time) -> WaitOutcome {
        match self.pending(key, datagram, now) {
            None => WaitOutcome::Full,
            Some(pending) if pending.first_dropped => WaitOutcome::FirstDropped,
            Some(pending) => {
                pending.workers.insert(worker);
                WaitOutcome::Registered
            }
        }
    }

    /// Records that the first fragment was dropped. Returns the workers that wait for it.
    pub(crate) fn record_first_dropped(&mut self, key: u64, datagram: &FragmentKey, now: Time) -> WorkerSet {
        // If another first fragment of the datagram has passed, that one counts.
        if self.first(key, now).is_some() {
            return WorkerSet::EMPTY;
        }
        self.pending(key, datagram, now).map_or(WorkerSet::EMPTY, |pending| {
            pending.first_dropped = true;
            std::mem::take(&mut pending.workers)
        })
    }

    /// The pending entry of a datagram, which is added if it does not exist. `None` if there is no room.
    fn pending(&mut self, key: u64, datagram: &FragmentKey, now: Time) -> Option<&mut PendingFragments> {
        self.remove_expired(now);
        let index = match self.pending.iter().position(|pending| pending.key == key) {
            Some(index) => index,
            None => {
                let oldest = self.pending.front().map_or(Duration::ZERO, |oldest| now.since(oldest.since));
                match self.pending.len() < MAX_PENDING {
                    true => {}
                    false if oldest > PENDING_EVICTABLE_AFTER => drop(self.pending.pop_front()),
                    false => return None,
                }
                let new = PendingFragments {
                    key,
                    datagram: *datagram,
                    workers: WorkerSet::EMPTY,
                    since: now,
                    query_sent: false,
                    first_dropped: false,
                };
                self.pending.push_back(new);
                self.pending.len() - 1
            }
        };
        self.pending.get_mut(index)
    }

    /// Removes a pending datagram. Returns the workers that wait for it.
    pub(crate) fn take(&mut self, key: u64) -> WorkerSet {
        let index = self.pending.iter().position(|pending| pending.key == key);
        index.and_then(|index| self.pending.remove(index)).map_or(WorkerSet::EMPTY, |pending| pending.workers)
    }

    /// Sends the query for each pending datagram that has waited for [`FIRST_HINT_DELAY`], once.
    pub(crate) fn send_queries(&mut self, now: Time, events: &mut Vec<Event>) {
        self.remove_expired(now);
        let is_due = |p: &&mut PendingFragments| {
            !p.workers.is_empty() && !p.query_sent && now.since(p.since) >= FIRST_HINT_DELAY
        };
        for pending in self.pending.iter_mut().filter(is_due) {
            pending.query_sent = true;
            events.push(Event::Hint(Hint::FragmentQuery(pending.datagram)));
        }
    }

    fn remove_expired(&mut self, now: Time) {
        while self.pending.front().is_some_and(|oldest| now.since(oldest.since) > PENDING_TTL) {
            self.pending.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
