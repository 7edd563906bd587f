//! The table as the [`SessionStore`] of the replicated state. Each change holds the lock of one shard.

use super::half_open::{HalfOpenEntry, same_connection};
use super::session::{Session, SessionFlag};
use super::{Shard, Table};
use crate::id::SessionId;
use crate::replicated::{Admission, Effects, LocalContext, Refusal, Removal, Replicated, SessionStore};
use crate::session::{Close, CloseCause, EndedSession, Establish};
use crate::time::Stamp17ms;
use crate::traffic::Traffic;
use crate::tuple::{PerDirection, Tuple};
use crate::verdict::Reason;
use crate::worker_set::WorkerSet;

impl SessionStore for Table {
    fn tuple_of(&self, id: SessionId) -> Option<Tuple> {
        let (shard, slot) = self.locate(id)?;
        shard.sessions.get(slot).map(|session| *session.original())
    }

    fn establish(
        &self,
        local: LocalContext<'_>,
        establish: &Establish,
        admit: &mut dyn FnMut(Option<&Replicated>) -> Admission,
        effects: &mut Effects,
    ) -> u64 {
        let hash = self.hash(&establish.original);
        let mut shard = self.shard_for(hash);
        let waiting = shard.queries.take(hash);
        let before = shard.digest;
        let occupant = shard.sessions.find(hash, &establish.original);
        let replicated = occupant.and_then(|slot| shard.sessions.get(slot)).map(Session::replicated);
        let refusal = match admit(replicated) {
            Admission::Insert(replicated) => {
                if let Some(slot) = occupant {
                    self.copy_before_change(&mut shard, slot);
                    if let Some(old) = self.remove(&mut shard, hash, slot) {
                        shard.add_to_digest(slot, old.replicated().digest().wrapping_neg());
                    }
                }
                self.copy_before_insert(&mut shard);
                self.insert_established(local, &mut shard, hash, establish, replicated);
                Refusal::Conflict
            }
            Admission::Present => Refusal::Conflict,
            Admission::Refuse(refusal) => refusal,
        };
        let waiting = waiting | self.settle_half_open(&mut shard, hash, establish, refusal, effects);
        effects.wake(waiting, hash);
        shard.digest.wrapping_sub(before)
    }

    fn change(
        &self,
        local: LocalContext<'_>,
        id: SessionId,
        change: &mut dyn FnMut(&mut Replicated),
        effects: &mut Effects,
    ) -> u64 {
        let Some((mut shard, slot)) = self.locate(id) else { return 0 };
        let original = shard.sessions.get(slot).filter(|session| session.is_open()).map(|session| *session.original());
        let Some(original) = original else { return 0 };
        let hash = self.hash(&original);
        self.copy_before_change(&mut shard, slot);
        let Some(session) = shard.sessions.get_mut(slot) else { return 0 };
        let before = session.replicated().digest();
        change(session.replicated_mut());
        session.local.flags.set(SessionFlag::Expiring, false);
        session.local.last_active = Stamp17ms::rounded_up(local.now);
        let (is_open, after) = (session.is_open(), session.replicated().digest());
        let digest_change = after.wrapping_sub(before);
        shard.add_to_digest(slot, digest_change);
        if is_open {
            effects.wake(shard.queries.take(hash), hash);
        } else {
            shard.sessions.arm(slot, local.now, local.timeouts);
        }
        digest_change
    }

    fn remove(
        &self,
        id: SessionId,
        condition: &dyn Fn(&Replicated) -> bool,
        ended: &dyn Fn(&Replicated, PerDirection<Traffic>) -> EndedSession,
    ) -> Option<Removal> {
        let (mut shard, slot) = self.locate(id)?;
        let session = shard.sessions.get(slot).filter(|session| condition(session.replicated()))?;
        let tuple = *session.original();
        let hash = self.hash(&tuple);
        self.copy_before_change(&mut shard, slot);
        let session = Table::remove(self, &mut shard, hash, slot)?;
        let digest_change = session.replicated().digest().wrapping_neg();
        shard.add_to_digest(slot, digest_change);
        // A session that is no longer in the table needs no close.
        while let Some((_, id, slot)) = shard.finished.front().copied() {
            if shard.sessions.get(slot).is_some_and(|s| s.id() == id && s.is_open()) {
                break;
            }
            shard.finished.pop_front();
        }
        if let Some(track) = session.local.track.as_ref().filter(|_| session.is_open()) {
            shard.ended.record(hash, tuple, track.edges());
        }
        let ended = session.is_open().then(|| ended(session.replicated(), session.local.traffic()));
        Some(Removal { tuple, ended, digest_change })
    }

    fn wake_waiting(&self, tuple: &Tuple, effects: &mut Effects) {
        let hash = self.hash(tuple);
        effects.wake(self.shard_for(hash).queries.take(hash), hash);
    }
}

impl Table {
    /// Adds an established session, with the local state of its half-open entry.
    fn insert_established(
        &self,
        local: LocalContext<'_>,
        shard: &mut Shard,
        hash: u64,
        establish: &Establish,
        replicated: Replicated,
    ) {
        let is_own = |entry: &HalfOpenEntry| {
            let proposed = (&establish.original, &establish.protocol);
            entry.open.id == establish.id || same_connection(proposed, (&entry.open.original, &entry.open.protocol))
        };
        let mut entries =
            shard.half_open.lookup(hash, &establish.original).filter_map(|slot| shard.half_open.get(slot));
        let seen = entries.find(|entry| is_own(entry)).map(|entry| entry.last);
        let contested = shard.half_open.lookup(hash, &establish.original).next().is_some();
        let mut session = Session::new(replicated, local.now, seen);
        session.local.flags.set(SessionFlag::Contested, contested);
        let digest = session.replicated().digest();
        let slot = self.insert(shard, hash, session, local.now, local.timeouts);
        shard.add_to_digest(slot, digest);
    }

    /// Removes the half-open entries of an establishment whose session exists now, perhaps under another id. If the
    /// establishment was refused, records the refusal in its entries. Returns the workers that wait for these entries.
    fn settle_half_open(
        &self,
        shard: &mut Shard,
        hash: u64,
        establish: &Establish,
        refusal: Refusal,
        effects: &mut Effects,
    ) -> WorkerSet {
        let mut waiting = WorkerSet::default();
        let proposed = (&establish.original, &establish.protocol);
        // If a connection was proposed twice, under two ids, the second proposal finds it established.
        let session = shard.sessions.find(hash, &establish.original).and_then(|slot| shard.sessions.get(slot));
        let established = session
            .filter(|s| s.is_open() && same_connection((s.original(), &s.handshake_state()), proposed))
            .map(Session::id);
        let slots: Vec<u32> = shard.half_open.lookup(hash, &establish.original).collect();
        for slot in slots {
            let Some(entry) = shard.half_open.get_mut(slot) else { continue };
            let same = same_connection(proposed, (&entry.open.original, &entry.open.protocol));
            if entry.open.id != establish.id && !(same && established.is_some()) {
                continue;
            }
            waiting |= std::mem::take(&mut entry.waiters);
            match (established, refusal) {
                (Some(id), _) => {
                    if entry.aborted {
                        // It was reset while its establishment was in flight.
                        effects.closes.push(Close { id, cause: CloseCause::Rst });
                    }
                    self.remove_half_open(shard, slot);
                }
                (None, Refusal::Stale) => entry.proposed = None,
                (None, Refusal::Full) => entry.refused = Some(Reason::TableFull),
                (None, Refusal::Conflict) => entry.refused = Some(Reason::Conflict),
            }
        }
        waiting
    }
}
