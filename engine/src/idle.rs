//! How idle sessions end: only if no member has forwarded a packet of them within their timeout.
//!
//! ```text
//!  leader: Engine::idle ─> Engine::probe_idle (flags) ─ ids ─> every member: Engine::confirm_idle (flags)
//!                                                              │ idle at all of them
//!                                                              v
//!                     ExpireIdle(resume epoch, activity epochs) ─> the log ─> removed everywhere, or nowhere
//!  a packet of a flagged session: held ─> Refresh ─> the log ─> the flag is cleared, the packet passes
//! ```
//!
//! Between a member's report and the removal on this member, no packet of the session passes unless the log permits it. A
//! report binds the member until the log says otherwise, not for some time: the command may be late by any time. A member
//! that forgets its reports (it restarts, its state was replaced), or forwards packets again without having been asked (it
//! was isolated), begins a new resume epoch in the log before it forwards any. Nothing is removed by reports of an older
//! epoch. For the same reason a member that has joined and never resumed need not be asked: it has forwarded nothing, and begins
//! an epoch before it does.

use std::sync::atomic::Ordering;

use crate::engine::Engine;
use crate::id::SessionId;
use crate::replicated::ExpireIdle;
use crate::table::session::SessionFlag;
use crate::time::Time;

/// The leader's question to all members whether sessions that are idle at the leader are idle everywhere.
#[derive(Clone, Debug, Default)]
pub struct IdleProbe {
    resume_epoch: u64,
    /// Open sessions, with their activity epochs.
    open: Vec<(SessionId, u16)>,
    closed: Vec<SessionId>,
}

impl IdleProbe {
    /// The sessions that the other members are to be asked about.
    pub fn ids(&self) -> impl Iterator<Item = SessionId> {
        self.open.iter().map(|(id, _)| *id).chain(self.closed.iter().copied())
    }

    /// The commands that remove the sessions that are idle at all members: of open sessions, and of those in TIME_WAIT. Each
    /// has at most `max` sessions.
    pub fn commands(&self, is_idle: impl Fn(&SessionId) -> bool, max: usize) -> (Vec<ExpireIdle>, Vec<Vec<SessionId>>) {
        let open: Vec<_> = self.open.iter().copied().filter(|(id, _)| is_idle(id)).collect();
        let closed: Vec<_> = self.closed.iter().copied().filter(|id| is_idle(id)).collect();
        let max = max.max(1);
        let expire = |sessions: &[_]| ExpireIdle { resume_epoch: self.resume_epoch, sessions: sessions.to_vec() };
        (open.chunks(max).map(expire).collect(), closed.chunks(max).map(<[_]>::to_vec).collect())
    }
}

impl Engine {
    /// Begins a probe, on the leader, of sessions that it found idle. From now on packets of those that are open pass here
    /// only after a `Refresh`.
    #[must_use]
    pub fn probe_idle(&self, now: Time, found: &[SessionId]) -> IdleProbe {
        // First: a member that resumes from now on makes it void.
        let resume_epoch = self.resume_epoch.load(Ordering::Acquire);
        let mut probe = IdleProbe { resume_epoch, ..IdleProbe::default() };
        let timeouts = self.timeouts();
        for &id in found {
            let Some((mut shard, slot)) = self.table.locate(id) else { continue };
            let Some(session) = shard.sessions.get_mut(slot).filter(|s| s.is_idle(now, &timeouts)) else { continue };
            if session.is_open() {
                session.local.flags.set(SessionFlag::Expiring, true);
                probe.open.push((id, session.replicated().activity_epoch()));
            } else {
                probe.closed.push(id);
            }
        }
        probe
    }

    /// Keeps of `ids` the sessions that are idle here for their timeout, or unknown. From now on packets of them pass here
    /// only after a `Refresh`. To be called only on a member that has applied all that the leader had applied when it asked:
    /// a session that is unknown has ended then.
    pub fn confirm_idle(&self, now: Time, ids: &mut Vec<SessionId>) {
        // The timeouts are the policy's.
        if !self.is_policy_compiled() {
            ids.clear();
            return;
        }
        let timeouts = self.timeouts();
        ids.retain(|&id| {
            let Some((mut shard, slot)) = self.table.locate(id) else { return true };
            let Some(session) = shard.sessions.get_mut(slot) else { return true };
            let is_idle = session.is_idle(now, &timeouts);
            if is_idle && session.is_open() {
                session.local.flags.set(SessionFlag::Expiring, true);
            }
            is_idle
        });
    }
}
