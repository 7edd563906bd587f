//! Writing a snapshot beside the log, which is on the same disk.
//!
//! What is written in one go keeps the disk busy, and the log's next flush waits for it. It waits in two ways: the disk works on
//! the data, and a journaling file system that commits the log's metadata first writes the data of all files that grew. So the
//! bytes go out at a bounded rate, in small pieces whose writing begins at once, and every few of them are synced: at no time is
//! there much of a snapshot that is not on the disk yet.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use palisade_engine::Time;
use parking_lot::Mutex;

use crate::clock::Clock;

/// The rate at which a snapshot is written, in bytes a second: a third of what a slow disk (50 MB/s) can do.
pub(crate) const WRITE_RATE: u64 = 16 << 20;
/// The rate at which a snapshot is received, or read to be sent, in bytes a second. The log of a member that needs one does not
/// count for the majority.
pub const TRANSFER_RATE: u64 = 32 << 20;

/// The bytes whose writing begins at once: 1.3 ms of a disk with 50 MB/s.
const PIECE: usize = 64 << 10;
/// The bytes after which the file is synced: a disk that is slower than the rate stops the writer here.
const SYNCED_PIECE: u64 = 4 << 20;
/// The longest sleep: a store that is closed does not wait for its snapshot.
const NAP: Duration = Duration::from_millis(50);

/// A token bucket: a bounded rate, whatever the clock that it is told.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// Bytes in a second.
    rate: u64,
    /// Time that may be saved up.
    burst: Duration,
    /// When everything taken so far is paid for.
    paid_at: Time,
}

impl TokenBucket {
    /// A bucket of `rate` bytes a second, in which at most `burst` bytes are saved up.
    #[must_use]
    pub fn new(rate: u64, burst: u64) -> TokenBucket {
        let rate = rate.max(1);
        TokenBucket { rate, burst: duration(burst, rate), paid_at: Time::ZERO }
    }

    /// Takes tokens for `bytes`. Returns how long to wait until they are there.
    pub fn take(&mut self, now: Time, bytes: u64) -> Duration {
        self.paid_at = self.paid_at.max(now - self.burst) + duration(bytes, self.rate);
        self.paid_at.since(now)
    }
}

fn duration(bytes: u64, rate: u64) -> Duration {
    let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// A seam for tests with a slow disk: called before that many bytes go to the disk, for as long as the disk would take.
#[derive(Clone, Default)]
pub struct SlowDisk(pub Option<Arc<dyn Fn(u64) + Send + Sync>>);

impl SlowDisk {
    /// A disk that does so many bytes a second, one transfer after the other.
    #[must_use]
    pub fn limited(rate: u64, clock: Clock) -> SlowDisk {
        let bucket = Mutex::new(TokenBucket::new(rate, 0));
        SlowDisk(Some(Arc::new(move |bytes| {
            let wait = bucket.lock().take(clock(), bytes);
            std::thread::sleep(wait);
        })))
    }

    pub(crate) fn transfer(&self, bytes: u64) {
        if let Some(transfer) = &self.0 {
            transfer(bytes);
        }
    }
}

impl std::fmt::Debug for SlowDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SlowDisk").field(&self.0.is_some()).finish()
    }
}

/// What all files of a store's snapshots are written with.
#[derive(Clone)]
pub(crate) struct Writing {
    pub(crate) clock: Clock,
    pub(crate) disk: SlowDisk,
    /// True once the store is closed.
    pub(crate) closed: Arc<AtomicBool>,
}

/// A file that is written at a bounded rate, in small pieces.
pub(crate) struct PacedFile {
    file: File,
    bucket: TokenBucket,
    writing: Writing,
    written: u64,
    /// The bytes whose writing has begun.
    begun: u64,
    synced: u64,
}

impl PacedFile {
    pub(crate) fn new(file: File, rate: u64, writing: Writing) -> PacedFile {
        let bucket = TokenBucket::new(rate, PIECE as u64);
        PacedFile { file, bucket, writing, written: 0, begun: 0, synced: 0 }
    }

