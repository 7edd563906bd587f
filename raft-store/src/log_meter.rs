//! How many bytes of log there are: since an entry, and which entry is so many bytes back.

use std::collections::VecDeque;

use openraft::EntryPayload;

use crate::types::Entry;

/// Bytes between two marks.
const STEP: u64 = 1 << 10;
/// Maximum number of marks: 4 MiB of memory. What is before the first one counts as nothing.
const MARKS: usize = 1 << 18;

/// The bytes of a record besides its commands.
const RECORD: u64 = 40;

/// About how many bytes an entry takes on the disk.
fn bytes(entry: &Entry) -> u64 {
    let payload = match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Membership(membership) => 64 * membership.nodes().count(),
        EntryPayload::Normal(batch) => batch.commands.iter().map(|command| command.size().encoded).sum(),
    };
    RECORD + payload as u64
}

/// Measures the entries that are applied.
#[derive(Debug, Default)]
pub(crate) struct LogMeter {
    total: u64,
    last: u64,
    /// Entries with the bytes up to and with them, since the start.
    marks: VecDeque<(u64, u64)>,
}

impl LogMeter {
    /// Begins after a snapshot that covers the entries up to `index`.
    pub(crate) fn starting_after(index: u64) -> LogMeter {
        LogMeter { total: 0, last: index, marks: VecDeque::from([(index, 0)]) }
    }

    pub(crate) fn add(&mut self, entry: &Entry) {
        self.count(entry.log_id.index, bytes(entry));
    }

    fn count(&mut self, index: u64, bytes: u64) {
        (self.total, self.last) = (self.total + bytes, index);
        if self.marks.back().is_none_or(|(_, marked)| self.total - marked >= STEP) {
            if self.marks.len() >= MARKS {
                self.marks.pop_front();
            }
            self.marks.push_back((index, self.total));
        }
    }

    /// The bytes of all entries since the start.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The last entry.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// The bytes of the entries up to and with `index`, since the start; exact to a mark, and never too few.
    pub(crate) fn up_to(&self, index: u64) -> u64 {
        let after = self.marks.partition_point(|(marked, _)| *marked < index);
        self.marks.get(after).map_or(self.total, |(_, bytes)| *bytes)
    }

    /// The last entry that is followed by at least `bytes` up to and with `index`; exact to a mark, and never a later one.
    pub(crate) fn before(&self, index: u64, bytes: u64) -> Option<u64> {
        let wanted = self.marks.get(self.marks.partition_point(|(marked, _)| *marked <= index).checked_sub(1)?)?.1;
        let wanted = wanted.checked_sub(bytes)?;
        let after = self.marks.partition_point(|(_, marked)| *marked <= wanted);
        self.marks.get(after.checked_sub(1)?).map(|(index, _)| *index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_meter_finds_entries_by_bytes() {
        let mut meter = LogMeter::starting_after(100);
        for index in 101..=1100 {
            meter.count(index, 256);
        }
        assert_eq!((meter.total(), meter.last()), (256_000, 1100));
        assert_eq!(meter.up_to(100), 0);
        assert_eq!(meter.up_to(500), 400 * 256);
        assert_eq!(meter.up_to(501), 404 * 256, "to the next mark");
        assert_eq!(meter.up_to(5000), 256_000);
        assert_eq!(meter.before(1100, 0), Some(1100));
        assert_eq!(meter.before(1100, 1024), Some(1096));
        assert_eq!(meter.before(1099, 1025), Some(1088), "never a later one");
        assert_eq!(meter.before(1100, 256_000), Some(100));
        assert_eq!(meter.before(1100, 256_001), None);
        assert_eq!(meter.before(50, 0), None);
    }

    #[test]
    fn log_meter_forgets_the_oldest_marks() {
        let mut meter = LogMeter::default();
        let marks = MARKS as u64;
        for index in 1..=2 * marks {
            meter.count(index, STEP);
        }
        assert_eq!(meter.marks.len(), MARKS);
        assert_eq!(meter.before(2 * marks, STEP * (marks - 1)), Some(marks + 1));
        assert_eq!(meter.before(2 * marks, STEP * marks), None);
    }
}
