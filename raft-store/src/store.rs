//! The data folder: lock, format, owner, opening and checking.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::Clock;
use crate::core::{ReplicatedState, Setup};
use crate::db::{
    self, Barrier, COMMITTED, DiskBarrier, FORMAT, FORMAT_RECORD, GROUP, OWNER, PURGED, STARTS, Trees, VOTE, durable,
    get, put,
};
use crate::durable_watermark::DurableWatermark;
use crate::encoding::Encoded;
use crate::error::{StoreError, StoreOwner, sled_io};
use crate::flush::Flusher;
use crate::fs::{Lock, sync};
use crate::log::{LogReader, LogStore};
use crate::record::{Entries, damaged, key, parse_key, within};
use crate::snapshot::Snapshots;
use crate::snapshot::pace::SlowDisk;
use crate::state_machine::StateMachine;
use crate::tail::{Tail, TailState};
use crate::types::{Entry, LogId};
use crate::unreadable::Thing;

/// How a store works. The format on disk does not depend on it.
pub struct Options {
    /// How many bytes of recent log entries to keep in memory.
    pub recent_bytes: usize,
    /// How much memory sled may use for its pages.
    pub sled_cache_bytes: u64,
    /// The clock: for the figures, and for what is applied.
    pub clock: Clock,
    /// For tests with a slow disk.
    pub disk: SlowDisk,
}

impl Options {
    /// The usual sizes.
    #[must_use]
    pub fn new(clock: Clock) -> Options {
        Options { recent_bytes: 16 << 20, sled_cache_bytes: 64 << 20, clock, disk: SlowDisk::default() }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("recent_bytes", &self.recent_bytes)
            .field("sled_cache_bytes", &self.sled_cache_bytes)
            .finish_non_exhaustive()
    }
}

