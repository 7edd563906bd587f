//! Audits: what the state's digest was at the last indices, and how a state that differs is replaced.
//!
//! openraft installs snapshots only on members that are behind. A member whose state is wrong, though its log is not, is
//! repaired here, between two applies: [`Auditor::hold`] keeps openraft from applying, a snapshot that reaches at least
//! as far is fetched, and [`Held::replace`] puts it in place of the state. The entries that it covers come from openraft
//! all the same; the state machine leaves them out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::{fmt, io};

use tokio::sync::OwnedMutexGuard;

use crate::machine::{Core, Job, Machine};
use crate::snapshot::SnapshotFile;
use crate::types::LogId;

/// Digests kept of the last indices: some seconds of a busy log.
const RECENT: usize = 4096;
/// Every so many indices one is kept for longer, for members that are far behind …
const MARK: u64 = 4096;
/// … so many of them.
const MARKS: usize = 16;

/// Digests by index, oldest first.
#[derive(Default)]
pub(crate) struct Digests {
    recent: VecDeque<(u64, u64)>,
    marks: VecDeque<(u64, u64)>,
}

impl Digests {
    pub(crate) fn add(&mut self, index: u64, digest: u64) {
        let push = |to: &mut VecDeque<_>, most| {
            if to.len() >= most {
                to.pop_front();
            }
            to.push_back((index, digest));
        };
        push(&mut self.recent, RECENT);
        if index.is_multiple_of(MARK) {
            push(&mut self.marks, MARKS);
        }
    }

    fn at(&self, index: u64) -> Option<u64> {
        let find = |list: &VecDeque<(u64, u64)>| {
            list.binary_search_by_key(&index, |(at, _)| *at).ok().and_then(|place| list.get(place)).map(|(_, d)| *d)
        };
        find(&self.recent).or_else(|| find(&self.marks))
    }

    /// The last index and the marks before it, newest first.
    fn points(&self) -> Vec<(u64, u64)> {
        let last = self.recent.back().copied();
        let marks = self.marks.iter().rev().copied().filter(|mark| Some(*mark) != last);
        last.into_iter().chain(marks).collect()
    }
}

/// Compares and repairs a state machine's state while openraft has it.
pub struct Auditor<M>(Arc<Core<M>>);

impl<M> Clone for Auditor<M> {
    fn clone(&self) -> Self {
        Auditor(Arc::clone(&self.0))
    }
}

impl<M> fmt::Debug for Auditor<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auditor").finish_non_exhaustive()
    }
}

impl<M: Machine> Auditor<M> {
    pub(crate) fn new(core: Arc<Core<M>>) -> Auditor<M> {
        Auditor(core)
    }

    /// The digest at an index, if it is still known: of the last 4096 ones, and of every 4096th before them.
    #[must_use]
    pub fn digest_at(&self, index: u64) -> Option<u64> {
        self.0.inner.lock().digests.at(index)
    }

    /// Indices with their digests, to be compared with other members': the last one applied, and those before it that other
    /// members will remember for longest; newest first, at most 17.
    #[must_use]
    pub fn points(&self) -> Vec<(u64, u64)> {
        self.0.inner.lock().digests.points()
    }

    /// The last entry applied.
    #[must_use]
    pub fn applied(&self) -> Option<LogId> {
        self.0.inner.lock().applied
    }

    /// A snapshot of the state as it is now, kept nowhere: it goes when it is dropped.
    ///
    /// # Errors
    /// The disk's.
    pub async fn snapshot(&self) -> io::Result<SnapshotFile> {
        let guard = Arc::clone(&self.0.building).lock_owned().await;
        let core = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            // Until it is done, not until somebody has waited for it.
            let _guard = guard;
            let (meta, job) = core.inner.lock().begin();
            core.snapshots.write(&meta, |to| job.write(to))
        })
        .await
        .map_err(io::Error::other)?
    }

    /// Keeps openraft from applying for as long as what this yields lives.
    pub async fn hold(&self) -> Held<M> {
        let turn = Arc::clone(&self.0.turn).lock_owned().await;
        Held { core: Arc::clone(&self.0), _turn: turn }
    }

    /// Changes the state past the log: for tests of audits.
    #[cfg(any(test, feature = "testing"))]
    pub fn meddle<T>(&self, change: impl FnOnce(&mut M) -> T) -> T {
        let mut inner = self.0.inner.lock();
        let result = change(&mut inner.machine);
        let digest = inner.machine.digest();
        inner.digests.overwrite_last(digest);
        result
    }
}

#[cfg(any(test, feature = "testing"))]
impl Digests {
    fn overwrite_last(&mut self, digest: u64) {
        if let Some(last) = self.recent.back_mut() {
            last.1 = digest;
        }
    }
}

/// A state that does not change for now.
pub struct Held<M> {
    core: Arc<Core<M>>,
    _turn: OwnedMutexGuard<()>,
}

impl<M> fmt::Debug for Held<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

impl<M: Machine> Held<M> {
    /// The last entry applied.
    #[must_use]
    pub fn applied(&self) -> Option<LogId> {
        self.core.inner.lock().applied
    }

    /// Replaces the state by a snapshot's, which becomes this member's newest one: a restart must not bring the old state
    /// back. Then openraft goes on applying.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the snapshot does not reach what was applied, [`io::ErrorKind::InvalidData`] if
    /// it is damaged (the state is then as before), or the disk's.
    pub async fn replace(self, snapshot: SnapshotFile) -> io::Result<()> {
        if snapshot.meta().last_log_id < self.applied() {
            let what = format!("the snapshot {} does not reach what was applied here", snapshot.meta());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        self.core.replace(snapshot).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_indices_and_every_4096th_are_known() {
        let mut digests = Digests::default();
        let last = 20 * MARK + 7;
        for index in 3..=last {
            digests.add(index, index * 10);
        }
        assert_eq!(digests.at(last), Some(last * 10));
        assert_eq!(digests.at(last + 1), None);
        let oldest = last + 1 - RECENT as u64;
        assert_eq!((digests.at(oldest), digests.at(oldest - 1)), (Some(oldest * 10), None));
        assert_eq!((digests.at(5 * MARK), digests.at(4 * MARK)), (Some(50 * MARK), None));
        let points = digests.points();
        assert_eq!(points.len(), 17);
        assert_eq!((points[0], points[1]), ((last, last * 10), (20 * MARK, 200 * MARK)));
        assert!(points.is_sorted_by_key(|(index, _)| std::cmp::Reverse(*index)));
    }
}
