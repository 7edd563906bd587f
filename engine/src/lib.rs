//! The pure core of Palisade: everything the firewall *decides*.
//!
//! No sockets, no clock, no async runtime, no threads, no randomness: time, ids and routes are arguments. That is why
//! every rule of the firewall can be tested with nothing but bytes.
//!
//! Three paths lead through this crate:
//!
//! - **a packet**: [`parse`] → `pipeline` (→ `table`, `track`, [`policy`]) → [`Verdict`] and [`Event`]s;
//! - **an establishment**: [`Event::Propose`] → *(the log, outside)* → [`replica`] `apply` → `table`;
//! - **an admin's command**: [`replica::Command`] → *(the log)* → [`replica`] `apply` → policy, members, settings.

mod active_policy;
mod addr;
mod blind_intervals;
mod cluster_state;
mod digest;
pub mod duration;
mod encoding;
mod engine;
mod event;
mod hint;
pub mod hold;
mod id;
mod idle;
mod level;
mod limits;
mod messages;

pub mod packet_loop;
pub mod parse;
mod pipeline;
pub mod policy;
mod policy_slots;
mod progress;
pub mod replica;
mod replicated;
mod reset;
mod rule_hits;
mod session;
mod sweep;
mod table;
#[cfg(test)]
mod testing;
mod time;
pub mod timeouts;
mod track;
mod traffic;
mod tuple;
mod types;
mod verdict;
mod worker_set;

pub use addr::Ip;
pub use cluster_state::{Candidate, ClusterState, JoinRequest, MemberInfo, PolicyRecord, Role};
pub use encoding::{DecodeError, EncodeError};
pub use engine::Engine;
pub use event::{
    ConnectionDecision, EndpointSnapshot, Event, FragmentKey, Hint, LoggedDecision, Progress, Proposal,
    ProvisionalSegment, TcpSnapshot, UnconfirmedEdge,
};
pub use id::{
    Generation, MemberId, RuleId, SessionId, SessionIdError, ZoneId, ZonePair, first_number, start_of_number,
};
pub use idle::IdleProbe;
pub use level::{Capabilities, Level, Levels, UnknownLevel};
pub use limits::Grace;
pub use policy_slots::{CompileRefusal, CompiledPolicy, PolicyReport, PolicyTask};
pub use progress::TakeoverCounts;
pub use reset::{BothEdges, Edges, Reset};
pub use rule_hits::RuleHits;
pub use session::{
    Close, CloseCause, Counts, EndCause, EndedSession, Establish, HalfOpen, HandshakeState, SessionInfo, SynParams,
};
pub use sweep::Sweep;
pub use time::Time;
pub use timeouts::Timeouts;
pub use traffic::{Traffic, TrafficDelta};
pub use tuple::{Direction, PerDirection, Protocol, Tuple};
pub use types::{Config, Context, LeaseState, Routes, Wake};
pub use verdict::{HoldClass, HoldKey, Reason, Verdict};
pub use worker_set::WorkerSet;
