//! The connection log as a file of JSON lines.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade_engine::Time;

use super::output::Output;
use super::record::Record;
use crate::clock;

/// Interval at which it is checked whether somebody has moved the file away (logrotate), and after which a file that could
/// not be opened is tried again.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The file, and one older one beside it with the suffix `.1`.
pub(super) struct LogFile {
    path: PathBuf,
    max_bytes: u64,
    open: Option<OpenFile>,
    checked: Option<Time>,
}

struct OpenFile {
    file: BufWriter<File>,
    inode: u64,
    length: u64,
}

impl OpenFile {
    fn open(path: &Path) -> io::Result<OpenFile> {
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        let metadata = file.metadata()?;
        Ok(OpenFile { file: BufWriter::new(file), inode: metadata.ino(), length: metadata.len() })
    }
}

impl LogFile {
    pub(super) fn new(path: PathBuf, max_bytes: u64) -> LogFile {
        LogFile { path, max_bytes, open: None, checked: None }
    }

    /// The file, opened again if somebody has moved it away. `None`: it could not be opened a moment ago.
    fn file(&mut self) -> io::Result<Option<&mut OpenFile>> {
        let now = clock::now();
        if self.checked.is_none_or(|at| now.since(at) >= CHECK_INTERVAL) {
            self.checked = Some(now);
            let there = std::fs::metadata(&self.path).map(|metadata| metadata.ino()).ok();
            if self.open.as_ref().is_none_or(|open| there != Some(open.inode)) {
                self.flush()?;
                self.open = None;
                self.open = Some(OpenFile::open(&self.path)?);
            }
        }
        Ok(self.open.as_mut())
    }

    /// Renames the full file, in the place of the one before it, and begins the next one.
    fn rotate(&mut self) -> io::Result<()> {
        self.flush()?;
        self.open = None;
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        std::fs::rename(&self.path, old)?;
        self.open = Some(OpenFile::open(&self.path)?);
        Ok(())
    }
}

impl Output for LogFile {
    fn name(&self) -> &'static str {
        "file"
    }

    fn write(&mut self, record: &Record) -> io::Result<bool> {
        let mut line = record.json();
        line.push('\n');
        let (length, max_bytes) = (line.len() as u64, self.max_bytes);
        match self.file()? {
            None => return Ok(false),
            Some(open) if open.length > 0 && open.length + length > max_bytes => self.rotate()?,
            Some(_) => {}
        }
        let Some(open) = self.open.as_mut() else { return Ok(false) };
        open.length += length;
        open.file.write_all(line.as_bytes())?;
        Ok(true)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open.as_mut().map_or(Ok(()), |open| open.file.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::closed;
    use super::*;

    #[test]
    fn log_file_is_bounded_and_opened_again_when_it_was_moved() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
        let line = closed().json().len() as u64 + 1;
        let mut file = LogFile::new(path.clone(), 2 * line);
        let lines = |path: &Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
        for _ in 0..5 {
            assert!(file.write(&closed()).unwrap());
        }
        file.flush().unwrap();
        assert_eq!((lines(&old), lines(&path)), (2, 1));

        std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        file.checked = None;
        assert!(file.write(&closed()).unwrap());
        file.flush().unwrap();
        assert_eq!((lines(&path), lines(&dir.path().join("elsewhere"))), (1, 1));

        // A file that cannot be opened loses events and nothing else.
        let mut file = LogFile::new(dir.path().join("no folder").join("log"), 1000);
        assert!(file.write(&closed()).is_err());
        assert!(!file.write(&closed()).unwrap(), "not tried again at once");
        std::fs::create_dir(dir.path().join("no folder")).unwrap();
        file.checked = None;
        assert!(file.write(&closed()).unwrap());
    }
}
