//! The identity of this member: a file in its data folder, under a lock that the process holds until it ends.
//!
//! Votes were given under an id. So an empty data folder never gets an old id again, and no two processes act under the same
//! one. The count of starts rises, durably, before anything else is done at a start: it is the upper part of all numbers that
//! this member gives (to sessions, to the commands that it proposes), so no number is given twice. A start has 2^40 numbers. One that
//! uses them up goes on with those of the next start, and counts that one, durably, long before ([`reserve_numbers`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use palisade_engine::{JoinRequest, MemberId, first_number, start_of_number};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

const IDENTITY_FILE: &str = "identity.toml";
/// The identity of a member that the cluster removed, or that gave its membership up.
const REMOVED_FILE: &str = "identity.toml.removed";
/// The request of a join that is not done yet.
const JOIN_FILE: &str = "join.toml";
/// Where the log of such a member is kept when the machine joins again.
const SET_ASIDE_PREFIX: &str = "removed-";
const LOCK_FILE: &str = "lock";
const STORE_DIR: &str = "raft";
const IDENTITY_VERSION: u32 = 1;

/// The identity of a member.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    version: u32,
    /// The cluster's id, hexadecimal.
    pub cluster: String,
    /// The member's id.
    pub member: MemberId,
    /// Its name when it joined.
    pub name: String,
    /// The number of its starts, and of those whose numbers a start has used besides its own.
    pub starts: u32,
    /// How often it was recovered as a new cluster: each time it has a new store.
    #[serde(default, skip_serializing_if = "never")]
    recovered: u32,
}

fn never(times: &u32) -> bool {
    *times == 0
}

/// The request of a join, as it is kept until the join is done.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinFile {
    version: u32,
    cluster: String,
    /// Hexadecimal.
    request: String,
}

impl JoinFile {
    /// The request, if it is one of this cluster.
    fn request(&self, cluster: &str) -> Option<JoinRequest> {
        let number = u128::from_str_radix(&self.request, 16).ok()?;
        (self.version == IDENTITY_VERSION && self.cluster == cluster).then(|| JoinRequest(number.to_be_bytes()))
    }
}

impl Identity {
    /// The same member as the only one of a new cluster.
    pub(crate) fn for_new_cluster(&self, cluster: &str) -> Identity {
        Identity { cluster: cluster.to_owned(), recovered: self.recovered.saturating_add(1), ..self.clone() }
    }
}

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum IdentityError {
    /// Another process uses it.
    #[error("{} is in use by another process", .0.display())]
    #[diagnostic(help("is this member already running? Stop that one first: `systemctl stop palisade`"))]
    Locked(PathBuf),
    /// It belongs to a member already.
    #[error("{} already belongs to member {member} of cluster {cluster}", folder.display())]
    #[diagnostic(help("leave that cluster first (`palisade cluster leave`), or use another data_dir"))]
    Taken {
        /// The data folder.
        folder: PathBuf,
        /// Its member.
        member: MemberId,
        /// Its cluster.
        cluster: String,
    },
    /// The file is damaged.
    #[error("{} is damaged: {reason}", path.display())]
    #[diagnostic(help(
        "do not repair it by hand: move the data folder away, join again under a new id (`palisade cluster join`), and remove the old member (`palisade cluster remove`)"
    ))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The count of starts is exhausted.
    #[error("this member has started 2^24 times")]
    #[diagnostic(help("let it leave and join again"))]
    StartsExhausted,
    /// The operating system.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// Whether a data folder belongs to a member.
#[must_use]
pub fn has_identity(data_dir: &Path) -> bool {
    data_dir.join(IDENTITY_FILE).exists()
}

/// A data folder, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// Held while the identity is read and replaced, or moved away.
    changes: Mutex<()>,
    _lock: Flock<File>,
}

