//! The half-open sessions of a shard: bounded, the oldest evicted first.
//!
//! Entries with the same timeout are in one list, in the order of their last progress. So the expired entries, and the oldest
//! of all, are at the heads of the lists and need no search.

use super::session::Passed;
use super::slab::Slab;
use super::tuple_index::TupleIndex;
use crate::addr::Ip;
use crate::id::ZoneId;
use crate::session::{HalfOpen, HandshakeState};
use crate::time::Time;
use crate::timeouts::{Timeout, Timeouts};
use crate::track::State;
use crate::track::generic::half_open_state;
use crate::tuple::{PerDirection, Tuple};
use crate::verdict::Reason;
use crate::worker_set::WorkerSet;

const NONE: u32 = u32::MAX;

/// Maximum number of half-open sessions of one tuple: a client may retry with a new ISN, and a server reply with another one.
pub(crate) const MAX_PER_TUPLE: usize = 4;

/// A half-open session and its state on this member.
pub(crate) struct HalfOpenEntry {
    /// The part that hints carry to all members.
    pub(crate) open: HalfOpen,
    /// When a packet or a hint last made progress.
    pub(crate) last: Time,
    /// When this member proposed the establishment.
    pub(crate) proposed: Option<Time>,
    /// When this member queried its peers about it.
    pub(crate) queried: Option<Time>,
    /// The workers that hold packets of it.
    pub(crate) waiters: WorkerSet,
    /// Why the establishment was refused when it was applied. A retransmitted SYN or SYN-ACK clears it.
    pub(crate) refused: Option<Reason>,
    /// By what a packet of each direction last passed.
    pub(crate) passed: PerDirection<Option<Passed>>,
    /// The zone that it passed to.
    pub(crate) egress: PerDirection<ZoneId>,
    /// Whether it was reset. It is kept only to close an establishment that was already proposed.
    pub(crate) aborted: bool,
    /// The address that it is counted for. A hint may reverse the direction later.
    source: Ip,
    hash: u64,
    /// The list that it is in.
    timeout: Timeout,
    older: u32,
    newer: u32,
}

impl HalfOpenEntry {
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn source(&self) -> Ip {
        self.source
    }

    pub(crate) fn state(&self) -> State {
        half_open_state(&self.open.protocol)
    }

    /// The kind of timeout: how long it is kept without progress.
    pub(crate) fn timeout(&self) -> Timeout {
        self.timeout
    }
}

/// One shard's half-open sessions.
pub(crate) struct HalfOpenTable {
    slab: Slab<HalfOpenEntry>,
    index: TupleIndex,
    /// One list for each kind of timeout.
    lists: [List; Timeout::COUNT],
    max_entries: usize,
}

/// Half-open sessions in the order of their last progress.
#[derive(Clone, Copy)]
struct List {
    oldest: u32,
    newest: u32,
}

/// Whether two handshake states agree on both ends, as far as both know them.
pub(crate) fn same_ends(a: &HandshakeState, b: &HandshakeState) -> bool {
    match (a, b) {
        (HandshakeState::Tcp { client: a, server: s }, HandshakeState::Tcp { client: b, server: t }) => {
            a.isn == b.isn && s.zip(*t).is_none_or(|(s, t)| s.isn == t.isn)
        }
        (HandshakeState::Generic { .. }, HandshakeState::Generic { .. }) => true,
        _ => false,
    }
}

/// Whether `b` is the same connection as `a`, whose server is known. Both have one tuple, in the same direction or in opposite
/// ones: after a simultaneous open, the client of one may be the server of the other.
pub(crate) fn same_connection(a: (&Tuple, &HandshakeState), b: (&Tuple, &HandshakeState)) -> bool {
    if a.0 == b.0 {
        return same_ends(a.1, b.1);
    }
    match (a.1, b.1) {
        (HandshakeState::Tcp { client: a, server: s }, HandshakeState::Tcp { client: b, server: t }) => {
            s.is_some_and(|s| s.isn == b.isn) && t.is_none_or(|t| t.isn == a.isn)
        }
        _ => false,
    }
}

impl Default for HalfOpenTable {
    /// A table without room.
    fn default() -> HalfOpenTable {
        let lists = [List { oldest: NONE, newest: NONE }; Timeout::COUNT];
        HalfOpenTable { slab: Slab::default(), index: TupleIndex::default(), lists, max_entries: 0 }
    }
}

