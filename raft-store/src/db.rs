//! The database: its trees and records, and what makes them durable.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::durable_watermark::DurableWatermark;
use crate::encoding::Encoded;
use crate::error::{StoreError, sled_io};
use crate::record::{open_meta, seal_meta};

/// The storage format that this program reads and writes.
pub(crate) const FORMAT: u32 = 4;
pub(crate) const FORMAT_RECORD: &str = "format";
pub(crate) const STARTS: &str = "starts";
pub(crate) const OWNER: &str = "owner";

pub(crate) const VOTE: &str = "vote";
pub(crate) const COMMITTED: &str = "committed";
pub(crate) const PURGED: &str = "purged";
pub(crate) const GROUP: &str = "group";

/// Makes durable what has been written: when `wait` has returned, it survives a power cut. The seam for other
/// durabilities than "disk".
pub trait Barrier: Send + 'static {
    /// Waits until everything written to `db` before is durable.
    ///
    /// # Errors
    /// The system's. What was written may then be lost; the store accepts nothing more.
    fn wait(&mut self, db: &sled::Db) -> io::Result<()>;
}

/// Durability "disk".
///
/// sled's `flush` only hands the data to the file and calls `sync_file_range`, which writes neither the file's size and
/// extents nor the disk's own cache; so an `fdatasync` on an own handle of the same file has to follow.
#[derive(Debug)]
pub struct DiskBarrier {
    file: File,
}

impl DiskBarrier {
    /// For the database in the folder `db`, which must exist.
    ///
    /// # Errors
    /// If the database file cannot be opened.
    pub fn new(db: &Path) -> io::Result<DiskBarrier> {
        Ok(DiskBarrier { file: File::options().read(true).write(true).open(db.join("db"))? })
    }
}

impl Barrier for DiskBarrier {
    fn wait(&mut self, db: &sled::Db) -> io::Result<()> {
        flush(db)?;
        self.file.sync_data()
    }
}

/// sled's own flush, for barriers: it is *not* durable by itself (see [`DiskBarrier`]).
///
/// # Errors
/// sled's.
pub fn flush(db: &sled::Db) -> io::Result<()> {
    db.flush().map(|_| ()).map_err(sled_io)
}

/// Ends a group: writes its number, waits until all of it is durable, and records that in the watermark.
pub(crate) fn durable(trees: &Trees, barrier: &mut dyn Barrier, watermark: &mut DurableWatermark) -> io::Result<()> {
    let number = watermark.number() + 1;
    trees.meta.insert(GROUP, seal_meta(GROUP, &number)?).map_err(sled_io)?;
    barrier.wait(&trees.db)?;
    watermark.record(number)
}

/// The trees that the log lies in.
#[derive(Clone)]
pub(crate) struct Trees {
    pub(crate) db: sled::Db,
    pub(crate) log: sled::Tree,
    pub(crate) meta: sled::Tree,
}

/// sled takes a half-written snapshot of its own for a damaged one and does not open. It was never in use.
pub(crate) fn remove_half_written(db_dir: &Path) -> io::Result<()> {
    let files = match fs::read_dir(db_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        files => files?,
    };
    for file in files {
        let file = file?;
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::info!(file = %name, "removing a half-written file of the database");
            fs::remove_file(file.path())?;
        }
    }
    Ok(())
}

pub(crate) fn open_sled(dir: &Path, db_dir: &Path, cache_bytes: u64) -> Result<sled::Db, StoreError> {
    let config = sled::Config::new().path(db_dir).cache_capacity(cache_bytes).flush_every_ms(None);
    // sled asserts in places where it reads what it has not written.
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        // Ours has been taken already: it is a thread of sled's, of a store of this process that was dropped a moment ago.
        Ok(Err(error)) if error.to_string().contains("could not acquire lock") => {
            Err(StoreError::Locked { dir: dir.to_owned() })
        }
        Ok(Err(error)) => Err(from_sled(dir, error)),
        Err(_) => Err(StoreError::damaged(dir, "the database cannot be recovered")),
    }
}

pub(crate) fn from_sled(dir: &Path, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) if error.kind() != io::ErrorKind::InvalidData => {
            StoreError::io("open the database in", dir)(error)
        }
        error => StoreError::damaged_by(dir, "the database", sled_io(error)),
    }
}

pub(crate) fn get<T: Encoded>(dir: &Path, trees: &Trees, name: &'static str) -> Result<Option<T>, StoreError> {
    let Some(record) = trees.meta.get(name).map_err(|error| from_sled(dir, error))? else { return Ok(None) };
    open_meta(name, &record).map(Some).map_err(|error| StoreError::damaged_by(dir, "the database", error))
}

pub(crate) fn put(dir: &Path, trees: &Trees, name: &str, value: &impl Encoded) -> Result<(), StoreError> {
    let record = seal_meta(name, value).map_err(StoreError::io("write", dir))?;
    trees.meta.insert(name, record).map_err(|error| from_sled(dir, error))?;
    Ok(())
}

pub(crate) fn check_format(dir: &Path, trees: &Trees) -> Result<(), StoreError> {
    match get::<u32>(dir, trees, FORMAT_RECORD)? {
        Some(FORMAT) => Ok(()),
        Some(found) => Err(StoreError::Version { dir: dir.to_owned(), found, known: FORMAT }),
        // The format is written with the first flush; without it nothing was ever acknowledged.
        None if trees.meta.is_empty() && trees.log.is_empty() => Ok(()),
        None => Err(StoreError::damaged(dir, "the database has no format record")),
    }
}
