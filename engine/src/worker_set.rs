//! A set of packet workers.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// A set of packet workers, which are numbered from 0 to 63.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct WorkerSet(u64);

impl WorkerSet {
    /// The largest number of workers.
    pub const MAX_WORKERS: usize = 64;

    /// The empty set.
    pub const EMPTY: WorkerSet = WorkerSet(0);

    /// The set of one worker.
    #[must_use]
    pub const fn of(worker: u8) -> WorkerSet {
        // Masked, so that a number beyond the bound cannot overflow the shift.
        WorkerSet(1 << (worker & 63))
    }

    /// Adds a worker.
    pub fn insert(&mut self, worker: u8) {
        *self |= WorkerSet::of(worker);
    }

    /// Whether the set has this worker.
    #[must_use]
    pub const fn contains(self, worker: u8) -> bool {
        self.0 & WorkerSet::of(worker).0 != 0
    }

    /// Whether the set has no worker.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The workers, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let worker = u8::try_from(rest.trailing_zeros()).ok().filter(|_| rest != 0)?;
            rest &= rest - 1;
            Some(worker)
        })
    }
}

impl BitOr for WorkerSet {
    type Output = WorkerSet;

    fn bitor(self, other: WorkerSet) -> WorkerSet {
        WorkerSet(self.0 | other.0)
    }
}

impl BitOrAssign for WorkerSet {
    fn bitor_assign(&mut self, other: WorkerSet) {
        *self = *self | other;
    }
}

impl FromIterator<u8> for WorkerSet {
    fn from_iter<T: IntoIterator<Item = u8>>(workers: T) -> WorkerSet {
        workers.into_iter().fold(WorkerSet::EMPTY, |all, worker| all | WorkerSet::of(worker))
    }
}

impl<const N: usize> From<[u8; N]> for WorkerSet {
    fn from(workers: [u8; N]) -> WorkerSet {
        workers.into_iter().collect()
    }
}

impl fmt::Debug for WorkerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_set_iterates_over_its_workers_in_order() {
        let mut set = WorkerSet::EMPTY;
        assert!(set.is_empty() && set.iter().next().is_none());
        for worker in [63, 0, 5, 5] {
            set.insert(worker);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 5, 63]);
        assert_eq!(set, WorkerSet::from([5, 63, 0]));
        assert!(set.contains(63) && !set.contains(1));
        assert_eq!(WorkerSet::of(2) | set, WorkerSet::from([0, 2, 5, 63]));
        assert_eq!(format!("{set:?}"), "{0, 5, 63}");
    }
}
