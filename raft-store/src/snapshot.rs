//! Snapshots as files.
//!
//! ```text
//! "PALISNAP" · version (u16) · level (u16) · length of meta (u32) · meta · crc32 of all this (u32)
//! body: what the machine wrote
//! length of body (u64) · crc32 of everything before (u32)                       integers big endian
//! ```
//!
//! The level is that in force when it was made. It is checked before anything else of the file is decoded.
//!
//! A snapshot is written under a temporary name, synced, renamed, and its folder synced: under its name it is whole or
//! not there. What travels between members is the file as it is, so a receiver checks what the builder wrote.
//!
//! The last two are kept, in case the newest turns out to be damaged; the older one helps for as long as the log still
//! reaches back to it ([`LogLimits::keep`](crate::LogLimits::keep)). They are written beside the log: see [`pace`].

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use palisade_engine::replica::RestoreError;
use palisade_engine::{Level, Time};
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::encoding::Encoded;
use crate::error::StoreError;
use crate::fs::sync;
use crate::metrics::StoreMetrics;
use crate::record::damaged;
use crate::types::SnapshotMeta;
use crate::unreadable::{Thing, Unknown, Unreadable};

mod lent;
pub(crate) mod pace;

use lent::{AllLent, Kept, Lent};
pub use lent::{LentLimits, SnapshotPin};
use pace::{PacedFile, SlowDisk, TRANSFER_RATE, WRITE_RATE, Writing};

const MAGIC: &[u8; 8] = b"PALISNAP";
const VERSION: u16 = 2;
const PREAMBLE: usize = 16;
const TRAILER: u64 = 12;
/// Longer than any membership.
const META_MAX: u32 = 16 << 20;
/// Snapshots to keep.
const KEEP: usize = 2;
const SUFFIX: &str = "snap";

/// Where the bytes of a snapshot are.
#[derive(Clone, Debug)]
enum Bytes {
    File(Arc<File>),
    Memory(Arc<Vec<u8>>),
}

impl Bytes {
    fn read_at(&self, to: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Bytes::File(file) => file.read_at(to, offset),
            Bytes::Memory(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or(&[]);
                let len = rest.len().min(to.len());
                to[..len].copy_from_slice(&rest[..len]);
                Ok(len)
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        match self {
            Bytes::File(file) => Ok(file.metadata()?.len()),
            Bytes::Memory(bytes) => Ok(bytes.len() as u64),
        }
    }
}

/// Reads a part of a snapshot from its beginning on.
struct Part {
    bytes: Bytes,
    at: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let max_bytes = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(to.len());
        let len = self.bytes.read_at(&mut to[..max_bytes], self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// A file that goes when it is dropped, unless it was kept.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Temporary {
    fn keep_as(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a temporary file could not be removed");
        }
    }
}

/// A snapshot, readable: openraft's `SnapshotData`. Its bytes stay readable also after its file was replaced.
#[derive(Debug)]
pub struct SnapshotFile {
    meta: SnapshotMeta,
    level: Level,
    bytes: Bytes,
    len: u64,
    body: (u64, u64),
    /// The folder whose snapshot it is under its final name.
    home: Option<PathBuf>,
    temporary: Option<Temporary>,
    /// Counts those who have it; see [`SnapshotPin`].
    lent: Option<Arc<Lent>>,
}

impl SnapshotFile {
    /// What it covers.
    #[must_use]
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Its length in bytes, as it travels.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a snapshot is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// At most `max_bytes` bytes from `offset` on, as they travel; empty at the end. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    pub fn chunk(&self, offset: u64, max_bytes: usize) -> io::Result<Vec<u8>> {
        let max_bytes = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(max_bytes);
        let mut chunk = vec![0; max_bytes];
        let mut filled = 0;
        while filled < max_bytes {
            match self.bytes.read_at(&mut chunk[filled..], offset + filled as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                len => filled += len,
            }
        }
        Ok(chunk)
    }

    /// The level in force when it was made.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// What of its content this program does not know, if `error` says so.
    pub(crate) fn unreadable(&self, error: &RestoreError) -> Option<Unreadable> {
        let unknown = match error {
            RestoreError::Level(unknown) => Unknown::Level(unknown.level),
            RestoreError::Kind(_) => Unknown::Content { level: Some(self.level), error: error.to_string() },
            _ => return None,
        };
        let thing = Thing::Snapshot(self.meta.last_log_id.as_ref().map(|id| id.index));
        Some(Unreadable { thing, unknown })
    }

