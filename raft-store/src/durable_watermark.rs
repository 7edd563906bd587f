//! The durable watermark: the number of the last durable group, in a file beside the database.
//!
//! sled's recovery stops at the first place that is torn. That is right after a power cut, where what is torn was never
//! acknowledged; but a byte that the disk has changed looks the same, and then everything after it would be gone without
//! a word, acknowledged entries and votes among it. So every group ends with its number in the database, and when the
//! group is durable the number is written to the file `durable_watermark`. At the start the database must reach at least the
//! number in the file; otherwise it is damaged.
//!
//! The file is not synced with every group (a number that is too old only means a weaker check), so it costs one
//! `pwrite`. It is never ahead of the database.
//!
//! ```text
//! two slots, 512 bytes apart, written in turn:  number (u64) · crc32 (u32)      big endian
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Apart from each other, so that a torn write hits one slot only.
const SLOT: u64 = 512;

#[derive(Debug)]
pub(crate) struct DurableWatermark {
    file: File,
    number: u64,
}

impl DurableWatermark {
    /// Opens the watermark at `path`, or makes it. `None`: it is there, but cannot be read.
    pub(crate) fn open(path: &Path) -> io::Result<Option<DurableWatermark>> {
        let is_new = !path.exists();
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut watermark = DurableWatermark { file, number: 0 };
        if is_new {
            watermark.record(0)?;
            watermark.file.sync_all()?;
            return Ok(Some(watermark));
        }
        let Some(number) = [0, 1].into_iter().filter_map(|slot| watermark.read(slot)).max() else { return Ok(None) };
        watermark.number = number;
        Ok(Some(watermark))
    }

    fn read(&self, slot: u64) -> Option<u64> {
        let mut bytes = [0; 12];
        self.file.read_exact_at(&mut bytes, slot * SLOT).ok()?;
        let (number, crc) = bytes.split_first_chunk::<8>()?;
        (crc32fast::hash(number).to_be_bytes() == *crc).then_some(u64::from_be_bytes(*number))
    }

    /// The number of the last group known to be durable.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Group `number` is durable.
    pub(crate) fn record(&mut self, number: u64) -> io::Result<()> {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        bytes[8..].copy_from_slice(&crc32fast::hash(&number.to_be_bytes()).to_be_bytes());
        self.file.write_all_at(&bytes, (number % 2) * SLOT)?;
        self.number = number;
        Ok(())
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermark_survives_one_torn_slot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("durable_watermark");
        let open = || DurableWatermark::open(&path).unwrap();
        let mut watermark = open().unwrap();
        for number in 1..=7 {
            watermark.record(number).unwrap();
            assert_eq!(open().unwrap().number(), number);
        }
        watermark.file.write_all_at(&[0xff; 6], SLOT).unwrap();
        assert_eq!(open().unwrap().number(), 6);
        watermark.file.write_all_at(&[0xff; 6], 0).unwrap();
        assert!(open().is_none());
    }
}
