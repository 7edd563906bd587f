//! What a member cannot read, because another version of Palisade wrote it: an entry of the log, or a snapshot.
//!
//! The member that meets it stores nothing of it, says so in its answer, and stops ([`UnreadableAlarm`]). The leader goes on
//! without it and asks it again with pauses ([`Refusals`]): it may have been updated meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use palisade_engine::{MemberId, Time};
use palisade_raft_store::{Thing, Unreadable};
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataValue;

use crate::clock;

/// In the metadata of a refusal: the index of what cannot be read, 0 if it has none.
const INDEX: &str = "palisade-unreadable";
/// Pause after the first refusal of a member; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause. A member that was updated waits so long for its entries at worst.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// How long a member that stops waits, so that its answer still reaches the leader.
const ANSWER_TIME: Duration = Duration::from_millis(250);

/// What to do about it.
pub(crate) const REMEDY: &str = "install on this machine the version of Palisade that the other members run (`palisade cluster status` on one of them), and \
     start it again: it goes on where it stopped, and nothing is lost. Going back to an older version is possible only until \
     the level is raised";

/// The refusal of something that cannot be read.
pub(crate) fn refusal(unreadable: &Unreadable) -> Status {
    let index = match unreadable.thing {
        Thing::Entry(index) | Thing::Snapshot(Some(index)) => index,
        Thing::Snapshot(None) | Thing::Proposal | Thing::Record(_) => 0,
    };
    let mut status = Status::failed_precondition(unreadable.to_string());
    status.metadata_mut().insert(INDEX, MetadataValue::from(index));
    status
}

/// The index in such a refusal; `None` for another status.
fn refused_index(status: &Status) -> Option<u64> {
    status.metadata().get(INDEX)?.to_str().ok()?.parse().ok()
}

/// Whether a status says that something cannot be read.
pub(crate) fn is_refusal(status: &Status) -> bool {
    refused_index(status).is_some()
}

/// Stops a member that cannot read what it is to store or to apply.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnreadableAlarm(Arc<watch::Sender<Option<Unreadable>>>);

impl UnreadableAlarm {
    /// Raises the alarm. The first one counts.
    pub(crate) fn raise(&self, unreadable: &Unreadable) {
        self.0.send_if_modified(|raised| {
            let first = raised.is_none();
            if first {
                tracing::error!("this member cannot read {unreadable}: it stops");
                *raised = Some(unreadable.clone());
            }
            first
        });
    }

    /// Raises the alarm once the refusal that says the same has been sent.
    pub(crate) fn raise_after_answer(&self, unreadable: &Unreadable) {
        let (alarm, unreadable) = (self.clone(), unreadable.clone());
        tokio::spawn(async move {
            tokio::time::sleep(ANSWER_TIME).await;
            alarm.raise(&unreadable);
        });
    }

    /// What raised it, if it was raised.
    pub(crate) fn raised(&self) -> Option<Unreadable> {
        self.0.borrow().clone()
    }

