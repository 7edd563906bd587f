//! How much a member wants to lead.

use palisade_engine::{MemberId, MemberInfo};
use tokio::sync::watch;

use crate::peer::connections::Members;

/// A member's priority in elections.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum ElectionPriority {
    /// The same as any other member's.
    #[default]
    Normal,
    /// Drained, or not where the others look for it: it campaigns only if no other member can lead.
    LastResort,
    /// It leaves or stops: it never campaigns, and rather leaves leadership to drained members.
    Never,
}

/// The task that says which priority is in force: the one that was asked for, unless this member was moved. As long as the
/// cluster knows another address of it, it reaches the others and they do not reach it: if it led, nobody else would get a lease.
pub(crate) struct PriorityInForce {
    pub(crate) me: MemberId,
    /// What this member says of itself.
    pub(crate) own: MemberInfo,
    pub(crate) members: watch::Receiver<Members>,
    pub(crate) asked: watch::Receiver<ElectionPriority>,
    pub(crate) in_force: watch::Sender<ElectionPriority>,
}

impl PriorityInForce {
    pub(crate) async fn run(mut self) {
        loop {
            let moved = self.members.borrow_and_update().get(&self.me).is_some_and(|m| m.address != self.own.address);
            let least = if moved { ElectionPriority::LastResort } else { ElectionPriority::Normal };
            let priority = (*self.asked.borrow_and_update()).max(least);
            self.in_force.send_if_modified(|now| std::mem::replace(now, priority) != priority);
            // An error means that the replication is gone; this task is aborted then.
            let changed = tokio::select! {
                changed = self.members.changed() => changed,
                changed = self.asked.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }
}