    /// What keeps it lent, if it is.
    #[must_use]
    pub fn pin(&self) -> Option<SnapshotPin> {
        self.lent.as_ref().map(|lent| SnapshotPin(Arc::clone(lent)))
    }

    /// The last entry that it covers; 0 if it covers none.
    fn index(&self) -> u64 {
        self.meta.last_log_id.as_ref().map_or(0, |id| id.index)
    }

    /// What the machine wrote.
    pub(crate) fn body(&self) -> impl Read + use<> {
        let (at, end) = self.body;
        io::BufReader::with_capacity(1 << 18, Part { bytes: self.bytes.clone(), at, end })
    }

    /// Reads the header.
    fn parse(bytes: Bytes, home: Option<PathBuf>) -> io::Result<SnapshotFile> {
        let len = bytes.len()?;
        let mut reader = Part { bytes: bytes.clone(), at: 0, end: len };
        let mut preamble = [0; PREAMBLE];
        reader.read_exact(&mut preamble).map_err(|_| damaged("it is too short"))?;
        if preamble[..8] != *MAGIC {
            return Err(damaged("it does not begin as a snapshot"));
        }
        let meta_len = be32(&preamble[12..16]);
        if meta_len > META_MAX || u64::from(meta_len) > len {
            return Err(damaged("its header is too long"));
        }
        let mut meta = vec![0; meta_len as usize];
        let mut crc = [0; 4];
        reader.read_exact(&mut meta).map_err(|_| damaged("it ends in its header"))?;
        reader.read_exact(&mut crc).map_err(|_| damaged("it ends in its header"))?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&preamble);
        hasher.update(&meta);
        if hasher.finalize() != be32(&crc) {
            return Err(damaged("the checksum of its header is wrong"));
        }
        let level = check_header(&preamble)?;
        let begin = reader.at;
        let end = len.checked_sub(TRAILER).filter(|end| *end >= begin).ok_or_else(|| damaged("it has no end"))?;
        Ok(SnapshotFile {
            meta: SnapshotMeta::decode(Thing::Snapshot(None), &meta)?,
            level,
            bytes,
            len,
            body: (begin, end),
            home,
            temporary: None,
            lent: None,
        })
    }

    /// One in memory, checked.
    #[cfg(test)]
    pub(crate) fn from_memory(bytes: Vec<u8>) -> io::Result<SnapshotFile> {
        let snapshot = SnapshotFile::parse(Bytes::Memory(Arc::new(bytes)), None)?;
        snapshot.verify()?;
        Ok(snapshot)
    }

    /// Reads all of it and checks it.
    fn verify(&self) -> io::Result<()> {
        let mut reader = Part { bytes: self.bytes.clone(), at: 0, end: self.len };
        let mut hasher = crc32fast::Hasher::new();
        let mut buffer = vec![0; 1 << 18];
        let hashed = self.len - 4;
        while reader.at < hashed {
            let max_bytes = usize::try_from(hashed - reader.at).unwrap_or(usize::MAX).min(buffer.len());
            match reader.read(&mut buffer[..max_bytes])? {
                0 => return Err(damaged("it became shorter")),
                len => hasher.update(&buffer[..len]),
            }
        }
        let trailer = self.chunk(self.len - TRAILER, TRAILER as usize)?;
        let body = trailer.first_chunk::<8>().map_or(0, |len| u64::from_be_bytes(*len));
        if body != self.body.1 - self.body.0 {
            return Err(damaged("its length is wrong"));
        }
        if hasher.finalize() != be32(&trailer[8..]) {
            return Err(damaged("its checksum is wrong"));
        }
        Ok(())
    }
}

