//! The register of members: making a cluster, joining, leaving, identity, recovery; and the leader's task that makes
//! openraft's membership match the register.
//!
//! `Join` and `Leave` are commands in the log. Who votes follows from the register: [`reconcile`] changes openraft's
//! membership step by step. So nothing is lost when a leader dies half-way, and two simultaneous changes cannot contradict
//! each other.

pub(crate) mod admission;
pub(crate) mod error;
pub(crate) mod identity;
pub(crate) mod join;
pub(crate) mod level;
pub(crate) mod options;
pub(crate) mod presence;
pub(crate) mod reconcile;
pub(crate) mod recover;
pub(crate) mod register;
pub(crate) mod rollback_check;
pub(crate) mod token;
