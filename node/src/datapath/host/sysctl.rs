//! Sysctls per interface, from `/proc/sys/net`, which shows each thread its own network namespace.

use std::io;
use std::path::{Path, PathBuf};

/// IPv4 or IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The families that this kernel has switched on.
    pub(crate) fn present() -> impl Iterator<Item = Family> {
        [Family::V4, Family::V6].into_iter().filter(|f| Path::new("/proc/sys/net").join(f.folder()).is_dir())
    }

    fn folder(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// One setting of one interface, or of the pseudo-interfaces `all` and `default`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Setting {
    family: Family,
    interface: String,
    key: &'static str,
}

impl Setting {
    pub(crate) fn new(family: Family, interface: &str, key: &'static str) -> Setting {
        Setting { family, interface: interface.to_owned(), key }
    }

    fn path(&self) -> PathBuf {
        Path::new("/proc/sys/net").join(self.family.folder()).join("conf").join(&self.interface).join(self.key)
    }

    /// Its value; `None` if this kernel does not have it.
    pub(crate) fn read(&self) -> io::Result<Option<i64>> {
        match std::fs::read_to_string(self.path()) {
            Ok(text) => text.trim().parse().map(Some).map_err(|_| io::ErrorKind::InvalidData.into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Its value, 0 if it is not there or unreadable.
    pub(crate) fn value(&self) -> i64 {
        self.read().ok().flatten().unwrap_or(0)
    }

    /// Sets it, unless it has the value already. A setting that this kernel does not have is left alone.
    pub(crate) fn set(&self, value: i64) -> io::Result<bool> {
        match self.read()? {
            Some(now) if now != value => std::fs::write(self.path(), value.to_string()).map(|()| true),
            _ => Ok(false),
        }
    }
}

impl std::fmt::Display for Setting {
    /// As sysctl(8) takes it; a dot in an interface's name is written as a slash there.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "net.{}.conf.{}.{}", self.family.folder(), self.interface.replace('.', "/"), self.key)
    }
}

/// All interfaces that have settings of a family, `all` and `default` among them.
pub(crate) fn interfaces(family: Family) -> io::Result<Vec<String>> {
    let folder = Path::new("/proc/sys/net").join(family.folder()).join("conf");
    std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
