//! Applying a batch.

use super::window::Number;
use super::{Applied, Batch, Command, ExpireIdle, Outcome, Replica};
use crate::digest::{Kind, element};
use crate::event::{Event, Proposal};
use crate::id::SessionId;
use crate::session::{Close, CloseCause, Establish, HandshakeState};
use crate::table::Shard;
use crate::table::half_open::{HalfOpenEntry, same_connection};
use crate::table::session::{Session, SessionFlag};
use crate::time::{Stamp17ms, Time};
use crate::tuple::Protocol;
use crate::types::Wake;
use crate::verdict::{HoldKey, Reason};

/// A session's part of the digest.
pub(super) fn session_digest(session: &Session) -> u64 {
    record_digest(&session.establish(), session.closed, session.refreshes)
}

/// The same, of what a snapshot keeps.
pub(super) fn record_digest(establish: &Establish, closed: Option<CloseCause>, refreshes: u16) -> u64 {
    match refreshes {
        // As it was before there were any.
        0 => element(Kind::Session, &(establish, closed)),
        _ => element(Kind::Session, &(establish, closed, refreshes)),
    }
}

impl Replica {
    pub(super) fn apply_batch(&mut self, now: Time, batch: &Batch, wake: &mut dyn Wake) -> Vec<Applied> {
        let unchanged = |outcome| Applied { outcome, changed: false, ended: Vec::new() };
        if self.has_left(batch.proposer) {
            let left = Outcome::Invalid(format!("member {} has left", batch.proposer));
            return vec![unchanged(left); batch.commands.len()];
        }
        self.windows.raise(batch.proposer, batch.floor);
        let mut all = Vec::with_capacity(batch.commands.len());
        for (at, command) in batch.commands.iter().enumerate() {
            let number = batch.first.checked_add(at as u64);
            let known = number.map_or(Number::TooFar, |number| self.windows.look(batch.proposer, number));
            all.push(match known {
                Number::Known(outcome) => unchanged(outcome),
                Number::Forgotten => unchanged(Outcome::Forgotten),
                Number::TooFar => {
                    unchanged(Outcome::Invalid("the number is too far above the proposer's floor".to_owned()))
                }
                Number::New => {
                    // The digest is that of everything that is replicated.
                    let before = self.digest();
                    let outcome = self.command(now, batch, command, wake);
                    let changed = self.digest() != before;
                    if let Some(number) = number {
                        self.windows.record(batch.proposer, number, &outcome);
                    }
                    Applied { outcome, changed, ended: std::mem::take(&mut self.ended) }
                }
            });
        }
        all
    }

    fn command(&mut self, now: Time, batch: &Batch, command: &Command, wake: &mut dyn Wake) -> Outcome {
        match command {
            Command::Establish(establish) => self.establish(now, establish, wake),
            Command::Close(close) => self.close(now, close),
            Command::Expire(ids) | Command::Revoke(ids) => {
                for id in ids {
                    self.remove(*id);
                }
                Outcome::Accepted
            }
            Command::Refresh(ids) => {
                ids.iter().for_each(|id| self.refresh(now, *id, wake));
                Outcome::Accepted
            }
            Command::ExpireIdle(idle) => {
                self.expire_idle(idle, wake);
                Outcome::Accepted
            }
            Command::Resume => {
                self.resumes = self.resumes.wrapping_add(1);
                self.engine.resumed(self.resumes);
                Outcome::Accepted
            }
            Command::Policy(change) => self.policy(change, batch.unix_ms),
            Command::Member(change) => self.member(change, batch.unix_ms),
        }
    }