/// Checks version and level, of a header whose checksum is right. Returns the level.
fn check_header(preamble: &[u8; PREAMBLE]) -> io::Result<Level> {
    let [.., version_high, version_low, level_high, level_low, _, _, _, _] = *preamble;
    let version = u16::from_be_bytes([version_high, version_low]);
    let level = Level(u16::from_be_bytes([level_high, level_low]));
    let unknown = match (version, level.check()) {
        (VERSION, Ok(level)) => return Ok(level),
        (VERSION, Err(unknown)) => Unknown::Level(unknown.level),
        _ => Unknown::Layout(version),
    };
    Err(Unreadable { thing: Thing::Snapshot(None), unknown }.into())
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.first_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Counts and hashes what goes through.
struct Hashing<W> {
    to: W,
    hasher: crc32fast::Hasher,
    written: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.to.write(bytes)?;
        self.hasher.update(&bytes[..len]);
        self.written += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Writes a whole snapshot.
fn encode<W: Write>(
    to: W,
    level: Level,
    meta: &SnapshotMeta,
    body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<W> {
    let mut to = Hashing { to, hasher: crc32fast::Hasher::new(), written: 0 };
    let meta = meta.encode(level)?;
    let meta_len = u32::try_from(meta.len()).ok().filter(|len| *len <= META_MAX);
    let meta_len =
        meta_len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a membership that is too long"))?;
    to.write_all(MAGIC)?;
    to.write_all(&VERSION.to_be_bytes())?;
    to.write_all(&level.0.to_be_bytes())?;
    to.write_all(&meta_len.to_be_bytes())?;
    to.write_all(&meta)?;
    let crc = to.hasher.clone().finalize();
    to.write_all(&crc.to_be_bytes())?;
    let begin = to.written;
    body(&mut to)?;
    let body_len = to.written - begin;
    to.write_all(&body_len.to_be_bytes())?;
    let crc = to.hasher.clone().finalize();
    to.write_all(&crc.to_be_bytes())?;
    to.flush()?;
    Ok(to.to)
}

/// The snapshots of one member. Cheap to clone: all clones are the same.
#[derive(Clone)]
pub struct Snapshots(Arc<Shared>);

struct Shared {
    /// Where the files are; none: they are in memory.
    folder: Option<PathBuf>,
    writing: Writing,
    temporaries: AtomicU64,
    current: Mutex<Option<Current>>,
    lent: AllLent,
    metrics: StoreMetrics,
}

struct Current {
    bytes: Bytes,
    newest: Newest,
}

impl Current {
    fn of(snapshot: &SnapshotFile) -> Current {
        let newest = Newest { index: snapshot.index(), bytes: snapshot.len };
        Current { bytes: snapshot.bytes.clone(), newest }
    }
}

/// The newest snapshot's last entry and length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newest {
    pub(crate) index: u64,
    pub(crate) bytes: u64,
}

/// How fast a snapshot is written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Beside the log, whose flushes do not wait for it.
    Bounded,
    /// Nothing else is to be written.
    Full,
}

impl std::fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshots").field("folder", &self.0.folder).finish_non_exhaustive()
    }
}

impl Snapshots {
    /// Snapshots that are kept in memory only, for tests and simulation.
    #[must_use]
    pub fn memory(clock: Clock) -> Snapshots {
        Snapshots::new(None, clock, SlowDisk::default())
    }

    fn new(folder: Option<PathBuf>, clock: Clock, disk: SlowDisk) -> Snapshots {
        Snapshots(Arc::new(Shared {
            folder,
            writing: Writing { clock, disk, closed: Arc::default() },
            temporaries: AtomicU64::new(0),
            current: Mutex::new(None),
            lent: AllLent::default(),
            metrics: StoreMetrics::default(),
        }))
    }

    /// The snapshots of this folder, which is made if need be; what was left half-written in it is removed.
    pub(crate) fn folder(folder: &Path, clock: Clock, disk: SlowDisk) -> Result<Snapshots, StoreError> {
        let clean = || {
            fs::create_dir_all(folder)?;
            for file in fs::read_dir(folder)? {
                let path = file?.path();
                if path.extension().is_some_and(|extension| extension == "tmp") {
                    fs::remove_file(path)?;
                }
            }
            Ok(())
        };
        clean().map_err(StoreError::io("open the snapshots in", folder))?;
        Ok(Snapshots::new(Some(folder.to_owned()), clock, disk))
    }

