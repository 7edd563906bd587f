//! Fragmented datagrams: those whose first fragment was forwarded, and those whose other fragments wait for it.
//!
//! Two rings of fixed size per shard. A new datagram evicts the oldest one whose first fragment was forwarded: its remaining
//! fragments then wait, and the other members are asked. It evicts the oldest one that waits only if that one has waited for
//! long, so a flood of fragments that belong to nothing displaces nothing.

use std::collections::VecDeque;
use std::time::Duration;

use crate::event::{Event, FragmentKey, Hint};
use crate::parse::Fragment;
use crate::time::Time;
use crate::worker_set::WorkerSet;

/// Datagrams per shard whose first fragment was forwarded.
pub(crate) const MAX_FORWARDED_FIRSTS: usize = 64;
/// Datagrams per shard that wait for their first fragment.
pub(crate) const MAX_PENDING: usize = 32;

/// Longest time between a datagram's fragments (RFC 791: reassembly timers are 15 s; Linux: 30 s).
pub(crate) const FORWARDED_FIRST_TTL: Duration = Duration::from_secs(30);

/// Pieces of one datagram that do not touch each other: gaps that reordering leaves.
pub(crate) const MAX_RUNS: usize = 8;

/// After this time without an answer, one that waits may make room for another.
const PENDING_EVICTABLE_AFTER: Duration = Duration::from_millis(250);
/// After this time nobody can wait any more: no hold is longer.
const PENDING_TTL: Duration = Duration::from_secs(2);
/// For this long the first fragment's hint may well be under way. Then the others are asked.
const FIRST_HINT_DELAY: Duration = Duration::from_millis(20);

/// What passed of a datagram.
#[derive(Clone, Copy)]
struct ForwardedFirst {
    key: u64,
    at: Time,
    /// Its first fragment passed here; else at another member.
    here: bool,
    /// Where the first fragment ends.
    first: u16,
    /// Begin and end of what passed here, and of the first fragment, in bytes; those that are equal are free.
    pieces: [(u16, u16); MAX_RUNS],
    /// Where the datagram ends, as soon as that is known.
    end: Option<u16>,
}

impl ForwardedFirst {
    fn new(key: u64, first: u16, here: bool, at: Time) -> ForwardedFirst {
        let mut pieces = [(0, 0); MAX_RUNS];
        pieces[0] = (0, first);
        ForwardedFirst { key, at, here, first, pieces, end: None }
    }

    /// Takes in a fragment, if it overlaps nothing, ends no later than the datagram, and leaves few enough gaps.
    fn take(&mut self, fragment: &Fragment) -> bool {
        let begin = fragment.offset;
        let Some(end) = begin.checked_add(fragment.length) else { return false };
        let used = || self.pieces.iter().filter(|(begin, end)| begin < end);
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
        // Joined with its neighbours.
        let (mut all, mut joined) = (self.pieces, (begin, end));
        for piece in all.iter_mut().filter(|(b, e)| b < e && (*e == begin || *b == end)) {
            joined = (joined.0.min(piece.0), joined.1.max(piece.1));
            *piece = (0, 0);
        }
        let Some(free) = all.iter_mut().find(|(b, e)| b == e) else { return false };
        *free = joined;
        self.pieces = all;
        if !fragment.more {
            self.end = Some(end);
        }
        true
    }

    fn is_whole(&self) -> bool {
        self.end.is_some_and(|end| self.pieces.contains(&(0, end)))
    }
}

/// A datagram whose fragments wait for the first one, or whose first one was dropped.
#[derive(Clone, Copy)]
struct PendingFragments {
    key: u64,
    datagram: FragmentKey,
    /// Who holds fragments of it: bit n for worker n.
    workers: WorkerSet,
    since: Time,
    /// The others were asked.
    asked: bool,
    /// The first one was dropped here.
    dropped: bool,
}

/// What is known of a fragment that is not the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FragmentOutcome {
    /// It may pass.
    Pass,
    /// It overlaps another one, ends behind the end, or leaves too many gaps.
    Invalid,
    /// It may pass only where hints count: the first one passed elsewhere.
    FirstElsewhere,
    /// The first one is not known.
    FirstUnknown,
}

/// What comes of the wish to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WaitOutcome {
    /// It will be woken.
    Registered,
    /// In vain: the first one was dropped.
    FirstDropped,
    /// There is no room.
    Full,
}

/// One shard's datagrams.
#[derive(Default)]
pub(crate) struct FragmentTable {
    /// The oldest one first.
    begun: VecDeque<ForwardedFirst>,
    /// The one that has waited longest first.
    waiting: VecDeque<PendingFragments>,
}

impl FragmentTable {
    /// The first fragment passes here, and ends at `end`. False: another one of this datagram passed already.
    pub(crate) fn first(&mut self, key: u64, end: u16, now: Time) -> bool {
        self.begin(ForwardedFirst::new(key, end, true, now))
    }

