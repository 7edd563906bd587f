//! The settings that packets and workers need, where they read them without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::replicated::Settings;

/// Copies of replicated [`Settings`], as applied here.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    max_half_open: AtomicU64,
    half_open_per_source: AtomicU32,
    takeover_rate: AtomicU64,
    grace: Grace,
}

/// How long established sessions pass on this member after its lease was renewed last: the setting as applied here.
#[derive(Clone, Debug)]
pub struct Grace(Arc<AtomicU64>);

impl Default for Grace {
    /// That of a new cluster.
    fn default() -> Grace {
        Grace::new(Settings::default().grace())
    }
}

impl Grace {
    /// One that begins with this value.
    #[must_use]
    pub fn new(grace: Duration) -> Grace {
        Grace(Arc::new(AtomicU64::new(millis(grace))))
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, grace: Duration) {
        self.0.store(millis(grace), Ordering::Relaxed);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Limits {
    /// Takes the settings. Returns whether the maximum number of half-open sessions is another one than before.
    pub(crate) fn set(&self, settings: &Settings) -> bool {
        self.half_open_per_source.store(settings.max_half_open_per_source(), Ordering::Relaxed);
        self.takeover_rate.store(settings.takeover_rate(), Ordering::Relaxed);
        self.grace.set(settings.grace());
        let max = settings.max_half_open() as u64;
        self.max_half_open.swap(max, Ordering::Relaxed) != max
    }

    /// Maximum number of half-open sessions of one source.
    pub(crate) fn half_open_per_source(&self) -> u32 {
        self.half_open_per_source.load(Ordering::Relaxed)
    }

    /// How fast a connection may have gone on while no live member saw it, in bytes per second. The takeover bound grows by it,
    /// up to 2^28 bytes.
    pub(crate) fn takeover_rate(&self) -> u64 {
        self.takeover_rate.load(Ordering::Relaxed)
    }

    pub(crate) fn grace(&self) -> &Grace {
        &self.grace
    }
}
