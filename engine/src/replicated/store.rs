//! What the replicated state needs of the session table, and what it leads to on this member.

use std::sync::Arc;

use crate::cluster_state::{Candidate, ClusterState, PolicyRecord};
use crate::id::SessionId;
use crate::replicated::Replicated;
use crate::session::{Close, EndedSession, Establish};
use crate::time::Time;
use crate::timeouts::Timeouts;
use crate::traffic::Traffic;
use crate::tuple::{PerDirection, Tuple};
use crate::verdict::HoldKey;
use crate::worker_set::WorkerSet;

/// The session table as the replicated state sees it. Sessions come, change and go only through it, on one thread.
///
/// What the table knows of a session besides its replicated part (when it was last active, its timer, packets that wait) is
/// the implementation's to keep up. What others have to do about it goes to [`Effects`]. Methods that change something
/// return by how much the sum of the sessions' digests has changed.
pub(crate) trait SessionStore {
    /// The tuple of the session with this id.
    fn tuple_of(&self, id: SessionId) -> Option<Tuple>;

    /// Has `admit` judge an establishment, with the session that has its tuple in either direction, and does what it says.
    /// The session's half-open entries end, or learn that the log has refused it.
    fn establish(
        &self,
        local: LocalContext<'_>,
        establish: &Establish,
        admit: &mut dyn FnMut(Option<&Replicated>) -> Admission,
        effects: &mut Effects,
    ) -> u64;

    /// Changes an open session; others stay as they are.
    fn change(
        &self,
        local: LocalContext<'_>,
        id: SessionId,
        change: &mut dyn FnMut(&mut Replicated),
        effects: &mut Effects,
    ) -> u64;

    /// Removes a session if `condition` holds of it. `ended` makes what is told of one that was open, from its replicated part
    /// and its traffic.
    fn remove(
        &self,
        id: SessionId,
        condition: &dyn Fn(&Replicated) -> bool,
        ended: &dyn Fn(&Replicated, PerDirection<Traffic>) -> EndedSession,
    ) -> Option<Removal>;

    /// Has the packets that wait for the log because of this tuple judged again.
    fn wake_waiting(&self, tuple: &Tuple, effects: &mut Effects);
}

/// The sessions of a snapshot that is read, beside those of the present state.
pub(crate) trait RestoredSessions {
    /// Adds one. Returns false if one with its id or tuple is there.
    fn add(&mut self, session: Replicated) -> bool;

    /// The number of sessions.
    fn len(&self) -> usize;

    /// The sum of the sessions' digests.
    fn digest(&self) -> u64;
}

/// What commands are applied with besides the state. It has no influence on what is replicated.
#[derive(Clone, Copy)]
pub(crate) struct LocalContext<'a> {
    pub(crate) now: Time,
    /// The timeouts of the active policy.
    pub(crate) timeouts: &'a Timeouts,
}

/// The judgement of an establishment.
pub(crate) enum Admission {
    /// It has been established before.
    Present,
    /// Add it, in the place of the session that has its tuple, if there is one.
    Insert(Replicated),
    Refuse(Refusal),
}

/// Why an establishment was refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// By another policy generation: it can be proposed again.
    Stale,
    Full,
    Conflict,
}

/// A session that was removed.
pub(crate) struct Removal {
    pub(crate) tuple: Tuple,
    /// Unless it was closed before.
    pub(crate) ended: Option<EndedSession>,
    /// By how much the sum of the sessions' digests has changed.
    pub(crate) digest_change: u64,
}

/// What a command leads to on this member alone.
#[derive(Default)]
pub(crate) struct Effects {
    /// Held packets to judge again.
    pub(crate) wakes: Vec<(WorkerSet, HoldKey)>,
    /// Closes to propose: of sessions that were reset while their establishment was under way.
    pub(crate) closes: Vec<Close>,
    /// The candidate that was put in force, and its record.
    pub(crate) enacted: Option<(Arc<Candidate>, Arc<PolicyRecord>)>,
    /// The cluster state to publish.
    pub(crate) cluster_state: Option<Box<ClusterState>>,
    /// The resume epoch to publish.
    pub(crate) resume_epoch: Option<u64>,
}

impl Effects {
    /// Wakes the workers, if there are any.
    pub(crate) fn wake(&mut self, workers: WorkerSet, hash: u64) {
        if !workers.is_empty() {
            self.wakes.push((workers, HoldKey(hash)));
        }
    }
}