impl DataDir {
    /// Locks the data folder; creates it if need be. Nobody but its owner may enter it.
    pub(crate) fn lock(path: &Path) -> Result<DataDir, IdentityError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))?;
        let mode = fs::metadata(path).map_err(at(path))?.permissions().mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o700)).map_err(at(path))?;
            tracing::info!(path = %path.display(), "the data folder was open to other users and is closed to them now");
        }
        let name = path.join(LOCK_FILE);
        let file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&name).map_err(at(&name))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(DataDir { path: path.to_owned(), changes: Mutex::new(()), _lock: lock }),
            Err((_, nix::Error::EWOULDBLOCK)) => Err(IdentityError::Locked(path.to_owned())),
            Err((_, errno)) => Err(at(&name)(errno.into())),
        }
    }

    /// The folder of a member's store.
    pub(crate) fn store(&self, identity: &Identity) -> PathBuf {
        match identity.recovered {
            0 => self.new_store(),
            n => self.path.join(format!("{STORE_DIR}-{n}")),
        }
    }

    /// The folder of a new member's store.
    pub(crate) fn new_store(&self) -> PathBuf {
        self.path.join(STORE_DIR)
    }

    /// Removes what an unfinished attempt, or an earlier member, left in the folder of `identity`'s store.
    pub(crate) fn clear_store(&self, identity: &Identity) -> Result<PathBuf, IdentityError> {
        let store = self.store(identity);
        match fs::remove_dir_all(&store) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(&store)(e)),
            _ => Ok(store),
        }
    }

    /// The identity, if this folder has one.
    pub(crate) fn identity(&self) -> Result<Option<Identity>, IdentityError> {
        self.read(IDENTITY_FILE)
    }

    /// The identity of the removed member that this folder belonged to last, if it did.
    pub(crate) fn removed_identity(&self) -> Result<Option<Identity>, IdentityError> {
        self.read(REMOVED_FILE)
    }

    fn read(&self, file: &str) -> Result<Option<Identity>, IdentityError> {
        let path = self.path.join(file);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(at(&path)(e)),
        };
        let damaged = |reason: String| IdentityError::Damaged { path: path.clone(), reason };
        let identity: Identity = toml::from_str(&text).map_err(|e| damaged(e.message().to_owned()))?;
        if identity.version != IDENTITY_VERSION {
            return Err(damaged(format!("it has version {}, this program knows {IDENTITY_VERSION}", identity.version)));
        }
        Ok(Some(identity))
    }

    /// Refuses a folder with an identity.
    pub(crate) fn check_unused(&self) -> Result<(), IdentityError> {
        match self.identity()? {
            Some(Identity { cluster, member, .. }) => {
                Err(IdentityError::Taken { folder: self.path.clone(), member, cluster })
            }
            None => Ok(()),
        }
    }

    /// For `init` and `join`: refuses a folder with an identity. What an unfinished attempt left in the store was never part of
    /// a cluster and is removed. What belonged to a removed member is set aside.
    pub(crate) fn ensure_unused(&self) -> Result<(), IdentityError> {
        self.check_unused()?;
        if let Some(removed) = self.removed_identity()? {
            self.set_aside(&removed)?;
        }
        let store = self.new_store();
        match fs::remove_dir_all(&store) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(&store)(e)),
            _ => Ok(()),
        }
    }

    /// Moves the store of a removed member into a folder of its own, `removed-ID`, for somebody who wants to look at it. Only the
    /// newest one is kept: logs are large. The identity goes last, so that an interrupted move is taken up again.
    fn set_aside(&self, removed: &Identity) -> Result<(), IdentityError> {
        let aside = self.path.join(format!("{SET_ASIDE_PREFIX}{}", removed.member));
        let remove = |path: &Path| match fs::remove_dir_all(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(path)(e)),
            _ => Ok(()),
        };
        for entry in fs::read_dir(&self.path).map_err(at(&self.path))? {
            let path = entry.map_err(at(&self.path))?.path();
            let old = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(SET_ASIDE_PREFIX));
            if old && path != aside {
                remove(&path)?;
            }
        }
        fs::create_dir_all(&aside).map_err(at(&aside))?;
        let store = self.store(removed);
        if store.exists() {
            let to = aside.join(STORE_DIR);
            remove(&to)?;
            fs::rename(&store, &to).map_err(at(&store))?;
        }
        let from = self.path.join(REMOVED_FILE);
        fs::rename(&from, aside.join(IDENTITY_FILE)).map_err(at(&from))?;
        tracing::info!(folder = %aside.display(), "the data of the removed member were set aside");
        self.sync()
    }

    /// The number under which this machine asks to join `cluster`: that of an attempt before, or else `new`, which is durable when
    /// this returns.
    pub(crate) fn join_request(&self, cluster: &str, new: JoinRequest) -> Result<JoinRequest, IdentityError> {
        let path = self.path.join(JOIN_FILE);
        let kept = match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).ok().and_then(|kept: JoinFile| kept.request(cluster)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(at(&path)(e)),
        };
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let request = format!("{:032x}", u128::from_be_bytes(new.0));
        let file = JoinFile { version: IDENTITY_VERSION, cluster: cluster.to_owned(), request };
        self.write(JOIN_FILE, &file)?;
        Ok(new)
    }

    /// The join is done: the next one is another one.
    pub(crate) fn forget_join_request(&self) -> Result<(), IdentityError> {
        let path = self.path.join(JOIN_FILE);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(&path)(e)),
            _ => self.sync(),
        }
    }

    /// Writes a new identity. From now on the folder belongs to a member.
    pub(crate) fn write_identity(
        &self,
        cluster: &str,
        member: MemberId,
        name: &str,
    ) -> Result<Identity, IdentityError> {
        let identity = Identity {
            version: IDENTITY_VERSION,
            cluster: cluster.to_owned(),
            member,
            name: name.to_owned(),
            starts: 0,
            recovered: 0,
        };
        self.write(IDENTITY_FILE, &identity)?;
        Ok(identity)
    }

    /// Replaces the identity.
    pub(crate) fn replace_identity(&self, identity: &Identity) -> Result<(), IdentityError> {
        self.write(IDENTITY_FILE, identity)
    }

    /// Counts a start, durably, before anything is done under the identity.
    pub(crate) fn start(&self, identity: &mut Identity) -> Result<(), IdentityError> {
        identity.starts = identity.starts.checked_add(1).filter(is_start).ok_or(IdentityError::StartsExhausted)?;
        self.write(IDENTITY_FILE, identity)
    }

    /// Counts the starts up to this one, durably, so that no later start gives their numbers. Does nothing if they are counted
    /// already, or if the folder belongs to no member any longer.
    pub(crate) fn count_starts(&self, up_to: u32) -> Result<(), IdentityError> {
        let _changing = self.changes.lock();
        match self.identity()? {
            Some(identity) if identity.starts < up_to => {
                let starts = Some(up_to).filter(is_start).ok_or(IdentityError::StartsExhausted)?;
                self.write(IDENTITY_FILE, &Identity { starts, ..identity })
            }
            _ => Ok(()),
        }
    }

    /// Archives the identity after the member left: its id is not used again, and the machine can join again.
    pub(crate) fn archive_identity(&self) -> Result<(), IdentityError> {
        let _changing = self.changes.lock();
        let from = self.path.join(IDENTITY_FILE);
        let to = self.path.join(format!("{IDENTITY_FILE}.left"));
        fs::rename(&from, &to).map_err(at(&from))?;
        self.sync()
    }

    /// Marks the identity as that of a removed member: it is never started again. The store stays until the next `join`.
    pub(crate) fn mark_removed(&self) -> Result<(), IdentityError> {
        let _changing = self.changes.lock();
        let from = self.path.join(IDENTITY_FILE);
        fs::rename(&from, self.path.join(REMOVED_FILE)).map_err(at(&from))?;
        self.sync()
    }

    /// Atomically and durably: written beside, synced, renamed, and the folder synced.
    fn write(&self, file: &str, content: &impl Serialize) -> Result<(), IdentityError> {
        let path = self.path.join(file);
        let beside = self.path.join(format!("{file}.new"));
        let text = toml::to_string(content)
            .map_err(|e| IdentityError::Damaged { path: path.clone(), reason: e.to_string() })?;
        let write = || -> io::Result<()> {
            let mut file = File::create(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, &path)
        };
        write().map_err(at(&path))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), IdentityError> {
        File::open(&self.path).and_then(|f| f.sync_all()).map_err(at(&self.path))
    }
}

