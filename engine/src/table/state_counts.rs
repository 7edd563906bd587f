//! The number of a shard's sessions by protocol and state, kept as they change: nobody has to walk the table to count it.

use crate::track::State;
use crate::tuple::Protocol;

/// The numbers. A protocol's row exists from its first session on, so that a change of state allocates nothing.
#[derive(Default, Debug)]
pub(crate) struct StateCounts(Vec<(Protocol, [u32; State::ALL.len()])>);

impl StateCounts {
    /// Counts a session that is new.
    pub(crate) fn add(&mut self, protocol: Protocol, state: State) {
        let row = match self.0.iter().position(|(p, _)| *p == protocol) {
            Some(row) => row,
            None => {
                self.0.push((protocol, Default::default()));
                self.0.len() - 1
            }
        };
        if let Some((_, row)) = self.0.get_mut(row) {
            row[state as usize] += 1;
        }
    }

    /// Discounts a session that was counted in this state.
    pub(crate) fn remove(&mut self, protocol: Protocol, state: State) {
        if let Some((_, row)) = self.0.iter_mut().find(|(p, _)| *p == protocol) {
            row[state as usize] = row[state as usize].saturating_sub(1);
        }
    }

    /// The numbers that are not 0.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Protocol, State, u32)> + '_ {
        let row = |(protocol, row): &(Protocol, [u32; State::ALL.len()])| {
            let (protocol, row) = (*protocol, *row);
            State::ALL.into_iter().zip(row).map(move |(state, n)| (protocol, state, n))
        };
        self.0.iter().flat_map(row).filter(|(.., n)| *n > 0)
    }
}