    /// The good snapshots, newest first, each checked when its turn comes; damaged ones are left out, with a warning. One that
    /// another version of Palisade wrote is an error: an older one in its place would be a step back unnoticed.
    pub(crate) fn good(&self) -> io::Result<impl Iterator<Item = Result<SnapshotFile, Unreadable>>> {
        let mut paths = match &self.0.folder {
            Some(folder) => files(folder)?,
            None => Vec::new(),
        };
        paths.reverse();
        let from_memory = if self.0.folder.is_none() { self.current()? } else { None };
        let from_files = paths.into_iter().filter_map(|path| {
            let snapshot = File::open(&path).and_then(|file| {
                let home = path.parent().map(Path::to_owned);
                let snapshot = SnapshotFile::parse(Bytes::File(Arc::new(file)), home)?;
                snapshot.verify()?;
                Ok(snapshot)
            });
            snapshot.map(Ok).or_else(|error| Unreadable::find(&error).cloned().map(Err).ok_or(error)).map_or_else(
                |error| {
                    tracing::warn!(path = %path.display(), %error, "a snapshot is damaged: skipped");
                    None
                },
                Some,
            )
        });
        Ok(from_memory.into_iter().map(Ok).chain(from_files))
    }

    /// Makes `snapshot` the one that is handed out.
    pub(crate) fn set_current(&self, snapshot: &SnapshotFile) {
        *self.0.current.lock() = Some(Current::of(snapshot));
    }

    /// The newest snapshot, lent: the log that follows it is kept for whoever gets it.
    ///
    /// # Errors
    /// The disk's.
    pub fn current(&self) -> io::Result<Option<SnapshotFile>> {
        let current = self.0.current.lock();
        let Some(current) = current.as_ref() else { return Ok(None) };
        let mut snapshot = SnapshotFile::parse(current.bytes.clone(), self.0.folder.clone())?;
        snapshot.lent = Some(self.0.lent.lend(current.newest.index, (self.0.writing.clock)()));
        Ok(Some(snapshot))
    }

    /// What the newest snapshot covers.
    pub(crate) fn newest(&self) -> Option<Newest> {
        self.0.current.lock().as_ref().map(|current| current.newest)
    }

    /// What is kept of the log for receivers of snapshots.
    pub(crate) fn lent(&self, now: Time, limits: &LentLimits, bytes_since: impl Fn(u64) -> u64) -> Kept {
        self.0.lent.keeps(now, limits, bytes_since)
    }

    /// The metrics of the store that they belong to.
    pub(crate) fn metrics(&self) -> &StoreMetrics {
        &self.0.metrics
    }

    /// Ends what is being written.
    pub(crate) fn close(&self) {
        self.0.writing.closed.store(true, Ordering::Release);
    }

    fn temporary(&self, folder: &Path) -> io::Result<(Temporary, File)> {
        let number = self.0.temporaries.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{number}.tmp"));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok((Temporary { path, kept: false }, file))
    }

