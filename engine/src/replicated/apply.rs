//! Applying a command.

use super::dedup::SerialStatus;
use super::store::{Admission, Effects, LocalContext, Refusal, SessionStore};
use super::{
    Applied, Batch, Command, ExpireIdle, ForbiddenSessions, InvalidReason, MemberChange, Outcome, Replicated,
    StateMachine, WallTenths,
};
use crate::id::SessionId;
use crate::session::{Close, EndCause, EndedSession, Establish, HandshakeState};
use crate::tuple::{Protocol, Tuple};

/// The sessions that a command ends.
struct Over {
    /// The proposer's wall clock.
    now: WallTenths,
    removed: Vec<SessionId>,
    ended: Vec<EndedSession>,
}

impl StateMachine {
    /// Begins a batch. A batch of a member that has left is not applied: all its commands have the outcome that is the error.
    pub(crate) fn begin_batch(&mut self, batch: &Batch) -> Result<(), Outcome> {
        if self.has_left(batch.proposer) {
            return Err(Outcome::Invalid(InvalidReason::HasLeft(batch.proposer)));
        }
        self.dedup.advance(batch.proposer, batch.lowest_outstanding);
        Ok(())
    }

    /// Applies the command at this position of a batch that was begun.
    pub(crate) fn apply(
        &mut self,
        store: &impl SessionStore,
        local: LocalContext<'_>,
        batch: &Batch,
        at: usize,
    ) -> (Applied, Effects) {
        let mut effects = Effects::default();
        let serial = batch.first_serial.checked_add(at as u64);
        let status = serial.map_or(SerialStatus::OutOfRange, |serial| self.dedup.status(batch.proposer, serial));
        let applied = match (status, serial, batch.commands.get(at)) {
            (SerialStatus::Duplicate(outcome), ..) => Applied::unchanged(outcome),
            (SerialStatus::Expired, ..) => Applied::unchanged(Outcome::SerialExpired),
            (SerialStatus::New, Some(serial), Some(_)) => {
                // The digest is that of everything that is replicated.
                let before = self.digest();
                let mut over =
                    Over { now: WallTenths::from_unix_ms(batch.unix_ms), removed: Vec::new(), ended: Vec::new() };
                let outcome = self.command(store, local, batch, at, &mut over, &mut effects);
                let changed = self.digest() != before;
                self.dedup.record(batch.proposer, serial, &outcome);
                Applied { outcome, changed, removed: over.removed, ended: over.ended }
            }
            _ => Applied::unchanged(Outcome::Invalid(InvalidReason::SerialOutOfRange)),
        };
        (applied, effects)
    }

    fn command(
        &mut self,
        store: &impl SessionStore,
        local: LocalContext<'_>,
        batch: &Batch,
        at: usize,
        over: &mut Over,
        effects: &mut Effects,
    ) -> Outcome {
        let Some(command) = batch.commands.get(at) else { return Outcome::Accepted };
        let needed = command.level();
        if needed > self.register.cluster.level && !matches!(command, Command::Member(MemberChange::Init { .. })) {
            return Outcome::Invalid(InvalidReason::NeedsLevel(needed));
        }
        match command {
            Command::Establish(establish) => return self.establish(store, local, establish, over.now, effects),
            Command::Close(Close { id, cause }) => {
                let close = &mut |session: &mut Replicated| {
                    session.close(*cause);
                    over.ended.push(session.ended(over.now, (*cause).into(), None));
                };
                let change = store.change(local, *id, close, effects);
                self.add_to_digest(change);
            }
            Command::Refresh(ids) => {
                for id in ids {
                    let change = store.change(local, *id, &mut Replicated::refresh, effects);
                    self.add_to_digest(change);
                }
            }
            Command::Expire(ids) => ids.iter().for_each(|id| {
                self.remove(store, *id, &|_| true, EndCause::Idle, over);
            }),
            Command::Revoke(ids) => ids.iter().for_each(|id| {
                self.remove(store, *id, &|_| true, EndCause::Revoked, over);
            }),
            Command::RevokeForbidden(forbidden) => return self.revoke_forbidden(store, forbidden, over, effects),
            Command::ExpireIdle(idle) => self.expire_idle(store, idle, over, effects),
            Command::Resume => {
                self.resume_epoch = self.resume_epoch.wrapping_add(1);
                effects.resume_epoch = Some(self.resume_epoch);
                self.has_come(batch.proposer, effects);
            }
            Command::Policy(change) => return self.take_candidate(change, batch.unix_ms, effects),
            Command::Enact(enact) => return self.enact(enact, batch, at, effects),
            Command::Withdraw(withdraw) => return self.withdraw(withdraw, effects),
            Command::Member(change) => return self.change_members(change, batch.unix_ms, effects),
            #[cfg(feature = "next-level")]
            Command::Note(note) => {
                self.register.cluster.note = *note;
                self.register_changed(effects);
            }
            Command::Level(level) => {
                let outcome = self.register.raise_level(*level);
                self.register_changed(effects);
                return outcome;
            }
            Command::Settings(change) => return self.change_settings(change, batch.unix_ms, effects),
        }
        Outcome::Accepted
    }

