//! The gate's second lock: an nftables table that drops transit which was not judged, before anything else may accept it,
//! and what was judged but would leave elsewhere than the verdict was about.
//!
//! Written by netlink, not by the program `nft`: only so the table can have an owner, so that `flush ruleset` of others
//! leaves it alone, and outlive it (Linux 6.9). It needs no program after privileges are dropped either.

mod expression;
mod socket;
mod table;
pub(crate) mod wire;

pub(crate) use socket::Connection;
pub(crate) use table::Bridge;
pub use table::Listener;
pub(crate) use table::{DEVICE_PREFIX, EGRESS_LOG_GROUP, TABLE};

use std::collections::BTreeSet;
use std::io;

use socket::{Object, Refusal};
use table::{CHAINS, Features, Part, Wanted, kind};
use wire::{Attributes, INET};

/// Why the table cannot be installed or changed.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum NftError {
    /// The kernel has no nf_tables.
    #[error("this kernel has no nf_tables")]
    #[diagnostic(help("`modprobe nf_tables`, or a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET"))]
    Unavailable,
    /// Another process owns the table.
    #[error("another process owns the table {TABLE}: a daemon runs in this network namespace")]
    #[diagnostic(help("stop it first: `systemctl stop palisade`"))]
    Owned,
    /// The kernel refuses.
    #[error("the kernel refuses the table {TABLE}: {0}")]
    #[diagnostic(help("the gate needs CAP_NET_ADMIN, and a kernel with CONFIG_NFT_FIB_INET"))]
    Refused(io::Error),
}

impl From<io::Error> for NftError {
    fn from(error: io::Error) -> NftError {
        match error.raw_os_error() {
            // As nfnetlink answers for a subsystem that it does not have, and where there is no nfnetlink.
            Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => NftError::Unavailable,
            _ => NftError::Refused(error),
        }
    }
}

impl From<Refusal> for NftError {
    fn from(refusal: Refusal) -> NftError {
        match (refusal.source.raw_os_error(), refusal.message) {
            // Without the privilege all of it is refused; the table's owner makes one message fail.
            (Some(libc::EPERM), Some(_)) => NftError::Owned,
            (_, None) => refusal.source.into(),
            _ => NftError::Refused(refusal.source),
        }
    }
}

/// The table as it is installed.
#[derive(Debug)]
struct Installed {
    /// The ruleset's number when it was last found unchanged.
    generation: u32,
    /// The chains and rules, as the kernel lists them.
    listing: Vec<Object>,
}

/// What of this table the kernel has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Whole,
    Missing,
}

/// The table, and the connection that owns it.
#[derive(Debug)]
pub(super) struct Table {
    connection: Option<Connection>,
    wanted: Wanted,
    features: Features,
    installed: Option<Installed>,
}

impl Table {
    /// A table that is not installed yet. One that is not `owned` can be changed by everybody, as on a kernel before 6.9.
    pub(super) fn new(owned: bool) -> Table {
        let features = Features { owner: owned, ..Features::ALL };
        Table { connection: None, wanted: Wanted::default(), features, installed: None }
    }

    fn connection(&mut self) -> io::Result<&mut Connection> {
        match &mut self.connection {
            Some(connection) => Ok(connection),
            none => Ok(none.insert(Connection::open()?)),
        }
    }