impl HalfOpenTable {
    /// Sets the maximum number of entries.
    pub(crate) fn set_max_entries(&mut self, max_entries: usize) {
        self.max_entries = max_entries;
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.slab.len() >= self.max_entries
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&HalfOpenEntry> {
        self.slab.get(slot)
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut HalfOpenEntry> {
        self.slab.get_mut(slot)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &HalfOpenEntry> {
        self.slab.iter()
    }

    /// The number of slots, used or not: the end of a scan.
    pub(crate) fn slots(&self) -> u32 {
        self.slab.slots()
    }

    /// The half-open sessions that a packet with this tuple may belong to, in either direction.
    pub(crate) fn lookup(&self, hash: u64, tuple: &Tuple) -> impl Iterator<Item = u32> + use<> {
        let mut found = [NONE; MAX_PER_TUPLE];
        if !self.index.is_empty() {
            let matching = self.index.candidates(hash).filter(|&slot| {
                self.slab.get(slot).is_some_and(|h| h.open.original == *tuple || h.open.reply == *tuple)
            });
            for (place, slot) in found.iter_mut().zip(matching) {
                *place = slot;
            }
        }
        found.into_iter().take_while(|&slot| slot != NONE)
    }

    pub(crate) fn insert(&mut self, hash: u64, open: HalfOpen, now: Time) -> u32 {
        let slot = self.slab.insert(HalfOpenEntry {
            open,
            last: now,
            proposed: None,
            queried: None,
            waiters: WorkerSet::EMPTY,
            refused: None,
            passed: PerDirection::default(),
            egress: PerDirection::default(),
            aborted: false,
            source: open.original.src,
            hash,
            timeout: HalfOpenTable::list_of(&open),
            older: NONE,
            newer: NONE,
        });
        self.index.insert(hash, slot);
        self.append(slot);
        slot
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<HalfOpenEntry> {
        self.unlink(slot);
        let half = self.slab.remove(slot)?;
        self.index.remove(half.hash, slot);
        Some(half)
    }

    /// Records progress.
    pub(crate) fn touch(&mut self, slot: u32, now: Time) {
        self.unlink(slot);
        if let Some(half) = self.slab.get_mut(slot) {
            half.last = now;
            half.timeout = HalfOpenTable::list_of(&half.open);
        }
        self.append(slot);
    }

    /// The entry with the oldest progress.
    pub(crate) fn oldest(&self) -> Option<u32> {
        self.firsts().min_by_key(|(_, half)| half.last).map(|(slot, _)| slot)
    }

    /// An entry whose timeout is over.
    pub(crate) fn due(&self, now: Time, timeouts: &Timeouts) -> Option<u32> {
        if self.slab.len() == 0 {
            return None;
        }
        self.firsts().find(|(_, half)| now.since(half.last) >= timeouts.get(half.timeout)).map(|(slot, _)| slot)
    }

    /// The oldest entry of each list.
    fn firsts(&self) -> impl Iterator<Item = (u32, &HalfOpenEntry)> {
        self.lists.iter().filter_map(|list| Some((list.oldest, self.slab.get(list.oldest)?)))
    }

    fn list_of(open: &HalfOpen) -> Timeout {
        Timeout::for_state(half_open_state(&open.protocol), open.original.protocol)
    }

    fn append(&mut self, slot: u32) {
        let Some(half) = self.slab.get_mut(slot) else { return };
        let list = &mut self.lists[half.timeout as usize];
        let before = std::mem::replace(&mut list.newest, slot);
        half.older = before;
        half.newer = NONE;
        match self.slab.get_mut(before) {
            Some(half) => half.newer = slot,
            None => list.oldest = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Some(&HalfOpenEntry { older, newer, timeout, .. }) = self.slab.get(slot) else { return };
        let list = &mut self.lists[timeout as usize];
        match self.slab.get_mut(older) {
            Some(half) => half.newer = newer,
            None => list.oldest = newer,
        }
        match self.slab.get_mut(newer) {
            Some(half) => half.older = older,
            None => list.newest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{half_open, tuple};

    #[test]
    fn half_open_entries_are_ordered_by_last_progress() {
        let mut table = HalfOpenTable::default();
        table.set_max_entries(3);
        let slots: Vec<u32> = (0..3).map(|n| table.insert(n, half_open(tuple(n as u16), 5), Time(n))).collect();
        assert!(table.is_full());
        assert_eq!(table.oldest(), Some(slots[0]));
        table.touch(slots[0], Time(9));
        assert_eq!(table.oldest(), Some(slots[1]));
        assert!(table.remove(slots[2]).is_some());
        assert!(table.remove(slots[1]).is_some());
        assert_eq!(table.oldest(), Some(slots[0]));
        assert!(table.remove(slots[0]).is_some());
        assert!(table.oldest().is_none());
        assert_eq!(table.len(), 0);
        let again = table.insert(1, half_open(tuple(1), 5), Time(10));
        assert_eq!(table.lookup(1, &tuple(1).inverse()).collect::<Vec<_>>(), [again]);
    }
}