    /// Writes a snapshot and makes it the current one. Blocks.
    pub(crate) fn build(
        &self,
        level: Level,
        meta: &SnapshotMeta,
        pace: Pace,
        body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<SnapshotFile> {
        let metrics = &self.0.metrics.snapshots;
        metrics.under_way.set(true);
        let built = self.write(level, meta, pace, body).and_then(|written| self.keep(written));
        metrics.under_way.set(false);
        let built = built?;
        self.set_current(&built);
        metrics.written.inc();
        metrics.bytes.set(built.len);
        Ok(built)
    }

    /// Writes a snapshot that goes when it is dropped. Blocks.
    pub(crate) fn write(
        &self,
        level: Level,
        meta: &SnapshotMeta,
        pace: Pace,
        body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<SnapshotFile> {
        Ok(match &self.0.folder {
            None => SnapshotFile::parse(Bytes::Memory(Arc::new(encode(Vec::new(), level, meta, body)?)), None)?,
            Some(folder) => {
                let (temporary, file) = self.temporary(folder)?;
                let file = match pace {
                    Pace::Bounded => {
                        let paced = PacedFile::new(file, WRITE_RATE, self.0.writing.clone());
                        let buffered = encode(BufWriter::with_capacity(1 << 16, paced), level, meta, body)?;
                        buffered.into_inner().map_err(io::IntoInnerError::into_error)?.into_file()
                    }
                    Pace::Full => encode(BufWriter::with_capacity(1 << 18, file), level, meta, body)?
                        .into_inner()
                        .map_err(io::IntoInnerError::into_error)?,
                };
                let mut snapshot = SnapshotFile::parse(Bytes::File(Arc::new(file)), None)?;
                snapshot.temporary = Some(temporary);
                snapshot
            }
        })
    }

    /// Begins to receive a snapshot of at most `longest` bytes, as it travels.
    ///
    /// # Errors
    /// The disk's.
    pub fn receive(&self, longest: u64) -> io::Result<SnapshotReceiver> {
        let to = match &self.0.folder {
            None => Receiving::Memory(Vec::new()),
            Some(folder) => {
                let (temporary, file) = self.temporary(folder)?;
                let paced = PacedFile::new(file, TRANSFER_RATE, self.0.writing.clone());
                Receiving::File(temporary, BufWriter::with_capacity(1 << 16, paced))
            }
        };
        Ok(SnapshotReceiver { to, received: 0, longest })
    }

    /// Makes a verified snapshot this member's own and current one. Blocks.
    pub(crate) fn adopt(&self, snapshot: SnapshotFile) -> io::Result<()> {
        self.set_current(&self.keep(snapshot)?);
        Ok(())
    }

    /// Makes a verified snapshot this member's own, durably, and forgets those that are too old. Blocks.
    fn keep(&self, mut snapshot: SnapshotFile) -> io::Result<SnapshotFile> {
        let Some(folder) = &self.0.folder else { return Ok(snapshot) };
        if snapshot.temporary.as_ref().is_none_or(|temporary| temporary.path.parent() != Some(folder))
            && snapshot.home.as_ref() != Some(folder)
        {
            // Another member's, in the same process: copy it.
            let (temporary, mut file) = self.temporary(folder)?;
            io::copy(&mut Part { bytes: snapshot.bytes.clone(), at: 0, end: snapshot.len }, &mut file)?;
            snapshot = SnapshotFile::parse(Bytes::File(Arc::new(file)), None)?;
            snapshot.temporary = Some(temporary);
        }
        if let Some(temporary) = snapshot.temporary.take() {
            if let Bytes::File(file) = &snapshot.bytes {
                file.sync_all()?;
            }
            temporary.keep_as(&folder.join(name(&snapshot.meta)))?;
            sync(folder)?;
        }
        let mut files = files(folder)?;
        files.truncate(files.len().saturating_sub(KEEP));
        for old in files {
            fs::remove_file(old)?;
        }
        Ok(snapshot)
    }
}

/// A snapshot's id and file name: where it ends. Names sort as the positions do.
fn name(meta: &SnapshotMeta) -> String {
    match &meta.last_log_id {
        Some(id) => format!("{:020}-{:020}-{}.{SUFFIX}", id.index, id.leader_id.term, id.leader_id.node_id),
        None => format!("empty.{SUFFIX}"),
    }
}

/// The snapshots in the folder, oldest first.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == SUFFIX) {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

/// A snapshot that is coming in. Dropped before [`SnapshotReceiver::finish`], it leaves nothing behind.
pub struct SnapshotReceiver {
    to: Receiving,
    received: u64,
    longest: u64,
}

impl std::fmt::Debug for SnapshotReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReceiver").field("received", &self.received).finish_non_exhaustive()
    }
}

enum Receiving {
    File(Temporary, BufWriter<PacedFile>),
    Memory(Vec<u8>),
}

impl SnapshotReceiver {
    /// Takes the next bytes. Blocks on the disk.
    ///
    /// # Errors
    /// If it gets too long, or the disk's.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.received += bytes.len() as u64;
        if self.received > self.longest {
            let what = format!("a snapshot of more than {} bytes", self.longest);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
        }
        match &mut self.to {
            Receiving::File(_, file) => file.write_all(bytes),
            Receiving::Memory(memory) => {
                memory.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// All is there: checks it. What comes out goes to openraft with its own [`SnapshotFile::meta`]. Blocks.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if it is damaged or incomplete; or the disk's.
    pub fn finish(self) -> io::Result<SnapshotFile> {
        let snapshot = match self.to {
            Receiving::Memory(memory) => SnapshotFile::parse(Bytes::Memory(Arc::new(memory)), None)?,
            Receiving::File(temporary, file) => {
                let file = file.into_inner().map_err(io::IntoInnerError::into_error)?.into_file();
                let mut snapshot = SnapshotFile::parse(Bytes::File(Arc::new(file)), None)?;
                snapshot.temporary = Some(temporary);
                snapshot
            }
        };
        snapshot.verify()?;
        Ok(snapshot)
    }
}
