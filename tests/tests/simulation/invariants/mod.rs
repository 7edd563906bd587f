//! What must hold whatever happens: the promises P1 to P7 of the design, each with the tests that it can fail.

mod fail_closed;
mod flood;
mod no_lost_connection;
mod no_race;
mod one_policy;
mod slow_member;
mod strict;

use crate::sim::{Fact, Sim};

/// Watches a run.
pub(crate) trait Invariant {
    /// Its number in the design, and what it says.
    fn name(&self) -> &'static str;

    /// Something happened.
    ///
    /// # Errors
    /// What is wrong with that.
    fn hear(&mut self, fact: &Fact<'_>, sim: &Sim) -> Result<(), String>;

    /// The run is over: what is wrong with how it ended.
    fn end(&mut self, sim: &Sim) -> Vec<String> {
        let _ = sim;
        Vec::new()
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<no_race::NoRace>::default(),
        Box::<no_lost_connection::NoLostConnection>::default(),
        Box::<fail_closed::FailClosed>::default(),
        Box::<strict::Strict>::default(),
        Box::<flood::Flood>::default(),
        Box::<one_policy::OnePolicy>::default(),
        Box::<slow_member::SlowMember>::default(),
    ]
}
