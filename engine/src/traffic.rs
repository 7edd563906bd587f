//! Packet and byte counts.

use serde::{Deserialize, Serialize};

/// Packets and bytes forwarded.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

/// [`Traffic`] since a member last published it. Each count stops at 2^32 − 1.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TrafficDelta {
    /// Packets.
    pub packets: u32,
    /// Bytes, IP headers included.
    pub bytes: u32,
}

impl TrafficDelta {
    /// Counts one packet.
    pub(crate) fn add_packet(&mut self, bytes: u32) {
        self.packets = self.packets.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}