/// An open data folder. [`Store::into_parts`] makes of it what openraft needs.
pub struct Store {
    pub(crate) dir: PathBuf,
    lock: Arc<Lock>,
    pub(crate) trees: Trees,
    pub(crate) state: TailState,
    pub(crate) barrier: Box<dyn Barrier>,
    pub(crate) watermark: DurableWatermark,
    pub(crate) snapshots: Snapshots,
    pub(crate) options: Options,
    start: u32,
    owner: Option<StoreOwner>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.dir)
            .field("start", &self.start)
            .field("owner", &self.owner)
            .field("log", &self.state.log_state())
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the data folder `dir`, or makes it. Blocks; checks every record of the log.
    ///
    /// # Errors
    /// [`StoreError`]: in use, damaged, another version's, or not accessible.
    pub fn open(dir: &Path, options: Options) -> Result<Store, StoreError> {
        Store::open_with(dir, options, |db| Ok(Box::new(DiskBarrier::new(db)?)))
    }

    /// As [`Store::open`], with another [`Barrier`], made for the database's folder.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open_with(
        dir: &Path,
        options: Options,
        barrier: impl FnOnce(&Path) -> io::Result<Box<dyn Barrier>>,
    ) -> Result<Store, StoreError> {
        fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
        let lock = Arc::new(Lock::take(dir)?);
        let db_dir = dir.join("db");
        let is_new = !db_dir.join("db").exists();
        if is_new && fs::read_dir(dir.join("snapshots")).is_ok_and(|mut files| files.next().is_some()) {
            return Err(StoreError::damaged(dir, "there are snapshots, but no database"));
        }
        let watermark_path = dir.join("durable_watermark");
        if !is_new && !watermark_path.exists() {
            return Err(StoreError::damaged(dir, "there is a database, but no watermark of how far it goes"));
        }
        let watermark = DurableWatermark::open(&watermark_path).map_err(StoreError::io("open", &watermark_path))?;
        let mut watermark = watermark.ok_or_else(|| StoreError::damaged(dir, "the watermark cannot be read"))?;
        db::remove_half_written(&db_dir).map_err(StoreError::io("clean", &db_dir))?;
        let db = db::open_sled(dir, &db_dir, options.sled_cache_bytes)?;
        let broken = |error: sled::Error| db::from_sled(dir, error);
        let log = db.open_tree("log").map_err(broken)?;
        let meta = db.open_tree("meta").map_err(broken)?;
        let trees = Trees { db, log, meta };
        let mut barrier = barrier(&db_dir).map_err(StoreError::io("open the database in", &db_dir))?;
        db::check_format(dir, &trees)?;

        let group = get::<u64>(dir, &trees, GROUP)?.unwrap_or(0);
        if group < watermark.number() {
            let what = "the database ends before what is known to have been written";
            return Err(StoreError::damaged(dir, format!("{what} (group {group} of {})", watermark.number())));
        }
        watermark.record(group).map_err(StoreError::io("write", &watermark_path))?;
        let state = scan(dir, &trees)?;
        let owner = get(dir, &trees, OWNER)?;
        let start = get::<u32>(dir, &trees, STARTS)?.unwrap_or(0).saturating_add(1);
        let snapshots = Snapshots::folder(&dir.join("snapshots"), Arc::clone(&options.clock), options.disk.clone())?;
        put(dir, &trees, FORMAT_RECORD, &FORMAT)?;
        put(dir, &trees, STARTS, &start)?;
        durable(&trees, &mut *barrier, &mut watermark).map_err(StoreError::io("write", dir))?;
        watermark.sync().map_err(StoreError::io("sync", &watermark_path))?;
        // The files themselves, and their names, must outlive a power cut as well.
        for file in ["conf", "db"] {
            let path = db_dir.join(file);
            if path.exists() {
                sync(&path).map_err(StoreError::io("sync", &path))?;
            }
        }
        for folder in [Some(db_dir.as_path()), Some(dir), dir.parent()].into_iter().flatten() {
            if !folder.as_os_str().is_empty() {
                sync(folder).map_err(StoreError::io("sync", folder))?;
            }
        }
        Ok(Store { dir: dir.to_owned(), lock, trees, state, barrier, watermark, snapshots, options, start, owner })
    }

    /// How often this store has been opened, this time included: durable, so never twice the same.
    #[must_use]
    pub fn start(&self) -> u32 {
        self.start
    }

    /// The owner of the store, once it is set.
    #[must_use]
    pub fn owner(&self) -> Option<&StoreOwner> {
        self.owner.as_ref()
    }

    /// Sets the owner of the store, durably. It can be repeated, but never changed.
    ///
    /// # Errors
    /// [`StoreError::OtherOwner`] if it belongs to another; or what writing gave.
    pub fn set_owner(&mut self, owner: StoreOwner) -> Result<(), StoreError> {
        match &self.owner {
            Some(have) if *have == owner => Ok(()),
            Some(have) => Err(StoreError::OtherOwner {
                dir: self.dir.clone(),
                have: Box::new(have.clone()),
                wanted: Box::new(owner),
            }),
            None => {
                put(&self.dir, &self.trees, OWNER, &owner)?;
                durable(&self.trees, &mut *self.barrier, &mut self.watermark)
                    .map_err(StoreError::io("write", &self.dir))?;
                self.owner = Some(owner);
                Ok(())
            }
        }
    }

    /// The snapshots: for the network, which sends and receives them.
    #[must_use]
    pub fn snapshots(&self) -> Snapshots {
        self.snapshots.clone()
    }

    /// Restores the machine from the newest good snapshot and starts the flusher. Blocks for as long as the machine
    /// takes to restore. openraft then replays the log from there.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if no good snapshot reaches what was purged from the log.
    pub fn into_parts<M: ReplicatedState>(self, setup: Setup<M>) -> Result<(LogStore, StateMachine<M>), StoreError> {
        let machine = StateMachine::restore(setup, self.snapshots.clone(), Arc::clone(&self.options.clock))?;
        self.reaches_purged(machine.last_applied())?;
        let Store { dir, lock, trees, state, barrier, watermark, options, snapshots, .. } = self;
        let tail = Arc::new(Tail::new(state, options.recent_bytes));
        let metrics = snapshots.metrics().clone();
        let flusher = Flusher::spawn(
            trees.clone(),
            Arc::clone(&tail),
            barrier,
            watermark,
            metrics.clone(),
            options,
            machine.level_in_force(),
        )
        .map_err(StoreError::io("start the flusher of", &dir))?;
        let reader = LogReader { tail, trees, metrics, _lock: lock };
        Ok((LogStore::new(flusher, reader), machine))
    }

    /// Checks that a restored state and the log together have everything.
    pub(crate) fn reaches_purged(&self, applied: Option<LogId>) -> Result<(), StoreError> {
        if applied >= self.state.purged {
            return Ok(());
        }
        let reach = |id: Option<LogId>| id.map_or("nothing".to_owned(), |id| format!("entry {}", id.index));
        let what = format!(
            "the newest snapshot that can be read reaches {}, but the log was purged up to {}",
            reach(applied),
            reach(self.state.purged)
        );
        Err(StoreError::damaged(&self.dir, what))
    }
}