    fn establish(
        &mut self,
        store: &impl SessionStore,
        local: LocalContext<'_>,
        establish: &Establish,
        now: WallTenths,
        effects: &mut Effects,
    ) -> Outcome {
        if let Some(why) = invalid(establish) {
            return Outcome::Invalid(why);
        }
        let id_is_taken = store.tuple_of(establish.id).is_some_and(|tuple| tuple != establish.original);
        let mut judged = (Outcome::Accepted, None);
        let change = store.establish(
            local,
            establish,
            &mut |occupant| {
                let (outcome, admission) = self.judge(establish, occupant, id_is_taken, now);
                let superseded = occupant.map(Replicated::id).filter(|_| matches!(admission, Admission::Insert(_)));
                judged = (outcome, matches!(admission, Admission::Insert(_)).then_some(superseded));
                admission
            },
            effects,
        );
        self.add_to_digest(change);
        let (outcome, inserted) = judged;
        if let Some(superseded) = inserted {
            self.sessions += 1;
            superseded.into_iter().for_each(|id| self.release(id));
        }
        outcome
    }

    /// Judges an establishment. `occupant` is the session that has its tuple.
    fn judge(
        &self,
        establish: &Establish,
        occupant: Option<&Replicated>,
        id_is_taken: bool,
        now: WallTenths,
    ) -> (Outcome, Admission) {
        if occupant.is_some_and(|session| session.id() == establish.id) {
            return (Outcome::Accepted, Admission::Present);
        }
        if id_is_taken || self.tombstones.contains(establish.id) {
            return (Outcome::Conflict, Admission::Refuse(Refusal::Conflict));
        }
        let active = self.register.generation;
        if establish.generation != active {
            return (Outcome::Stale(active), Admission::Refuse(Refusal::Stale));
        }
        match occupant {
            Some(old) if old.is_open() || establish.supersedes != Some(old.id()) => {
                (Outcome::Conflict, Admission::Refuse(Refusal::Conflict))
            }
            None if self.sessions >= self.register.cluster.settings.values.max_sessions() => {
                (Outcome::Full, Admission::Refuse(Refusal::Full))
            }
            _ => (Outcome::Accepted, Admission::Insert(Replicated::new(establish, now))),
        }
    }

    fn expire_idle(&mut self, store: &impl SessionStore, idle: &ExpireIdle, over: &mut Over, effects: &mut Effects) {
        if idle.resume_epoch != self.resume_epoch {
            return;
        }
        for &(id, epoch) in &idle.sessions {
            let confirm_idle = |session: &Replicated| session.is_open() && session.activity_epoch() == epoch;
            if let Some(tuple) = self.remove(store, id, &confirm_idle, EndCause::Idle, over) {
                // A packet that came too late may open another session.
                store.wake_waiting(&tuple, effects);
            }
        }
    }

    fn revoke_forbidden(
        &mut self,
        store: &impl SessionStore,
        forbidden: &ForbiddenSessions,
        over: &mut Over,
        effects: &mut Effects,
    ) -> Outcome {
        let generation = self.register.generation;
        if forbidden.generation != generation {
            return Outcome::Stale(generation);
        }
        let is_older = |session: &Replicated| session.is_open() && session.generation() < generation;
        for &id in &forbidden.sessions {
            if let Some(tuple) = self.remove(store, id, &is_older, EndCause::Forbidden(generation), over) {
                store.wake_waiting(&tuple, effects);
            }
        }
        Outcome::Accepted
    }

    fn remove(
        &mut self,
        store: &impl SessionStore,
        id: SessionId,
        condition: &dyn Fn(&Replicated) -> bool,
        cause: EndCause,
        over: &mut Over,
    ) -> Option<Tuple> {
        let now = over.now;
        let removal = store.remove(id, condition, &|session, traffic| session.ended(now, cause, Some(traffic)))?;
        self.add_to_digest(removal.digest_change);
        self.release(id);
        over.removed.push(id);
        over.ended.extend(removal.ended);
        Some(removal.tuple)
    }

    fn add_to_digest(&mut self, change: u64) {
        self.sessions_digest = self.sessions_digest.wrapping_add(change);
    }

    /// Counts a session that is no longer in the table, and keeps its id from coming back.
    fn release(&mut self, id: SessionId) {
        self.sessions -= 1;
        self.tombstones.insert(id);
    }
}

impl Applied {
    /// A command without an effect.
    pub(crate) fn unchanged(outcome: Outcome) -> Applied {
        Applied { outcome, changed: false, removed: Vec::new(), ended: Vec::new() }
    }
}

/// What is wrong with an establishment, whatever the state.
pub(super) fn invalid(establish: &Establish) -> Option<InvalidReason> {
    if establish.reply != establish.original.inverse() {
        return Some(InvalidReason::ReplyNotInverse);
    }
    match (&establish.protocol, establish.original.protocol) {
        (HandshakeState::Tcp { server: Some(_), .. }, Protocol::TCP) => None,
        (HandshakeState::Generic { .. }, protocol) if protocol != Protocol::TCP => None,
        (HandshakeState::Tcp { server: None, .. }, Protocol::TCP) => Some(InvalidReason::NoServer),
        _ => Some(InvalidReason::HandshakeProtocol),
    }
}
