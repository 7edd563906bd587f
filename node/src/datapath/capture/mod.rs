//! Capture: raw sockets that see a packet before the kernel would route it.

pub(crate) mod ring;
pub(crate) mod socket;

pub(crate) use ring::SLOT_BYTES;
pub(crate) use socket::{Capture, MAX_FRAME_BYTES, Received};

/// The EtherTypes that are captured. Never `ETH_P_ALL`: that also sees what TC redirected, tagged frames as if they
/// were ours, and this machine's own output.
pub(crate) const ETHERTYPES: [u16; 2] = [0x0800, 0x86dd];
