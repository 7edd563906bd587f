//! The digests of the state at recent indices, which members compare in audits.

use std::collections::VecDeque;

/// Digests kept of the last indices: some seconds of a busy log.
const RECENT: usize = 4096;
/// Distance in indices of the digests that are kept longer, for members that are far behind.
const MARK: u64 = 4096;
/// How many of those are kept.
const MARKS: usize = 16;

/// Digests by index, oldest first.
#[derive(Default)]
pub(crate) struct Digests {
    recent: VecDeque<(u64, u64)>,
    marks: VecDeque<(u64, u64)>,
}

impl Digests {
    pub(crate) fn add(&mut self, index: u64, digest: u64) {
        let push = |to: &mut VecDeque<_>, max_len| {
            if to.len() >= max_len {
                to.pop_front();
            }
            to.push_back((index, digest));
        };
        push(&mut self.recent, RECENT);
        if index.is_multiple_of(MARK) {
            push(&mut self.marks, MARKS);
        }
    }

    pub(crate) fn at(&self, index: u64) -> Option<u64> {
        let find = |list: &VecDeque<(u64, u64)>| {
            list.binary_search_by_key(&index, |(at, _)| *at).ok().and_then(|place| list.get(place)).map(|(_, d)| *d)
        };
        find(&self.recent).or_else(|| find(&self.marks))
    }

    /// The last index and the marks before it, newest first.
    pub(crate) fn points(&self) -> Vec<(u64, u64)> {
        let last = self.recent.back().copied();
        let marks = self.marks.iter().rev().copied().filter(|mark| Some(*mark) != last);
        last.into_iter().chain(marks).collect()
    }
}

#[cfg(any(test, feature = "testing"))]
impl Digests {
    pub(crate) fn overwrite_last(&mut self, digest: u64) {
        if let Some(last) = self.recent.back_mut() {
            last.1 = digest;
        }
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
