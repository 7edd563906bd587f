//! The pure core of Palisade: everything the firewall *decides*.
//!
//! No sockets, no clock, no async runtime, no threads, no randomness: time, ids and routes are arguments. That is why
//! every rule of the firewall can be tested with nothing but bytes.
//!
//! Three ways lead through this crate:
//!
//! - **a packet**: [`parse`] → `pipeline` (→ `table`, `track`, [`policy`]) → [`Verdict`] and [`Event`]s;
//! - **an establishment**: [`Event::Propose`] → *(the log, outside)* → [`replica`] `apply` → `table`;
//! - **an admin's command**: [`replica::Command`] → *(the log)* → [`replica`] `apply` → policy, members, settings.

pub mod addr;
mod blind_intervals;
mod digest;
pub mod engine;
pub mod event;
mod hint;
pub mod hold;
pub mod id;
pub mod idle;
mod law;
pub mod parse;
mod pipeline;
pub mod policy;
mod progress;
pub mod replica;
mod table;
#[cfg(test)]
mod testing;
pub mod time;
pub mod timeouts;
mod track;
mod traffic;
pub mod tuple;
pub mod verdict;

pub use addr::Ip;
pub use engine::{Config, Context, Engine, Routes, Standing, Wake};
pub use event::{Event, HalfOpen, Hint};
pub use id::{Generation, MemberId, RuleId, SessionId, ZoneId};
pub use progress::TakeoverCounts;
pub use time::Time;
pub use timeouts::Timeouts;
pub use traffic::{Traffic, TrafficDelta};
pub use tuple::{Direction, PerDirection, Protocol, Tuple};
pub use verdict::{HoldClass, HoldKey, Reason, Verdict};