    fn establish(&mut self, now: Time, establish: &Establish, wake: &mut dyn Wake) -> Outcome {
        if let Some(why) = invalid(establish) {
            return Outcome::Invalid(why.to_owned());
        }
        let engine = self.engine.clone();
        let table = &engine.table;
        let hash = table.hash(&establish.original);
        let elsewhere = table
            .locate(establish.id)
            .is_some_and(|(shard, slot)| shard.sessions.get(slot).is_some_and(|s| s.original != establish.original));
        let mut workers;
        let outcome = {
            let mut shard = table.shard_for(hash);
            workers = shard.queries.take(hash);
            let outcome = self.admit(now, hash, &mut shard, elsewhere, establish);
            // Of two proposals of one connection, under two ids, the second one found it established.
            let session = shard.sessions.find(hash, &establish.original).and_then(|slot| shard.sessions.get(slot));
            let id = session.map(|s| s.id);
            let proposed = (&establish.original, &establish.protocol);
            let stands = session
                .is_some_and(|s| s.closed.is_none() && same_connection((&s.original, &s.handshake_state()), proposed));
            // The half-open session that this was, perhaps under another id.
            let half_open: Vec<u32> = shard.half_open.lookup(hash, &establish.original).collect();
            for slot in half_open {
                let Some(half) = shard.half_open.get_mut(slot) else { continue };
                let same = same_connection(proposed, (&half.open.original, &half.open.protocol));
                if half.open.id != establish.id && !(same && stands) {
                    continue;
                }
                workers |= std::mem::take(&mut half.waiters);
                match &outcome {
                    _ if stands => {
                        if half.aborted
                            && let Some(id) = id
                        {
                            // It was reset while its establishment was under way.
                            let close = Close { id, cause: CloseCause::Rst };
                            engine.deferred.lock().push(Event::Propose(Proposal::Close(close)));
                        }
                        table.remove_half_open(&mut shard, slot);
                    }
                    Outcome::Stale(_) => half.proposed = None,
                    Outcome::Full => half.refused = Some(Reason::TableFull),
                    _ => half.refused = Some(Reason::Conflict),
                }
            }
            outcome
        };
        if !workers.is_empty() {
            wake.wake(workers, HoldKey(hash));
        }
        outcome
    }

    /// Adds the session, if there is nothing against it. `elsewhere`: its id is that of a session with another tuple.
    fn admit(&mut self, now: Time, hash: u64, shard: &mut Shard, elsewhere: bool, establish: &Establish) -> Outcome {
        let occupant = shard.sessions.find(hash, &establish.original).and_then(|slot| {
            let session = shard.sessions.get(slot)?;
            Some((slot, session.id, session.closed))
        });
        if occupant.is_some_and(|(_, id, _)| id == establish.id) {
            return Outcome::Accepted;
        }
        if elsewhere || self.removed.contains(establish.id) {
            return Outcome::Conflict;
        }
        if establish.generation != self.settings.generation {
            return Outcome::Stale(self.settings.generation);
        }
        match occupant {
            Some((slot, id, Some(_))) if establish.supersedes == Some(id) => {
                self.copy_for_snapshot(hash, shard);
                if let Some(old) = self.engine.table.remove(shard, hash, slot) {
                    self.forget(shard, &old);
                }
            }
            Some(_) => return Outcome::Conflict,
            None if self.sessions >= self.engine.config.max_sessions => return Outcome::Full,
            None => self.copy_for_snapshot(hash, shard),
        }
        let is_own = |half: &HalfOpenEntry| {
            let proposed = (&establish.original, &establish.protocol);
            half.open.id == establish.id || same_connection(proposed, (&half.open.original, &half.open.protocol))
        };
        let seen = shard
            .half_open
            .lookup(hash, &establish.original)
            .find_map(|slot| shard.half_open.get(slot).filter(|h| is_own(h)).map(|h| h.last));
        let mut session = Session::new(establish, now, seen);
        session.flags.set(SessionFlag::Contested, shard.half_open.lookup(hash, &establish.original).count() > 0);
        self.count(shard, session_digest(&session));
        self.sessions += 1;
        self.engine.table.insert(shard, hash, session, now, &self.engine.timeouts());
        Outcome::Accepted
    }

    fn close(&mut self, now: Time, close: &Close) -> Outcome {
        let engine = self.engine.clone();
        let Some((mut shard, slot)) = engine.table.locate(close.id) else { return Outcome::Accepted };
        let Some(original) = shard.sessions.get(slot).filter(|s| s.closed.is_none()).map(|s| s.original) else {
            return Outcome::Accepted;
        };
        self.copy_for_snapshot(engine.table.hash(&original), &mut shard);
        if let Some(session) = shard.sessions.get_mut(slot) {
            let before = session_digest(session);
            session.closed = Some(close.cause);
            // How it ends now does not depend on who uses it.
            session.flags.set(SessionFlag::Expiring, false);
            session.seen = Stamp17ms::rounded_up(now);
            let after = session_digest(session);
            self.count(&mut shard, after.wrapping_sub(before));
        }
        shard.sessions.arm(slot, now, &engine.timeouts());
        Outcome::Accepted
    }