    /// Installs the table, replacing what is there, without what this kernel lacks.
    pub(super) fn install(&mut self, exempt: Vec<String>) -> Result<(), NftError> {
        self.wanted.exempt = exempt;
        self.installed = None;
        // In this way a kernel without nf_tables is distinguished from one that lacks an expression.
        self.connection()?.generation()?;
        loop {
            let (parts, messages): (Vec<Part>, Vec<_>) =
                table::replace(&self.wanted, self.features).into_iter().unzip();
            let Err(refusal) = self.connection()?.commit(&messages) else { break };
            let lacking = match refusal.source.raw_os_error() {
                Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP) => {
                    let part = refusal.message.and_then(|at| parts.get(at).copied()).unwrap_or(Part::Base);
                    self.features.without(part)
                }
                _ => None,
            };
            self.features = lacking.ok_or(refusal)?;
            tracing::debug!(features = ?self.features, "this kernel lacks a feature of nftables");
        }
        self.remember()?;
        Ok(())
    }

    /// Takes the table as it is now for right.
    fn remember(&mut self) -> io::Result<()> {
        let connection = self.connection()?;
        let generation = connection.generation()?;
        let listing = list(connection)?;
        self.installed = Some(Installed { generation, listing });
        Ok(())
    }

    /// Whether the table is as it was installed.
    pub(super) fn unchanged(&mut self) -> io::Result<bool> {
        let Some(installed) = &self.installed else { return Ok(false) };
        let last = installed.generation;
        let connection = self.connection()?;
        // Read first: what changes meanwhile is found the next time.
        let generation = connection.generation()?;
        if generation == last {
            return Ok(true);
        }
        let listing = list(connection)?;
        let pairs = pairs(connection)?;
        let whole = pairs == self.wanted.pairs && self.installed.as_ref().is_some_and(|i| i.listing == listing);
        if let Some(installed) = self.installed.as_mut().filter(|_| whole) {
            installed.generation = generation;
        }
        Ok(whole)
    }

    /// Which interface of ours may lead to which other. What is not installed yet begins with them.
    pub(super) fn set_pairs(&mut self, pairs: &BTreeSet<(u32, u32)>) -> Result<(), NftError> {
        if self.wanted.pairs == *pairs {
            return Ok(());
        }
        let old = std::mem::replace(&mut self.wanted.pairs, pairs.clone());
        if self.installed.is_none() {
            return Ok(());
        }
        match self.connection()?.commit(&table::change_pairs(&old, pairs)) {
            Ok(()) => Ok(()),
            // Somebody changed the set, or removed the table.
            Err(_) => self.install(self.wanted.exempt.clone()),
        }
    }

    /// The bridges of the machine.
    pub(super) fn set_bridges(&mut self, bridges: Vec<Bridge>) -> Result<(), NftError> {
        if self.wanted.bridges == bridges {
            return Ok(());
        }
        self.wanted.bridges = bridges;
        if self.installed.is_none() { Ok(()) } else { self.install(self.wanted.exempt.clone()) }
    }

    /// Which sockets may be reached from where.
    pub(super) fn set_listeners(&mut self, listeners: &[Listener]) -> Result<(), NftError> {
        if self.wanted.listeners == listeners {
            return Ok(());
        }
        self.wanted.listeners = listeners.to_vec();
        if self.installed.is_none() {
            return Ok(());
        }
        // The watcher must not take another's change for ours.
        let unchanged = self.unchanged()?;
        let done = unchanged && self.connection()?.commit(&table::change_listeners(listeners)).is_ok();
        if done {
            self.remember()?;
            Ok(())
        } else {
            self.install(self.wanted.exempt.clone())
        }
    }
}

/// The table's chains and rules.
fn list(connection: &mut Connection) -> io::Result<Vec<Object>> {
    let table = Attributes::default().text(1, TABLE);
    let mut listing = connection.dump(kind::GET_CHAIN, INET, &table)?;
    listing.extend(connection.dump(kind::GET_RULE, INET, &table)?);
    // Kernels that do not filter list other tables as well. The first attribute of both is the table's name.
    listing.retain(|object| wire::text(&object.body, 1).as_deref() == Some(TABLE));
    Ok(listing)
}

/// The pairs in the table's set.
fn pairs(connection: &mut Connection) -> io::Result<BTreeSet<(u32, u32)>> {
    let lists = match connection.dump(kind::GET_ELEMENT, INET, &table::elements_filter()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let mut pairs = BTreeSet::new();
    for list in lists {
        let elements = wire::find(&list.body, 3).unwrap_or_default();
        for (_, element) in wire::attributes(elements) {
            let key = wire::find(element, 1).and_then(|key| wire::find(key, 1)).unwrap_or_default();
            let index = |at: usize| key.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b));
            pairs.extend(index(0).zip(index(4)));
        }
    }
    Ok(pairs)
}

/// Whether the table is there with all of its chains on their hooks.
pub(super) fn find() -> Result<Found, NftError> {
    let mut connection = Connection::open()?;
    connection.generation()?;
    let listing = list(&mut connection).map_err(NftError::Refused)?;
    let there = |chain: &table::Chain| {
        listing.iter().any(|object| {
            let hook = wire::find(&object.body, 4).unwrap_or_default();
            wire::text(&object.body, 3).as_deref() == Some(chain.name)
                && wire::number(hook, 1) == Some(chain.hook)
                && wire::number(hook, 2) == Some(chain.priority.cast_unsigned())
        })
    };
    Ok(if CHAINS.iter().all(there) { Found::Whole } else { Found::Missing })
}

/// Removes the table, if it is there.
pub(super) fn remove() -> Result<(), NftError> {
    let mut connection = Connection::open()?;
    connection.generation()?;
    Ok(connection.commit(&table::remove())?)
}