    pub(crate) fn into_file(self) -> File {
        self.file
    }

    fn wait(&self, time: Duration) -> io::Result<()> {
        let end = (self.writing.clock)() + time;
        loop {
            if self.writing.closed.load(Ordering::Acquire) {
                // Not `Interrupted`, after which `write_all` tries again.
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the store is closed"));
            }
            let rest = end.since((self.writing.clock)());
            if rest.is_zero() {
                return Ok(());
            }
            std::thread::sleep(rest.min(NAP));
        }
    }

    /// Has the kernel write what it has of the file, and forget it: nobody reads it soon.
    fn begin_writing(&mut self) {
        let range = i64::try_from(self.begun).ok().zip(i64::try_from(self.written - self.begun).ok());
        if let Some((from, bytes)) = range {
            // Advice: where it is not taken, the next sync writes it.
            let _ = posix_fadvise(&self.file, from, bytes, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        self.begun = self.written;
    }
}

impl Write for PacedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        let wait = self.bucket.take((self.writing.clock)(), piece.len() as u64);
        self.wait(wait)?;
        self.writing.disk.transfer(piece.len() as u64);
        let len = self.file.write(piece)?;
        self.written += len as u64;
        if self.written - self.begun >= PIECE as u64 {
            self.begin_writing();
        }
        if self.written - self.synced >= SYNCED_PIECE {
            self.file.sync_data()?;
            self.synced = self.written;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_bucket_keeps_its_rate() {
        let mut bucket = TokenBucket::new(1000, 100);
        let (begin, mut now) = (Time(5_000_000_000), Time(5_000_000_000));
        let mut taken = 0;
        while taken < 10_000 {
            now = now + bucket.take(now, 50);
            taken += 50;
        }
        assert_eq!(now.since(begin), Duration::from_millis(9900), "all but the burst at 1000 a second");
    }

    #[test]
    fn token_bucket_saves_up_no_more_than_its_burst() {
        let mut bucket = TokenBucket::new(1000, 100);
        let now = Time(60_000_000_000);
        assert_eq!(bucket.take(now, 100), Duration::ZERO);
        assert_eq!(bucket.take(now, 100), Duration::from_millis(100));
        let later = now + Duration::from_secs(3600);
        assert_eq!(bucket.take(later, 100), Duration::ZERO);
        assert_eq!(bucket.take(later, 1000), Duration::from_secs(1));
    }

    /// A clock that goes on only when it is asked: by one step each time.
    fn stepping(step: Duration) -> Clock {
        let now = Mutex::new(Time(1_000_000_000));
        Arc::new(move || {
            let mut now = now.lock();
            *now = *now + step;
            *now
        })
    }

    #[test]
    fn paced_file_is_written_as_it_is_and_in_pieces() {
        let pieces = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&pieces);
        let disk = SlowDisk(Some(Arc::new(move |bytes| seen.lock().push(bytes))));
        let writing = Writing { clock: stepping(Duration::from_secs(1)), disk, closed: Arc::default() };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut file = PacedFile::new(File::create(&path).unwrap(), 1 << 20, writing);
        let bytes: Vec<u8> = (0..9_000_000_u32).map(|n| n as u8).collect();
        file.write_all(&bytes).unwrap();
        assert_eq!(file.synced, 2 * SYNCED_PIECE);
        assert!(file.written - file.begun < PIECE as u64);
        file.into_file().sync_all().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert!(pieces.lock().iter().all(|piece| *piece <= PIECE as u64));
    }

    #[test]
    fn paced_file_of_a_closed_store_ends() {
        let closed = Arc::new(AtomicBool::new(false));
        let writing = Writing {
            clock: stepping(Duration::from_nanos(1)),
            disk: SlowDisk::default(),
            closed: Arc::clone(&closed),
        };
        // At this rate it would take years.
        let mut file = PacedFile::new(tempfile::tempfile().unwrap(), 1, writing);
        closed.store(true, Ordering::Release);
        assert_eq!(file.write_all(&[0; 1000]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