    /// Waits until it is raised. Cancel-safe.
    pub(crate) async fn wait(&self) -> Unreadable {
        let mut raised = self.0.subscribe();
        loop {
            if let Some(unreadable) = raised.borrow_and_update().clone() {
                return unreadable;
            }
            if raised.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// On the leader: the members that answered that they cannot read an entry or a snapshot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How many there are: nearly always none, and then nothing is locked.
    count: AtomicUsize,
    members: Mutex<BTreeMap<MemberId, Refusal>>,
}

#[derive(Debug)]
struct Refusal {
    /// What cannot be read, as the member says it.
    what: String,
    index: u64,
    /// Refusals, one after another.
    times: u32,
    /// When it may be asked again.
    ask_at: Time,
}

impl Refusals {
    /// Takes in a member's refusal, if `status` is one. Whether it is.
    pub(crate) fn record(&self, member: MemberId, status: &Status) -> bool {
        let Some(index) = refused_index(status) else { return false };
        let mut members = self.0.members.lock();
        let times = members.get(&member).map_or(0, |refusal| refusal.times).saturating_add(1);
        let pause = FIRST_PAUSE.saturating_mul(1 << (times - 1).min(16)).min(MAX_PAUSE);
        if times == 1 {
            tracing::error!(%member, "a member cannot read {}; it stops, and the others go on", status.message());
        }
        let what = status.message().to_owned();
        members.insert(member, Refusal { what, index, times, ask_at: clock::now() + pause });
        self.0.count.store(members.len(), Ordering::Relaxed);
        true
    }

    /// A member has acknowledged everything up to `index`.
    pub(crate) fn acknowledged(&self, member: MemberId, index: u64) {
        if self.0.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut members = self.0.members.lock();
        if members.get(&member).is_some_and(|refusal| refusal.index <= index) {
            members.remove(&member);
            self.0.count.store(members.len(), Ordering::Relaxed);
            tracing::info!(%member, "the member reads the log again");
        }
    }

    /// Waits until a member may be asked again.
    pub(crate) async fn pause(&self, member: MemberId) {
        let ask_at = self.0.members.lock().get(&member).map(|refusal| refusal.ask_at);
        if let Some(ask_at) = ask_at {
            tokio::time::sleep(ask_at.since(clock::now())).await;
        }
    }

    /// What a member cannot read.
    pub(crate) fn get(&self, member: MemberId) -> Option<String> {
        self.0.members.lock().get(&member).map(|refusal| refusal.what.clone())
    }
}

/// For tests: the entries that this member takes for those of a version with the next level. Its leader has them as any others.
#[cfg(test)]
#[derive(Clone, Default)]
pub(crate) struct ForeignEntries(Arc<Mutex<Foreign>>);

#[cfg(test)]
#[derive(Default)]
struct Foreign {
    from: Option<u64>,
    refused: u64,
}

#[cfg(test)]
impl ForeignEntries {
    /// Takes the entries from this index on for such ones; `None`: none, as after an update of the program.
    pub(crate) fn set(&self, from: Option<u64>) {
        self.0.lock().from = from;
    }

    /// How often such an entry was refused.
    pub(crate) fn refused(&self) -> u64 {
        self.0.lock().refused
    }

    pub(crate) fn find(&self, entries: &[palisade_raft_store::Entry]) -> Option<Unreadable> {
        let mut foreign = self.0.lock();
        let from = foreign.from?;
        let found = entries.iter().find(|entry| entry.log_id.index >= from)?;
        foreign.refused += 1;
        let unknown = palisade_raft_store::Unknown::Level(palisade_engine::Level::HIGHEST.next());
        Some(Unreadable { thing: Thing::Entry(found.log_id.index), unknown })
    }
}

#[cfg(test)]
mod tests {
    use palisade_engine::Level;
    use palisade_raft_store::Unknown;

    use super::*;

    fn unreadable(index: u64) -> Unreadable {
        Unreadable { thing: Thing::Entry(index), unknown: Unknown::Level(Level::HIGHEST.next()) }
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_of_a_member_are_asked_for_with_longer_and_longer_pauses() {
        let (refusals, member) = (Refusals::default(), MemberId(2));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(refusals.record(member, &refusal(&unreadable(7))));
            let now = clock::now();
            pauses.push(refusals.0.members.lock()[&member].ask_at.since(now).as_millis().div_ceil(250));
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 20, 20, 20]);
        assert!(refusals.get(member).unwrap().contains("entry 7"));
        refusals.acknowledged(member, 6);
        assert!(refusals.get(member).is_some(), "what it cannot read is still before it");
        refusals.acknowledged(member, 7);
        assert_eq!(refusals.get(member), None);
        assert!(!refusals.record(member, &Status::failed_precondition("another member")));
        assert_eq!(refusals.get(member), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_alarm_counts() {
        let alarm = UnreadableAlarm::default();
        alarm.raise_after_answer(&unreadable(7));
        assert_eq!(alarm.raised(), None);
        assert_eq!(alarm.wait().await, unreadable(7));
        alarm.raise(&unreadable(8));
        assert_eq!(alarm.wait().await, unreadable(7));
    }
}