    /// The first fragment passed at another member.
    pub(crate) fn elsewhere(&mut self, key: u64, end: u16, now: Time) {
        self.begin(ForwardedFirst::new(key, end, false, now));
    }

    fn begin(&mut self, new: ForwardedFirst) -> bool {
        if let Some(known) = self.begun.iter_mut().rev().find(|known| known.key == new.key) {
            let over = new.at.since(known.at) > FORWARDED_FIRST_TTL;
            if over {
                *known = new;
            }
            return over;
        }
        if self.begun.len() >= MAX_FORWARDED_FIRSTS {
            self.begun.pop_front();
        }
        self.begun.push_back(new);
        true
    }

    /// Another fragment. `trusting`: do the hints of others count?
    pub(crate) fn follows(&mut self, key: u64, fragment: &Fragment, trusting: bool, now: Time) -> FragmentOutcome {
        let place = self.begun.iter().rposition(|known| known.key == key && now.since(known.at) <= FORWARDED_FIRST_TTL);
        let Some((place, known)) = place.and_then(|place| Some((place, self.begun.get_mut(place)?))) else {
            return FragmentOutcome::FirstUnknown;
        };
        if !known.here && !trusting {
            return FragmentOutcome::FirstElsewhere;
        }
        let passes = known.take(fragment);
        if known.is_whole() {
            self.begun.remove(place);
        }
        if passes { FragmentOutcome::Pass } else { FragmentOutcome::Invalid }
    }

    /// Where the first fragment of a datagram ended, if it passed.
    pub(crate) fn first_end(&self, key: u64, now: Time) -> Option<u16> {
        let known = self.begun.iter().rev().find(|known| known.key == key)?;
        (now.since(known.at) <= FORWARDED_FIRST_TTL).then_some(known.first)
    }

    /// `worker` holds a fragment of a datagram that is not known.
    pub(crate) fn wait(&mut self, key: u64, datagram: &FragmentKey, worker: u8, now: Time) -> WaitOutcome {
        match self.waiting(key, datagram, now) {
            None => WaitOutcome::Full,
            Some(waiting) if waiting.dropped => WaitOutcome::FirstDropped,
            Some(waiting) => {
                waiting.workers.insert(worker);
                WaitOutcome::Registered
            }
        }
    }

    /// The first fragment was dropped: the workers that wait for it.
    pub(crate) fn dropped(&mut self, key: u64, datagram: &FragmentKey, now: Time) -> WorkerSet {
        // Another first fragment of it that passed counts, whatever this one was.
        if self.first_end(key, now).is_some() {
            return WorkerSet::EMPTY;
        }
        self.waiting(key, datagram, now).map_or(WorkerSet::EMPTY, |waiting| {
            waiting.dropped = true;
            std::mem::take(&mut waiting.workers)
        })
    }

    /// The entry of a datagram that waits, a new one if there is none; `None`: there is no room.
    fn waiting(&mut self, key: u64, datagram: &FragmentKey, now: Time) -> Option<&mut PendingFragments> {
        self.forget(now);
        let place = match self.waiting.iter().position(|waiting| waiting.key == key) {
            Some(place) => place,
            None => {
                let oldest = self.waiting.front().map_or(Duration::ZERO, |oldest| now.since(oldest.since));
                match self.waiting.len() < MAX_PENDING {
                    true => {}
                    false if oldest > PENDING_EVICTABLE_AFTER => drop(self.waiting.pop_front()),
                    false => return None,
                }
                let new = PendingFragments {
                    key,
                    datagram: *datagram,
                    workers: WorkerSet::EMPTY,
                    since: now,
                    asked: false,
                    dropped: false,
                };
                self.waiting.push_back(new);
                self.waiting.len() - 1
            }
        };
        self.waiting.get_mut(place)
    }

    /// The workers that wait for a datagram, which then is no longer awaited.
    pub(crate) fn take(&mut self, key: u64) -> WorkerSet {
        let place = self.waiting.iter().position(|waiting| waiting.key == key);
        place.and_then(|place| self.waiting.remove(place)).map_or(WorkerSet::EMPTY, |waiting| waiting.workers)
    }

    /// Asks the others for what has waited longer than a hint is under way, once for each datagram.
    pub(crate) fn ask(&mut self, now: Time, events: &mut Vec<Event>) {
        self.forget(now);
        for waiting in self
            .waiting
            .iter_mut()
            .filter(|w| !w.workers.is_empty() && !w.asked && now.since(w.since) >= FIRST_HINT_DELAY)
        {
            waiting.asked = true;
            events.push(Event::Hint(Hint::FragmentQuery(waiting.datagram)));
        }
    }

    fn forget(&mut self, now: Time) {
        while self.waiting.front().is_some_and(|oldest| now.since(oldest.since) > PENDING_TTL) {
            self.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