    fn refresh(&mut self, now: Time, id: SessionId, wake: &mut dyn Wake) {
        let engine = self.engine.clone();
        let Some((mut shard, slot)) = engine.table.locate(id) else { return };
        let Some(original) = shard.sessions.get(slot).filter(|s| s.closed.is_none()).map(|s| s.original) else {
            return;
        };
        let hash = engine.table.hash(&original);
        self.copy_for_snapshot(hash, &mut shard);
        if let Some(session) = shard.sessions.get_mut(slot) {
            let before = session_digest(session);
            // Nobody's command is under way for 65,536 inquiries, which take a second each at least.
            session.refreshes = session.refreshes.wrapping_add(1);
            session.flags.set(SessionFlag::Expiring, false);
            session.seen = Stamp17ms::rounded_up(now);
            let after = session_digest(session);
            self.count(&mut shard, after.wrapping_sub(before));
        }
        let workers = shard.queries.take(hash);
        drop(shard);
        if !workers.is_empty() {
            wake.wake(workers, HoldKey(hash));
        }
    }

    fn expire_idle(&mut self, idle: &ExpireIdle, wake: &mut dyn Wake) {
        if idle.resumes != self.resumes {
            return;
        }
        for &(id, refreshes) in &idle.sessions {
            let engine = self.engine.clone();
            let hash = engine.table.locate(id).and_then(|(shard, slot)| {
                let session = shard.sessions.get(slot)?;
                (session.closed.is_none() && session.refreshes == refreshes)
                    .then(|| engine.table.hash(&session.original))
            });
            let Some(hash) = hash else { continue };
            self.remove(id);
            // A packet that came too late may open another one.
            let workers = engine.table.shard_for(hash).queries.take(hash);
            if !workers.is_empty() {
                wake.wake(workers, HoldKey(hash));
            }
        }
    }

    fn remove(&mut self, id: SessionId) {
        let engine = self.engine.clone();
        let Some((mut shard, slot)) = engine.table.locate(id) else { return };
        let Some(original) = shard.sessions.get(slot).map(|s| s.original) else { return };
        let hash = engine.table.hash(&original);
        self.copy_for_snapshot(hash, &mut shard);
        if let Some(session) = engine.table.remove(&mut shard, hash, slot) {
            self.forget(&mut shard, &session);
            self.ended.push(id);
        }
        // What is no longer in the table needs no close.
        while let Some((_, id, slot)) = shard.finished.front().copied() {
            if shard.sessions.get(slot).is_some_and(|s| s.id == id && s.closed.is_none()) {
                break;
            }
            shard.finished.pop_front();
        }
    }

    /// Adds to the digest, of everything and of the shard.
    fn count(&mut self, shard: &mut Shard, change: u64) {
        self.digest = self.digest.wrapping_add(change);
        shard.digest = shard.digest.wrapping_add(change);
    }

    fn forget(&mut self, shard: &mut Shard, session: &Session) {
        self.count(shard, session_digest(session).wrapping_neg());
        self.sessions -= 1;
        self.removed.insert(session.id);
    }
}

/// What is wrong with an establishment, whatever the state.
pub(super) fn invalid(establish: &Establish) -> Option<&'static str> {
    if establish.reply != establish.original.inverse() {
        return Some("the reply tuple is not the inverse: addresses are not translated at this feature level");
    }
    match (&establish.protocol, establish.original.protocol) {
        (HandshakeState::Tcp { server: Some(_), .. }, Protocol::TCP) => None,
        (HandshakeState::Generic { .. }, protocol) if protocol != Protocol::TCP => None,
        (HandshakeState::Tcp { server: None, .. }, Protocol::TCP) => Some("the server's end is missing"),
        _ => Some("the opening is not of the tuple's protocol"),
    }
}
