//! The unix socket of the administration. From its first moment on, only those allowed can connect, and the kernel says who
//! connects.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use miette::Diagnostic;
use nix::unistd::{Gid, Group, Uid, User, chown};
use tokio::net::UnixListener;

/// Why the admin socket is not there.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("cannot listen on the admin socket {}", path.display())]
pub struct SocketError {
    path: PathBuf,
    source: io::Error,
    #[help]
    help: &'static str,
}

/// Members of this group may administrate, if it exists.
const GROUP: &str = "palisade";

/// The listening admin socket; its file is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Binds it. It replaces the socket file of a daemon that died, but not that of one that still answers.
    pub(crate) fn bind(path: &Path) -> Result<Socket, SocketError> {
        let listener = bind(path).map_err(|source| {
            let help = match source.kind() {
                io::ErrorKind::AddrInUse => {
                    "another daemon answers there: stop it first, or give this one another [admin] socket"
                }
                _ => "create its folder, or set [admin] socket to a path that the daemon may write",
            };
            SocketError { path: path.to_owned(), source, help }
        })?;
        Ok(Socket { listener, path: path.to_owned() })
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        create_folder(folder)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // Created under another name and renamed, so that it never exists without its owner and mode.
    let aside = path.with_extension(format!("{}.new", std::process::id()));
    match fs::remove_file(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = StdListener::bind(&aside)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o660))?;
    if let Some(gid) = group()
        && let Err(error) = chown(&aside, None, Some(gid))
    {
        tracing::warn!(%error, "the admin socket cannot be given to the group {GROUP}: only root can use it");
    }
    fs::rename(&aside, path)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Creates the socket's folder if need be. All may enter it, whatever the umask: the socket itself says who may connect.
fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

impl Drop for Socket {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = fs::remove_file(&self.path);
    }
}

fn group() -> Option<Gid> {
    Group::from_name(GROUP).ok().flatten().map(|g| g.gid)
}

/// Whether this user needs no group to administrate.
pub(crate) fn is_root(uid: u32) -> bool {
    uid == 0 || Uid::from_raw(uid) == Uid::effective()
}

/// Whether this user may administrate. Asks the name service, so it may block. The socket's mode says so already; this check holds even if someone loosens the mode.
pub(crate) fn allowed(uid: u32, gid: u32) -> bool {
    if is_root(uid) {
        return true;
    }
    let Some(group) = Group::from_name(GROUP).ok().flatten() else { return false };
    let name = || User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|u| u.name);
    group.gid == Gid::from_raw(gid) || name().is_some_and(|name| group.mem.contains(&name))
}

/// A user's name, for the policy's history. Asks the name service, so it may block.
pub(crate) fn user(uid: u32) -> String {
    let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|u| u.name);
    name.unwrap_or_else(|| format!("uid {uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn socket_of_a_dead_daemon_is_replaced_of_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/admin.sock");
        let first = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists(), "as after SIGKILL");
        drop(Socket::bind(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn socket_allows_root_and_the_daemons_own_user_only() {
        assert!(allowed(0, 0));
        assert!(allowed(Uid::effective().as_raw(), 12_345));
        assert!(!allowed(54_321, 54_321));
    }
}
