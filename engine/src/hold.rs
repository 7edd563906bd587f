//! The hold buffer: packets that wait, within bounds, for a commit, an apply or a hint.

use std::time::Duration;

use crate::time::Time;
use crate::verdict::{HoldClass, HoldKey, Reason};

/// Bounds of one worker's hold buffer, each for [`HoldClass::Matched`] and [`HoldClass::Unmatched`] apart.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most packets: matched, unmatched.
    pub packets: (usize, usize),
    /// Most bytes: matched, unmatched.
    pub bytes: (usize, usize),
    /// Longest time that a packet waits, from its first hold on (250 ms).
    pub time: Duration,
}

/// Packets of type `P`, in order per key. `P` carries what the worker needs to judge and inject it again.
pub struct HoldBuffer<P> {
    _p: std::marker::PhantomData<P>,
}

#[allow(unused_variables, clippy::todo)]
impl<P> HoldBuffer<P> {
    /// An empty buffer.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        todo!()
    }

    /// Keeps a packet of `bytes` bytes that was first held at `since`.
    ///
    /// # Errors
    /// The packet back, and why it can not be kept.
    pub fn hold(
        &mut self,
        since: Time,
        key: HoldKey,
        class: HoldClass,
        bytes: usize,
        packet: P,
    ) -> Result<(), (P, Reason)> {
        todo!()
    }

    /// Takes out all packets of a key, oldest first, each with the time when it was first held.
    pub fn release(&mut self, key: HoldKey, each: &mut dyn FnMut(Time, P)) {
        todo!()
    }

    /// Takes out all packets whose time is over.
    pub fn expire(&mut self, now: Time, each: &mut dyn FnMut(P)) {
        todo!()
    }

    /// When [`HoldBuffer::expire`] has something to do next.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        todo!()
    }

    /// Packets held now: matched, unmatched.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        todo!()
    }
}
