//! Restoring: the sessions of a snapshot are built beside the table, and exchanged for its own shard by shard.
//!
//! Building takes long and needs no lock of the table. An exchange holds the lock of one shard for as long as it takes to carry
//! over what this member alone knows of the sessions that stay: some hundred nanoseconds each.

use foldhash::quality::FixedState;

use super::id_index::{IdIndex, SlotRef};
use super::scrub::ShardScrub;
use super::session::{Session, SessionFlag};
use super::{SHARDS, Sessions, Shard, Table};
use crate::replicated::{Effects, LocalContext, Replicated, RestoredSessions};
use crate::time::{Stamp17ms, Time};

/// The sessions of a snapshot, in shards like those of the table that they are for.
pub(crate) struct RebuiltTable {
    shards: Vec<RebuiltShard>,
    ids: IdIndex,
    hasher: FixedState,
    now: Time,
    sessions: usize,
}

#[derive(Default)]
struct RebuiltShard {
    sessions: Sessions,
    digest: u64,
}

impl RebuiltTable {
    /// Without sessions, for the sessions of `table`.
    pub(crate) fn new(table: &Table, now: Time) -> RebuiltTable {
        let shards = (0..SHARDS).map(|_| RebuiltShard::default()).collect();
        // The seed only has to be unknown to those who choose ids.
        let ids = IdIndex::new(table.ids_seed);
        RebuiltTable { shards, ids, hasher: table.hasher().clone(), now, sessions: 0 }
    }

    fn has_id(&self, replicated: &Replicated) -> bool {
        self.ids.candidates(replicated.id()).any(|at| {
            let session = self.shards[usize::from(at.shard())].sessions.get(at.slot());
            session.is_some_and(|session| session.id() == replicated.id())
        })
    }
}

impl RestoredSessions for RebuiltTable {
    fn add(&mut self, replicated: Replicated) -> bool {
        let hash = replicated.original().symmetric_hash(&self.hasher);
        let number = Table::number(hash);
        let shard = &mut self.shards[usize::from(number)];
        if shard.sessions.find(hash, replicated.original()).is_some() || self.has_id(&replicated) {
            return false;
        }
        let id = replicated.id();
        let shard = &mut self.shards[usize::from(number)];
        shard.digest = shard.digest.wrapping_add(replicated.digest());
        let slot = shard.sessions.insert(hash, Session::new(replicated, self.now, None));
        self.ids.insert(id, SlotRef::new(number, slot));
        self.sessions += 1;
        true
    }

    fn len(&self) -> usize {
        self.sessions
    }

    fn digest(&self) -> u64 {
        self.shards.iter().fold(0, |sum, shard| sum.wrapping_add(shard.digest))
    }
}

impl Table {
    /// Exchanges the sessions of a shard for those of a snapshot. What this member knows of one that stays, stays too.
    pub(crate) fn exchange_shard(
        &self,
        local: LocalContext<'_>,
        number: u8,
        from: &mut RebuiltTable,
        effects: &mut Effects,
    ) {
        self.end_copy();
        let RebuiltShard { sessions: mut new, digest } = std::mem::take(&mut from.shards[usize::from(number)]);
        // Until the exchange, such a slot has another session, or none: whoever looks up an id compares it.
        for (slot, session) in new.slab.numbered() {
            self.ids.insert(session.id(), SlotRef::new(number, slot));
        }
        // Only now: the snapshot's policy has the timeouts.
        for slot in 0..new.slots() {
            new.arm(slot, local.now, local.timeouts);
        }
        let mut shard = self.shard(number);
        for (hash, workers) in shard.queries.take_all() {
            effects.wake(workers, hash);
        }
        for old in shard.sessions.iter() {
            self.carry_over(local, old, &mut new);
        }
        self.settle_half_opens(&mut shard, &mut new, effects);
        let old = std::mem::replace(&mut shard.sessions, new);
        shard.finished.clear();
        shard.digest = digest;
        shard.scrub = ShardScrub::default();
        drop(shard);
        for (slot, session) in old.slab.numbered() {
            self.ids.remove(session.id(), SlotRef::new(number, slot));
        }
    }

    /// Gives a session of a snapshot what this member knows of it.
    fn carry_over(&self, local: LocalContext<'_>, old: &Session, new: &mut Sessions) {
        let Some(slot) = new.find(self.hash(old.original()), old.original()) else { return };
        let Some(session) = new.get_mut(slot) else { return };
        if session.id() != old.id() || !session.replicated().is_same_establishment(old.replicated()) {
            return;
        }
        let links = session.local.links;
        session.local = old.local.clone();
        session.local.links = links;
        session.local.flags.set(SessionFlag::Dirty, false);
        if !old.replicated().is_as_far_as(session.replicated()) {
            session.local.flags.set(SessionFlag::Expiring, false);
            session.local.last_active = Stamp17ms::rounded_up(local.now);
        }
        if old.local.flags.has(SessionFlag::Dirty) {
            new.mark_dirty(slot);
        }
        new.arm(slot, local.now, local.timeouts);
    }

    /// Ends the half-open sessions of a shard, which the caller has locked, that are established in the snapshot.
    fn settle_half_opens(&self, shard: &mut Shard, new: &mut Sessions, effects: &mut Effects) {
        let opens: Vec<_> =
            shard.half_open.iter().map(|entry| (entry.hash(), entry.open.original, entry.open.id)).collect();
        for (hash, tuple, id) in opens {
            let Some(session) = new.find(hash, &tuple).and_then(|slot| new.get_mut(slot)) else { continue };
            if session.id() != id {
                session.local.flags.set(SessionFlag::Contested, true);
                continue;
            }
            let slots: Vec<u32> = shard.half_open.lookup(hash, &tuple).collect();
            for slot in slots {
                if let Some(entry) = shard.half_open.get(slot).filter(|entry| entry.open.id == id) {
                    effects.wake(entry.waiters, hash);
                    self.remove_half_open(shard, slot);
                }
            }
        }
    }
}
