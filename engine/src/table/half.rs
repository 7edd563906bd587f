//! Half-open sessions: bounded, oldest evicted first.

use hashbrown::HashTable;

use super::slab::Slab;
use crate::addr::Ip;
use crate::event::{HalfOpen, Opening};
use crate::time::Time;
use crate::tuple::Tuple;
use crate::verdict::Reason;

const NONE: u32 = u32::MAX;

/// Most half-open sessions of one tuple: a client that tries again with a new ISN, a server that answers with another.
pub(crate) const PER_TUPLE: usize = 4;

/// A half-open session, and what this member knows of it.
pub(crate) struct Half {
    /// What all members are told.
    pub(crate) open: HalfOpen,
    /// Last progress: a packet seen here, or a hint.
    pub(crate) last: Time,
    /// When this member proposed its establishment.
    pub(crate) proposed: Option<Time>,
    /// When this member asked the others about it.
    pub(crate) asked: Option<Time>,
    /// Workers that hold packets of it.
    pub(crate) waiters: u64,
    /// The log refused it. A retransmitted SYN or SYN-ACK clears that.
    pub(crate) refused: Option<Reason>,
    /// It was reset. Kept only so that an establishment that was already under way is closed again.
    pub(crate) aborted: bool,
    /// Whom it counts for. A hint may turn its direction.
    source: Ip,
    hash: u64,
    older: u32,
    newer: u32,
}

impl Half {
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn source(&self) -> Ip {
        self.source
    }
}

/// One shard's half-open sessions, in order of their last progress.
pub(crate) struct Halves {
    slab: Slab<Half>,
    index: HashTable<u32>,
    oldest: u32,
    newest: u32,
    most: usize,
}

/// Do these two say the same of the two ends, as far as both know them?
pub(crate) fn same_ends(a: &Opening, b: &Opening) -> bool {
    match (a, b) {
        (Opening::Tcp { client: a, server: s }, Opening::Tcp { client: b, server: t }) => {
            a.isn == b.isn && s.zip(*t).is_none_or(|(s, t)| s.isn == t.isn)
        }
        (Opening::Generic { .. }, Opening::Generic { .. }) => true,
        _ => false,
    }
}

/// Is `b` the connection `a`, whose server is known? After a simultaneous open each may have the other's client as its
/// server. Both have one tuple, in the same direction or in opposite ones.
pub(crate) fn same_connection(a: (&Tuple, &Opening), b: (&Tuple, &Opening)) -> bool {
    if a.0 == b.0 {
        return same_ends(a.1, b.1);
    }
    match (a.1, b.1) {
        (Opening::Tcp { client: a, server: s }, Opening::Tcp { client: b, server: t }) => {
            s.is_some_and(|s| s.isn == b.isn) && t.is_none_or(|t| t.isn == a.isn)
        }
        _ => false,
    }
}

impl Halves {
    pub(crate) fn new(most: usize) -> Halves {
        Halves { slab: Slab::default(), index: HashTable::new(), oldest: NONE, newest: NONE, most }
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.slab.len() >= self.most
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&Half> {
        self.slab.get(slot)
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Half> {
        self.slab.get_mut(slot)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Half> {
        self.slab.iter()
    }

    /// The half-open sessions that a packet with this tuple can belong to, in either direction; [`NONE`] fills up.
    pub(crate) fn of(&self, hash: u64, tuple: &Tuple) -> impl Iterator<Item = u32> + use<> {
        let mut found = [NONE; PER_TUPLE];
        if !self.index.is_empty() {
            let matching = self.index.iter_hash(hash).copied().filter(|&slot| {
                self.slab.get(slot).is_some_and(|h| h.open.original == *tuple || h.open.reply == *tuple)
            });
            for (place, slot) in found.iter_mut().zip(matching) {
                *place = slot;
            }
        }
        found.into_iter().take_while(|&slot| slot != NONE)
    }

    pub(crate) fn insert(&mut self, hash: u64, open: HalfOpen, now: Time) -> u32 {
        let slot = self.slab.insert(Half {
            open,
            last: now,
            proposed: None,
            asked: None,
            waiters: 0,
            refused: None,
            aborted: false,
            source: open.original.src,
            hash,
            older: NONE,
            newer: NONE,
        });
        let slab = &self.slab;
        self.index.insert_unique(hash, slot, |&slot| slab.get(slot).map_or(0, |h| h.hash));
        self.append(slot);
        slot
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<Half> {
        self.unlink(slot);
        let half = self.slab.remove(slot)?;
        if let Ok(entry) = self.index.find_entry(half.hash, |&s| s == slot) {
            entry.remove();
        }
        Some(half)
    }

    /// There was progress.
    pub(crate) fn touch(&mut self, slot: u32, now: Time) {
        if let Some(half) = self.slab.get_mut(slot) {
            half.last = now;
            self.unlink(slot);
            self.append(slot);
        }
    }

    pub(crate) fn oldest(&self) -> Option<(u32, &Half)> {
        self.slab.get(self.oldest).map(|h| (self.oldest, h))
    }

    fn append(&mut self, slot: u32) {
        let before = std::mem::replace(&mut self.newest, slot);
        if let Some(half) = self.slab.get_mut(slot) {
            half.older = before;
            half.newer = NONE;
        }
        match self.slab.get_mut(before) {
            Some(half) => half.newer = slot,
            None => self.oldest = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Some((older, newer)) = self.slab.get(slot).map(|h| (h.older, h.newer)) else { return };
        match self.slab.get_mut(older) {
            Some(half) => half.newer = newer,
            None => self.oldest = newer,
        }
        match self.slab.get_mut(newer) {
            Some(half) => half.older = older,
            None => self.newest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{half_open, tuple};

    #[test]
    fn order_is_that_of_the_last_progress() {
        let mut halves = Halves::new(3);
        let slots: Vec<u32> = (0..3).map(|n| halves.insert(n, half_open(tuple(n as u16), 5), Time(n))).collect();
        assert!(halves.is_full());
        assert_eq!(halves.oldest().map(|(s, _)| s), Some(slots[0]));
        halves.touch(slots[0], Time(9));
        assert_eq!(halves.oldest().map(|(s, _)| s), Some(slots[1]));
        assert!(halves.remove(slots[2]).is_some());
        assert!(halves.remove(slots[1]).is_some());
        assert_eq!(halves.oldest().map(|(s, _)| s), Some(slots[0]));
        assert!(halves.remove(slots[0]).is_some());
        assert!(halves.oldest().is_none());
        assert_eq!(halves.len(), 0);
        let again = halves.insert(1, half_open(tuple(1), 5), Time(10));
        assert_eq!(halves.of(1, &tuple(1).inverse()).collect::<Vec<_>>(), [again]);
    }
}
