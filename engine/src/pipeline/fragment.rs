//! Fragments: those that follow share the fate of the first, which alone has ports.
//!
//! A datagram is known by source, destination, protocol and identification (RFC 791 section 3.2, RFC 8200 section 4.5),
//! in a ring of fixed size per shard, for at most 30 seconds. A following fragment whose first one is not known here is
//! dropped: reassembly at the receiver could never tell whose it is.

use std::hash::BuildHasher;
use std::time::Duration;

use crate::engine::{Context, Engine};
use crate::parse::{Fragment, Packet};
use crate::time::Time;
use crate::tuple::Tuple;
use crate::verdict::{Reason, Verdict};

/// Datagrams per shard.
const RING: usize = 32;

/// Longest time between a datagram's fragments (RFC 791: reassembly timers are 15 s; Linux: 30 s).
const LIFE: Duration = Duration::from_secs(30);

/// Datagrams whose first fragment was forwarded.
#[derive(Default)]
pub(crate) struct Datagrams {
    ring: Vec<(u64, Time)>,
    next: usize,
}

impl Datagrams {
    fn insert(&mut self, key: u64, now: Time) {
        if let Some(known) = self.ring.iter_mut().find(|(k, _)| *k == key) {
            known.1 = now;
        } else if self.ring.len() < RING {
            self.ring.push((key, now));
        } else {
            self.ring[self.next] = (key, now);
            self.next = (self.next + 1) % RING;
        }
    }

    fn knows(&self, key: u64, now: Time) -> bool {
        self.ring.iter().any(|&(k, seen)| k == key && now.since(seen) <= LIFE)
    }
}

impl Engine {
    /// The verdict on a fragment that is not the first.
    pub(super) fn fragment(&self, packet: &Packet, fragment: &Fragment, context: &Context<'_>) -> Verdict {
        let (shard, key) = self.datagram(packet, fragment, context);
        match self.table.of(shard).fragments.knows(key, context.now) {
            true => Verdict::Forward,
            false => Verdict::Drop(Reason::Fragment),
        }
    }

    /// A first fragment was forwarded.
    pub(super) fn first_fragment(&self, packet: &Packet, fragment: &Fragment, context: &Context<'_>) {
        let (shard, key) = self.datagram(packet, fragment, context);
        self.table.of(shard).fragments.insert(key, context.now);
    }

    fn datagram(&self, packet: &Packet, fragment: &Fragment, context: &Context<'_>) -> (u64, u64) {
        let addresses = Tuple { src_port: 0, dst_port: 0, ..packet.tuple };
        let key = self.table.hasher().hash_one((addresses, fragment.id, context.ingress));
        (self.table.hash(&addresses), key)
    }
}
