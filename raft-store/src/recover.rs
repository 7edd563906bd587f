//! A member that goes on alone: what its store comes to, and a new store that begins with that.
//!
//! Raft cannot give up a majority, so this is no change of the membership: it is a new log, of a new cluster, that begins
//! with a snapshot. The old store is only read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

use openraft::Membership;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::vote::RaftLeaderIdExt;
use palisade_engine::{MemberId, MemberInfo};

use crate::core::{ReplicatedState, Setup};
use crate::db::{COMMITTED, PURGED, VOTE, durable, put};
use crate::encoding::Encoded;
use crate::error::{StoreError, StoreOwner};
use crate::record::{Entries, key};
use crate::snapshot::Pace;
use crate::state_machine::StateMachine;
use crate::store::{Options, Store};
use crate::types::{Entry, LogId, SnapshotMeta, StoredMembership, Vote};
use crate::unreadable::Thing;

/// All that a store has: its snapshot, and every entry of its log, also those that are not known to be committed.
#[derive(Debug)]
pub struct SurvivingState<M> {
    machine: StateMachine<M>,
    /// The last entry.
    pub last: Option<LogId>,
    /// The last entry known to be committed.
    pub committed: Option<LogId>,
    /// Who votes, as of the last entry.
    pub voters: BTreeSet<MemberId>,
    vote: Option<Vote>,
}

impl Store {
    /// Applies all that is here to a machine. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it cannot be read, or no good snapshot reaches what was purged from the log.
    pub fn surviving_state<M: ReplicatedState>(self, setup: Setup<M>) -> Result<SurvivingState<M>, StoreError> {
        let Store { dir, trees, state, snapshots, options, .. } = &self;
        let machine = StateMachine::restore(setup, snapshots.clone(), options.clock.clone())?;
        self.reaches_purged(machine.last_applied())?;
        let from = machine.last_applied().or(state.purged).map_or(0, |id| id.index + 1);
        let replay = || {
            let mut entries = Entries::new(trees.log.range(key(from, 0)..));
            while let Some((index, content)) = entries.next_entry()? {
                machine.replay(&Entry::decode(Thing::Entry(index), &content)?);
            }
            Ok(())
        };
        replay().map_err(|error: io::Error| StoreError::damaged_by(dir, "the log", error))?;
        let (last, membership) = machine.position();
        let voters = membership.voter_ids().collect();
        Ok(SurvivingState { machine, last, committed: state.committed.max(state.purged), voters, vote: state.vote })
    }
}

impl<M: ReplicatedState> SurvivingState<M> {
    /// Calls `with` with the state.
    pub fn state<T>(&self, with: impl FnOnce(&mut M) -> T) -> T {
        self.machine.with(with)
    }

    /// Makes a new store in `dir`, which must not be there: that of a cluster of one, `owner`, that has all this. Its log
    /// goes on one index and one term further. Blocks; when it returns all is durable.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn bootstrap(
        self,
        dir: &Path,
        options: Options,
        owner: StoreOwner,
        info: MemberInfo,
    ) -> Result<(), StoreError> {
        let me = owner.member;
        let voted = self.vote.map_or(0, |vote| vote.leader_id.term);
        let term = voted.max(self.last.map_or(0, |last| last.leader_id.term)) + 1;
        let at = LogId::new(LeaderId::new_committed(term, me), self.last.map_or(0, |last| last.index + 1));
        let alone = Membership::new(vec![BTreeSet::from([me])], BTreeMap::from([(me, info)]));
        let alone = alone.map_err(|error| StoreError::io("write", dir)(io::Error::other(error)))?;
        let last_membership = StoredMembership::new(Some(at), alone);
        let meta = SnapshotMeta { last_log_id: Some(at), last_membership };

        if dir.exists() {
            return Err(StoreError::io("make", dir)(io::ErrorKind::AlreadyExists.into()));
        }
        let mut store = Store::open(dir, options)?;
        let job = self.state(M::begin_snapshot);
        let level = self.state(|state| state.level());
        let clock = store.options.clock.clone();
        let write = |to: &mut dyn Write| crate::core::Job::write(job, to, &clock).map(|_| ());
        let built = store.snapshots.build(level, &meta, Pace::Full, write);
        built.map_err(StoreError::io("write a snapshot into", dir))?;
        put(dir, &store.trees, VOTE, &Vote::new(term, me))?;
        put(dir, &store.trees, COMMITTED, &Some(at))?;
        put(dir, &store.trees, PURGED, &at)?;
        durable(&store.trees, &mut *store.barrier, &mut store.watermark).map_err(StoreError::io("write", dir))?;
        store.set_owner(owner)
    }
}