/// Whether there are numbers for a start: they have 64 bits.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "a predicate for `filter`")]
fn is_start(start: &u32) -> bool {
    start_of_number(first_number(*start)) == *start
}

/// How often the numbers in use are looked at.
const NUMBERS_INTERVAL: Duration = Duration::from_secs(1);
/// How many numbers ahead of those in use a start is counted: six days' at a million a second.
const NUMBERS_AHEAD: u64 = 1 << 39;

/// Counts, ahead of their use, the starts whose numbers this start of the member goes on with. `next` is the next number that is
/// given.
pub(crate) async fn reserve_numbers(data_dir: Arc<DataDir>, start: u32, next: impl Fn() -> u64) {
    let mut counted = start;
    loop {
        tokio::time::sleep(NUMBERS_INTERVAL).await;
        let needed = start_of_number(next().saturating_add(NUMBERS_AHEAD));
        if needed <= counted {
            continue;
        }
        match data_dir.count_starts(needed) {
            Ok(()) => counted = needed,
            Err(error) => tracing::warn!(%error, "numbers could not be reserved; trying again"),
        }
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> IdentityError + use<> {
    let path = path.to_owned();
    move |source| IdentityError::Io { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_dir_is_locked_by_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::lock(dir.path()).unwrap();
        assert!(matches!(DataDir::lock(dir.path()), Err(IdentityError::Locked(_))));
        drop(first);
        DataDir::lock(dir.path()).unwrap();
    }

    #[test]
    fn identity_counts_every_start() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::lock(dir.path()).unwrap();
        assert_eq!(data_dir.identity().unwrap(), None);
        data_dir.ensure_unused().unwrap();
        data_dir.write_identity("c0ffee", MemberId(3), "fw3").unwrap();
        for starts in 1..4 {
            let mut identity = data_dir.identity().unwrap().unwrap();
            data_dir.start(&mut identity).unwrap();
            assert_eq!(identity.starts, starts);
            assert_eq!(data_dir.identity().unwrap().unwrap(), identity);
        }
    }

    #[test]
    fn join_request_is_kept_until_the_join_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::lock(dir.path()).unwrap();
        let [one, two, three] = [1, 2, 3].map(|n| JoinRequest([n; 16]));
        let ask = |cluster, new| data_dir.join_request(cluster, new).unwrap();
        assert_eq!(ask("c0ffee", one), one);
        assert_eq!(ask("c0ffee", two), one, "asked again");
        assert_eq!(ask("decaf", two), two, "another cluster");
        assert_eq!(ask("decaf", three), two);
        data_dir.forget_join_request().unwrap();
        assert_eq!(ask("decaf", three), three);
        // What a machine cannot read it has not asked with, as far as it knows.
        fs::write(dir.path().join(JOIN_FILE), "version = 1\n").unwrap();
        assert_eq!(ask("decaf", one), one);
    }

    #[test]
    fn identity_counts_starts_whose_numbers_are_used_and_never_backwards() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::lock(dir.path()).unwrap();
        let mut identity = data_dir.write_identity("c0ffee", MemberId(3), "fw3").unwrap();
        data_dir.start(&mut identity).unwrap();
        data_dir.count_starts(4).unwrap();
        data_dir.count_starts(2).unwrap();
        let mut identity = data_dir.identity().unwrap().unwrap();
        data_dir.start(&mut identity).unwrap();
        assert_eq!(identity.starts, 5, "the numbers of 2 to 4 were given");
        assert!(matches!(data_dir.count_starts(1 << 24), Err(IdentityError::StartsExhausted)));
        data_dir.mark_removed().unwrap();
        data_dir.count_starts(9).unwrap();
        assert_eq!(data_dir.identity().unwrap(), None, "a removed member stays removed");
    }

    #[test]
    fn identity_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::lock(dir.path()).unwrap();
        data_dir.write_identity("c0ffee", MemberId(3), "fw3").unwrap();
        assert!(matches!(data_dir.ensure_unused(), Err(IdentityError::Taken { member: MemberId(3), .. })));
        data_dir.archive_identity().unwrap();
        data_dir.ensure_unused().unwrap();
    }

    #[test]
    fn data_of_a_removed_member_are_set_aside_and_only_the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::lock(dir.path()).unwrap();
        for member in [3, 7] {
            let identity = data_dir.write_identity("c0ffee", MemberId(member), "fw3").unwrap();
            fs::create_dir(data_dir.new_store()).unwrap();
            fs::write(data_dir.new_store().join("log"), member.to_string()).unwrap();
            data_dir.mark_removed().unwrap();
            assert_eq!(data_dir.identity().unwrap(), None);
            assert_eq!(data_dir.removed_identity().unwrap(), Some(identity));
            data_dir.ensure_unused().unwrap();
            assert_eq!(data_dir.removed_identity().unwrap(), None);
            assert!(!data_dir.new_store().exists());
            let aside = dir.path().join(format!("removed-{member}"));
            assert_eq!(fs::read_to_string(aside.join("raft/log")).unwrap(), member.to_string());
            assert!(aside.join(IDENTITY_FILE).exists());
        }
        assert!(!dir.path().join("removed-3").exists(), "only the newest");
        // As after a crash between the two moves.
        data_dir.write_identity("c0ffee", MemberId(9), "fw3").unwrap();
        data_dir.mark_removed().unwrap();
        data_dir.ensure_unused().unwrap();
        assert!(dir.path().join("removed-9").join(IDENTITY_FILE).exists());
    }

    #[test]
    fn identity_that_is_damaged_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::lock(dir.path()).unwrap();
        for text in ["", "version = 1", "version = 2\ncluster = \"a\"\nmember = 1\nname = \"a\"\nstarts = 1\n"] {
            fs::write(dir.path().join(IDENTITY_FILE), text).unwrap();
            assert!(matches!(data_dir.identity(), Err(IdentityError::Damaged { .. })), "{text}");
            assert!(data_dir.ensure_unused().is_err());
        }
    }

    #[test]
    fn data_dir_of_an_unfinished_attempt_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::lock(dir.path()).unwrap();
        fs::create_dir(data_dir.new_store()).unwrap();
        fs::write(data_dir.new_store().join("x"), "x").unwrap();
        data_dir.ensure_unused().unwrap();
        assert!(!data_dir.new_store().exists());
    }
}
