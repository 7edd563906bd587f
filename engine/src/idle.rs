//! How idle sessions end: only if no member passed a packet of them within their timeout.
//!
//! ```text
//!  leader: Engine::idle ─> Engine::inquiry (marks) ─ ids ─> every member: Engine::still_idle (marks)
//!                                                              │ idle at all of them
//!                                                              v
//!                          ExpireIdle(resumes, refreshes) ─> the log ─> removed everywhere, or nowhere
//!  a packet of a marked session: held ─> Refresh ─> the log ─> the mark goes, the packet passes
//! ```
//!
//! Between a member's answer and the removal there no packet passes without the log's leave. An answer binds the member
//! until the log says otherwise, not for some time: the command may be late by any time. A member that forgets its answers
//! (it restarts, its state was replaced), or passes packets again without having been asked (it was cut off), resumes by the log
//! before it passes any; and then nothing ends by answers that are older.

use std::sync::atomic::Ordering;

use crate::engine::Engine;
use crate::id::SessionId;
use crate::replica::ExpireIdle;
use crate::table::session::SessionFlag;
use crate::time::Time;

/// The leader's question to all members about sessions that are idle at the leader itself.
#[derive(Clone, Debug, Default)]
pub struct Inquiry {
    resumes: u64,
    open: Vec<(SessionId, u16)>,
    closed: Vec<SessionId>,
}

impl Inquiry {
    /// The sessions that the others are to be asked about.
    pub fn ids(&self) -> impl Iterator<Item = SessionId> {
        self.open.iter().map(|(id, _)| *id).chain(self.closed.iter().copied())
    }

    /// The commands, of at most `most` sessions each, that end those which are idle at all members: open sessions, if that is
    /// still so, and those in TIME_WAIT.
    pub fn end(&self, idle: impl Fn(&SessionId) -> bool, most: usize) -> (Vec<ExpireIdle>, Vec<Vec<SessionId>>) {
        let open: Vec<_> = self.open.iter().copied().filter(|(id, _)| idle(id)).collect();
        let closed: Vec<_> = self.closed.iter().copied().filter(|id| idle(id)).collect();
        let most = most.max(1);
        let expire = |sessions: &[_]| ExpireIdle { resumes: self.resumes, sessions: sessions.to_vec() };
        (open.chunks(most).map(expire).collect(), closed.chunks(most).map(<[_]>::to_vec).collect())
    }
}

impl Engine {
    /// The leader begins an inquiry about sessions that it found idle; from now on packets of those that it asks about pass
    /// here only after a `Refresh`.
    #[must_use]
    pub fn inquiry(&self, now: Time, found: &[SessionId]) -> Inquiry {
        // First: who resumes from now on voids it.
        let resumes = self.resumes.load(Ordering::Acquire);
        let mut inquiry = Inquiry { resumes, ..Inquiry::default() };
        let timeouts = self.timeouts();
        for &id in found {
            let Some((mut shard, slot)) = self.table.locate(id) else { continue };
            let Some(session) = shard.sessions.get_mut(slot).filter(|s| s.is_idle(now, &timeouts)) else { continue };
            if session.closed.is_some() {
                inquiry.closed.push(id);
            } else {
                session.flags.set(SessionFlag::Expiring, true);
                inquiry.open.push((id, session.refreshes));
            }
        }
        inquiry
    }

    /// Keeps of `ids` those that are idle here for longer than their timeout, or unknown: from now on packets of them pass here
    /// only after a `Refresh`. To be called only on a member that has applied all that the leader had when it asked: what is
    /// unknown has ended then.
    pub fn still_idle(&self, now: Time, ids: &mut Vec<SessionId>) {
        let timeouts = self.timeouts();
        ids.retain(|&id| {
            let Some((mut shard, slot)) = self.table.locate(id) else { return true };
            let Some(session) = shard.sessions.get_mut(slot) else { return true };
            let idle = session.is_idle(now, &timeouts);
            if idle && session.closed.is_none() {
                session.flags.set(SessionFlag::Expiring, true);
            }
            idle
        });
    }

    /// So many times members have resumed.
    pub(crate) fn resumed(&self, resumes: u64) {
        self.resumes.store(resumes, Ordering::Release);
    }
}