/// Sets a damaged data folder aside, by renaming it, and returns its new name. What was in it must never be used under
/// the old id again: after a quarantine the machine joins as a new member.
///
/// # Errors
/// [`StoreError::Locked`] if it is in use; or what renaming gave.
pub fn quarantine(dir: &Path) -> Result<PathBuf, StoreError> {
    let _lock = Lock::take(dir)?;
    let name = dir.file_name().ok_or_else(|| {
        StoreError::io("quarantine", dir)(io::Error::new(io::ErrorKind::InvalidInput, "it has no name"))
    })?;
    for number in 1u32.. {
        let mut aside = name.to_owned();
        aside.push(format!(".quarantine-{number}"));
        let aside = dir.with_file_name(aside);
        if aside.exists() {
            continue;
        }
        fs::rename(dir, &aside).map_err(StoreError::io("quarantine", dir))?;
        if let Some(parent) = aside.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync(parent).map_err(StoreError::io("sync", parent))?;
        }
        return Ok(aside);
    }
    Err(StoreError::io("quarantine", dir)(io::ErrorKind::AlreadyExists.into()))
}

/// Checks the whole log and finds its ends.
fn scan(dir: &Path, trees: &Trees) -> Result<TailState, StoreError> {
    let purged: Option<LogId> = get(dir, trees, PURGED)?;
    let mut state = TailState {
        purged,
        committed: get::<Option<LogId>>(dir, trees, COMMITTED)?.flatten(),
        vote: get(dir, trees, VOTE)?,
        last: purged,
        ..TailState::default()
    };
    scan_entries(trees, &mut state).map_err(|error| StoreError::damaged_by(dir, "the log", error))?;
    Ok(state)
}

fn scan_entries(trees: &Trees, state: &mut TailState) -> io::Result<()> {
    drop_unfinished(trees)?;
    let from = state.purged.map_or(0, |id| id.index + 1);
    let mut entries = Entries::new(trees.log.range(key(from, 0)..));
    let mut next = state.purged.map(|id| id.index + 1);
    let mut last = None;
    while let Some((index, content)) = entries.next_entry()? {
        if let Some(next) = next
            && index != next
        {
            return Err(damaged(format!("entry {next} is missing; the next one there is entry {index}")));
        }
        state.first.get_or_insert(index);
        // Each one, also those that the state has already: whatever lies here may have to be sent to another member. One that
        // cannot be read is found now, and not when it is to be applied.
        let entry = Entry::decode(Thing::Entry(index), &content);
        let entry = entry.map_err(|error| within(format!("entry {index}"), error))?;
        if entry.log_id.index != index {
            return Err(damaged(format!("entry {index} says that it is entry {}", entry.log_id.index)));
        }
        next = Some(index + 1);
        last = Some(entry.log_id);
    }
    if let Some(id) = last {
        state.last = Some(id);
        state.written = Some(id.index);
    }
    Ok(())
}

/// Removes an entry at the end whose beginning was not written: the power went while it was being appended (or removed).
/// It was never acknowledged.
fn drop_unfinished(trees: &Trees) -> io::Result<()> {
    let Some((last, _)) = trees.log.last().map_err(sled_io)? else { return Ok(()) };
    let (index, _) = parse_key(&last)?;
    if trees.log.contains_key(key(index, 0)).map_err(sled_io)? {
        return Ok(());
    }
    tracing::info!(index, "removing an unfinished entry at the end of the log");
    for pair in trees.log.range(key(index, 0)..) {
        trees.log.remove(pair.map_err(sled_io)?.0).map_err(sled_io)?;
    }
    Ok(())
}
