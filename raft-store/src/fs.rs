//! The data folder: its lock, and syncing files and folders.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use crate::error::StoreError;

/// The lock on a data folder, held for as long as anything of the store is in use.
#[derive(Debug)]
pub(crate) struct Lock {
    // The kernel unlocks it when it is closed, however the process ends.
    _file: File,
}

impl Lock {
    pub(crate) fn take(dir: &Path) -> Result<Lock, StoreError> {
        let path = dir.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(StoreError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { dir: dir.to_owned() }),
            Err(TryLockError::Error(error)) => Err(StoreError::io("lock", &path)(error)),
        }
    }
}

/// fsync of a file or folder.
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
